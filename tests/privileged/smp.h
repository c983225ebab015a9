/*
 * For bare programs with several processors: an IDT all of them use, the local APIC, starting the others, barriers. A program has
 * trap(), main() and ap_main() of its own and links start64.S and smp.S.
 */
#pragma once

#include "output.h"

struct frame {
        uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
        uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

extern uint64_t gdt[], pml4[], pdpt[], pd[], syscall_rcx, syscall_r11, syscall_flags, syscall_cs, syscall_ss;
extern uint8_t vectors[], tss[], stack_top[], ap_start[], ap_end[], user_return[];
extern volatile uint32_t ap_number;
void enter_user(uint64_t rip, uint64_t rsp, uint64_t rflags);
void enter_compat(uint64_t eip, uint64_t esp);
void trap(struct frame *f);
void main(void);
void ap_main(unsigned number);

/* start64.S wants it, not every program does. */
extern uint8_t syscall_entry[];

static struct { uint16_t low, selector, flags, middle; uint32_t high, zero; } idt[256];
struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idt_pointer;
static uint8_t double_fault_stack[4096] __attribute__((aligned(16)));

#define READ_CR(n) ({ uint64_t v_; __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) __asm__ volatile("mov %0, %%cr" #n : : "r"((uint64_t)(v)) : "memory")
#define WRITE_DR(n, v) __asm__ volatile("mov %0, %%dr" #n : : "r"((uint64_t)(v)) : "memory")
#define READ_DR(n) ({ uint64_t v_; __asm__ volatile("mov %%dr" #n ", %0" : "=r"(v_)); v_; })

#define P 1ull
#define RW 2ull
#define US 4ull

static volatile uint32_t *const apic = (void *)0xfee00000;
#define APIC_EOI (0xb0 / 4)
#define APIC_SPURIOUS (0xf0 / 4)
#define APIC_ICR (0x300 / 4)
#define APIC_ICR_TO (0x310 / 4)
#define APIC_TIMER (0x320 / 4)
#define APIC_COUNT (0x380 / 4)
#define APIC_DIVIDE (0x3e0 / 4)
#define APIC_OTHERS 0xc0000u /* shorthand: all but this one */
#define APIC_ASSERT 0x4000u
#define APIC_NMI 0x400u
#define APIC_INIT 0x500u
#define APIC_SIPI 0x600u

static inline uint64_t tsc(void)
{
        uint32_t low, high;

        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        return (uint64_t)high << 32 | low;
}

static inline void pause_a_bit(void)
{
        __asm__ volatile("pause");
}

static inline void invlpg(uint64_t address)
{
        __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void set_gate(unsigned vector, unsigned dpl, unsigned ist)
{
        uint64_t to = (uint64_t)vectors + vector * 16;

        idt[vector].low = (uint16_t)to;
        idt[vector].selector = 8;
        idt[vector].flags = (uint16_t)(0x8e00 | dpl << 13 | ist);
        idt[vector].middle = (uint16_t)(to >> 16);
        idt[vector].high = (uint32_t)(to >> 32);
}

/* Gates for all vectors (3 and 0x80 open to users), a TSS, the 8259s masked. */
static inline void setup_processor(void)
{
        uint64_t base = (uint64_t)tss;

        for (unsigned v = 0; v < 256; v++)
                set_gate(v, v == 0x80 || v == 3 ? 3 : 0, v == 8);
        idt_pointer.limit = sizeof(idt) - 1;
        idt_pointer.base = (uint64_t)idt;
        __asm__ volatile("lidt %0" : : "m"(idt_pointer));
        gdt[8] = 0x0000890000000000 | 103 | (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
        gdt[9] = base >> 32;
        *(uint64_t *)(tss + 4) = (uint64_t)stack_top - 8192;
        *(uint64_t *)(tss + 36) = (uint64_t)double_fault_stack + sizeof(double_fault_stack);
        *(uint16_t *)(tss + 102) = 104;
        __asm__ volatile("ltr %w0" : : "r"(0x40));
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
        apic[APIC_SPURIOUS] = 0x1ff;
}

static inline void apic_send(uint32_t command)
{
        apic[APIC_ICR_TO] = 0;
        apic[APIC_ICR] = command;
        while (apic[APIC_ICR] & 0x1000)
                pause_a_bit();
}

/* Until `count` processors are in ap_main() (this one counts). */
static inline void smp_start(unsigned count)
{
        volatile uint8_t *to = (void *)0x8000;

        if (count < 2)
                return;
        for (uint64_t i = 0; i < (uint64_t)(ap_end - ap_start); i++)
                to[i] = ap_start[i];
        apic_send(APIC_OTHERS | APIC_ASSERT | APIC_INIT);
        for (uint64_t start = tsc(); tsc() - start < 20000000;)
                pause_a_bit();
        apic_send(APIC_OTHERS | APIC_ASSERT | APIC_SIPI | 8);
        while (ap_number < count)
                pause_a_bit();
}

/* All of `count` processors meet here; each has its own *sense, 0 at first. */
struct barrier {
        volatile uint32_t arrived, sense;
};

static inline void barrier_wait(struct barrier *b, unsigned count, uint32_t *sense)
{
        *sense ^= 1;
        if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_SEQ_CST) == count) {
                b->arrived = 0;
                __atomic_store_n(&b->sense, *sense, __ATOMIC_SEQ_CST);
                return;
        }
        while (b->sense != *sense)
                pause_a_bit();
}

static inline void put_decimal(uint64_t value)
{
        char text[24];
        unsigned n = sizeof(text);

        text[--n] = 0;
        do {
                text[--n] = (char)('0' + value % 10);
                value /= 10;
        } while (value);
        put(text + n);
}

static inline void unexpected(const struct frame *f)
{
        put("not ok: unexpected exception ");
        put_hex(f->vector);
        put(" error ");
        put_hex(f->error);
        put(" at ");
        put_hex(f->rip);
        put(" cr2 ");
        put_hex(READ_CR(2));
        put("\n");
        outb(0xcf9, 6);
        for (;;)
                __asm__ volatile("hlt");
}
