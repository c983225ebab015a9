/*
 * The page walk of the usual TLB miss: 64-bit mode, rights that allow the access, RAM behind it. Whatever else is found, mmu.c walks again and
 * does what has to be done.
 *
 * Compiled without vector instructions: translated code calls it while the guest's vector registers are in the host's.
 *
 * Source: Intel SDM vol. 3A §4.5 (4-level paging), §4.6 (access rights), §4.8 (accessed and dirty).
 */
#include "cpu/x86/system.h"
#include "cpu/x86/translator-internal.h"

#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_G (1ull << 8)
#define PTE_NX (1ull << 63)

/* Of the error code of #PF, SDM vol. 3A figure 4-12. */
enum { ERROR_PRESENT = 1, ERROR_WRITE = 2, ERROR_USER = 4 };

#define PHYSICAL_MASK ((1ull << X86_PHYSICAL_BITS) - 1)
#define ADDRESS_MASK (PHYSICAL_MASK & ~0xfffull)

/* Bits that send an entry to the whole walk: reserved ones, and those that would be with another level or feature. */
static uint64_t odd_bits(const struct x86_cpu *cpu)
{
        uint64_t bits = 0xfffffffffffffull & ~PHYSICAL_MASK;

        return cpu->s.efer & X86_EFER_NXE ? bits : bits | PTE_NX;
}

static bool rights_allow(const struct x86_cpu *cpu, uint64_t all, bool write)
{
        if (cpu->tlb_mode == TLB_USER)
                return all & PTE_U && (!write || all & PTE_W);
        if (cpu->tlb_mode == TLB_SUPERVISOR_SMAP && all & PTE_U)
                return false;
        return !write || all & PTE_W || !(cpu->s.cr0 & X86_CR0_WP);
}

/* An entry of a table, as it was read. */
struct entry {
        const struct guest_region *region;
        uint64_t gpa, value;
};

static bool entry_at(const struct x86_cpu *cpu, uint64_t gpa, struct entry *e)
{
        e->gpa = gpa;
        e->region = guest_memory_find(cpu->mem, gpa);
        if (!e->region)
                return false;
        e->value = __atomic_load_n((const uint64_t *)(e->region->host + (gpa - e->region->gpa)), __ATOMIC_RELAXED);
        return true;
}

/* Sets the bits in the entry, unless that takes more; see entry_update() of mmu.c. */
static bool entry_set(struct x86_cpu *cpu, struct entry *e, uint64_t bits)
{
        const _Atomic uint32_t *code = guest_region_code(e->region, e->gpa);
        uint64_t expected = e->value;

        if ((e->value & bits) == bits)
                return true;
        if (e->region->readonly || atomic_load_explicit(code, memory_order_relaxed) & GUEST_CODE_PRESENT)
                return false;
        e->value |= bits;
        if (!__atomic_compare_exchange_n((uint64_t *)(e->region->host + (e->gpa - e->region->gpa)), &expected, e->value, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_RELAXED))
                return false;
        if (unlikely(atomic_load_explicit(code, memory_order_relaxed) & GUEST_CODE_PRESENT)) { /* since then */
                translator_vectors_out(cpu);
                guest_memory_written(cpu->mem, e->gpa, sizeof(e->value));
        }
        return true;
}

/* all: the AND of the entries. */
static bool fill(struct x86_cpu *cpu, uint64_t linear, struct entry *leaf, uint64_t all, unsigned level, bool write)
{
        uint64_t page_mask = (1ull << (12 + 9 * (level - 1))) - 1;
        const struct guest_region *region;
        struct translation t;

        if ((level > 1 && leaf->value & page_mask & ~0x1fffull) || !rights_allow(cpu, all, write) || !entry_set(cpu, leaf, write ? PTE_A | PTE_D : PTE_A))
                return false;
        t.gpa = (leaf->value & ADDRESS_MASK & ~page_mask) | (linear & page_mask & ~0xfffull);
        t.flags = (leaf->value & PTE_G && cpu->s.cr4 & X86_CR4_PGE ? TLB_GLOBAL : 0) |
                  (level == 2 ? TLB_LARGE_2M : level == 3 ? TLB_LARGE_1G : 0);
        t.writable = leaf->value & PTE_D && rights_allow(cpu, all, true);
        region = guest_memory_find(cpu->mem, t.gpa);
        if (!region)
                return false;
        tlb_fill(cpu, linear, cpu->tlb_mode, &t, region);
        return true;
}

/*
 * The error code of the page fault that a user's data access certainly raises, or -1 when the whole walk has to tell: an entry that was not
 * accessed yet, odd bits, no RAM, or no fault at all.
 */
int mmu_user_fault_fast(const struct x86_cpu *cpu, uint64_t linear, bool write)
{
        uint64_t table = cpu->s.cr3 & ADDRESS_MASK, odd = odd_bits(cpu), all = PTE_W | PTE_U;
        int error = ERROR_USER | (write ? ERROR_WRITE : 0);

        for (unsigned level = 4;; level--) {
                uint64_t at = table + (linear >> (12 + 9 * (level - 1)) & 511) * 8, entry;
                const struct guest_region *region = guest_memory_find(cpu->mem, at);

                if (!region)
                        return -1;
                entry = __atomic_load_n((const uint64_t *)(region->host + (at - region->gpa)), __ATOMIC_RELAXED);
                if (!(entry & PTE_P))
                        return error;
                if (!(entry & PTE_A) || entry & odd || (level > 1 && entry & PTE_PS))
                        return -1; /* large pages are seldom the ones that fault */
                all &= entry;
                if (level == 1)
                        return !(all & PTE_U) || (write && !(all & PTE_W)) ? error | ERROR_PRESENT : -1;
                table = entry & ADDRESS_MASK;
        }
}

bool mmu_fill_fast(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        uint64_t table = cpu->s.cr3 & ADDRESS_MASK, odd = odd_bits(cpu), all = PTE_W | PTE_U;

        if (!cpu->mode64 || cpu->tlb_mode == TLB_CHECKED || (linear & 0xfff) > GUEST_PAGE_SIZE - size_bytes || !x86_canonical(linear))
                return false;
        for (unsigned level = 4;; level--) {
                struct entry e;

                if (!entry_at(cpu, table + (linear >> (12 + 9 * (level - 1)) & 511) * 8, &e) || !(e.value & PTE_P) || e.value & odd)
                        return false;
                all &= e.value;
                if (level == 1 || e.value & PTE_PS) {
                        if (level == 4 || (level == 3 && !cpu->pages_1g) || !fill(cpu, linear, &e, all, level, write))
                                return false;
                        return tlb_find(cpu, linear, size_bytes, write);
                }
                if (!entry_set(cpu, &e, PTE_A))
                        return false;
                table = e.value & ADDRESS_MASK;
        }
}
