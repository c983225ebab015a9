/*
 * Guest memory: one memfd, mapped once, seen as regions of guest physical addresses.
 *
 * The memfd lets another process serve a device, a clone map it copy-on-write and a snapshot be restored lazily. Regions do
 * not overlap, are sorted by address and do not change while vCPUs run, except that hot-plug may add one at the end.
 *
 * Each 4 KiB page has a code generation. Whoever writes guest memory other than through a processor's own store path (a
 * device's DMA, a loader) must call guest_memory_written() afterwards; for pages that hold decoded code it raises their
 * generation, so that engines see that their decoded blocks are stale. Processors in software do the same from their store
 * slow path. All functions are thread-safe once the regions are set up.
 */
#pragma once

#include <stdatomic.h>
#include <sys/uio.h>

#include "base/err.h"

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE (UINT64_C(1) << GUEST_PAGE_SHIFT)
#define GUEST_REGIONS_MAX 16

struct guest_region {
        uint64_t gpa;        /* first guest physical address; page aligned */
        uint64_t size_bytes; /* page aligned, not 0 */
        uint8_t *host;       /* where it is mapped here */
        uint64_t fd_offset;  /* where it is in the memfd */
        bool readonly;       /* for the guest: firmware and the like */
        void *map;           /* of another's memory: what is mapped, with what is in front of it; else NULL */
        uint64_t map_bytes;
        /* One word a page: bit 0 says that some engine holds decoded code of the page, the rest counts writes to it since. NULL: another's. */
        _Atomic uint32_t *code;
};

struct guest_memory {
        int fd;
        /* Called after bytes of a page with code were written; NULL: nobody wants to know. Any thread. */
        void (*code_changed)(void *ctx, uint64_t gpa, uint64_t size_bytes);
        void *code_ctx;
        unsigned regions;
        struct guest_region region[GUEST_REGIONS_MAX];
};

#define GUEST_CODE_PRESENT 1u
#define GUEST_CODE_STEP 2u

/* A memory with no region yet. name shows in /proc/PID/maps. */
int guest_memory_init(struct guest_memory *mem, const char *name, struct err *err) _must_check_;
void guest_memory_done(struct guest_memory *mem);

/* Adds size_bytes of zeroes at gpa; -EEXIST when it overlaps, -ENOSPC past GUEST_REGIONS_MAX, -ENOMEM. */
int guest_memory_add(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, struct err *err) _must_check_;

/*
 * Memory of another process's machine, which nothing is decoded from here: size_bytes at gpa, of any alignment, are what fd has from offset on. The
 * descriptor is not needed any longer. -EFAULT: the file does not reach so far.
 */
int guest_memory_map(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, int fd, uint64_t offset, struct err *err) _must_check_;
/* Nobody uses region number i any more. */
void guest_memory_unmap(struct guest_memory *mem, unsigned i);

/* The region that holds gpa, or NULL. */
static inline const struct guest_region *guest_memory_find(const struct guest_memory *mem, uint64_t gpa)
{
        for (unsigned i = 0; i < mem->regions; i++) {
                const struct guest_region *region = &mem->region[i];

                if (gpa - region->gpa < region->size_bytes)
                        return region;
        }
        return NULL;
}

/*
 * The host address of size_bytes at gpa, or NULL unless all of them are in one region. size_bytes 0 is never valid. The
 * memory is shared with running vCPUs: read each value once, copy before checking.
 */
void *guest_memory_at(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes);

/* Where in the guest the byte at host is, a pointer from guest_memory_at() or into what follows it; false: nowhere. */
bool guest_memory_gpa(const struct guest_memory *mem, const void *host, uint64_t *gpa);

/* Copies; -EFAULT when part of it is not memory (nothing is then copied). Writing raises code generations itself. */
int guest_memory_read(const struct guest_memory *mem, uint64_t gpa, void *to, size_t size_bytes) _must_check_;
int guest_memory_write(const struct guest_memory *mem, uint64_t gpa, const void *from, size_t size_bytes) _must_check_;

/* Must follow every write made through a pointer from guest_memory_at(). Ranges outside memory are ignored. */
void guest_memory_written(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes);

/* Who is told of such writes, beside the raised generation; while no processor runs. */
static inline void guest_memory_watch(struct guest_memory *mem, void (*changed)(void *ctx, uint64_t gpa, uint64_t size_bytes), void *ctx)
{
        mem->code_changed = changed;
        mem->code_ctx = ctx;
}

/* By whoever has raised the generation of a page with code. */
static inline void guest_memory_code_changed(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes)
{
        if (mem->code_changed)
                mem->code_changed(mem->code_ctx, gpa, size_bytes);
}

static inline _Atomic uint32_t *guest_region_code(const struct guest_region *region, uint64_t gpa)
{
        return &region->code[(gpa - region->gpa) >> GUEST_PAGE_SHIFT];
}
