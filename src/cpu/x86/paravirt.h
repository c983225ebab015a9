/*
 * The paravirtual interface of a processor, as KVM defines it: clock, steal time, TLB flushes by flag.
 *
 * All functions are called on the processor's own thread.
 */
#pragma once

#include "cpu/x86/x86.h"

#define PV_MSR_WALL_CLOCK_OLD 0x11u
#define PV_MSR_SYSTEM_TIME_OLD 0x12u
#define PV_MSR_WALL_CLOCK 0x4b564d00u
#define PV_MSR_SYSTEM_TIME 0x4b564d01u
#define PV_MSR_ASYNC_PF_EN 0x4b564d02u
#define PV_MSR_STEAL_TIME 0x4b564d03u
#define PV_MSR_EOI_EN 0x4b564d04u
#define PV_MSR_POLL_CONTROL 0x4b564d05u

int paravirt_new(struct x86_cpu *cpu, struct err *err) _must_check_;
void paravirt_free(struct x86_cpu *cpu);

/* x86_cpu_run() begins and ends: the guest sees this processor as running, or as preempted. enter may flush the TLB. */
void paravirt_enter(struct x86_cpu *cpu);
void paravirt_leave(struct x86_cpu *cpu);
/* Now and then while running: refreshes steal time when it is old. */
void paravirt_tick(struct x86_cpu *cpu);
/* The state was loaded or the TSC changed: writes the clock anew. */
void paravirt_refresh(struct x86_cpu *cpu);

/* MSRs 0x11, 0x12 and 0x4b564d00 …; -EPERM: #GP. */
int paravirt_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value);
int paravirt_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value);

/* VMCALL and VMMCALL: number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX. */
void paravirt_hypercall(struct x86_cpu *cpu);
