/*
 * 8042 keyboard controller with nothing plugged in.
 *
 * It passes its self-test and both interface tests, keeps its command byte, and answers what is sent to the keyboard or mouse as
 * the controller does when no device takes it: 0xfe with the time-out bit. What machines need it for is the reset line (output port
 * bit 0, pulsed by command 0xfe) and, from old times, the A20 gate, whose state is kept and which masks no address.
 * Port 0x92 has both again (PS/2 "System Control Port A").
 *
 * Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
 */
#include "device/i8042.h"

#include <errno.h>

#include "device/board.h"

enum { REGION_DATA, REGION_COMMAND, REGION_A20 };
enum { STATUS_OUTPUT = 0x01, STATUS_SYSTEM = 0x04, STATUS_COMMAND = 0x08, STATUS_UNLOCKED = 0x10, STATUS_AUX = 0x20, STATUS_TIMEOUT = 0x40 };
enum { BYTE_IRQ1 = 0x01, BYTE_IRQ12 = 0x02, BYTE_SYSTEM = 0x04, BYTE_KEYBOARD_OFF = 0x10, BYTE_AUX_OFF = 0x20 };
enum { OUT_NO_RESET = 0x01, OUT_A20 = 0x02, OUT_IRQ1 = 0x10, OUT_IRQ12 = 0x20 };
enum { PORT92_RESET = 0x01, PORT92_A20 = 0x02 };

struct i8042 {
        struct device dev;
        struct device_host *host;
        struct irq_line irq1, irq12;
        uint8_t status, output, command; /* command: whose data byte comes next, 0 for none */
        uint8_t command_byte, output_port;
        uint8_t ram[32]; /* byte 0 is the command byte's place */
        bool level1, level12;
};

static void update(struct i8042 *kbd)
{
        bool full = kbd->status & STATUS_OUTPUT, aux = kbd->status & STATUS_AUX;
        bool level1 = full && !aux && (kbd->command_byte & BYTE_IRQ1), level12 = full && aux && (kbd->command_byte & BYTE_IRQ12);

        if (level1 != kbd->level1)
                irq_set(&kbd->irq1, level1);
        if (level12 != kbd->level12)
                irq_set(&kbd->irq12, level12);
        kbd->level1 = level1;
        kbd->level12 = level12;
}

static void answer(struct i8042 *kbd, uint8_t value, uint8_t flags)
{
        kbd->output = value;
        kbd->status = (kbd->status & (uint8_t)~(STATUS_AUX | STATUS_TIMEOUT)) | STATUS_OUTPUT | flags;
}

static void reset_machine(struct i8042 *kbd)
{
        if (kbd->host->power)
                kbd->host->power(kbd->host->ctx, POWER_RESET);
}

static void write_output_port(struct i8042 *kbd, uint8_t value)
{
        kbd->output_port = value | OUT_NO_RESET;
        if (!(value & OUT_NO_RESET))
                reset_machine(kbd);
}

static uint8_t output_port(const struct i8042 *kbd)
{
        return (kbd->output_port & (uint8_t)~(OUT_IRQ1 | OUT_IRQ12)) | (kbd->level1 ? OUT_IRQ1 : 0) | (kbd->level12 ? OUT_IRQ12 : 0);
}

static void write_command(struct i8042 *kbd, uint8_t value)
{
        kbd->status |= STATUS_COMMAND;
        kbd->command = 0;
        switch (value) {
        case 0x20:
                answer(kbd, kbd->command_byte, 0);
                break;
        case 0x21 ... 0x3f:
                answer(kbd, kbd->ram[value & 31], 0);
                break;
        case 0x60 ... 0x7f: /* a data byte follows */
        case 0xd1 ... 0xd4:
                kbd->command = value;
                break;
        case 0xa7:
                kbd->command_byte |= BYTE_AUX_OFF;
                break;
        case 0xa8:
                kbd->command_byte &= (uint8_t)~BYTE_AUX_OFF;
                break;
        case 0xa9: /* interface tests: no fault on the lines */
        case 0xab:
                answer(kbd, 0x00, 0);
                break;
        case 0xaa:
                kbd->status |= STATUS_SYSTEM;
                answer(kbd, 0x55, 0);
                break;
        case 0xad:
                kbd->command_byte |= BYTE_KEYBOARD_OFF;
                break;
        case 0xae:
                kbd->command_byte &= (uint8_t)~BYTE_KEYBOARD_OFF;
                break;
        case 0xc0: /* input port: not locked, manufacturing jumper not there */
                answer(kbd, 0xa0, 0);
                break;
        case 0xd0:
                answer(kbd, output_port(kbd), 0);
                break;
        case 0xdd:
                kbd->output_port &= (uint8_t)~OUT_A20;
                break;
        case 0xdf:
                kbd->output_port |= OUT_A20;
                break;
        case 0xf0 ... 0xff: /* bits that are 0 pulse their line low */
                if (!(value & OUT_NO_RESET))
                        reset_machine(kbd);
                break;
        default:
                break;
        }
}

static void write_data(struct i8042 *kbd, uint8_t value)
{
        uint8_t command = kbd->command;

        kbd->status &= (uint8_t)~STATUS_COMMAND;
        kbd->command = 0;
        switch (command) {
        case 0x60:
                kbd->command_byte = value;
                kbd->status = (kbd->status & (uint8_t)~STATUS_SYSTEM) | (value & BYTE_SYSTEM);
                break;
        case 0x61 ... 0x7f:
                kbd->ram[command & 31] = value;
                break;
        case 0xd1:
                write_output_port(kbd, value);
                break;
        case 0xd2: /* loops back as if the keyboard, or the mouse, had sent it */
                answer(kbd, value, 0);
                break;
        case 0xd3:
                answer(kbd, value, STATUS_AUX);
                break;
        case 0xd4:
                answer(kbd, 0xfe, STATUS_AUX | STATUS_TIMEOUT);
                break;
        default: /* for the keyboard, which is not there */
                answer(kbd, 0xfe, STATUS_TIMEOUT);
                break;
        }
}

static uint64_t kbd_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        if (region == REGION_COMMAND)
                return kbd->status;
        if (region == REGION_A20)
                return kbd->output_port & OUT_A20 ? PORT92_A20 : 0;
        kbd->status &= (uint8_t)~(STATUS_OUTPUT | STATUS_AUX | STATUS_TIMEOUT);
        update(kbd);
        return kbd->output;
}

static void kbd_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        if (region == REGION_A20) {
                kbd->output_port = (kbd->output_port & (uint8_t)~OUT_A20) | (value & PORT92_A20 ? OUT_A20 : 0);
                if (value & PORT92_RESET)
                        reset_machine(kbd);
                return;
        }
        if (region == REGION_COMMAND)
                write_command(kbd, (uint8_t)value);
        else
                write_data(kbd, (uint8_t)value);
        update(kbd);
}

static void kbd_reset(struct device *dev)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        kbd->status = STATUS_UNLOCKED | STATUS_SYSTEM;
        kbd->output = kbd->command = 0;
        kbd->command_byte = BYTE_SYSTEM | BYTE_KEYBOARD_OFF | BYTE_AUX_OFF;
        kbd->output_port = OUT_NO_RESET | OUT_A20;
        memset(kbd->ram, 0, sizeof(kbd->ram));
        update(kbd);
}

static void kbd_save(struct device *dev, struct writer *out)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        writer_u8(out, kbd->status);
        writer_u8(out, kbd->output);
        writer_u8(out, kbd->command);
        writer_u8(out, kbd->command_byte);
        writer_u8(out, kbd->output_port);
        writer_put(out, kbd->ram, sizeof(kbd->ram));
}

static int kbd_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        kbd->status = cursor_u8(in);
        kbd->output = cursor_u8(in);
        kbd->command = cursor_u8(in);
        kbd->command_byte = cursor_u8(in);
        kbd->output_port = cursor_u8(in) | OUT_NO_RESET;
        if (cursor_get(in, kbd->ram, sizeof(kbd->ram)) < 0)
                return err_set(err, -EBADMSG, "i8042 record is cut");
        update(kbd);
        return 0;
}

static void kbd_free(struct device *dev)
{
        struct i8042 *kbd = container_of(dev, struct i8042, dev);

        bus_remove(kbd->host->bus, BUS_PORTS, BOARD_PORT_I8042, dev);
        bus_remove(kbd->host->bus, BUS_PORTS, BOARD_PORT_I8042 + 4, dev);
        bus_remove(kbd->host->bus, BUS_PORTS, BOARD_PORT_A20, dev);
        device_done(dev);
        free(kbd);
}

static const struct device_ops i8042_ops = {
        .name = "i8042",
        .read = kbd_read, .write = kbd_write,
        .reset = kbd_reset,
        .version = 1, .save = kbd_save, .load = kbd_load,
        .free = kbd_free,
};

int i8042_new(struct device_host *host, const struct irq_line *irq1, const struct irq_line *irq12, struct device **dev, struct err *err)
{
        struct i8042 *kbd = calloc(1, sizeof(*kbd));
        int r;

        if (!kbd)
                return err_nomem(err);
        device_init(&kbd->dev, &i8042_ops, "i8042");
        kbd->host = host;
        kbd->irq1 = *irq1;
        kbd->irq12 = *irq12;
        kbd_reset(&kbd->dev);
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_I8042, 1, &kbd->dev, REGION_DATA, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_I8042 + 4, 1, &kbd->dev, REGION_COMMAND, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_A20, 1, &kbd->dev, REGION_A20, err);
        if (r < 0) {
                kbd_free(&kbd->dev);
                return r;
        }
        *dev = &kbd->dev;
        return 0;
}
