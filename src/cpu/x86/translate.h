/*
 * What the files that emit code share: the block under translation, its instructions, where the flags are.
 *
 * A block is made in three passes: lift (decode, and decide what each instruction becomes), flags liveness backwards, emission
 * forwards. An instruction's decision never changes between lifting and emission, because liveness relies on it: one that may
 * leave the block or fault needs all flags in some form.
 *
 * Code at the edges of a block comes behind the block's own. It is collected while the block is emitted.
 */
#pragma once

#include "cpu/x86/translator-sites.h"

#define TRANSLATE_INSNS_MAX 48
#define TRANSLATE_EDGES_MAX 256

/* Host code that an instruction becomes. Chosen by the classifiers below, in translate.c's table order. */
struct translation;
struct tinsn;
typedef void (*temit_fn)(struct translation *t, struct tinsn *i);

enum tx87 { TX87_NO, TX87_SILENT, TX87_COUNTS };
enum taccess { TACCESS_NONE, TACCESS_OPERAND, TACCESS_PUSH, TACCESS_POP };

/* An instruction as the host executes it (translate-rewrite.c). */
enum tfield { TFIELD_REG, TFIELD_RM, TFIELD_VVVV, TFIELDS };

/* What becomes of one operand that is a general register. */
struct tplaced {
        uint8_t guest, host;
        bool used, slot;      /* slot: the rm operand is gs:[its slot] */
        bool load, store;     /* host is a scratch register */
};

struct trewrite {
        struct asm_insn insn;
        struct tplaced field[TFIELDS];
        bool count;           /* RCX is wanted as an implicit operand */
        bool fold;            /* the memory operand becomes [rbp] */
        bool memory, write;
        unsigned size_bytes;  /* of the memory operand */
};

struct tinsn {
        struct insn insn;
        ZydisDecodedInstruction z;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        struct trewrite rewrite; /* for emit_rewritten */
        temit_fn emit;       /* emit_handler when nobody knows better */
        uint16_t reads;      /* status flags, as EFLAGS has them */
        uint16_t writes;     /* those that it defines whatever happens */
        uint16_t changes;    /* those that it may change */
        uint16_t written;    /* general registers that it writes, as a mask */
        uint16_t needed;     /* of the flags before it: read, or seen at a site, before they are written */
        uint16_t needed_after;
        bool site;           /* it may leave translated code before it is done: all flags must be known then */
        bool ends;           /* nothing of the block comes behind it */
        bool faults;         /* the host's instruction may raise a signal: TSITE_FAULT */
        bool miss_to_handler; /* something comes before the page fault, as #GP for an operand that is not aligned */
        bool followed;       /* a direct jump forward in the page may be followed */
        bool goes_on;        /* a call need not end the block */
        uint8_t x87;         /* enum tx87: it needs the x87 state in the host's x87 unit; counts: FOP and FIP are its own behind it */
        bool x87_check;      /* before it that is made so */
        bool x87_in;         /* that is so, and what comes behind it relies on it */
        uint32_t x87_op;     /* what its sites have */
        uint32_t x87_store;  /* to be stored before it; 0: nothing */
        bool keeps_address;  /* no access, and its code leaves RBP alone */
        bool hands_on;       /* a branch that takes the flags along in jit.flags */
        uint8_t access;      /* enum taccess: what a group may take; CALL and RET too */
        int32_t moved;       /* in a group: how far its registers have moved since its first instruction */
        struct tgroup *group;
};

/* Places of the guest's flags; several may hold them at once. */
enum tplace { TPLACE_HOST = 1, TPLACE_SAVED = 2, TPLACE_RECIPE = 4 };

/* Accesses that share a look-up (translate-group.c). */
struct tgroup {
        uint8_t first, last;       /* instructions */
        uint8_t base, index, shift; /* guest registers, GPR_BLOCK, GPR_ZERO */
        bool write;
        int32_t low, high;         /* what is accessed, from the registers as they are at first */
};

struct tedge {
        struct asm_label label;
        uint32_t site;       /* its number */
        enum tthunk thunk;
        bool chain;          /* its site's next is where the edge is */
};

/*
 * What is emitted behind the block: a call's way to a target that it is not linked to, or that is not in the jump cache; the way to the code
 * that makes flags, and back; such code; the edge of a group whose look-up failed.
 */
enum tlate_kind { TLATE_CALL, TLATE_CALL_MISS, TLATE_FLAGS, TLATE_MAKER, TLATE_GROUP };
struct tlate {
        uint8_t kind;        /* enum tlate_kind */
        bool real, backward;
        struct asm_label from, back;
        uint32_t number;     /* of a site; TLATE_MAKER: of the block's note */
        uint32_t target;
        unsigned places;
        struct tflags_recipe recipe;
};
#define TRANSLATE_LATES_MAX 256
#define TRANSLATE_SITES_MAX 800

struct translation {
        struct translator *tr;
        struct x86_cpu *cpu;
        struct x86_asm *a;
        struct tblock *block;
        const struct tsource *source;
        unsigned tlb_mode;
        bool fast_pext;
        bool failed;         /* out of sites, notes or edges */
        unsigned places;     /* enum tplace */
        bool real;           /* TPLACE_SAVED: as LAHF and SETO made them, not by a recipe of who knows what block */
        struct tflags_recipe recipe, made;
        unsigned last_note;  /* of a site; and the last that jit.flags may name; 0: none */
        unsigned named;
        bool slotted;        /* the instruction that is emitted stored something for a recipe: not when its handler does it */
        bool has_made;       /* made is what the instruction that is emitted leaves behind */
        unsigned count, edges, lates, sites, notes;
        unsigned units;      /* of sites */
        unsigned most;       /* instructions */
        uint32_t number;     /* the block's, as that of its sites */
        bool calls;          /* a call is among them, behind which the block goes on */
        uint32_t x87_last;   /* to be stored where execution runs off the end */
        unsigned groups;
        bool may_loop;             /* a branch to the block's start may lead into a second copy (emit_loop_head()) */
        bool loops, in_loop;       /* one does; that copy is being emitted */
        struct asm_label loop;     /* its start, where loop_recipe holds */
        struct tflags_recipe loop_recipe;
        bool member;               /* the operand of the last look-up is operand, else [rcx + rbp] */
        struct asm_mem operand;
        uint32_t end_target; /* where execution goes on when the last instruction does not say */
        struct tsite no_site;      /* what failed requests get */
        struct asm_label nowhere;
        struct tinsn insn[TRANSLATE_INSNS_MAX];
        struct tgroup group[TRANSLATE_INSNS_MAX / 2];
        struct tedge edge[TRANSLATE_EDGES_MAX];
        struct tlate late[TRANSLATE_LATES_MAX];
        struct tsite site[TRANSLATE_SITES_MAX];
        uint16_t site_at[TNUMBER_OWN + 1]; /* by number: which */
        struct tnote note[TNOTES_MAX];
};

#define TFLAGS_ALL ((uint16_t)X86_FLAGS_STATUS)

/* ---- translate.c: sites and edges ---- */

/* A site with its flags state as it is now, and its number for the edge. When there is none: one that nobody looks at, and failed is set. */
struct tsite *translate_site(struct translation *t, enum tsite_kind kind, struct tinsn *i, uint32_t *number);
/* One that was made before. */
struct tsite *translate_site_at(struct translation *t, uint32_t number);
/* A new note; 0, and failed is set: there is none. */
unsigned translate_note(struct translation *t, const struct tflags_recipe *recipe, uint32_t x87_op);
/* An edge for a site, to be emitted behind the block. Jump to its label. */
struct asm_label *translate_edge(struct translation *t, struct tsite *site, uint32_t number, enum tthunk thunk);
void translate_edge_here(struct translation *t, uint32_t number, enum tthunk thunk);
/* The next byte's offset in the block. */
uint16_t translate_here(const struct translation *t);
void emit_handler(struct translation *t, struct tinsn *i);
/* With the flags as they are now. */
struct tlate *translate_late(struct translation *t, enum tlate_kind kind, uint32_t number);

/* ---- translate-flags.c ---- */

void flags_classify(struct tinsn *i);
static inline bool flags_guest_written(const struct tinsn *i, unsigned guest)
{
        return guest < 16 && i->written >> guest & 1;
}
/* The host's flags are about to be destroyed. RCX and RBP must be free. */
void flags_keep(struct translation *t);
/* The host's flags are to be the guest's. RCX must be free. */
void flags_to_host(struct translation *t);
/* Whether i, emitted natively, must find the guest's flags in the host's. */
bool flags_wanted(const struct translation *t, const struct tinsn *i);
/* After an instruction emitted natively (with the host's flags changed as the guest's), or one that leaves the host's flags alone. */
void flags_after(struct translation *t, const struct tinsn *i);
/* Before i, once its look-up is done and before it changes anything: what a recipe needs later and i destroys. Takes no register. */
void flags_before(struct translation *t, const struct tinsn *i);
/* What makes a recipe for the flags that i leaves behind, where its registers are not enough. */
void flags_keep_operand(struct translation *t, const struct tinsn *i);
bool flags_want_operand(struct translation *t, const struct tinsn *i, unsigned *slot);
struct asm_mem flags_operand_slot(unsigned slot);
/* The flags are to be in jit.flags, in some form, and the host's are free then. RCX must be free. */
void flags_to_slot(struct translation *t);
/* They are there, from elsewhere. */
void flags_from_elsewhere(struct translation *t);
/* Code that makes the flags of a site, for whoever finds it named in jit.flags; and the way to such code. */
void flags_emit_maker(struct translation *t, const struct tlate *late);
void flags_emit_call(struct translation *t, struct tlate *late);
/* A handler has run: all flags are everywhere. */
void flags_after_handler(struct translation *t);
/* Decides block->entry, once it is known what needs flags. */
void flags_plan_entry(struct translation *t);
/* A CHAIN: whoever goes on may take the flags from jit.flags, with a store of a note's number there or without. */
void flags_pass(struct translation *t, struct tsite *site);
/*
 * For code that is not the instruction's own: the guest register is about to change, and nothing else; RSP is about to move by bytes.
 * RCX must be free.
 */
void flags_register_changes(struct translation *t, const struct tinsn *i, unsigned guest);
void flags_stack_moves(struct translation *t, const struct tinsn *i, int32_t bytes);

/* ---- translate-memory.c ---- */

/* Whether the operand's address can be computed in emitted code. */
bool memory_possible(const struct tinsn *i);
/*
 * Makes RBP the offset in the page and RCX the page's host address: the operand is [rcx + rbp]. Flags are kept before. After that
 * `site` is what its slow path names (next must be filled by memory_done()).
 */
struct tsite *memory_look_up(struct translation *t, struct tinsn *i, unsigned size_bytes, bool write);
/* Behind a look-up: an operand that is not aligned is the handler's, whose site this is. */
struct tsite *memory_want_aligned(struct translation *t, struct tinsn *i, unsigned size_bytes);
/* The same for the stack: at RSP + disp, or at another guest register's address. */
struct tsite *memory_look_up_at(struct translation *t, struct tinsn *i, unsigned guest_base, int32_t disp, unsigned size_bytes, bool write);
/* [rcx + rbp] or what it is in a group, and that as [rbp + …] so that RCX is free. */
struct asm_mem memory_operand(const struct translation *t);
struct asm_mem memory_fold(struct translation *t);
/* The instruction's code ends here: where its slow paths go on. */
void memory_done(struct translation *t, struct tsite *site);
/* RBP = guest address of the operand (RCX is used for an index); no flags change. */
void memory_address(struct translation *t, const struct insn *insn);

/* ---- translate-group.c ---- */

void groups_find(struct translation *t);
/* i's access is by its group's look-up, here and now. */
bool group_takes(const struct translation *t, const struct tinsn *i);
/* Where a group's look-up fails: the label of what is emitted behind the block. */
struct tsite *group_edge(struct translation *t, struct tinsn *first, struct asm_label **slow);
void group_emit_edge(struct translation *t, struct tlate *late);

/* ---- translate-rewrite.c ---- */

/* Whether the rewriter can do it, how (i->rewrite), and then whether that leaves RBP alone. */
bool rewrite_possible(struct tinsn *i);
bool rewrite_keeps_address(const struct tinsn *i);
void emit_rewritten(struct translation *t, struct tinsn *i);

/* A guest register's memory slot, and its value in a host register: its own, or loaded into scratch. */
struct asm_mem guest_slot(unsigned guest);
unsigned guest_load(struct translation *t, unsigned guest, unsigned scratch);
void guest_store(struct translation *t, unsigned guest, unsigned from);

/* ---- instructions: NULL when they know none ---- */

temit_fn integer_translate(struct tinsn *i);
temit_fn branch_translate(struct tinsn *i);
temit_fn stack_translate(struct tinsn *i);
temit_fn system_translate(struct tinsn *i, uint32_t key);
temit_fn simd_translate(struct tinsn *i, uint32_t key);
temit_fn x87_translate(struct tinsn *i, uint32_t key);

/* ---- translate-x87.c ---- */

/* Once all instructions are chosen. */
void x87_plan(struct translation *t);
/* Before i: looks for the state when i->x87_check says so. */
void x87_check(struct translation *t, struct tinsn *i);
/* Stores the pointers to the last instruction, when op is not 0; no flags change, RCX must be free. */
void x87_store(struct translation *t, uint32_t op);

/* ---- translate-system.c ---- */

/* For a TSITE_HANDLER: what does the usual case with the guest's vector registers where they are; NULL: nothing. */
fast_fn system_fast(const struct tinsn *i);

/* ---- translate-branch.c ---- */

/*
 * The start of a block's second copy, where a branch at its end leads to when a recipe for the flags is known there: so nothing has to
 * save them at its first access, and requests are looked for while the host's flags are free.
 */
void emit_loop_head(struct translation *t);
void emit_lates(struct translation *t);
/* Out of the block to an offset in the page (or beside it); flags must be in the host's. */
void emit_exit(struct translation *t, uint32_t target);
