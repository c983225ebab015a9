/*
 * A layer as it is stored, as the plain tar that it stands for: decompressed piece by piece, and hashed on the way.
 *
 * Source: RFC 1952 (gzip: members follow each other), RFC 8878 (zstd: so do frames, some to be skipped).
 */
#pragma once

#include "image/media.h"

struct layer_stream;

/* fd stays the caller's. */
int layer_stream_open(int fd, enum layer_compression compression, const struct digest *like, struct layer_stream **stream, struct err *err) _must_check_;
/* The next bytes, good until the next call; 0: the end; -EBADMSG: what is stored is no such stream, or cut. */
ssize_t layer_stream_read(struct layer_stream *stream, const void **bytes, struct err *err);
/* After the end: the digest of all of it. */
void layer_stream_digest(struct layer_stream *stream, struct digest *digest);
/* Bytes of the stored layer that were read. */
uint64_t layer_stream_position(const struct layer_stream *stream);
void layer_stream_close(struct layer_stream *stream);
