/*
 * The processor's state at a kernel's first instruction.
 *
 * 64-bit entry (boot.rst "64-bit Boot Protocol"): long mode with identity pages for kernel, boot_params and command line; CS 0x10
 * and DS, ES, SS 0x18 flat; interrupts off; RSI has boot_params. PVH entry (Xen docs/misc/pvh.pandoc): protected mode without
 * paging, flat segments, a busy TSS, EBX has the start info. Page table bits: Intel SDM vol. 3A table 4-15, 4-16, 4-18.
 */
#include "vmm/load.h"

#include <errno.h>

#define SELECTOR_CODE 0x10u
#define SELECTOR_DATA 0x18u
#define SELECTOR_TSS 0x20u

#define ACCESS_CODE64 (0xbu | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_L | X86_ACCESS_G)
#define ACCESS_CODE32 (0xbu | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_DB | X86_ACCESS_G)
#define ACCESS_DATA (0x3u | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_DB | X86_ACCESS_G)
#define ACCESS_TSS_BUSY (0xbu | X86_ACCESS_P)
#define ACCESS_LDT (0x2u | X86_ACCESS_P)
#define TSS_LIMIT 0x67u

#define PAGE_PRESENT 1u
#define PAGE_WRITE 2u
#define PAGE_LARGE 0x80u
#define PAGE_ENTRIES 512u
#define IDENTITY_GIB 4u

/* A descriptor of base 0; the limit is whole memory for code and data (SDM vol. 3A figure 3-8). */
static uint64_t descriptor(uint32_t access)
{
        uint64_t limit = access & X86_ACCESS_S ? 0xfffff : TSS_LIMIT;

        return (limit & 0xffff) | (limit >> 16) << 48 | (uint64_t)(access & 0xf0ff) << 40;
}

static struct x86_segment segment(uint16_t selector, uint32_t access)
{
        return (struct x86_segment){
                .selector = selector,
                .access = access,
                .limit = access & X86_ACCESS_S ? UINT32_MAX : TSS_LIMIT,
        };
}

static int put_gdt(struct guest_memory *mem, uint32_t code, struct x86_state *state, struct err *err)
{
        const uint64_t gdt[] = {
                [SELECTOR_CODE / 8] = descriptor(code),
                [SELECTOR_DATA / 8] = descriptor(ACCESS_DATA),
                [SELECTOR_TSS / 8] = descriptor(ACCESS_TSS_BUSY),
                [SELECTOR_TSS / 8 + 1] = 0,
        };

        if (guest_memory_write(mem, LOAD_GDT, gdt, sizeof(gdt)) < 0)
                return err_set(err, -EFAULT, "no memory at 0x%x", LOAD_GDT);
        state->gdtr = (struct x86_table){ .base = LOAD_GDT, .limit = sizeof(gdt) - 1 };
        state->idtr = (struct x86_table){ 0 };
        for (unsigned i = 0; i < X86_SEGS; i++)
                state->seg[i] = i == X86_CS ? segment(SELECTOR_CODE, code) : segment(SELECTOR_DATA, ACCESS_DATA);
        state->tr = segment(SELECTOR_TSS, ACCESS_TSS_BUSY);
        state->ldtr = (struct x86_segment){ .access = ACCESS_LDT | X86_ACCESS_UNUSABLE, .limit = 0xffff };
        state->rflags = X86_FLAG_FIXED;
        memset(state->gpr, 0, sizeof(state->gpr));
        return 0;
}

static int put_page_tables(struct guest_memory *mem, struct err *err)
{
        uint64_t *table = guest_memory_at(mem, LOAD_PAGE_TABLES, (2 + IDENTITY_GIB) * GUEST_PAGE_SIZE);
        uint64_t *pdpt, *directory;

        if (!table)
                return err_set(err, -EFAULT, "no memory at 0x%x", LOAD_PAGE_TABLES);
        memset(table, 0, 2 * GUEST_PAGE_SIZE);
        pdpt = table + PAGE_ENTRIES;
        directory = pdpt + PAGE_ENTRIES;
        table[0] = (LOAD_PAGE_TABLES + GUEST_PAGE_SIZE) | PAGE_PRESENT | PAGE_WRITE;
        for (uint64_t i = 0; i < IDENTITY_GIB; i++)
                pdpt[i] = (LOAD_PAGE_TABLES + (2 + i) * GUEST_PAGE_SIZE) | PAGE_PRESENT | PAGE_WRITE;
        for (uint64_t i = 0; i < IDENTITY_GIB * PAGE_ENTRIES; i++)
                directory[i] = i << 21 | PAGE_PRESENT | PAGE_WRITE | PAGE_LARGE;
        guest_memory_written(mem, LOAD_PAGE_TABLES, (2 + IDENTITY_GIB) * GUEST_PAGE_SIZE);
        return 0;
}

int entry_long_mode(struct guest_memory *mem, uint64_t rip, uint64_t boot_params, struct x86_state *state, struct err *err)
{
        int r = put_gdt(mem, ACCESS_CODE64, state, err);

        if (r >= 0)
                r = put_page_tables(mem, err);
        if (r < 0)
                return r;
        state->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
        state->cr3 = LOAD_PAGE_TABLES;
        state->cr4 = X86_CR4_PAE;
        state->efer = X86_EFER_LME | X86_EFER_LMA;
        state->rip = rip;
        state->gpr[X86_RSI] = boot_params;
        return 0;
}

int entry_pvh(struct guest_memory *mem, uint64_t rip, uint64_t start_info, struct x86_state *state, struct err *err)
{
        int r = put_gdt(mem, ACCESS_CODE32, state, err);

        if (r < 0)
                return r;
        state->cr0 = X86_CR0_PE | X86_CR0_ET;
        state->cr3 = 0;
        state->cr4 = 0;
        state->efer = 0;
        state->rip = rip;
        state->gpr[X86_RBX] = start_info;
        return 0;
}
