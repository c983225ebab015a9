/*
 * Encrypted disks, LUKS1 and LUKS2: header.h has the format, luks.c what becomes of requests. As a format of its own, and as a layer of others:
 * a node through which the bytes of an image go that has a LUKS header somewhere.
 */
#pragma once

#include "block/block.h"
#include "block/luks/header.h"

extern const struct block_driver block_luks;

/* ---- for formats that have a header inside ---- */

/* By the passphrase that spec names (block/secret.h); the cipher is for luks_layer_new(). -ENOKEY, -EACCES. */
int luks_unlock_by(const struct luks *luks, luks_read_fn *read, void *ctx, const char *spec, const char *what, struct cipher **cipher,
                   struct err *err) _must_check_;
/* A new header, with a key slot for that passphrase. */
int luks_make_by(const struct luks_new *how, luks_write_fn *write, void *ctx, const char *spec, const char *what, struct err *err) _must_check_;
/*
 * What is read at a place is what file has there, decrypted; the tweak is that place. cipher is the layer's from now on, also when this fails;
 * NULL: nothing can be read or written (-ENOKEY). own: so is file; else it outlives the layer, unless nothing is in flight.
 */
int luks_layer_new(const struct block_opening *opening, struct block *file, bool own, const struct luks *luks, struct cipher *cipher,
                   struct block **layer, struct err *err) _must_check_;
/* For `virta disk info`; NULL: no memory. */
json_t *luks_about(const struct luks *luks);
const struct luks *luks_layer_header(const struct block *layer);

/* What a new header is like, and the options that change that. */
struct luks_new luks_new_default(unsigned version);
int luks_take_option(const struct block_option *option, struct luks_new *how, struct err *err) _must_check_;
