/*
 * The engine of ours as a running guest has it: the case is executed HEAT times with all its pages writable, so that its code is translated
 * and its addresses are in the TLB; then the pages get their rights, INVLPG tells the processor, and the outcome of one more run counts.
 * So every operand that faults does so in hot code, behind a look-up that went well a moment ago.
 *
 * A piece of supervisor code loads the registers and enters the case by IRET, for nothing from outside may empty the TLB between runs:
 *
 *      piece ──IRET──▶ case ──exception──▶ HLT ──(host: next run's input)──▶ JMP piece
 *
 * Pages that the host does not have are here absent and, with every other case, the supervisor's; the error code's bit P, which
 * tells which, is then as it would be for an absent page.
 */
#include "tests/diff/diff.h"

#include "cpu/x86/fpu.h"
#include "tests/diff/bare.h"

#define HEAT 70u
#define GPA_GUARD BARE_FREE             /* before the data */
#define GPA_DATA (GPA_GUARD + PAGE)     /* with what is behind: a guard, the read-only page, a guard */
#define GPA_RO (GPA_DATA + DATA_BYTES + PAGE)
#define GPA_INPUT (BARE_FREE + 0x8000u) /* struct input */
#define GPA_PIECE (BARE_FREE + 0x9000u)
#define GPA_CODE (BARE_FREE + 0x10000u)

struct input {
        uint64_t gpr[16];
        uint64_t rip, cs, rflags, rsp, ss;
        uint64_t flush; /* INVLPG for all pages first */
        uint64_t pad[2];
        uint8_t xsave[896] __attribute__((aligned(64)));
};

/* Loads what is in struct input; no address in it depends on where it lies. */
__asm__(".pushsection .rodata\n"
        "hot_piece:\n"
        "movabsq $0xffff800000108000, %rbx\n"
        "cmpq $0, 168(%rbx)\n"
        "je 2f\n"
        "movl $0x1ffff000, %eax\n"
        "movl $6, %ecx\n"
        "1: invlpg (%rax)\n"
        "addq $4096, %rax\n"
        "decl %ecx\n"
        "jnz 1b\n"
        "2: movl $0x2b, %eax\n" /* IRET takes a supervisor's away */
        "movl %eax, %ds\n"
        "movl %eax, %es\n"
        "movl $7, %eax\n"
        "xorl %edx, %edx\n"
        "xrstor64 192(%rbx)\n"
        "leaq 128(%rbx), %rsp\n"
        "movq (%rbx), %rax\n"
        "movq 8(%rbx), %rcx\n"
        "movq 16(%rbx), %rdx\n"
        "movq 40(%rbx), %rbp\n"
        "movq 48(%rbx), %rsi\n"
        "movq 56(%rbx), %rdi\n"
        "movq 64(%rbx), %r8\n"
        "movq 72(%rbx), %r9\n"
        "movq 80(%rbx), %r10\n"
        "movq 88(%rbx), %r11\n"
        "movq 96(%rbx), %r12\n"
        "movq 104(%rbx), %r13\n"
        "movq 112(%rbx), %r14\n"
        "movq 120(%rbx), %r15\n"
        "movq 24(%rbx), %rbx\n"
        "iretq\n"
        "hot_piece_end:\n"
        ".popsection\n");
extern const uint8_t hot_piece[], hot_piece_end[];

_Static_assert(BARE_LINEAR + GPA_INPUT == UINT64_C(0xffff800000108000) && DATA_BASE - PAGE == 0x1ffff000, "as in the piece");
_Static_assert(offsetof(struct input, rip) == 128 && offsetof(struct input, flush) == 168 && offsetof(struct input, xsave) == 192, "as in the piece");

struct hot {
        struct engine engine;
        struct bare *bare;
        struct input *input;
        uint64_t last; /* the case before: its bytes are made INT3 again */
        unsigned last_bytes;
        uint64_t runs;
        uint8_t before[DATA_BYTES];
};

static void hot_free(struct engine *engine)
{
        struct hot *hot = container_of(engine, struct hot, engine);

        bare_free(hot->bare);
        free(hot);
}

/* pages: of those that the host does not have. */
static void map_data(struct hot *hot, enum bare_pages pages, enum bare_pages ro)
{
        bare_map(hot->bare, DATA_BASE - PAGE, GPA_GUARD, PAGE, pages);
        bare_map(hot->bare, DATA_BASE + DATA_BYTES, GPA_DATA + DATA_BYTES, PAGE, pages);
        bare_map(hot->bare, RO_BASE, GPA_RO, PAGE, ro);
        bare_map(hot->bare, RO_BASE + PAGE, GPA_RO + PAGE, PAGE, pages);
}

static int hot_make(const struct engine_ops *ops, enum bare_engine which, const char *model, struct engine **out, struct err *err)
{
        struct hot *hot = calloc(1, sizeof(*hot));
        struct x86_state *s;
        int r;

        if (!hot)
                return err_nomem(err);
        r = bare_new_engine(model, which, &hot->bare, err);
        if (r < 0) {
                free(hot);
                return r;
        }
        hot->engine.ops = ops;
        hot->engine.data = bare_at(hot->bare, GPA_DATA, DATA_BYTES);
        hot->input = (struct input *)bare_at(hot->bare, GPA_INPUT, sizeof(*hot->input));
        memset(bare_at(hot->bare, GPA_CODE, CODE_BYTES), 0xcc, CODE_BYTES);
        memcpy(bare_at(hot->bare, GPA_PIECE, PAGE), hot_piece, (size_t)(hot_piece_end - hot_piece));
        bare_map(hot->bare, DATA_BASE, GPA_DATA, DATA_BYTES, BARE_WRITE);
        bare_map(hot->bare, CODE_BASE, GPA_CODE, CODE_BYTES, BARE_EXECUTE);
        map_data(hot, BARE_WRITE, BARE_WRITE);
        bare_go_on(hot->bare, BARE_LINEAR + GPA_PIECE);
        s = x86_cpu_state(bare_cpu(hot->bare));
        bare_state(hot->bare, BARE_SUPERVISOR, s);
        s->rip = BARE_LINEAR + GPA_PIECE;
        x86_cpu_state_changed(bare_cpu(hot->bare));
        *out = &hot->engine;
        return 0;
}

static void put_code(struct hot *hot, const struct diff_case *c)
{
        uint8_t bytes[CASE_INSNS * 15];
        struct guest_memory *mem = bare_memory(hot->bare);

        memset(bytes, 0xcc, sizeof(bytes));
        if (hot->last_bytes && guest_memory_write(mem, hot->last, bytes, hot->last_bytes) < 0)
                abort();
        case_bytes(c, bytes);
        hot->last = case_address(c) - CODE_BASE + GPA_CODE;
        hot->last_bytes = case_size(c);
        if (guest_memory_write(mem, hot->last, bytes, hot->last_bytes) < 0)
                abort();
}

static void put_input(struct hot *hot, const struct diff_case *c)
{
        struct input *in = hot->input;

        memcpy(in->gpr, c->in.gpr, sizeof(in->gpr));
        in->rip = case_address(c);
        in->cs = c->code32 ? 0x23 : 0x33;
        in->rflags = c->in.rflags;
        in->rsp = c->in.gpr[X86_RSP];
        in->ss = 0x2b;
        memcpy(in->xsave, c->in.xsave, sizeof(in->xsave));
        memset(in->xsave + 512, 0, 64);
        in->xsave[512] = x86_cpu_state(bare_cpu(hot->bare))->xcr0 & 7;
}

/* Each page that this wrote by the heating mapping is as it was. */
static void put_data(struct hot *hot)
{
        memcpy(hot->engine.data, hot->before, DATA_BYTES);
        memset(bare_at(hot->bare, GPA_RO, PAGE), 0, PAGE);
}

static int run_once(struct hot *hot, bool flush, struct bare_frame *frame)
{
        struct x86_cpu *cpu = bare_cpu(hot->bare);
        enum x86_exit exit;

        hot->input->flush = flush;
        x86_cpu_request(cpu, X86_REQUEST_KICK);
        exit = x86_cpu_run(cpu);
        memset(frame, 0, sizeof(*frame));
        return exit == X86_EXIT_HALTED ? bare_vector(hot->bare, frame) : -2;
}

/* One of the pages that the host does not have. */
static bool in_guard(uint64_t linear)
{
        uint64_t page = linear & ~(uint64_t)(PAGE - 1);

        return page == DATA_BASE - PAGE || page == DATA_BASE + DATA_BYTES || page == RO_BASE + PAGE;
}

static void hot_run(struct engine *engine, const struct diff_case *c, struct outcome *out)
{
        struct hot *hot = container_of(engine, struct hot, engine);
        enum bare_pages guard = hot->runs++ & 1 ? BARE_KERNEL : BARE_NONE;
        struct bare_frame frame;
        const struct x86_state *s;

        engine_patch(engine, &c->patch);
        memcpy(hot->before, engine->data, DATA_BYTES);
        put_code(hot, c);
        put_input(hot, c);
        map_data(hot, BARE_WRITE, BARE_WRITE);
        for (unsigned n = 0; n < HEAT; n++) {
                (void)run_once(hot, n == 0, &frame);
                put_data(hot);
        }
        map_data(hot, guard, BARE_READ);
        out->vector = run_once(hot, true, &frame);
        s = x86_cpu_state(bare_cpu(hot->bare));
        memcpy(out->after.gpr, s->gpr, sizeof(out->after.gpr));
        out->after.gpr[X86_RSP] = frame.rsp;
        out->after.rflags = frame.rflags;
        out->after.rip = frame.rip;
        out->error_code = (uint32_t)frame.error_code;
        out->cr2 = out->vector == X86_PF ? s->cr2 : 0;
        if (out->vector == X86_PF && guard == BARE_KERNEL && in_guard(out->cr2))
                out->error_code &= ~1u;
        if (out->vector == X86_BP) {
                out->vector = -1;
                out->after.rip--;
        }
        x86_fpu_to_xsave(s, out->after.xsave);
}

static int hot_interpreter_new(struct engine **out, const char *model, struct err *err)
{
        return hot_make(&hot_interpreter_ops, BARE_INTERPRETER, model, out, err);
}

const struct engine_ops hot_interpreter_ops = {
        .name = "hot-interpreter",
        .new = hot_interpreter_new,
        .free = hot_free,
        .run = hot_run,
};

static int hot_translator_new(struct engine **out, const char *model, struct err *err)
{
        return hot_make(&hot_translator_ops, BARE_TRANSLATOR, model, out, err);
}

const struct engine_ops hot_translator_ops = {
        .name = "translator",
        .new = hot_translator_new,
        .free = hot_free,
        .run = hot_run,
};
