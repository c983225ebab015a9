/*
 * Inside the software processor: its struct, memory access, faults and flags, for the files of this folder.
 *
 * Faults: x86_raise() does not return; it unwinds (longjmp) to the run loop, which delivers the exception with the state as it
 * was before the instruction. So a handler changes no architectural state before its last access that may fault. The address
 * of the faulting instruction is block base + cpu->insn->start; the run loop and every block exit keep cpu->insn current.
 */
#pragma once

#include <assert.h>
#include <setjmp.h>

#include "cpu/x86/insn.h"
#include "cpu/x86/stats.h"
#include "cpu/x86/tlb.h"
#include "cpu/x86/x86.h"

/*
 * mode_key: all that decoding and binding depend on. Blocks decoded under MODE_STEP hold one instruction each, and the run
 * loop calls x86_step_begin() and x86_step_end() around it (single step, breakpoints).
 */
enum x86_mode {
        MODE_64 = 1u << 0,        /* CS.L in long mode */
        MODE_CODE32 = 1u << 1,    /* CS.D */
        MODE_STACK32 = 1u << 2,   /* SS.B */
        MODE_USER = 1u << 3,      /* CPL 3 */
        MODE_PROTECTED = 1u << 4, /* CR0.PE and not EFLAGS.VM */
        MODE_V86 = 1u << 5,       /* EFLAGS.VM */
        MODE_LONG = 1u << 6,      /* EFER.LMA */
        MODE_FLAT = 1u << 7,      /* not 64-bit: CS, SS, DS, ES have base 0, limit 4 GiB and are readable (writable: SS, DS, ES) */
        MODE_CR0_EM = 1u << 8,
        MODE_CR0_TS = 1u << 9,
        MODE_CR0_MP = 1u << 10,
        MODE_OSFXSR = 1u << 11,
        MODE_OSXSAVE = 1u << 12,
        MODE_AVX = 1u << 13, /* XCR0 enables SSE and AVX state, and CR4.OSXSAVE is set */
        MODE_FSGSBASE = 1u << 15, /* CR4.FSGSBASE */
        MODE_STEP = 1u << 14, /* EFLAGS.TF, or DR7 enables a breakpoint */
};

/*
 * The status flags always live here, as the last result (sign-extended) and its carries; see flags.h. Other files use
 * x86_flags() and x86_set_flags().
 */
struct lazy_flags {
        uint64_t result, carry;
};

/* What translated code reaches at fixed places relative to GS (docs/translator.md). */
struct x86_jit {
        _Atomic uint32_t go;        /* 0: leave at the next check; cleared by whoever raises a request */
        uint32_t flags;             /* SETO in bits 0-7, LAHF in 8-15; without TFLAGS_REAL: the number of the note that makes them */
        const struct tblock *blocks; /* the translator's; and the code cache: for finding the code that makes the flags of a note */
        const uint8_t *data;
        uintptr_t code;
        uint64_t flags_of[2];       /* operands of recipes that are not in guest registers any more */
        uint64_t status;            /* the status flags, while a service hands them on (translator-service.c) */
        uint16_t host_flags;        /* the same of the host's flags when code was left for a service, and what it goes on with */
        uint32_t site;              /* the site being served, for translator_recover(); 0: none */
        uint8_t vectors_out;        /* the guest's vector registers and MXCSR are in s.fpu: 1; 0: in the host's registers */
        bool flags_pending;         /* the flags before the instruction at site are not in cpu->lazy yet */
        bool interpret;             /* the run loop interprets the block at s.rip, translated or not */
        bool plain;                 /* the next block is to be a plain one (TKEY_PLAIN); lock step only */
        uint64_t tlb_mask;          /* the bits of a linear address that index the TLB */
        uint64_t exec_mask;         /* and the exec TLB */
        uint64_t c_rsp;             /* where helpers run */
        uint64_t rsp;               /* the shadow stack while a service runs */
        uint64_t resume;            /* where a service goes on */
        _Atomic uint64_t inside;    /* translator's epoch when this processor last began to use blocks; 0: uses none */
        uint64_t seen;              /* the epoch its jump caches are from */
        struct x86_cpu *self;
        uint32_t host_mxcsr;        /* for C code */
        uint64_t shadow_base;       /* RSP with an empty shadow stack */
        uint64_t temp[4];           /* for emitted sequences */
        /* The access of the user's instruction at fault_rip that the kernel was called for last: likely to be done when it comes back there. */
        uint64_t fault_rip, fault_linear;
        uint32_t x87_out;           /* the guest's x87 state is in s.fpu: 1; 0: in the host's x87 unit (translator-x87.c) */
        uint32_t x87_op;            /* 0: out, the last x87 instruction: FOP, TX87_OP_VALID, its offset in the page x87_page */
        uint64_t x87_page;
        uint16_t x87_fcs;
        uint32_t jump_key;          /* what of translation_key() the jump caches are for */
        /* Counts for --cpu-stats. */
        uint64_t entered, tlb_misses, handlers, chains, jumps, asked, left, stale, flushes;
        void *shadow_map, *signal_stack; /* mappings */
        struct tdecoded *decoded;   /* instructions of sites, see translator-decode.c */
        size_t shadow_map_size;
        struct tjump jump[2][TJUMP_KERNEL_ENTRIES]; /* TLB_SUPERVISOR, TLB_SUPERVISOR_SMAP; TLB_USER's is the space's own */
        uint32_t generation, generations; /* of TLB_SUPERVISOR_SMAP's entries in second; the last that was given out */
        struct tjump_second second[TJUMP_SECOND_ENTRIES];
};

#define X86_PAUSES_YIELD 256u /* emit_pause() compares a byte */

/* What CPUID said; leaf 0 subleaf 0 with CR4 ~0, which no guest has, in those that are empty. */
struct cpuid_known {
        uint32_t leaf, subleaf;
        uint64_t cr4, xcr0;
        uint32_t reg[4];
};
#define CPUID_KNOWN 128u

struct x86_fault {
        uint8_t vector;
        bool has_error;
        bool breakpoint; /* #DB as a fault: an instruction breakpoint */
        uint32_t error_code;
};

/* In x86_cpu.requests beside enum x86_request; they do not end a halt. */
enum x86_internal_request {
        X86_REQUEST_PAUSE = 1u << 8, /* another processor wants to be alone: complex_service() */
};

struct x86_cpu {
        struct x86_state s; /* s.rflags' status bits are stale, see lazy; s.rip only valid outside blocks */
        struct lazy_flags lazy;

        const struct insn *insn;    /* running now */
        struct x86_block *block;    /* running now, NULL outside */
        uint8_t cpl;                /* always right */
        uint8_t tlb_mode;           /* for data accesses at this CPL, CR4.SMAP and EFLAGS.AC */
        bool alignment_check;       /* CPL 3 with CR0.AM and EFLAGS.AC */
        bool mode64;                /* EFER.LMA and CS.L */
        bool code32, stack32;       /* CS.D, SS.B */
        uint32_t mode_key;          /* all that decoding and binding depend on; blocks are found by (gpa, mode_key) */

        _Atomic uint32_t requests;  /* enum x86_request and enum x86_internal_request */
        uint32_t request_mask;      /* those the run loop could act on now: block chains stop for them */
        _Atomic uint8_t sipi_vector;
        _Atomic uint64_t instructions;

        /* tlb.h; used by tlb.c */
        uintptr_t window;           /* of the current space: GS base in translated code */
        struct x86_space *space;    /* its own part */
        unsigned space_index;
        struct tlb_set *data;       /* that of tlb_mode */
        struct tlb_set *set[TLB_MODES];
        struct tlb_exec_entry *exec[2]; /* supervisor, user */
        struct x86_space_info spaces[X86_SPACES];
        uint64_t space_switches;
        struct tlb_set shared, checked; /* TLB_SUPERVISOR_SMAP; TLB_CHECKED, of which only tags are used */
        struct tlb_used shared_used;
        struct tlb_locals shared_locals;
        struct tlb_exec_entry shared_exec[TLB_EXEC_ENTRIES]; /* supervisor */
        struct tlb_exec_used shared_exec_used;
        bool shared_exec_locals;    /* shared_exec, or the jump caches, may hold pages that are not global */
        struct tjump_fills jump_fills[2];
        bool pages_1g;              /* CPUID has them: mmu-fast.c */
        bool host_fsgsbase;         /* WRGSBASE may be used */
        uint64_t write_filter[512]; /* bits by page number: pages that may have a write translation in any set */
        uint32_t tlb_generation;    /* rises whenever a translation is dropped: for caches of linear addresses */
        uint64_t pdpte[4];          /* PAE paging: loaded with CR3 */
        uint64_t written_code_gpa;  /* the code page written last through the slow path, and how often in a row */
        unsigned written_code_times;

        struct x86_jit jit;
        struct translator *translator; /* NULL: everything is interpreted */
        struct x86_stats *stats;       /* NULL: not asked for */
        struct lock_step *lock_step;   /* NULL: translations are not compared with the interpreter */
        jmp_buf unwind;
        struct x86_fault fault;     /* what x86_raise() was called with */
        uint64_t step_dr6;          /* debug conditions met by the instruction that runs under MODE_STEP */
        bool step_trap;             /* EFLAGS.TF was set before it */
        struct cpuid_known cpuid[CPUID_KNOWN]; /* by leaf and subleaf */
        uint32_t pauses;            /* PAUSE instructions: one of X86_PAUSES_YIELD gives way to other threads of the host */
        bool has_others;            /* the machine has more processors than this one */
        bool alone;                 /* between complex_exclusive_begin() and _end() */
        _Atomic uint32_t in_guest;  /* complex.c: may hold translations in use */
        unsigned index;
        struct x86_complex *complex;
        struct guest_memory *mem;
        const struct x86_model *model;
        const struct x86_platform *platform;
        void *ctx;

        struct block_cache *blocks; /* block.c */
        struct paravirt *paravirt;  /* paravirt.c */
        _Atomic uint32_t wake;      /* futex of x86_cpu_wait() */
        uint64_t halted_at;         /* the host's TSC when the last halt began */
        uint64_t poll_ticks;        /* how long the next one polls */

        /* The window's own: cpu->space in C code. Nothing is behind it. */
        struct x86_space own __attribute__((aligned(4096)));
};

/*
 * What may use the host's vector registers or x87 unit, and is called from services of translated code, begins with this
 * (tests/vectors): the guest's are to be in s.fpu by then, by translator_vectors_out().
 */
static inline void x86_expect_vectors_out(const struct x86_cpu *cpu)
{
        assert(!cpu->translator || (cpu->jit.vectors_out && cpu->jit.x87_out));
}

static inline struct cpuid_known *cpuid_known_at(struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf)
{
        return &cpu->cpuid[(leaf ^ leaf >> 26 ^ subleaf * 37) % CPUID_KNOWN];
}

/* From one window to the next. */
#define X86_WINDOW_BYTES sizeof(struct x86_cpu)

/* Those of x86_cpu.requests that the run loop would act on as things are (engine.c). */
uint32_t x86_request_mask(const struct x86_cpu *cpu);

/* ---- faults (interrupt.c) ---- */

/* error_code is ignored for vectors that push none. */
_Noreturn void x86_raise(struct x86_cpu *cpu, enum x86_exception vector, uint32_t error_code);
_Noreturn void x86_raise_page_fault(struct x86_cpu *cpu, uint64_t linear, uint32_t error_code);
#define x86_gp0(cpu) x86_raise(cpu, X86_GP, 0)
#define x86_ud(cpu) x86_raise(cpu, X86_UD, 0)

/*
 * Delivers an exception or interrupt through the IDT (or IVT): contributory faults become #DF (SDM vol. 3A table 6-5).
 * -1 when that ends in a triple fault. software: INT n, INT3, INTO (DPL is checked, rip is that of the next instruction).
 */
int x86_deliver(struct x86_cpu *cpu, unsigned vector, bool software, bool has_error, uint32_t error_code);

/* After x86_raise() came back to the run loop with s.rip at the faulting instruction: delivers cpu->fault. -1: triple fault. */
int x86_deliver_fault(struct x86_cpu *cpu);

/*
 * Around each instruction under MODE_STEP, with s.rip at it (begin) and after it (end); both may x86_raise(X86_DB): begin for an
 * instruction breakpoint, with s.rip at the instruction; end for single step, data and I/O breakpoints, with s.rip after it.
 */
void x86_step_begin(struct x86_cpu *cpu);
void x86_step_end(struct x86_cpu *cpu);

/* Acts on INIT and SIPI: the state after them. The run loop clears the request bits. */
void x86_init_received(struct x86_cpu *cpu);
void x86_sipi_received(struct x86_cpu *cpu, uint8_t vector);

/* ---- memory (mmu.c); linear addresses ---- */

uint64_t mmu_read_slow(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes);
void mmu_write_slow(struct x86_cpu *cpu, uint64_t linear, uint64_t value, unsigned size_bytes);

/* The host address of a plain data access within one page, as things are, when the TLB knows it; else NULL. */
static _always_inline_ void *tlb_find(const struct x86_cpu *cpu, uint64_t linear, uint64_t size_bytes, bool write)
{
        return tlb_find_in(cpu->data, linear, size_bytes, write);
}

/* Where a mode's set and jump cache are, as offsets from GS base in translated code; not for TLB_CHECKED. */
static inline uint32_t tlb_set_offset(unsigned mode)
{
        static const uint32_t at[] = { offsetof(struct x86_cpu, own.supervisor), offsetof(struct x86_cpu, shared),
                                       offsetof(struct x86_cpu, own.user) };

        return at[mode];
}

static inline uint32_t tjump_offset(unsigned mode)
{
        static const uint32_t at[] = { offsetof(struct x86_cpu, jit.jump[0]), offsetof(struct x86_cpu, jit.jump[1]),
                                       offsetof(struct x86_cpu, own.jump) };

        return at[mode];
}

/* Chooses the set for data accesses. */
static inline void tlb_use_mode(struct x86_cpu *cpu, unsigned mode)
{
        cpu->tlb_mode = (uint8_t)mode;
        cpu->data = cpu->set[mode];
}

#define MMU_ACCESS(bits)                                                                              \
        static inline uint##bits##_t mmu_read##bits(struct x86_cpu *cpu, uint64_t linear)             \
        {                                                                                             \
                const uint##bits##_t *at = tlb_find(cpu, linear, bits / 8, false);                    \
                                                                                                      \
                if (likely(at))                                                                       \
                        return __atomic_load_n(at, __ATOMIC_RELAXED);                                 \
                return (uint##bits##_t)mmu_read_slow(cpu, linear, bits / 8);                          \
        }                                                                                             \
        static inline void mmu_write##bits(struct x86_cpu *cpu, uint64_t linear, uint##bits##_t value) \
        {                                                                                             \
                uint##bits##_t *at = tlb_find(cpu, linear, bits / 8, true);                           \
                                                                                                      \
                if (likely(at))                                                                       \
                        __atomic_store_n(at, value, __ATOMIC_RELAXED);                                \
                else                                                                                  \
                        mmu_write_slow(cpu, linear, value, bits / 8);                                 \
        }

MMU_ACCESS(8)
MMU_ACCESS(16)
MMU_ACCESS(32)
MMU_ACCESS(64)

/* Any length up to a page; faults before anything is changed. */
void mmu_read_bytes(struct x86_cpu *cpu, uint64_t linear, void *to, unsigned size_bytes);
void mmu_write_bytes(struct x86_cpu *cpu, uint64_t linear, const void *from, unsigned size_bytes);
/* Faults as a write of size_bytes would, without writing: for instructions with two stores. */
void mmu_probe_write(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes);

/*
 * When a handler needs two pointers (mmu_run, mmu_rmw), it gets the one it writes through last.
 *
 * For read-modify-write: a host pointer that may be written, translated for writing (so a read-only page faults as a write),
 * or NULL when the access crosses a page, is not plain RAM, or the page holds code: then read, compute, and write with
 * mmu_read and mmu_write, for LOCK between complex_exclusive_begin() and _end(). All faults were raised when it returns.
 */
void *mmu_rmw_slow(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes);

static inline void *mmu_rmw(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        void *at = tlb_find(cpu, linear, size_bytes, true);

        return likely(at) ? at : mmu_rmw_slow(cpu, linear, size_bytes);
}

/* As supervisor whatever the CPL: descriptor tables, TSS. */
void mmu_system_read(struct x86_cpu *cpu, uint64_t linear, void *to, unsigned size_bytes);
void mmu_system_write(struct x86_cpu *cpu, uint64_t linear, const void *from, unsigned size_bytes);

/* A run of up to max_bytes at linear that lies in one page of plain RAM: *run_bytes says how many; NULL when it does not. */
void *mmu_run(struct x86_cpu *cpu, uint64_t linear, bool write, uint64_t max_bytes, uint64_t *run_bytes);

/*
 * As mmu_fill(), without vector registers: false also when the slow way has to be taken, as for a fault.
 */
bool mmu_fill_fast(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write);
int mmu_user_fault_fast(const struct x86_cpu *cpu, uint64_t linear, bool write);
/*
 * Enters the translation for a data access into the TLB, or raises what the access would: whether tlb_find() has it now. Not when it
 * crosses a page, is not RAM, or writes a page with code.
 */
bool mmu_fill(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write);

/* For fetching code: guest physical address and host pointer of linear; raises #PF. host NULL when it is not RAM. */
uint64_t mmu_fetch_slow(struct x86_cpu *cpu, uint64_t linear, const uint8_t **host);

/* The translation for fetching that is there already, or NULL. */
static inline const struct tlb_exec_entry *mmu_fetch_cached(const struct x86_cpu *cpu, uint64_t linear)
{
        const struct tlb_exec_entry *e = &cpu->exec[cpu->cpl == 3][tlb_exec_index(linear)];

        return e->tag == (linear & ~(GUEST_PAGE_SIZE - 1)) ? e : NULL;
}

static inline uint64_t mmu_fetch(struct x86_cpu *cpu, uint64_t linear, const uint8_t **host)
{
        const struct tlb_exec_entry *e = &cpu->exec[cpu->cpl == 3][tlb_exec_index(linear)];
        uint64_t in_page = linear & (GUEST_PAGE_SIZE - 1);

        if (likely(e->tag == linear - in_page)) {
                *host = e->host + in_page;
                return e->gpa + in_page;
        }
        return mmu_fetch_slow(cpu, linear, host);
}

/*
 * Call before decoding bytes of the page at gpa (RAM): marks it as code, so that no processor of the machine writes it without
 * raising its generation, and returns the generation word as it is before the bytes are read. A block is valid as long as
 * *guest_region_code() equals that word. May let other processors run, and drop this one's translations.
 */
uint32_t mmu_page_becomes_code(struct x86_cpu *cpu, uint64_t gpa);

/*
 * block.c: a store of this processor changed size_bytes at gpa on a page that held code (its generation is raised already); when
 * they are in the running block, execution must leave it after this instruction.
 */
void block_code_written(struct x86_cpu *cpu, uint64_t gpa, unsigned size_bytes);

/* Physical memory as a processor reaches it for its own tables: RAM only, all ones elsewhere. */
uint64_t mmu_physical_read64(struct x86_cpu *cpu, uint64_t gpa);

/* Where linear is in guest physical memory with the rights of a supervisor read; -1 when it is not mapped. No side effects. */
int mmu_translate_debug(struct x86_cpu *cpu, uint64_t linear, uint64_t *gpa);

/* Loads the four PDPTE registers from CR3 (PAE paging, SDM vol. 3A §4.4.1); false when a reserved bit is set. */
bool mmu_load_pdpte(struct x86_cpu *cpu, uint64_t cr0, uint64_t cr3, uint64_t cr4);

/* ---- the soft TLB and its spaces (tlb.c) ---- */

/* Drops what is cached for the current PCID, but for global pages; or everything, also after a change of state behind its back. */
void mmu_flush(struct x86_cpu *cpu, bool global_too);
/* INVLPG: the page of linear, of the current PCID or global. */
void mmu_flush_page(struct x86_cpu *cpu, uint64_t linear);
/* INVPCID: what is not global of one PCID, of all; one page of one PCID. */
void mmu_flush_pcid(struct x86_cpu *cpu, unsigned pcid);
void mmu_flush_all_local(struct x86_cpu *cpu);
void mmu_flush_pcid_page(struct x86_cpu *cpu, unsigned pcid, uint64_t linear);
/* CR3 was loaded: its PCID's space becomes the current one; keep: with what is cached for it. */
void mmu_space_changed(struct x86_cpu *cpu, bool keep);

/* Where translated code of rip is, for tlb_mode; rip's page is in the exec TLB. */
void tjump_set(struct x86_cpu *cpu, uint64_t rip, const void *host);
/* The same in the jump cache, or put back into it from the second one; NULL: not known. And: not to be known any more. */
const struct tjump *tjump_find(struct x86_cpu *cpu, uint64_t rip);
void tjump_drop(struct x86_cpu *cpu, uint64_t rip);
/* Empties jump caches, and the shadow stack: those of the current space, the supervisor's, all. */
enum tjump_scope { TJUMPS_SPACE = 1u, TJUMPS_SHARED = 2u, TJUMPS_ALL = 4u };
void tjump_forget(struct x86_cpu *cpu, unsigned scope);

/* window.c: the memory of a processor, with its windows; all 0. */
int x86_cpu_map(struct x86_cpu **out, struct err *err) _must_check_;
void x86_cpu_unmap(struct x86_cpu *cpu);

/* ---- stop the world (complex.c) ---- */

/* x86_cpu_new() and _free(): a place in the complex, its memory, an empty TLB; -EEXIST, -ENOSPC. */
int complex_add(struct x86_cpu *cpu, struct err *err) _must_check_;
void complex_remove(struct x86_cpu *cpu);
struct translator *complex_translator(const struct x86_complex *complex);
struct guest_memory *complex_memory(const struct x86_complex *complex);

/*
 * A processor is "in the guest" while it may use translations it has looked up. x86_cpu_run() enters at its start and leaves
 * before it returns or sleeps; mmu.c and system instructions leave around calls into the platform. Entering waits until nobody
 * is alone, and acts on X86_REQUEST_FLUSH. complex_service() is for the block boundary, when requests hold FLUSH or PAUSE.
 */
void complex_enter(struct x86_cpu *cpu);
void complex_leave(struct x86_cpu *cpu);
void complex_service(struct x86_cpu *cpu);

/* Between them no other processor of the machine executes guest instructions: split locks, a page that becomes code. */
void complex_exclusive_begin(struct x86_cpu *cpu);
void complex_exclusive_end(struct x86_cpu *cpu);

/* ---- segments (segment.c) ---- */

/* Recomputes cpl, tlb_mode, mode64, code32, stack32, mode_key from the state: after loading CS, SS, CR0, CR3, CR4, EFER, EFLAGS.AC/VM. */
void x86_mode_changed(struct x86_cpu *cpu);

/* Loads a data or stack segment register with all checks (MOV Sreg, POP Sreg, LDS …). */
void x86_load_segment(struct x86_cpu *cpu, enum x86_seg_name seg, uint16_t selector);

/* The slow part of insn_linear(): limits, rights, canonical form; raises #GP or #SS. */
uint64_t segment_check(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size_bytes, bool write);

static inline uint64_t insn_offset(const struct x86_cpu *cpu, const struct insn *i)
{
        const char *file = (const char *)cpu->s.gpr;
        uint64_t offset = *(const uint64_t *)(file + i->base) + (*(const uint64_t *)(file + i->index) << i->shift) + (uint64_t)i->disp;

        if (i->asize == 4)
                return (uint32_t)offset;
        if (unlikely(i->asize == 2))
                return (uint16_t)offset;
        return offset;
}

/* The linear address of offset in seg for an access of size_bytes, checked. */
static inline uint64_t x86_linear(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size_bytes, bool write)
{
        if (likely(cpu->mode64)) {
                uint64_t linear = offset;

                if (seg >= X86_FS)
                        linear += cpu->s.seg[seg].base;
                /* Both ends canonical, 48 bits: the sum is at most 0xffff when bits 47-63 agree. */
                if (likely((((linear >> 47) + 1) & 0x1ffff) <= 1 && (((linear + size_bytes - 1) >> 47) == (linear >> 47))))
                        return linear;
        }
        return segment_check(cpu, seg, offset, size_bytes, write);
}

/* The linear address of the instruction's memory operand. */
static inline uint64_t insn_linear(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes, bool write)
{
        return x86_linear(cpu, i->seg, insn_offset(cpu, i), size_bytes, write);
}

/* Whether the memory operand is aligned: instructions that want it so look at this before the canonical form and limits. */
static inline bool insn_aligned(const struct x86_cpu *cpu, const struct insn *i, unsigned alignment)
{
        uint64_t base = cpu->mode64 && i->seg < X86_FS ? 0 : cpu->s.seg[i->seg].base;

        return !((insn_offset(cpu, i) + base) & (alignment - 1));
}

/* ---- registers ---- */

static inline void *gpr_at(struct x86_cpu *cpu, uint8_t byte_offset)
{
        return (char *)cpu->s.gpr + byte_offset;
}

/* The block's linear base + offset, cut to the width of IP in this mode. */
static inline uint64_t insn_rip(const struct x86_cpu *cpu, uint64_t offset)
{
        uint64_t rip = cpu->s.gpr[GPR_BLOCK] + offset;

        return cpu->mode64 ? rip : (uint32_t)rip;
}

/* EFLAGS with the lazy part worked out (flags.c), and the other way: sets all of them. */
uint64_t x86_flags(struct x86_cpu *cpu);
void x86_set_flags(struct x86_cpu *cpu, uint64_t rflags);

/* As x86_set_flags(), and x86_mode_changed() when TF, VM or AC changed. */
void x86_set_flags_and_mode(struct x86_cpu *cpu, uint64_t rflags);

/* A CPUID feature that binding depends on; see cpuid.h for the names. */
bool x86_has(const struct x86_cpu *cpu, unsigned feature);
