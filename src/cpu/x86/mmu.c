/*
 * Guest memory as a processor sees it: page walks, the soft TLB, and pages that hold code.
 *
 * An access first looks into the direct-mapped TLB of its mode (cpu.h). Its tag matches only when the whole access lies in one
 * page of RAM, the rights are there, and (for writing) the page is dirty already and holds no decoded code. Everything else
 * comes here: the walk sets accessed and dirty bits by compare-and-exchange on guest memory, faults are raised before anything
 * is changed, an access across two pages is translated for both first, and what is not RAM goes to the platform. mmu-fast.c has the
 * walk for the usual case, tlb.c what is done with its result.
 *
 * Code pages. guest_region.code has a word for each page: bit 0 "decoded code exists", the rest a generation.
 *   becoming code:  set the bit, then look through all other processors' TLBs for a write translation of the page; where there is
 *                   one, make that processor flush and wait until it has (complex.c).
 *   filling a TLB:  store the write tag, then look at the bit; drop the tag when it is set.
 * Both sides have a full barrier in between, so one of them sees the other. A write through the slow path stores first and then
 * raises the generation. A page that is written again and again and not executed stops being a code page.
 *
 * Source: Intel SDM vol. 3A chapter 4 (paging), §4.7 (page-fault error codes), §4.8 (accessed and dirty), §4.10 (caching).
 */
#include "cpu/x86/lock-step.h"
#include "cpu/x86/system.h"

#include "cpu/x86/cpuid.h"

#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_G (1ull << 8)
#define PTE_NX (1ull << 63)

/* After so many writes in a row to one page of code without a decode in between it is taken for data. */
#define CODE_WRITES_MAX 16

static void *physical_pointer(struct x86_cpu *cpu, uint64_t gpa)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);

        return region ? region->host + (gpa - region->gpa) : NULL;
}

uint64_t mmu_physical_read64(struct x86_cpu *cpu, uint64_t gpa)
{
        const uint64_t *at = physical_pointer(cpu, gpa & ~7ull);

        return at ? __atomic_load_n(at, __ATOMIC_RELAXED) : UINT64_MAX;
}

/* ---- page walk ---- */

/* Sets bits in the entry at gpa when it still reads old; false when it does not. Entries outside RAM stay as they are. */
static bool entry_update(struct x86_cpu *cpu, uint64_t gpa, uint64_t old, uint64_t set, bool size4)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);
        void *at;
        bool done;

        if (!region || region->readonly)
                return true;
        at = region->host + (gpa - region->gpa);
        if (unlikely(cpu->lock_step))
                lock_step_entry(cpu, at, size4 ? 4 : 8,
                                atomic_load_explicit(guest_region_code(region, gpa), memory_order_relaxed) & GUEST_CODE_PRESENT);
        if (size4) {
                uint32_t expected = (uint32_t)old;

                done = __atomic_compare_exchange_n((uint32_t *)at, &expected, (uint32_t)(old | set), false, __ATOMIC_SEQ_CST,
                                                   __ATOMIC_RELAXED);
        } else {
                done = __atomic_compare_exchange_n((uint64_t *)at, &old, old | set, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        }
        if (done)
                guest_memory_written(cpu->mem, gpa, size4 ? 4 : 8);
        return done;
}

static uint64_t entry_read(struct x86_cpu *cpu, uint64_t gpa, bool size4)
{
        const void *at = physical_pointer(cpu, gpa);

        if (!at)
                return size4 ? UINT32_MAX : UINT64_MAX;
        return size4 ? __atomic_load_n((const uint32_t *)at, __ATOMIC_RELAXED) : __atomic_load_n((const uint64_t *)at, __ATOMIC_RELAXED);
}

#define PHYSICAL_MASK ((1ull << X86_PHYSICAL_BITS) - 1)
#define ADDRESS_MASK (PHYSICAL_MASK & ~0xfffull)

/* The bits that must be 0 in an entry (SDM vol. 3A tables 4-8 to 4-20). level counts from 1, the page table. */
static uint64_t reserved_bits(const struct x86_cpu *cpu, unsigned level, uint64_t entry, bool pae)
{
        uint64_t reserved;

        if (!pae && !(cpu->s.efer & X86_EFER_LMA)) /* 32-bit: PSE-36 takes bits 13-20, 40 physical bits */
                return level == 2 && entry & PTE_PS && cpu->s.cr4 & X86_CR4_PSE ? 1ull << 21 : 0;
        reserved = 0xfffffffffffffull & ~PHYSICAL_MASK;
        if (!(cpu->s.efer & X86_EFER_LMA))
                reserved |= 0x7ff0000000000000ull;
        if (!(cpu->s.efer & X86_EFER_NXE))
                reserved |= PTE_NX;
        if (level == 4)
                reserved |= PTE_PS;
        else if (level == 3 && entry & PTE_PS)
                reserved |= x86_has(cpu, X86_F_PDPE1GB) ? 0x3fffe000ull : PTE_PS;
        else if (level == 2 && entry & PTE_PS)
                reserved |= 0x1fe000ull;
        return reserved;
}

/* The page-fault error code's P, W, U, I bits for an access that the rights forbid; 0 when they allow it. */
static uint32_t rights_fault(const struct x86_cpu *cpu, unsigned mode, enum access access, bool user_page, bool writable, bool nx)
{
        bool user = mode == TLB_USER;

        if (user && !user_page)
                return X86_PF_P;
        if (access == ACCESS_FETCH)
                return nx || (!user && user_page && cpu->s.cr4 & X86_CR4_SMEP) ? X86_PF_P : 0;
        if (!user && user_page && mode == TLB_SUPERVISOR_SMAP)
                return X86_PF_P;
        if (access == ACCESS_WRITE && !writable && (user || cpu->s.cr0 & X86_CR0_WP))
                return X86_PF_P;
        return 0;
}

static uint32_t error_bits(const struct x86_cpu *cpu, unsigned mode, enum access access)
{
        uint32_t bits = mode == TLB_USER ? X86_PF_U : 0;

        if (access == ACCESS_WRITE)
                bits |= X86_PF_W;
        /* I is reported only where fetches can be told apart: NXE with PAE, or SMEP. */
        if (access == ACCESS_FETCH &&
            ((cpu->s.efer & X86_EFER_NXE && cpu->s.cr4 & X86_CR4_PAE) || cpu->s.cr4 & X86_CR4_SMEP))
                bits |= X86_PF_I;
        return bits;
}

enum walk_result { WALK_OK, WALK_FAULT, WALK_AGAIN };

/*
 * One pass over the tables. WALK_AGAIN: an entry changed between reading it and setting its bits. With debug set no bits are
 * set. On WALK_FAULT *error has P and RSVD as they apply.
 */
static enum walk_result walk_once(struct x86_cpu *cpu, uint64_t linear, unsigned mode, enum access access, bool debug,
                                  struct translation *out, uint32_t *error)
{
        bool lma = cpu->s.efer & X86_EFER_LMA, pae = cpu->s.cr4 & X86_CR4_PAE, size4 = !pae && !lma;
        unsigned bits = size4 ? 10 : 9, level = lma ? 4 : 2;
        uint64_t table = cpu->s.cr3 & (lma ? ADDRESS_MASK : 0xfffff000ull);
        bool user_page = true, writable = true, nx = false;

        *error = 0;
        if (pae && !lma) {
                uint64_t pdpte = cpu->pdpte[(linear >> 30) & 3];

                if (!(pdpte & PTE_P))
                        return WALK_FAULT;
                table = pdpte & ADDRESS_MASK;
        }
        for (;; level--) {
                unsigned shift = 12 + (level - 1) * bits;
                uint64_t at = table + ((linear >> shift) & ((1u << bits) - 1)) * (size4 ? 4 : 8);
                uint64_t entry = entry_read(cpu, at, size4);
                bool leaf = level == 1 || (entry & PTE_PS && (level == 3 || (level == 2 && (!size4 || cpu->s.cr4 & X86_CR4_PSE))));
                uint64_t set = PTE_A, page_mask;

                if (!(entry & PTE_P))
                        return WALK_FAULT;
                if (entry & reserved_bits(cpu, level, entry, pae)) {
                        *error = X86_PF_P | X86_PF_RSVD;
                        return WALK_FAULT;
                }
                user_page &= !!(entry & PTE_U);
                writable &= !!(entry & PTE_W);
                nx |= !size4 && entry & PTE_NX;
                if (leaf) {
                        *error = rights_fault(cpu, mode, access, user_page, writable, nx);
                        if (*error)
                                return WALK_FAULT;
                        if (access == ACCESS_WRITE)
                                set |= PTE_D;
                }
                if (!debug && (entry & set) != set && !entry_update(cpu, at, entry, set, size4))
                        return WALK_AGAIN;
                if (!leaf) {
                        table = entry & (size4 ? 0xfffff000ull : ADDRESS_MASK);
                        continue;
                }
                page_mask = (1ull << shift) - 1;
                out->gpa = entry & (size4 ? 0xfffff000ull : ADDRESS_MASK) & ~page_mask;
                if (size4 && level == 2)
                        out->gpa |= (entry & 0x1fe000ull) << 19;
                out->gpa |= linear & page_mask & ~0xfffull;
                out->flags = (entry & PTE_G && cpu->s.cr4 & X86_CR4_PGE ? TLB_GLOBAL : 0) |
                             (level == 2 ? TLB_LARGE_2M : level == 3 ? TLB_LARGE_1G : 0);
                out->writable = (entry | set) & PTE_D && !rights_fault(cpu, mode, ACCESS_WRITE, user_page, writable, nx);
                return WALK_OK;
        }
}

/* Translates or raises #PF. mode is TLB_SUPERVISOR, TLB_SUPERVISOR_SMAP or TLB_USER. */
static void translate(struct x86_cpu *cpu, uint64_t linear, unsigned mode, enum access access, struct translation *out)
{
        enum walk_result result;
        uint32_t error;

        if (!(cpu->s.cr0 & X86_CR0_PG)) {
                *out = (struct translation){ .gpa = linear & 0xfffff000ull, .writable = true };
                return;
        }
        do
                result = walk_once(cpu, linear, mode, access, false, out, &error);
        while (result == WALK_AGAIN);
        if (result == WALK_FAULT) {
                tlb_drop_faulted(cpu, linear);
                x86_raise_page_fault(cpu, linear, error | error_bits(cpu, mode, access));
        }
}

int mmu_translate_debug(struct x86_cpu *cpu, uint64_t linear, uint64_t *gpa)
{
        struct translation t;
        uint32_t error;

        if (!(cpu->s.cr0 & X86_CR0_PG)) {
                *gpa = linear & UINT32_MAX;
                return 0;
        }
        if (walk_once(cpu, linear, TLB_SUPERVISOR, ACCESS_READ, true, &t, &error) != WALK_OK)
                return -1;
        *gpa = t.gpa | (linear & 0xfff);
        return 0;
}

bool mmu_load_pdpte(struct x86_cpu *cpu, uint64_t cr0, uint64_t cr3, uint64_t cr4)
{
        uint64_t entry[4];

        if (!(cr0 & X86_CR0_PG) || !(cr4 & X86_CR4_PAE) || cpu->s.efer & X86_EFER_LME)
                return true;
        for (unsigned i = 0; i < 4; i++) {
                entry[i] = mmu_physical_read64(cpu, (cr3 & 0xffffffe0ull) + i * 8);
                if (entry[i] & PTE_P && entry[i] & (~PHYSICAL_MASK | 0x1e6))
                        return false;
        }
        memcpy(cpu->pdpte, entry, sizeof(entry));
        return true;
}

/* ---- what is not RAM ---- */

static uint64_t mmio_read(struct x86_cpu *cpu, uint64_t gpa, unsigned size_bytes)
{
        uint64_t value = 0;

        if (unlikely(cpu->lock_step))
                lock_step_device(cpu);
        complex_leave(cpu);
        for (unsigned done = 0; done < size_bytes;) {
                unsigned part = 1u << (31 - __builtin_clz(size_bytes - done));

                part = MIN(part, 8u);
                value |= cpu->platform->mmio_read(cpu->ctx, gpa + done, part) << (done * 8);
                done += part;
        }
        complex_enter(cpu);
        return value;
}

static void mmio_write(struct x86_cpu *cpu, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        if (unlikely(cpu->lock_step))
                lock_step_device(cpu);
        complex_leave(cpu);
        for (unsigned done = 0; done < size_bytes;) {
                unsigned part = 1u << (31 - __builtin_clz(size_bytes - done));
                uint64_t bits = value >> (done * 8);

                part = MIN(part, 8u);
                cpu->platform->mmio_write(cpu->ctx, gpa + done, part == 8 ? bits : bits & ((1ull << part * 8) - 1), part);
                done += part;
        }
        complex_enter(cpu);
}

/* ---- physical pieces: within one page ---- */

static uint64_t load_bytes(const void *from, unsigned size_bytes)
{
        uint64_t value = 0;

        switch (size_bytes) {
        case 1:
                return __atomic_load_n((const uint8_t *)from, __ATOMIC_RELAXED);
        case 2:
                return __atomic_load_n((const uint16_t *)from, __ATOMIC_RELAXED);
        case 4:
                return __atomic_load_n((const uint32_t *)from, __ATOMIC_RELAXED);
        case 8:
                return __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
        default:
                memcpy(&value, from, size_bytes);
                return value;
        }
}

static void store_bytes(void *to, uint64_t value, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1:
                __atomic_store_n((uint8_t *)to, (uint8_t)value, __ATOMIC_RELAXED);
                break;
        case 2:
                __atomic_store_n((uint16_t *)to, (uint16_t)value, __ATOMIC_RELAXED);
                break;
        case 4:
                __atomic_store_n((uint32_t *)to, (uint32_t)value, __ATOMIC_RELAXED);
                break;
        case 8:
                __atomic_store_n((uint64_t *)to, value, __ATOMIC_RELAXED);
                break;
        default:
                memcpy(to, &value, size_bytes);
        }
}

static uint64_t physical_read(struct x86_cpu *cpu, uint64_t gpa, unsigned size_bytes)
{
        const void *from = physical_pointer(cpu, gpa);

        return from ? load_bytes(from, size_bytes) : mmio_read(cpu, gpa, size_bytes);
}

/* After a store to a page that held code. */
static void code_written(struct x86_cpu *cpu, const struct guest_region *region, uint64_t gpa, unsigned size_bytes)
{
        _Atomic uint32_t *code = guest_region_code(region, gpa);
        uint64_t page = gpa & ~(GUEST_PAGE_SIZE - 1);
        uint32_t old = atomic_load_explicit(code, memory_order_relaxed), now;

        if (cpu->written_code_gpa != page) {
                cpu->written_code_gpa = page;
                cpu->written_code_times = 0;
        }
        cpu->written_code_times++;
        do {
                now = old + GUEST_CODE_STEP;
                if (cpu->written_code_times > CODE_WRITES_MAX)
                        now &= ~GUEST_CODE_PRESENT;
        } while (!atomic_compare_exchange_weak_explicit(code, &old, now, memory_order_acq_rel, memory_order_relaxed));
        block_code_written(cpu, gpa, size_bytes);
        if (old & GUEST_CODE_PRESENT && !(now & GUEST_CODE_PRESENT))
                guest_memory_code_changed(cpu->mem, page, GUEST_PAGE_SIZE); /* writes to it are not seen from now on */
        else
                guest_memory_code_changed(cpu->mem, gpa, size_bytes);
}

static void physical_write(struct x86_cpu *cpu, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);

        if (!region) {
                mmio_write(cpu, gpa, value, size_bytes);
                return;
        }
        if (region->readonly)
                return;
        if (unlikely(cpu->lock_step))
                lock_step_store(cpu, region->host + (gpa - region->gpa), size_bytes,
                                atomic_load_explicit(guest_region_code(region, gpa), memory_order_relaxed) & GUEST_CODE_PRESENT);
        store_bytes(region->host + (gpa - region->gpa), value, size_bytes);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the store, then the look at the code bit: see the top */
        if (atomic_load_explicit(guest_region_code(region, gpa), memory_order_relaxed) & GUEST_CODE_PRESENT)
                code_written(cpu, region, gpa, size_bytes);
}

/* ---- slow paths of linear accesses ---- */

/* The mode whose rights count; TLB_CHECKED is user or supervisor with checks. */
static unsigned rights_mode(const struct x86_cpu *cpu)
{
        if (cpu->tlb_mode != TLB_CHECKED)
                return cpu->tlb_mode;
        if (cpu->cpl == 3)
                return TLB_USER;
        return cpu->s.cr4 & X86_CR4_SMAP && !(cpu->s.rflags & X86_FLAG_AC) ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR;
}

/* Translates one page for an access and enters it into the TLB when it is RAM and the mode has one. */
static uint64_t translate_and_fill(struct x86_cpu *cpu, uint64_t linear, unsigned mode, enum access access)
{
        const struct guest_region *region;
        struct translation t;

        if (!(cpu->s.efer & X86_EFER_LMA))
                linear &= UINT32_MAX;
        translate(cpu, linear, mode, access, &t);
        region = guest_memory_find(cpu->mem, t.gpa);
        if (region && cpu->tlb_mode != TLB_CHECKED)
                tlb_fill(cpu, linear, mode, &t, region);
        return t.gpa | (linear & 0xfff);
}

/* The guest physical addresses of an access, which may lie in two pages. */
struct span {
        uint64_t gpa[2];
        unsigned first_bytes; /* in the first page */
};

static struct span translate_span(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, unsigned mode, enum access access)
{
        unsigned in_page = (unsigned)(linear & (GUEST_PAGE_SIZE - 1));
        struct span span = { .first_bytes = MIN(size_bytes, (unsigned)GUEST_PAGE_SIZE - in_page) };

        span.gpa[0] = translate_and_fill(cpu, linear, mode, access);
        if (span.first_bytes < size_bytes)
                span.gpa[1] = translate_and_fill(cpu, linear + span.first_bytes, mode, access);
        return span;
}

/* What TLB_CHECKED is for. */
static void check_access(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        if (cpu->alignment_check && is_power_of_two(size_bytes) && linear & (size_bytes - 1))
                x86_raise(cpu, X86_AC, 0);
        x86_debug_data(cpu, linear, size_bytes, write);
}

uint64_t mmu_read_slow(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        struct span span;
        uint64_t value;

        if (mmu_fill_fast(cpu, linear, size_bytes, false))
                return load_bytes(tlb_find(cpu, linear, size_bytes, false), size_bytes);
        if (cpu->tlb_mode == TLB_CHECKED)
                check_access(cpu, linear, size_bytes, false);
        span = translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_READ);
        value = physical_read(cpu, span.gpa[0], span.first_bytes);
        if (span.first_bytes < size_bytes)
                value |= physical_read(cpu, span.gpa[1], size_bytes - span.first_bytes) << (span.first_bytes * 8);
        return value;
}

void mmu_write_slow(struct x86_cpu *cpu, uint64_t linear, uint64_t value, unsigned size_bytes)
{
        struct span span;

        if (mmu_fill_fast(cpu, linear, size_bytes, true)) {
                store_bytes(tlb_find(cpu, linear, size_bytes, true), value, size_bytes);
                return;
        }
        if (cpu->tlb_mode == TLB_CHECKED)
                check_access(cpu, linear, size_bytes, true);
        span = translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_WRITE);
        physical_write(cpu, span.gpa[0], value, span.first_bytes);
        if (span.first_bytes < size_bytes)
                physical_write(cpu, span.gpa[1], value >> (span.first_bytes * 8), size_bytes - span.first_bytes);
}

static void physical_read_bytes(struct x86_cpu *cpu, uint64_t gpa, uint8_t *to, unsigned size_bytes)
{
        const void *from = physical_pointer(cpu, gpa);

        if (from) {
                memcpy(to, from, size_bytes);
                return;
        }
        for (unsigned done = 0; done < size_bytes; done += 8) {
                unsigned part = MIN(size_bytes - done, 8u);
                uint64_t value = mmio_read(cpu, gpa + done, part);

                memcpy(to + done, &value, part);
        }
}

static void physical_write_bytes(struct x86_cpu *cpu, uint64_t gpa, const uint8_t *from, unsigned size_bytes)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);

        if (!region) {
                for (unsigned done = 0; done < size_bytes; done += 8) {
                        unsigned part = MIN(size_bytes - done, 8u);
                        uint64_t value = 0;

                        memcpy(&value, from + done, part);
                        mmio_write(cpu, gpa + done, value, part);
                }
                return;
        }
        if (region->readonly)
                return;
        if (unlikely(cpu->lock_step))
                lock_step_store(cpu, region->host + (gpa - region->gpa), size_bytes,
                                atomic_load_explicit(guest_region_code(region, gpa), memory_order_relaxed) & GUEST_CODE_PRESENT);
        memcpy(region->host + (gpa - region->gpa), from, size_bytes);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (atomic_load_explicit(guest_region_code(region, gpa), memory_order_relaxed) & GUEST_CODE_PRESENT)
                code_written(cpu, region, gpa, size_bytes);
}

void mmu_read_bytes(struct x86_cpu *cpu, uint64_t linear, void *to, unsigned size_bytes)
{
        const void *at = tlb_find(cpu, linear, size_bytes, false);
        struct span span;

        if (likely(at)) {
                memcpy(to, at, size_bytes);
                return;
        }
        if (cpu->tlb_mode == TLB_CHECKED)
                x86_debug_data(cpu, linear, size_bytes, false);
        span = translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_READ);
        physical_read_bytes(cpu, span.gpa[0], to, span.first_bytes);
        if (span.first_bytes < size_bytes)
                physical_read_bytes(cpu, span.gpa[1], (uint8_t *)to + span.first_bytes, size_bytes - span.first_bytes);
}

void mmu_write_bytes(struct x86_cpu *cpu, uint64_t linear, const void *from, unsigned size_bytes)
{
        void *at = tlb_find(cpu, linear, size_bytes, true);
        struct span span;

        if (likely(at)) {
                memcpy(at, from, size_bytes);
                return;
        }
        if (cpu->tlb_mode == TLB_CHECKED)
                x86_debug_data(cpu, linear, size_bytes, true);
        span = translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_WRITE);
        physical_write_bytes(cpu, span.gpa[0], from, span.first_bytes);
        if (span.first_bytes < size_bytes)
                physical_write_bytes(cpu, span.gpa[1], (const uint8_t *)from + span.first_bytes, size_bytes - span.first_bytes);
}

void mmu_probe_write(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        if (likely(tlb_find(cpu, linear, size_bytes, true)))
                return;
        translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_WRITE);
}

/* The host pointer of an access within one page of RAM, or NULL; faults as the access would. */
static void *plain_pointer(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        struct span span = translate_span(cpu, linear, size_bytes, rights_mode(cpu), write ? ACCESS_WRITE : ACCESS_READ);
        const struct guest_region *region;

        if (span.first_bytes < size_bytes)
                return NULL;
        region = guest_memory_find(cpu->mem, span.gpa[0]);
        if (!region)
                return NULL;
        if (write && (region->readonly ||
                      atomic_load_explicit(guest_region_code(region, span.gpa[0]), memory_order_relaxed) & GUEST_CODE_PRESENT))
                return NULL;
        return region->host + (span.gpa[0] - region->gpa);
}

void *mmu_rmw_slow(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        if (cpu->tlb_mode == TLB_CHECKED) {
                check_access(cpu, linear, size_bytes, true);
                (void)translate_span(cpu, linear, size_bytes, rights_mode(cpu), ACCESS_WRITE);
                return NULL; /* without an entry in the TLB nobody would find this pointer in use when the page becomes code */
        }
        return plain_pointer(cpu, linear, size_bytes, true);
}

bool mmu_fill(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        x86_expect_vectors_out(cpu);
        if ((linear & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - size_bytes)
                return false;
        translate_and_fill(cpu, linear, rights_mode(cpu), write ? ACCESS_WRITE : ACCESS_READ);
        return tlb_find(cpu, linear, size_bytes, write);
}

void *mmu_run(struct x86_cpu *cpu, uint64_t linear, bool write, uint64_t max_bytes, uint64_t *run_bytes)
{
        void *at = tlb_find(cpu, linear, 1, write);

        if (!max_bytes)
                return NULL;
        *run_bytes = MIN(max_bytes, GUEST_PAGE_SIZE - (linear & (GUEST_PAGE_SIZE - 1)));
        if (likely(at))
                return at;
        if (cpu->tlb_mode == TLB_CHECKED)
                return NULL;
        return plain_pointer(cpu, linear, 1, write);
}

/* ---- implicit supervisor accesses ---- */

static unsigned system_mode(const struct x86_cpu *cpu)
{
        return cpu->s.cr4 & X86_CR4_SMAP ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR; /* AC does not count: SDM vol. 3A §4.6.1 */
}

void mmu_system_read(struct x86_cpu *cpu, uint64_t linear, void *to, unsigned size_bytes)
{
        const void *at = tlb_find_in(cpu->set[system_mode(cpu)], linear, size_bytes, false);
        struct span span;

        if (likely(at)) {
                memcpy(to, at, size_bytes);
                return;
        }
        span = translate_span(cpu, linear, size_bytes, system_mode(cpu), ACCESS_READ);
        physical_read_bytes(cpu, span.gpa[0], to, span.first_bytes);
        if (span.first_bytes < size_bytes)
                physical_read_bytes(cpu, span.gpa[1], (uint8_t *)to + span.first_bytes, size_bytes - span.first_bytes);
}

void mmu_system_write(struct x86_cpu *cpu, uint64_t linear, const void *from, unsigned size_bytes)
{
        void *at = tlb_find_in(cpu->set[system_mode(cpu)], linear, size_bytes, true);
        struct span span;

        if (likely(at)) {
                memcpy(at, from, size_bytes);
                return;
        }
        span = translate_span(cpu, linear, size_bytes, system_mode(cpu), ACCESS_WRITE);
        physical_write_bytes(cpu, span.gpa[0], from, span.first_bytes);
        if (span.first_bytes < size_bytes)
                physical_write_bytes(cpu, span.gpa[1], (const uint8_t *)from + span.first_bytes, size_bytes - span.first_bytes);
}

void mmu_system_probe_write(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        translate_span(cpu, linear, size_bytes, system_mode(cpu), ACCESS_WRITE);
}

/* ---- code ---- */

uint64_t mmu_fetch_slow(struct x86_cpu *cpu, uint64_t linear, const uint8_t **host)
{
        bool user = cpu->cpl == 3;
        uint64_t in_page = linear & (GUEST_PAGE_SIZE - 1);
        struct translation t;
        const uint8_t *page;

        x86_expect_vectors_out(cpu);
        translate(cpu, linear, user ? TLB_USER : TLB_SUPERVISOR, ACCESS_FETCH, &t);
        page = physical_pointer(cpu, t.gpa);
        *host = page ? page + in_page : NULL;
        if (page)
                tlb_fill_exec(cpu, linear, t.gpa, t.flags, page);
        return t.gpa | in_page;
}

uint32_t mmu_page_becomes_code(struct x86_cpu *cpu, uint64_t gpa)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);
        uint64_t page = gpa & ~(GUEST_PAGE_SIZE - 1);
        _Atomic uint32_t *code;
        uint32_t word;

        if (!region)
                return 0;
        code = guest_region_code(region, gpa);
        if (cpu->written_code_gpa == page)
                cpu->written_code_times = 0;
        word = atomic_load_explicit(code, memory_order_acquire);
        if (!(word & GUEST_CODE_PRESENT) || complex_drops_pending(cpu)) {
                /*
                 * Not published as code before every write translation is gone: a second processor that finds the bit set must be
                 * able to rely on it, so both go through the same steps until the first is through.
                 */
                atomic_fetch_or_explicit(code, GUEST_CODE_PRESENT, memory_order_seq_cst);
                __atomic_thread_fence(__ATOMIC_SEQ_CST);
                tlb_drop_writers(cpu, page);
                complex_drop_writers(cpu, page);
                word = atomic_load_explicit(code, memory_order_acquire);
        }
        /* Another processor may write it so often that it is no code page again: then nothing decoded now is fresh, ever. */
        return word & GUEST_CODE_PRESENT ? word : (word - GUEST_CODE_STEP) | GUEST_CODE_PRESENT;
}
