/*
 * The memory of a processor: its struct in one memfd, mapped once for each space (tlb.h).
 *
 * The file holds the common part and then the own parts of all spaces. The windows lie side by side, so that window n is
 * cpu + n * X86_WINDOW_BYTES:
 *
 *      file        │ common │ own 0 │ own 1 │ … │
 *      addresses   │ common │ own 0 │ common │ own 1 │ …
 *
 * Pages come into being when they are touched, so spaces that are never used cost addresses only.
 */
#include "cpu/x86/cpu.h"

#include <errno.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#define COMMON_BYTES offsetof(struct x86_cpu, own)
#define HOST_FSGSBASE 2 /* HWCAP2 bit 1 */
#define OWN_BYTES sizeof(struct x86_space)

_Static_assert(COMMON_BYTES % 4096 == 0 && OWN_BYTES % 4096 == 0, "both parts are whole pages");

static int map_windows(uint8_t *base, int fd)
{
        for (unsigned n = 0; n < X86_SPACES; n++) {
                uint8_t *window = base + n * X86_WINDOW_BYTES;

                if (mmap(window, COMMON_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
                    mmap(window + COMMON_BYTES, OWN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                         (off_t)(COMMON_BYTES + n * OWN_BYTES)) == MAP_FAILED)
                        return -errno;
        }
        return 0;
}

int x86_cpu_map(struct x86_cpu **out, struct err *err)
{
        int fd = memfd_create("virta-cpu", MFD_CLOEXEC), r = 0;
        void *base = MAP_FAILED;

        if (fd < 0)
                return err_set(err, -errno, "cannot make the memory of a processor: %s", strerror(errno));
        if (ftruncate(fd, (off_t)(COMMON_BYTES + X86_SPACES * OWN_BYTES)) < 0)
                r = -errno;
        if (r == 0) {
                base = mmap(NULL, X86_SPACES * X86_WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                r = base == MAP_FAILED ? -errno : map_windows(base, fd);
        }
        close(fd);
        if (r == 0) {
                *out = base;
                (*out)->host_fsgsbase = getauxval(AT_HWCAP2) & HOST_FSGSBASE;
                return 0;
        }
        if (base != MAP_FAILED)
                munmap(base, X86_SPACES * X86_WINDOW_BYTES);
        return err_set(err, r, "cannot map the memory of a processor: %s", strerror(-r));
}

void x86_cpu_unmap(struct x86_cpu *cpu)
{
        munmap(cpu, X86_SPACES * X86_WINDOW_BYTES);
}
