/*
 * A code cache: one memfd, mapped writable at one address and executable at another, never both at one.
 *
 * It is cut into regions that are filled one after the other and emptied as a whole, oldest first. Offsets count from the
 * cache's start and are below 2 GiB, so code reaches all of it with rel32.
 */
#pragma once

#include "base/err.h"

struct code_cache;

/* size_bytes is rounded up to whole regions (at least 4). Before the sandbox closes: it needs memfd_create and PROT_EXEC. */
int code_cache_new(size_t size_bytes, struct code_cache **out, struct err *err) _must_check_;
void code_cache_free(struct code_cache *cache);

size_t code_cache_size(const struct code_cache *cache);
size_t code_cache_region_size(const struct code_cache *cache);
size_t code_cache_used(const struct code_cache *cache);

/* The executable and the writable address of an offset. */
const uint8_t *code_cache_rx(const struct code_cache *cache, uint32_t offset);
uint8_t *code_cache_rw(const struct code_cache *cache, uint32_t offset);
/* The offset of an executable address; false when it is not in the cache. */
bool code_cache_holds(const struct code_cache *cache, uintptr_t rx, uint32_t *offset);

/*
 * max_bytes of room, 16-byte aligned, in the region that is being filled: *offset, and 0; -ENOSPC when the region is full: the
 * owner empties the next one (code_cache_next_region()) and tries again. commit() says how much of it was used.
 */
int code_cache_reserve(struct code_cache *cache, size_t max_bytes, uint32_t *offset) _must_check_;
void code_cache_commit(struct code_cache *cache, uint32_t offset, size_t used_bytes);
/* What has been committed of the first region so far is never emptied. */
void code_cache_keep(struct code_cache *cache);
/* The region that will be emptied next, [*from, *to): its owner drops what is there, then calls code_cache_advance(). */
void code_cache_next_region(const struct code_cache *cache, uint32_t *from, uint32_t *to);
void code_cache_advance(struct code_cache *cache);
