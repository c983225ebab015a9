/*
 * The engine of ours: a processor in long mode at level 3, run through x86_cpu_run() as a machine would, until an exception (the
 * INT3 behind a case is one) brings it to a HLT of the supervisor's.
 */
#include "tests/diff/diff.h"

#include "cpu/x86/fpu.h"
#include "tests/diff/bare.h"

#define GPA_DATA BARE_FREE
#define GPA_CODE (BARE_FREE + 0x10000u)

struct interpreter {
        struct engine engine;
        struct bare *bare;
        struct x86_state start[2]; /* in 64-bit and 32-bit mode */
        uint64_t last;             /* the case before: its bytes are made INT3 again */
        unsigned last_bytes;
};

static void interpreter_free(struct engine *engine)
{
        struct interpreter *in = container_of(engine, struct interpreter, engine);

        bare_free(in->bare);
        free(in);
}

static int interpreter_new(struct engine **out, const char *model, struct err *err)
{
        struct interpreter *in = aligned_alloc(64, align_up(sizeof(*in), 64));
        int r;

        if (!in)
                return err_nomem(err);
        memset(in, 0, sizeof(*in));
        r = bare_new(model, &in->bare, err);
        if (r < 0) {
                free(in);
                return r;
        }
        in->engine.ops = &interpreter_ops;
        in->engine.data = bare_at(in->bare, GPA_DATA, DATA_BYTES);
        memset(bare_at(in->bare, GPA_CODE, CODE_BYTES), 0xcc, CODE_BYTES);
        bare_map(in->bare, DATA_BASE, GPA_DATA, DATA_BYTES, BARE_WRITE);
        bare_map(in->bare, RO_BASE, GPA_DATA + DATA_BYTES, PAGE, BARE_READ);
        bare_map(in->bare, CODE_BASE, GPA_CODE, CODE_BYTES, BARE_EXECUTE);
        bare_state(in->bare, BARE_USER64, &in->start[0]);
        bare_state(in->bare, BARE_USER32, &in->start[1]);
        *out = &in->engine;
        return 0;
}

const bool *interpreter_isa_sets(const struct engine *engine)
{
        return bare_isa_sets(container_of(engine, struct interpreter, engine)->bare);
}

static void put_code(struct interpreter *in, const struct diff_case *c)
{
        uint8_t bytes[CASE_INSNS * 15];
        struct guest_memory *mem = bare_memory(in->bare);

        memset(bytes, 0xcc, sizeof(bytes));
        if (in->last_bytes && guest_memory_write(mem, in->last, bytes, in->last_bytes) < 0)
                abort();
        case_bytes(c, bytes);
        in->last = case_address(c) - CODE_BASE + GPA_CODE;
        in->last_bytes = case_size(c);
        if (guest_memory_write(mem, in->last, bytes, in->last_bytes) < 0)
                abort();
}

static void interpreter_run(struct engine *engine, const struct diff_case *c, struct outcome *out)
{
        struct interpreter *in = container_of(engine, struct interpreter, engine);
        struct x86_cpu *cpu = bare_cpu(in->bare);
        struct x86_state *s = x86_cpu_state(cpu);
        struct bare_frame frame = { 0 };

        engine_patch(engine, &c->patch);
        put_code(in, c);
        *s = in->start[c->code32];
        memcpy(s->gpr, c->in.gpr, sizeof(c->in.gpr));
        s->rip = case_address(c);
        s->rflags = c->in.rflags;
        if (x86_fpu_from_xsave(s, c->in.xsave, sizeof(c->in.xsave), NULL) < 0)
                abort();
        x86_cpu_state_changed(cpu);
        out->vector = x86_cpu_run(cpu) == X86_EXIT_HALTED ? bare_vector(in->bare, &frame) : -2;
        s = x86_cpu_state(cpu);
        memcpy(out->after.gpr, s->gpr, sizeof(out->after.gpr));
        out->after.gpr[X86_RSP] = frame.rsp;
        out->after.rflags = frame.rflags;
        out->after.rip = frame.rip;
        out->error_code = (uint32_t)frame.error_code;
        out->cr2 = out->vector == X86_PF ? s->cr2 : 0;
        if (out->vector == X86_BP) {
                out->vector = -1;
                out->after.rip--;
        }
        x86_fpu_to_xsave(s, out->after.xsave);
}

const struct engine_ops interpreter_ops = {
        .name = "interpreter",
        .new = interpreter_new,
        .free = interpreter_free,
        .run = interpreter_run,
};
