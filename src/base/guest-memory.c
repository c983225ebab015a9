#include "base/guest-memory.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>

int guest_memory_init(struct guest_memory *mem, const char *name, struct err *err)
{
        int fd = memfd_create(name, MFD_CLOEXEC);

        if (fd < 0)
                return err_errno(err, -errno, "cannot create guest memory");
        *mem = (struct guest_memory){ .fd = fd };
        return 0;
}

static void unmap(struct guest_region *region)
{
        if (region->map) {
                munmap(region->map, region->map_bytes);
                return;
        }
        munmap(region->host, region->size_bytes);
        munmap((void *)region->code, (region->size_bytes >> GUEST_PAGE_SHIFT) * sizeof(uint32_t));
}

void guest_memory_done(struct guest_memory *mem)
{
        for (unsigned i = 0; i < mem->regions; i++) {
                unmap(&mem->region[i]);
        }
        if (mem->fd >= 0)
                close(mem->fd);
        *mem = (struct guest_memory){ .fd = -1 };
}

static bool overlaps(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes)
{
        for (unsigned i = 0; i < mem->regions; i++) {
                const struct guest_region *r = &mem->region[i];

                if (gpa < r->gpa + r->size_bytes && r->gpa < gpa + size_bytes)
                        return true;
        }
        return false;
}

/* They are sorted by address. */
static void insert(struct guest_memory *mem, const struct guest_region *region)
{
        unsigned at = 0;

        while (at < mem->regions && mem->region[at].gpa < region->gpa)
                at++;
        memmove(&mem->region[at + 1], &mem->region[at], (mem->regions - at) * sizeof(mem->region[0]));
        mem->region[at] = *region;
        mem->regions++;
}

int guest_memory_add(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, struct err *err)
{
        size_t code_bytes = (size_bytes >> GUEST_PAGE_SHIFT) * sizeof(uint32_t);
        uint64_t fd_offset = 0;
        void *host;
        void *code;

        if (!size_bytes || (gpa | size_bytes) & (GUEST_PAGE_SIZE - 1) || gpa + size_bytes < gpa)
                return err_set(err, -EINVAL, "guest memory of %" PRIu64 " bytes at 0x%" PRIx64 " is not whole pages",
                               size_bytes, gpa);
        if (mem->regions == GUEST_REGIONS_MAX)
                return err_set(err, -ENOSPC, "guest memory has %d regions already", GUEST_REGIONS_MAX);
        if (overlaps(mem, gpa, size_bytes))
                return err_set(err, -EEXIST, "guest memory at 0x%" PRIx64 " is there already", gpa);

        for (unsigned i = 0; i < mem->regions; i++)
                fd_offset += mem->region[i].size_bytes;
        if (ftruncate(mem->fd, (off_t)(fd_offset + size_bytes)) < 0)
                return err_errno(err, -errno, "cannot grow guest memory to %" PRIu64 " bytes", fd_offset + size_bytes);
        host = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mem->fd, (off_t)fd_offset);
        if (host == MAP_FAILED)
                return err_errno(err, -errno, "cannot map %" PRIu64 " bytes of guest memory", size_bytes);
        code = mmap(NULL, code_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (code == MAP_FAILED) {
                int r = err_errno(err, -errno, "cannot map %zu bytes for code generations", code_bytes);

                munmap(host, size_bytes);
                return r;
        }

        insert(mem, &(struct guest_region){ .gpa = gpa, .size_bytes = size_bytes, .host = host, .fd_offset = fd_offset, .code = code });
        return 0;
}

/* What is mapped begins at the file's first byte: of huge pages a part could not be. */
int guest_memory_map(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, int fd, uint64_t offset, struct err *err)
{
        struct stat st;
        void *map;

        if (!size_bytes || gpa + size_bytes - 1 < gpa || offset + size_bytes < offset)
                return err_set(err, -EINVAL, "memory of %" PRIu64 " bytes at 0x%" PRIx64 " is not possible", size_bytes, gpa);
        if (mem->regions == GUEST_REGIONS_MAX)
                return err_set(err, -ENOSPC, "guest memory has %d regions already", GUEST_REGIONS_MAX);
        if (overlaps(mem, gpa, size_bytes))
                return err_set(err, -EEXIST, "guest memory at 0x%" PRIx64 " is there already", gpa);
        if (fstat(fd, &st) < 0)
                return err_errno(err, -errno, "shared memory");
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < offset + size_bytes)
                return err_set(err, -EFAULT, "memory of %" PRIu64 " bytes at 0x%" PRIx64 " of its file, which ends before", size_bytes, offset);
        map = mmap(NULL, offset + size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        if (map == MAP_FAILED)
                return err_errno(err, -errno, "cannot map %" PRIu64 " bytes of shared memory", offset + size_bytes);
        insert(mem, &(struct guest_region){
                .gpa = gpa, .size_bytes = size_bytes, .host = (uint8_t *)map + offset, .fd_offset = offset, .map = map, .map_bytes = offset + size_bytes,
        });
        return 0;
}

void guest_memory_unmap(struct guest_memory *mem, unsigned i)
{
        unmap(&mem->region[i]);
        mem->regions--;
        memmove(&mem->region[i], &mem->region[i + 1], (mem->regions - i) * sizeof(mem->region[0]));
}

void *guest_memory_at(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes)
{
        const struct guest_region *region = guest_memory_find(mem, gpa);

        if (!region || !size_bytes || size_bytes > region->size_bytes - (gpa - region->gpa))
                return NULL;
        return region->host + (gpa - region->gpa);
}

bool guest_memory_gpa(const struct guest_memory *mem, const void *host, uint64_t *gpa)
{
        const uint8_t *at = host;

        for (unsigned i = 0; i < mem->regions; i++) {
                const struct guest_region *region = &mem->region[i];

                if (at >= region->host && at < region->host + region->size_bytes) {
                        *gpa = region->gpa + (uint64_t)(at - region->host);
                        return true;
                }
        }
        return false;
}

int guest_memory_read(const struct guest_memory *mem, uint64_t gpa, void *to, size_t size_bytes)
{
        const void *from = guest_memory_at(mem, gpa, size_bytes);

        if (!from)
                return size_bytes ? -EFAULT : 0;
        memcpy(to, from, size_bytes);
        return 0;
}

int guest_memory_write(const struct guest_memory *mem, uint64_t gpa, const void *from, size_t size_bytes)
{
        void *to = guest_memory_at(mem, gpa, size_bytes);

        if (!to)
                return size_bytes ? -EFAULT : 0;
        memcpy(to, from, size_bytes);
        guest_memory_written(mem, gpa, size_bytes);
        return 0;
}

void guest_memory_written(const struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes)
{
        const struct guest_region *region = guest_memory_find(mem, gpa);
        uint64_t last;

        if (!region || !region->code || !size_bytes)
                return;
        last = MIN(gpa + (size_bytes - 1), region->gpa + (region->size_bytes - 1));
        for (uint64_t page = align_down(gpa, GUEST_PAGE_SIZE); page <= last; page += GUEST_PAGE_SIZE) {
                _Atomic uint32_t *code = guest_region_code(region, page);

                if (!(atomic_load_explicit(code, memory_order_acquire) & GUEST_CODE_PRESENT))
                        continue;
                atomic_fetch_add_explicit(code, GUEST_CODE_STEP, memory_order_acq_rel);
                guest_memory_code_changed(mem, MAX(gpa, page), MIN(last, page + (GUEST_PAGE_SIZE - 1)) - MAX(gpa, page) + 1);
        }
}
