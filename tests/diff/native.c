/*
 * Running code on the host's processor with every register given.
 *
 * The frame at a fixed address holds the state that goes in and comes out, so that the entry and return code can use absolute
 * addresses and no register. An exception arrives as a signal; its handler reads the state from the context and jumps back.
 */
#include "tests/diff/diff.h"

#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ucontext.h>

#define FRAME (DIFF_BASE + 0xa000u)
#define FRAME_PAGES 0x2000u

/* Offsets are known to the code below. */
struct native_frame {
        uint64_t gpr[16];     /* 0x00 */
        uint64_t rflags;      /* 0x80 */
        uint64_t host_rsp;    /* 0x88 */
        uint64_t entry;       /* 0x90 */
        uint64_t with_xsave;  /* 0x98 */
        uint64_t scratch[4];  /* 0xa0: a stack for PUSHF and POPF ends at 0xc0 */
        uint8_t xsave[DIFF_XSAVE_BYTES] __attribute__((aligned(64))); /* 0xc0 */
};

static_assert(offsetof(struct native_frame, xsave) == 0xc0, "the code below knows it");

void native_enter(void);
void native_return(void);

__asm__(".pushsection .text\n"
        ".set F, 0x1000a000\n"
        ".globl native_enter, native_return\n"
        ".hidden native_enter, native_return\n"
        "native_enter:\n"
        "  endbr64\n"
        "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  pushfq\n"
        "  mov %rsp, F+0x88\n"
        "  cmpq $0, F+0x98\n"
        "  je 1f\n"
        "  mov $7, %eax\n  xor %edx, %edx\n  mov $F+0xc0, %ecx\n  xrstor64 (%rcx)\n"
        "1:\n"
        "  mov $F+0xc0, %esp\n"
        "  pushq F+0x80\n"
        "  popfq\n"
        "  mov F+0x00, %rax\n  mov F+0x08, %rcx\n  mov F+0x10, %rdx\n  mov F+0x18, %rbx\n"
        "  mov F+0x20, %rsp\n  mov F+0x28, %rbp\n  mov F+0x30, %rsi\n  mov F+0x38, %rdi\n"
        "  mov F+0x40, %r8\n  mov F+0x48, %r9\n  mov F+0x50, %r10\n  mov F+0x58, %r11\n"
        "  mov F+0x60, %r12\n  mov F+0x68, %r13\n  mov F+0x70, %r14\n  mov F+0x78, %r15\n"
        "  jmp *F+0x90\n"
        "native_return:\n"
        "  endbr64\n"
        "  mov %rax, F+0x00\n  mov %rcx, F+0x08\n  mov %rdx, F+0x10\n  mov %rbx, F+0x18\n"
        "  mov %rsp, F+0x20\n  mov %rbp, F+0x28\n  mov %rsi, F+0x30\n  mov %rdi, F+0x38\n"
        "  mov %r8, F+0x40\n  mov %r9, F+0x48\n  mov %r10, F+0x50\n  mov %r11, F+0x58\n"
        "  mov %r12, F+0x60\n  mov %r13, F+0x68\n  mov %r14, F+0x70\n  mov %r15, F+0x78\n"
        "  mov $F+0xc0, %esp\n"
        "  pushfq\n"
        "  popq F+0x80\n"
        "  cmpq $0, F+0x98\n"
        "  je 2f\n"
        "  mov $7, %eax\n  xor %edx, %edx\n  mov $F+0xc0, %ecx\n  xsave64 (%rcx)\n"
        "2:\n"
        "  mov F+0x88, %rsp\n"
        "  popfq\n  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
        "  cld\n"
        "  ret\n"
        ".popsection\n");

/* One at a time: what the signal handler fills. */
static struct {
        sigjmp_buf back;
        struct diff_run *run;
        bool active;
} native;

static struct native_frame *frame_at(void)
{
        return (struct native_frame *)(uintptr_t)FRAME;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
        static const int order[16] = {
                REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        };
        ucontext_t *uc = context;
        greg_t *g = uc->uc_mcontext.gregs;

        if (!native.active) {
                signal(number, SIG_DFL);
                return;
        }
        for (unsigned n = 0; n < 16; n++)
                native.run->state.gpr[n] = (uint64_t)g[order[n]];
        native.run->state.rflags = (uint64_t)g[REG_EFL];
        native.run->vector = (int)g[REG_TRAPNO];
        native.run->error_code = (uint32_t)g[REG_ERR];
        native.run->cr2 = (uint64_t)g[REG_CR2];
        native.run->rip = (uint64_t)g[REG_RIP] - DIFF_CODE;
        if (frame_at()->with_xsave)
                memcpy(native.run->state.xsave, uc->uc_mcontext.fpregs, DIFF_XSAVE_BYTES);
        siglongjmp(native.back, 1);
}

static int map_at(uint64_t address, size_t size_bytes, int protection, struct err *err)
{
        void *at = mmap((void *)(uintptr_t)address, size_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                        0);

        if (at == MAP_FAILED)
                return err_errno(err, -errno, "cannot map 0x%llx", (unsigned long long)address);
        return 0;
}

int native_init(struct err *err)
{
        static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
        struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
        stack_t stack = { .ss_size = 1 << 16 };
        int r = map_at(DIFF_CODE, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, err);

        if (r == 0)
                r = map_at(DIFF_DATA, DIFF_DATA_BYTES, PROT_READ | PROT_WRITE, err);
        if (r == 0)
                r = map_at(DIFF_STACK, DIFF_STACK_BYTES, PROT_READ | PROT_WRITE, err);
        if (r == 0)
                r = map_at(FRAME, FRAME_PAGES, PROT_READ | PROT_WRITE, err);
        if (r < 0)
                return r;
        stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) < 0)
                return err_errno(err, -errno, "cannot make a signal stack");
        sigemptyset(&action.sa_mask);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
                sigaction(signals[i], &action, NULL);
        return 0;
}

/* jmp *0(%rip) and the address: changes no register and no flag. */
static void put_code(const uint8_t *code, size_t size_bytes)
{
        uint8_t *at = (uint8_t *)(uintptr_t)DIFF_CODE;
        static const uint8_t jump[] = { 0xff, 0x25, 0, 0, 0, 0 };
        uint64_t target = (uint64_t)(uintptr_t)native_return;

        memcpy(at, code, size_bytes);
        memcpy(at + size_bytes, jump, sizeof(jump));
        memcpy(at + size_bytes + sizeof(jump), &target, sizeof(target));
}

void native_run(const uint8_t *code, size_t size_bytes, struct diff_run *run, bool with_xsave)
{
        struct native_frame *frame = frame_at();

        put_code(code, size_bytes);
        memcpy((void *)(uintptr_t)DIFF_DATA, run->memory.data, DIFF_DATA_BYTES);
        memcpy((void *)(uintptr_t)DIFF_STACK, run->memory.stack, DIFF_STACK_BYTES);
        memcpy(frame->gpr, run->state.gpr, sizeof(frame->gpr));
        frame->rflags = (run->state.rflags & (X86_FLAGS_STATUS | X86_FLAG_DF)) | X86_FLAG_FIXED | X86_FLAG_IF;
        frame->entry = DIFF_CODE;
        frame->with_xsave = with_xsave;
        if (with_xsave)
                memcpy(frame->xsave, run->state.xsave, sizeof(frame->xsave));
        native.run = run;
        if (sigsetjmp(native.back, 1) == 0) {
                native.active = true;
                native_enter();
                memcpy(run->state.gpr, frame->gpr, sizeof(frame->gpr));
                run->state.rflags = frame->rflags;
                if (with_xsave)
                        memcpy(run->state.xsave, frame->xsave, sizeof(frame->xsave));
                run->vector = -1;
                run->error_code = 0;
                run->cr2 = 0;
                run->rip = size_bytes;
        }
        native.active = false;
        memcpy(run->memory.data, (void *)(uintptr_t)DIFF_DATA, DIFF_DATA_BYTES);
        memcpy(run->memory.stack, (void *)(uintptr_t)DIFF_STACK, DIFF_STACK_BYTES);
}
