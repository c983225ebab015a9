#include "block/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sys/syscall.h>

static int read_all(int fd, struct secret *secret)
{
        while (secret->size_bytes < sizeof(secret->bytes)) {
                ssize_t n = read(fd, secret->bytes + secret->size_bytes, sizeof(secret->bytes) - secret->size_bytes);

                if (n < 0 && errno != EINTR)
                        return -errno;
                if (n == 0)
                        break;
                secret->size_bytes += n > 0 ? (size_t)n : 0;
        }
        if (secret->size_bytes == sizeof(secret->bytes))
                return -E2BIG;
        if (secret->size_bytes && secret->bytes[secret->size_bytes - 1] == '\n')
                secret->size_bytes--;
        return 0;
}

static int read_key(const char *name, struct secret *secret)
{
        long key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", name, 0), n;

        if (key < 0)
                key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, "user", name, 0);
        if (key < 0)
                return -errno;
        n = syscall(SYS_keyctl, KEYCTL_READ, key, secret->bytes, sizeof(secret->bytes));
        if (n < 0)
                return -errno;
        if ((size_t)n > sizeof(secret->bytes))
                return -E2BIG;
        secret->size_bytes = (size_t)n;
        return 0;
}

int secret_read(const char *spec, const char *what, struct secret *secret, struct err *err)
{
        _cleanup_close_ int fd = -1;
        int r;

        secret->size_bytes = 0;
        if (!spec)
                return err_set(err, -ENOKEY, "disk %s is encrypted; say where its passphrase is: file:PATH, - or keyring:NAME (--secret)", what);
        if (strncmp(spec, "file:", 5) == 0 && spec[5]) {
                fd = open(spec + 5, O_RDONLY | O_CLOEXEC);
                r = fd < 0 ? -errno : read_all(fd, secret);
        } else if (strcmp(spec, "-") == 0) {
                r = read_all(STDIN_FILENO, secret);
        } else if (strncmp(spec, "keyring:", 8) == 0 && spec[8]) {
                r = read_key(spec + 8, secret);
        } else {
                return err_set(err, -EINVAL, "a secret is file:PATH, - or keyring:NAME");
        }
        if (r == 0 && !secret->size_bytes)
                r = -ENODATA;
        if (r < 0)
                secret_wipe(secret);
        return r < 0 ? err_errno(err, r, "cannot read the passphrase of disk %s from %s", what, spec) : 0;
}

void secret_wipe(struct secret *secret)
{
        explicit_bzero(secret, sizeof(*secret));
}
