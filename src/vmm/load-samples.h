/* Kernels made up for tests and fuzz targets: the smallest files that the loaders take. */
#pragma once

#include <asm/bootparam.h>
#include <elf.h>

#include "base/util.h"

#define SAMPLE_CODE_BYTES 64u

/* A bzImage of one setup sector and size bytes of code; bytes must hold 1024 + size. The file's size. */
static inline size_t sample_bzimage(uint8_t *bytes, uint32_t size)
{
        struct setup_header hdr = {
                .setup_sects = 1,
                .syssize = (size + 15) / 16,
                .boot_flag = 0xaa55,
                .jump = 0xeb | 0x6a << 8,
                .header = 0x53726448,
                .version = 0x20f,
                .loadflags = LOADED_HIGH,
                .initrd_addr_max = 0x7fffffff,
                .kernel_alignment = 0x200000,
                .relocatable_kernel = 1,
                .xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
                .cmdline_size = 2047,
                .pref_address = 0x1000000,
                .init_size = 0x100000,
        };

        memset(bytes, 0, 1024 + size);
        memcpy(bytes + 0x1f1, &hdr, sizeof(hdr));
        memset(bytes + 1024, 0xf4, size);
        return 1024 + size;
}

/* An ELF64 kernel at 1 MiB with code; with a PVH note when pvh. bytes must hold 256 + size. The file's size. */
static inline size_t sample_elf(uint8_t *bytes, const void *code, uint32_t size, bool pvh)
{
        Elf64_Ehdr eh = {
                .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
                .e_type = ET_EXEC,
                .e_machine = EM_X86_64,
                .e_version = EV_CURRENT,
                .e_entry = 0x100000,
                .e_phoff = sizeof(eh),
                .e_ehsize = sizeof(eh),
                .e_phentsize = sizeof(Elf64_Phdr),
                .e_phnum = pvh ? 2 : 1,
        };
        Elf64_Phdr ph[2] = {
                { .p_type = PT_LOAD,
                  .p_flags = PF_R | PF_X,
                  .p_offset = 256,
                  .p_paddr = 0x100000,
                  .p_vaddr = 0x100000,
                  .p_filesz = size,
                  .p_memsz = size + 4096 },
                { .p_type = PT_NOTE, .p_offset = 224, .p_filesz = 20, .p_memsz = 20 },
        };
        const uint32_t note[5] = { 4, 4, 18, 0x006e6558, 0x100000 }; /* "Xen", PHYS32_ENTRY */

        memset(bytes, 0, 256);
        memcpy(bytes, &eh, sizeof(eh));
        memcpy(bytes + sizeof(eh), ph, sizeof(ph));
        memcpy(bytes + 224, note, sizeof(note));
        memcpy(bytes + 256, code, size);
        return 256 + size;
}
