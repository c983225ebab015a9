/*
 * Opening, common checks, initrd and command line, boot_params and PVH start info. See load.h.
 */
#include "vmm/load.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/random.h>
#include <sys/stat.h>

#define COMMAND_LINE_BYTES_MAX 65535u
#define RNG_SEED_BYTES 32u
#define SETUP_RNG_SEED_TYPE 9u /* boot.rst "struct setup_data" */

static int open_file(struct load_file *file, const char *what, const char *path, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        struct stat st;
        char *copy;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open %s '%s'", what, path);
        if (fstat(fd, &st) < 0)
                return err_errno(err, -errno, "cannot look at %s '%s'", what, path);
        if (S_ISDIR(st.st_mode))
                return err_set(err, -EISDIR, "%s '%s' is a directory, not a file", what, path);
        if (!S_ISREG(st.st_mode))
                return err_set(err, -EINVAL, "%s '%s' is not a regular file", what, path);
        if (!st.st_size)
                return err_set(err, -ENODATA, "%s '%s' is empty", what, path);
        copy = strdup(path);
        if (!copy)
                return err_nomem(err);
        *file = (struct load_file){ .fd = steal_fd(&fd), .size_bytes = (uint64_t)st.st_size, .path = copy };
        return 0;
}

int load_open(struct load_input *in, const char *kernel, const char *initrd, const char *command_line, struct err *err)
{
        int r;

        *in = (struct load_input){ .kernel.fd = -1, .initrd.fd = -1 };
        if (strlen(command_line) > COMMAND_LINE_BYTES_MAX)
                return err_set(err, -E2BIG, "the kernel's command line has %zu bytes, %u is the most", strlen(command_line),
                               COMMAND_LINE_BYTES_MAX);
        r = open_file(&in->kernel, "kernel", kernel, err);
        if (r >= 0 && initrd)
                r = open_file(&in->initrd, "initrd", initrd, err);
        if (r >= 0) {
                in->command_line = strdup(command_line);
                if (!in->command_line)
                        r = err_nomem(err);
        }
        if (r < 0)
                load_close(in);
        return r;
}

void load_close(struct load_input *in)
{
        closep(&in->kernel.fd);
        closep(&in->initrd.fd);
        free(in->kernel.path);
        free(in->initrd.path);
        free(in->command_line);
        *in = (struct load_input){ .kernel.fd = -1, .initrd.fd = -1 };
}

int load_read(const struct load_file *file, uint64_t offset, void *to, size_t size_bytes, struct err *err)
{
        size_t done = 0;

        while (done < size_bytes) {
                ssize_t n = pread(file->fd, (char *)to + done, MIN(size_bytes - done, (size_t)1 << 30), (off_t)(offset + done));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return err_errno(err, -errno, "cannot read '%s'", file->path);
                if (!n)
                        return err_set(err, -EBADMSG, "'%s' is cut short: it has no byte %" PRIu64, file->path, offset + done);
                done += (size_t)n;
        }
        return 0;
}

int load_into(const struct load_file *file, uint64_t offset, struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes,
              struct err *err)
{
        void *to;
        int r;

        if (!size_bytes)
                return 0;
        to = guest_memory_at(mem, gpa, size_bytes);
        if (!to)
                return err_set(err, -EFAULT, "no memory for %" PRIu64 " bytes of '%s' at 0x%" PRIx64, size_bytes, file->path,
                               gpa);
        if (offset > file->size_bytes || size_bytes > file->size_bytes - offset)
                return err_set(err, -EBADMSG, "'%s' is cut short: %" PRIu64 " bytes, it needs %" PRIu64, file->path,
                               file->size_bytes, offset + size_bytes);
        r = load_read(file, offset, to, size_bytes, err);
        guest_memory_written(mem, gpa, size_bytes);
        return r;
}

int load_zero(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, struct err *err)
{
        void *to;

        if (!size_bytes)
                return 0;
        to = guest_memory_at(mem, gpa, size_bytes);
        if (!to)
                return err_set(err, -EFAULT, "no memory for %" PRIu64 " bytes at 0x%" PRIx64, size_bytes, gpa);
        memset(to, 0, size_bytes);
        guest_memory_written(mem, gpa, size_bytes);
        return 0;
}

int load_check_range(const struct load_input *in, const char *what, uint64_t gpa, uint64_t size_bytes, struct err *err)
{
        if (gpa < LOAD_HIGH || gpa + size_bytes < gpa)
                return err_set(err, -EBADMSG, "kernel '%s': %s at 0x%" PRIx64 " (0x%" PRIx64 " bytes) does not lie above 1 MiB",
                               in->kernel.path, what, gpa, size_bytes);
        if (gpa + size_bytes > in->low_end)
                return err_set(err, -ENOMEM,
                               "kernel '%s' needs memory up to 0x%" PRIx64 " for its %s, the machine's ends at 0x%" PRIx64
                               "; give it more with --memory",
                               in->kernel.path, gpa + size_bytes, what, in->low_end);
        return 0;
}

/* As high as the kernel allows, so that it does not stand in the way of what the kernel unpacks. */
static int place_initrd(const struct load_input *in, const struct load_kernel *kernel, struct guest_memory *mem, uint64_t *gpa,
                        struct err *err)
{
        uint64_t end = MIN(in->low_end, kernel->initrd_end);
        uint64_t size = in->initrd.size_bytes;
        uint64_t from = align_up(kernel->end, GUEST_PAGE_SIZE);

        *gpa = 0;
        if (in->initrd.fd < 0)
                return 0;
        if (from > end || size > end - from || align_down(end - size, GUEST_PAGE_SIZE) < from)
                return err_set(err, -ENOMEM,
                               "initrd '%s' has %" PRIu64 " MiB, between the kernel and 0x%" PRIx64 " there is room for %" PRIu64
                               " MiB; give the machine more with --memory",
                               in->initrd.path, (size >> 20) + 1, end, from > end ? 0 : (end - from) >> 20);
        *gpa = align_down(end - size, GUEST_PAGE_SIZE);
        return load_into(&in->initrd, 0, mem, *gpa, size, err);
}

static int put_command_line(const struct load_input *in, const struct load_kernel *kernel, struct guest_memory *mem,
                            struct err *err)
{
        size_t length = strlen(in->command_line);

        if (length > kernel->command_line_max)
                return err_set(err, -E2BIG, "the command line has %zu bytes, kernel '%s' takes at most %" PRIu32, length,
                               in->kernel.path, kernel->command_line_max);
        if (guest_memory_write(mem, LOAD_COMMAND_LINE, in->command_line, length + 1) < 0)
                return err_set(err, -EFAULT, "no memory for the command line at 0x%x", LOAD_COMMAND_LINE);
        return 0;
}

/* Randomness for a guest that has none of its own yet; a different one at each boot. */
static int put_setup_data(struct guest_memory *mem, struct err *err)
{
        struct {
                uint64_t next;
                uint32_t type, length;
                uint8_t seed[RNG_SEED_BYTES];
        } data = { .type = SETUP_RNG_SEED_TYPE, .length = RNG_SEED_BYTES };

        if (getrandom(data.seed, sizeof(data.seed), 0) != sizeof(data.seed))
                return err_errno(err, -errno, "cannot get random bytes");
        if (guest_memory_write(mem, LOAD_SETUP_DATA, &data, sizeof(data)) < 0)
                return err_set(err, -EFAULT, "no memory at 0x%x", LOAD_SETUP_DATA);
        return 0;
}

static int put_boot_params(const struct load_input *in, const struct load_kernel *kernel, uint64_t initrd,
                           struct guest_memory *mem, struct err *err)
{
        _cleanup_free_ struct boot_params *bp = calloc(1, sizeof(*bp));

        if (!bp)
                return err_nomem(err);
        if (kernel->has_header)
                memcpy(&bp->hdr, kernel->header, MIN(kernel->header_bytes, sizeof(bp->hdr)));
        bp->hdr.boot_flag = 0xaa55;
        bp->hdr.header = 0x53726448; /* "HdrS" */
        bp->hdr.type_of_loader = 0xff;
        bp->hdr.loadflags |= LOADED_HIGH;
        bp->hdr.vid_mode = 0xffff; /* normal */
        bp->hdr.cmd_line_ptr = LOAD_COMMAND_LINE;
        bp->hdr.setup_data = LOAD_SETUP_DATA;
        bp->hdr.ramdisk_image = (uint32_t)initrd;
        bp->hdr.ramdisk_size = initrd ? (uint32_t)in->initrd.size_bytes : 0;
        bp->acpi_rsdp_addr = in->rsdp;
        for (unsigned i = 0; i < in->ranges; i++)
                bp->e820_table[i] = (struct boot_e820_entry){
                        .addr = in->e820[i].start,
                        .size = in->e820[i].size_bytes,
                        .type = in->e820[i].type,
                };
        bp->e820_entries = (uint8_t)in->ranges;
        if (guest_memory_write(mem, LOAD_BOOT_PARAMS, bp, sizeof(*bp)) < 0)
                return err_set(err, -EFAULT, "no memory at 0x%x", LOAD_BOOT_PARAMS);
        return 0;
}

/* hvm_start_info, version 1, with its only module and the memory map behind it. All addresses are physical. */
#define PVH_MAGIC 0x336ec578u

struct pvh_info {
        uint32_t magic, version, flags, modules;
        uint64_t module_list, command_line, rsdp, memory_map;
        uint32_t ranges, reserved;
        struct {
                uint64_t start, size_bytes, command_line, reserved;
        } module;
        struct {
                uint64_t start, size_bytes;
                uint32_t type, reserved;
        } range[LOAD_E820_MAX];
};

static int put_pvh_info(const struct load_input *in, uint64_t initrd, struct guest_memory *mem, struct err *err)
{
        struct pvh_info info = {
                .magic = PVH_MAGIC,
                .version = 1,
                .modules = initrd ? 1 : 0,
                .module_list = initrd ? LOAD_PVH_INFO + offsetof(struct pvh_info, module) : 0,
                .command_line = LOAD_COMMAND_LINE,
                .rsdp = in->rsdp,
                .memory_map = LOAD_PVH_INFO + offsetof(struct pvh_info, range),
                .ranges = in->ranges,
                .module = { .start = initrd, .size_bytes = initrd ? in->initrd.size_bytes : 0 },
        };

        for (unsigned i = 0; i < in->ranges; i++) {
                info.range[i].start = in->e820[i].start;
                info.range[i].size_bytes = in->e820[i].size_bytes;
                info.range[i].type = in->e820[i].type;
        }
        if (guest_memory_write(mem, LOAD_PVH_INFO, &info, sizeof(info)) < 0)
                return err_set(err, -EFAULT, "no memory at 0x%x", LOAD_PVH_INFO);
        return 0;
}

static int load_kernel_file(const struct load_input *in, struct guest_memory *mem, struct load_kernel *kernel, struct err *err)
{
        int r = load_bzimage(in, mem, kernel, err);

        if (!r)
                r = load_elf(in, mem, kernel, err);
        if (!r)
                return err_set(err, -ENOEXEC, "kernel '%s' is neither a bzImage nor an ELF file for x86-64", in->kernel.path);
        return r < 0 ? r : 0;
}

int load_boot(const struct load_input *in, struct guest_memory *mem, struct x86_state *entry, struct err *err)
{
        struct load_kernel kernel = { .initrd_end = UINT32_MAX };
        uint64_t initrd;
        int r;

        if (in->ranges > LOAD_E820_MAX)
                return err_set(err, -EINVAL, "%u memory ranges, at most %d", in->ranges, LOAD_E820_MAX);
        r = load_kernel_file(in, mem, &kernel, err);
        if (r >= 0)
                r = place_initrd(in, &kernel, mem, &initrd, err);
        if (r >= 0)
                r = put_command_line(in, &kernel, mem, err);
        if (r < 0)
                return r;
        if (kernel.pvh) {
                r = put_pvh_info(in, initrd, mem, err);
                return r < 0 ? r : entry_pvh(mem, kernel.entry, LOAD_PVH_INFO, entry, err);
        }
        r = put_setup_data(mem, err);
        if (r >= 0)
                r = put_boot_params(in, &kernel, initrd, mem, err);
        return r < 0 ? r : entry_long_mode(mem, kernel.entry, LOAD_BOOT_PARAMS, entry, err);
}
