/*
 * Decoded blocks and how execution goes from one to the next.
 *
 * A block is a straight line of instructions within one page, or one instruction that crosses into the next page. It is
 * found by the guest physical address of its first byte and the mode it was decoded for, and is valid as long as the page's
 * code generation (guest-memory.h) is the one read before decoding. When that changed the bytes are compared: a page that holds
 * both code and data costs a comparison, not a decoding.
 *
 * Ways from a block to the next, from fast to slow:
 *
 *      link        a direct branch, or running off the end, within the same page in 64-bit mode: the mapping is the one that is
 *                  executing; only generation and requests are checked
 *      jump cache  by rip: checked against the exec TLB, so nothing flushes it
 *      lookup      exec TLB or page walk, hash table, else decoding
 *
 * Blocks live in an arena of one processor; when it is full all are dropped at once. So a link never outlives its target.
 * Every way checks cpu->requests: a chain of blocks that run forever still ends for an interrupt.
 */
#pragma once

#include "cpu/x86/cpu.h"

#define BLOCK_INSNS_MAX 48
#define BLOCK_JUMPS 4096u

struct x86_block {
        uint64_t gpa;                  /* of the first byte */
        const _Atomic uint32_t *code;  /* the page's generation word */
        uint32_t generation;           /* what it must be */
        uint32_t mode_key;
        uint32_t heat;                 /* times it is still entered before it is worth translating; 0: the run loop shall look */
        struct x86_block *link[2];     /* BLOCK_TAKEN, BLOCK_ON */
        struct x86_block *next;        /* in the hash chain */
        uint8_t *bytes;                /* the guest's, as decoded */
        uint16_t count;                /* instructions, without the end mark */
        uint16_t size;                 /* bytes */
        bool dead;                     /* changed under way: never valid again */
        bool crosses;                  /* one instruction on two pages; the second one: */
        uint32_t second_generation;
        uint64_t second_gpa;
        const _Atomic uint32_t *second_code;
        struct insn insn[];            /* the last one leaves the block when nothing before did */
};

/* Blocks are translated once they were entered so often, and those that cannot be are left alone. */
#define BLOCK_HEAT 8u
#define BLOCK_HEAT_AGAIN 2u
#define BLOCK_HEAT_NEVER UINT32_MAX

#define BLOCK_SEEN_BITS 19

/* The heat of the block that was decoded at gpa for the mode as it is; NULL: there is none. */
uint32_t *block_heat(struct x86_cpu *cpu, uint64_t gpa);

/* Counts entering it; false: it is due for translation. */
static inline bool block_cool(struct x86_block *block)
{
        if (unlikely(!block->heat))
                return false;
        block->heat--;
        return true;
}

enum block_way { BLOCK_TAKEN, BLOCK_ON };

struct block_jump {
        uint64_t rip;
        struct x86_block *block;
};

struct block_cache {
        struct block_jump jump[BLOCK_JUMPS];
        struct x86_block **hash;
        uint8_t *arena;
        size_t arena_size, arena_used;
        uint64_t epoch;    /* raised when the arena is dropped */
        _Atomic uint32_t no_code; /* the generation word of what is not RAM */
        uint8_t seen[1u << (BLOCK_SEEN_BITS - 3)]; /* a bit for what was decoded, by a hash of its address */
        bool isa_set[ZYDIS_ISA_SET_MAX_VALUE + 1]; /* instruction sets that the model has */
        ZydisDecoder decoder[8]; /* by mode: see decode.c */
};

int block_cache_new(struct x86_cpu *cpu, struct err *err) _must_check_;
void block_cache_free(struct block_cache *cache);
/* Drops all blocks. Not while one runs. */
void block_cache_flush(struct block_cache *cache);

/* The first instruction at s.rip, made the running block; raises what fetching raises. cpu->block must be NULL. */
const struct insn *block_enter(struct x86_cpu *cpu);
/* engine.c: interprets the block at s.rip and those chained to it; request_mask is right. */
void block_run(struct x86_cpu *cpu);

/* The slow ends of the functions below. */
const struct insn *block_follow_slow(struct x86_cpu *cpu, enum block_way way, uint64_t rip);
const struct insn *block_jump_slow(struct x86_cpu *cpu, uint64_t rip);
/* Leaves the running block for the run loop, with rip as given. */
const struct insn *block_leave(struct x86_cpu *cpu, uint64_t rip);

static inline bool block_fresh(const struct x86_block *block)
{
        return block->generation == atomic_load_explicit(block->code, memory_order_acquire);
}

static inline bool block_interrupted(const struct x86_cpu *cpu)
{
        return atomic_load_explicit(&cpu->requests, memory_order_relaxed) & cpu->request_mask;
}

/* Makes block the running one. */
static inline const struct insn *block_begin(struct x86_cpu *cpu, struct x86_block *block, uint64_t rip)
{
        cpu->s.gpr[GPR_BLOCK] = rip;
        cpu->block = block;
        atomic_store_explicit(&cpu->instructions,
                              atomic_load_explicit(&cpu->instructions, memory_order_relaxed) + block->count,
                              memory_order_relaxed);
        return block->insn;
}

/* Where a direct branch goes: IP is cut to 16 bits with a 16-bit operand size. */
static inline uint64_t block_target(const struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t rip = insn_rip(cpu, i->imm);

        return unlikely(i->opsize == 2) ? (uint16_t)rip : rip;
}

/* To i's target, and to the instruction after i, which must be the last of its block. */
static inline const struct insn *block_take(struct x86_cpu *cpu, const struct insn *i)
{
        struct x86_block *to = cpu->block->link[BLOCK_TAKEN];

        if (likely(to && block_fresh(to) && !block_interrupted(cpu) && block_cool(to)))
                return block_begin(cpu, to, cpu->s.gpr[GPR_BLOCK] + i->imm);
        return block_follow_slow(cpu, BLOCK_TAKEN, block_target(cpu, i));
}

static inline const struct insn *block_go_on(struct x86_cpu *cpu, const struct insn *i)
{
        struct x86_block *to = cpu->block->link[BLOCK_ON];

        if (likely(to && block_fresh(to) && !block_interrupted(cpu) && block_cool(to)))
                return block_begin(cpu, to, cpu->s.gpr[GPR_BLOCK] + i->end);
        return block_follow_slow(cpu, BLOCK_ON, insn_rip(cpu, i->end));
}

static inline struct block_jump *block_jump_at(struct block_cache *cache, uint64_t rip)
{
        return &cache->jump[(rip ^ rip >> 12) & (BLOCK_JUMPS - 1)];
}

/* The block at rip when the jump cache has it and it is valid as things are, else NULL. */
static inline struct x86_block *block_known(struct x86_cpu *cpu, uint64_t rip)
{
        const struct block_jump *jump = block_jump_at(cpu->blocks, rip);
        struct x86_block *to = jump->block;

        if (likely(jump->rip == rip && to && cpu->mode64 && to->mode_key == cpu->mode_key)) {
                uint64_t page = rip & ~(GUEST_PAGE_SIZE - 1);
                const struct tlb_exec_entry *e = &cpu->exec[cpu->cpl == 3][tlb_exec_index(rip)];

                if (likely(e->tag == page && e->gpa == (to->gpa & ~(GUEST_PAGE_SIZE - 1)) && block_fresh(to)))
                        return to;
        }
        return NULL;
}

/* To any rip, checked by the caller for being canonical (64-bit mode). */
static inline const struct insn *block_go(struct x86_cpu *cpu, uint64_t rip)
{
        struct x86_block *to = block_known(cpu, rip);

        if (likely(to && !block_interrupted(cpu) && block_cool(to)))
                return block_begin(cpu, to, rip);
        return block_jump_slow(cpu, rip);
}
