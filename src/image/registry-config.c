#include "image/registry-config.h"

#include <fcntl.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/text.h"

#define CONFIG_MAX ((size_t)1 << 20)

/* -ENOENT when it is not there. */
static int load(const char *path, json_t **json, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *text = fd < 0 ? NULL : malloc(CONFIG_MAX);
        ssize_t n;
        int r;

        if (fd < 0)
                return errno == ENOENT || errno == ENOTDIR ? -ENOENT : err_errno(err, -errno, "cannot open '%s'", path);
        if (!text)
                return err_nomem(err);
        n = text_read(fd, text, CONFIG_MAX);
        if (n < 0)
                return err_errno(err, (int)n, "cannot read '%s'", path);
        r = json_parse(text, (size_t)n, json, err);
        OPENSSL_cleanse(text, (size_t)n);
        if (!r && !json_is_object(*json)) {
                json_decref(*json);
                r = err_set(err, -EBADMSG, "it is not an object");
        }
        return r < 0 ? err_wrap(err, r, "'%s'", path) : 0;
}

/* $variable/tail, or $HOME/home_tail. False: neither is set. */
static bool user_path(char path[PATH_MAX], const char *variable, const char *tail, const char *home_tail)
{
        const char *base = getenv(variable), *home = getenv("HOME");

        if (base && base[0] == '/')
                return snprintf(path, PATH_MAX, "%s/%s", base, tail) < PATH_MAX;
        return home && home[0] == '/' && home_tail && snprintf(path, PATH_MAX, "%s/%s", home, home_tail) < PATH_MAX;
}

int registry_config_load(struct registry_config *config, struct err *err)
{
        char path[PATH_MAX];
        int r = -ENOENT;

        config->json = NULL;
        if (geteuid() && user_path(path, "XDG_CONFIG_HOME", "virta/registries.json", ".config/virta/registries.json"))
                r = load(path, &config->json, err);
        if (r == -ENOENT)
                r = load("/etc/virta/registries.json", &config->json, err);
        if (r == -ENOENT) {
                config->json = json_object();
                r = config->json ? 0 : err_nomem(err);
        }
        return r;
}

void registry_config_done(struct registry_config *config)
{
        json_decref(config->json);
        config->json = NULL;
}

const char *registry_config_short(const struct registry_config *config, size_t i)
{
        return json_string_value(json_array_get(json_object_get(config->json, "short-names"), i));
}

const char *registry_config_mirror(const struct registry_config *config, const char *host, size_t i)
{
        return json_string_value(json_array_get(json_object_get(json_object_get(config->json, "mirrors"), host), i));
}

bool registry_config_insecure(const struct registry_config *config, const char *host)
{
        static const char *const loopback[] = { "localhost", "127.0.0.1", "[::1]" };
        const json_t *entry;
        size_t i, length = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");

        json_array_foreach(json_object_get(config->json, "insecure"), i, entry)
                if (json_is_string(entry) && !strcmp(json_string_value(entry), host))
                        return true;
        for (i = 0; i < ARRAY_SIZE(loopback); i++)
                if (strlen(loopback[i]) == length && !strncmp(host, loopback[i], length))
                        return true;
        return false;
}

/* ---- credentials ---- */

static int decode(const char *text, char **plain, struct err *err)
{
        size_t length = strlen(text);
        int n;

        *plain = malloc(length + 4);
        if (!*plain)
                return err_nomem(err);
        n = length % 4 ? -1 : EVP_DecodeBlock((unsigned char *)*plain, (const unsigned char *)text, (int)length);
        if (n < 0 || length > INT_MAX / 2) {
                free(steal_ptr(*plain));
                return err_set(err, -EBADMSG, "its credentials are not base64");
        }
        while (length && text[length - 1] == '=') {
                length--;
                n--;
        }
        (*plain)[n] = 0;
        return 0;
}

int registry_credentials(const char *host, char **credentials, struct err *err)
{
        const char *named = getenv("REGISTRY_AUTH_FILE");
        char paths[4][PATH_MAX] = { "" };

        *credentials = NULL;
        if (named)
                snprintf(paths[0], PATH_MAX, "%s", named);
        if (!user_path(paths[1], "XDG_RUNTIME_DIR", "containers/auth.json", NULL))
                paths[1][0] = 0;
        if (!user_path(paths[2], "XDG_CONFIG_HOME", "containers/auth.json", ".config/containers/auth.json"))
                paths[2][0] = 0;
        if (!user_path(paths[3], "DOCKER_CONFIG", "config.json", ".docker/config.json"))
                paths[3][0] = 0;
        for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
                _cleanup_json_ json_t *json = NULL;
                const char *auth;
                int r = paths[i][0] ? load(paths[i], &json, err) : -ENOENT;

                if (r == -ENOENT)
                        continue;
                if (r < 0)
                        return r;
                auth = json_string_value(json_object_get(json_object_get(json_object_get(json, "auths"), host), "auth"));
                if (!auth || !auth[0])
                        continue;
                r = decode(auth, credentials, err);
                return r < 0 ? err_wrap(err, r, "'%s', host '%s'", paths[i], host) : 0;
        }
        return 0;
}
