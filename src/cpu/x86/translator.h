/*
 * The translator: host code for guest blocks, shared by all processors of a machine. docs/translator.md explains it; this header
 * is what its files agree on.
 *
 *   translator.c            blocks: finding, entering, chaining, invalidating; the services that thunks call
 *   translator-x87.c        the x87 state between s.fpu and the host's x87 unit
 *   translator-thunks.c     the fixed host code between C and translated blocks
 *   translate.c             one guest block: lifting, the order of things, sites
 *   translate-flags.c       where the guest's flags are, and bringing them back
 *   translate-memory.c      the inlined TLB
 *   translate-rewrite.c     a guest instruction with other registers and another memory operand
 *   translate-integer.c, -branch.c, -stack.c, -string.c, -simd.c, -x87.c, -system.c   what is emitted for each instruction
 */
#pragma once

#include "cpu/x86/cpu.h"
#include "cpu/x86/translator-fast.h"
#include "jit/code-cache.h"
#include "jit/x86-asm.h"

struct translator; /* one for a machine (x86_complex) */

/*
 * What a translation depends on beside the bytes: the low bits are enum x86_mode, the upper ones the TLB used for data.
 * Only 64-bit mode without MODE_STEP and with a tlb_mode other than TLB_CHECKED is translated.
 */
static inline uint32_t translation_key(const struct x86_cpu *cpu)
{
        return cpu->mode_key | (uint32_t)cpu->tlb_mode << 28;
}

/* In a block's key: it is the one instruction that begins at gpa and goes on in the next page. */
#define TKEY_CROSSING (1u << 31)
/* It is entered where a group's look-up failed, and has no groups (translate-group.c). What it leads to are blocks without this. */
#define TKEY_PLAIN (1u << 27)

enum tsite_kind {
        TSITE_MEMORY,  /* an access missed the TLB: fill and retry, or do the instruction by its handler */
        TSITE_GROUP,   /* the look-up of a group failed; insn is its first instruction. Fill and retry, or on in a plain block, which may be linked */
        TSITE_HANDLER, /* the interpreter's handler does this instruction */
        TSITE_CHAIN,   /* a direct branch that is not linked yet; target is an offset in the page (may be outside of it) */
        TSITE_JUMP,    /* the jump cache missed; the linear target is in RBP; insn is the branch, already done (RSP changed, pushed) */
        TSITE_GO,      /* requests: out to the run loop at `insn`'s start, or at `target` */
        TSITE_FAULT,   /* no code of its own: a native instruction that may raise a signal (DIV, aligned SSE, SIMD exceptions) */
        TSITE_LEAVE,   /* TKEY_CROSSING: the second page is not as it was; translated anew, or interpreted */
        TSITE_FLAGS,   /* no edge: what jit.flags names, see retry */
        TSITE_RETURN,  /* no edge: where a host RET comes back to within a block is patch, which becomes a jump to STALE when the block dies */
        TSITE_X87,     /* the x87 state is to be in the host's x87 unit; insn has not begun; on at retry, or the run loop interprets it */
};

/* Where the flags are at a site (translate-flags.c). */
enum tflags { TFLAGS_HOST, TFLAGS_SAVED, TFLAGS_RECIPE };

/* How to make flags from what is still in guest registers: op is what to do with a and b. */
struct tflags_recipe {
        uint8_t op;         /* enum trecipe_op of translate-flags.c */
        uint8_t size_bytes; /* 1, 2, 4, 8 */
        uint8_t a, b;       /* byte offsets into s.gpr[] as in struct insn, or TRECIPE_SLOT * 8 and on; 0xff: none (imm is b) */
        int32_t imm;
        int32_t delta;      /* to be added to a's register */
};

/*
 * A place in translated code that leads out of it. An edge is `mov ecx, <site number>; jmp thunk`. Sites live in one array of the
 * translator, taken by blocks in runs.
 */
struct tsite {
        uint8_t kind;        /* enum tsite_kind */
        uint8_t flags;       /* enum tflags, before the instruction */
        uint8_t size_bytes;  /* of the access, TSITE_MEMORY. TSITE_JUMP: to add to RSP once the target is known canonical (RET) */
        bool write, stack;   /* TSITE_MEMORY: stack: at RSP (POP, RET) or RSP - size (PUSH, CALL), not insn's operand */
        bool backward;       /* TSITE_CHAIN */
        /*
         * TSITE_CHAIN: jit.flags has the flags, too, by a recipe from the registers in passes_by (none: saved); not_host: and the host's
         * flags are not they. instead: the site to be linked rather than this one, when it can be; 0: none.
         */
        bool passes, not_host;
        uint16_t passes_by;
        uint16_t below, span; /* TSITE_GROUP: how far below insn's own access its accesses begin, and their size; insn's is size_bytes, write, stack */
        bool span_write;
        uint32_t instead;
        bool x87;            /* code at retry and next wants the x87 state in the host's x87 unit */
        uint32_t x87_op;     /* for jit.x87_op; 0: what is there counts */
        fast_fn fast;        /* TSITE_HANDLER: tried before insn's own handler; NULL: none */
        struct tflags_recipe recipe;
        int32_t target;      /* guest offset in the page */
        uint32_t retry;      /* host code, as an offset in the code cache: TSITE_MEMORY; what jit.flags may name: makes the flags, and RET */
        /*
         * TSITE_MEMORY, TSITE_HANDLER: host code behind the instruction, entered with the host's flags made from cpu->lazy; 0: none, the
         * run loop finds it. TSITE_CHAIN: the edge, what the rel32 leads to while it is not linked.
         */
        uint32_t next;
        uint32_t patch;      /* TSITE_CHAIN: where the rel32 is. TSITE_FAULT: host code that may fault, first byte */
        uint32_t incoming;   /* TSITE_CHAIN, linked: the next site that is linked to the same block; translator.c's */
        struct tblock *linked; /* TSITE_CHAIN: the block it is linked to; translator.c's */
        /*
         * Followed by an end mark, translator_end(); NULL for CHAIN and GO at a target, LEAVE, and JUMP when the target needs no check. A
         * TSITE_JUMP with it: a target that is not canonical is #GP at insn, where nothing was changed yet.
         */
        const struct insn *insn;
        struct tblock *block;
};

/*
 * The flags that a block is entered with: of no use; of use only to faults and the like, and to whoever comes after the block, which take
 * them from jit.flags; wanted in the host's flags.
 */
enum tentry { TENTRY_DEAD, TENTRY_FAULTS, TENTRY_HOST };

/* In jit.flags: LAHF sets the bit always. */
#define TFLAGS_REAL 0x200u
#define TFLAGS_SITE 10

/* Where an instruction with TKEY_CROSSING goes on. Its block begins with a look whether that is still so. */
struct tsecond {
        uint64_t gpa; /* of the page */
        const _Atomic uint32_t *code;
        uint32_t generation;
};

/* One translated block. Under the translator's lock but for what is marked (r): read by any processor without it. */
struct tblock {
        struct tblock *next;      /* (r) in the hash chain */
        struct tblock *page_next; /* of those whose page has the same hash */
        uint64_t gpa;             /* of the first byte */
        uint32_t key;             /* translation_key() */
        uint16_t size_bytes;      /* guest; ends in another page only with TKEY_CROSSING */
        uint16_t insns;
        uint32_t host;            /* (r) entry, an offset in the code cache; 16-byte aligned, see TBLOCK_JUMP */
        uint32_t host_end;
        /*
         * What becomes of the flags at the entry; entries for links: for who has them in the host's flags, and for who has them in
         * jit.flags; and registers that change before they are dead.
         */
        uint8_t entry;            /* enum tentry */
        uint16_t fast_changes;
        uint32_t with_host, fast;
        uint32_t site_first, sites;
        uint32_t incoming;        /* first site that is linked to this block; 0: none */
        bool dead;                /* (r) */
        struct insn *insn;        /* two for each that a site needs: the instruction and an end mark */
        uint8_t *bytes;           /* the guest's, as translated */
        struct tsecond second;
};

/*
 * A block has two entries that may be known beyond its life, each of which begins with 5 bytes that may become a jump: at host, for
 * translator_enter() and services: GPR_BLOCK is right, the flags are the host's (and in jit.flags as well); at host + TBLOCK_JUMP, for the
 * jump cache: the linear address is in RBP, GPR_BLOCK is set from it, the flags are in jit.flags. Links go to others, see above.
 */
#define TBLOCK_JUMP 16

/* What translate_block() is given: a copy of the guest's bytes from gpa to the end of its page at most (TKEY_CROSSING: of one instruction). */
struct tsource {
        uint64_t gpa;
        const uint8_t *bytes;
        size_t size_bytes;
        uint32_t key;
        struct tsecond second;
};

/*
 * Translates one block into as_, whose buffer is already in the code cache at block->host (set by the caller, as gpa and key are;
 * as_->used is 0), and fills the rest of block (sites, insns taken from the translator; bytes is the caller's). -ENOTSUP: the first
 * instruction cannot be part of a translated block (it crosses the page, or leaves 64-bit mode in ways that only the interpreter
 * knows). -ENOSPC: buffer, sites or insns are used up; the caller makes room and tries again.
 */
int translate_block(struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, struct x86_asm *as_, struct tblock *block);

/* ---- the translator (translator.c) ---- */

int translator_new(struct x86_complex *complex, const struct translator_options *options, struct translator **out, struct err *err) _must_check_;
void translator_free(struct translator *tr);
/* tr may be NULL. */
bool translator_lock_step(const struct translator *tr);
bool translator_wants_stats(const struct translator *tr);
/* x86_cpu_new() and _free(): what a processor needs; nothing without a translator. */
int translator_cpu_new(struct x86_cpu *cpu, struct err *err) _must_check_;
void translator_cpu_free(struct x86_cpu *cpu);
/* The calling thread runs cpu from now on: GS base, and the stack that signal handlers run on. */
void translator_thread_begin(struct x86_cpu *cpu);

/* The block at s.rip when it is translated or hot enough to become so now, else NULL: interpret. May raise what fetching raises. */
const struct tblock *translator_find(struct x86_cpu *cpu);
/* Runs translated code from block on until something needs the run loop; s.rip and all other state are in place then. */
void translator_enter(struct x86_cpu *cpu, const struct tblock *block);
/* Every translation that touches these bytes is stale. Any thread; a processor that is in it leaves it at its next block. */
void translator_written(struct translator *tr, uint64_t gpa, uint64_t size_bytes);
/* Makes s.rip and the flags those before the instruction that faulted in translated code; the run loop, after x86_raise(). */
void translator_recover(struct x86_cpu *cpu);

/* For translate_block(): thunks by what they do, sites and insns. */
enum tthunk {
        TTHUNK_ENTER, TTHUNK_MEMORY, TTHUNK_HANDLER, TTHUNK_CHAIN, TTHUNK_JUMP, TTHUNK_GO, TTHUNK_LEAVE, TTHUNK_STALE, TTHUNK_X87,
        TTHUNK_FLAGS, TTHUNK_ARRIVE, TTHUNK_SYSCALL, TTHUNK_SYSRET, TTHUNKS,
};
uint32_t translator_thunk(const struct translator *tr, enum tthunk thunk); /* offset in the code cache */
struct tsite *translator_site(struct translator *tr, struct tblock *block, uint32_t *number); /* NULL: used up */
struct tsite *translator_site_at(struct translator *tr, uint32_t number);
insn_fn translator_end(void); /* of an end mark */
/* Whether there is a block. */
bool translator_known(const struct translator *tr, uint64_t gpa, uint32_t key);
struct insn *translator_insn(struct translator *tr, struct tblock *block, const struct insn *insn); /* a copy with its end mark */

/* As registers in a recipe: jit.flags_of[0] and [1]. */
#define TRECIPE_SLOT 24

/* The status flags of EFLAGS before site whose flags are a TFLAGS_RECIPE, from the guest's registers (translate-flags.c). */
uint64_t translator_flags_at(const struct x86_cpu *cpu, const struct tsite *site);

/* In jit.x87_op beside FOP, whose 11 bits are the lowest: the place of the instruction's offset in its page. */
#define TX87_OP_VALID 0x8000u
#define TX87_OP_START 16

/* ---- registers ---- */

#define TREG_NONE 0xff
/* The host register that holds a guest register, TREG_NONE for those in memory. */
static inline uint8_t treg_of(unsigned guest)
{
        static const uint8_t host[16] = { 0, 11, 2, 3, 10, 15, 6, 7, 8, 9, TREG_NONE, TREG_NONE, 12, 13, 14, TREG_NONE };

        return host[guest & 15];
}
#define TREG_SCRATCH 1  /* RCX */
#define TREG_ADDRESS 5  /* RBP */
