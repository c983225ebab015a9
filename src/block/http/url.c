#include "block/http/url.h"

#include <errno.h>
#include <stdio.h>
#include <strings.h>

#include "base/text.h"

#define RETRY_MAX_S 86400u

static int set_text(char **field, const char *value, struct err *err)
{
        if (!*value)
                return err_set(err, -EINVAL, "an option without a value");
        free(*field);
        *field = strdup(value);
        return *field ? 0 : err_nomem(err);
}

static int set_option(struct http_url *url, const char *text, struct err *err)
{
        uint64_t seconds;

        if (!strncmp(text, "ca=", 3))
                return set_text(&url->ca, text + 3, err);
        if (!strncmp(text, "login=", 6))
                return set_text(&url->login, text + 6, err);
        if (!strncmp(text, "retry=", 6)) {
                if (number_parse(text + 6, 0, RETRY_MAX_S, &seconds, NULL) < 0)
                        return err_set(err, -EINVAL, "'%s': retry is 0 to %u seconds", text + 6, RETRY_MAX_S);
                url->retry_s = (unsigned)seconds;
                return 0;
        }
        return err_set(err, -EINVAL, "'%s' is none of ca=FILE, login=SECRET, retry=SECONDS", text);
}

static int set_options(struct http_url *url, char *text, struct err *err)
{
        char *rest = text, *one;
        int r = 0;

        while (r == 0 && (one = strsep(&rest, "&")))
                r = set_option(url, one, err);
        return r;
}

/* Passwords are not in names: these are on command lines, in lists of processes, in images and in logs. */
static int check_host(const char *host, struct err *err)
{
        size_t length = strcspn(host, "/?#");

        if (!length || *host == ':')
                return err_set(err, -EINVAL, "there is no host in it");
        if (memchr(host, '@', length))
                return err_set(err, -EINVAL, "who logs in is not said in it; behind it, #login=file:PATH says where USER:PASSWORD is");
        return 0;
}

int http_url_parse(const char *text, struct http_url *url, struct err *err)
{
        _cleanup_free_ char *copy = strdup(text);
        struct http_url made = { .retry_s = HTTP_RETRY_S };
        char *options;
        int r;

        if (!copy)
                return err_nomem(err);
        made.tls = !strncasecmp(text, "https://", 8);
        for (const char *c = text; *c; c++) {
                if ((unsigned char)*c <= ' ' || *c == 0x7f)
                        return err_set(err, -EINVAL, "it has blanks or control characters; %%20 is a blank");
        }
        options = strchr(copy, '#');
        if (options)
                *options++ = '\0';
        r = check_host(copy + (made.tls ? 8 : 7), err);
        if (r == 0 && options)
                r = set_options(&made, options, err);
        if (r == 0 && made.ca && !made.tls)
                r = err_set(err, -EINVAL, "ca= goes with https://");
        if (r == 0)
                r = set_text(&made.url, copy, err);
        if (r < 0) {
                http_url_done(&made);
                return r;
        }
        *url = made;
        return 0;
}

void http_url_done(struct http_url *url)
{
        free(url->url);
        free(url->ca);
        free(url->login);
        *url = (struct http_url){ 0 };
}
