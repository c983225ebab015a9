/*
 * Loaders: from files to the first instruction.
 *
 * A kernel is a bzImage (64-bit entry), an ELF file with a PVH note (32-bit entry) or a plain x86-64 ELF (vmlinux, 64-bit
 * entry as bzImage's). Files are opened once and stay open: a reset reads them again, so that the process holds no second copy.
 * Nothing in them is believed: every offset and size is checked against the file, and against the machine's memory.
 *
 * Low memory at the first instruction (all of it free for the kernel afterwards):
 *
 *      0x01000  GDT                     0x02000  PVH start info, its module and its memory map
 *      0x07000  boot_params             0x08000  setup_data: 32 bytes of randomness
 *      0x09000  page tables, identity for the first 4 GiB (PML4, PDPT, four directories of 2 MiB pages)
 *      0x20000  command line            0x9fc00  end of low memory
 *      0xe0000  ACPI tables (acpi.h)
 *
 * Source: Linux Documentation/arch/x86/boot.rst (protocol 2.15); Xen docs/misc/pvh.pandoc and the ELF notes of
 * xen/include/public/elfnote.h; System V ABI "Object files"; ACPI 6.5 §15 (system address map).
 */
#pragma once

#include "base/guest-memory.h"
#include "cpu/x86/state.h"

#define LOAD_GDT 0x1000u
#define LOAD_PVH_INFO 0x2000u
#define LOAD_BOOT_PARAMS 0x7000u
#define LOAD_SETUP_DATA 0x8000u
#define LOAD_PAGE_TABLES 0x9000u
#define LOAD_COMMAND_LINE 0x20000u
#define LOAD_LOW_END 0x9fc00u
#define LOAD_HIGH 0x100000u /* kernels and initrds lie from here to the end of RAM below the PCI hole */

/* One of the files, open for reading. */
struct load_file {
        int fd; /* -1: none */
        uint64_t size_bytes;
        char *path; /* owned; for messages */
};

#define E820_RAM 1u
#define E820_RESERVED 2u
#define LOAD_E820_MAX 16

struct e820_range {
        uint64_t start, size_bytes;
        uint32_t type;
};

struct load_input {
        struct load_file kernel, initrd;
        char *command_line; /* owned */
        unsigned ranges;
        struct e820_range e820[LOAD_E820_MAX]; /* the memory map, ascending; set by the machine */
        uint64_t low_end;                      /* the end of RAM below the PCI hole */
        uint64_t rsdp;
};

/* Opens the files; initrd may be NULL. Says no to directories, devices, empty files and command lines over 64 KiB. */
int load_open(struct load_input *in, const char *kernel, const char *initrd, const char *command_line,
              struct err *err) _must_check_;
void load_close(struct load_input *in);

/*
 * Loads all of it and turns *entry, which is as after power-on, into the state at the kernel's first instruction. Memory may hold
 * an earlier guest's bytes; nothing but what is loaded is changed.
 */
int load_boot(const struct load_input *in, struct guest_memory *mem, struct x86_state *entry, struct err *err) _must_check_;

/* ---- between the loaders ---- */

/* What a loader found out of a kernel, for the common part. */
struct load_kernel {
        uint64_t entry;
        uint64_t end;              /* first address after what the kernel needs while it starts */
        uint64_t initrd_end;       /* the initrd must end at or below */
        uint32_t command_line_max; /* bytes without the final 0 */
        bool pvh;                  /* 32-bit entry with start info; else 64-bit entry with boot_params */
        bool has_header;
        uint8_t header[0x290 - 0x1f1]; /* bzImage: the setup header as in the file */
        size_t header_bytes;
};

/* 1: loaded; 0: the file is not of this kind; else an error. */
int load_bzimage(const struct load_input *in, struct guest_memory *mem, struct load_kernel *kernel, struct err *err) _must_check_;
int load_elf(const struct load_input *in, struct guest_memory *mem, struct load_kernel *kernel, struct err *err) _must_check_;

/* Exactly size_bytes at offset; -EBADMSG when the file ends before. */
int load_read(const struct load_file *file, uint64_t offset, void *to, size_t size_bytes, struct err *err) _must_check_;
/* The same into guest memory, which must be there. */
int load_into(const struct load_file *file, uint64_t offset, struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes,
              struct err *err) _must_check_;
/* Zeroes guest memory. */
int load_zero(struct guest_memory *mem, uint64_t gpa, uint64_t size_bytes, struct err *err) _must_check_;
/* 0 when [gpa, gpa + size_bytes) is RAM between LOAD_HIGH and low_end; else -ENOMEM or -EBADMSG in words. */
int load_check_range(const struct load_input *in, const char *what, uint64_t gpa, uint64_t size_bytes,
                     struct err *err) _must_check_;

/* entry.c: registers, descriptor table and page tables for the two ways in. */
int entry_long_mode(struct guest_memory *mem, uint64_t rip, uint64_t boot_params, struct x86_state *state,
                    struct err *err) _must_check_;
int entry_pvh(struct guest_memory *mem, uint64_t rip, uint64_t start_info, struct x86_state *state, struct err *err) _must_check_;
