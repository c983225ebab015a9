/*
 * Output of the bare programs on COM1, polled; checks; a reset at the end.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t value)
{
        __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
        uint8_t value;

        __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static inline void put_char(char c)
{
        while (!(inb(0x3fd) & 0x20))
                ;
        outb(0x3f8, (uint8_t)c);
}

static inline void put(const char *text)
{
        for (; *text; text++)
                put_char(*text);
}

static inline void put_hex(uint64_t value)
{
        put("0x");
        for (int shift = 60; shift >= 0; shift -= 4)
                if (value >> shift || !shift)
                        put_char("0123456789abcdef"[value >> shift & 15]);
}

static unsigned checks_done;

static bool tcg; /* under QEMU's TCG, which leaves out what stands in `if (!tcg)` (seen with 7.2) */

static inline bool under_tcg(void)
{
        uint32_t a = 0x40000000, b, c, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
        return b == 0x54474354; /* "TCGT" */
}

/* One check: a line a result, with both values when they differ. */
static inline void check_eq(const char *name, uint64_t got, uint64_t expected)
{
        checks_done++;
        put(got == expected ? "ok " : "not ok ");
        put(name);
        if (got != expected) {
                put(": got ");
                put_hex(got);
                put(" expected ");
                put_hex(expected);
        }
        put("\n");
}

_Noreturn static inline void finish(void)
{
        put("done ");
        put_hex(checks_done);
        put("\n");
        outb(0xcf9, 6); /* full reset */
        outb(0x64, 0xfe);
        for (;;)
                __asm__ volatile("hlt");
}
