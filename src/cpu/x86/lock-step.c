/*
 * Lock step: the interpreter walks the path of a block first, then the translation runs from the same state, and both results
 * are compared: registers, flags, vectors, fault, and what memory holds at each place the interpreter wrote.
 *
 *      save ─▶ walk: instruction by instruction, stores logged ─▶ undo ─▶ translation ─▶ same as the end of the walk? ─▶ done
 *                │ writes code: keep the walk's result                          │ no
 *                │ device, RDTSC …: the walk ends before it                     ▼
 *                                                     undo, walk again: same at an earlier instruction? ─▶ done; else stop the machine
 *
 * The walk runs under MODE_STEP and TLB_CHECKED, so that each instruction is a block of its own and every store goes the slow way
 * past lock_step_store(); its TLB is left as it was, and the translation meets the misses it would meet alone. The walk goes on while
 * the next instruction follows the last, or is where a JMP forward leads, and is of the block. A translation may leave its block early
 * (a request, an instruction it leaves to the run loop, a group's look-up that failed), also before the instruction that faulted in the walk;
 * the second walk finds that. The faults themselves are compared when the run loop, or a plain block, comes to the instruction.
 *
 * Accessed and dirty bits that the walk sets are put back, and not compared: a translation whose TLB has the page sets none.
 *
 * Limits: one processor, and no device that writes memory (bytes that the walk wrote are put back). Stores of the translation at places
 * where the interpreter stores nothing are not seen unless they change what is compared later. Instructions that cannot be
 * done twice, and what follows them in a block, are not compared; neither are x87's last instruction and operand addresses.
 */
#include "cpu/x86/lock-step.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "cpu/x86/block.h"
#include "cpu/x86/translator-internal.h"

#define STORES_MAX 16384u
#define PIECE 32u /* bytes of one logged store */
#define WALK_MAX 512u
#define REP_MAX 8192u

enum walk_end { WALK_END, WALK_FAULT, WALK_CANNOT };

struct store {
        uint8_t *host;
        unsigned size_bytes;
        bool entry; /* of a page table */
        uint8_t before[PIECE], walk[PIECE], translation[PIECE];
};

/* What is compared, and what is needed to begin again. */
struct image {
        struct x86_state s;
        struct lazy_flags lazy;
        struct x86_fault fault;
        bool faulted;
};

struct lock_step {
        bool walking, wrote_code, full;
        jmp_buf run_loop; /* what cpu->unwind was */
        jmp_buf device;
        unsigned stores;
        struct store store[STORES_MAX];
        struct image start, walk, translation, again;
        unsigned steps;
        uint64_t rip[WALK_MAX + 1]; /* before each instruction of the walk, and behind the last */
        uint64_t blocks, instructions, not_compared, early;
};

int lock_step_new(struct lock_step **out, struct err *err)
{
        struct lock_step *ls = aligned_alloc(64, align_up(sizeof(*ls), 64));

        if (!ls)
                return err_nomem(err);
        memset(ls, 0, sizeof(*ls));
        *out = ls;
        return 0;
}

void lock_step_free(struct lock_step *ls)
{
        if (!ls)
                return;
        log_info("lock step: %" PRIu64 " blocks, %" PRIu64 " instructions the same; %" PRIu64 " blocks left early, %" PRIu64 " not compared",
                 ls->blocks, ls->instructions, ls->early, ls->not_compared);
        free(ls);
}

/* ---- hooks ---- */

bool lock_step_walking(const struct x86_cpu *cpu)
{
        return cpu->lock_step->walking;
}

static void log_store(struct x86_cpu *cpu, void *host, unsigned size_bytes, bool code, bool entry)
{
        struct lock_step *ls = cpu->lock_step;
        uint8_t *at = host;

        if (!ls->walking)
                return;
        ls->wrote_code |= code;
        while (size_bytes) {
                unsigned n = MIN(size_bytes, PIECE);
                struct store *store = &ls->store[ls->stores];

                if (ls->stores == STORES_MAX) {
                        ls->full = true;
                        return;
                }
                ls->stores++;
                store->host = at;
                store->size_bytes = n;
                store->entry = entry;
                memcpy(store->before, at, n);
                at += n;
                size_bytes -= n;
        }
}

void lock_step_store(struct x86_cpu *cpu, void *host, unsigned size_bytes, bool code)
{
        log_store(cpu, host, size_bytes, code, false);
}

void lock_step_entry(struct x86_cpu *cpu, void *host, unsigned size_bytes, bool code)
{
        log_store(cpu, host, size_bytes, code, true);
}

void lock_step_device(struct x86_cpu *cpu)
{
        if (cpu->lock_step->walking)
                longjmp(cpu->lock_step->device, 1);
}

/* ---- states ---- */

static void image_take(struct x86_cpu *cpu, struct image *image, bool faulted)
{
        image->lazy = cpu->lazy;
        cpu->s.rflags = x86_flags(cpu);
        image->s = cpu->s;
        image->faulted = faulted;
        image->fault = cpu->fault;
}

static void image_put(struct x86_cpu *cpu, const struct image *image)
{
        cpu->s = image->s;
        cpu->lazy = image->lazy;
        cpu->block = NULL;
        x86_mode_changed(cpu);
}

static const char *fault_difference(const struct image *a, const struct image *b)
{
        if (a->faulted != b->faulted)
                return "fault or none";
        if (!a->faulted)
                return NULL;
        if (a->fault.vector != b->fault.vector)
                return "fault's vector";
        if (a->fault.has_error && a->fault.error_code != b->fault.error_code)
                return "fault's error code";
        if (a->fault.vector == X86_PF && a->s.cr2 != b->s.cr2)
                return "CR2";
        return NULL;
}

static const char *fpu_difference(const struct x86_fpu *a, const struct x86_fpu *b)
{
        if (memcmp(a->ymm[0].u8, b->ymm[0].u8, sizeof(a->ymm)))
                return "vector registers";
        if (a->mxcsr != b->mxcsr)
                return "MXCSR";
        if (a->fcw != b->fcw || a->fsw != b->fsw || a->ftw != b->ftw)
                return "x87 control, status or tag word";
        for (unsigned n = 0; n < 8; n++)
                if (memcmp(a->r[n], b->r[n], 10))
                        return "x87 registers";
        return NULL;
}

static bool same_segment(const struct x86_segment *a, const struct x86_segment *b)
{
        return a->selector == b->selector && a->access == b->access && a->limit == b->limit && a->base == b->base;
}

/* What differs first, NULL: nothing. */
static const char *difference(const struct image *a, const struct image *b)
{
        const char *what = fault_difference(a, b);

        if (what)
                return what;
        if (a->s.rip != b->s.rip)
                return "RIP";
        if (memcmp(a->s.gpr, b->s.gpr, 16 * sizeof(a->s.gpr[0])))
                return "general registers";
        if (a->s.rflags != b->s.rflags)
                return "RFLAGS";
        for (unsigned n = 0; n < X86_SEGS; n++)
                if (!same_segment(&a->s.seg[n], &b->s.seg[n]))
                        return "segment registers";
        if (a->s.cr0 != b->s.cr0 || a->s.cr3 != b->s.cr3 || a->s.cr4 != b->s.cr4 || a->s.kernel_gs_base != b->s.kernel_gs_base)
                return "control registers";
        if (a->s.interrupt_shadow != b->s.interrupt_shadow)
                return "interrupt shadow";
        return fpu_difference(&a->s.fpu, &b->s.fpu);
}

/* ---- the walk ---- */

/* Instructions with effects that cannot be undone, or that differ each time. */
static bool once_only(const struct x86_block *block)
{
        const struct insn *i = block->insn;
        unsigned at = 0;

        switch (i->op) {
        case ZYDIS_MNEMONIC_IN: case ZYDIS_MNEMONIC_OUT: case ZYDIS_MNEMONIC_INSB: case ZYDIS_MNEMONIC_INSW: case ZYDIS_MNEMONIC_INSD:
        case ZYDIS_MNEMONIC_OUTSB: case ZYDIS_MNEMONIC_OUTSW: case ZYDIS_MNEMONIC_OUTSD: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
        case ZYDIS_MNEMONIC_RDRAND: case ZYDIS_MNEMONIC_RDSEED: case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_RDMSR: case ZYDIS_MNEMONIC_WRMSR:
        case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_INT: case ZYDIS_MNEMONIC_INT1: case ZYDIS_MNEMONIC_INT3: case ZYDIS_MNEMONIC_VMCALL:
        case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_INVLPG: case ZYDIS_MNEMONIC_INVPCID: case ZYDIS_MNEMONIC_WBINVD:
        case ZYDIS_MNEMONIC_INVD: case ZYDIS_MNEMONIC_XSETBV: case ZYDIS_MNEMONIC_LMSW: case ZYDIS_MNEMONIC_CLTS: case ZYDIS_MNEMONIC_LTR:
        case ZYDIS_MNEMONIC_LLDT: case ZYDIS_MNEMONIC_LGDT: case ZYDIS_MNEMONIC_LIDT: case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT:
        case ZYDIS_MNEMONIC_STI:
                return true;
        case ZYDIS_MNEMONIC_MOV: /* to or from a control or debug register: 0F 20 to 0F 23 */
                while (at < 4 && (block->bytes[at] == 0x66 || block->bytes[at] == 0xf2 || block->bytes[at] == 0xf3 || (block->bytes[at] & 0xf0) == 0x40))
                        at++;
                return block->bytes[at] == 0x0f && (block->bytes[at + 1] & 0xfc) == 0x20;
        default:
                return false;
        }
}

/* One instruction, a REP to its end; false when it must not be done. jump: it is JMP. */
static bool walk_step(struct x86_cpu *cpu, unsigned *length, bool *jump)
{
        for (unsigned turns = 0;; turns++) {
                const struct insn *i = block_enter(cpu);
                uint64_t rip = cpu->s.rip;
                bool rep;

                *length = i->length;
                *jump = i->op == ZYDIS_MNEMONIC_JMP;
                rep = i->flags & (INSN_REP | INSN_REPNE);

                if (turns == REP_MAX || once_only(cpu->block)) {
                        cpu->block = NULL;
                        return false;
                }
                do {
                        cpu->insn = i;
                        i = i->fn(cpu, i);
                } while (i);
                cpu->block = NULL;
                cpu->s.interrupt_shadow &= turns == 0;
                if (!rep || cpu->s.rip != rip)
                        return true;
        }
}

/* Iterations of a REP until RCX is as it should be; the REP may end before. */
static void walk_part(struct x86_cpu *cpu, uint64_t rcx)
{
        const uint64_t rip = cpu->s.rip;

        for (unsigned turns = 0; turns < REP_MAX && cpu->s.rip == rip && cpu->s.gpr[X86_RCX] != rcx; turns++) {
                const struct insn *i = block_enter(cpu);

                if (!(i->flags & (INSN_REP | INSN_REPNE)) || once_only(cpu->block))
                        break;
                do {
                        cpu->insn = i;
                        i = i->fn(cpu, i);
                } while (i);
                cpu->block = NULL;
        }
}

/* Walks most instructions at most, and not behind `to`; then, when it did so many, on in a REP until RCX is *rcx. */
static enum walk_end walk(struct x86_cpu *cpu, uint64_t to, unsigned most, const uint64_t *rcx)
{
        struct lock_step *ls = cpu->lock_step;
        const uint64_t from = cpu->s.rip;
        volatile enum walk_end end = WALK_END;

        ls->walking = true;
        ls->stores = ls->steps = 0;
        ls->wrote_code = ls->full = false;
        ls->rip[0] = from;
        x86_mode_changed(cpu);
        if (_setjmp(cpu->unwind)) {
                if (cpu->block)
                        cpu->s.rip = insn_rip(cpu, cpu->insn->start);
                end = WALK_FAULT;
                goto out;
        }
        if (_setjmp(ls->device)) {
                /* An instruction's stores before it reached a device. */
                cpu->s.rip = insn_rip(cpu, cpu->insn->start);
                complex_exclusive_end(cpu);
                end = WALK_CANNOT;
                goto out;
        }
        while (ls->steps < most) {
                uint64_t rip = cpu->s.rip;
                unsigned length;
                bool jump;

                if (rip < from || rip >= to)
                        break;
                if (!walk_step(cpu, &length, &jump) || ls->full) {
                        end = WALK_CANNOT;
                        break;
                }
                ls->rip[++ls->steps] = cpu->s.rip;
                /* A branch that was taken ends a translation; JMP forward may be translated away. */
                if (cpu->s.rip - rip != length && (!jump || cpu->s.rip < rip))
                        break;
        }
        if (rcx && ls->steps == most)
                walk_part(cpu, *rcx);
out:
        cpu->block = NULL;
        ls->walking = false;
        memcpy(cpu->unwind, ls->run_loop, sizeof(cpu->unwind));
        x86_mode_changed(cpu);
        return end;
}

/* ---- memory ---- */

static void undo(struct lock_step *ls)
{
        for (unsigned n = ls->stores; n--;)
                memcpy(ls->store[n].host, ls->store[n].before, ls->store[n].size_bytes);
}

static void keep_walk(struct lock_step *ls)
{
        for (unsigned n = 0; n < ls->stores; n++)
                memcpy(ls->store[n].walk, ls->store[n].host, ls->store[n].size_bytes);
}

/* The first store whose place holds something else now than after the walk. */
static const struct store *memory_difference(const struct lock_step *ls)
{
        for (unsigned n = 0; n < ls->stores; n++)
                if (!ls->store[n].entry && memcmp(ls->store[n].host, ls->store[n].walk, ls->store[n].size_bytes))
                        return &ls->store[n];
        return NULL;
}

/* ---- the verdict ---- */

static void print_state(const char *whose, const struct image *image)
{
        char text[2048];
        const struct x86_fpu *fpu = &image->s.fpu;

        x86_state_format(&image->s, text, sizeof(text));
        fprintf(stderr, "---- %s\n%s", whose, text);
        if (image->faulted)
                fprintf(stderr, "fault %u error %x\n", image->fault.vector, image->fault.error_code);
        fprintf(stderr, "mxcsr %04x fcw %04x fsw %04x ftw %02x\n", fpu->mxcsr, fpu->fcw, fpu->fsw, fpu->ftw);
}

static void print_vectors(const struct image *a, const struct image *b)
{
        for (unsigned n = 0; n < 16; n++) {
                const uint64_t *x = a->s.fpu.ymm[n].u64, *y = b->s.fpu.ymm[n].u64;

                if (memcmp(x, y, 32))
                        fprintf(stderr, "ymm%u: interpreter %016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "\n       translator %016" PRIx64
                                        "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "\n", n, x[3], x[2], x[1], x[0], y[3], y[2], y[1], y[0]);
        }
        for (unsigned n = 0; n < 8; n++)
                if (memcmp(a->s.fpu.r[n], b->s.fpu.r[n], 10))
                        fprintf(stderr, "x87 register %u differs\n", n);
}

static _Noreturn void stop(struct x86_cpu *cpu, const struct tblock *block, const char *what, const struct store *store)
{
        struct lock_step *ls = cpu->lock_step;

        fprintf(stderr, "lock step: %s differs (after %" PRIu64 " blocks, %" PRIu64 " instructions)\nblock at rip %" PRIx64 " gpa %" PRIx64 " key %x:",
                what, ls->blocks, ls->instructions, ls->start.s.rip, block->gpa, block->key);
        for (unsigned n = 0; n < block->size_bytes; n++)
                fprintf(stderr, " %02x", tblock_bytes(cpu->translator, block)[n]);
        fprintf(stderr, "\nhost code %x-%x, the walk did %u instructions\n", block->host, block->host + block->host_bytes, ls->steps);
        if (store) {
                fprintf(stderr, "memory, %u bytes: interpreter", store->size_bytes);
                for (unsigned n = 0; n < store->size_bytes; n++)
                        fprintf(stderr, " %02x", store->walk[n]);
                fprintf(stderr, "; translator");
                for (unsigned n = 0; n < store->size_bytes; n++)
                        fprintf(stderr, " %02x", store->host[n]);
                fprintf(stderr, "\n");
        }
        print_state("before", &ls->start);
        print_state("interpreter", &ls->walk);
        print_state("translator", &ls->translation);
        print_vectors(&ls->walk, &ls->translation);
        fflush(stderr);
        abort();
}

/*
 * The translation stopped at instruction `most` of the walk (or in it, a REP), or seems to have: was it right up to there? The machine
 * is left as the translation left it.
 */
static bool same_at(struct x86_cpu *cpu, uint64_t to, unsigned most)
{
        struct lock_step *ls = cpu->lock_step;
        unsigned stores = ls->stores;
        bool same;

        for (unsigned n = 0; n < stores; n++)
                memcpy(ls->store[n].translation, ls->store[n].host, ls->store[n].size_bytes);
        undo(ls);
        image_put(cpu, &ls->start);
        /* ls->store is written again, with the same places in the same order. */
        (void)walk(cpu, to, most, &ls->translation.s.gpr[X86_RCX]);
        image_take(cpu, &ls->again, false);
        same = !difference(&ls->again, &ls->translation);
        ls->stores = stores;
        for (unsigned n = 0; n < stores; n++) {
                same &= ls->store[n].entry || !memcmp(ls->store[n].host, ls->store[n].translation, ls->store[n].size_bytes);
                memcpy(ls->store[n].host, ls->store[n].translation, ls->store[n].size_bytes);
        }
        image_put(cpu, &ls->translation);
        return same;
}

static void judge(struct x86_cpu *cpu, const struct tblock *block, enum walk_end end, uint64_t to)
{
        struct lock_step *ls = cpu->lock_step;
        const struct store *store;
        const char *what = difference(&ls->walk, &ls->translation);
        unsigned steps = ls->steps, at = 0;

        if (!what) {
                store = memory_difference(ls);
                if (store)
                        stop(cpu, block, "memory", store);
                ls->blocks++;
                ls->instructions += steps;
                return;
        }
        if (end == WALK_CANNOT) { /* it went on behind the walk's end, or stopped before: not known */
                ls->not_compared++;
                return;
        }
        while (at < steps && ls->rip[at] != ls->translation.s.rip)
                at++;
        if (ls->translation.faulted || (at == steps && !(end == WALK_FAULT && ls->rip[at] == ls->translation.s.rip)) || !same_at(cpu, to, at))
                stop(cpu, block, what, NULL);
        ls->early++;
}

void lock_step_run(struct x86_cpu *cpu, const struct tblock *block)
{
        struct lock_step *ls = cpu->lock_step;
        volatile bool faulted = false;
        const uint64_t to = cpu->s.rip + block->size_bytes;
        enum walk_end end;

        memcpy(ls->run_loop, cpu->unwind, sizeof(ls->run_loop));
        image_take(cpu, &ls->start, false);
        end = walk(cpu, to, WALK_MAX, NULL);
        image_take(cpu, &ls->walk, end == WALK_FAULT);
        if (ls->wrote_code && end != WALK_CANNOT) { /* block may be gone, and putting bytes back would need telling everybody */
                ls->not_compared++;
                if (end == WALK_FAULT)
                        longjmp(cpu->unwind, 1);
                return;
        }
        keep_walk(ls);
        undo(ls);
        image_put(cpu, &ls->start);
        if (ls->wrote_code || block->dead) { /* begin again without a comparison */
                ls->not_compared++;
                cpu->jit.interpret = true;
                return;
        }
        if (_setjmp(cpu->unwind)) {
                translator_recover(cpu);
                faulted = true;
        } else {
                translator_enter(cpu, block);
        }
        memcpy(cpu->unwind, ls->run_loop, sizeof(cpu->unwind));
        image_take(cpu, &ls->translation, faulted);
        judge(cpu, block, end, to);
        if (faulted)
                longjmp(cpu->unwind, 1);
}
