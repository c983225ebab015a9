/*
 * A local APIC: registers (xAPIC memory and x2APIC MSRs), requests, priorities, end of interrupt.
 *
 *   sender ──▶ IRR ──lapic_ack(): above the processor's priority──▶ ISR ──EOI──▶ gone (level-triggered: I/O APIC told)
 *
 * No lock: a sender sets the TMR bit, then the IRR bit (release), then calls the processor; the processor's own thread takes
 * bits from IRR (acquire) to ISR. Whatever else senders look at (mode, IDs, enable bits, task priority) are single words that
 * only the own processor writes. A sender that finds its IRR bit set already need not call again: whoever set it did.
 * The timer has a lock of its own.
 *
 * PV EOI (KVM, MSR 0x4b564d04): when nothing else is requested or in service a flag in guest memory allows the guest to end
 * the interrupt by clearing it, without an access here. It is looked at whenever ISR matters next.
 *
 * Limits: the registers stay at 0xfee00000 whatever IA32_APIC_BASE says; SMIs are dropped; no thermal or counter interrupts
 * arise; the 8-bit logical model of xAPIC serves 8 (flat) or 60 (cluster) processors, as it does on hardware.
 *
 * Source: Intel SDM vol. 3A chapter 11; KVM: Documentation/virt/kvm/x86/msr.rst (MSR_KVM_PV_EOI_EN).
 */
#include "device/lapic-internal.h"

#include <errno.h>
#include <inttypes.h>

#define APIC_DEFAULT_BASE UINT64_C(0xfee00000)
#define VERSION (0x14u | (LVTS - 1) << 16 | 1u << 24)
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC 0x800
#define MSR_X2APIC_LAST 0x8ff

/* Register numbers: the xAPIC offset / 16, the x2APIC MSR - 0x800. Table 11-6. */
enum {
        REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0a, REG_EOI = 0x0b, REG_RRD = 0x0c, REG_LDR = 0x0d,
        REG_DFR = 0x0e, REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28, REG_CMCI = 0x2f, REG_ICR = 0x30,
        REG_ICR_HIGH = 0x31, REG_LVT = 0x32, REG_INITIAL = 0x38, REG_CURRENT = 0x39, REG_DIVIDE = 0x3e, REG_SELF_IPI = 0x3f, REGS = 0x40,
};

static const uint32_t lvt_writable[LVTS] = {
        [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_COUNTER] = 0x107ff,
        [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff, [LVT_ERROR] = 0x100ff,
};

/* ---- bits and priorities ---- */

static int highest(const _Atomic uint32_t words[8])
{
        for (int i = 7; i >= 0; i--) {
                uint32_t word = atomic_load_explicit(&words[i], memory_order_acquire);

                if (word)
                        return 32 * i + 31 - __builtin_clz(word);
        }
        return -1;
}

static void set_bit(_Atomic uint32_t words[8], uint8_t vector)
{
        atomic_fetch_or_explicit(&words[vector / 32], 1u << vector % 32, memory_order_relaxed);
}

static void clear_bit(_Atomic uint32_t words[8], uint8_t vector)
{
        atomic_fetch_and_explicit(&words[vector / 32], ~(1u << vector % 32), memory_order_relaxed);
}

static bool test_bit(const _Atomic uint32_t words[8], uint8_t vector)
{
        return lapic_get(words[vector / 32]) >> vector % 32 & 1;
}

/* PPR, §11.8.3.1 */
unsigned lapic_priority(const struct lapic *lapic)
{
        unsigned tpr = lapic_get(lapic->tpr);
        int serving = highest(lapic->isr);
        unsigned isrv = serving < 0 ? 0 : (unsigned)serving;

        return tpr >> 4 >= isrv >> 4 ? tpr : isrv & 0xf0;
}

/* The vector in IRR that may be delivered now, or -1. */
static int deliverable(const struct lapic *lapic)
{
        int vector = highest(lapic->irr);

        return vector >= 0 && (unsigned)vector >> 4 > lapic_priority(lapic) >> 4 ? vector : -1;
}

static void call_processor(const struct lapic *lapic)
{
        if (lapic->processor.interrupt)
                lapic->processor.interrupt(lapic->processor.ctx);
}

/* The own processor did something that may open the way. */
static void look_again(struct lapic *lapic)
{
        if (lapic_pending(lapic))
                call_processor(lapic);
}

/* ---- arriving interrupts ---- */

void lapic_error(struct lapic *lapic, uint32_t bits)
{
        uint32_t lvt = lapic_get(lapic->lvt[LVT_ERROR]);

        atomic_fetch_or(&lapic->errors, bits);
        /* An illegal vector here would be the next error of its own. */
        if (!(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
                lapic_accept(lapic, (uint8_t)lvt, false);
}

void lapic_accept(struct lapic *lapic, uint8_t vector, bool level)
{
        uint32_t bit = 1u << vector % 32;

        if (!lapic_enabled(lapic))
                return;
        if (vector < 16) {
                lapic_error(lapic, ESR_RECEIVE_VECTOR);
                return;
        }
        if (level)
                set_bit(lapic->tmr, vector);
        else
                clear_bit(lapic->tmr, vector);
        if (!(atomic_fetch_or_explicit(&lapic->irr[vector / 32], bit, memory_order_release) & bit))
                call_processor(lapic);
}

void lapic_deliver(struct lapic *lapic, enum lapic_mode mode, uint8_t vector, bool level)
{
        const struct lapic_processor *processor = &lapic->processor;

        switch (mode) {
        case MODE_FIXED:
        case MODE_LOWEST:
                lapic_accept(lapic, vector, level);
                break;
        case MODE_NMI:
                if (processor->nmi)
                        processor->nmi(processor->ctx);
                break;
        case MODE_INIT:
                if (processor->init)
                        processor->init(processor->ctx);
                break;
        case MODE_SIPI:
                if (processor->sipi)
                        processor->sipi(processor->ctx, vector);
                break;
        case MODE_EXTINT:
                atomic_store(&lapic->extint_message, true);
                call_processor(lapic);
                break;
        default: /* SMI, reserved */
                break;
        }
}

void lapic_local(struct lapic *lapic, enum lapic_lvt source)
{
        uint32_t lvt = lapic_get(lapic->lvt[source]);
        enum lapic_mode mode = source == LVT_TIMER || source == LVT_ERROR ? MODE_FIXED : lvt >> 8 & 7;

        if (!(lvt & LVT_MASKED) && lapic_on(lapic))
                lapic_deliver(lapic, mode, (uint8_t)lvt, false);
}

/* ---- PV EOI ---- */

static _Atomic uint8_t *pv_eoi_flag(const struct lapic *lapic)
{
        if (!(lapic->pv_eoi & 1) || !lapic->bus->host->mem)
                return NULL;
        return guest_memory_at(lapic->bus->host->mem, lapic->pv_eoi & ~UINT64_C(3), 4);
}

static void set_pv_eoi_flag(struct lapic *lapic, bool value)
{
        _Atomic uint8_t *flag = pv_eoi_flag(lapic);

        if (!flag)
                return;
        if (value)
                atomic_fetch_or(flag, 1);
        else
                atomic_fetch_and(flag, 0xfe);
        guest_memory_written(lapic->bus->host->mem, lapic->pv_eoi & ~UINT64_C(3), 1);
}

static void end_of_interrupt(struct lapic *lapic)
{
        int vector = highest(lapic->isr);
        struct lapic_bus *bus = lapic->bus;

        if (vector < 0)
                return;
        clear_bit(lapic->isr, (uint8_t)vector);
        if (test_bit(lapic->tmr, (uint8_t)vector) && !(lapic_get(lapic->svr) & SVR_NO_EOI_BROADCAST) && bus->ioapic_eoi)
                bus->ioapic_eoi(bus->ioapic_ctx, (uint8_t)vector);
}

/* Takes the flag back: when the guest has cleared it the interrupt has ended, else the guest must write EOI. */
static void pv_eoi_sync(struct lapic *lapic)
{
        _Atomic uint8_t *flag;

        if (!lapic->pv_eoi_pending)
                return;
        lapic->pv_eoi_pending = false;
        flag = pv_eoi_flag(lapic);
        if (flag && !(atomic_fetch_and(flag, 0xfe) & 1))
                end_of_interrupt(lapic);
}

/* vector has just gone into service. */
static void pv_eoi_offer(struct lapic *lapic, uint8_t vector)
{
        if (!(lapic->pv_eoi & 1) || test_bit(lapic->tmr, vector) || highest(lapic->irr) >= 0)
                return;
        /* Alone in service? */
        for (unsigned i = 0; i < 8; i++) {
                if (lapic_get(lapic->isr[i]) & ~(i == vector / 32u ? 1u << vector % 32 : 0))
                        return;
        }
        if (!pv_eoi_flag(lapic))
                return;
        set_pv_eoi_flag(lapic, true);
        lapic->pv_eoi_pending = true;
}

void lapic_set_pv_eoi(struct lapic *lapic, uint64_t msr_value)
{
        pv_eoi_sync(lapic);
        lapic->pv_eoi = msr_value;
        set_pv_eoi_flag(lapic, false);
}

uint64_t lapic_pv_eoi(const struct lapic *lapic)
{
        return lapic->pv_eoi;
}

/* ---- delivery to the processor ---- */

static bool extint_requested(const struct lapic *lapic)
{
        uint32_t lint0 = lapic_get(lapic->lvt[LVT_LINT0]);

        if (lapic_get(lapic->extint_message))
                return true;
        if (lapic->index || !atomic_load(&lapic->bus->extint))
                return false;
        return !lapic_on(lapic) || (!(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == MODE_EXTINT);
}

bool lapic_pending(struct lapic *lapic)
{
        if (extint_requested(lapic))
                return true;
        pv_eoi_sync(lapic);
        return lapic_on(lapic) && deliverable(lapic) >= 0;
}

int lapic_ack(struct lapic *lapic)
{
        struct lapic_bus *bus = lapic->bus;
        int vector;

        if (unlikely(extint_requested(lapic)) && bus->pic_ack) {
                atomic_store(&lapic->extint_message, false);
                return bus->pic_ack(bus->pic_ctx);
        }
        if (!lapic_on(lapic))
                return -1;
        pv_eoi_sync(lapic);
        vector = deliverable(lapic);
        if (vector < 0)
                return -1;
        set_bit(lapic->isr, (uint8_t)vector);
        clear_bit(lapic->irr, (uint8_t)vector);
        pv_eoi_offer(lapic, (uint8_t)vector);
        return vector;
}

uint8_t lapic_tpr(struct lapic *lapic)
{
        return (uint8_t)(lapic_get(lapic->tpr) >> 4);
}

static void write_tpr(struct lapic *lapic, uint32_t value)
{
        lapic_put(lapic->tpr, value & 0xff);
        look_again(lapic);
}

void lapic_set_tpr(struct lapic *lapic, uint8_t priority)
{
        write_tpr(lapic, (uint32_t)priority << 4);
}

/* ---- registers ---- */

static uint32_t x2_ldr(const struct lapic *lapic)
{
        return lapic->index >> 4 << 16 | 1u << (lapic->index & 0xf); /* §11.12.10.2 */
}

static uint32_t read_register(struct lapic *lapic, unsigned reg)
{
        switch (reg) {
        case REG_ID:
                return lapic_x2(lapic) ? lapic->index : lapic_get(lapic->id);
        case REG_VERSION:
                return VERSION;
        case REG_TPR:
                return lapic_get(lapic->tpr);
        case REG_APR:
        case REG_PPR:
                pv_eoi_sync(lapic);
                return lapic_priority(lapic);
        case REG_LDR:
                return lapic_get(lapic->ldr);
        case REG_DFR:
                return lapic_get(lapic->dfr);
        case REG_SVR:
                return lapic_get(lapic->svr);
        case REG_ISR ... REG_ISR + 7:
                pv_eoi_sync(lapic);
                return lapic_get(lapic->isr[reg - REG_ISR]);
        case REG_TMR ... REG_TMR + 7:
                return lapic_get(lapic->tmr[reg - REG_TMR]);
        case REG_IRR ... REG_IRR + 7:
                return lapic_get(lapic->irr[reg - REG_IRR]);
        case REG_ESR:
                return lapic->esr;
        case REG_ICR:
                return (uint32_t)lapic->icr;
        case REG_ICR_HIGH:
                return (uint32_t)(lapic->icr >> 32);
        case REG_LVT ... REG_LVT + LVTS - 1:
                return lapic_get(lapic->lvt[reg - REG_LVT]);
        case REG_INITIAL:
                return lapic->timer_initial;
        case REG_CURRENT:
                return lapic_timer_current(lapic);
        case REG_DIVIDE:
                return lapic->timer_divide;
        default:
                return 0;
        }
}

static void write_svr(struct lapic *lapic, uint32_t value)
{
        lapic_put(lapic->svr, value & 0x13ff);
        /* Disabled by software: all local sources masked (§11.4.7.2). */
        for (unsigned i = 0; !(value & SVR_ENABLED) && i < LVTS; i++)
                lapic_put(lapic->lvt[i], lapic_get(lapic->lvt[i]) | LVT_MASKED);
}

static void write_lvt(struct lapic *lapic, enum lapic_lvt entry, uint32_t value)
{
        uint32_t before = lapic_get(lapic->lvt[entry]);

        value &= lvt_writable[entry];
        if (!(lapic_get(lapic->svr) & SVR_ENABLED))
                value |= LVT_MASKED;
        lapic_put(lapic->lvt[entry], value);
        if (entry == LVT_TIMER)
                lapic_timer_mode(lapic, before, value);
        if (entry == LVT_LINT0)
                look_again(lapic); /* the 8259 may have been waiting */
}

static void write_eoi(struct lapic *lapic)
{
        pv_eoi_sync(lapic);
        end_of_interrupt(lapic);
        look_again(lapic);
}

static void write_register(struct lapic *lapic, unsigned reg, uint32_t value)
{
        switch (reg) {
        case REG_ID:
                lapic_put(lapic->id, value & 0xff000000);
                break;
        case REG_TPR:
                write_tpr(lapic, value);
                break;
        case REG_EOI:
                write_eoi(lapic);
                break;
        case REG_LDR:
                lapic_put(lapic->ldr, value & 0xff000000);
                break;
        case REG_DFR:
                lapic_put(lapic->dfr, value | 0x0fffffff);
                break;
        case REG_SVR:
                write_svr(lapic, value);
                break;
        case REG_ESR:
                lapic->esr = atomic_exchange(&lapic->errors, 0);
                break;
        case REG_ICR:
                lapic->icr = (lapic->icr & ~UINT64_C(0xffffffff)) | (value & ICR_WRITABLE);
                lapic_ipi(lapic, (uint32_t)lapic->icr, (uint32_t)(lapic->icr >> 56));
                break;
        case REG_ICR_HIGH:
                lapic->icr = (lapic->icr & 0xffffffff) | (uint64_t)(value & 0xff000000) << 32;
                break;
        case REG_LVT ... REG_LVT + LVTS - 1:
                write_lvt(lapic, reg - REG_LVT, value);
                break;
        case REG_INITIAL:
                lapic_timer_set_initial(lapic, value);
                break;
        case REG_DIVIDE:
                lapic_timer_set_divide(lapic, value);
                break;
        default:
                break;
        }
}

enum { ACCESS_READ = 1, ACCESS_WRITE = 2, ACCESS_X2_READ = 4, ACCESS_X2_WRITE = 8 };

/* Tables 11-1 and 11-6. */
static unsigned register_access(unsigned reg)
{
        switch (reg) {
        case REG_ID:
                return ACCESS_READ | ACCESS_WRITE | ACCESS_X2_READ;
        case REG_LDR:
                return ACCESS_READ | ACCESS_WRITE | ACCESS_X2_READ;
        case REG_DFR:
        case REG_ICR_HIGH:
                return ACCESS_READ | ACCESS_WRITE;
        case REG_APR:
        case REG_RRD:
                return ACCESS_READ;
        case REG_VERSION:
        case REG_PPR:
        case REG_CURRENT:
        case REG_ISR ... REG_ISR + 7:
        case REG_TMR ... REG_TMR + 7:
        case REG_IRR ... REG_IRR + 7:
                return ACCESS_READ | ACCESS_X2_READ;
        case REG_TPR:
        case REG_SVR:
        case REG_ESR:
        case REG_ICR:
        case REG_INITIAL:
        case REG_DIVIDE:
        case REG_LVT ... REG_LVT + LVTS - 1:
                return ACCESS_READ | ACCESS_WRITE | ACCESS_X2_READ | ACCESS_X2_WRITE;
        case REG_EOI:
                return ACCESS_WRITE | ACCESS_X2_WRITE;
        case REG_SELF_IPI:
                return ACCESS_X2_WRITE;
        default:
                return 0;
        }
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size_bytes)
{
        unsigned reg = (unsigned)(offset >> 4);

        if ((lapic_get(lapic->base) & (APIC_BASE_ON | APIC_BASE_X2)) != APIC_BASE_ON || offset >= 0x1000)
                return UINT64_MAX;
        if (reg >= REGS || !(register_access(reg) & (ACCESS_READ | ACCESS_WRITE))) {
                lapic_error(lapic, ESR_REGISTER);
                return 0;
        }
        /* Each register is 32 bits of 128; other accesses are undefined (§11.4.1) and give the bytes that are there. */
        return offset & 0xc ? 0 : read_register(lapic, reg) >> (8 * (offset & 3));
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        unsigned reg = (unsigned)(offset >> 4);

        if ((lapic_get(lapic->base) & (APIC_BASE_ON | APIC_BASE_X2)) != APIC_BASE_ON || offset >= 0x1000)
                return;
        if (reg >= REGS || !(register_access(reg) & (ACCESS_READ | ACCESS_WRITE))) {
                lapic_error(lapic, ESR_REGISTER);
                return;
        }
        if (!(offset & 0xf) && size_bytes >= 4 && (register_access(reg) & ACCESS_WRITE))
                write_register(lapic, reg, (uint32_t)value);
}

/* ---- MSRs ---- */

static void reset_registers(struct lapic *lapic)
{
        lapic_timer_stop(lapic);
        lapic->timer_initial = lapic->timer_divide = 0;
        lapic_put(lapic->ldr, lapic_x2(lapic) ? x2_ldr(lapic) : 0);
        lapic_put(lapic->dfr, UINT32_MAX);
        lapic_put(lapic->svr, 0xff);
        lapic_put(lapic->tpr, 0);
        for (unsigned i = 0; i < LVTS; i++)
                lapic_put(lapic->lvt[i], LVT_MASKED);
        for (unsigned i = 0; i < 8; i++) {
                lapic_put(lapic->irr[i], 0);
                lapic_put(lapic->isr[i], 0);
                lapic_put(lapic->tmr[i], 0);
        }
        atomic_store(&lapic->errors, 0);
        atomic_store(&lapic->extint_message, false);
        lapic->esr = 0;
        lapic->icr = 0;
        lapic->pv_eoi_pending = false;
}

void lapic_reset(struct lapic *lapic, bool init_only)
{
        reset_registers(lapic);
        if (init_only)
                return; /* INIT keeps the ID, IA32_APIC_BASE (§11.4.7.3) and, as KVM does, the PV EOI MSR */
        lapic->pv_eoi = 0;
        lapic_put(lapic->base, APIC_DEFAULT_BASE | APIC_BASE_ON | (lapic->index ? 0 : APIC_BASE_BSP));
        lapic_put(lapic->id, lapic->index << 24);
        lapic_put(lapic->ldr, 0);
        /* Virtual wire mode, as firmware leaves it: the boot processor hears the 8259, all hear NMI (MP 1.4 §3.6.2.2). */
        if (!lapic->index)
                lapic_put(lapic->lvt[LVT_LINT0], (uint32_t)MODE_EXTINT << 8);
        lapic_put(lapic->lvt[LVT_LINT1], (uint32_t)MODE_NMI << 8);
}

/* Figure 11-27: which changes of mode there are. */
static bool base_possible(uint64_t before, uint64_t after)
{
        const uint64_t mode = APIC_BASE_ON | APIC_BASE_X2;

        if (after & ~(APIC_BASE_ADDRESS | mode | APIC_BASE_BSP))
                return false;
        if ((after & mode) == APIC_BASE_X2)
                return false;
        if ((before & mode) == mode && (after & mode) == APIC_BASE_ON)
                return false;
        return (before & mode) || (after & mode) != mode;
}

static int write_base(struct lapic *lapic, uint64_t value)
{
        uint64_t before = lapic_get(lapic->base);

        if (!base_possible(before, value))
                return -EPERM;
        value = (value & ~APIC_BASE_BSP) | (before & APIC_BASE_BSP);
        lapic_put(lapic->base, value);
        if ((before & APIC_BASE_ON) && !(value & APIC_BASE_ON))
                reset_registers(lapic);
        if (!(before & APIC_BASE_X2) && (value & APIC_BASE_X2)) {
                lapic_put(lapic->ldr, x2_ldr(lapic));
                lapic->icr &= 0xffffffff;
        }
        /* Back from x2APIC by way of off: the xAPIC ID is the x2APIC ID's low byte again. */
        if ((before & APIC_BASE_X2) && !(value & APIC_BASE_X2))
                lapic_put(lapic->id, lapic->index << 24);
        look_again(lapic);
        return 0;
}

static int x2_read(struct lapic *lapic, unsigned reg, uint64_t *value)
{
        if (!lapic_x2(lapic) || reg >= REGS || !(register_access(reg) & ACCESS_X2_READ))
                return -EPERM;
        *value = reg == REG_ICR ? lapic->icr : read_register(lapic, reg);
        return 0;
}

/* Bits that make a write #GP, §11.12.1.2 and the registers' figures. */
static uint64_t x2_reserved(unsigned reg)
{
        switch (reg) {
        case REG_TPR:
        case REG_SELF_IPI:
                return ~UINT64_C(0xff);
        case REG_EOI:
        case REG_ESR:
                return UINT64_MAX;
        case REG_SVR:
                return ~UINT64_C(0x13ff);
        case REG_ICR:
                return 0xffffffff & ~(uint64_t)(ICR_WRITABLE | 0x1000); /* bit 12 was delivery status: tolerated */
        case REG_LVT ... REG_LVT + LVTS - 1:
                return ~(uint64_t)(lvt_writable[reg - REG_LVT] | 0x5000); /* status and remote IRR are read-only */
        case REG_DIVIDE:
                return ~UINT64_C(0xb);
        default:
                return ~UINT64_C(0xffffffff);
        }
}

static int x2_write(struct lapic *lapic, unsigned reg, uint64_t value)
{
        if (!lapic_x2(lapic) || reg >= REGS || !(register_access(reg) & ACCESS_X2_WRITE) || (value & x2_reserved(reg)))
                return -EPERM;
        switch (reg) {
        case REG_EOI:
                write_eoi(lapic);
                break;
        case REG_ICR:
                lapic->icr = (value & ~UINT64_C(0xffffffff)) | (value & ICR_WRITABLE);
                lapic_ipi(lapic, (uint32_t)lapic->icr, (uint32_t)(value >> 32));
                break;
        case REG_SELF_IPI:
                lapic_ipi(lapic, (uint32_t)value | 0x40000, 0);
                break;
        default:
                write_register(lapic, reg, (uint32_t)value);
                break;
        }
        return 0;
}

int lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value)
{
        if (index >= MSR_X2APIC && index <= MSR_X2APIC_LAST)
                return x2_read(lapic, index - MSR_X2APIC, value);
        if (index == MSR_APIC_BASE)
                *value = lapic_get(lapic->base);
        else if (index == MSR_TSC_DEADLINE)
                *value = lapic_timer_deadline(lapic);
        else
                return -EPERM;
        return 0;
}

int lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
        if (index == MSR_TSC_DEADLINE)
                lapic_timer_set_deadline(lapic, value);
        else if (index >= MSR_X2APIC && index <= MSR_X2APIC_LAST)
                return x2_write(lapic, index - MSR_X2APIC, value);
        else if (index == MSR_APIC_BASE)
                return write_base(lapic, value);
        else
                return -EPERM;
        return 0;
}

/* ---- state ---- */

void lapic_save(struct lapic *lapic, struct writer *out)
{
        size_t mark = record_begin(out, "lapic", 1);

        pv_eoi_sync(lapic);
        writer_le32(out, lapic->index);
        writer_le64(out, lapic_get(lapic->base));
        writer_le32(out, lapic_get(lapic->id));
        writer_le32(out, lapic_get(lapic->ldr));
        writer_le32(out, lapic_get(lapic->dfr));
        writer_le32(out, lapic_get(lapic->svr));
        writer_le32(out, lapic_get(lapic->tpr));
        for (unsigned i = 0; i < LVTS; i++)
                writer_le32(out, lapic_get(lapic->lvt[i]));
        for (unsigned i = 0; i < 8; i++) {
                writer_le32(out, lapic_get(lapic->irr[i]));
                writer_le32(out, lapic_get(lapic->isr[i]));
                writer_le32(out, lapic_get(lapic->tmr[i]));
        }
        writer_le32(out, atomic_load(&lapic->errors));
        writer_le32(out, lapic->esr);
        writer_le64(out, lapic->icr);
        writer_le64(out, lapic->pv_eoi);
        writer_u8(out, lapic_get(lapic->extint_message));
        writer_le32(out, lapic->timer_initial);
        writer_le32(out, lapic->timer_divide);
        writer_le64(out, lapic->deadline_ns);
        writer_le64(out, lapic->tsc_deadline);
        record_end(out, mark);
}

static void load_registers(struct lapic *lapic, struct cursor *in)
{
        lapic_put(lapic->id, cursor_le32(in) & 0xff000000);
        lapic_put(lapic->ldr, cursor_le32(in));
        lapic_put(lapic->dfr, cursor_le32(in) | 0x0fffffff);
        lapic_put(lapic->svr, cursor_le32(in) & 0x13ff);
        lapic_put(lapic->tpr, cursor_le32(in) & 0xff);
        for (unsigned i = 0; i < LVTS; i++)
                lapic_put(lapic->lvt[i], cursor_le32(in) & lvt_writable[i]);
        for (unsigned i = 0; i < 8; i++) {
                uint32_t legal = i ? UINT32_MAX : 0xffff0000; /* there are no vectors below 16 */

                lapic_put(lapic->irr[i], cursor_le32(in) & legal);
                lapic_put(lapic->isr[i], cursor_le32(in) & legal);
                lapic_put(lapic->tmr[i], cursor_le32(in) & legal);
        }
        atomic_store(&lapic->errors, cursor_le32(in) & 0xff);
        lapic->esr = cursor_le32(in) & 0xff;
        lapic->icr = cursor_le64(in) & (~UINT64_C(0xffffffff) | ICR_WRITABLE);
        lapic->pv_eoi = cursor_le64(in);
        lapic->pv_eoi_pending = false;
        atomic_store(&lapic->extint_message, cursor_u8(in) & 1);
        pthread_mutex_lock(&lapic->timer_lock);
        lapic->timer_initial = cursor_le32(in);
        lapic->timer_divide = cursor_le32(in) & 0xb;
        lapic->deadline_ns = cursor_le64(in);
        lapic->tsc_deadline = cursor_le64(in);
        /* No longer than a period away, so that arithmetic on it stays in range. */
        lapic->deadline_ns = MIN(lapic->deadline_ns, (uint64_t)INT64_MAX);
        pthread_mutex_unlock(&lapic->timer_lock);
}

static int load_body(struct lapic *lapic, struct record *record, struct err *err)
{
        uint32_t index = cursor_le32(&record->body);
        uint64_t base = cursor_le64(&record->body);

        if (index != lapic->index)
                return err_set(err, -EBADMSG, "record of local APIC %u cannot be that of %u", index, lapic->index);
        if ((base & ~(APIC_BASE_ADDRESS | APIC_BASE_ON | APIC_BASE_X2 | APIC_BASE_BSP)) ||
            (base & (APIC_BASE_ON | APIC_BASE_X2)) == APIC_BASE_X2)
                return err_set(err, -EBADMSG, "local APIC %u: IA32_APIC_BASE 0x%" PRIx64 " is not possible", index, base);
        lapic_put(lapic->base, base);
        load_registers(lapic, &record->body);
        if (base & APIC_BASE_X2)
                lapic_put(lapic->ldr, x2_ldr(lapic));
        return record_finish(record, err);
}

int lapic_load(struct lapic *lapic, struct cursor *in, struct err *err)
{
        struct record record;
        int r = record_expect(in, "lapic", 1, &record, err);

        if (r < 0)
                return r;
        r = load_body(lapic, &record, err);
        if (r < 0) {
                lapic_reset(lapic, false);
                return r;
        }
        lapic_timer_rearm(lapic);
        look_again(lapic);
        return 0;
}
