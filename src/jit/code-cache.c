/*
 * The code cache: theory of operation.
 *
 * One memfd is mapped twice with MAP_SHARED, readable and writable here, readable and executable there; the two mappings are
 * unrelated addresses, so that a stray store through a known code address faults. The descriptor is sealed against growing and
 * closed: nobody can map it a third time.
 *
 * Regions are a ring. `current` is being filled from its start; the one behind it is the oldest and is emptied next.
 *
 *      | oldest | … | … | current: used ──▶ free |
 *
 * Not thread-safe: owners lock.
 */
#include "jit/code-cache.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGIONS_MIN 4u
#define REGIONS_MAX 16u
#define REGION_MIN ((size_t)256 << 10)
#define CACHE_MAX ((size_t)1 << 30)

struct code_cache {
        uint8_t *rw;
        const uint8_t *rx;
        size_t size, region_size;
        unsigned regions, current;
        size_t used[REGIONS_MAX]; /* bytes of each region */
        size_t kept;              /* of the first one, for good */
};

static int map_twice(struct code_cache *cache, int fd, struct err *err)
{
        void *at;

        if (ftruncate(fd, (off_t)cache->size) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
                return err_errno(err, -errno, "cannot make a code cache of %zu bytes", cache->size);
        at = mmap(NULL, cache->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED)
                return err_errno(err, -errno, "cannot map the code cache for writing");
        cache->rw = at;
        at = mmap(NULL, cache->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED)
                return err_errno(err, -errno, "this host forbids making code executable");
        cache->rx = at;
        return 0;
}

/* Kernels before 6.3 do not know MFD_EXEC; later ones may be set up to make descriptors without it not executable. */
static int open_memfd(void)
{
#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif
        int fd = memfd_create("virta-code", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);

        return fd < 0 && errno == EINVAL ? memfd_create("virta-code", MFD_CLOEXEC | MFD_ALLOW_SEALING) : fd;
}

int code_cache_new(size_t size_bytes, struct code_cache **out, struct err *err)
{
        struct code_cache *cache;
        int fd, r;

        if (size_bytes > CACHE_MAX)
                return err_set(err, -EINVAL, "a code cache of %zu bytes is past the most, %zu", size_bytes, CACHE_MAX);
        cache = calloc(1, sizeof(*cache));
        if (!cache)
                return err_nomem(err);
        cache->regions = REGIONS_MAX;
        while (cache->regions > REGIONS_MIN && size_bytes / cache->regions < REGION_MIN)
                cache->regions /= 2;
        cache->region_size = align_up(MAX(size_bytes, REGIONS_MIN * REGION_MIN) / cache->regions, 4096);
        cache->size = cache->region_size * cache->regions;
        fd = open_memfd();
        r = fd < 0 ? err_errno(err, -errno, "cannot make a file for the code cache") : map_twice(cache, fd, err);
        if (fd >= 0)
                close(fd);
        if (r < 0) {
                code_cache_free(cache);
                return r;
        }
        *out = cache;
        return 0;
}

void code_cache_free(struct code_cache *cache)
{
        if (!cache)
                return;
        if (cache->rw)
                munmap(cache->rw, cache->size);
        if (cache->rx)
                munmap((void *)cache->rx, cache->size);
        free(cache);
}

size_t code_cache_size(const struct code_cache *cache)
{
        return cache->size;
}

size_t code_cache_region_size(const struct code_cache *cache)
{
        return cache->region_size;
}

size_t code_cache_used(const struct code_cache *cache)
{
        size_t sum = 0;

        for (unsigned i = 0; i < cache->regions; i++)
                sum += cache->used[i];
        return sum;
}

const uint8_t *code_cache_rx(const struct code_cache *cache, uint32_t offset)
{
        return cache->rx + offset;
}

uint8_t *code_cache_rw(const struct code_cache *cache, uint32_t offset)
{
        return cache->rw + offset;
}

bool code_cache_holds(const struct code_cache *cache, uintptr_t rx, uint32_t *offset)
{
        if (rx - (uintptr_t)cache->rx >= cache->size)
                return false;
        *offset = (uint32_t)(rx - (uintptr_t)cache->rx);
        return true;
}

int code_cache_reserve(struct code_cache *cache, size_t max_bytes, uint32_t *offset)
{
        size_t used = align_up(cache->used[cache->current], 16);

        if (used > cache->region_size || cache->region_size - used < max_bytes)
                return -ENOSPC;
        *offset = (uint32_t)(cache->current * cache->region_size + used);
        return 0;
}

void code_cache_commit(struct code_cache *cache, uint32_t offset, size_t used_bytes)
{
        cache->used[cache->current] = offset - cache->current * cache->region_size + used_bytes;
}

void code_cache_keep(struct code_cache *cache)
{
        cache->kept = cache->used[0];
}

void code_cache_next_region(const struct code_cache *cache, uint32_t *from, uint32_t *to)
{
        unsigned next = (cache->current + 1) % cache->regions;

        *from = (uint32_t)(next * cache->region_size);
        *to = (uint32_t)(*from + cache->region_size);
}

void code_cache_advance(struct code_cache *cache)
{
        cache->current = (cache->current + 1) % cache->regions;
        cache->used[cache->current] = cache->current ? 0 : cache->kept;
}
