/*
 * What connects local APICs: interrupt messages, inter-processor interrupts, destinations, the wires of 8259 and I/O APIC.
 *
 * Source: Intel SDM vol. 3A §11.6 (IPIs), §11.6.2 (destinations), §11.11 (message format), §11.12.9-10 (x2APIC); for bits 11-5 of
 * a message's address as destination bits 14-8: KVM_FEATURE_MSI_EXT_DEST_ID, Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "device/lapic-internal.h"

#include <errno.h>

#define LAPICS_MAX 255
#define BROADCAST_X2 UINT32_MAX
#define BROADCAST_X 0xffu

int lapic_bus_new(struct device_host *host, unsigned count, uint64_t tsc_frequency_hz, struct lapic_bus **bus, struct err *err)
{
        struct lapic_bus *b;

        if (!count || count > LAPICS_MAX || !tsc_frequency_hz)
                return err_set(err, -EINVAL, "cannot make %u local APICs with a TSC of %llu Hz: 1 to %d are possible", count,
                               (unsigned long long)tsc_frequency_hz, LAPICS_MAX);
        b = calloc(1, sizeof(*b) + count * sizeof(b->lapic[0]));
        if (!b)
                return err_nomem(err);
        b->host = host;
        b->tsc_frequency_hz = tsc_frequency_hz;
        b->count = count;
        for (unsigned i = 0; i < count; i++) {
                b->lapic[i].bus = b;
                b->lapic[i].index = i;
                lapic_timer_init(&b->lapic[i]);
                lapic_reset(&b->lapic[i], false);
        }
        *bus = b;
        return 0;
}

void lapic_bus_free(struct lapic_bus *bus)
{
        if (!bus)
                return;
        for (unsigned i = 0; i < bus->count; i++) {
                lapic_timer_stop(&bus->lapic[i]);
                pthread_mutex_destroy(&bus->lapic[i].timer_lock);
        }
        free(bus);
}

struct lapic *lapic_bus_at(struct lapic_bus *bus, unsigned index)
{
        return index < bus->count ? &bus->lapic[index] : NULL;
}

void lapic_connect(struct lapic *lapic, const struct lapic_processor *processor)
{
        lapic->processor = *processor;
}

void lapic_bus_connect_pic(struct lapic_bus *bus, int (*ack)(void *ctx), void *ctx)
{
        bus->pic_ack = ack;
        bus->pic_ctx = ctx;
}

void lapic_bus_connect_ioapic(struct lapic_bus *bus, void (*eoi)(void *ctx, uint8_t vector), void *ctx)
{
        bus->ioapic_eoi = eoi;
        bus->ioapic_ctx = ctx;
}

void lapic_bus_extint(struct lapic_bus *bus, bool level)
{
        struct lapic *boot = &bus->lapic[0];
        bool before = atomic_exchange(&bus->extint, level);

        if (!level)
                return;
        /* Turned off it passes LINT0 through as INTR (§11.4.3); as ExtINT it does the same. */
        if (!lapic_on(boot) || (lapic_get(boot->lvt[LVT_LINT0]) >> 8 & 7) == MODE_EXTINT) {
                if (boot->processor.interrupt)
                        boot->processor.interrupt(boot->processor.ctx);
        } else if (!before) {
                lapic_local(boot, LVT_LINT0);
        }
}

void lapic_bus_quiesce(struct lapic_bus *bus)
{
        for (unsigned i = 0; i < bus->count; i++)
                timer_cancel(&bus->lapic[i].timer);
}

void lapic_bus_resume(struct lapic_bus *bus)
{
        for (unsigned i = 0; i < bus->count; i++)
                lapic_timer_rearm(&bus->lapic[i]);
}

/* Flat or cluster, §11.6.2.2. */
static bool matches_logical_x(const struct lapic *target, uint32_t destination)
{
        uint32_t ldr = lapic_get(target->ldr) >> 24;

        if (lapic_get(target->dfr) >> 28 == 0xf)
                return ldr & destination;
        /* A cluster of all ones is every cluster. */
        if (destination >> 4 != 0xf && destination >> 4 != ldr >> 4)
                return false;
        return ldr & destination & 0xf;
}

static bool matches(const struct lapic *target, uint32_t destination, bool logical)
{
        uint32_t ldr;

        if (!lapic_on(target))
                return false;
        if (!lapic_x2(target)) {
                if (destination > BROADCAST_X)
                        return false;
                return logical ? matches_logical_x(target, destination) : lapic_get(target->id) >> 24 == destination;
        }
        if (!logical)
                return target->index == destination;
        ldr = lapic_get(target->ldr);
        return ldr >> 16 == destination >> 16 && (ldr & destination & 0xffff);
}

/* One of those who match: the least busy; among equals, in turns (§11.6.2.4). */
static void deliver_lowest(struct lapic_bus *bus, uint32_t destination, bool logical, bool all, uint8_t vector, bool level)
{
        unsigned first = atomic_fetch_add_explicit(&bus->turn, 1, memory_order_relaxed) % bus->count;
        struct lapic *best = NULL;
        unsigned best_priority = 0;

        for (unsigned i = 0; i < bus->count; i++) {
                struct lapic *target = &bus->lapic[(first + i) % bus->count];
                unsigned priority;

                if (!lapic_enabled(target) || (!all && !matches(target, destination, logical)))
                        continue;
                priority = lapic_priority(target);
                if (!best || priority < best_priority) {
                        best = target;
                        best_priority = priority;
                }
        }
        if (best)
                lapic_accept(best, vector, level);
}

static void deliver(struct lapic_bus *bus, const struct lapic *skip, uint32_t destination, bool logical, bool all, enum lapic_mode mode,
                    uint8_t vector, bool level)
{
        if (mode == MODE_LOWEST) {
                deliver_lowest(bus, destination, logical, all, vector, level);
                return;
        }
        for (unsigned i = 0; i < bus->count; i++) {
                struct lapic *target = &bus->lapic[i];

                if (target != skip && lapic_on(target) && (all || matches(target, destination, logical)))
                        lapic_deliver(target, mode, vector, level);
        }
}

void lapic_bus_message(struct lapic_bus *bus, uint64_t address, uint32_t data)
{
        uint32_t destination = (uint32_t)(address >> 12 & 0xff) | (uint32_t)(address >> 5 & 0x7f) << 8;
        bool logical = address & 4, hint = address & 8, level = data & ICR_LEVEL;
        enum lapic_mode mode = data >> 8 & 7;

        if (address >> 20 != 0xfee)
                return;
        /* With the redirection hint one of a logical destination is enough (§11.11.1). */
        if (hint && logical && mode == MODE_FIXED)
                mode = MODE_LOWEST;
        deliver(bus, NULL, destination, logical, destination == BROADCAST_X, mode, (uint8_t)data, level);
}

void lapic_ipi(struct lapic *lapic, uint32_t icr, uint32_t destination)
{
        enum lapic_mode mode = icr >> 8 & 7;
        uint8_t vector = (uint8_t)icr;
        unsigned shorthand = icr >> 18 & 3;
        bool all = shorthand >= 2 || destination == (lapic_x2(lapic) ? BROADCAST_X2 : BROADCAST_X);

        /* INIT level de-assert only set arbitration IDs, on processors of long ago (§11.6.1). */
        if (mode == MODE_RESERVED || mode == MODE_EXTINT || (mode == MODE_INIT && (icr & (ICR_LEVEL | ICR_ASSERT)) == ICR_LEVEL))
                return;
        if ((mode == MODE_FIXED || mode == MODE_LOWEST) && vector < 16) {
                lapic_error(lapic, ESR_SEND_VECTOR);
                return;
        }
        if (shorthand == 1) {
                /* Self takes fixed interrupts only. */
                if (mode == MODE_FIXED)
                        lapic_deliver(lapic, mode, vector, false);
                return;
        }
        deliver(lapic->bus, shorthand == 3 ? lapic : NULL, destination, icr & ICR_LOGICAL, all, mode, vector, false);
}

void lapic_send_ipi(struct lapic *lapic, uint64_t bitmap_low, uint64_t bitmap_high, uint32_t min_apic_id, uint32_t icr)
{
        enum lapic_mode mode = icr >> 8 & 7;

        if ((mode != MODE_FIXED && mode != MODE_NMI) || (icr & (ICR_LOGICAL | 0xc0000)))
                return;
        for (unsigned bit = 0; bit < 128; bit++) {
                uint64_t id = (uint64_t)min_apic_id + bit;

                if (((bit < 64 ? bitmap_low >> bit : bitmap_high >> (bit - 64)) & 1) && id < lapic->bus->count)
                        lapic_deliver(&lapic->bus->lapic[id], mode, (uint8_t)icr, false);
        }
}
