/*
 * A second opinion: the same random accesses to our 8259s, I/O APIC and UART and to QEMU's (its qtest protocol: a line a command,
 * with the processor stopped), every value read compared. Skipped where there is no QEMU.
 *
 * The two masters' and slaves' inputs are driven one chip at a time: QEMU latches the cascade as an edge, we as a level.
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "device/ioapic.h"
#include "device/pic.h"
#include "device/test-board.h"
#include "device/uart.h"

extern char **environ;

#define ROUNDS 3000

struct peer {
        pid_t pid;
        FILE *to, *from;
        uint64_t seed;
        unsigned reads;
        bool special_mask;
};

static bool peer_start(struct peer *peer)
{
        const char *const argv[] = {
                "qemu-system-x86_64", "-M", "pc,accel=tcg", "-S", "-nodefaults", "-display", "none", "-serial", "null", "-qtest", "stdio",
                "-qtest-log", "/dev/null", NULL,
        };
        posix_spawn_file_actions_t actions;
        int to[2], from[2], r;

        if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
                return false;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, to[0], 0);
        posix_spawn_file_actions_adddup2(&actions, from[1], 1);
        r = posix_spawnp(&peer->pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
        posix_spawn_file_actions_destroy(&actions);
        close(to[0]);
        close(from[1]);
        if (r != 0)
                return false;
        peer->to = fdopen(to[1], "we");
        peer->from = fdopen(from[0], "re");
        peer->seed = 0x9e3779b97f4a7c15;
        return true;
}

static uint64_t peer_do(struct peer *peer, const char *fmt, ...) _printf_(2, 3);
static uint64_t peer_do(struct peer *peer, const char *fmt, ...)
{
        char line[128];
        va_list args;

        va_start(args, fmt);
        vfprintf(peer->to, fmt, args);
        va_end(args);
        fputc('\n', peer->to);
        fflush(peer->to);
        if (!fgets(line, sizeof(line), peer->from) || strncmp(line, "OK", 2) != 0)
                fail_msg("QEMU does not take \"%s\"", fmt);
        return strtoull(line + 2, NULL, 0);
}

static uint32_t roll(struct peer *peer, uint32_t below)
{
        peer->seed = peer->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        return (uint32_t)(peer->seed >> 33) % below;
}

static void both_out(struct peer *peer, struct bench *b, uint16_t port, uint8_t value)
{
        outb(b, port, value);
        peer_do(peer, "outb 0x%x 0x%x", port, value);
}

static void both_in(struct peer *peer, struct bench *b, uint16_t port, uint8_t ignore, const char *last)
{
        uint8_t ours = inb(b, port) & (uint8_t)~ignore, theirs = (uint8_t)peer_do(peer, "inb 0x%x", port) & (uint8_t)~ignore;

        peer->reads++;
        if (ours != theirs)
                fail_msg("port 0x%x: 0x%02x here, 0x%02x in QEMU, at read %u after %s", port, ours, theirs, peer->reads, last);
}

/* ---- 8259 ---- */

static void drive(struct peer *peer, struct device *pic, bool slave, unsigned irq, bool level)
{
        struct irq_line line = pic_line(pic, irq + (slave ? 8 : 0));

        if (!line.set)
                return;
        irq_set(&line, level);
        peer_do(peer, "set_irq_in /machine/unattached/device[%d] unnamed-gpio-in %u %u", slave ? 7 : 6, irq, level);
}

static void pic_command(struct peer *peer, struct bench *b, struct device *pic, bool slave, unsigned kind)
{
        static const uint8_t ocw2[] = { 0x00, 0x80, 0x20, 0xa0, 0x60, 0xe0, 0xc0, 0x40 };
        uint8_t irq = (uint8_t)roll(peer, 8);
        uint16_t port = slave ? 0xa0 : 0x20;

        switch (kind) {
        case 0:
                both_out(peer, b, port + 1, (uint8_t)roll(peer, 256));
                break;
        case 1:
        case 2:
                /* In special mask mode a non-specific EOI leaves masked bits alone (data sheet); QEMU's does not. */
                kind = roll(peer, 8);
                both_out(peer, b, port, ocw2[peer->special_mask && (kind & 6) == 2 ? 4 : kind] | irq);
                break;
        case 3:
                both_out(peer, b, port, 0x08 | (uint8_t)(roll(peer, 2) | 2));
                break;
        case 4:
                peer->special_mask = roll(peer, 2);
                both_out(peer, b, port, 0x48 | (uint8_t)(peer->special_mask << 5));
                break;
        case 5:
                both_out(peer, b, port, 0x0c);
                both_in(peer, b, port, 0, "poll");
                break;
        default: /* with the wires low: QEMU takes a wire that stays high over ICW1 for a new edge */
                for (unsigned i = 0; i < 8; i++)
                        drive(peer, pic, slave, i, false);
                peer->special_mask = false;
                both_out(peer, b, port, 0x11);
                both_out(peer, b, port + 1, 0x20);
                both_out(peer, b, port + 1, 0x04);
                both_out(peer, b, port + 1, 0x01 | (uint8_t)(roll(peer, 2) << 1));
                break;
        }
}

/* With nothing requested: what a change under a request does is nobody's specification. */
static void change_elcr(struct peer *peer, struct bench *b, struct device *pic, bool slave)
{
        pic_command(peer, b, pic, slave, 6);
        both_out(peer, b, slave ? 0x4d1 : 0x4d0, (uint8_t)roll(peer, 256));
        both_in(peer, b, slave ? 0x4d1 : 0x4d0, 0, "ELCR");
}

static void one_pic(struct peer *peer, struct bench *b, struct device *pic, bool slave)
{
        uint16_t port = slave ? 0xa0 : 0x20;

        peer->special_mask = false;
        both_out(peer, b, 0x20, 0x11);
        both_out(peer, b, 0xa0, 0x11);
        for (unsigned i = 0; i < 2; i++) {
                uint16_t data = i ? 0xa1 : 0x21;

                both_out(peer, b, data, 0x20);
                both_out(peer, b, data, 0x04);
                both_out(peer, b, data, 0x01);
                both_out(peer, b, data, 0xff);
        }
        both_out(peer, b, port + 1, 0x00);
        for (unsigned i = 0; i < ROUNDS; i++) {
                unsigned kind = roll(peer, 24), irq = roll(peer, 8), level = roll(peer, 2);

                if (kind >= 10) {
                        drive(peer, pic, slave, irq, level);
                } else if (kind == 9) {
                        change_elcr(peer, b, pic, slave);
                } else if (kind < 7) {
                        pic_command(peer, b, pic, slave, kind == 6 && roll(peer, 8) ? 2 : kind);
                }
                both_in(peer, b, port, 0, "a step");
                both_in(peer, b, port + 1, 0, "a step");
        }
        for (unsigned i = 0; i < 8; i++)
                drive(peer, pic, slave, i, false);
}

static void test_pic(void **state)
{
        struct peer *peer = *state;
        struct bench *b = bench_new();
        struct irq_line intr = bench_line(b, 0);
        struct device *pic;

        assert_int_equal(pic_new(&b->host, &intr, &pic, &b->err), 0);
        one_pic(peer, b, pic, true);
        both_out(peer, b, 0xa1, 0xff);
        one_pic(peer, b, pic, false);
        device_end(pic);
        bench_free(b);
}

/* ---- I/O APIC ---- */

static uint32_t ioapic_both(struct peer *peer, struct bench *b, uint8_t index, bool write, uint32_t value)
{
        uint32_t ours, theirs;

        mmio_out(b, BOARD_IOAPIC, index, 4);
        peer_do(peer, "writel 0xfec00000 0x%x", index);
        if (write) {
                mmio_out(b, BOARD_IOAPIC + 0x10, value, 4);
                peer_do(peer, "writel 0xfec00010 0x%x", value);
                return 0;
        }
        ours = (uint32_t)mmio_in(b, BOARD_IOAPIC + 0x10, 4);
        theirs = (uint32_t)peer_do(peer, "readl 0xfec00010");
        peer->reads++;
        if (ours != theirs)
                fail_msg("I/O APIC register 0x%x: 0x%x here, 0x%x in QEMU, at read %u", index, ours, theirs, peer->reads);
        return ours;
}

static void test_ioapic(void **state)
{
        struct peer *peer = *state;
        struct bench *b = bench_new();
        struct ioapic_changed changed = { 0 };
        struct device *ioapic;

        assert_int_equal(ioapic_new(&b->host, &changed, &ioapic, &b->err), 0);
        ioapic_both(peer, b, 1, false, 0);
        for (unsigned i = 0; i < ROUNDS; i++) {
                unsigned pin = 3 + roll(peer, 21), level = roll(peer, 2);
                struct irq_line line = ioapic_line(ioapic, pin);

                switch (roll(peer, 6)) {
                case 0: /* with the wire low: QEMU forgets one that rose while the line was an edge */
                        irq_set(&line, false);
                        peer_do(peer, "set_irq_in /machine/i440fx/ioapic unnamed-gpio-in %u 0", pin);
                        /* fixed, vectors from 32 on; delivery status is always 0 */
                        ioapic_both(peer, b, (uint8_t)(0x10 + 2 * pin), true, (roll(peer, 0x20000) & ~0x700u) | 0x20);
                        break;
                case 1: /* QEMU keeps bits that are reserved in the part */
                        ioapic_both(peer, b, (uint8_t)(0x11 + 2 * pin), true, roll(peer, 256) << 24);
                        break;
                case 2:
                        mmio_out(b, BOARD_IOAPIC + 0x40, 0x20 | pin, 4);
                        peer_do(peer, "writel 0xfec00040 0x%x", 0x20 | pin);
                        break;
                default:
                        irq_set(&line, level);
                        peer_do(peer, "set_irq_in /machine/i440fx/ioapic unnamed-gpio-in %u %u", pin, level);
                        break;
                }
                ioapic_both(peer, b, (uint8_t)(0x10 + 2 * pin), false, 0);
                ioapic_both(peer, b, (uint8_t)(0x11 + 2 * pin), false, 0);
        }
        device_end(ioapic);
        bench_free(b);
}

/* ---- UART ---- */

static size_t take_all(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        return size_bytes;
}

static void no_room(void *ctx)
{
}

static void test_uart(void **state)
{
        struct peer *peer = *state;
        struct bench *b = bench_new();
        struct irq_line irq = bench_line(b, 4);
        struct char_backend backend = { .write = take_all, .readable = no_room };
        struct device *uart;
        uint8_t mcr = 0, lcr = 0;

        assert_int_equal(uart_new(&b->host, "com1", 0x3f8, &irq, &backend, &uart, &b->err), 0);
        for (unsigned i = 0; i < ROUNDS; i++) {
                uint16_t reg = (uint16_t)roll(peer, 8);
                uint8_t value = (uint8_t)roll(peer, 256);

                /* In loopback for good: what is connected at the other end differs. Transmit empties at once there as well. */
                if (reg == 4 || i == 0) {
                        mcr = value | 0x10;
                        both_out(peer, b, 0x3fc, mcr);
                } else if (reg == 3) {
                        lcr = value & 0x83;
                        both_out(peer, b, 0x3fb, lcr);
                } else if (reg == 1 || reg == 7 || (reg == 0 && (lcr & 0x80))) {
                        both_out(peer, b, 0x3f8 + reg, reg == 1 && !(lcr & 0x80) ? value & 0x04 : value);
                }
                /* The data sheet has changes of the loop's modem lines in MSR 3-0; QEMU leaves them out. */
                reg = (uint16_t)(3 + roll(peer, 5));
                both_in(peer, b, 0x3f8 + reg, reg == 6 ? 0x0f : 0, "a step");
                if (lcr & 0x80)
                        both_in(peer, b, 0x3f8 + (uint16_t)roll(peer, 2), 0, "a divisor");
                else
                        both_in(peer, b, 0x3f9, 0, "IER");
                both_in(peer, b, 0x3fa, 0, "IIR");
        }
        device_end(uart);
        bench_free(b);
}

int main(void)
{
        struct peer peer = { 0 };
        struct CMUnitTest tests[] = {
                cmocka_unit_test_prestate(test_pic, &peer),
                cmocka_unit_test_prestate(test_ioapic, &peer),
                cmocka_unit_test_prestate(test_uart, &peer),
        };
        int failed;

        signal(SIGPIPE, SIG_IGN);
        if (!peer_start(&peer)) {
                printf("skipped: there is no qemu-system-x86_64 to compare with\n");
                return 77;
        }
        failed = cmocka_run_group_tests(tests, NULL, NULL);
        printf("%u values compared\n", peer.reads);
        fclose(peer.to);
        fclose(peer.from);
        kill(peer.pid, SIGKILL);
        waitpid(peer.pid, NULL, 0);
        return failed;
}
