/*
 * The engine that the others are held against: the host's processor.
 *
 * GS points at struct native, so that registers can be loaded and stored without using any. Code is entered by a far jump, which
 * selects its mode: Linux has segments for 64-bit code (0x33) and 32-bit code (0x23). 64-bit code is followed by a jump back
 * here; 32-bit code, and branches out of the code, by breakpoints. A breakpoint or fault arrives as a signal, whose context is
 * the outcome, and whose return address is changed to the way out.
 */
#include "tests/diff/diff.h"

#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>

#define CODE64 0x33u
#define CODE32 0x23u
#define DATA32 0x2bu

struct native {
        struct image in, out; /* the assembly below knows these offsets */
        uint64_t host_rsp;
        struct {
                uint32_t offset;
                uint16_t selector;
        } entry;
        struct engine engine;
        struct outcome *outcome;
        void *stack;
        uint8_t *last; /* the case before: its bytes are made breakpoints again */
        unsigned last_bytes;
};

#define IN_XSAVE 0
#define IN_GPR 896
#define IN_RFLAGS 1032
#define OUT 1088
#define HOST_RSP 2176
#define ENTRY 2184
_Static_assert(offsetof(struct native, in.gpr) == IN_GPR && offsetof(struct native, in.rflags) == IN_RFLAGS, "layout");
_Static_assert(offsetof(struct native, out) == OUT && sizeof(struct image) == 1088, "layout");
_Static_assert(offsetof(struct native, host_rsp) == HOST_RSP && offsetof(struct native, entry) == ENTRY, "layout");

void native_enter(void) __attribute__((visibility("hidden")));
extern const char native_return[] __attribute__((visibility("hidden")));
extern const char native_exit[] __attribute__((visibility("hidden")));

#define STR_(x) #x
#define STR(x) STR_(x)
#define LOAD(reg, n) "  mov %gs:" STR(IN_GPR) "+8*" #n ", %" #reg "\n"
#define STORE(reg, n) "  mov %" #reg ", %gs:" STR(OUT) "+" STR(IN_GPR) "+8*" #n "\n"

/* clang-format off */
#define EACH(X) \
        X(rax, 0) X(rcx, 1) X(rdx, 2) X(rbx, 3) X(rsp, 4) X(rbp, 5) X(rsi, 6) X(rdi, 7) \
        X(r8, 8) X(r9, 9) X(r10, 10) X(r11, 11) X(r12, 12) X(r13, 13) X(r14, 14) X(r15, 15)

__asm__("  .text\n"
        "  .balign 16\n"
        "  .type native_enter, @function\n"
        "native_enter:\n"
        "  endbr64\n"
        "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, %gs:" STR(HOST_RSP) "\n"
        "  mov $7, %eax\n  xor %edx, %edx\n  xrstor64 %gs:" STR(IN_XSAVE) "\n"
        "  pushq %gs:" STR(IN_RFLAGS) "\n  popfq\n"
        EACH(LOAD)
        "  ljmp *%gs:" STR(ENTRY) "\n"
        "native_return:\n"
        EACH(STORE)
        "  mov %gs:" STR(HOST_RSP) ", %rsp\n"
        "  pushfq\n  popq %gs:" STR(OUT) "+" STR(IN_RFLAGS) "\n"
        "  mov $7, %eax\n  xor %edx, %edx\n  xsave64 %gs:" STR(OUT) "\n"
        "native_exit:\n"
        "  mov %gs:" STR(HOST_RSP) ", %rsp\n"
        "  pushq $0x202\n  popfq\n  fninit\n  pushq $0x1f80\n  ldmxcsr (%rsp)\n  pop %rax\n  vzeroupper\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
        "  ret\n"
        "  .size native_enter, . - native_enter\n");
/* clang-format on */

#define STACK_BYTES 65536u
static const int signals[5] = { SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS };
static struct native *running; /* a signal handler has no other way to know */

static void take_registers(struct image *out, const ucontext_t *context)
{
        static const uint8_t order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
        const greg_t *reg = context->uc_mcontext.gregs;
        uint64_t present;

        for (unsigned n = 0; n < 16; n++)
                out->gpr[n] = (uint64_t)reg[order[n]];
        out->rip = (uint64_t)reg[REG_RIP];
        out->rflags = (uint64_t)reg[REG_EFL];
        memcpy(out->xsave, context->uc_mcontext.fpregs, XSAVE_BYTES);
        /* What is in its initial state may not have been written. */
        memcpy(&present, out->xsave + 512, 8);
        if (!(present & 1)) {
                memset(out->xsave, 0, 24);
                memset(out->xsave + 32, 0, 128);
                memcpy(out->xsave, &(uint16_t){ 0x37f }, 2);
        }
        if (!(present & 2))
                memset(out->xsave + 160, 0, 256);
        if (!(present & 4))
                memset(out->xsave + 576, 0, 256);
}

static void on_signal(int number, siginfo_t *info, void *raw)
{
        ucontext_t *context = raw;
        greg_t *reg = context->uc_mcontext.gregs;
        struct native *native = running;

        if (!native) {
                signal(number, SIG_DFL);
                return;
        }
        running = NULL;
        take_registers(&native->out, context);
        native->outcome->vector = (int)reg[REG_TRAPNO];
        native->outcome->error_code = (uint32_t)reg[REG_ERR];
        native->outcome->cr2 = reg[REG_TRAPNO] == 14 ? (uint64_t)reg[REG_CR2] : 0;
        if (reg[REG_TRAPNO] == 3) {
                native->outcome->vector = -1;
                native->out.rip--;
        }
        reg[REG_RIP] = (greg_t)(uintptr_t)native_exit;
        reg[REG_RSP] = (greg_t)native->host_rsp;
        reg[REG_EFL] = 0x202;
        reg[REG_CSGSFS] = (reg[REG_CSGSFS] & ~(greg_t)0xffff) | CODE64;
}

static const struct sigaction our_action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

/* What the host's signals and GS are when a case does not run: another engine may have uses of its own for them. */
struct others {
        bool kept;
        struct sigaction action[ARRAY_SIZE(signals)];
        stack_t stack;
};

static void host_take(struct native *native, struct others *others)
{
        stack_t stack = { .ss_size = STACK_BYTES, .ss_sp = native->stack };
        struct sigaction now;

        sigaction(signals[0], NULL, &now);
        others->kept = now.sa_sigaction != on_signal;
        if (!others->kept)
                return;
        sigaltstack(&stack, &others->stack);
        for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
                sigaction(signals[n], &our_action, &others->action[n]);
        syscall(SYS_arch_prctl, ARCH_SET_GS, native);
}

static void host_give(const struct others *others)
{
        if (!others->kept)
                return;
        sigaltstack(&others->stack, NULL);
        for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
                sigaction(signals[n], &others->action[n], NULL);
}

static int map_at(uintptr_t address, size_t size_bytes, int prot, struct err *err)
{
        void *p = mmap((void *)address, size_bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

        return p == MAP_FAILED ? err_errno(err, -errno, "mapping %zu bytes at %#zx", size_bytes, (size_t)address) : 0;
}

static int map_all(struct err *err)
{
        int r = map_at(DATA_BASE - PAGE, 6 * PAGE, PROT_NONE, err);

        if (r == 0)
                r = map_at(CODE_BASE, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, err);
        if (r < 0)
                return r;
        if (mprotect((void *)(uintptr_t)DATA_BASE, DATA_BYTES, PROT_READ | PROT_WRITE) < 0 ||
            mprotect((void *)(uintptr_t)RO_BASE, PAGE, PROT_READ) < 0)
                return err_errno(err, -errno, "protecting the data pages");
        memset((void *)(uintptr_t)CODE_BASE, 0xcc, CODE_BYTES);
        /* Touched, so that a write to it is a protection fault natively too. */
        (void)*(volatile uint8_t *)(uintptr_t)RO_BASE;
        return 0;
}

static void native_free(struct engine *engine)
{
        struct native *native = container_of(engine, struct native, engine);

        munmap((void *)(uintptr_t)(DATA_BASE - PAGE), 6 * PAGE);
        munmap((void *)(uintptr_t)CODE_BASE, CODE_BYTES);
        free(native->stack);
        free(native);
}

static int native_new(struct engine **out, const char *model, struct err *err)
{
        struct native *native = aligned_alloc(64, align_up(sizeof(*native), 64));
        stack_t stack = { .ss_size = STACK_BYTES, .ss_sp = malloc(STACK_BYTES) };
        int r;

        if (!native || !stack.ss_sp) {
                free(native);
                free(stack.ss_sp);
                return err_nomem(err);
        }
        memset(native, 0, sizeof(*native));
        native->engine.ops = &native_ops;
        native->engine.data = (uint8_t *)(uintptr_t)DATA_BASE;
        native->stack = stack.ss_sp;
        r = map_all(err);
        if (r < 0) {
                native_free(&native->engine);
                return r;
        }
        sigaltstack(&stack, NULL);
        for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
                sigaction(signals[n], &our_action, NULL);
        syscall(SYS_arch_prctl, ARCH_SET_GS, native);
        /* 64-bit code has no use for them, 32-bit code does. */
        __asm__ volatile("movl %0, %%ds\n\tmovl %0, %%es" : : "r"(DATA32));
        *out = &native->engine;
        return 0;
}

static void put_code(struct native *native, const struct diff_case *c)
{
        uint8_t *at = (uint8_t *)(uintptr_t)case_address(c);
        unsigned size = case_size(c);

        if (native->last)
                memset(native->last, 0xcc, native->last_bytes);
        native->last = at;
        native->last_bytes = size;
        case_bytes(c, at);
        if (!c->leaves && !c->code32) {
                uint64_t back = (uintptr_t)native_return;

                memcpy(at + size, "\xff\x25\0\0\0\0", 6);
                memcpy(at + size + 6, &back, 8);
                native->last_bytes += 14;
        }
}

static void native_run(struct engine *engine, const struct diff_case *c, struct outcome *out)
{
        struct native *native = container_of(engine, struct native, engine);
        struct others others;

        engine_patch(engine, &c->patch);
        put_code(native, c);
        native->in = c->in;
        native->entry.offset = (uint32_t)case_address(c);
        native->entry.selector = c->code32 ? CODE32 : CODE64;
        native->outcome = out;
        out->vector = -1;
        out->error_code = 0;
        out->cr2 = 0;
        native->out.rip = case_address(c) + case_size(c);
        host_take(native, &others);
        running = native;
        native_enter();
        running = NULL;
        host_give(&others);
        out->after = native->out;
}

int native_try_code32(struct engine *engine, struct err *err)
{
        struct diff_case *c = aligned_alloc(64, align_up(sizeof(*c), 64));
        struct outcome out;

        if (!c)
                return err_nomem(err);
        memset(c, 0, sizeof(*c));
        c->code32 = true;
        c->count = 1;
        c->insn[0] = (struct code){ .bytes = { 0x40 }, .z.length = 1, .address = CODE_BASE }; /* INC EAX */
        operands_image(&(struct random){ 1 }, true, CODE_BASE, &c->in);
        c->in.gpr[0] = 1;
        native_run(engine, c, &out);
        free(c);
        if (out.vector >= 0 || out.after.gpr[0] != 2)
                return err_set(err, -ENOTSUP, "this host runs no 32-bit code");
        return 0;
}

const struct engine_ops native_ops = {
        .name = "native",
        .new = native_new,
        .free = native_free,
        .run = native_run,
};
