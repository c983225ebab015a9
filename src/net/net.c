#include "net/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>

const struct net_ops *const net_drivers[] = {
        &net_user_ops,
        NULL,
};

/* A port number from 1 to 65535, the whole of text. */
static int parse_port(const char *text, const char *whole, uint16_t *port, struct err *err)
{
        unsigned long value = 0;

        for (const char *c = text; *c; c++) {
                if (*c < '0' || *c > '9')
                        return err_set(err, -EINVAL, "port '%s' in '%s' is not a number", text, whole);
                value = value * 10 + (unsigned long)(*c - '0');
                if (value > 65535)
                        break;
        }
        if (!*text || value < 1 || value > 65535)
                return err_set(err, -EINVAL, "port '%s' in '%s' is out of range, 1 to 65535", text, whole);
        *port = (uint16_t)value;
        return 0;
}

/* tcp:8080:80, udp:0.0.0.0:53:53 */
static int parse_forward(const char *whole, struct net_forward *forward, struct err *err)
{
        struct net_forward found = { .host.s_addr = htonl(INADDR_LOOPBACK) };
        char text[128];
        char *at = text, *guest, *host;
        int r;

        if (snprintf(text, sizeof(text), "%s", whole) >= (int)sizeof(text))
                return err_set(err, -EINVAL, "forward '%.40s…' is too long", whole);
        if (strncmp(at, "tcp:", 4) != 0 && strncmp(at, "udp:", 4) != 0)
                return err_set(err, -EINVAL, "forward '%s' starts with neither tcp: nor udp:", whole);
        found.udp = at[0] == 'u';
        at += 4;

        guest = strrchr(at, ':');
        if (!guest)
                return err_set(err, -EINVAL, "forward '%s' has no guest port; write tcp:HOSTPORT:GUESTPORT", whole);
        *guest++ = 0;
        host = strrchr(at, ':');
        if (host) {
                *host++ = 0;
                if (inet_pton(AF_INET, at, &found.host) != 1)
                        return err_set(err, -EINVAL, "'%s' in '%s' is not an IPv4 address", at, whole);
        } else {
                host = at;
        }
        r = parse_port(host, whole, &found.host_port, err);
        if (r < 0)
                return r;
        r = parse_port(guest, whole, &found.guest_port, err);
        if (r < 0)
                return r;
        *forward = found;
        return 0;
}

static int parse_option(char *option, struct net_options *options, struct err *err)
{
        if (strncmp(option, "forward=", 8) != 0)
                return err_set(err, -EINVAL, "network option '%s' is not known; there is forward=tcp|udp:HOSTPORT:GUESTPORT",
                               option);
        if (options->forwards == NET_FORWARDS_MAX)
                return err_set(err, -EINVAL, "more than %d forwards", NET_FORWARDS_MAX);
        return parse_forward(option + 8, &options->forward[options->forwards++], err);
}

int net_options_parse(const char *text, struct net_options *options, struct err *err)
{
        struct net_options found = { 0 };
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy;
        char *driver, *option;

        if (!copy)
                return err_nomem(err);
        driver = strsep(&rest, ",");
        if (strcmp(driver, "none") == 0) {
                if (rest)
                        return err_set(err, -EINVAL, "network 'none' takes no options, '%s' given", rest);
                *options = found;
                return 0;
        }
        for (unsigned i = 0; net_drivers[i]; i++) {
                if (strcmp(driver, net_drivers[i]->name) == 0)
                        found.driver = net_drivers[i];
        }
        if (!found.driver)
                return err_set(err, -EINVAL, "network '%s' is not known; there are user and none", driver);
        while ((option = strsep(&rest, ","))) {
                int r = parse_option(option, &found, err);

                if (r < 0)
                        return r;
        }
        *options = found;
        return 0;
}

int net_new(const struct net_options *options, uv_loop_t *loop, struct net_backend **net, struct err *err)
{
        return options->driver->new(options, loop, net, err);
}

void net_free(struct net_backend *net)
{
        if (net)
                net->ops->free(net);
}

void net_connect(struct net_backend *net, const struct net_client *client)
{
        net->client = client ? *client : (struct net_client){ 0 };
}
