/*
 * Whether KVM here runs ordinary code at a processor's speed: a tiny guest in long mode, timed.
 *
 * Some hosts offer a /dev/kvm with no VT-x or AMD-V behind it, which emulates most guest code at about a million instructions a
 * second and cannot boot a stock kernel. Opening the device and asking for capabilities does not tell; running code does. The
 * guest is a loop of loads, stores, arithmetic, calls and branches; its result is checked against the same loop here.
 *
 * A busy host must not make a good KVM look bad: a repeating timer signal ends KVM_RUN and so cuts the run into slices, the speed
 * is that of the best slice, by this thread's processor time, and the limit is a number of slices (a hypervisor below us may take
 * the processor away with no trace in our times). A first short run, which makes the kernel's page tables, has longer.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "vmm/accel-kvm.h"

#define PROBE_MEMORY 0x10000u
#define PROBE_PML4 0x1000u
#define PROBE_PDPT 0x2000u
#define PROBE_DIRECTORY 0x3000u
#define PROBE_CODE 0x4000u
#define PROBE_STACK 0x9000u
#define PROBE_DATA 0xa000u
#define PROBE_WARM_UP 200u
#define PROBE_ROUNDS 20000u
#define PROBE_ROUND_INSTRUCTIONS 13u
#define PROBE_LIMIT_NS UINT64_C(1000000000)
#define PROBE_SLICES 8u
#define PROBE_SIGNAL_NS 5000000
/* Emulating ones do about one; a true one does thousands, and tens inside of an emulator. */
#define PROBE_MILLION_INSTRUCTIONS_S_MIN 5.0

static const uint8_t probe_code[] = {
        0x48, 0x8b, 0x06,             /* 00 mov (%rsi), %rax */
        0x48, 0x01, 0xc8,             /* 03 add %rcx, %rax */
        0x48, 0xc1, 0xc0, 0x05,       /* 06 rol $5, %rax */
        0x48, 0x89, 0x06,             /* 0a mov %rax, (%rsi) */
        0x50,                         /* 0d push %rax */
        0x48, 0x6b, 0xd0, 0x03,       /* 0e imul $3, %rax, %rdx */
        0x5b,                         /* 12 pop %rbx */
        0x48, 0x31, 0xd3,             /* 13 xor %rdx, %rbx */
        0xe8, 0x06, 0x00, 0x00, 0x00, /* 16 call 21 */
        0x48, 0xff, 0xc9,             /* 1b dec %rcx */
        0x75, 0xe0,                   /* 1e jnz 00 */
        0xf4,                         /* 20 hlt */
        0x48, 0x01, 0x1e,             /* 21 add %rbx, (%rsi) */
        0xc3,                         /* 24 ret */
};

struct probe {
        int kvm, vm, vcpu;
        uint8_t *memory;
        struct kvm_run *run;
        size_t run_bytes;
        timer_t timer;
        bool has_timer;
        struct sigaction old_action;
        sigset_t old_mask;
        bool has_action;
};

static void probe_done(struct probe *p)
{
        if (p->has_timer)
                timer_delete(p->timer);
        if (p->has_action) {
                sigaction(VCPU_KICK_SIGNAL, &p->old_action, NULL);
                pthread_sigmask(SIG_SETMASK, &p->old_mask, NULL);
        }
        if (p->run)
                munmap(p->run, p->run_bytes);
        closep(&p->vcpu);
        closep(&p->vm);
        closep(&p->kvm);
        if (p->memory)
                munmap(p->memory, PROBE_MEMORY);
}

static uint64_t clock_ns(clockid_t clock)
{
        struct timespec ts;

        clock_gettime(clock, &ts);
        return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void ignore_signal(int number)
{
}

static int probe_memory(struct probe *p, struct err *err)
{
        struct kvm_userspace_memory_region region = { .memory_size = PROBE_MEMORY };
        int r;

        p->memory = mmap(NULL, PROBE_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p->memory == MAP_FAILED) {
                p->memory = NULL;
                return err_nomem(err);
        }
        /* Present, writable; the directory's only entry is a 2 MiB page. */
        *(uint64_t *)(p->memory + PROBE_PML4) = PROBE_PDPT | 3;
        *(uint64_t *)(p->memory + PROBE_PDPT) = PROBE_DIRECTORY | 3;
        *(uint64_t *)(p->memory + PROBE_DIRECTORY) = 0x83;
        memcpy(p->memory + PROBE_CODE, probe_code, sizeof(probe_code));
        region.userspace_addr = (uintptr_t)p->memory;
        r = kvm_ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region);
        return r < 0 ? err_errno(err, r, "KVM takes no memory for a test guest") : 0;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type, bool code64)
{
        return (struct kvm_segment){
                .selector = selector,
                .type = type,
                .limit = UINT32_MAX,
                .present = 1,
                .s = 1,
                .g = 1,
                .l = code64,
                .db = !code64,
        };
}

static int probe_registers(struct probe *p, uint64_t rounds, struct err *err)
{
        struct kvm_regs regs = {
                .rip = PROBE_CODE,
                .rsp = PROBE_STACK,
                .rsi = PROBE_DATA,
                .rcx = rounds,
                .rflags = X86_FLAG_FIXED,
        };
        struct kvm_sregs sregs;
        int r = kvm_ioctl(p->vcpu, KVM_GET_SREGS, &sregs);

        if (r >= 0) {
                sregs.cs = flat(0x10, 0xb, true);
                sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(0x18, 0x3, false);
                sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
                sregs.cr3 = PROBE_PML4;
                sregs.cr4 = X86_CR4_PAE;
                sregs.efer = X86_EFER_LME | X86_EFER_LMA;
                r = kvm_ioctl(p->vcpu, KVM_SET_SREGS, &sregs);
        }
        if (r >= 0)
                r = kvm_ioctl(p->vcpu, KVM_SET_REGS, &regs);
        return r < 0 ? err_errno(err, r, "KVM does not take a test guest's registers") : 0;
}

static int probe_timer(struct probe *p, struct err *err)
{
        struct sigaction action = { .sa_handler = ignore_signal };
        struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = VCPU_KICK_SIGNAL };
        struct itimerspec period = { { 0, PROBE_SIGNAL_NS }, { 0, PROBE_SIGNAL_NS } };
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, VCPU_KICK_SIGNAL);
        sigaction(VCPU_KICK_SIGNAL, &action, &p->old_action);
        pthread_sigmask(SIG_UNBLOCK, &set, &p->old_mask);
        p->has_action = true;
        event._sigev_un._tid = gettid();
        if (timer_create(CLOCK_MONOTONIC, &event, &p->timer) < 0)
                return err_errno(err, -errno, "cannot make a timer");
        p->has_timer = true;
        if (timer_settime(p->timer, 0, &period, NULL) < 0)
                return err_errno(err, -errno, "cannot set a timer");
        return 0;
}

static int probe_make(struct probe *p, struct err *err)
{
        int r;

        p->kvm = kvm_open(err);
        if (p->kvm < 0)
                return p->kvm;
        p->vm = kvm_ioctl_value(p->kvm, KVM_CREATE_VM, 0);
        if (p->vm < 0)
                return err_errno(err, p->vm, "KVM makes no virtual machine");
        r = probe_memory(p, err);
        if (r < 0)
                return r;
        p->vcpu = kvm_ioctl_value(p->vm, KVM_CREATE_VCPU, 0);
        if (p->vcpu < 0)
                return err_errno(err, p->vcpu, "KVM makes no virtual processor");
        r = kvm_ioctl_value(p->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
        if (r < 0)
                return err_errno(err, r, "KVM does not say how large its run area is");
        p->run_bytes = (size_t)r;
        p->run = mmap(NULL, p->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
        if (p->run == MAP_FAILED) {
                p->run = NULL;
                return err_errno(err, -errno, "cannot map KVM's run area");
        }
        return probe_timer(p, err);
}

/* 1: it came to its end; 0: it was interrupted. */
static int probe_run(struct probe *p, struct err *err)
{
        int r = ioctl(p->vcpu, KVM_RUN, 0) < 0 ? -errno : 0;

        if (r == -EINTR || r == -EAGAIN)
                return 0;
        if (r < 0)
                return err_errno(err, r, "KVM does not run a test guest");
        if (p->run->exit_reason == KVM_EXIT_HLT)
                return 1;
        return err_set(err, -EIO, "KVM ends a test guest with exit %u", p->run->exit_reason);
}

static int probe_warm_up(struct probe *p, struct err *err)
{
        uint64_t deadline_ns = clock_ns(CLOCK_MONOTONIC) + PROBE_LIMIT_NS;
        int r = probe_registers(p, PROBE_WARM_UP, err);

        while (r >= 0) {
                r = probe_run(p, err);
                if (r > 0)
                        return 0;
                if (r == 0 && clock_ns(CLOCK_MONOTONIC) >= deadline_ns)
                        return err_set(err, -EOPNOTSUPP, "KVM did not run %u instructions in %u ms",
                                       PROBE_WARM_UP * PROBE_ROUND_INSTRUCTIONS, (unsigned)(PROBE_LIMIT_NS / 1000000));
        }
        return r;
}

/* What the guest leaves in memory. */
static uint64_t expected(uint64_t value, uint64_t rounds)
{
        for (uint64_t rcx = rounds; rcx; rcx--) {
                uint64_t rax = value + rcx;

                rax = rax << 5 | rax >> 59;
                value = rax + (rax ^ rax * 3);
        }
        return value;
}

/* *speed: million instructions a second in the best slice. */
static int probe_measure(struct probe *p, double *speed, struct err *err)
{
        uint64_t deadline_ns = clock_ns(CLOCK_MONOTONIC) + PROBE_LIMIT_NS, left = PROBE_ROUNDS;
        int r = probe_registers(p, PROBE_ROUNDS, err);

        for (unsigned slice = 0; r == 0 && slice < PROBE_SLICES && clock_ns(CLOCK_MONOTONIC) < deadline_ns; slice++) {
                uint64_t start_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID), spent_ns;
                struct kvm_regs regs;

                r = probe_run(p, err);
                spent_ns = MAX(clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns, UINT64_C(1));
                if (r >= 0 && (kvm_ioctl(p->vcpu, KVM_GET_REGS, &regs) < 0 || regs.rcx > left))
                        return err_set(err, -EIO, "KVM does not tell a test guest's registers");
                if (r >= 0) {
                        *speed = MAX(*speed, (double)((left - regs.rcx) * PROBE_ROUND_INSTRUCTIONS) * 1000.0 / (double)spent_ns);
                        left = regs.rcx;
                }
        }
        if (r > 0 && *(uint64_t *)(p->memory + PROBE_DATA) != expected(expected(0, PROBE_WARM_UP), PROBE_ROUNDS))
                return err_set(err, -EIO, "KVM runs a test guest to a wrong result");
        return MIN(r, 0);
}

int kvm_probe(double *million_instructions_s, struct err *err)
{
        struct probe p = { .kvm = -1, .vm = -1, .vcpu = -1 };
        double speed = 0;
        int r = probe_make(&p, err);

        if (r >= 0 && p.run)
                r = probe_warm_up(&p, err);
        if (r >= 0 && p.run)
                r = probe_measure(&p, &speed, err);
        probe_done(&p);
        *million_instructions_s = speed;
        if (r < 0)
                return r;
        if (speed < PROBE_MILLION_INSTRUCTIONS_S_MIN)
                return err_set(err, -EOPNOTSUPP,
                               "KVM here runs only %.2f million instructions a second: there is no VT-x or AMD-V behind it",
                               speed);
        return 0;
}
