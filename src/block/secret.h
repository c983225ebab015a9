/*
 * Passphrases, which are never on a command line: where one is to be had.
 *
 *      file:PATH      the file's bytes, without a line feed at their end
 *      -              standard input, the same
 *      keyring:NAME   the key of type "user" with that description, in the session's or the user's keyring of the kernel
 */
#pragma once

#include "base/err.h"

#define SECRET_BYTES_MAX 4096

struct secret {
        uint8_t bytes[SECRET_BYTES_MAX];
        size_t size_bytes;
};

/* spec NULL: -ENOKEY, for `what` needs one. Wipe it with secret_wipe() afterwards. */
int secret_read(const char *spec, const char *what, struct secret *secret, struct err *err) _must_check_;
void secret_wipe(struct secret *secret);
