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
        TSITE_GROUP,   /* the look-up of a group failed, at its first instruction. Fill and retry, or on in a plain block, which may be linked */
        TSITE_HANDLER, /* the interpreter's handler does this instruction */
        TSITE_CHAIN,   /* a direct branch that is not linked yet; target is an offset in the page */
        TSITE_JUMP,    /* the jump cache missed; the linear target is in RBP; the branch is already done (RSP changed, pushed) */
        TSITE_GO,      /* requests: out to the run loop */
        TSITE_FAULT,   /* no code of its own: a native instruction that may raise a signal (DIV, aligned SSE, SIMD exceptions) */
        TSITE_LEAVE,   /* TKEY_CROSSING: the second page is not as it was; translated anew, or interpreted */
        TSITE_RETURN,  /* no edge: where a host RET comes back to within a block is patch, which becomes a jump to STALE when the block dies */
        TSITE_X87,     /* the x87 state is to be in the host's x87 unit; on at retry, or the run loop interprets the instruction */
};

/* Where the flags are at a site (translate-flags.c). */
enum tflags { TFLAGS_HOST, TFLAGS_SAVED, TFLAGS_RECIPE };

/* How to make flags from what is still in guest registers: op is what to do with a and b. */
struct tflags_recipe {
        uint8_t op;         /* enum trecipe_op of translate-flags.c */
        uint8_t size_bytes; /* 1, 2, 4, 8 */
        uint8_t a, b;       /* byte offsets into s.gpr[] as in struct insn, or TRECIPE_SLOT * 8 and on; 0xff: none (imm is b) */
        int32_t imm;
        int16_t delta;      /* to be added to a's register */
        uint16_t unused;
};

/*
 * A place in translated code that leads out of it. An edge is `mov ecx, <site number>; jmp thunk`. Offsets of host code count from the
 * block's. This is what emission writes and services read; in between a site is packed (translator-sites.h).
 */
struct tsite {
        uint8_t kind;            /* enum tsite_kind */
        /* enum tflags, before the instruction. CHAIN: where jit.flags has them, too: HOST: nowhere; RECIPE: by one from registers. */
        uint8_t flags;
        uint8_t note;            /* the block's note that has what more there is to say of the flags and of x87; 0: none */
        uint8_t size_bytes;      /* of the access, MEMORY and GROUP (0: for the handler). JUMP: to add to RSP once the target is known canonical (RET) */
        uint16_t at;             /* the instruction, or the target of CHAIN, GO, LEAVE: an offset in the page */
        uint16_t retry;          /* MEMORY, GROUP, X87: where to try again */
        /*
         * MEMORY, HANDLER: behind the instruction, entered with the host's flags made from cpu->lazy; 0: none, the run loop finds it.
         * CHAIN: the edge, what the rel32 leads to while it is not linked.
         */
        uint16_t next;
        uint16_t patch;          /* CHAIN, GROUP: where the rel32 is. FAULT: host code that may fault, first byte. RETURN: see there */
        uint16_t instead;        /* CHAIN that has the flags nowhere else: the site to be linked rather than this one, when it can be; 0: none */
        uint32_t incoming;       /* CHAIN, GROUP: the next site that is linked to the same block, when the block is made */
        uint16_t below, span;    /* GROUP: how far below the access its accesses begin, and their size */
        bool span_write;
        bool not_host;           /* CHAIN: the host's flags are not the guest's */
        bool x87;                /* code at retry and next wants the x87 state in the host's x87 unit */
        bool write;              /* MEMORY, GROUP */
        bool stack;              /* MEMORY, GROUP: at RSP (POP, RET) or RSP - size (PUSH, CALL), not at the instruction's operand */
        bool checked;            /* JUMP: a target that is not canonical is #GP at the instruction, where nothing was changed yet */
};

/* A site's number is that of its block and, from 1 on, its own there; so is that of a note. 0: none. */
#define TNUMBER_BITS 10
#define TNUMBER_OWN ((1u << TNUMBER_BITS) - 1)
#define TNOTES_MAX 255 /* of a block */

/*
 * A recipe, and the last x87 instruction before, for jit.x87_op: what sites of a block have in common, mostly. Or, when jit.flags may name
 * it, host code that makes the recipe's flags and returns.
 */
struct tnote {
        uint32_t what;           /* the recipe, but for: */
        int32_t imm;
        union {
                uint32_t maker;  /* an offset in the code cache */
                uint32_t x87_op; /* 0: what is there counts */
        };
};

/*
 * The flags that a block is entered with: of no use; of use only to faults and the like, and to whoever comes after the block, which take
 * them from jit.flags; wanted in the host's flags.
 */
enum tentry { TENTRY_DEAD, TENTRY_FAULTS, TENTRY_HOST };

/* In jit.flags: LAHF sets the bit always, the number of a note does not have it. */
#define TFLAGS_REAL 0x200u

/* Where an instruction with TKEY_CROSSING goes on. Its block begins with a look whether that is still so. */
struct tsecond {
        uint64_t gpa; /* of the page */
        const _Atomic uint32_t *code;
        uint32_t generation;
};

/* One translated block. Under the translator's lock but for what is marked (r): read by any processor without it. */
struct tblock {
        uint64_t gpa;             /* of the first byte */
        uint32_t next;            /* (r) in the hash chain; the number of a block, 0: none */
        uint32_t page_next;       /* of those whose page has the same hash */
        uint32_t key;             /* translation_key() */
        uint32_t host;            /* (r) entry, an offset in the code cache; 16-byte aligned, see TBLOCK_JUMP */
        uint32_t data;            /* its notes, an offset in translator.data; sites before them, bytes behind */
        uint32_t incoming;        /* first site that is linked to this block; 0: none */
        uint16_t host_bytes;
        uint16_t size_bytes;      /* guest; ends in another page only with TKEY_CROSSING */
        /*
         * What becomes of the flags at the entry; entries for links, as offsets from host: for who has them in the host's flags, and for who
         * has them in jit.flags; and registers that change before they are dead.
         */
        uint16_t with_host, fast;
        uint16_t fast_changes;
        uint16_t sites;           /* units of packed ones */
        uint8_t entry;            /* enum tentry */
        uint8_t notes, insns;
        bool dead;                /* (r) */
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

/* Where a block is made: one for a translator. */
struct translation;
struct translation *translation_new(void);
void translation_free(struct translation *t);

/*
 * Translates one block, of that number, into as_, whose buffer is already in the code cache at block->host (set by the caller, as gpa and
 * key are; as_->used is 0), and fills the rest of block but data. Its sites and notes stay in t until the next one.
 * -ENOTSUP: the first instruction cannot be part of a translated block (it crosses the page, or leaves 64-bit mode in ways that only the
 * interpreter knows).
 */
int translate_block(struct translation *t, struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, uint32_t number,
                    struct x86_asm *as_, struct tblock *block);
/* Packs the sites into block->sites units. */
void translation_pack(const struct translation *t, uint32_t *to);
const struct tnote *translation_notes(const struct translation *t);

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

/* For translate_block(): thunks by what they do. */
enum tthunk {
        TTHUNK_ENTER, TTHUNK_MEMORY, TTHUNK_HANDLER, TTHUNK_CHAIN, TTHUNK_JUMP, TTHUNK_GO, TTHUNK_LEAVE, TTHUNK_STALE, TTHUNK_X87,
        TTHUNK_FLAGS, TTHUNK_ARRIVE, TTHUNK_SYSCALL, TTHUNK_SYSRET, TTHUNKS,
};
uint32_t translator_thunk(const struct translator *tr, enum tthunk thunk); /* offset in the code cache */
/* Whether there is a block. */
bool translator_known(const struct translator *tr, uint64_t gpa, uint32_t key);

/* As registers in a recipe: jit.flags_of[0] and [1]. */
#define TRECIPE_SLOT 24

/* The status flags of EFLAGS by a recipe, from the guest's registers; which these are, as a mask (translate-flags.c). */
uint64_t translator_flags_by(const struct x86_cpu *cpu, const struct tflags_recipe *recipe);
uint16_t translator_flags_registers(const struct tflags_recipe *recipe);

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
