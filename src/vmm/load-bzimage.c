/*
 * bzImage: boot sector and setup code (not used here) followed by the compressed kernel, entered at its 64-bit entry point,
 * 0x200 after the load address.
 *
 * Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", "64-bit Boot Protocol".
 */
#include "vmm/load.h"

#include <asm/bootparam.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>

#define HEADER_AT 0x1f1u
#define HEADER_MAGIC 0x53726448u
#define PROTOCOL_64BIT 0x020cu /* the first with xloadflags */
#define ENTRY_64 0x200u
#define SECTOR 512u

/* The header reaches to 0x202 + the jump's displacement byte at 0x201. */
static size_t header_size(const uint8_t *sector)
{
        size_t end = 0x202u + sector[0x201];

        return MIN(end, sizeof(((struct load_kernel *)NULL)->header) + HEADER_AT) - HEADER_AT;
}

static int check_header(const struct load_input *in, const struct setup_header *hdr, struct err *err)
{
        if (hdr->version < PROTOCOL_64BIT || !(hdr->xloadflags & XLF_KERNEL_64))
                return err_set(err, -ENOEXEC, "kernel '%s' (boot protocol %u.%02u) has no 64-bit entry; give a kernel for x86-64",
                               in->kernel.path, hdr->version >> 8, hdr->version & 0xff);
        if (!(hdr->loadflags & LOADED_HIGH))
                return err_set(err, -ENOEXEC, "kernel '%s' is a zImage, which loads below 1 MiB; give a bzImage",
                               in->kernel.path);
        if (hdr->relocatable_kernel && (!is_power_of_two(hdr->kernel_alignment) || hdr->kernel_alignment > 1u << 30))
                return err_set(err, -EBADMSG, "kernel '%s' asks for an alignment of 0x%" PRIx32, in->kernel.path,
                               hdr->kernel_alignment);
        return 0;
}

int load_bzimage(const struct load_input *in, struct guest_memory *mem, struct load_kernel *kernel, struct err *err)
{
        uint8_t head[0x290] = { 0 };
        struct setup_header hdr;
        uint64_t offset, size, need, at;
        int r;

        if (in->kernel.size_bytes < 2 * SECTOR)
                return 0;
        r = load_read(&in->kernel, 0, head, sizeof(head), err);
        if (r < 0)
                return r;
        memcpy(&hdr, head + HEADER_AT, MIN(sizeof(hdr), sizeof(head) - HEADER_AT));
        if (hdr.boot_flag != 0xaa55 || hdr.header != HEADER_MAGIC)
                return 0;
        r = check_header(in, &hdr, err);
        if (r < 0)
                return r;

        offset = ((hdr.setup_sects ? hdr.setup_sects : 4u) + 1u) * SECTOR;
        size = (uint64_t)hdr.syssize * 16;
        if (offset >= in->kernel.size_bytes || size > align_up(in->kernel.size_bytes - offset, 16))
                return err_set(err, -EBADMSG, "kernel '%s' is cut short: %" PRIu64 " bytes, its header says %" PRIu64,
                               in->kernel.path, in->kernel.size_bytes, offset + size);
        size = in->kernel.size_bytes - offset;
        if (size <= ENTRY_64)
                return err_set(err, -EBADMSG, "kernel '%s' is cut short: it ends before its 64-bit entry", in->kernel.path);
        at = hdr.pref_address;
        need = MAX(size, (uint64_t)hdr.init_size);
        r = load_check_range(in, "code", at, need, err);
        if (r >= 0)
                r = load_into(&in->kernel, offset, mem, at, size, err);
        if (r < 0)
                return r;

        kernel->entry = at + ENTRY_64;
        kernel->end = at + need;
        /* A kernel that may lie above 4 GiB takes an initrd anywhere (boot.rst, xloadflags bit 1). */
        kernel->initrd_end = hdr.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G ? UINT32_MAX : (uint64_t)hdr.initrd_addr_max + 1;
        kernel->command_line_max = hdr.cmdline_size;
        kernel->has_header = true;
        kernel->header_bytes = header_size(head);
        memcpy(kernel->header, head + HEADER_AT, kernel->header_bytes);
        return 1;
}
