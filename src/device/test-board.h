/*
 * A board without processors, for the tests of its devices: bus, memory, timers, and a log of messages, wires and power events.
 * The guest's clock can be set by hand (at()), so that what a timer shows is exact.
 */
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "device/board.h"

#define TEST_MESSAGES 64

struct bench {
        uv_loop_t loop;
        struct device_host host;
        struct guest_memory mem;
        struct board_clock clock;
        struct err err;
        unsigned messages;
        struct { uint64_t address; uint32_t data; } message[TEST_MESSAGES];
        bool wire[64];
        unsigned rises[64];
        unsigned power[2];
};

static inline void bench_message(void *ctx, uint64_t address, uint32_t data)
{
        struct bench *b = ctx;

        b->message[b->messages % TEST_MESSAGES].address = address;
        b->message[b->messages % TEST_MESSAGES].data = data;
        b->messages++;
}

static inline void bench_wire(void *ctx, unsigned number, bool level)
{
        struct bench *b = ctx;

        if (level && !b->wire[number])
                b->rises[number]++;
        b->wire[number] = level;
}

static inline struct irq_line bench_line(struct bench *b, unsigned number)
{
        return (struct irq_line){ .set = bench_wire, .ctx = b, .number = number };
}

static inline void bench_power(void *ctx, enum power_event event)
{
        struct bench *b = ctx;

        b->power[event]++;
}

static inline struct bench *bench_new(void)
{
        struct bench *b = calloc(1, sizeof(*b));

        assert_non_null(b);
        assert_int_equal(uv_loop_init(&b->loop), 0);
        assert_int_equal(timer_set_new(&b->loop, &b->host.timers, &b->err), 0);
        assert_int_equal(guest_memory_init(&b->mem, "test", &b->err), 0);
        assert_int_equal(guest_memory_add(&b->mem, 0, 1 << 20, &b->err), 0);
        assert_int_equal(bus_new(&b->host.bus, &b->err), 0);
        board_clock_init(&b->clock);
        b->host.loop = &b->loop;
        b->host.mem = &b->mem;
        b->host.clock = &b->clock;
        b->host.msi = (struct msi_target){ .send = bench_message, .ctx = b };
        b->host.power = bench_power;
        b->host.ctx = b;
        return b;
}

static inline void bench_free(struct bench *b)
{
        timer_set_free(b->host.timers);
        uv_run(&b->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&b->loop), 0);
        bus_free(b->host.bus);
        guest_memory_done(&b->mem);
        free(b);
}

/* The guest's clock stands at ns. */
static inline void at(struct bench *b, uint64_t ns)
{
        board_clock_pause(b->host.clock);
        board_clock_set(b->host.clock, ns);
}

/* Runs the loop until *counter reaches value; fails after 5 s. */
static inline void run_until(struct bench *b, const unsigned *counter, unsigned value)
{
        uint64_t end = monotonic_ns() + UINT64_C(5000000000);

        while (*counter < value) {
                assert_true(monotonic_ns() < end);
                uv_run(&b->loop, UV_RUN_ONCE);
        }
}

static inline uint32_t in(struct bench *b, uint16_t port, unsigned size_bytes)
{
        return (uint32_t)bus_read(b->host.bus, BUS_PORTS, port, size_bytes);
}

static inline uint8_t inb(struct bench *b, uint16_t port)
{
        return (uint8_t)in(b, port, 1);
}

static inline void outb(struct bench *b, uint16_t port, uint8_t value)
{
        bus_write(b->host.bus, BUS_PORTS, port, value, 1);
}

static inline void out(struct bench *b, uint16_t port, uint32_t value, unsigned size_bytes)
{
        bus_write(b->host.bus, BUS_PORTS, port, value, size_bytes);
}

static inline uint64_t mmio_in(struct bench *b, uint64_t gpa, unsigned size_bytes)
{
        return bus_read(b->host.bus, BUS_MEMORY, gpa, size_bytes);
}

static inline void mmio_out(struct bench *b, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        bus_write(b->host.bus, BUS_MEMORY, gpa, value, size_bytes);
}

/* Saves a device, resets it, loads it back, and refuses records that are cut or too long, or come from a later version. */
static inline void check_record(struct device *dev)
{
        struct writer out_ = { 0 }, again = { 0 };
        struct cursor cursor;
        struct record record;
        struct err err = ERR_INIT;

        device_record_save(dev, &out_);
        assert_false(out_.bad);
        for (size_t cut = 1; cut < out_.size; cut++) {
                cursor = cursor_from(out_.bytes, out_.size);
                assert_int_equal(record_next(&cursor, &record, &err), 0);
                if (cut > (size_t)(record.body.end - record.body.at))
                        break;
                record.body.end -= cut;
                assert_int_not_equal(device_record_load(dev, &record, &err), 0);
        }
        writer_u8(&out_, 0);
        cursor = cursor_from(out_.bytes, out_.size);
        assert_int_equal(record_next(&cursor, &record, &err), 0);
        record.body.end++;
        assert_int_equal(device_record_load(dev, &record, &err), -EBADMSG);
        record.body.end--;
        record.version++;
        assert_int_equal(device_record_load(dev, &record, &err), -ENOTSUP);
        record.version--;
        dev->ops->reset(dev);
        if (device_record_load(dev, &record, &err) < 0)
                fail_msg("%s", err.text);
        device_record_save(dev, &again);
        assert_int_equal(again.size, out_.size - 1);
        assert_memory_equal(again.bytes, out_.bytes, again.size);
        writer_done(&out_);
        writer_done(&again);
}
