/*
 * A hostile guest against the whole board with its local APICs: ports, memory, MSRs and messages of all sizes and orders, time that
 * jumps, host input, and records that are loaded back damaged.
 *
 * An input is a list of commands: a byte that selects, then its arguments.
 */
#include <stdio.h>

#include "device/acpi-pm.h"
#include "device/board.h"
#include "device/fw-cfg.h"
#include "device/ioapic.h"
#include "device/lapic.h"
#include "device/pic.h"
#include "device/uart.h"

#define CPUS 3
#define COMMANDS_MAX 400

struct guest {
        uv_loop_t loop;
        struct device_host host;
        struct guest_memory mem;
        struct board *board;
        struct lapic_bus *lapics;
        struct writer saved;
        uint64_t tsc;
        size_t room;
};

static void send_message(void *ctx, uint64_t address, uint32_t data)
{
        lapic_bus_message(((struct guest *)ctx)->lapics, address, data);
}

static void extint(void *ctx, bool level)
{
        lapic_bus_extint(((struct guest *)ctx)->lapics, level);
}

static void power(void *ctx, enum power_event event)
{
}

static uint64_t tsc(void *ctx)
{
        return ((struct guest *)ctx)->tsc;
}

static void signal_processor(void *ctx)
{
}

static void sipi(void *ctx, uint8_t vector)
{
}

static size_t serial_write(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct guest *g = ctx;
        size_t taken = MIN(size_bytes, g->room);

        g->room -= taken;
        return taken;
}

static void connect_lapics(struct guest *g)
{
        for (unsigned i = 0; i < CPUS; i++) {
                struct lapic_processor p = {
                        .interrupt = signal_processor, .nmi = signal_processor, .init = signal_processor, .sipi = sipi, .tsc = tsc, .ctx = g,
                };

                lapic_connect(lapic_bus_at(g->lapics, i), &p);
        }
        lapic_bus_connect_pic(g->lapics, pic_ack, g->board->pic);
        lapic_bus_connect_ioapic(g->lapics, ioapic_eoi, g->board->ioapic);
}

static void start(struct guest *g)
{
        struct char_backend serial = { .write = serial_write, .readable = signal_processor, .ctx = g };
        struct board_config config = { .cpus = CPUS, .extint = extint, .ctx = g, .serial = &serial };

        memset(g, 0, sizeof(*g));
        if (uv_loop_init(&g->loop) < 0 || timer_set_new(&g->loop, &g->host.timers, NULL) < 0 || bus_new(&g->host.bus, NULL) < 0 ||
            guest_memory_init(&g->mem, "fuzz", NULL) < 0 || guest_memory_add(&g->mem, 0, 1 << 16, NULL) < 0)
                abort();
        g->host.loop = &g->loop;
        g->host.mem = &g->mem;
        g->host.msi = (struct msi_target){ .send = send_message, .ctx = g };
        g->host.power = power;
        g->host.ctx = g;
        if (board_new(&g->host, &config, &g->board, NULL) < 0 || lapic_bus_new(&g->host, CPUS, 1000000000, &g->lapics, NULL) < 0 ||
            fw_cfg_add(g->board->fw_cfg, "etc/fuzz", "0123456789", 10, NULL) < 0)
                abort();
        connect_lapics(g);
        board_pause(g->board);
}

static void end(struct guest *g)
{
        writer_done(&g->saved);
        lapic_bus_free(g->lapics);
        board_free(g->board);
        timer_set_free(g->host.timers);
        uv_run(&g->loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&g->loop) != 0)
                abort();
        bus_free(g->host.bus);
        guest_memory_done(&g->mem);
}

static const uint16_t ports[16] = {
        0x20, 0xa0, 0x40, 0x60, 0x70, 0x4d0, 0x3f8, 0x500, 0x510, 0x600, 0x608, 0x620, 0xcf8, 0xcfc, 0x90, 0x0,
};

static const uint64_t pages[4] = { BOARD_IOAPIC, BOARD_HPET, BOARD_ECAM, BOARD_HPET + 0x100 };

static void jump(struct guest *g, uint64_t ns)
{
        uint64_t now = board_clock_ns(&g->board->clock);

        /* At most 73 years at once, and in all what a record may hold. */
        board_clock_set(&g->board->clock, MIN(now + (ns & INT64_MAX >> 2), (uint64_t)1 << 61));
        g->tsc += ns;
        /* Running for a moment: what is due fires. */
        board_resume(g->board);
        lapic_bus_resume(g->lapics);
        uv_run(&g->loop, UV_RUN_NOWAIT);
        board_pause(g->board);
        lapic_bus_quiesce(g->lapics);
}

static void save(struct guest *g)
{
        writer_done(&g->saved);
        g->saved = (struct writer){ 0 };
        board_save(g->board, &g->saved);
        for (unsigned i = 0; i < CPUS; i++)
                lapic_save(lapic_bus_at(g->lapics, i), &g->saved);
}

static void load(struct guest *g, uint16_t at, uint8_t damage)
{
        struct err err = ERR_INIT;
        struct record record;
        struct cursor in;

        if (!g->saved.size)
                return;
        in = cursor_from(g->saved.bytes, g->saved.size);
        g->saved.bytes[at % g->saved.size] ^= damage;
        if (record_next(&in, &record, NULL) == 0) {
                struct cursor body = record.body;
                int r = board_load(g->board, record.version, &body, &err);

                /* What was saved loads. */
                if (r < 0 && !damage) {
                        fprintf(stderr, "%s\n", err.text);
                        abort();
                }
        }
        for (unsigned i = 0; i < CPUS; i++) {
                if (lapic_load(lapic_bus_at(g->lapics, i), &in, NULL) < 0 && !damage)
                        abort();
        }
        g->saved.bytes[at % g->saved.size] ^= damage;
}

static void access_registers(struct guest *g, uint8_t command, struct cursor *in)
{
        unsigned size_bytes = 1u << (command >> 4 & 3);
        uint8_t where = cursor_u8(in);
        uint16_t port = (uint16_t)(ports[where >> 4] + (where & 15));
        uint64_t gpa = pages[where & 3] + (cursor_u8(in) << 2 | where >> 6);

        switch (command & 3) {
        case 0:
                bus_write(g->host.bus, BUS_PORTS, port, cursor_le32(in), MIN(size_bytes, 4u));
                break;
        case 1:
                bus_read(g->host.bus, BUS_PORTS, port, MIN(size_bytes, 4u));
                break;
        case 2:
                bus_write(g->host.bus, BUS_MEMORY, gpa, cursor_le64(in), size_bytes);
                break;
        default:
                bus_read(g->host.bus, BUS_MEMORY, gpa, size_bytes);
                break;
        }
}

static void access_lapic(struct guest *g, uint8_t command, struct cursor *in)
{
        struct lapic *lapic = lapic_bus_at(g->lapics, (command >> 5) % CPUS);
        uint8_t reg = cursor_u8(in);
        uint64_t value = cursor_le64(in);

        switch (command >> 2 & 7) {
        case 0:
                lapic_mmio_write(lapic, (uint64_t)reg << 4, value, 4);
                break;
        case 1:
                lapic_mmio_read(lapic, (uint64_t)reg << 2, 4);
                break;
        case 2:
                (void)lapic_msr_write(lapic, 0x800u + reg, value);
                break;
        case 3:
                (void)lapic_msr_read(lapic, 0x800u + reg, &value);
                break;
        case 4:
                (void)lapic_msr_write(lapic, reg & 1 ? 0x1b : 0x6e0, value);
                break;
        case 5:
                lapic_set_pv_eoi(lapic, value);
                lapic_send_ipi(lapic, value, value >> 32, reg, (uint32_t)(value >> 16));
                break;
        case 6:
                lapic_bus_message(g->lapics, 0xfee00000 | (value & 0xffffc), (uint32_t)(value >> 32));
                break;
        default:
                lapic_set_tpr(lapic, reg & 15);
                while (lapic_ack(lapic) >= 0 && (reg & 0x80))
                        lapic_mmio_write(lapic, 0xb0, 0, 4);
                if (reg == 0x55)
                        lapic_reset(lapic, value & 1);
                break;
        }
}

static void do_rest(struct guest *g, uint8_t command, struct cursor *in)
{
        uint8_t byte = cursor_u8(in);

        switch (command >> 2 & 15) {
        case 0:
                irq_set(&g->board->isa[byte & 15], byte & 0x80);
                break;
        case 1:
                jump(g, cursor_le32(in));
                break;
        case 2:
                jump(g, cursor_le64(in));
                break;
        case 3:
                uart_receive(g->board->com1, in->at, MIN(cursor_left(in), (size_t)byte));
                break;
        case 4:
                g->room = byte;
                uart_writable(g->board->com1);
                break;
        case 5:
                uart_break(g->board->com1);
                acpi_pm_power_button(g->board->pm);
                acpi_pm_gpe(g->board->pm, byte);
                break;
        case 6:
                save(g);
                break;
        case 7:
                load(g, cursor_le16(in), byte);
                break;
        case 8:
                board_reset(g->board);
                break;
        case 9:
                if (guest_memory_write(&g->mem, byte * 16u, in->at, MIN(cursor_left(in), (size_t)16)) < 0)
                        abort();
                break;
        default:
                pic_ack(g->board->pic);
                break;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct cursor in = cursor_from(bytes, size_bytes);
        static struct guest g;

        start(&g);
        for (unsigned i = 0; i < COMMANDS_MAX && cursor_left(&in); i++) {
                uint8_t command = cursor_u8(&in);

                if (!(command & 0x80) && (command & 0x40))
                        access_lapic(&g, command, &in);
                else if (command & 0x80)
                        do_rest(&g, command, &in);
                else
                        access_registers(&g, command, &in);
        }
        end(&g);
        return 0;
}
