/* ACPI fixed hardware (ACPI 6.5 §4.8): status and enable, SCI, power button, sleep, the timer; and the small parts beside it. */
#include "device/acpi-pm.h"
#include "device/fw-cfg.h"
#include "device/i8042.h"
#include "device/pvpanic.h"
#include "device/test-board.h"

static struct device *new_pm(struct bench *b)
{
        struct irq_line sci = bench_line(b, 9);
        struct device *pm;

        assert_int_equal(acpi_pm_new(&b->host, &sci, &pm, &b->err), 0);
        return pm;
}

static void test_events(void **state)
{
        struct bench *b = bench_new();
        struct device *pm = new_pm(b);

        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 4), 0);
        assert_int_equal(in(b, BOARD_PORT_PM1_CONTROL, 2), 1);
        acpi_pm_power_button(pm);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 2), 0x100);
        assert_false(b->wire[9]);
        out(b, BOARD_PORT_PM1_EVENT + 2, 0xffff, 2);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT + 2, 2), 0x0721);
        assert_true(b->wire[9]);
        out(b, BOARD_PORT_PM1_EVENT, 0x0001, 2);
        assert_true(b->wire[9]);
        outb(b, BOARD_PORT_PM1_EVENT + 1, 0x01); /* bytes work as well */
        assert_false(b->wire[9]);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 2), 0);
        acpi_pm_gpe(pm, 3);
        assert_false(b->wire[9]);
        out(b, BOARD_PORT_GPE0 + 2, 0x0008, 2);
        assert_true(b->wire[9]);
        assert_int_equal(in(b, BOARD_PORT_GPE0, 4), 0x00080008);
        out(b, BOARD_PORT_GPE0, 0x0008, 2);
        assert_false(b->wire[9]);
        assert_int_equal(in(b, BOARD_PORT_PM + 0x30, 4), 0);
        device_end(pm);
        bench_free(b);
}

static void test_sleep(void **state)
{
        struct bench *b = bench_new();
        struct device *pm = new_pm(b);

        out(b, BOARD_PORT_PM1_CONTROL, 0x2000 | 3 << 10, 2); /* not S5 */
        out(b, BOARD_PORT_PM1_CONTROL, 5 << 10, 2);          /* not yet */
        assert_int_equal(b->power[POWER_OFF], 0);
        assert_int_equal(in(b, BOARD_PORT_PM1_CONTROL, 2), 5 << 10 | 1);
        out(b, BOARD_PORT_PM1_CONTROL, 0x2000 | 5 << 10, 2);
        assert_int_equal(b->power[POWER_OFF], 1);
        assert_int_equal(b->power[POWER_RESET], 0);
        device_end(pm);
        bench_free(b);
}

static void test_timer(void **state)
{
        struct bench *b = bench_new();
        struct device *pm;
        uint64_t turn = muldiv64_up(UINT64_C(1) << 31, 1000000000, BOARD_PM_TIMER_HZ);

        at(b, 0);
        pm = new_pm(b);
        at(b, 1000000000);
        assert_int_equal(in(b, BOARD_PORT_PM_TIMER, 4), 3579545);
        assert_int_equal(in(b, BOARD_PORT_PM_TIMER, 1), 3579545 & 0xff);
        assert_int_equal(in(b, BOARD_PORT_PM_TIMER + 2, 2), 3579545 >> 16);
        out(b, BOARD_PORT_PM_TIMER, 0, 4);
        assert_int_equal(in(b, BOARD_PORT_PM_TIMER, 4), 3579545);
        /* Bit 31 turns over after ten minutes. */
        at(b, turn - 1000);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 2), 0);
        at(b, turn);
        assert_int_equal(in(b, BOARD_PORT_PM_TIMER, 4), 0x80000000);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 2), 1);
        out(b, BOARD_PORT_PM1_EVENT, 1, 2);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 2), 0);
        out(b, BOARD_PORT_PM1_EVENT + 2, 1, 2);
        at(b, 2 * turn - 500000);
        board_clock_resume(&b->clock);
        pm->ops->resume(pm);
        run_until(b, &b->rises[9], 1);
        device_end(pm);
        bench_free(b);
}

static void test_pm_state(void **state)
{
        struct bench *b = bench_new();
        struct device *pm = new_pm(b);

        out(b, BOARD_PORT_PM1_EVENT + 2, 0x0120, 2);
        acpi_pm_power_button(pm);
        acpi_pm_gpe(pm, 15);
        check_record(pm);
        assert_true(b->wire[9]);
        assert_int_equal(in(b, BOARD_PORT_PM1_EVENT, 4), 0x01200100);
        device_end(pm);
        bench_free(b);
}

static void test_i8042(void **state)
{
        struct bench *b = bench_new();
        struct irq_line irq1 = bench_line(b, 1), irq12 = bench_line(b, 12);
        struct device *kbd;

        assert_int_equal(i8042_new(&b->host, &irq1, &irq12, &kbd, &b->err), 0);
        assert_int_equal(inb(b, 0x64), 0x14);
        outb(b, 0x64, 0xaa);
        assert_int_equal(inb(b, 0x64) & 1, 1);
        assert_int_equal(inb(b, 0x60), 0x55);
        assert_int_equal(inb(b, 0x64) & 1, 0);
        outb(b, 0x64, 0xab);
        assert_int_equal(inb(b, 0x60), 0x00);
        outb(b, 0x64, 0x60);
        outb(b, 0x60, 0x47);
        outb(b, 0x64, 0x20);
        assert_true(b->wire[1]);
        assert_int_equal(inb(b, 0x60), 0x47);
        assert_false(b->wire[1]);
        /* Nothing is plugged in. */
        outb(b, 0x60, 0xf2);
        assert_int_equal(inb(b, 0x64) & 0x41, 0x41);
        assert_int_equal(inb(b, 0x60), 0xfe);
        outb(b, 0x64, 0xd4);
        outb(b, 0x60, 0xf2);
        assert_int_equal(inb(b, 0x64) & 0x61, 0x61);
        assert_true(b->wire[12]);
        assert_int_equal(inb(b, 0x60), 0xfe);
        /* Loops, as drivers look for the mouse port. */
        outb(b, 0x64, 0xd3);
        outb(b, 0x60, 0x5a);
        assert_int_equal(inb(b, 0x64) & 0x21, 0x21);
        check_record(kbd);
        assert_int_equal(inb(b, 0x60), 0x5a);
        outb(b, 0x64, 0xd2);
        outb(b, 0x60, 0xa5);
        assert_int_equal(inb(b, 0x60), 0xa5);
        outb(b, 0x64, 0xa7);
        outb(b, 0x64, 0x20);
        assert_int_equal(inb(b, 0x60) & 0x20, 0x20);
        outb(b, 0x64, 0x65);
        outb(b, 0x60, 0x99);
        outb(b, 0x64, 0x25);
        assert_int_equal(inb(b, 0x60), 0x99);
        /* A20 and reset. */
        outb(b, 0x64, 0xdd);
        assert_int_equal(inb(b, 0x92), 0);
        outb(b, 0x92, 2);
        outb(b, 0x64, 0xd0);
        assert_int_equal(inb(b, 0x60) & 3, 3);
        assert_int_equal(b->power[POWER_RESET], 0);
        outb(b, 0x64, 0xfe);
        assert_int_equal(b->power[POWER_RESET], 1);
        outb(b, 0x92, 3);
        assert_int_equal(b->power[POWER_RESET], 2);
        outb(b, 0x64, 0xd1);
        outb(b, 0x60, 0xfe);
        assert_int_equal(b->power[POWER_RESET], 3);
        outb(b, 0x64, 0xff);
        assert_int_equal(b->power[POWER_RESET], 3);
        device_end(kbd);
        bench_free(b);
}

static uint32_t be32(uint32_t value)
{
        return __builtin_bswap32(value);
}

static void dma(struct bench *b, uint32_t control, uint32_t length, uint64_t address)
{
        struct { uint32_t control, length; uint64_t address; } request = { be32(control), be32(length), __builtin_bswap64(address) };

        assert_int_equal(guest_memory_write(&b->mem, 0x100, &request, sizeof(request)), 0);
        out(b, 0x514, 0, 4);
        out(b, 0x518, be32(0x100), 4);
}

static uint32_t dma_result(struct bench *b)
{
        uint32_t result;

        assert_int_equal(guest_memory_read(&b->mem, 0x100, &result, 4), 0);
        return be32(result);
}

static void test_fw_cfg(void **state)
{
        struct bench *b = bench_new();
        struct device *fw;
        char text[16] = "";
        uint8_t directory[4 + 2 * 64];

        assert_int_equal(fw_cfg_new(&b->host, 4, &fw, &b->err), 0);
        assert_int_equal(fw_cfg_add(fw, "etc/one", "hello", 5, &b->err), 0);
        assert_int_equal(fw_cfg_add(fw, "etc/empty", NULL, 0, &b->err), 0);
        assert_int_equal(fw_cfg_add(fw, "etc/one", "x", 1, &b->err), -EEXIST);
        assert_int_equal(fw_cfg_add(fw, "12345678901234567890123456789012345678901234567890123456", "x", 1, &b->err), -ENAMETOOLONG);
        out(b, 0x510, 0, 2);
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(inb(b, 0x511), "QEMU"[i]);
        assert_int_equal(inb(b, 0x511), 0);
        out(b, 0x510, 1, 2);
        assert_int_equal(inb(b, 0x511), 3);
        out(b, 0x510, 5, 2);
        assert_int_equal(inb(b, 0x511), 4);
        assert_int_equal(be32(in(b, 0x514, 4)), 0x51454d55);
        assert_int_equal(be32(in(b, 0x518, 4)), 0x20434647);
        out(b, 0x510, 0x19, 2);
        for (unsigned i = 0; i < sizeof(directory); i++)
                directory[i] = inb(b, 0x511);
        assert_memory_equal(directory, "\0\0\0\2\0\0\0\5\0\x20\0\0etc/one", 20);
        assert_memory_equal(directory + 68, "\0\0\0\0\0\x21\0\0etc/empty", 18);
        /* DMA: select and read, past the end zeroes. */
        memset(guest_memory_at(&b->mem, 0x200, 16), 0xff, 16);
        dma(b, 0x20 << 16 | 0x0a, 8, 0x200);
        assert_int_equal(dma_result(b), 0);
        assert_int_equal(guest_memory_read(&b->mem, 0x200, text, 9), 0);
        assert_memory_equal(text, "hello\0\0\0\xff", 9);
        dma(b, 0x20 << 16 | 0x08, 0, 0);
        dma(b, 0x04, 3, 0);
        dma(b, 0x02, 2, 0x200);
        assert_int_equal(guest_memory_read(&b->mem, 0x200, text, 2), 0);
        assert_memory_equal(text, "lo", 2);
        /* Outside memory, too long, writing: an error. A request outside memory: nothing. */
        dma(b, 0x20 << 16 | 0x0a, 8, UINT64_C(1) << 40);
        assert_int_equal(dma_result(b), 1);
        dma(b, 0x0a, UINT32_MAX, 0x200);
        assert_int_equal(dma_result(b), 1);
        dma(b, 0x20 << 16 | 0x18, 1, 0x200);
        assert_int_equal(dma_result(b), 1);
        out(b, 0x514, be32(0xffffffff), 4);
        out(b, 0x518, be32(0xfffffff0), 4);
        out(b, 0x510, 0x20, 2);
        inb(b, 0x511);
        check_record(fw);
        assert_int_equal(inb(b, 0x511), 'e');
        for (unsigned i = 2; i < FW_CFG_FILES_MAX; i++) {
                snprintf(text, sizeof(text), "f%u", i);
                assert_int_equal(fw_cfg_add(fw, text, "x", 1, &b->err), 0);
        }
        assert_int_equal(fw_cfg_add(fw, "one-more", "x", 1, &b->err), -ENOSPC);
        device_end(fw);
        bench_free(b);
}

static void on_panic(void *ctx, unsigned events)
{
        *(unsigned *)ctx |= events;
}

static void test_pvpanic(void **state)
{
        struct bench *b = bench_new();
        struct device *pv;
        unsigned events = 0;

        assert_int_equal(pvpanic_new(&b->host, on_panic, &events, &pv, &b->err), 0);
        assert_int_equal(inb(b, BOARD_PORT_PVPANIC), 3);
        outb(b, BOARD_PORT_PVPANIC, 0xf0);
        assert_int_equal(events, 0);
        outb(b, BOARD_PORT_PVPANIC, 1);
        assert_int_equal(events, 1);
        device_end(pv);
        bench_free(b);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_events),
                cmocka_unit_test(test_sleep),
                cmocka_unit_test(test_timer),
                cmocka_unit_test(test_pm_state),
                cmocka_unit_test(test_i8042),
                cmocka_unit_test(test_fw_cfg),
                cmocka_unit_test(test_pvpanic),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
