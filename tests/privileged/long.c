/*
 * Long mode from inside. Each check names the clause of the Intel SDM (volume 3A unless it says otherwise) it was written from.
 */
#include <stdint.h>

typedef uint64_t word;

struct frame {
        word r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
        word vector, error, ip, cs, flags, rsp, ss;
};

#define TRY_BEFORE                                                                                     \
        "pushq %%rbx\n pushq %%rcx\n pushq %%rdx\n pushq %%rsi\n pushq %%rdi\n pushq %%rbp\n"          \
        "movq %%rsp, try_sp(%%rip)\n leaq 99f(%%rip), %%rax\n movq %%rax, resume(%%rip)\n xorl %%eax, %%eax\n"
#define TRY_AFTER                                                          \
        "movq $0, resume(%%rip)\n movq try_sp(%%rip), %%rsp\n"             \
        "popq %%rbp\n popq %%rdi\n popq %%rsi\n popq %%rdx\n popq %%rcx\n popq %%rbx"
#define TRY_CLOBBERS "rax", "memory", "cc"

#include "lib.h"

#define MAP 0x40000000ull /* the 2 MiB whose page table the paging checks own */

extern uint64_t gdt[], pml4[], pdpt[], pd[], syscall_rcx, syscall_r11, syscall_flags, syscall_cs, syscall_ss;
extern volatile uint64_t syscall_count;
extern uint8_t vectors[], tss[], stack_top[], user_return[], syscall_entry[], syscall_hot[];
void enter_user(uint64_t rip, uint64_t rsp, uint64_t rflags);
void enter_compat(uint64_t eip, uint64_t esp);
void enter_calls(uint64_t rip, uint64_t rsp, uint64_t rflags, uint64_t rdi, uint64_t rbx);
void main(void);

static struct { uint16_t low, selector, flags, middle; uint32_t high, zero; } idt[256];
volatile uint64_t last_dr6; /* changed by trap(), as what follows */
volatile bool step_stop; /* #DB: count and go on until it is false */
volatile uint64_t steps[16];
volatile bool all_end; /* exceptions at CPL 0 end a user program, too */
volatile uint64_t interrupts_elsewhere; /* those that were not taken at the address SYSRET returned to */
static uint64_t pt[512] __attribute__((aligned(4096)));
static uint8_t page_a[4096] __attribute__((aligned(4096))), page_b[4096] __attribute__((aligned(4096)));
static uint8_t user_stack[4096] __attribute__((aligned(16))), ist_stack[3][4096] __attribute__((aligned(16)));

#define WRITE_DR(n, v) __asm__ volatile("mov %0, %%dr" #n : : "r"((uint64_t)(v)) : "memory")
#define READ_DR(n) ({ uint64_t v_; __asm__ volatile("mov %%dr" #n ", %0" : "=r"(v_)); v_; })

void trap(struct frame *f)
{
        trap_record(f);
        if (f->vector == 1) {
                last_dr6 = READ_DR(6);
                WRITE_DR(6, 0xffff0ff0);
        }
        if (f->vector == 0x40) { /* an interrupt: end it at the local APIC */
                *(volatile uint32_t *)0xfee000b0 = 0;
                interrupts_elsewhere += f->ip != syscall_rcx || (f->cs & 3) != 3;
                return;
        }
        if (f->vector == 1 && step_stop) {
                if (traps <= 16)
                        steps[traps - 1] = f->ip;
                return;
        }
        if (f->vector == 0x80 || (f->cs & 3) == 3 || all_end) /* a user program's end */
                trap_to_kernel(f, user_return);
        else
                trap_resume(f);
        f->ss = 16;
}

/* 6.13: index, IDT (bit 1), EXT (bit 0). TCG counts in 16 bytes in long mode. */
static uint64_t gate_error(unsigned vector, unsigned bits)
{
        return vector * (tcg ? 16u : 8u) + bits;
}

static void set_gate(unsigned vector, unsigned dpl, unsigned ist, unsigned type)
{
        uint64_t to = (uint64_t)vectors + vector * 16;

        idt[vector].low = (uint16_t)to;
        idt[vector].selector = 8;
        idt[vector].flags = (uint16_t)(0x8000 | dpl << 13 | type << 8 | ist);
        idt[vector].middle = (uint16_t)(to >> 16);
        idt[vector].high = (uint32_t)(to >> 32);
}

static uint64_t rdmsr(uint32_t index)
{
        uint32_t low, high;

        __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
        return (uint64_t)high << 32 | low;
}

static void wrmsr(uint32_t index, uint64_t value)
{
        __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static void try_wrmsr(uint32_t index, uint64_t value)
{
        TRY("movl %%esi, %%eax\n wrmsr", "c"(index), "S"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static void setup(void)
{
        struct { uint16_t limit; uint64_t base; } __attribute__((packed)) pointer = { sizeof(idt) - 1, (uint64_t)idt };
        uint64_t base = (uint64_t)tss;

        for (unsigned v = 0; v < 256; v++)
                set_gate(v, v == 0x80 || v == 3 ? 3 : 0, v == 8 ? 1 : v == 2 ? 2 : 0, 14);
        __asm__ volatile("lidt %0" : : "m"(pointer));
        gdt[8] = 0x0000890000000000 | 103 | (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
        gdt[9] = base >> 32;
        *(uint64_t *)(tss + 4) = (uint64_t)stack_top - 8192;
        *(uint64_t *)(tss + 36) = (uint64_t)ist_stack[0] + 4096;
        *(uint64_t *)(tss + 44) = (uint64_t)ist_stack[1] + 4096;
        *(uint16_t *)(tss + 102) = 104; /* no I/O bitmap */
        __asm__ volatile("ltr %w0" : : "r"(0x40));
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
}

static void invlpg(uint64_t address)
{
        __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

/* Maps page n of MAP to physical with these flags. */
static volatile uint8_t *map(unsigned n, const void *physical, uint64_t flags)
{
        pt[n] = (uint64_t)physical | flags;
        invlpg(MAP + n * 4096);
        return (volatile uint8_t *)(MAP + n * 4096);
}

#define P 1ull
#define RW 2ull
#define US 4ull
#define ACCESSED 0x20ull
#define DIRTY 0x40ull
#define NX (1ull << 63)

static void read_at(uint64_t address)
{
        TRY("movb (%%rdi), %%al", "D"(address));
}

static void write_at(uint64_t address)
{
        TRY("movb $0x5a, (%%rdi)", "D"(address));
}

/* Comes back by the jmp *%rdx that page_a holds. */
static void jump_at(uint64_t address)
{
        TRY("leaq 98f(%%rip), %%rdx\n jmp *%%rdi\n 98:", "D"(address), "d"(0));
}

static void check_paging(void)
{
        uint64_t a = MAP, b = MAP + 4096;

        pd[512] = (uint64_t)pt | 7;
        page_a[0] = 0xff;
        page_a[1] = 0xe2; /* jmp *%rdx */

        /* 4.7: error code bits P, W/R, U/S, RSVD, I/D. */
        map(0, page_a, 0);
        read_at(a + 5);
        CHECK_FAULT("read of a page that is not present", 14, 0);
        check_eq("its CR2", last_cr2, a + 5);
        write_at(a);
        CHECK_FAULT("write to a page that is not present", 14, 2);
        jump_at(a);
        CHECK_FAULT("fetch from a page that is not present", 14, 0x10);
        check_eq("its RIP is its CR2", last.ip, last_cr2);

        map(0, page_a, P);
        write_at(a);
        CHECK_FAULT("supervisor write to a read-only page, WP set", 14, 3);
        WRITE_CR(0, READ_CR(0) & ~(1ull << 16));
        write_at(a + 100);
        CHECK_FAULT("supervisor write to a read-only page, WP clear", NONE, 0);
        WRITE_CR(0, READ_CR(0) | 1ull << 16);
        read_at(a);
        CHECK_FAULT("read of a read-only page", NONE, 0);

        map(0, page_a, P | RW | NX);
        jump_at(a);
        CHECK_FAULT("fetch from a no-execute page", 14, 0x11);
        map(0, page_a, P | RW);
        jump_at(a);
        CHECK_FAULT("fetch from an executable page", NONE, 0);

        /* 4.5, table 4-19: bits up to MAXPHYADDR..51 are reserved. 4.7: bit 3 comes with bit 0; TCG leaves that out. */
        map(0, page_a, P | RW | 1ull << 51);
        read_at(a);
        CHECK_FAULT("read through a reserved bit", 14, tcg ? 8 : 9);
        write_at(a);
        CHECK_FAULT("write through a reserved bit", 14, tcg ? 0xa : 0xb);
        map(0, page_a, P | RW);
        pd[512] = 0x40000000 | 0x87 | 1 << 13;
        WRITE_CR(3, READ_CR(3));
        read_at(a);
        CHECK_FAULT("reserved bit 13 of a 2 MiB page", 14, tcg ? 8 : 9);
        pd[512] = (uint64_t)pt | 7;
        WRITE_CR(3, READ_CR(3));

        /* 4.8: accessed and dirty. */
        map(0, page_a, P | RW);
        read_at(a);
        check_eq("a read sets A alone", pt[0] & (ACCESSED | DIRTY), ACCESSED);
        write_at(a + 8);
        check_eq("a write sets A and D", pt[0] & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        map(0, page_a, P);
        write_at(a);
        check_eq("a write that faults does not set D", pt[0] & DIRTY, 0);

        /* The same often enough to be translated, each time by a walk. */
        pd[512] &= ~ACCESSED;
        TRY("movl $500, %%ecx\n 1: movq %%rdx, (%%rsi)\n invlpg (%%rdi)\n movb (%%rdi), %%al\n movq (%%rsi), %%rax\n andl $0x60, %%eax\n"
            "cmpl $0x20, %%eax\n jne 2f\n movb $1, (%%rdi)\n movq (%%rsi), %%rax\n andl $0x60, %%eax\n cmpl $0x60, %%eax\n jne 2f\n"
            "decl %%ecx\n jnz 1b\n jmp 3f\n 2: ud2\n 3:", "D"(a), "S"(&pt[0]), "d"((uint64_t)page_a | P | RW));
        CHECK_FAULT("A by a read and D by a write, hot", NONE, 0);
        check_eq("A in the directory", pd[512] & ACCESSED, ACCESSED);

        /* An access over two pages faults for the page that does, and has no part done (vol. 1 §11). */
        map(0, page_a, P | RW);
        map(1, page_b, 0);
        page_a[4095] = 0x11;
        TRY("movl $0x5a5a5a5a, (%%rdi)", "D"(a + 4095));
        CHECK_FAULT("write over a page's end", 14, 2);
        check_eq("its CR2 is the second page", last_cr2, b);
        check_eq("its first byte is unchanged", page_a[4095], 0x11);
        map(1, page_b, P | RW);
        TRY("movl $0x44332211, (%%rdi)", "D"(a + 4094));
        check_eq("write over a page's end, both there", page_a[4094] | page_a[4095] << 8 | page_b[0] << 16 | page_b[1] << 24, 0x44332211);
        map(1, page_b, 0);
        page_a[4095] = 0x48; /* REX.W, the rest is on the next page */
        jump_at(a + 4095);
        CHECK_FAULT("instruction over a page's end", 14, 0x10);
        check_eq("its RIP is its first byte", last.ip, a + 4095);
        check_eq("its CR2 is the next page", last_cr2, b);

        /* PUSH changes RSP only when its store succeeds. */
        TRY("movq %%rdi, %%rsp\n pushq %%rax", "D"(b + 8));
        check_eq("push to an absent page: RSP", last.rsp, b + 8);

        /* 4.6: SMEP and SMAP. The program's own pages become supervisor pages for as long. */
        for (unsigned i = 0; i < 16; i++)
                pd[i] &= ~US;
        WRITE_CR(3, READ_CR(3));
        page_a[0] = 0xff;
        map(0, page_a, P | RW | US);
        WRITE_CR(4, READ_CR(4) | 1ull << 20);
        jump_at(a);
        CHECK_FAULT("supervisor fetch from a user page with SMEP", 14, 0x11);
        WRITE_CR(4, (READ_CR(4) & ~(1ull << 20)) | 1ull << 21);
        read_at(a);
        CHECK_FAULT("supervisor read of a user page with SMAP", 14, 1);
        write_at(a);
        CHECK_FAULT("supervisor write to a user page with SMAP", 14, 3);
        TRY("stac\n movb (%%rdi), %%al\n clac", "D"(a));
        CHECK_FAULT("the same with AC set", NONE, 0);
        read_at(a);
        CHECK_FAULT("and after CLAC", 14, 1);
        /* Often enough to be translated: neighbours on two pages between STAC and CLAC. */
        map(1, page_b, P | RW | US);
        TRY("movl $5000, %%ecx\n 1: stac\n movl %%ecx, (%%rdi)\n movl %%ecx, 4(%%rdi)\n clac\n decl %%ecx\n jnz 1b", "D"(a + 4092));
        CHECK_FAULT("user pages between STAC and CLAC, hot", NONE, 0);
        check_eq("both were written", *(uint32_t *)(page_a + 4092) + *(uint32_t *)page_b, 2);
        WRITE_CR(4, READ_CR(4) & ~(1ull << 21));
        for (unsigned i = 0; i < 16; i++)
                pd[i] |= US;
        WRITE_CR(3, READ_CR(3));

        /* A larger page with rights taken away at an upper level: the AND of all levels. */
        map(0, page_a, P | RW | US);
        pd[512] = (uint64_t)pt | P | US;
        WRITE_CR(3, READ_CR(3));
        write_at(a);
        CHECK_FAULT("write, read-only at the directory", 14, 3);
        pd[512] = (uint64_t)pt | 7;
        WRITE_CR(3, READ_CR(3));
}

/* Stores RCX to the two words at `at`, over and over. */
static __attribute__((noinline)) void neighbours_at(uint64_t at, uint64_t count)
{
        TRY("1: movq %%rcx, (%%rdi)\n movq %%rcx, 8(%%rdi)\n decq %%rcx\n jnz 1b", "D"(at), "c"(count));
}

/* Neighbours on two pages in code that is hot, either of which may fault: 4.7; nothing before the one that does is undone, or done twice. */
static void check_neighbours(void)
{
        uint64_t a = MAP, b = MAP + 4096, *first = (uint64_t *)(page_a + 4088), *second = (uint64_t *)page_b;

        pd[512] = (uint64_t)pt | 7;
        for (unsigned round = 0; round < 20; round++) {
                map(0, page_a, P | RW);
                map(1, page_b, P | RW);
                neighbours_at(a + 64, 50);
                check_eq("neighbours on one page", last.vector, NONE);
                if (round & 1)
                        neighbours_at(b - 8, 50);
                map(0, page_a, P);
                map(1, page_b, round & 2 ? P : P | RW);
                *first = *second = 0;
                neighbours_at(b - 8, 5);
                CHECK_FAULT("the first of two neighbours, read-only", 14, 3);
                check_eq("its CR2", last_cr2, b - 8);
                check_eq("nothing was written", *first + *second, 0);
                map(0, page_a, P | RW);
                map(1, page_b, round & 2 ? P : 0);
                neighbours_at(b - 8, 5);
                CHECK_FAULT("the second of two neighbours", 14, round & 2 ? 3 : 2);
                check_eq("its CR2", last_cr2, b);
                check_eq("the first was written", *first, 5);
                check_eq("the second was not", *second, 0);
                if (!tcg)
                        check_eq("RF in the frame", last.flags >> 16 & 1, 1);
        }
}

/* User code, copied nowhere: all pages are user pages. Each is a naked piece that ends with int $0x80 or a fault. */
#define USER(name, code) \
        static __attribute__((naked)) void name(void) { __asm__ volatile(code "\n int $0x80"); }

USER(user_hlt, "hlt")
USER(user_cli, "cli")
USER(user_in, "inb $0x60, %al")
USER(user_cr, "movq %cr0, %rax")
USER(user_int, "int $0x21")
USER(user_int3, "int3")
USER(user_read, "movabsb 0x40000000, %al")
USER(user_ss_null, "xorl %eax, %eax\n movw %ax, %ss")
USER(user_syscall, "movq $0x246, %rax\n pushq %rax\n popfq\n syscall\n nop")
USER(user_unaligned, "pushfq\n orl $0x40000, (%rsp)\n popfq\n movl 1(%rsp), %eax")
USER(user_flags, "movl $0x3202, %eax\n pushq %rax\n popfq\n pushfq\n popq %rbx")
USER(user_smsw, "smsw %eax")
USER(user_rdtsc, "rdtsc")
USER(user_rdpmc_iret, "pushq $0x2b\n pushq $0x7000\n pushq $0x3002\n pushq $0x33\n leaq 1f(%rip), %rax\n pushq %rax\n iretq\n 1: pushfq\n popq %rbx")

/* TF is set behind the POPFQ; R13 is what follows the SYSCALL. */
USER(user_stepped, "leaq 2f(%rip), %r13\n pushq $0x102\n popfq\n nop\n syscall\n 2: nop\n nop")

static void run_user(void (*code)(void), uint64_t rflags)
{
        last = (struct frame){ .vector = NONE };
        enter_user((uint64_t)code, (uint64_t)user_stack + 4096, rflags);
}

/* Single steps over a system call, which clears TF by its mask and sets it again: one trap behind it, at CPL 3 (vol. 2B "SYSCALL", "SYSRET"). */
static void check_stepped_calls(void)
{
        wrmsr(0xc0000084, 0x104);
        step_stop = true;
        for (unsigned round = 0; round < 20; round++) {
                traps = 0;
                run_user(user_stepped, 2);
                CHECK_FAULT("system call under single step", 0x80, 0);
                check_eq("steps, and the program's end", traps, 5); /* NOP, SYSCALL with SYSRET, NOP, NOP */
                check_eq("the one behind NOP", steps[0], last.r13 - 2);
                check_eq("the one behind SYSRET", steps[1], last.r13);
                check_eq("the next one", steps[2], last.r13 + 1);
        }
        step_stop = false;
}

static void check_user(void)
{
        run_user(user_hlt, 2);
        CHECK_FAULT("HLT at CPL 3", 13, 0);
        check_eq("the frame's CS", last.cs, 0x33);
        check_eq("the frame's SS", last.ss, 0x2b);
        run_user(user_cli, 2);
        CHECK_FAULT("CLI at CPL 3, IOPL 0", 13, 0);
        run_user(user_cli, 0x3002);
        CHECK_FAULT("CLI at CPL 3, IOPL 3", 0x80, 0);
        run_user(user_in, 2);
        CHECK_FAULT("IN at CPL 3, no bitmap", 13, 0);
        run_user(user_in, 0x3002);
        CHECK_FAULT("IN at CPL 3, IOPL 3", 0x80, 0);
        *(uint16_t *)(tss + 102) = 80; /* a bitmap inside the limit of 103: ports 0-0xb7 by bytes 80-102, 103 is the end byte */
        tss[80 + 0x60 / 8] = 0xfe;
        run_user(user_in, 2);
        CHECK_FAULT("IN at CPL 3, allowed by the bitmap", 0x80, 0);
        tss[80 + 0x60 / 8] = 0xff;
        run_user(user_in, 2);
        CHECK_FAULT("IN at CPL 3, refused by the bitmap", 13, 0);
        *(uint16_t *)(tss + 102) = 104;
        run_user(user_cr, 2);
        CHECK_FAULT("MOV CR0 at CPL 3", 13, 0);
        run_user(user_int, 2);
        CHECK_FAULT("INT 0x21 through a gate of DPL 0", 13, gate_error(0x21, 2));
        run_user(user_int3, 2);
        CHECK_FAULT("INT3 through a gate of DPL 3", 3, 0);
        map(0, page_a, P | RW);
        run_user(user_read, 2);
        CHECK_FAULT("user read of a supervisor page", 14, 5);
        map(0, page_a, P | RW | US);
        run_user(user_read, 2);
        CHECK_FAULT("user read of a user page", 0x80, 0);
        run_user(user_ss_null, 2);
        CHECK_FAULT("null SS at CPL 3", 13, 0);
        WRITE_CR(0, READ_CR(0) | 1ull << 18);
        run_user(user_unaligned, 2);
        CHECK_STRICT("unaligned with AM and AC at CPL 3", 17, 0);
        WRITE_CR(0, READ_CR(0) & ~(1ull << 18));
        run_user(user_unaligned, 2);
        CHECK_FAULT("unaligned with AC alone", 0x80, 0);
        run_user(user_flags, 2);
        check_eq("POPF at CPL 3 leaves IOPL and IF", last.rbx & 0x3200, 0);
        run_user(user_rdpmc_iret, 2);
        check_eq("IRET at CPL 3 leaves IOPL", last.rbx & 0x3000, 0);
        WRITE_CR(4, READ_CR(4) | 1ull << 2);
        run_user(user_rdtsc, 2);
        CHECK_FAULT("RDTSC at CPL 3 with TSD", 13, 0);
        WRITE_CR(4, READ_CR(4) & ~(1ull << 2));
        run_user(user_rdtsc, 2);
        CHECK_FAULT("RDTSC at CPL 3", 0x80, 0);
        WRITE_CR(4, READ_CR(4) | 1ull << 11);
        run_user(user_smsw, 2);
        CHECK_FAULT("SMSW at CPL 3 with UMIP", 13, 0);
        WRITE_CR(4, READ_CR(4) & ~(1ull << 11));

        /* vol. 2B SYSCALL: RCX, R11, FMASK, selectors from STAR. */
        wrmsr(0xc0000081, 0x0020000800000000ull);
        wrmsr(0xc0000082, (uint64_t)syscall_entry);
        wrmsr(0xc0000084, 0x4);
        run_user(user_syscall, 2);
        CHECK_FAULT("SYSCALL and SYSRET", 0x80, 0);
        check_eq("SYSCALL: R11 is RFLAGS", syscall_r11 & 0xfff, 0x46);
        if (!tcg)
                check_eq("SYSCALL: FMASK clears", syscall_flags & 0xfff, 0x42);
        check_eq("SYSCALL: CS", syscall_cs, 8);
        check_eq("SYSCALL: SS", syscall_ss, 16);
        check_eq("SYSRET: CS", last.cs, 0x33);
        check_eq("SYSRET: SS", last.ss, 0x2b);
        check_eq("SYSRET: RFLAGS", last.flags & 0xfff, 0x46);
        check_stepped_calls();
        wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
        run_user(user_syscall, 2);
        CHECK_FAULT("SYSCALL with SCE clear", 6, 0);
        wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
}

/* On user pages alone: code on the first, stack on the second. RBX becomes 0 when all went as it should. */
static __attribute__((naked)) void user_calls(void)
{
        __asm__ volatile("1: leaq 2f(%rip), %r13\n cmpl $1000, %ebx\n pushfq\n popq %r12\n syscall\n"
                         "2: nop\n pushfq\n popq %rax\n cmpq %r11, %rax\n jne 3f\n cmpq %r11, %r12\n jne 3f\n cmpq %r13, %rcx\n jne 3f\n"
                         "decl %ebx\n jnz 1b\n int $0x80\n 3: ud2");
}

#define CALLS 2000

static void run_calls(uint64_t asks)
{
        last = (struct frame){ .vector = NONE };
        syscall_count = syscall_flags = interrupts_elsewhere = traps = 0;
        enter_calls(MAP, MAP + 2 * 4096, 0x202, asks, CALLS);
}

/* SYSCALL and SYSRET as Linux uses them, hot, with SMAP and SMEP: vol. 2B "SYSCALL", "SYSRET", 4.6, 6.8.1. */
static void check_hot_calls(void)
{
        volatile uint32_t *apic = (void *)0xfee00000;

        for (unsigned i = 0; i < 128; i++)
                page_a[i] = ((const uint8_t *)(uintptr_t)user_calls)[i];
        map(0, page_a, P | RW | US);
        map(1, page_b, P | RW | US);
        for (unsigned i = 0; i < 2048; i++)
                if (i != 512)
                        pd[i] &= ~US;
        WRITE_CR(3, READ_CR(3));
        apic[0xf0 / 4] = 0x1ff;
        WRITE_CR(4, READ_CR(4) | 3ull << 20);
        wrmsr(0xc0000082, (uint64_t)syscall_hot);
        wrmsr(0xc0000084, 0x47fd5); /* status flags, TF, IF, DF, IOPL, NT, AC */
        all_end = true;
        run_calls(0);
        CHECK_FAULT("system calls, hot", 0x80, 0);
        check_eq("their number", syscall_count, CALLS);
        check_eq("all came back with their flags and addresses", last.rbx, 0);
        check_eq("the kernel's RFLAGS", syscall_flags, 2);
        run_calls(1);
        CHECK_FAULT("system calls with interrupts that wait", 0x80, 0);
        check_eq("each interrupt came, and the program's end", traps, CALLS + 1);
        check_eq("before the first instruction behind SYSRET", interrupts_elsewhere, 0);
        run_calls(2);
        CHECK_STRICT("SYSRET to an address that is not canonical, hot", 13, 0);
        if (!tcg)
                check_eq("it faults at CPL 0", last.cs, 8);
        run_calls(3);
        CHECK_FAULT("SYSRET that sets TF, hot", 1, 0);
        check_eq("it traps before the first instruction", last.ip, last.r13);
        check_eq("at CPL 3", last.cs, 0x33);
        check_eq("its DR6.BS", last_dr6 & 0x4000, 0x4000);
        wrmsr(0xc0000084, 0x7fd5); /* AC stays: the kernel may use user pages */
        run_calls(4);
        CHECK_FAULT("SYSRET that sets AC, hot", 6, 0);
        check_eq("AC is set behind it", last.flags >> 18 & 1, 1);
        wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
        run_calls(0);
        CHECK_FAULT("SYSCALL without SCE, when it was hot", 6, 0);
        check_eq("at SYSCALL", last.r13 - last.ip, 2);
        wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
        all_end = false;
        WRITE_CR(4, READ_CR(4) & ~(3ull << 20));
        for (unsigned i = 0; i < 2048; i++)
                pd[i] |= US;
        WRITE_CR(3, READ_CR(3));
}

/* Values for two registers from ECX; through memory, as Linux hands it to a signal's handler (with bits 0 and 1 of XSTATE_BV set); compared. */
#define THROUGH_XSAVE                                                                                                                \
        "1: movq %%rcx, %%xmm3\n vinsertf128 $1, %%xmm3, %%ymm3, %%ymm4\n movl $7, %%eax\n xorl %%edx, %%edx\n xsave64 (%%rdi)\n"  \
        "vzeroall\n movq 512(%%rdi), %%rsi\n orl $3, 512(%%rdi)\n xrstor64 (%%rdi)\n movq %%xmm3, %%rax\n cmpq %%rcx, %%rax\n"    \
        "jne 2f\n vextractf128 $1, %%ymm4, %%xmm0\n movq %%xmm0, %%rax\n cmpq %%rcx, %%rax\n jne 2f\n decl %%ecx\n jnz 1b\n"     \
        "movq %%rsi, 512(%%rdi)\n jmp 3f\n 2: ud2\n 3:"

/* Vol. 1 13.4.1, 13.7, 13.8: XSAVE and XRSTOR in the standard format, hot. */
static void check_xstate(void)
{
        uint32_t a = 1, b, c = 0, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        if ((c >> 26 & 5) != 5) /* XSAVE, AVX */
                return;
        WRITE_CR(4, READ_CR(4) | 1ull << 18);
        __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
        for (unsigned i = 0; i < 1024; i++)
                page_a[i] = 0;
        *(uint32_t *)(page_a + 24) = 0x1f80;
        __asm__ volatile("xrstor64 %0" : : "m"(page_a), "a"(7), "d"(0)); /* all as at reset: FNINIT leaves ST(0) to ST(7) */
        for (unsigned i = 0; i < 512; i++)
                page_a[i] = 0xff;
        TRY("movl $300, %%ecx\n" THROUGH_XSAVE, "D"(page_a));
        CHECK_FAULT("XSAVE and XRSTOR", NONE, 0);
        if (!tcg) {
                check_eq("XSTATE_BV without x87", *(uint64_t *)(page_a + 512), 6);
                check_eq("FCW, FSW, FTW, FOP", *(uint64_t *)page_a, 0x37f);
        }
        check_eq("FIP, FDP", *(uint64_t *)(page_a + 8) | *(uint64_t *)(page_a + 16), 0);
        check_eq("MXCSR and its mask", *(uint64_t *)(page_a + 24), 0xffff00001f80);
        check_eq("ST(0), ST(7)", *(uint64_t *)(page_a + 32) | *(uint64_t *)(page_a + 144), 0);
        check_eq("the rest is untouched", *(uint64_t *)(page_a + 416), ~0ull);
        TRY("fninit\n fld1\n movl $300, %%ecx\n" THROUGH_XSAVE "\n fstpl (%%rdi)", "D"(page_a));
        CHECK_FAULT("the same with a value in ST(0)", NONE, 0);
        check_eq("XSTATE_BV with x87", *(uint64_t *)(page_a + 512), 7);
        check_eq("ST(0) is 1 behind it", *(uint64_t *)page_a, 0x3ff0000000000000);
        TRY("fninit\n movl $300, %%ecx\n 1: movl $7, %%eax\n xorl %%edx, %%edx\n xsave64 (%%rdi)\n cmpl $1, %%ecx\n jne 2f\n"
            "orl $0x10000, 24(%%rdi)\n 2: xrstor64 (%%rdi)\n decl %%ecx\n jnz 1b", "D"(page_a));
        CHECK_STRICT("XRSTOR of a reserved bit in MXCSR, hot", 13, 0);
        __asm__ volatile("fninit");
        WRITE_CR(4, READ_CR(4) & ~(1ull << 18));
}

static void check_exceptions(void)
{
        uint64_t bad = 0x8000000000000000ull;

        TRY("xorl %%edx, %%edx\n xorl %%ecx, %%ecx\n divl %%ecx", "d"(0), "c"(0));
        CHECK_FAULT("divide by zero", 0, 0);
        TRY("movabsq $0x8000000000000000, %%rax\n cqto\n movq $-1, %%rcx\n idivq %%rcx", "d"(0), "c"(0));
        CHECK_FAULT("divide overflow", 0, 0);
        TRY("ud2", "d"(0));
        CHECK_FAULT("UD2", 6, 0);
        TRY("movb (%%rdi), %%al", "D"(bad));
        CHECK_FAULT("non-canonical read", 13, 0);
        TRY("movq %%rdi, %%rbp\n movb (%%rbp), %%al", "D"(bad));
        CHECK_STRICT("non-canonical read by RBP", 12, 0);
        TRY("jmp *%%rdi", "D"(bad));
        CHECK_FAULT("jump to a non-canonical address", 13, 0);
        TRY(".byte 0xf0, 0x90", "d"(0)); /* LOCK NOP */
        CHECK_FAULT("LOCK on an instruction that has none", 6, 0);
        TRY(".byte 0xf0, 0x01, 0xc0", "d"(0)); /* LOCK ADD EAX, EAX */
        CHECK_FAULT("LOCK on a register", 6, 0);
        TRY(".fill 15, 1, 0x66\n nop", "d"(0));
        CHECK_FAULT("an instruction of 16 bytes", 13, 0);
        TRY(".byte 0x06", "d"(0)); /* PUSH ES */
        CHECK_FAULT("PUSH ES in 64-bit mode", 6, 0);
        TRY(".byte 0xce", "d"(0));
        CHECK_FAULT("INTO in 64-bit mode", 6, 0);
        TRY("movaps (%%rdi), %%xmm0", "D"((uint64_t)page_a + 1));
        CHECK_FAULT("MOVAPS, not aligned", 13, 0);
        TRY("lock cmpxchg16b (%%rdi)", "D"((uint64_t)page_a + 8));
        CHECK_FAULT("CMPXCHG16B, not aligned", 13, 0);

        /* CR0.TS, EM (2.5). */
        WRITE_CR(0, READ_CR(0) | 8);
        TRY("fnop", "d"(0));
        CHECK_FAULT("x87 with TS", 7, 0);
        TRY("addps %%xmm0, %%xmm0", "d"(0));
        CHECK_FAULT("SSE with TS", 7, 0);
        TRY("fwait", "d"(0));
        CHECK_FAULT("FWAIT with TS and MP", 7, 0);
        TRY("lfence", "d"(0));
        CHECK_FAULT("LFENCE with TS", NONE, 0);
        __asm__ volatile("clts");
        WRITE_CR(0, (READ_CR(0) & ~2ull) | 4);
        TRY("fnop", "d"(0));
        CHECK_FAULT("x87 with EM", 7, 0);
        TRY("addps %%xmm0, %%xmm0", "d"(0));
        CHECK_FAULT("SSE with EM", 6, 0);
        WRITE_CR(0, (READ_CR(0) & ~4ull) | 2);
        WRITE_CR(4, READ_CR(4) & ~(1ull << 9));
        TRY("addps %%xmm0, %%xmm0", "d"(0));
        CHECK_FAULT("SSE with OSFXSR clear", 6, 0);
        WRITE_CR(4, READ_CR(4) | 1ull << 9);
        /* 0x0f 0x0b vs TS: #UD before #NM for an undefined opcode; vol. 3A table 6-2 */
        TRY("fldcw (%%rdi)\n fldz\n fld1\n fdivp\n fwait", "D"(&(uint16_t){ 0x37f & ~4 }));
        __asm__ volatile("fninit");
        TRY("fninit\n fldcw (%%rdi)\n fld1\n fldz\n fdivrp\n fwait", "D"(&(uint16_t){ 0x37b }));
        CHECK_FAULT("x87 division by zero, unmasked", 16, 0);
        __asm__ volatile("fninit");
        TRY("ldmxcsr (%%rdi)\n divss %%xmm1, %%xmm0", "D"(&(uint32_t){ 0x1d80 | 0 }));
        TRY("pxor %%xmm1, %%xmm1\n cvtsi2ss %%edx, %%xmm0\n ldmxcsr (%%rdi)\n divss %%xmm1, %%xmm0", "D"(&(uint32_t){ 0x1d80 }), "d"(1));
        CHECK_STRICT("SSE division by zero, unmasked", 19, 0);
        __asm__ volatile("ldmxcsr %0" : : "m"(*&(uint32_t){ 0x1f80 }));

}

/* Control registers and MSRs: 2.5, 4.10.1, volume 4. */
static void check_control(void)
{
        const uint64_t bad = 0x8000000000000000ull;

        TRY("movq %%rdi, %%cr0", "D"((READ_CR(0) & ~1ull)));
        CHECK_FAULT("CR0 with PG and not PE", 13, 0);
        TRY("movq %%rdi, %%cr0", "D"((READ_CR(0) & ~(1ull << 30)) | 1ull << 29));
        CHECK_FAULT("CR0 with NW and not CD", 13, 0);
        TRY("movq %%rdi, %%cr0", "D"(READ_CR(0) | 1ull << 32));
        CHECK_FAULT("CR0 with a high bit", 13, 0);
        TRY("movq %%rdi, %%cr4", "D"(READ_CR(4) & ~0x20ull));
        CHECK_FAULT("CR4 without PAE in long mode", 13, 0);
        TRY("movq %%rdi, %%cr4", "D"(READ_CR(4) | 1ull << 63));
        CHECK_FAULT("CR4 with a reserved bit", 13, 0);
        TRY("movq %%rdi, %%cr3", "D"(READ_CR(3) | 1ull << 62));
        CHECK_FAULT("CR3 with a reserved bit", 13, 0);
        TRY("movq %%rdi, %%cr8", "D"(16));
        CHECK_FAULT("CR8 with 16", 13, 0);
        try_wrmsr(0xc0000080, rdmsr(0xc0000080) & ~(1ull << 8));
        CHECK_FAULT("EFER.LME cleared with paging on", 13, 0);
        try_wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 20);
        CHECK_FAULT("EFER with a reserved bit", 13, 0);
        try_wrmsr(0xc0000102, bad);
        CHECK_FAULT("non-canonical KERNEL_GS_BASE", 13, 0);
        try_wrmsr(0x277, 0x02);
        CHECK_FAULT("PAT with type 2", 13, 0);
        TRY("rdmsr", "c"(0x12345678));
        CHECK_FAULT("RDMSR of no register", 13, 0);
}

static void check_segments(void)
{
        TRY("movw %%di, %%ds", "D"(0x58));
        CHECK_FAULT("DS not present", 11, 0x58);
        TRY("movw %%di, %%ds", "D"(0x60));
        CHECK_FAULT("DS with execute-only code", 13, 0x60);
        TRY("movw %%di, %%ds", "D"(0x4000));
        CHECK_FAULT("DS beyond the table", 13, 0x4000);
        TRY("movw %%di, %%ds", "D"(0x4003));
        CHECK_FAULT("the same with RPL 3: error code without RPL", 13, 0x4000);
        TRY("movw %%di, %%ss", "D"(0x58));
        CHECK_FAULT("SS not present", 12, 0x58);
        TRY("movw %%di, %%ss", "D"(0x68));
        CHECK_FAULT("SS read-only", 13, 0x68);
        TRY("movw %%di, %%ss", "D"(0x28));
        CHECK_FAULT("SS of DPL 3 at CPL 0", 13, 0x28);
        TRY("movw %%di, %%ss\n movl $16, %%edi\n movw %%di, %%ss", "D"(0));
        CHECK_FAULT("null SS at CPL 0", NONE, 0);
        TRY("movw %%di, %%ds\n movl $16, %%edi\n movw %%di, %%ds", "D"(0));
        CHECK_FAULT("null DS", NONE, 0);
        TRY("pushq $0x38\n leaq 1f(%%rip), %%rax\n pushq %%rax\n lretq\n 1: nop", "d"(0));
        check_eq("far return to code not present: vector", last.vector, 11);
        check_eq("its error code", last.error, 0x38);
        TRY("ltr %%di", "D"(0x40));
        CHECK_FAULT("LTR of a busy TSS", 13, 0x40);
        TRY("lldt %%di", "D"(0x10));
        CHECK_FAULT("LLDT of a data segment", 13, 0x10);
        TRY("lldt %%di", "D"(0));
        CHECK_FAULT("LLDT null", NONE, 0);

        uint64_t zf, value = 0;

        __asm__ volatile("lar %2, %1\n setz %b0" : "=&q"(zf), "+r"(value) : "r"(0x10ull));
        check_eq("LAR of data", (zf & 1) << 32 | (value & 0xf0ff00), 1ull << 32 | 0x00c09300); /* 16-19 are undefined */
        value = 7;
        __asm__ volatile("lsl %2, %1\n setz %b0" : "=&q"(zf), "+r"(value) : "r"(0x10ull));
        check_eq("LSL of data", (zf & 1) << 32 | (uint32_t)value, 1ull << 32 | 0xffffffff);
        value = 7;
        __asm__ volatile("lsl %2, %1\n setz %b0" : "=&q"(zf), "+r"(value) : "r"(0x4000ull));
        check_eq("LSL beyond the table", (zf & 1) << 32 | value, 7);
        __asm__ volatile("verw %w1\n setz %b0" : "=q"(zf) : "r"(0x68));
        check_eq("VERW of read-only data", zf & 1, 0);
        __asm__ volatile("verr %w1\n setz %b0" : "=q"(zf) : "r"(0x68));
        check_eq("VERR of read-only data", zf & 1, 1);
        __asm__ volatile("verr %w1\n setz %b0" : "=q"(zf) : "r"(0x60));
        check_eq("VERR of execute-only code", zf & 1, 0);

        /* FS base and SWAPGS; FSGSBASE. */
        wrmsr(0xc0000101, 0x1111);
        wrmsr(0xc0000102, (uint64_t)page_a);
        *(uint64_t *)(page_a + 16) = 0x1122334455667788;
        __asm__ volatile("swapgs\n movq %%gs:16, %0\n swapgs" : "=r"(value));
        check_eq("SWAPGS", value, 0x1122334455667788);
        check_eq("SWAPGS back", rdmsr(0xc0000101), 0x1111);
        TRY("rdfsbase %%rax", "d"(0));
        CHECK_FAULT("RDFSBASE with FSGSBASE clear", 6, 0);
        WRITE_CR(4, READ_CR(4) | 1ull << 16);
        TRY("wrfsbase %%rdi", "D"(0x8000000000000000ull));
        CHECK_STRICT("WRFSBASE non-canonical", 13, 0);
        __asm__ volatile("wrfsbase %1\n rdfsbase %0" : "=r"(value) : "r"(0x7fff12345678ull));
        check_eq("WRFSBASE and RDFSBASE", value, 0x7fff12345678);
        __asm__ volatile("movw %w0, %%fs" : : "r"(0x10));
        check_eq("loading FS sets its base from the descriptor", rdmsr(0xc0000100), 0);
}

static void check_debug(void)
{
        uint64_t first;
        static uint64_t watched;

        /* 17.3.1.4: TF traps after each instruction, also after each iteration of REP. */
        traps = 0;
        step_stop = true;
        __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n popfq\n nop\n 1: nop\n 2: nop\n pushfq\n andl $0xfffffeff, (%%rsp)\n popfq\n"
                         "leaq 1b(%%rip), %0" : "=r"(first) : : "memory", "cc");
        step_stop = false;
        check_eq("single step: first trap is after the instruction behind POPF", steps[0], first);
        check_eq("single step: then one an instruction", steps[1], first + 1);
        check_eq("single step: traps", traps, 6);
        check_eq("single step: DR6.BS", last_dr6 & 0x4000, 0x4000);
        traps = 0;
        step_stop = true;
        __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n movl $3, %%ecx\n movq %0, %%rsi\n movq %1, %%rdi\n popfq\n rep movsb\n"
                         "pushfq\n andl $0xfffffeff, (%%rsp)\n popfq" : : "r"(page_a), "r"(page_b) : "rcx", "rsi", "rdi", "memory", "cc");
        step_stop = false;
        check_eq("single step of REP MOVSB: one an iteration", traps, 6);

        /* 17.2: instruction breakpoints are faults, data breakpoints traps. */
        __asm__ volatile("leaq 1f(%%rip), %0\n jmp 2f\n 1: nop\n ret\n 2:" : "=r"(first));
        WRITE_DR(0, first);
        WRITE_DR(7, 0x402);
        TRY("call *%%rdi", "D"(first));
        check_eq("instruction breakpoint: vector", last.vector, 1);
        check_eq("instruction breakpoint: RIP", last.ip, first);
        check_eq("instruction breakpoint: DR6", last_dr6 & 0xf, 1);
        if (!tcg)
                check_eq("instruction breakpoint: RF in the frame", last.flags >> 16 & 1, 1);
        WRITE_DR(7, 0x400);
        /* 17.3.1.1: RF is for one instruction. */
        for (unsigned round = 0; round < 20; round++) {
                TRY("movq %%rsp, %%rcx\n pushq $0x10\n pushq %%rcx\n pushq $0x10002\n pushq $8\n leaq 1f(%%rip), %%rax\n pushq %%rax\n iretq\n"
                    "1: nop\n int $0x21", "d"(0));
                check_eq("INT behind IRETQ: vector", last.vector, 0x21);
                if (!tcg)
                        check_eq("RF is clear behind one instruction", last.flags >> 16 & 1, 0);
        }
        WRITE_DR(0, &watched);
        WRITE_DR(7, 0x402 | 1 << 16 | 3 << 18);
        TRY("movl $1, (%%rdi)\n nop", "D"(&watched));
        check_eq("data breakpoint: vector", last.vector, 1);
        check_eq("data breakpoint: the write is done", watched, 1);
        check_eq("data breakpoint: DR6", last_dr6 & 0xf, 1);
        TRY("movl (%%rdi), %%eax", "D"(&watched));
        CHECK_FAULT("a write breakpoint does not see reads", NONE, 0);
        WRITE_DR(7, 0x400);
        TRY("movq %%rdi, %%dr7", "D"(1ull << 32));
        CHECK_FAULT("DR7 with a high bit", 13, 0);
        TRY("movq %%rdi, %%dr7", "D"(0x2400));
        TRY("movq %%dr0, %%rax", "d"(0));
        if (!tcg) {
                check_eq("general detect: vector", last.vector, 1);
                check_eq("general detect: DR6.BD", last_dr6 & 0x2000, 0x2000);
        }
        WRITE_DR(7, 0x400);
        WRITE_CR(4, READ_CR(4) | 8);
        TRY("movq %%dr4, %%rax", "d"(0));
        CHECK_FAULT("DR4 with CR4.DE", 6, 0);
        WRITE_CR(4, READ_CR(4) & ~8ull);
}

static void check_interrupts(void)
{
        volatile uint32_t *apic = (void *)0xfee00000;
        uint64_t after, count;

        apic[0xf0 / 4] = 0x1ff;
        /* 6.8.3: STI opens the window after the next instruction; MOV SS keeps it shut for one. */
        traps = 0;
        apic[0x300 / 4] = 0x44040; /* self, vector 0x40 */
        while (apic[0x300 / 4] & 0x1000)
                ;
        __asm__ volatile("xorl %%ecx, %%ecx\n sti\n incl %%ecx\n 1: incl %%ecx\n cli\n leaq 1b(%%rip), %0" : "=r"(after) : : "rcx", "cc", "memory");
        check_eq("interrupt after STI: taken once", traps, 1);
        check_eq("interrupt after STI: behind one instruction", last.ip, after);
        traps = 0;
        apic[0x300 / 4] = 0x44040;
        __asm__ volatile("sti\n cli\n movl $1, %%ecx\n nop" : : : "rcx", "cc", "memory");
        check_eq("STI then CLI: not taken", traps, 0);
        __asm__ volatile("movw %%ss, %%ax\n sti\n movw %%ax, %%ss\n nop\n 1: nop\n cli\n leaq 1b(%%rip), %0" : "=r"(after) : : "rax", "cc", "memory");
        check_eq("MOV SS behind STI: taken", traps, 1);
        count = READ_CR(8);
        check_eq("CR8 is 0", count, 0);
        /* The task priority holds it back (11.8.3.1). */
        traps = 0;
        WRITE_CR(8, 4);
        apic[0x300 / 4] = 0x44040;
        __asm__ volatile("sti\n nop\n nop\n cli");
        check_eq("CR8 4 holds vector 0x40 back", traps, 0);
        check_eq("and it is in IRR", apic[(0x200 + 0x20) / 4] & 1, 1);
        WRITE_CR(8, 3);
        __asm__ volatile("sti\n nop\n nop\n cli");
        check_eq("CR8 3 lets it through", traps, 1);
        WRITE_CR(8, 0);
        /* HLT wakes and the frame's RIP is behind it. */
        traps = 0;
        apic[0x320 / 4] = 0x40; /* timer, one-shot */
        apic[0x3e0 / 4] = 0xb;
        apic[0x380 / 4] = 100000;
        __asm__ volatile("sti\n hlt\n 1: cli\n leaq 1b(%%rip), %0" : "=r"(after) : : "memory");
        check_eq("HLT: woken by the timer", traps, 1);
        check_eq("HLT: RIP behind it", last.ip, after);
}

static void check_double_fault(void)
{
        uint64_t saved;

        /* 6.15 #DF: #SS while delivering #SS; error code 0, on its own stack. */
        last = (struct frame){ .vector = NONE };
        __asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, resume(%%rip)\n movq %%rsp, %0\n movabsq $0x8000000000000000, %%rsp\n"
                         "ud2\n 1: movq %0, %%rsp\n movq $0, resume(%%rip)" : "=&b"(saved) : : "rax", "memory", "cc");
        CHECK_FAULT("fault with a non-canonical stack", 8, 0);
        check_eq("#DF ran on its IST stack", (uint64_t)&last != 0, 1);
        /* An IDT entry that is not present: #NP with EXT, IDT and the vector. */
        idt[0x21].flags &= 0x7fff;
        TRY("int $0x21", "d"(0));
        CHECK_FAULT("INT through an absent gate", 11, gate_error(0x21, 2));
        idt[6].flags &= 0x7fff;
        TRY("ud2", "d"(0));
        CHECK_STRICT("exception through an absent gate", 11, gate_error(6, 3)); /* no EXT bit there */
        set_gate(6, 0, 0, 14);
        set_gate(0x21, 0, 0, 14);
        /* #GP while delivering a page fault is a double fault (table 6-5). */
        idt[14].flags = 0x8500;
        map(0, page_a, 0);
        TRY("movb (%%rdi), %%al", "D"(MAP));
        CHECK_FAULT("#GP while delivering #PF", 8, 0);
        set_gate(14, 0, 0, 14);
        TRY("pushq $0x10\n pushq $0x1000\n pushq $2\n pushq $8\n movabsq $0x8000000000000000, %%rax\n pushq %%rax\n movq %%rsp, %%rbx\n iretq", "d"(0));
        check_eq("IRET to a non-canonical address", last.vector, 13);
}

static void check_code(void)
{
        /* 9.1.3: a store to code that is then jumped to, and one to the very next instruction. */
        uint8_t *code = page_b;
        uint64_t got;

        for (unsigned i = 0; i < 3; i++) {
                code[0] = 0xb8; /* mov $i, %eax; ret */
                code[1] = (uint8_t)i;
                code[2] = code[3] = code[4] = 0;
                code[5] = 0xc3;
                __asm__ volatile("call *%1" : "=a"(got) : "r"(code) : "memory");
                check_eq("code written and called", got, i);
        }
        __asm__ volatile("xorl %%eax, %%eax\n movb $0x7f, 1f+1(%%rip)\n 1: movb $1, %%al" : "=a"(got) : : "memory");
        check_eq("store to the next instruction", got, 0x7f);
        for (unsigned i = 0; i < 200; i++) { /* a block that has been run often */
                code[1] = (uint8_t)i;
                __asm__ volatile("call *%1" : "=a"(got) : "r"(code) : "memory");
                if (got != i)
                        break;
        }
        check_eq("code rewritten 200 times", got, 199);
        /* The same bytes through another linear address. */
        map(0, code, P | RW | US);
        *(volatile uint8_t *)(MAP + 1) = 0x33;
        __asm__ volatile("call *%1" : "=a"(got) : "r"(code) : "memory");
        check_eq("code rewritten through an alias", got, 0x33);
}

/* System instructions in a loop that gets hot: their results, and the flags, also when a register that made them changes. */
static void check_hot(void)
{
        uint64_t tsc = 0, wrong = 0;

        WRITE_CR(4, READ_CR(4) | 1ull << 16);
        wrmsr(0xc0000103, 0x1234);
        for (uint64_t n = 0; n < 3000; n++) {
                uint64_t low, high, aux, base = n << 12 | (n & 1 ? 0xffff800000000000ull : 0), got, segment, code;
                uint8_t below, equal;

                __asm__ volatile("movq %4, %%rax\n cmpq $1500, %%rax\n rdtsc\n setb %2\n setz %3"
                                 : "=&a"(low), "=&d"(high), "=&q"(below), "=&q"(equal) : "r"(n) : "cc");
                wrong += below != (n < 1500) || equal != (n == 1500) || low >> 32 || high >> 32 || (high << 32 | low) <= tsc;
                tsc = high << 32 | low;
                __asm__ volatile("movq %5, %%rcx\n subq $2000, %%rcx\n rdtscp\n setb %3\n setz %4"
                                 : "=&a"(low), "=&d"(high), "=&c"(aux), "=&q"(below), "=&q"(equal) : "r"(n) : "cc");
                wrong += below != (n < 2000) || equal != (n == 2000) || aux != 0x1234 || (high << 32 | low) <= tsc;
                tsc = high << 32 | low;
                __asm__ volatile("movq %3, %%r10\n cmpq $700, %%r10\n wrfsbase %4\n rdfsbase %%r10\n setb %1\n setz %2\n movq %%r10, %0"
                                 : "=&r"(got), "=&q"(below), "=&q"(equal) : "r"(n), "r"(base) : "r10", "cc");
                wrong += below != (n < 700) || equal != (n == 700) || got != base;
                __asm__ volatile("wrgsbase %k1\n rdgsbase %0" : "=&r"(got) : "r"(base));
                wrong += got != (uint32_t)base;
                __asm__ volatile("movq $-1, %0\n cmpq $0, %0\n movl %%ss, %k0\n setz %2\n movq %%cs, %1" : "=&r"(segment), "=&r"(code), "=&q"(equal) : : "cc");
                wrong += segment >> 16 || equal || code >> 16 || (code & 3);
                __asm__ volatile("movq %3, %%cr2\n cmpq $700, %2\n movq %%cr2, %0\n setb %1" : "=&r"(got), "=&q"(below) : "r"(n), "r"(base) : "cc");
                wrong += below != (n < 700) || got != base;
                TRY("wrfsbase %%rdi", "D"(n == 2999 ? 1ull << 63 : base));
        }
        check_eq("hot system instructions", wrong, 0);
        CHECK_STRICT("WRFSBASE of an address that is not canonical", 13, 0);
        wrmsr(0xc0000100, 0);
        wrmsr(0xc0000101, 0);
        WRITE_CR(4, READ_CR(4) & ~(1ull << 16));
        TRY("rdfsbase %%rax", "D"(0));
        CHECK_FAULT("RDFSBASE without CR4.FSGSBASE", 6, 0);
}

/* LOOP and JRCXZ in code that is hot, with flags that come through them (vol. 2A "JCC", "LOOP"). */
static void check_counted(void)
{
        uint64_t sum, left, flags, wrong = 0;

        __asm__ volatile("xorl %%eax, %%eax\n movl $3000, %%ecx\n 1: addq %%rcx, %%rax\n loop 1b\n pushfq\n popq %2"
                         : "=&a"(sum), "=&c"(left), "=r"(flags) : : "cc");
        check_eq("LOOP: the sum", sum, 3000 * 3001 / 2);
        check_eq("LOOP: RCX", left, 0);
        check_eq("LOOP: the last ADD's flags", flags & 0x8d5, 4);
        __asm__ volatile("movl $3000, %%ecx\n movl $1, %k0\n clc\n 1: rclq $1, %0\n loop 1b\n rcrq $1, %0"
                         : "=&r"(sum), "=&c"(left) : : "cc"); /* 65 bits turn: 3000 steps left, 1 right */
        check_eq("LOOP behind RCL: what has turned", sum, 1ull << (3000 % 65 - 1));
        __asm__ volatile("xorl %%eax, %%eax\n movl $2000, %%ecx\n 1: jrcxz 2f\n incl %%eax\n decq %%rcx\n jmp 1b\n 2:" : "=&a"(sum), "=&c"(left) : : "cc");
        check_eq("JRCXZ: rounds", sum, 2000);
        for (uint64_t n = 0; n < 300; n++) {
                uint64_t high = n << 32;
                uint8_t below, zero, early = 1, equal = 0;

                __asm__ volatile("movq %4, %%rcx\n xorl %k0, %k0\n cmpq $150, %5\n addr32 jrcxz 1f\n movl $1, %k0\n"
                                 "1: setb %2\n setz %3\n jrcxz 2f\n leaq 2(%0), %0\n 2:"
                                 : "=&r"(sum), "=&c"(left), "=&q"(below), "=&q"(zero) : "r"(high), "r"(n) : "cc");
                wrong += sum != (n ? 2 : 0) || below != (n < 150) || zero != (n == 150) || left != high;
                __asm__ volatile("leaq 3(%4), %%rcx\n xorl %k0, %k0\n cmpq $150, %5\n 1: leaq 1(%0), %0\n addr32 loop 1b\n setb %2\n setz %3"
                                 : "=&r"(sum), "=&c"(left), "=&q"(below), "=&q"(zero) : "r"(high), "r"(n) : "cc");
                wrong += sum != 3 || left || below != (n < 150) || zero != (n == 150);
                __asm__ volatile("movq %4, %%rcx\n cmpq $150, %4\n jrcxz 1f\n setb %2\n setz %3\n loop 2f\n 1: movl $7, %k0\n jmp 3f\n 2: movl $9, %k0\n 3:"
                                 : "=&r"(sum), "=&c"(left), "+q"(early), "+q"(equal) : "r"(n) : "cc");
                wrong += sum != (n <= 1 ? 7 : 9) || left != (n ? n - 1 : 0) || early != (n < 150) || equal != (n == 150);
        }
        check_eq("counted jumps and the flags behind them", wrong, 0);
}

void main(void)
{
        tcg = under_tcg();
        setup();
        check_exceptions();
        if (!tcg)
                check_control();
        check_segments();
        check_paging();
        check_neighbours();
        check_user();
        check_hot_calls();
        check_xstate();
        check_debug();
        check_interrupts();
        check_double_fault();
        check_code();
        check_hot();
        check_counted();
        finish();
}
