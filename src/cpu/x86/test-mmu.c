/*
 * Paging of every kind: results, rights, error codes, accessed and dirty bits, invalidation, code pages, MMIO.
 *
 * Tables are made by hand at fixed addresses; each case is written from the clause it names in Intel SDM vol. 3A chapter 4.
 */
#include "cpu/x86/test-machine.h"

#define P 1ull
#define W 2ull
#define U 4ull
#define A 0x20ull
#define D 0x40ull
#define PS 0x80ull
#define G 0x100ull
#define NX (1ull << 63)

#define PML4 0x10000ull
#define PDPT 0x11000ull
#define PD 0x12000ull
#define PT 0x13000ull
#define DATA 0x200000ull

/* Linear 0x40000000 + n * 4 KiB is entry n of PT. */
#define LINEAR 0x40000000ull

static void long_mode(struct test_machine *m)
{
        struct x86_cpu *cpu = m->cpu;

        test_poke64(m, PML4, PDPT | P | W | U);
        test_poke64(m, PDPT + 8, PD | P | W | U);
        test_poke64(m, PD, PT | P | W | U);
        for (unsigned i = 0; i < 512; i++)
                test_poke64(m, PT + i * 8, 0);
        cpu->s.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
        cpu->s.cr4 = X86_CR4_PAE | X86_CR4_PGE;
        cpu->s.cr3 = PML4;
        cpu->s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
        cpu->s.seg[X86_CS].access |= X86_ACCESS_L;
        cpu->s.seg[X86_SS].access &= ~(3u << X86_ACCESS_DPL_SHIFT);
        x86_cpu_state_changed(cpu);
}

static void set_cpl(struct test_machine *m, unsigned cpl)
{
        uint32_t *access = &m->cpu->s.seg[X86_SS].access;

        *access = (*access & ~(3u << X86_ACCESS_DPL_SHIFT)) | cpl << X86_ACCESS_DPL_SHIFT;
        x86_mode_changed(m->cpu);
}

static void test_long_4k(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PT + 8, DATA | P | W | U);
        test_poke64(m, DATA + 0x10, 0x1122334455667788);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read64(m->cpu, LINEAR + 0x1010), 0x1122334455667788)), -1);
        /* §4.8: a read sets A in every entry used, a write D in the last. */
        assert_int_equal(test_peek64(m, PML4), PDPT | P | W | U | A);
        assert_int_equal(test_peek64(m, PDPT + 8), PD | P | W | U | A);
        assert_int_equal(test_peek64(m, PD), PT | P | W | U | A);
        assert_int_equal(test_peek64(m, PT + 8), DATA | P | W | U | A);
        assert_int_equal(FAULT_OF(m, mmu_write32(m->cpu, LINEAR + 0x1010, 0xcafe)), -1);
        assert_int_equal(test_peek64(m, PT + 8), DATA | P | W | U | A | D);
        assert_int_equal(test_peek64(m, DATA + 0x10), 0x112233440000cafe);
}

static void test_long_large(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PD + 8, 0x400000 | P | W | PS);
        test_poke64(m, 0x4abcd8, 0x77);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, LINEAR + 0x2abcd8), 0x77)), -1);
        test_poke64(m, PDPT + 16, 0 | P | W | PS);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x80000000 + 0x4abcd8), 0x77)), -1);
        /* Table 4-16: bits 13-20 of a 2 MiB entry are reserved. */
        test_poke64(m, PD + 16, 0x400000 | 0x2000 | P | W | PS);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR + 0x400000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_RSVD);
}

static void test_error_codes(void **state)
{
        struct test_machine *m = *state;
        const uint8_t *host;

        long_mode(m);
        test_poke64(m, PT + 0, DATA | P | W);          /* supervisor, writable */
        test_poke64(m, PT + 8, DATA | P | U);          /* user, read-only */
        test_poke64(m, PT + 16, DATA | P | W | U | NX); /* user, no execute */
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR + 0x3000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, 0);
        assert_int_equal(m->cpu->s.cr2, LINEAR + 0x3000);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR + 0x3005, 1)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_W);
        /* CR0.WP: the supervisor obeys W. */
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR + 0x1000, 1)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_W);
        m->cpu->s.cr0 &= ~X86_CR0_WP;
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR + 0x1000, 1)), -1);
        m->cpu->s.cr0 |= X86_CR0_WP;
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(FAULT_OF(m, mmu_fetch(m->cpu, LINEAR + 0x2000, &host)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_I);
        set_cpl(m, 3);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_U);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR + 0x1000, 1)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_U | X86_PF_W);
        assert_int_equal(FAULT_OF(m, mmu_fetch(m->cpu, LINEAR + 0x2000, &host)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_U | X86_PF_I);
        assert_int_equal(FAULT_OF(m, mmu_fetch(m->cpu, LINEAR + 0x1000, &host)), -1);
        assert_ptr_equal(host, guest_memory_at(&m->mem, DATA, 1));
        /* Bits above the physical width are reserved. */
        test_poke64(m, PT + 24, DATA | P | W | U | 1ull << X86_PHYSICAL_BITS);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR + 0x3000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_U | X86_PF_RSVD);
}

static void test_smep_smap(void **state)
{
        struct test_machine *m = *state;
        const uint8_t *host;

        long_mode(m);
        test_poke64(m, PT, DATA | P | W | U);
        m->cpu->s.cr4 |= X86_CR4_SMEP | X86_CR4_SMAP;
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P);
        assert_int_equal(FAULT_OF(m, mmu_fetch(m->cpu, LINEAR, &host)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_I);
        x86_set_flags_and_mode(m->cpu, m->cpu->s.rflags | X86_FLAG_AC);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR)), -1);
        /* Implicit accesses are checked whatever AC says (§4.6.1). */
        assert_int_equal(FAULT_OF(m, ({ uint8_t b; mmu_system_read(m->cpu, LINEAR, &b, 1); })), X86_PF);
        x86_set_flags_and_mode(m->cpu, m->cpu->s.rflags & ~X86_FLAG_AC);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, LINEAR)), X86_PF);
}

static void test_crossing(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PT, DATA | P | W);
        test_poke64(m, PT + 8, (DATA + 0x5000) | P | W);
        test_poke64(m, DATA + 0xff8, 0x1111111111111111);
        assert_int_equal(FAULT_OF(m, mmu_write64(m->cpu, LINEAR + 0xffd, 0x8877665544332211)), -1);
        assert_int_equal(test_peek64(m, DATA + 0xff8), 0x3322111111111111);
        assert_int_equal(test_peek64(m, DATA + 0x5000) & 0xffffffffff, 0x8877665544);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read64(m->cpu, LINEAR + 0xffd), 0x8877665544332211)), -1);
        /* The second page faults before the first is written. */
        assert_int_equal(FAULT_OF(m, mmu_write64(m->cpu, LINEAR + 0x1ffd, ~0ull)), X86_PF);
        assert_int_equal(m->cpu->s.cr2, LINEAR + 0x2000);
        assert_int_equal(test_peek64(m, DATA + 0x5ff8), 0);
        assert_null(FAULT_OF(m, assert_null(mmu_rmw(m->cpu, LINEAR + 0xffd, 8))) == -1 ? NULL : m);
}

static void test_invalidation(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, DATA, 1);
        test_poke64(m, DATA + 0x1000, 2);
        test_poke64(m, PT, DATA | P | W);
        test_poke64(m, PT + 8, DATA | P | W | G);
        assert_int_equal(FAULT_OF(m, (mmu_read8(m->cpu, LINEAR), mmu_read8(m->cpu, LINEAR + 0x1000))), -1);
        test_poke64(m, PT, (DATA + 0x1000) | P | W);
        test_poke64(m, PT + 8, (DATA + 0x1000) | P | W | G);
        assert_int_equal(mmu_read8(m->cpu, LINEAR), 1); /* cached until it is invalidated */
        mmu_flush_page(m->cpu, LINEAR + 0x123);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, LINEAR), 2)), -1);
        mmu_flush(m->cpu, false);
        assert_int_equal(mmu_read8(m->cpu, LINEAR + 0x1000), 1); /* global */
        mmu_flush(m->cpu, true);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, LINEAR + 0x1000), 2)), -1);
        /* INVLPG of any address of a large page drops all of it (§4.10.2.3). */
        test_poke64(m, PD + 8, 0x400000 | P | W | PS);
        test_poke64(m, 0x400000, 3);
        test_poke64(m, 0x600000, 4);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, LINEAR + 0x200000), 3)), -1);
        test_poke64(m, PD + 8, 0x600000 | P | W | PS);
        mmu_flush_page(m->cpu, LINEAR + 0x3ff000);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, LINEAR + 0x200000), 4)), -1);
}

#define PML4_B 0x14000ull
#define PT_B 0x17000ull
#define CR3_NOFLUSH (1ull << 63)

/* A second address space: tables at PML4_B, whose PT is PT_B. */
static void second_space(struct test_machine *m)
{
        test_poke64(m, PML4_B, 0x15000 | P | W | U);
        test_poke64(m, 0x15000 + 8, 0x16000 | P | W | U);
        test_poke64(m, 0x16000, PT_B | P | W | U);
        for (unsigned i = 0; i < 512; i++)
                test_poke64(m, PT_B + i * 8, 0);
        test_poke64(m, DATA, 1);
        test_poke64(m, DATA + 0x1000, 2);
        test_poke64(m, DATA + 0x2000, 3);
}

/* A byte, or -1 when reading it faults. */
static int read_at(struct test_machine *m, uint64_t linear)
{
        volatile int value = -1;

        return FAULT_OF(m, value = mmu_read8(m->cpu, linear)) < 0 ? value : -1;
}
#define READS(m, linear, value) assert_int_equal(read_at(m, linear), value)

/* §4.10.1, §4.10.4.1: translations belong to a PCID, and MOV CR3 with bit 63 keeps them. With CPL 0 and 3: a shared and an own table. */
static void pcids(struct test_machine *m, unsigned cpl)
{
        struct x86_cpu *cpu = m->cpu;
        uint64_t user = cpl == 3 ? U : 0;

        long_mode(m);
        second_space(m);
        test_poke64(m, PT, DATA | P | W | user);
        test_poke64(m, PT_B, (DATA + 0x1000) | P | W | user);
        test_poke64(m, PT + 8, DATA | P | W | user | G);
        cpu->s.cr4 |= X86_CR4_PCIDE | X86_CR4_SMAP;
        cpu->s.cr3 = PML4 | 1;
        x86_cpu_state_changed(cpu);
        set_cpl(m, cpl);
        READS(m, LINEAR, 1);
        READS(m, LINEAR + 0x1000, 1);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 2);
        READS(m, LINEAR, 2);
        /* Kept while another PCID is current, whatever the tables say. */
        test_poke64(m, PT, (DATA + 0x2000) | P | W | user);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4 | 1);
        READS(m, LINEAR, cpl == 3 ? 1 : 3);
        /* Without bit 63 they go. */
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 2);
        x86_set_cr3(cpu, PML4 | 1);
        READS(m, LINEAR, 3);
        /* INVPCID of another one. */
        test_poke64(m, PT_B, DATA | P | W | user);
        mmu_flush_pcid(cpu, 2);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 2);
        READS(m, LINEAR, 1);
        test_poke64(m, PT, DATA | P | W | user);
        mmu_flush_pcid_page(cpu, 1, LINEAR);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4 | 1);
        READS(m, LINEAR, 1);
        /* Another table under the same PCID. */
        test_poke64(m, PT_B, (DATA + 0x1000) | P | W | user);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 1);
        READS(m, LINEAR, 2);
        /* More PCIDs than are kept: each is right all the same. */
        for (unsigned round = 0; round < 3; round++)
                for (unsigned pcid = 1; pcid < 40; pcid++) {
                        x86_set_cr3(cpu, (pcid & 1 ? PML4 : PML4_B) | pcid | (round ? CR3_NOFLUSH : 0));
                        READS(m, LINEAR, pcid & 1 ? 1 : 2);
                }
        mmu_flush_all_local(cpu);
        test_poke64(m, PT, (DATA + 0x2000) | P | W | user);
        for (unsigned pcid = 1; pcid < 40; pcid += 2) {
                x86_set_cr3(cpu, PML4 | pcid | CR3_NOFLUSH);
                READS(m, LINEAR, 3);
        }
        /* INVLPG takes a global page from all. */
        x86_set_cr3(cpu, PML4 | 1 | CR3_NOFLUSH);
        READS(m, LINEAR + 0x1000, 1);
        x86_set_cr3(cpu, PML4 | 3 | CR3_NOFLUSH);
        READS(m, LINEAR + 0x1000, 1);
        test_poke64(m, PT + 8, (DATA + 0x1000) | P | W | user | G);
        READS(m, LINEAR + 0x1000, 1);
        mmu_flush_page(cpu, LINEAR + 0x1000);
        READS(m, LINEAR + 0x1000, 2);
        x86_set_cr3(cpu, PML4 | 1 | CR3_NOFLUSH);
        READS(m, LINEAR + 0x1000, 2);
}

static void test_pcid_user(void **state)
{
        pcids(*state, 3);
}

static void test_pcid_supervisor(void **state)
{
        pcids(*state, 0);
}

/* A page becomes code while a space that is not current may write it. */
static void test_pcid_code(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;
        _Atomic uint32_t *code;
        uint32_t before;

        long_mode(m);
        second_space(m);
        test_poke64(m, PT, DATA | P | W | U);
        test_poke64(m, PT_B, (DATA + 0x1000) | P | W | U);
        cpu->s.cr4 |= X86_CR4_PCIDE;
        cpu->s.cr3 = PML4 | 1;
        x86_cpu_state_changed(cpu);
        set_cpl(m, 3);
        assert_int_equal(FAULT_OF(m, mmu_write8(cpu, LINEAR, 9)), -1);
        assert_non_null(tlb_find(cpu, LINEAR, 1, true));
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 2);
        before = mmu_page_becomes_code(cpu, DATA);
        assert_false(mmu_holds_write_tag(cpu, DATA));
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4 | 1);
        assert_null(tlb_find(cpu, LINEAR, 1, true));
        assert_int_equal(FAULT_OF(m, mmu_write8(cpu, LINEAR, 8)), -1);
        code = guest_region_code(guest_memory_find(&m->mem, DATA), DATA);
        assert_int_not_equal(*code, before);
}

/* A jump cache goes with its space, and empties with what is dropped for fetching. */
static void test_jump_caches(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;
        const struct tjump *jump;
        unsigned index;
        const uint8_t *host;

        long_mode(m);
        second_space(m);
        test_poke64(m, PT, DATA | P | U);
        test_poke64(m, PT_B, (DATA + 0x1000) | P | U);
        cpu->s.cr4 |= X86_CR4_PCIDE;
        cpu->s.cr3 = PML4 | 1;
        x86_cpu_state_changed(cpu);
        set_cpl(m, 3);
        jump = (const struct tjump *)(cpu->window + tjump_offset(TLB_USER)) + tjump_index(TLB_USER, LINEAR + 0x123);
        assert_int_equal(FAULT_OF(m, mmu_fetch(cpu, LINEAR + 0x123, &host)), -1);
        tjump_set(cpu, LINEAR + 0x123, host);
        assert_int_equal(jump->rip, LINEAR + 0x123);
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4_B | 2);
        index = tjump_index(TLB_USER, LINEAR + 0x123);
        assert_int_equal(((const struct tjump *)(cpu->window + tjump_offset(TLB_USER)) + index)->rip, tjump_empty_rip(index));
        x86_set_cr3(cpu, CR3_NOFLUSH | PML4 | 1);
        assert_int_equal(jump->rip, LINEAR + 0x123);
        assert_ptr_equal((const struct tjump *)(cpu->window + tjump_offset(TLB_USER)) + tjump_index(TLB_USER, LINEAR + 0x123), jump);
        mmu_flush_page(cpu, LINEAR + 0x2000);
        assert_int_equal(jump->rip, LINEAR + 0x123);
        mmu_flush_page(cpu, LINEAR);
        assert_int_equal(jump->rip, tjump_empty_rip(tjump_index(TLB_USER, LINEAR + 0x123)));
        /* The exec TLB has forgotten the page, the jump cache not. */
        assert_int_equal(FAULT_OF(m, mmu_fetch(cpu, LINEAR + 0x123, &host)), -1);
        tjump_set(cpu, LINEAR + 0x123, host);
        test_poke64(m, PT + 8 * TLB_EXEC_ENTRIES, DATA | P | U);
        assert_int_equal(FAULT_OF(m, mmu_fetch(cpu, LINEAR + 0x1000 * TLB_EXEC_ENTRIES, &host)), -1);
        mmu_flush_page(cpu, LINEAR);
        assert_int_equal(jump->rip, tjump_empty_rip(tjump_index(TLB_USER, LINEAR + 0x123)));
}

static void protected_mode(struct test_machine *m, uint64_t cr3, uint64_t cr4)
{
        m->cpu->s.cr0 = X86_CR0_PE | X86_CR0_PG;
        m->cpu->s.cr4 = cr4;
        m->cpu->s.cr3 = cr3;
        m->cpu->s.efer = 0;
        x86_cpu_state_changed(m->cpu);
}

static void test_32bit(void **state)
{
        struct test_machine *m = *state;

        test_poke32(m, 0x10000 + 4 * 0x100, 0x11000 | P | W | U);
        test_poke32(m, 0x11000 + 4 * 2, DATA | P | W | U);
        test_poke32(m, 0x10000 + 4 * 0x101, 0x400000 | P | W | PS);
        test_poke64(m, DATA, 0x55);
        test_poke64(m, 0x400008, 0x66);
        protected_mode(m, 0x10000, X86_CR4_PSE);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x40002000), 0x55)), -1);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x40400008), 0x66)), -1);
        assert_int_equal(test_peek32(m, 0x11000 + 8), DATA | P | W | U | A);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, 0x40400008, 1)), -1);
        assert_int_equal(test_peek32(m, 0x10000 + 4 * 0x101), 0x400000 | P | W | PS | A | D);
        /* Table 4-4: bit 21 of a 4 MiB entry is reserved; without CR4.PSE bit 7 means nothing. */
        test_poke32(m, 0x10000 + 4 * 0x102, 0x600000 | P | W | PS);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, 0x40800000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_RSVD);
}

static void test_pae(void **state)
{
        struct test_machine *m = *state;

        test_poke64(m, 0x10020, 0x11000 | P);       /* CR3 is aligned to 32 bytes only */
        test_poke64(m, 0x10028, 0x12000 | P);
        test_poke64(m, 0x10030, 0);
        test_poke64(m, 0x10038, 0);
        test_poke64(m, 0x12000, 0x13000 | P | W);
        test_poke64(m, 0x13000 + 8, DATA | P | W);
        test_poke64(m, 0x12008, 0x400000 | P | W | PS);
        test_poke64(m, DATA, 0x21);
        test_poke64(m, 0x400000, 0x22);
        protected_mode(m, 0x10020, X86_CR4_PAE);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x40001000), 0x21)), -1);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x40200000), 0x22)), -1);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, 0x80000000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, 0);
        /* §4.4.1: the PDPTEs are read when CR3 is loaded, and W in one is reserved. */
        test_poke64(m, 0x10030, 0x12000 | P);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, 0x80001000)), X86_PF);
        assert_int_equal(FAULT_OF(m, x86_set_cr3(m->cpu, 0x10020)), -1);
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read8(m->cpu, 0x80001000), 0x21)), -1);
        test_poke64(m, 0x10030, 0x12000 | P | W);
        assert_int_equal(FAULT_OF(m, x86_set_cr3(m->cpu, 0x10020)), X86_GP);
        /* Without EFER.NXE bit 63 is reserved. */
        test_poke64(m, 0x13000 + 16, DATA | P | NX);
        assert_int_equal(FAULT_OF(m, mmu_read8(m->cpu, 0x40002000)), X86_PF);
        assert_int_equal(m->cpu->fault.error_code, X86_PF_P | X86_PF_RSVD);
}

static void test_mmio(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PT, 0xfee00000 | P | W);
        assert_int_equal(FAULT_OF(m, mmu_write32(m->cpu, LINEAR + 0xb0, 7)), -1);
        assert_int_equal(m->mmio_gpa, 0xfee000b0);
        assert_int_equal(m->mmio_value, 7);
        assert_int_equal(m->mmio_bytes, 4);
        m->mmio_value = 0x1234;
        assert_int_equal(FAULT_OF(m, assert_int_equal(mmu_read16(m->cpu, LINEAR + 0x20), 0x1234)), -1);
        assert_null(mmu_rmw(m->cpu, LINEAR, 4));
}

static unsigned code_word(struct test_machine *m, uint64_t gpa)
{
        return atomic_load(guest_region_code(&m->mem.region[0], gpa));
}

static void test_code_pages(void **state)
{
        struct test_machine *m = *state;
        uint64_t run;
        uint32_t word;

        long_mode(m);
        test_poke64(m, PT, DATA | P | W);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR, 1)), -1);
        assert_non_null(mmu_rmw(m->cpu, LINEAR, 8));
        word = mmu_page_becomes_code(m->cpu, DATA + 0x123);
        assert_true(word & GUEST_CODE_PRESENT);
        assert_int_equal(code_word(m, DATA), word);
        assert_int_equal(FAULT_OF(m, assert_null(mmu_rmw(m->cpu, LINEAR, 8))), -1);
        assert_int_equal(FAULT_OF(m, assert_null(mmu_run(m->cpu, LINEAR, true, 64, &run))), -1);
        assert_int_equal(FAULT_OF(m, assert_non_null(mmu_run(m->cpu, LINEAR + 0xff0, false, 64, &run))), -1);
        assert_int_equal(run, 16);
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR, 2)), -1);
        assert_int_equal(code_word(m, DATA), word + GUEST_CODE_STEP);
        /* A page that is only written stops being code, with another generation. */
        for (volatile unsigned i = 0; i < 100; i++)
                assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR + i, 2)), -1);
        assert_false(code_word(m, DATA) & GUEST_CODE_PRESENT);
        assert_int_not_equal(mmu_page_becomes_code(m->cpu, DATA), word);
}

static void test_readonly_region(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PT, DATA | P | W);
        test_poke64(m, DATA, 5);
        m->mem.region[0].readonly = true;
        assert_int_equal(FAULT_OF(m, mmu_write8(m->cpu, LINEAR, 9)), -1);
        m->mem.region[0].readonly = false;
        assert_int_equal(test_peek64(m, DATA), 5);
}

static void test_alignment_check(void **state)
{
        struct test_machine *m = *state;

        long_mode(m);
        test_poke64(m, PT, DATA | P | W | U);
        m->cpu->s.cr0 |= X86_CR0_AM;
        set_cpl(m, 3);
        x86_set_flags_and_mode(m->cpu, m->cpu->s.rflags | X86_FLAG_AC);
        assert_int_equal(FAULT_OF(m, mmu_read32(m->cpu, LINEAR + 4)), -1);
        assert_int_equal(FAULT_OF(m, mmu_read32(m->cpu, LINEAR + 5)), X86_AC);
        assert_int_equal(FAULT_OF(m, mmu_write64(m->cpu, LINEAR + 4, 0)), X86_AC);
        set_cpl(m, 0);
        assert_int_equal(FAULT_OF(m, mmu_read32(m->cpu, LINEAR + 5)), -1);
}

#define MACHINE_TEST(f) cmocka_unit_test_setup_teardown(f, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                MACHINE_TEST(test_long_4k),      MACHINE_TEST(test_long_large),      MACHINE_TEST(test_error_codes),
                MACHINE_TEST(test_smep_smap),    MACHINE_TEST(test_crossing),        MACHINE_TEST(test_invalidation),
                MACHINE_TEST(test_pcid_user),    MACHINE_TEST(test_pcid_supervisor), MACHINE_TEST(test_pcid_code),
                MACHINE_TEST(test_jump_caches),
                MACHINE_TEST(test_32bit),        MACHINE_TEST(test_pae),             MACHINE_TEST(test_mmio),
                MACHINE_TEST(test_code_pages),   MACHINE_TEST(test_readonly_region), MACHINE_TEST(test_alignment_check),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
