/* Local APICs by SDM vol. 3A chapter 11: priorities, delivery modes, destinations, timer modes, MSRs, PV EOI, state. */
#include "device/lapic.h"
#include "device/test-board.h"

#define CPUS 8
#define TSC_HZ UINT64_C(2000000000)

struct cpu {
        struct setup *s;
        unsigned interrupts, nmis, inits, sipis;
        uint8_t sipi_vector;
};

struct setup {
        struct bench *b;
        struct lapic_bus *bus;
        struct lapic *lapic[CPUS];
        struct cpu cpu[CPUS];
        unsigned eois;
        uint8_t eoi_vector;
        unsigned acks;
        uint64_t tsc_base;
        bool tsc_fixed;
};

static void on_interrupt(void *ctx)
{
        __atomic_fetch_add(&((struct cpu *)ctx)->interrupts, 1, __ATOMIC_RELAXED);
}

static void on_nmi(void *ctx)
{
        ((struct cpu *)ctx)->nmis++;
}

static void on_init(void *ctx)
{
        ((struct cpu *)ctx)->inits++;
}

static void on_sipi(void *ctx, uint8_t vector)
{
        ((struct cpu *)ctx)->sipis++;
        ((struct cpu *)ctx)->sipi_vector = vector;
}

static uint64_t on_tsc(void *ctx)
{
        struct setup *s = ((struct cpu *)ctx)->s;

        return s->tsc_fixed ? s->tsc_base : s->tsc_base + 2 * board_clock_ns(s->b->host.clock);
}

static int on_pic_ack(void *ctx)
{
        ((struct setup *)ctx)->acks++;
        return 0x77;
}

static void on_eoi(void *ctx, uint8_t vector)
{
        struct setup *s = ctx;

        s->eois++;
        s->eoi_vector = vector;
}

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));

        s->b = bench_new();
        assert_int_equal(lapic_bus_new(&s->b->host, CPUS, TSC_HZ, &s->bus, &s->b->err), 0);
        for (unsigned i = 0; i < CPUS; i++) {
                struct lapic_processor p = { on_interrupt, on_nmi, on_init, on_sipi, on_tsc, &s->cpu[i] };

                s->cpu[i].s = s;
                s->lapic[i] = lapic_bus_at(s->bus, i);
                lapic_connect(s->lapic[i], &p);
        }
        lapic_bus_connect_pic(s->bus, on_pic_ack, s);
        lapic_bus_connect_ioapic(s->bus, on_eoi, s);
        return s;
}

static void done(struct setup *s)
{
        lapic_bus_free(s->bus);
        bench_free(s->b);
        free(s);
}

static uint32_t get(struct lapic *lapic, unsigned offset)
{
        return (uint32_t)lapic_mmio_read(lapic, offset, 4);
}

static void put(struct lapic *lapic, unsigned offset, uint32_t value)
{
        lapic_mmio_write(lapic, offset, value, 4);
}

static void enable(struct setup *s, bool x2)
{
        for (unsigned i = 0; i < CPUS; i++) {
                uint64_t base;

                put(s->lapic[i], 0xf0, 0x1ff);
                assert_int_equal(lapic_msr_read(s->lapic[i], 0x1b, &base), 0);
                if (x2)
                        assert_int_equal(lapic_msr_write(s->lapic[i], 0x1b, base | 0x400), 0);
        }
}

static void fixed(struct setup *s, unsigned cpu, uint8_t vector)
{
        lapic_bus_message(s->bus, 0xfee00000 | cpu << 12, vector);
}

static void test_power_on(void **state)
{
        struct setup *s = setup();
        uint64_t value;

        for (unsigned i = 0; i < CPUS; i++) {
                assert_int_equal(get(s->lapic[i], 0x20), i << 24);
                assert_int_equal(get(s->lapic[i], 0x30), 0x01050014);
                assert_int_equal(get(s->lapic[i], 0xe0), 0xffffffff);
                assert_int_equal(get(s->lapic[i], 0xf0), 0xff);
                assert_int_equal(get(s->lapic[i], 0x320), 0x10000);
                assert_int_equal(get(s->lapic[i], 0x350), i ? 0x10000 : 0x700);
                assert_int_equal(lapic_msr_read(s->lapic[i], 0x1b, &value), 0);
                assert_true(value == (0xfee00800 | (i ? 0 : 0x100)));
        }
        /* Disabled by software: fixed interrupts are not taken, LVT masks cannot be cleared. */
        fixed(s, 0, 0x40);
        assert_int_equal(lapic_ack(s->lapic[0]), -1);
        put(s->lapic[0], 0x320, 0x40);
        assert_int_equal(get(s->lapic[0], 0x320), 0x10040);
        put(s->lapic[0], 0xf0, 0x1ff);
        put(s->lapic[0], 0x320, 0x40);
        put(s->lapic[0], 0xf0, 0xff);
        assert_int_equal(get(s->lapic[0], 0x320), 0x10040);
        done(s);
}

static void test_priority(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];

        enable(s, false);
        fixed(s, 0, 0x41);
        fixed(s, 0, 0x52);
        fixed(s, 0, 0x55);
        assert_int_equal(s->cpu[0].interrupts, 3);
        assert_int_equal(get(l, 0x220), 0x00240002);
        assert_true(lapic_pending(l));
        assert_int_equal(lapic_ack(l), 0x55);
        assert_int_equal(get(l, 0x120), 0x00200000);
        assert_int_equal(get(l, 0xa0), 0x50);
        assert_int_equal(lapic_ack(l), -1); /* 0x52 is of the same class */
        fixed(s, 0, 0x60);
        assert_int_equal(lapic_ack(l), 0x60);
        put(l, 0xb0, 0);
        assert_int_equal(lapic_ack(l), -1);
        s->cpu[0].interrupts = 0;
        put(l, 0xb0, 0);
        assert_int_equal(s->cpu[0].interrupts, 1);
        assert_int_equal(lapic_ack(l), 0x52);
        put(l, 0xb0, 0);
        /* Task priority. */
        lapic_set_tpr(l, 4);
        assert_int_equal(get(l, 0x80), 0x40);
        assert_int_equal(lapic_ack(l), -1);
        assert_false(lapic_pending(l));
        s->cpu[0].interrupts = 0;
        put(l, 0x80, 0x3f);
        assert_int_equal(s->cpu[0].interrupts, 1);
        assert_int_equal(lapic_tpr(l), 3);
        assert_int_equal(lapic_ack(l), 0x41);
        assert_int_equal(get(l, 0xa0), 0x40);
        put(l, 0xb0, 0);
        assert_int_equal(get(l, 0xa0), 0x3f);
        put(l, 0xb0, 0);
        done(s);
}

static void test_level_and_eoi(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[1];

        enable(s, false);
        lapic_bus_message(s->bus, 0xfee01000, 0xc044);
        assert_int_equal(get(l, 0x1a0), 1 << 4);
        assert_int_equal(lapic_ack(l), 0x44);
        assert_int_equal(s->eois, 0);
        put(l, 0xb0, 0);
        assert_int_equal(s->eois, 1);
        assert_int_equal(s->eoi_vector, 0x44);
        fixed(s, 1, 0x44);
        assert_int_equal(get(l, 0x1a0), 0);
        assert_int_equal(lapic_ack(l), 0x44);
        put(l, 0xb0, 0);
        assert_int_equal(s->eois, 1);
        /* Suppressed. */
        put(l, 0xf0, 0x11ff);
        assert_int_equal(get(l, 0xf0), 0x11ff);
        lapic_bus_message(s->bus, 0xfee01000, 0xc044);
        lapic_ack(l);
        put(l, 0xb0, 0);
        assert_int_equal(s->eois, 1);
        done(s);
}

/* Who has vector pending (and takes it): a bit for each. */
static unsigned takers(struct setup *s, uint8_t vector)
{
        unsigned set = 0;

        for (unsigned i = 0; i < CPUS; i++) {
                if (lapic_ack(s->lapic[i]) == vector) {
                        set |= 1u << i;
                        lapic_mmio_write(s->lapic[i], 0xb0, 0, 4);
                        lapic_msr_write(s->lapic[i], 0x80b, 0);
                }
        }
        return set;
}

static void test_destinations_x(void **state)
{
        struct setup *s = setup();

        enable(s, false);
        fixed(s, 5, 0x50);
        assert_int_equal(takers(s, 0x50), 0x20);
        fixed(s, 0xff, 0x50);
        assert_int_equal(takers(s, 0x50), 0xff);
        fixed(s, 0x20, 0x50);
        assert_int_equal(takers(s, 0x50), 0);
        /* Flat. */
        for (unsigned i = 0; i < CPUS; i++)
                put(s->lapic[i], 0xd0, 1u << (24 + i));
        lapic_bus_message(s->bus, 0xfee00004 | 0x85 << 12, 0x51);
        assert_int_equal(takers(s, 0x51), 0x85);
        /* Cluster: two of four. */
        for (unsigned i = 0; i < CPUS; i++) {
                put(s->lapic[i], 0xe0, 0x0fffffff);
                assert_int_equal(get(s->lapic[i], 0xe0), 0x0fffffff);
                put(s->lapic[i], 0xd0, (i / 4) << 28 | 1u << (24 + i % 4));
        }
        lapic_bus_message(s->bus, 0xfee00004 | 0x1a << 12, 0x52);
        assert_int_equal(takers(s, 0x52), 0xa0);
        lapic_bus_message(s->bus, 0xfee00004 | 0xf1 << 12, 0x52);
        assert_int_equal(takers(s, 0x52), 0x11);
        /* Not our address: nothing. */
        lapic_bus_message(s->bus, 0xfef00000, 0x52);
        assert_int_equal(takers(s, 0x52), 0);
        done(s);
}

static void test_destinations_x2(void **state)
{
        struct setup *s = setup();
        uint64_t value;

        enable(s, true);
        for (unsigned i = 0; i < CPUS; i++) {
                assert_int_equal(lapic_msr_read(s->lapic[i], 0x802, &value), 0);
                assert_int_equal(value, i);
                assert_int_equal(lapic_msr_read(s->lapic[i], 0x80d, &value), 0);
                assert_int_equal(value, 1u << i);
        }
        fixed(s, 3, 0x50);
        assert_int_equal(takers(s, 0x50), 0x08);
        fixed(s, 0xff, 0x50);
        assert_int_equal(takers(s, 0x50), 0xff);
        lapic_bus_message(s->bus, 0xfee00004 | 0x0c << 12, 0x51);
        assert_int_equal(takers(s, 0x51), 0x0c);
        assert_int_equal(lapic_msr_write(s->lapic[0], 0x830, (uint64_t)0x00000081 << 32 | 0x0853), 0);
        assert_int_equal(takers(s, 0x53), 0x81);
        assert_int_equal(lapic_msr_write(s->lapic[0], 0x830, (uint64_t)0x00010001 << 32 | 0x0853), 0);
        assert_int_equal(takers(s, 0x53), 0);
        assert_int_equal(lapic_msr_write(s->lapic[0], 0x830, (uint64_t)6 << 32 | 0x54), 0);
        assert_int_equal(takers(s, 0x54), 0x40);
        assert_int_equal(lapic_msr_write(s->lapic[0], 0x830, (uint64_t)0xffffffff << 32 | 0x54), 0);
        assert_int_equal(takers(s, 0x54), 0xff);
        /* Self IPI. */
        assert_int_equal(lapic_msr_write(s->lapic[2], 0x83f, 0x55), 0);
        assert_int_equal(takers(s, 0x55), 0x04);
        done(s);
}

static void test_shorthands_and_modes(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[2];

        enable(s, false);
        put(l, 0x300, 0x40060);
        assert_int_equal(takers(s, 0x60), 0x04);
        put(l, 0x300, 0x80060);
        assert_int_equal(takers(s, 0x60), 0xff);
        put(l, 0x300, 0xc0060);
        assert_int_equal(takers(s, 0x60), 0xfb);
        put(l, 0x310, 0x07000000);
        put(l, 0x300, 0x4461);
        assert_int_equal(get(l, 0x300), 0x4461);
        assert_int_equal(get(l, 0x310), 0x07000000);
        assert_int_equal(s->cpu[7].nmis, 1);
        put(l, 0x300, 0xc500); /* INIT, assert, level */
        assert_int_equal(s->cpu[7].inits, 1);
        put(l, 0x300, 0x8500); /* de-assert: nothing */
        assert_int_equal(s->cpu[7].inits, 1);
        put(l, 0x300, 0x0699);
        assert_int_equal(s->cpu[7].sipis, 1);
        assert_int_equal(s->cpu[7].sipi_vector, 0x99);
        put(l, 0x300, 0xc0500);
        assert_int_equal(s->cpu[7].inits, 2);
        assert_int_equal(s->cpu[2].inits, 0);
        put(l, 0x300, 0x4200); /* SMI: dropped */
        put(l, 0x300, 0x4300); /* reserved */
        lapic_bus_message(s->bus, 0xfee03000, 0x0400);
        assert_int_equal(s->cpu[3].nmis, 1);
        assert_int_equal(takers(s, 0x61), 0);
        done(s);
}

static void test_lowest_priority(void **state)
{
        struct setup *s = setup();
        unsigned counts[CPUS] = { 0 };

        enable(s, false);
        for (unsigned i = 0; i < CPUS; i++) {
                put(s->lapic[i], 0xd0, 1u << (24 + i));
                put(s->lapic[i], 0x80, i == 4 ? 0x10 : 0x20);
        }
        lapic_bus_message(s->bus, 0xfee00004 | 0xff << 12, 0x170);
        assert_int_equal(takers(s, 0x70), 0x10);
        /* Among equals everybody has a turn; with the redirection hint as well. */
        put(s->lapic[4], 0x80, 0x20);
        for (unsigned i = 0; i < 4 * CPUS; i++) {
                unsigned set;

                lapic_bus_message(s->bus, (i & 1 ? 0xfee0000c : 0xfee00004) | 0x0f << 12, i & 1 ? 0x70 : 0x170);
                set = takers(s, 0x70);
                assert_int_equal(__builtin_popcount(set), 1);
                assert_int_equal(set & ~0x0fu, 0);
                counts[__builtin_ctz(set)]++;
        }
        for (unsigned i = 0; i < 4; i++)
                assert_true(counts[i] >= 4);
        /* Who is disabled by software is not asked. */
        put(s->lapic[4], 0xf0, 0xff);
        put(s->lapic[4], 0x80, 0);
        lapic_bus_message(s->bus, 0xfee00004 | 0x30 << 12, 0x170);
        assert_int_equal(takers(s, 0x70), 0x20);
        done(s);
}

static void test_errors(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];

        enable(s, false);
        put(l, 0x370, 0xfe);
        put(l, 0x300, 0x40005);
        assert_int_equal(lapic_ack(l), 0xfe);
        put(l, 0xb0, 0);
        assert_int_equal(get(l, 0x280), 0);
        put(l, 0x280, 0);
        assert_int_equal(get(l, 0x280), 0x20);
        fixed(s, 0, 0x0f);
        put(l, 0x280, 0);
        assert_int_equal(get(l, 0x280), 0x40);
        get(l, 0x3a0);
        put(l, 0x280, 0);
        assert_int_equal(get(l, 0x280), 0x80);
        put(l, 0x370, 0x00); /* an illegal vector for errors is no loop */
        fixed(s, 0, 0x01);
        done(s);
}

static void test_local_lines(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];

        /* Virtual wire. */
        lapic_bus_extint(s->bus, true);
        assert_int_equal(s->cpu[0].interrupts, 1);
        assert_true(lapic_pending(l));
        assert_int_equal(lapic_ack(l), 0x77);
        assert_int_equal(lapic_ack(s->lapic[1]), -1);
        lapic_bus_extint(s->bus, false);
        assert_int_equal(lapic_ack(l), -1);
        assert_int_equal(s->acks, 1);
        /* Masked, then unmasked. */
        enable(s, false);
        put(l, 0x350, 0x10700);
        lapic_bus_extint(s->bus, true);
        assert_int_equal(lapic_ack(l), -1);
        s->cpu[0].interrupts = 0;
        put(l, 0x350, 0x00700);
        assert_int_equal(s->cpu[0].interrupts, 1);
        assert_int_equal(lapic_ack(l), 0x77);
        lapic_bus_extint(s->bus, false);
        /* As a fixed interrupt and as NMI. */
        put(l, 0x350, 0x00031);
        lapic_bus_extint(s->bus, true);
        assert_int_equal(lapic_ack(l), 0x31);
        put(l, 0xb0, 0);
        lapic_bus_extint(s->bus, false);
        put(l, 0x350, 0x00400);
        lapic_bus_extint(s->bus, true);
        assert_int_equal(s->cpu[0].nmis, 1);
        lapic_bus_extint(s->bus, false);
        /* Turned off: INTR goes straight through. */
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00100), 0);
        lapic_bus_extint(s->bus, true);
        assert_int_equal(lapic_ack(l), 0x77);
        /* ExtINT as a message. */
        lapic_bus_extint(s->bus, false);
        lapic_bus_message(s->bus, 0xfee02000, 0x700);
        assert_int_equal(lapic_ack(s->lapic[2]), 0x77);
        assert_int_equal(lapic_ack(s->lapic[2]), -1);
        done(s);
}

static void test_base_msr(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[1];
        uint64_t value;

        assert_int_equal(lapic_msr_read(l, 0x802, &value), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00400), -EPERM); /* x2 without on */
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00800 | 1), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x1b, UINT64_C(1) << 60 | 0xfee00800), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00c00), 0);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00800), -EPERM); /* not back directly */
        assert_true(lapic_mmio_read(l, 0x20, 4) == UINT64_MAX);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00000), 0);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00c00), -EPERM); /* off to x2 */
        assert_true(lapic_mmio_read(l, 0x20, 4) == UINT64_MAX);
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00800), 0);
        assert_int_equal(get(l, 0x20), 1 << 24);
        /* The BSP bit is not the guest's. */
        assert_int_equal(lapic_msr_write(l, 0x1b, 0xfee00900), 0);
        assert_int_equal(lapic_msr_read(l, 0x1b, &value), 0);
        assert_int_equal(value, 0xfee00800);
        assert_int_equal(lapic_msr_read(l, 0x1c, &value), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x900, 0), -EPERM);
        done(s);
}

/* Table 11-6: what exists, and what is reserved. */
static void test_x2_registers(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        uint64_t value;

        enable(s, true);
        for (uint32_t i = 0x800; i <= 0x8ff; i++) {
                bool readable = i == 0x802 || i == 0x803 || i == 0x808 || i == 0x80a || i == 0x80d || i == 0x80f || (i >= 0x810 && i <= 0x828) ||
                                i == 0x830 || (i >= 0x832 && i <= 0x839) || i == 0x83e;

                assert_int_equal(lapic_msr_read(l, i, &value), readable ? 0 : -EPERM);
        }
        for (uint32_t i = 0x800; i <= 0x8ff; i++) {
                bool writable = i == 0x808 || i == 0x80b || i == 0x80f || i == 0x828 || i == 0x830 || (i >= 0x832 && i <= 0x838) || i == 0x83e ||
                                i == 0x83f;

                assert_int_equal(lapic_msr_write(l, i, 0), writable ? 0 : -EPERM);
        }
        assert_int_equal(lapic_msr_write(l, 0x808, 0x100), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x80b, 1), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x80f, 0x2000), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x828, 1), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x830, 0x100000), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x832, 0x80000), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x832, 0x100), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x838, UINT64_C(1) << 32), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x83e, 4), -EPERM);
        assert_int_equal(lapic_msr_write(l, 0x83f, 0x100), -EPERM);
        done(s);
}

static void test_timer_counts(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        static const struct { uint32_t code; unsigned divisor; } divide[] = {
                { 0, 2 }, { 1, 4 }, { 2, 8 }, { 3, 16 }, { 8, 32 }, { 9, 64 }, { 10, 128 }, { 11, 1 },
        };

        enable(s, false);
        for (unsigned i = 0; i < ARRAY_SIZE(divide); i++) {
                at(s->b, 1000000);
                put(l, 0x3e0, divide[i].code);
                put(l, 0x320, 0x10020);
                put(l, 0x380, 1000);
                assert_int_equal(get(l, 0x390), 1000);
                at(s->b, 1000000 + 400 * divide[i].divisor);
                assert_int_equal(get(l, 0x390), 600);
                at(s->b, 1000000 + 1001 * divide[i].divisor);
                assert_int_equal(get(l, 0x390), 0);
                at(s->b, 1000000);
                put(l, 0x320, 0x30020); /* periodic */
                put(l, 0x380, 1000);
                at(s->b, 1000000 + 2400 * divide[i].divisor);
                assert_int_equal(get(l, 0x390), 600);
        }
        /* A new divider counts on from what was left. */
        at(s->b, 0);
        put(l, 0x320, 0x10020);
        put(l, 0x3e0, 11);
        put(l, 0x380, 1000);
        at(s->b, 500);
        put(l, 0x3e0, 0);
        at(s->b, 700);
        assert_int_equal(get(l, 0x390), 400);
        put(l, 0x380, 0);
        assert_int_equal(get(l, 0x390), 0);
        done(s);
}

static void test_timer_fires(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        uint64_t before, value;
        unsigned last;

        enable(s, false);
        put(l, 0x3e0, 11);
        put(l, 0x320, 0x20);
        before = monotonic_ns();
        put(l, 0x380, 2000000);
        run_until(s->b, &s->cpu[0].interrupts, 1);
        assert_true(monotonic_ns() - before >= 2000000);
        assert_int_equal(lapic_ack(l), 0x20);
        put(l, 0xb0, 0);
        assert_int_equal(get(l, 0x390), 0);
        /* Periodic. */
        put(l, 0x320, 0x20020);
        before = monotonic_ns();
        put(l, 0x380, 1000000);
        last = s->cpu[0].interrupts;
        for (unsigned i = 1; i <= 3; i++) {
                run_until(s->b, &s->cpu[0].interrupts, last + i);
                assert_int_equal(lapic_ack(l), 0x20);
                put(l, 0xb0, 0);
        }
        assert_true(monotonic_ns() - before >= 3000000);
        /* Deadline mode: entering it disarms; reads give the deadline until it has come. */
        put(l, 0x320, 0x40020);
        assert_int_equal(get(l, 0x390), 0);
        put(l, 0x380, 5);
        assert_int_equal(get(l, 0x380), 0);
        last = s->cpu[0].interrupts;
        before = monotonic_ns();
        assert_int_equal(lapic_msr_write(l, 0x6e0, on_tsc(&s->cpu[0]) + TSC_HZ / 500), 0);
        assert_int_equal(lapic_msr_read(l, 0x6e0, &value), 0);
        assert_true(value != 0);
        run_until(s->b, &s->cpu[0].interrupts, last + 1);
        assert_true(monotonic_ns() - before >= 1900000);
        assert_int_equal(lapic_msr_read(l, 0x6e0, &value), 0);
        assert_true(value == 0);
        assert_int_equal(lapic_ack(l), 0x20);
        put(l, 0xb0, 0);
        /* In the past: at once. For ever: never. Zero: off. */
        assert_int_equal(lapic_msr_write(l, 0x6e0, 1), 0);
        assert_int_equal(lapic_ack(l), 0x20);
        put(l, 0xb0, 0);
        assert_int_equal(lapic_msr_write(l, 0x6e0, UINT64_MAX), 0);
        assert_int_equal(lapic_msr_write(l, 0x6e0, 0), 0);
        /* Out of deadline mode the MSR is not written. */
        put(l, 0x320, 0x20);
        assert_int_equal(lapic_msr_write(l, 0x6e0, 12345), 0);
        assert_int_equal(lapic_msr_read(l, 0x6e0, &value), 0);
        assert_true(value == 0);
        done(s);
}

/* A period of 1 ns makes no flood, and the loop goes on. */
static void test_timer_storm(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        uint64_t start = monotonic_ns();
        unsigned fired = 0;

        enable(s, false);
        put(l, 0x3e0, 11);
        put(l, 0x320, 0x20020);
        put(l, 0x380, 1);
        while (monotonic_ns() - start < 20000000) {
                uv_run(&s->b->loop, UV_RUN_ONCE);
                if (lapic_ack(l) == 0x20) {
                        fired++;
                        put(l, 0xb0, 0);
                }
        }
        assert_in_range(fired, 1, (monotonic_ns() - start) / 20000 + 2);
        done(s);
}

static void test_pause(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        uint64_t end;

        enable(s, false);
        put(l, 0x3e0, 11);
        put(l, 0x320, 0x20);
        put(l, 0x380, 3000000);
        board_clock_pause(s->b->host.clock);
        lapic_bus_quiesce(s->bus);
        end = monotonic_ns() + 6000000;
        while (monotonic_ns() < end)
                uv_run(&s->b->loop, UV_RUN_NOWAIT);
        assert_int_equal(s->cpu[0].interrupts, 0);
        assert_true(get(l, 0x390) > 0);
        board_clock_resume(s->b->host.clock);
        lapic_bus_resume(s->bus);
        run_until(s->b, &s->cpu[0].interrupts, 1);
        done(s);
}

static void test_pv_eoi(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[0];
        uint8_t *flag = guest_memory_at(&s->b->mem, 0x5000, 4);

        enable(s, true);
        lapic_set_pv_eoi(l, 0x5001);
        fixed(s, 0, 0x50);
        assert_int_equal(lapic_ack(l), 0x50);
        assert_int_equal(*flag, 1);
        *flag = 0; /* the guest ends it */
        fixed(s, 0, 0x40);
        assert_int_equal(lapic_ack(l), 0x40);
        assert_int_equal(*flag, 1);
        /* Something arrives before the guest has ended it: the flag is taken back. */
        fixed(s, 0, 0x41);
        assert_int_equal(lapic_ack(l), -1);
        assert_int_equal(*flag, 0);
        assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
        assert_int_equal(lapic_ack(l), 0x41);
        *flag = 0;
        /* Two requested, or a level: no offer. */
        fixed(s, 0, 0x50);
        fixed(s, 0, 0x60);
        assert_int_equal(lapic_ack(l), 0x60);
        assert_int_equal(*flag, 0);
        assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
        assert_int_equal(lapic_ack(l), 0x50);
        *flag = 0;
        lapic_bus_message(s->bus, 0xfee00000, 0xc070);
        assert_int_equal(lapic_ack(l), 0x70);
        assert_int_equal(*flag, 0);
        assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
        assert_int_equal(s->eois, 1);
        /* Outside memory: as if it were off. */
        lapic_set_pv_eoi(l, (UINT64_C(1) << 40) | 1);
        fixed(s, 0, 0x50);
        assert_int_equal(lapic_ack(l), 0x50);
        assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
        assert_int_equal(lapic_ack(l), -1);
        done(s);
}

static void test_pv_ipi(void **state)
{
        struct setup *s = setup();

        enable(s, true);
        lapic_send_ipi(s->lapic[0], 0x15, 0, 1, 0xfd);
        assert_int_equal(takers(s, 0xfd), 0x2a);
        lapic_send_ipi(s->lapic[0], 0, 1, UINT32_MAX - 10, 0xfd);
        assert_int_equal(takers(s, 0xfd), 0);
        lapic_send_ipi(s->lapic[0], 4, 0, 0, 0x400);
        assert_int_equal(s->cpu[2].nmis, 1);
        lapic_send_ipi(s->lapic[0], 4, 0, 0, 0x500);
        assert_int_equal(s->cpu[2].inits, 0);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();
        struct lapic *l = s->lapic[3];
        struct writer out_ = { 0 }, again = { 0 };
        struct cursor cursor;
        uint64_t value;

        enable(s, true);
        at(s->b, 5000);
        fixed(s, 3, 0x80);
        assert_int_equal(lapic_ack(l), 0x80);
        fixed(s, 3, 0x90);
        assert_int_equal(lapic_msr_write(l, 0x83e, 11), 0);
        assert_int_equal(lapic_msr_write(l, 0x832, 0x20021), 0);
        assert_int_equal(lapic_msr_write(l, 0x838, 700), 0);
        lapic_save(l, &out_);
        for (size_t size = 0; size < out_.size; size++) {
                cursor = cursor_from(out_.bytes, size);
                assert_int_not_equal(lapic_load(l, &cursor, &s->b->err), 0);
        }
        /* Another's, and damaged in the base MSR. */
        cursor = cursor_from(out_.bytes, out_.size);
        assert_int_equal(lapic_load(s->lapic[4], &cursor, &s->b->err), -EBADMSG);
        lapic_reset(l, false);
        cursor = cursor_from(out_.bytes, out_.size);
        if (lapic_load(l, &cursor, &s->b->err) < 0)
                fail_msg("%s", s->b->err.text);
        lapic_save(l, &again);
        assert_int_equal(again.size, out_.size);
        assert_memory_equal(again.bytes, out_.bytes, out_.size);
        assert_int_equal(lapic_ack(l), 0x90);
        at(s->b, 5100);
        assert_int_equal(lapic_msr_read(l, 0x839, &value), 0);
        assert_int_equal(value, 600);
        out_.bytes[6 + 2 + 4 + 4 + 1] ^= 0x08; /* IA32_APIC_BASE: x2APIC without being on */
        cursor = cursor_from(out_.bytes, out_.size);
        assert_int_equal(lapic_load(l, &cursor, &s->b->err), -EBADMSG);
        writer_done(&out_);
        writer_done(&again);
        /* INIT keeps mode and ID. */
        lapic_reset(s->lapic[5], true);
        assert_int_equal(lapic_msr_read(s->lapic[5], 0x802, &value), 0);
        assert_int_equal(value, 5);
        assert_int_equal(lapic_msr_read(s->lapic[5], 0x80d, &value), 0);
        assert_int_equal(value, 0x20);
        assert_int_equal(lapic_msr_read(s->lapic[5], 0x80f, &value), 0);
        assert_int_equal(value, 0xff);
        done(s);
}

struct storm {
        struct setup *s;
        atomic_bool stop;
        atomic_uint sent;
};

static void *send_storm(void *arg)
{
        struct storm *storm = arg;

        while (!atomic_load(&storm->stop)) {
                fixed(storm->s, 0, (uint8_t)(32 + atomic_load(&storm->sent) % 200));
                atomic_fetch_add(&storm->sent, 1);
        }
        return NULL;
}

/* A processor that takes interrupts while others send loses none: in the end every vector that was sent last is found. */
static void test_storm(void **state)
{
        struct setup *s = setup();
        struct storm storm = { .s = s };
        struct lapic *l = s->lapic[0];
        pthread_t thread;
        unsigned taken = 0;
        int vector;

        enable(s, true);
        assert_int_equal(pthread_create(&thread, NULL, send_storm, &storm), 0);
        while (taken < 20000) {
                if (lapic_ack(l) >= 0) {
                        taken++;
                        assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
                }
        }
        atomic_store(&storm.stop, true);
        pthread_join(thread, NULL);
        while ((vector = lapic_ack(l)) >= 0)
                assert_int_equal(lapic_msr_write(l, 0x80b, 0), 0);
        for (uint32_t i = 0; i < 8; i++) {
                uint64_t word;

                assert_int_equal(lapic_msr_read(l, 0x810 + i, &word), 0);
                assert_int_equal(word, 0);
                assert_int_equal(lapic_msr_read(l, 0x820 + i, &word), 0);
                assert_int_equal(word, 0);
        }
        done(s);
}

static void test_limits(void **state)
{
        struct bench *b = bench_new();
        struct lapic_bus *bus;

        assert_int_equal(lapic_bus_new(&b->host, 0, TSC_HZ, &bus, &b->err), -EINVAL);
        assert_int_equal(lapic_bus_new(&b->host, 256, TSC_HZ, &bus, &b->err), -EINVAL);
        assert_int_equal(lapic_bus_new(&b->host, 1, 0, &bus, &b->err), -EINVAL);
        assert_int_equal(lapic_bus_new(&b->host, 255, TSC_HZ, &bus, &b->err), 0);
        assert_null(lapic_bus_at(bus, 255));
        assert_non_null(lapic_bus_at(bus, 254));
        lapic_bus_free(bus);
        bench_free(b);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_power_on),
                cmocka_unit_test(test_priority),
                cmocka_unit_test(test_level_and_eoi),
                cmocka_unit_test(test_destinations_x),
                cmocka_unit_test(test_destinations_x2),
                cmocka_unit_test(test_shorthands_and_modes),
                cmocka_unit_test(test_lowest_priority),
                cmocka_unit_test(test_errors),
                cmocka_unit_test(test_local_lines),
                cmocka_unit_test(test_base_msr),
                cmocka_unit_test(test_x2_registers),
                cmocka_unit_test(test_timer_counts),
                cmocka_unit_test(test_timer_fires),
                cmocka_unit_test(test_timer_storm),
                cmocka_unit_test(test_pause),
                cmocka_unit_test(test_pv_eoi),
                cmocka_unit_test(test_pv_ipi),
                cmocka_unit_test(test_state),
                cmocka_unit_test(test_storm),
                cmocka_unit_test(test_limits),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
