/*
 * ELF kernels. With a PVH note (XEN_ELFNOTE_PHYS32_ENTRY), of 32 or 64 bits, the entry is the note's physical address in
 * 32-bit mode; a 64-bit file without it is taken for a Linux vmlinux, whose e_entry is the physical address of its 64-bit entry.
 *
 * Source: System V ABI, "Object files"; Xen xen/include/public/elfnote.h; Linux arch/x86/kernel/head_64.S and platform/pvh.
 */
#include "vmm/load.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>

#define SEGMENTS_MAX 64u
#define NOTES_BYTES_MAX 65536u
#define NOTE_PHYS32_ENTRY 18u
#define COMMAND_LINE_MAX 2047u /* Linux x86: COMMAND_LINE_SIZE is 2048 */

struct segment {
        uint32_t type;
        uint64_t offset, gpa, file_bytes, memory_bytes;
};

struct elf {
        bool is64;
        uint64_t entry;
        uint64_t segments_at;
        unsigned segments, segment_bytes;
};

/* 1: an x86 ELF file; 0: something else. */
static int read_header(const struct load_file *file, struct elf *elf, struct err *err)
{
        union {
                unsigned char ident[EI_NIDENT];
                Elf32_Ehdr h32;
                Elf64_Ehdr h64;
        } head = { 0 };
        int r = load_read(file, 0, &head, MIN(file->size_bytes, sizeof(head)), err);

        if (r < 0)
                return r;
        if (memcmp(head.ident, ELFMAG, SELFMAG) || head.ident[EI_DATA] != ELFDATA2LSB)
                return 0;
        elf->is64 = head.ident[EI_CLASS] == ELFCLASS64;
        if (elf->is64 ? head.h64.e_machine != EM_X86_64 : head.h32.e_machine != EM_386 && head.h32.e_machine != EM_X86_64)
                return err_set(err, -ENOEXEC, "kernel '%s' is for another processor (ELF machine %u); give one for x86-64",
                               file->path, elf->is64 ? head.h64.e_machine : head.h32.e_machine);
        if ((elf->is64 ? head.h64.e_type : head.h32.e_type) != ET_EXEC)
                return err_set(err, -ENOEXEC, "kernel '%s' is an ELF file but not an executable one", file->path);
        elf->entry = elf->is64 ? head.h64.e_entry : head.h32.e_entry;
        elf->segments_at = elf->is64 ? head.h64.e_phoff : head.h32.e_phoff;
        elf->segments = elf->is64 ? head.h64.e_phnum : head.h32.e_phnum;
        elf->segment_bytes = elf->is64 ? head.h64.e_phentsize : head.h32.e_phentsize;
        if (!elf->segments || elf->segments > SEGMENTS_MAX ||
            elf->segment_bytes < (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
                return err_set(err, -EBADMSG, "kernel '%s' has %u segments of %u bytes each, 1 to %u can be loaded", file->path,
                               elf->segments, elf->segment_bytes, SEGMENTS_MAX);
        return 1;
}

static int read_segment(const struct load_file *file, const struct elf *elf, unsigned index, struct segment *seg, struct err *err)
{
        uint64_t at = elf->segments_at + (uint64_t)index * elf->segment_bytes;
        union {
                Elf32_Phdr p32;
                Elf64_Phdr p64;
        } ph;
        size_t size = elf->is64 ? sizeof(ph.p64) : sizeof(ph.p32);
        int r;

        if (at < elf->segments_at || at > file->size_bytes || size > file->size_bytes - at)
                return err_set(err, -EBADMSG, "kernel '%s' is cut short: segment header %u is past its end", file->path, index);
        r = load_read(file, at, &ph, size, err);
        if (r < 0)
                return r;
        if (elf->is64)
                *seg = (struct segment){ ph.p64.p_type, ph.p64.p_offset, ph.p64.p_paddr, ph.p64.p_filesz, ph.p64.p_memsz };
        else
                *seg = (struct segment){ ph.p32.p_type, ph.p32.p_offset, ph.p32.p_paddr, ph.p32.p_filesz, ph.p32.p_memsz };
        if (seg->file_bytes && (seg->offset > file->size_bytes || seg->file_bytes > file->size_bytes - seg->offset))
                return err_set(err, -EBADMSG,
                               "kernel '%s' is cut short: segment %u ends at byte %" PRIu64 ", the file has %" PRIu64, file->path,
                               index, seg->offset + seg->file_bytes, file->size_bytes);
        return 0;
}

/* Looks for the PVH entry among the notes of one segment; *entry is left alone when there is none. */
static int find_pvh_entry(const struct load_file *file, const struct segment *seg, uint64_t *entry, bool *found, struct err *err)
{
        size_t size = MIN(seg->file_bytes, (uint64_t)NOTES_BYTES_MAX);
        _cleanup_free_ uint8_t *bytes = malloc(size + 1);
        struct cursor in;
        int r;

        if (!bytes)
                return err_nomem(err);
        r = load_read(file, seg->offset, bytes, size, err);
        if (r < 0)
                return r;
        in = cursor_from(bytes, size);
        while (cursor_left(&in) >= 12) {
                uint32_t name_bytes = cursor_le32(&in);
                uint32_t desc_bytes = cursor_le32(&in);
                uint32_t type = cursor_le32(&in);
                const char *name = cursor_take(&in, align_up(name_bytes, 4));
                struct cursor desc = cursor_sub(&in, MIN(align_up(desc_bytes, 4), (uint64_t)cursor_left(&in)));

                if (in.bad)
                        break;
                if (type != NOTE_PHYS32_ENTRY || name_bytes != 4 || memcmp(name, "Xen", 4))
                        continue;
                *entry = desc_bytes >= 8 ? cursor_le64(&desc) : cursor_le32(&desc);
                if (desc.bad || *entry > UINT32_MAX)
                        return err_set(err, -EBADMSG, "kernel '%s' has a PVH entry that is not a 32-bit address", file->path);
                *found = true;
        }
        return 0;
}

static int load_segment(const struct load_input *in, struct guest_memory *mem, const struct segment *seg, struct err *err)
{
        int r;

        if (seg->file_bytes > seg->memory_bytes)
                return err_set(err, -EBADMSG,
                               "kernel '%s' has a segment at 0x%" PRIx64 " with more bytes in the file than in memory",
                               in->kernel.path, seg->gpa);
        r = load_check_range(in, "segments", seg->gpa, seg->memory_bytes, err);
        if (r >= 0)
                r = load_into(&in->kernel, seg->offset, mem, seg->gpa, seg->file_bytes, err);
        if (r >= 0)
                r = load_zero(mem, seg->gpa + seg->file_bytes, seg->memory_bytes - seg->file_bytes, err);
        return r;
}

int load_elf(const struct load_input *in, struct guest_memory *mem, struct load_kernel *kernel, struct err *err)
{
        uint64_t entry = 0, end = 0;
        bool entry_loaded = false;
        struct elf elf = { 0 };
        int r = read_header(&in->kernel, &elf, err);

        if (r <= 0)
                return r;
        entry = elf.entry;
        for (unsigned i = 0; i < elf.segments; i++) {
                struct segment seg = { 0 };

                r = read_segment(&in->kernel, &elf, i, &seg, err);
                if (r >= 0 && seg.type == PT_NOTE)
                        r = find_pvh_entry(&in->kernel, &seg, &entry, &kernel->pvh, err);
                if (r >= 0 && seg.type == PT_LOAD && seg.memory_bytes) {
                        r = load_segment(in, mem, &seg, err);
                        end = MAX(end, seg.gpa + seg.memory_bytes);
                }
                if (r < 0)
                        return r;
        }
        if (!kernel->pvh && !elf.is64)
                return err_set(err, -ENOEXEC, "kernel '%s' is a 32-bit ELF file without a PVH entry", in->kernel.path);
        for (unsigned i = 0; i < elf.segments && !entry_loaded; i++) {
                struct segment seg = { 0 };

                r = read_segment(&in->kernel, &elf, i, &seg, err);
                if (r < 0)
                        return r;
                entry_loaded = seg.type == PT_LOAD && entry - seg.gpa < seg.memory_bytes;
        }
        if (!entry_loaded)
                return err_set(err, -EBADMSG, "kernel '%s' starts at 0x%" PRIx64 ", where it has no segment", in->kernel.path,
                               entry);
        kernel->entry = entry;
        kernel->end = end;
        kernel->initrd_end = UINT32_MAX;
        kernel->command_line_max = COMMAND_LINE_MAX;
        return 1;
}
