/*
 * Executing one instruction on the host's processor with given registers.
 *
 * GS points at struct native, so that registers can be loaded and stored without using any. The instruction is followed by a
 * jump back here, or for branches by breakpoints all over the code area; a breakpoint or fault arrives as a signal, whose
 * context is the output image, and whose return address is changed to the way out.
 */
#include "diff.h"

#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>

struct native {
        struct image in, out; /* the assembly below knows these offsets */
        uint64_t host_rsp;
        uint64_t entry;
        uint8_t *stack;
        uint8_t *last; /* the instruction before: its bytes are made breakpoints again */
        struct sigaction old[5];
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
#define LOAD(reg, n) "movq %gs:" STR(IN_GPR) "+8*" #n ", %" #reg "\n\t"
#define STORE(reg, n) "movq %" #reg ", %gs:" STR(OUT) "+" STR(IN_GPR) "+8*" #n "\n\t"
#define EACH(X) X(rax, 0) X(rcx, 1) X(rdx, 2) X(rbx, 3) X(rsp, 4) X(rbp, 5) X(rsi, 6) X(rdi, 7) X(r8, 8) X(r9, 9) X(r10, 10) \
        X(r11, 11) X(r12, 12) X(r13, 13) X(r14, 14) X(r15, 15)

__asm__(".text\n\t.balign 16\n\t.type native_enter, @function\nnative_enter:\n\tendbr64\n\t"
        "pushq %rbx\n\tpushq %rbp\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
        "movq %rsp, %gs:" STR(HOST_RSP) "\n\t"
        "movl $7, %eax\n\txorl %edx, %edx\n\txrstor64 %gs:" STR(IN_XSAVE) "\n\t"
        "pushq %gs:" STR(IN_RFLAGS) "\n\tpopfq\n\t"
        EACH(LOAD)
        "jmp *%gs:" STR(ENTRY) "\n"
        "native_return:\n\t"
        EACH(STORE)
        "movq %gs:" STR(HOST_RSP) ", %rsp\n\t"
        "pushfq\n\tpopq %gs:" STR(OUT) "+" STR(IN_RFLAGS) "\n\t"
        "movl $7, %eax\n\txorl %edx, %edx\n\txsave64 %gs:" STR(OUT) "\n"
        "native_exit:\n\t"
        "movq %gs:" STR(HOST_RSP) ", %rsp\n\t"
        "pushq $0x202\n\tpopfq\n\tfninit\n\tpushq $0x1f80\n\tldmxcsr (%rsp)\n\tpopq %rax\n\tvzeroupper\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbp\n\tpopq %rbx\n\tret\n\t"
        ".size native_enter, . - native_enter\n\t");

static const int signals[5] = { SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS };
static struct native *running; /* a signal handler has no other way to know */

static void take_context(struct image *out, const ucontext_t *context)
{
        static const uint8_t order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                           REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
        const greg_t *reg = context->uc_mcontext.gregs;
        uint64_t present;

        for (unsigned n = 0; n < 16; n++)
                out->gpr[n] = (uint64_t)reg[order[n]];
        out->rip = (uint64_t)reg[REG_RIP];
        out->rflags = (uint64_t)reg[REG_EFL];
        out->vector = (int)reg[REG_TRAPNO];
        out->error_code = (uint32_t)reg[REG_ERR];
        out->cr2 = (uint64_t)reg[REG_CR2];
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
        struct native *native = running;

        if (!native) {
                signal(number, SIG_DFL);
                return;
        }
        running = NULL;
        take_context(&native->out, context);
        if (number == SIGTRAP && native->out.vector == 3) {
                native->out.vector = -1;
                native->out.rip--;
        }
        context->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)native_exit;
        context->uc_mcontext.gregs[REG_RSP] = (greg_t)native->host_rsp;
        context->uc_mcontext.gregs[REG_EFL] = 0x202;
}

static int map_at(uintptr_t address, size_t size, int prot, struct err *err)
{
        void *p = mmap((void *)address, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

        return p == MAP_FAILED ? err_errno(err, -errno, "mapping %zu bytes at %#zx", size, (size_t)address) : 0;
}

int native_new(struct native **out, struct err *err)
{
        struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
        struct native *native = aligned_alloc(64, align_up(sizeof(*native), 64));
        stack_t stack = { .ss_size = 65536 };
        int r;

        if (!native)
                return err_nomem(err);
        memset(native, 0, sizeof(*native));
        r = map_at(DATA_BASE - PAGE, 6 * PAGE, PROT_NONE, err);
        if (!r)
                r = map_at(CODE_BASE, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, err);
        native->stack = malloc(stack.ss_size);
        if (!r && !native->stack)
                r = err_nomem(err);
        if (!r && (mprotect((void *)(uintptr_t)DATA_BASE, DATA_BYTES, PROT_READ | PROT_WRITE) < 0 ||
                   mprotect((void *)(uintptr_t)RO_BASE, PAGE, PROT_READ) < 0))
                r = err_errno(err, -errno, "protecting the data pages");
        if (r) {
                native_free(native);
                return r;
        }
        memset((void *)(uintptr_t)CODE_BASE, 0xcc, CODE_BYTES);
        /* Touched, so that a write to it is a protection fault natively too. */
        (void)*(volatile uint8_t *)(uintptr_t)RO_BASE;
        stack.ss_sp = native->stack;
        sigaltstack(&stack, NULL);
        for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
                sigaction(signals[n], &action, &native->old[n]);
        syscall(SYS_arch_prctl, ARCH_SET_GS, native);
        *out = native;
        return 0;
}

void native_free(struct native *native)
{
        if (!native)
                return;
        munmap((void *)(uintptr_t)(DATA_BASE - PAGE), 6 * PAGE);
        munmap((void *)(uintptr_t)CODE_BASE, CODE_BYTES);
        free(native->stack);
        free(native);
}

void native_code(struct native *native, const struct code *code)
{
        uint8_t *at = (uint8_t *)(uintptr_t)code->address;

        if (native->last)
                memset(native->last, 0xcc, 32);
        native->last = at;
        memcpy(at, code->bytes, code->z.length);
        if (!code->branch) {
                uint64_t back = (uintptr_t)native_return;

                memcpy(at + code->z.length, "\xff\x25\0\0\0\0", 6);
                memcpy(at + code->z.length + 6, &back, 8);
        }
}

void native_run(struct native *native, const struct code *code, const struct image *in, struct image *out)
{
        native->in = *in;
        native->entry = code->address;
        native->out.vector = -1;
        native->out.error_code = 0;
        native->out.cr2 = 0;
        native->out.rip = code->address + code->z.length;
        running = native;
        native_enter();
        running = NULL;
        *out = native->out;
}
