/*
 * Memory in several pieces (struct iovec). Offsets count from the first byte of the first piece; what lies behind the last is not there:
 * fewer bytes are copied then. Pieces of 0 bytes are passed over.
 */
#pragma once

#include <sys/uio.h>

#include "base/util.h"

size_t iov_total(const struct iovec *iov, unsigned count);
/* Between the pieces and a buffer: how many bytes were copied. */
size_t iov_to_buf(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t size_bytes);
size_t buf_to_iov(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t size_bytes);
size_t iov_zero(const struct iovec *iov, unsigned count, size_t offset, size_t size_bytes);
/* The pieces of that range into out, which has room for count: how many there are. */
unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t size_bytes, struct iovec *out);
/*
 * For pieces that go out one behind the other, of whose bytes the first *skip have gone: appends what is left of this one to out, if anything is,
 * and takes what is not off *skip. Returns how many out has then.
 */
unsigned iov_append(struct iovec *out, unsigned count, struct iovec piece, size_t *skip);
