/*
 * Code that changes, and what interrupts code that has become hot. Written for a translator: each piece runs often enough to be
 * translated before the thing that matters happens, but every check is what the manual says of any processor (SDM volume 3A 8.1.3,
 * 11.6 for code that changes; 6.7, 17.3 for what interrupts it). Two processors: the second writes code, sends NMIs, waits.
 */
#include "smp.h"

#define HOT 3000u
#define MAP 0x40000000ull /* the 2 MiB whose page table this program owns */
#define POOL ((uint8_t *)0x2000000) /* 4 MiB of functions */

struct frame caught; /* what ended the last piece */
volatile uint64_t catch_at, escape_at, ticks, ticks_wanted, nmis, nmis_wanted, breaks, break_rip, break_rcx, break_dr6, break_mode;
static volatile uint64_t trace[256], traced;
static uint64_t pt[512] __attribute__((aligned(4096))), other_pml4[512] __attribute__((aligned(4096)));
static uint64_t other_pdpt[512] __attribute__((aligned(4096))), other_pd[512] __attribute__((aligned(4096)));
static uint64_t other_pt[512] __attribute__((aligned(4096)));
static uint8_t code[4 * 4096] __attribute__((aligned(4096))), code_b[4096] __attribute__((aligned(4096)));
static uint8_t user_stack[4096] __attribute__((aligned(16)));
static volatile uint64_t watched __attribute__((aligned(8)));
static volatile uint32_t turn, answer, ap_job, ap_idle;

typedef uint64_t function(uint64_t);

enum { BREAK_ONCE, BREAK_TRACE };

void trap(struct frame *f)
{
        switch (f->vector) {
        case 0x40:
                ticks++;
                apic[APIC_EOI] = 0;
                if (escape_at && ticks >= ticks_wanted) {
                        f->rip = escape_at;
                        f->rflags &= ~0x200ull; /* no further one */
                }
                return;
        case 2:
                nmis++;
                if (escape_at && nmis >= nmis_wanted)
                        f->rip = escape_at;
                return;
        case 0x80:
                caught = *f;
                f->rip = (uint64_t)user_return;
                f->cs = 8;
                f->ss = 16;
                f->rflags = 2;
                return;
        case 1:
                breaks++;
                break_dr6 = READ_DR(6);
                WRITE_DR(6, 0xffff0ff0);
                if (break_mode == BREAK_TRACE) {
                        if (traced < 256)
                                trace[traced++] = f->rip;
                        return;
                }
                break_rip = f->rip;
                break_rcx = f->rcx;
                WRITE_DR(7, 0x400);
                return;
        default:
                if (!catch_at)
                        unexpected(f);
                caught = *f;
                f->rip = catch_at;
                catch_at = 0;
        }
}

/* check_eq() of a table's row. */
static void check_row(const char *what, const char *row, uint64_t got, uint64_t expected)
{
        char name[96];
        unsigned n = 0;

        while (*what)
                name[n++] = *what++;
        while (*row && n < sizeof(name) - 1)
                name[n++] = *row++;
        name[n] = 0;
        check_eq(name, got, expected);
}

static volatile uint8_t *map(unsigned n, const void *physical, uint64_t flags)
{
        pt[n] = (uint64_t)physical | flags;
        invlpg(MAP + n * 4096);
        return (volatile uint8_t *)(MAP + n * 4096);
}

static void serialise(void)
{
        uint32_t a = 0, b, c = 0, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
}

/* mov $value, %eax; ret */
static void put_function(volatile uint8_t *at, uint32_t value)
{
        at[0] = 0xb8;
        *(volatile uint32_t *)(at + 1) = value;
        at[5] = 0xc3;
}

static uint32_t call(const volatile void *at)
{
        return (uint32_t)((function *)at)(0);
}

static void heat(const volatile void *at)
{
        for (unsigned i = 0; i < HOT; i++)
                call(at);
}

/* What the other processor does: it has ended the last job when this returns. */
static void ap_do(uint32_t job)
{
        ap_idle = 0;
        ap_job = 0;
        while (!ap_idle)
                pause_a_bit();
        turn = answer = 0;
        __atomic_store_n(&ap_job, job, __ATOMIC_SEQ_CST);
}

/* ---- stores to code ---- */

static void check_near(void)
{
        uint64_t bad = 0, sum;

        for (unsigned i = 0; i < HOT; i++) {
                uint64_t got;

                __asm__ volatile("xorl %%eax, %%eax\n movb %b1, 1f+1(%%rip)\n 1: movb $0x55, %%al" : "=&a"(got) : "q"((uint64_t)i) : "memory");
                bad += got != (i & 0xff);
        }
        check_eq("a store to the next instruction, each time", bad, 0);
        /* The loop's first instruction is written by its last when half is done. */
        __asm__ volatile("movl %1, %%ecx\n xorl %%eax, %%eax\n 1: addl $1, %%eax\n cmpl %2, %%ecx\n jne 2f\n movb $3, 1b+2(%%rip)\n"
                         "2: decl %%ecx\n jnz 1b\n movb $1, 1b+2(%%rip)"
                         : "=&a"(sum) : "i"(2 * HOT), "i"(HOT + 1) : "rcx", "memory", "cc");
        check_eq("a store to an earlier instruction of a hot loop", sum, HOT + 3 * HOT);
        /* And the other way: an instruction ahead in the same straight line. */
        __asm__ volatile("movl %1, %%ecx\n xorl %%eax, %%eax\n 1: movb %%cl, 2f+1(%%rip)\n addl $0, %%eax\n addq $0, %%rsi\n nop\n"
                         "2: movb $0, %%dl\n movzbl %%dl, %%edx\n movzbl %%cl, %%edi\n cmpl %%edx, %%edi\n setne %%dl\n movzbl %%dl, %%edx\n"
                         "addl %%edx, %%eax\n"
                         "decl %%ecx\n jnz 1b" : "=&a"(sum) : "i"(HOT) : "rcx", "rdx", "rdi", "rsi", "memory", "cc");
        check_eq("a store to an instruction ahead in the same block", sum, 0);
}

/* The imm32 of put_function() written by each kind of store. */
#define WRITER(name, text)                                                                                                  \
        static void name(volatile uint8_t *to, uint64_t v)                                                                  \
        {                                                                                                                   \
                __asm__ volatile(text : "+D"(to), "+a"(v) : : "rcx", "rdx", "rbx", "rsi", "r8", "memory", "cc");            \
        }
static uint64_t scratch[4] __attribute__((aligned(16), used));
WRITER(by_mov8, "movb %%al, (%%rdi)\n movb %%ah, 1(%%rdi)")
WRITER(by_mov32, "movl %%eax, (%%rdi)")
WRITER(by_xchg, "xchgl %%eax, (%%rdi)")
WRITER(by_add, "subl (%%rdi), %%eax\n addl %%eax, (%%rdi)")
WRITER(by_lock_xadd, "subl (%%rdi), %%eax\n lock xaddl %%eax, (%%rdi)")
WRITER(by_cmpxchg, "movl %%eax, %%ecx\n movl (%%rdi), %%eax\n lock cmpxchgl %%ecx, (%%rdi)")
WRITER(by_stos, "movl $1, %%ecx\n rep stosl")
WRITER(by_movs, "movq %%rax, scratch(%%rip)\n leaq scratch(%%rip), %%rsi\n movl $4, %%ecx\n rep movsb")
WRITER(by_movs_one, "movq %%rax, scratch(%%rip)\n leaq scratch(%%rip), %%rsi\n movsl")
WRITER(by_push, "movq 4(%%rdi), %%rcx\n shlq $32, %%rcx\n orq %%rcx, %%rax\n movq %%rsp, %%r8\n leaq 8(%%rdi), %%rsp\n pushq %%rax\n movq %%r8, %%rsp")
WRITER(by_pop, "pushq %%rax\n movq 4(%%rdi), %%rcx\n movl %%ecx, 4(%%rsp)\n popq (%%rdi)")
WRITER(by_movd, "movd %%eax, %%xmm0\n movd %%xmm0, (%%rdi)")
WRITER(by_movdqu, "movdqu -8(%%rdi), %%xmm1\n movdqu %%xmm1, scratch(%%rip)\n movl %%eax, scratch+8(%%rip)\n movdqu scratch(%%rip), %%xmm1\n"
                  "movdqu %%xmm1, -8(%%rdi)")
WRITER(by_fist, "fninit\n movl %%eax, scratch(%%rip)\n fildl scratch(%%rip)\n fistpl (%%rdi)")
WRITER(by_movnti, "movnti %%eax, (%%rdi)\n sfence")
WRITER(by_bts, "movl $0, (%%rdi)\n movl $31, %%ecx\n 1: btl %%ecx, %%eax\n jnc 2f\n btsl %%ecx, (%%rdi)\n 2: decl %%ecx\n jns 1b")

static void check_writers(void)
{
        static const struct { const char *name; void (*write)(volatile uint8_t *to, uint64_t v); } writers[] = {
                { "MOV, bytes", by_mov8 }, { "MOV", by_mov32 }, { "XCHG", by_xchg }, { "ADD", by_add }, { "LOCK XADD", by_lock_xadd },
                { "LOCK CMPXCHG", by_cmpxchg }, { "REP STOS", by_stos }, { "REP MOVS", by_movs }, { "MOVS", by_movs_one }, { "PUSH", by_push },
                { "POP", by_pop }, { "MOVD", by_movd }, { "MOVDQU", by_movdqu }, { "FISTP", by_fist }, { "MOVNTI", by_movnti }, { "BTS", by_bts },
        };
        volatile uint8_t *at = code + 64;

        for (unsigned n = 0; n < sizeof(writers) / sizeof(writers[0]); n++) {
                uint64_t bad = 0;

                put_function(at, 0);
                heat(at);
                for (uint32_t i = 1; i < 300; i++) {
                        writers[n].write(at + 1, i);
                        bad += call(at) != i;
                        if (i % 100 == 0)
                                heat(at);
                }
                check_row("code written by ", writers[n].name, bad, 0);
        }
}

static void check_pages(void)
{
        volatile uint8_t *at = code + 4096, *alias;
        uint64_t bad = 0, got;

        /* Another page's code, written now and then by a hot loop. */
        put_function(at, 0);
        for (uint32_t i = 0; i < 10 * HOT; i++) {
                if (i % 10 == 0)
                        *(volatile uint32_t *)(at + 1) = i;
                bad += call(at) != i / 10 * 10;
        }
        check_eq("another page's code written by a hot loop", bad, 0);

        bad = 0;
        alias = map(0, code + 4096, P | RW);
        heat(at);
        for (uint32_t i = 0; i < 300; i++) {
                *(volatile uint32_t *)(alias + 1) = i ^ 0x5a5a;
                serialise();
                bad += call(at) != (i ^ 0x5a5a);
                bad += call(alias) != (i ^ 0x5a5a);
        }
        check_eq("code written through another linear address", bad, 0);

        /* lea 0(%rip), %rax; ret: the same bytes at two places know where they are. */
        static const uint8_t where[] = { 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3 };

        for (unsigned i = 0; i < sizeof(where); i++)
                code[4096 + 128 + i] = where[i];
        bad = 0;
        for (unsigned i = 0; i < HOT; i++) {
                bad += ((function *)(at + 128))(0) != (uint64_t)at + 135;
                bad += ((function *)(alias + 128))(0) != (uint64_t)alias + 135;
        }
        check_eq("code under two linear addresses", bad, 0);

        /* mov %eax, imm32 whose last two bytes are on the next page, the next page changing; then the first. */
        at = code + 4096 - 3;
        put_function(at, 0x11111111);
        heat(at);
        bad = 0;
        for (uint32_t i = 0; i < 300; i++) {
                code[4096] = (uint8_t)i;
                bad += call(at) != (0x11001111 | (i & 0xff) << 16);
                code[4094] = (uint8_t)i;
                bad += call(at) != (0x11001100 | (i & 0xff) << 16 | (i & 0xff));
                code[4094] = 0x11;
                if (i % 50 == 0)
                        heat(at);
        }
        check_eq("an instruction over a page's end, either half changing", bad, 0);
        /* The second page is another one. */
        alias = map(0, code, P | RW);
        map(1, code + 4096, P | RW);
        put_function(at, 0x22222222);
        code_b[0] = 0x44;
        code_b[1] = 0x33;
        code_b[2] = 0xc3;
        bad = 0;
        for (uint32_t i = 0; i < 2 * HOT; i++) {
                if (i % 500 == 250)
                        map(1, code_b, P | RW);
                else if (i % 500 == 0)
                        map(1, code + 4096, P | RW);
                bad += call(alias + 4093) != (i % 500 >= 250 ? 0x33442222 : 0x22222222);
        }
        check_eq("an instruction over a page's end, its second page remapped", bad, 0);

        /* Code and what it counts in, in one page. inc 32(%rip-ish); loop. */
        static const uint8_t counting[] = { 0xb9, 0x20, 0x4e, 0, 0, 0xff, 0x05, 0x16, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf6, 0xc3 };

        at = code + 2 * 4096;
        for (unsigned i = 0; i < sizeof(counting); i++)
                at[i] = counting[i];
        *(volatile uint32_t *)(at + 33) = 0;
        call(at);
        check_eq("code and data in one page", *(volatile uint32_t *)(at + 33), 20000);

        /* A store over the end of a data page into a page of code. */
        at = code + 3 * 4096;
        put_function(at, 7);
        heat(at);
        bad = 0;
        for (uint32_t i = 1; i < 300; i++) {
                *(volatile uint64_t *)(at - 4) = 0x01020304ull | 0xb8ull << 32 | (uint64_t)(i & 0xff) << 40;
                got = call(at);
                bad += got != (i & 0xff);
        }
        check_eq("a store over a page's end into code", bad, 0);
}

/* fw_cfg's DMA reads the signature "QEMU" into the instruction's operand. */
static void check_dma(void)
{
        static struct { uint32_t control, length; uint64_t address; } __attribute__((packed, aligned(16))) dma;
        volatile uint8_t *at = code + 256;
        uint64_t bad = 0;

        for (unsigned n = 0; n < 20; n++) {
                put_function(at, n);
                heat(at);
                bad += call(at) != n;
                dma.control = __builtin_bswap32(0x0000000a); /* item 0, select, read */
                dma.length = __builtin_bswap32(4);
                dma.address = __builtin_bswap64((uint64_t)at + 1);
                __asm__ volatile("outl %0, %w1" : : "a"(0), "d"(0x514) : "memory");
                __asm__ volatile("outl %0, %w1" : : "a"(__builtin_bswap32((uint32_t)(uint64_t)&dma)), "d"(0x518) : "memory");
                while (*(volatile uint32_t *)&dma.control)
                        pause_a_bit();
                serialise();
                bad += call(at) != 0x554d4551;
        }
        check_eq("code written by a device", bad, 0);
}

/* ---- other mappings ---- */

/* An instruction that goes on in the next page, hot: either part changes, by a store or by another page in its place. */
static void check_crossing(void)
{
        volatile uint8_t *first = map(8, code, P | RW), *second = map(9, code + 4096, P | RW), *at = first + 4096 - 3;

        (void)second;
        put_function(at, 0x11112222);
        heat(at);
        check_eq("an instruction across pages", call(at), 0x11112222);
        *(volatile uint16_t *)(at + 3) = 0x3333;
        check_eq("its second part written", call(at), 0x33332222);
        heat(at);
        *(volatile uint16_t *)(at + 1) = 0x4444;
        check_eq("its first part written", call(at), 0x33334444);
        heat(at);
        code[4096] = 0x55; /* by another address */
        check_eq("its second part written by another address", call(at), 0x33554444);
        heat(at);
        *(volatile uint16_t *)code_b = 0x6666;
        code_b[2] = 0xc3;
        map(9, code_b, P | RW);
        check_eq("another page behind it", call(at), 0x66664444);
        heat(at);
        check_eq("another page behind it, hot", call(at), 0x66664444);
        map(9, code + 4096, P | RW);
        check_eq("and the first again", call(at), 0x33554444);
}

static void check_remap(void)
{
        const uint64_t cr3 = READ_CR(3);
        volatile uint8_t *at = (volatile uint8_t *)MAP;
        uint64_t bad = 0;

        put_function(code, 1);
        put_function(code_b, 2);
        for (uint32_t i = 0; i < 600; i++) {
                map(0, i & 1 ? code_b : code, P | RW);
                for (unsigned n = 0; n < 20; n++)
                        bad += call(at) != (i & 1) + 1;
        }
        check_eq("a page of code remapped, INVLPG", bad, 0);
        bad = 0;
        for (uint32_t i = 0; i < 600; i++) {
                map(0, i & 1 ? code_b : code, P | RW | 1 << 8);
                for (unsigned n = 0; n < 20; n++)
                        bad += call(at) != (i & 1) + 1;
        }
        check_eq("a global page of code remapped, INVLPG", bad, 0);
        map(0, code, P | RW);
        bad = 0;
        for (uint32_t i = 0; i < 600; i++) {
                pt[0] = (uint64_t)(i & 1 ? code_b : code) | P | RW;
                WRITE_CR(3, cr3);
                for (unsigned n = 0; n < 20; n++) {
                        bad += call(at) != (i & 1) + 1;
                        bad += *(volatile uint8_t *)(at + 1) != (i & 1) + 1;
                }
        }
        check_eq("a page of code remapped, CR3 loaded", bad, 0);

        /* Two address spaces that differ in MAP alone. */
        map(0, code, P | RW);
        for (unsigned i = 0; i < 512; i++) {
                other_pml4[i] = pml4[i];
                other_pdpt[i] = pdpt[i];
                other_pd[i] = pd[512 + i];
        }
        other_pml4[0] = (uint64_t)other_pdpt | 7;
        other_pdpt[1] = (uint64_t)other_pd | 7;
        other_pd[0] = (uint64_t)other_pt | 7;
        other_pt[0] = (uint64_t)code_b | P | RW;
        bad = 0;
        for (uint32_t i = 0; i < HOT; i++) {
                WRITE_CR(3, i & 1 ? (uint64_t)other_pml4 : cr3);
                bad += call(at) != (i & 1) + 1;
                bad += *(volatile uint8_t *)(at + 1) != (i & 1) + 1;
        }
        check_eq("two address spaces in turn", bad, 0);
        WRITE_CR(3, cr3);

        uint32_t a = 1, b, c = 0, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        if (c >> 17 & 1) { /* PCID: translations of both are kept (4.10.4.1) */
                WRITE_CR(4, READ_CR(4) | 1 << 17);
                WRITE_CR(3, cr3 | 1);
                WRITE_CR(3, (uint64_t)other_pml4 | 2);
                bad = 0;
                for (uint32_t i = 0; i < HOT; i++) {
                        WRITE_CR(3, (i & 1 ? (uint64_t)other_pml4 | 2 : cr3 | 1) | 1ull << 63);
                        bad += call(at) != (i & 1) + 1;
                        bad += *(volatile uint8_t *)(at + 1) != (i & 1) + 1;
                        if (i % 100 == 99) { /* a change that INVLPG tells to this PCID alone */
                                uint64_t *entry = i & 1 ? &other_pt[0] : &pt[0];
                                uint64_t to = *entry;

                                *entry = (to & 0xfff) | (uint64_t)(code + 4096);
                                put_function(code + 4096, 9);
                                invlpg(MAP);
                                bad += call(at) != 9;
                                *entry = to;
                                invlpg(MAP);
                                bad += call(at) != (i & 1) + 1;
                        }
                }
                check_eq("two address spaces with PCIDs", bad, 0);
                /* Without bit 63 the PCID's translations go. */
                WRITE_CR(3, (uint64_t)other_pml4 | 2 | 1ull << 63);
                call(at);
                other_pt[0] = (uint64_t)code | P | RW;
                WRITE_CR(3, (uint64_t)other_pml4 | 2);
                check_eq("CR3 loaded without bit 63", call(at), 1);
                WRITE_CR(3, cr3 & ~0xfffull);
                WRITE_CR(4, READ_CR(4) & ~(1ull << 17));
        }

        /* mov %cs, %eax; test $3, %al; jz 1f; int $0x80; 1: ret */
        static const uint8_t who[] = { 0x8c, 0xc8, 0xa8, 3, 0x74, 2, 0xcd, 0x80, 0xc3 };

        for (unsigned i = 0; i < sizeof(who); i++)
                code[512 + i] = who[i];
        bad = 0;
        for (unsigned i = 0; i < HOT; i++) {
                bad += call(code + 512) != 8;
                enter_user((uint64_t)code + 512, (uint64_t)user_stack + 4096, 2);
                bad += caught.rax != 0x33;
        }
        check_eq("a page executed by user and supervisor in turn", bad, 0);

        /* The code page goes away, loses the right to be executed, becomes a supervisor's. */
        map(0, code, P | RW | US);
        heat(at);
        map(0, code, 0);
        __asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movq %%rsp, %%rbx\n call *%0\n 1: movq %%rbx, %%rsp"
                         : : "r"(at) : "rax", "rbx", "memory", "cc");
        check_eq("hot code unmapped: vector", caught.vector, 14);
        check_eq("hot code unmapped: error", caught.error, 0x10);
        check_eq("hot code unmapped: RIP", caught.rip, MAP);
        map(0, code, P | RW | 1ull << 63);
        __asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movq %%rsp, %%rbx\n call *%0\n 1: movq %%rbx, %%rsp"
                         : : "r"(at) : "rax", "rbx", "memory", "cc");
        check_eq("hot code no longer executable: error", caught.error, 0x11);
}

/* ---- calls and returns that do not match ---- */

__asm__("change_return: addq $2, (%rsp)\n ret\n"
        "deep: decq %rdi\n jz 1f\n call deep\n incq %rax\n ret\n 1: xorl %eax, %eax\n ret\n"
        "mutual: xorl %eax, %eax\n 1: leaq 2f(%rip), %rdx\n pushq %rdx\n leaq 3f(%rip), %rdx\n pushq %rdx\n ret\n ud2\n"
        "2: decq %rdi\n jnz 1b\n ret\n 3: incq %rax\n ret\n"
        "thrown: decq %rdi\n jz 1f\n call thrown\n ud2\n 1: movq %rsi, %rsp\n ret\n");
extern function deep, mutual;
extern uint8_t thrown[], change_return[];

static void check_returns(void)
{
        uint64_t got, bad = 0;

        for (unsigned i = 0; i < HOT; i++) {
                __asm__ volatile("xorl %%eax, %%eax\n call change_return\n jmp 1f\n incl %%eax\n 1: addl $2, %%eax" : "=&a"(got) : : "memory", "cc");
                bad += got != 3;
        }
        check_eq("a return address changed by the callee", bad, 0);
        bad = 0;
        for (unsigned i = 0; i < HOT; i++) {
                __asm__ volatile("call 1f\n 1: popq %0\n leaq 1b(%%rip), %%rdx\n subq %%rdx, %0" : "=&a"(got) : : "rdx", "memory", "cc");
                bad += got;
        }
        check_eq("CALL and POP", bad, 0);
        check_eq("returns to pushed addresses", mutual(HOT), HOT);
        bad = 0;
        for (unsigned i = 0; i < HOT; i++) { /* a longjmp over five frames */
                uint64_t frames = 6;

                __asm__ volatile("leaq 1f(%%rip), %%rax\n pushq %%rax\n movq %%rsp, %%rsi\n subq $8, %%rsp\n call thrown\n ud2\n 1: nop"
                                 : "+D"(frames) : : "rax", "rsi", "memory", "cc");
                bad += frames != 0;
        }
        check_eq("frames left without returns", bad, 0);

        /* 300000 levels: a stack of its own. */
        uint64_t *stack = (uint64_t *)(POOL + 0x400000);

        for (unsigned i = 0; i < 3; i++) {
                got = 0;
                __asm__ volatile("movq %%rsp, %%rbx\n movq %2, %%rsp\n call deep\n movq %%rbx, %%rsp"
                                 : "=&a"(got) : "D"(300000ull), "r"(stack) : "rbx", "memory", "cc");
                check_eq("recursion 300000 deep", got, 299999);
        }
}

/* ---- what interrupts hot code ---- */

static void timer(uint32_t count, bool periodic)
{
        apic[APIC_DIVIDE] = 0xb;
        apic[APIC_TIMER] = 0x40 | (periodic ? 1u << 17 : 0);
        apic[APIC_COUNT] = count;
}

/* Each loops for ever and touches no memory; the handler leads out of it. */
#define FOREVER(name, text)                                                                                                 \
        static void name(void)                                                                                              \
        {                                                                                                                   \
                __asm__ volatile("leaq 9f(%%rip), %%rax\n movq %%rax, escape_at(%%rip)\n movq %%rsp, %%rbx\n" text          \
                                 "\n 9: cli\n movq %%rbx, %%rsp\n movq $0, escape_at(%%rip)"                                \
                                 : : : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "memory", "cc");               \
        }
FOREVER(jump_to_self, "1: jmp 1b")
FOREVER(count_down, "1: movl $-1, %%ecx\n 2: decl %%ecx\n jnz 2b\n jmp 1b")
FOREVER(loop_instruction, "1: movl $-1, %%ecx\n 2: loop 2b\n jmp 1b")
FOREVER(jrcxz_to_self, "xorl %%ecx, %%ecx\n 1: jrcxz 1b\n ud2")
FOREVER(forward_and_back, "1: jmp 3f\n 2: addl $1, %%edx\n jmp 1b\n 3: addl $3, %%ecx\n jmp 2b")
FOREVER(indirect, "leaq 1f(%%rip), %%rdx\n 1: incq %%rcx\n jmp *%%rdx")
FOREVER(call_and_return, "jmp 2f\n 1: incq %%rcx\n ret\n 2: call 1b\n jmp 2b")
FOREVER(calls_only, "2: movq %%rbx, %%rsp\n call 1f\n ud2\n 1: jmp 2b")
FOREVER(across_pages, "jmp 1f\n .balign 4096\n 2: incq %%rdx\n jmp 3f\n .balign 4096\n 1: incq %%rcx\n jmp 2b\n 3: jmp 1b")
FOREVER(sti_cli, "1: sti\n cli\n nop\n sti\n nop\n cli\n jmp 1b")
FOREVER(rep_string, "1: movl $16, %%ecx\n leaq -256(%%rsp), %%rdi\n rep stosq\n jmp 1b")

static void check_loops(void)
{
        static const struct { const char *name; void (*run)(void); } loops[] = {
                { "JMP to itself", jump_to_self }, { "DEC, JNZ", count_down }, { "LOOP", loop_instruction },
                { "JRCXZ to itself", jrcxz_to_self }, { "jumps forward and back", forward_and_back },
                { "an indirect jump", indirect }, { "CALL and RET", call_and_return }, { "CALL without RET", calls_only },
                { "jumps across pages", across_pages }, { "REP STOS", rep_string },
        };

        for (unsigned n = 0; n < sizeof(loops) / sizeof(loops[0]); n++) {
                ticks = 0;
                ticks_wanted = 6;
                timer(100000, true);
                __asm__ volatile("sti");
                loops[n].run();
                timer(0, false);
                check_row("timer interrupts in a hot loop: ", loops[n].name, ticks, 6);
        }
        /* Interrupts open for one instruction behind STI only (6.8.3). */
        ticks = 0;
        timer(100000, true);
        sti_cli();
        timer(0, false);
        check_eq("timer interrupts behind STI, NOP", ticks, 6);

        /* NMIs from the other processor, interrupts closed. */
        for (unsigned n = 0; n < 3; n++) {
                nmis = 0;
                nmis_wanted = 5;
                ap_do(2);
                loops[n * 2].run();
                ap_do(0);
                check_row("NMIs in a hot loop: ", loops[n * 2].name, nmis >= 5, 1); /* one more may come before the other processor stops */
        }
        /* The state that is interrupted comes back whole: sums in all registers and flags over many interrupts. */
        uint64_t sum;

        /* Once is shorter than the host may take to tell of a timer. */
        ticks = 0;
        timer(2000, true);
        for (unsigned n = 0; n < 1000 && !ticks; n++) {
                __asm__ volatile("sti\n movl $300000, %%ecx\n xorl %%eax, %%eax\n xorl %%r8d, %%r8d\n xorl %%r10d, %%r10d\n xorl %%r15d, %%r15d\n"
                                 "1: addq %%rcx, %%rax\n adcq $0, %%r8\n stc\n jmp 2f\n 2: adcq $0, %%r10\n"
                                 "leaq 1(%%r15), %%r15\n subq $1, %%rcx\n jnz 1b\n cli\n"
                                 "addq %%r10, %%rax\n addq %%r15, %%rax\n addq %%r8, %%rax"
                                 : "=&a"(sum) : : "rcx", "r8", "r10", "r15", "memory", "cc");
                if (sum != 300000ull * 300001 / 2 + 600000)
                        break;
        }
        timer(0, false);
        check_eq("registers and flags over interrupts", sum, 300000ull * 300001 / 2 + 600000);
        check_eq("and there were some", ticks > 0, 1);
}

__asm__("stepped: movl $3, %ecx\n xorl %eax, %eax\n 1: addl %ecx, %eax\n call 2f\n decl %ecx\n jnz 1b\n pushfq\n popq %rdx\n ret\n"
        "2: cmpl $2, %ecx\n je 3f\n incl %eax\n 3: ret\n .globl stepped_end\n stepped_end:");
extern uint8_t stepped[], stepped_end[];

/* Runs the function at `at` with TF set behind POPF; how many traps there were. */
static uint64_t trace_of(const uint8_t *at)
{
        traced = 0;
        break_mode = BREAK_TRACE;
        __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n popfq\n call *%0\n pushfq\n andl $0xfffffeff, (%%rsp)\n popfq"
                         : : "r"(at) : "rax", "rcx", "rdx", "memory", "cc");
        break_mode = BREAK_ONCE;
        return traced;
}

static void check_steps(void)
{
        static uint64_t first[256];
        uint8_t *copy = code + 1024;
        uint64_t n, bad = 0;

        for (unsigned i = 0; i < (unsigned)(stepped_end - stepped); i++)
                copy[i] = stepped[i];
        n = trace_of(copy); /* cold */
        for (unsigned i = 0; i < n && i < 256; i++)
                first[i] = trace[i];
        heat(copy);
        for (unsigned turns = 0; turns < 20; turns++) {
                bad += trace_of(copy) != n;
                for (unsigned i = 0; i < n && i < 256; i++)
                        bad += trace[i] != first[i];
                heat(copy);
        }
        /* 2 + 3 * (add, call, cmp, je, ret, dec, jnz) + 2 incl + pushf, pop, ret and CALL itself, PUSHF, AND, POPF around it */
        check_eq("single steps of hot code: count", n, 1 + 2 + 3 * 7 + 2 + 3 + 3);
        check_eq("single steps of hot code: where", bad, 0);
}

/* A loop that calls arm() when 500 turns are left. */
#define ARMED_LOOP(inside)                                                                                                   \
        __asm__ volatile("movl %2, %%ecx\n 1: cmpl $500, %%ecx\n jne 2f\n movq %0, %%dr0\n movq %1, %%dr7\n"               \
                         "2: addl $1, %%eax\n 5: addl $2, %%edx\n" inside "\n 6: decl %%ecx\n jnz 1b"                      \
                         : : "r"(address), "r"(enable), "i"(HOT) : "rax", "rcx", "rdx", "memory", "cc")

static void check_breakpoints(void)
{
        uint64_t address, enable, at;

        __asm__ volatile("leaq 5f(%%rip), %0\n jmp 6f\n 5: nop\n 6:" : "=r"(at));
        (void)at;
        enable = 0x402;
        breaks = 0;
        __asm__ volatile("leaq 5f(%%rip), %%rsi\n movl %2, %%ecx\n 1: cmpl $500, %%ecx\n jne 2f\n movq %%rsi, %%dr0\n movq %1, %%dr7\n"
                         "2: addl $1, %%eax\n 5: addl $2, %%edx\n decl %%ecx\n jnz 1b\n movq %%rsi, %0"
                         : "=&r"(address) : "r"(enable), "i"(HOT) : "rax", "rcx", "rdx", "rsi", "memory", "cc");
        check_eq("instruction breakpoint in a hot loop: hits", breaks, 1);
        check_eq("instruction breakpoint in a hot loop: RIP", break_rip, address);
        check_eq("instruction breakpoint in a hot loop: RCX", break_rcx, 500);
        check_eq("instruction breakpoint in a hot loop: DR6", break_dr6 & 0xf, 1);

        address = (uint64_t)&watched;
        enable = 0x402 | 1 << 16 | 2 << 18; /* writes of 8 bytes */
        breaks = 0;
        ARMED_LOOP("movq %%rcx, watched(%%rip)");
        check_eq("data breakpoint in a hot loop: hits", breaks, 1);
        check_eq("data breakpoint in a hot loop: RCX", break_rcx, 500);
        check_eq("data breakpoint in a hot loop: DR6", break_dr6 & 0xf, 1);
        enable = 0x402 | 3 << 16 | 2 << 18; /* reads and writes */
        breaks = 0;
        ARMED_LOOP("cmpq %%rcx, watched(%%rip)");
        check_eq("data breakpoint on a read in a hot loop: hits", breaks, 1);
        check_eq("data breakpoint on a read in a hot loop: RCX", break_rcx, 500);
        /* Off again: nothing. */
        breaks = 0;
        enable = 0x400;
        ARMED_LOOP("movq %%rcx, watched(%%rip)");
        check_eq("no breakpoint: hits", breaks, 0);
}

/* branch goes to RDI, which is behind it but for the last time; behind undoes what it left on the stack. */
#define BRANCH_NOWHERE(branch, behind)                                                                                                            \
        __asm__ volatile("leaq 8f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movl %1, %%ecx\n leaq 6f(%%rip), %%rdi\n"                         \
                         "movabsq $0x8000000000000000, %%rsi\n movq %%rsp, %%rbx\n"                                                               \
                         "1: cmpl $1, %%ecx\n cmoveq %%rsi, %%rdi\n " branch " 6: movq %%rbx, %%rsp\n decl %%ecx\n jnz 1b\n ud2\n"                 \
                         "8: " behind " leaq 5b(%%rip), %0" : "=&r"(rip) : "i"(HOT) : "rax", "rbx", "rcx", "rsi", "rdi", "memory", "cc")

static void check_nowhere(const char *name, uint64_t rip)
{
        check_row(name, " to no address in a hot loop: vector", caught.vector, 13);
        if (!tcg) /* it faults behind the branch */
                check_row(name, " to no address in a hot loop: RIP", caught.rip, rip);
        check_row(name, " to no address in a hot loop: RCX", caught.rcx, 1);
        check_row(name, " to no address in a hot loop: flags of CMP", caught.rflags & 0x8d5, 0x44);
}

static void check_faults(void)
{
        uint64_t rcx, rip, flags;

        /* #DE when the divisor that counts down is 0, with the flags of the instruction before. */
        __asm__ volatile("leaq 8f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movl %3, %%ecx\n"
                         "1: movl $1000, %%eax\n xorl %%edx, %%edx\n cmpl $-1, %%ecx\n 5: divl %%ecx\n decl %%ecx\n jmp 1b\n"
                         "8: leaq 5b(%%rip), %1\n movq %%rcx, %0\n pushfq\n popq %2" : "=&r"(rcx), "=&r"(rip), "=&r"(flags) : "i"(HOT)
                         : "rax", "rcx", "rdx", "memory", "cc");
        check_eq("#DE in a hot loop: vector", caught.vector, 0);
        check_eq("#DE in a hot loop: RIP", caught.rip, rip);
        check_eq("#DE in a hot loop: RCX", rcx, 0);
        check_eq("#DE in a hot loop: RAX", caught.rax, 1000);
        check_eq("#DE in a hot loop: flags of CMP", caught.rflags & 0x8d5, 0x11);
        /* #GP: an address that is not canonical, from a pointer that grows in a loop. */
        __asm__ volatile("leaq 8f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movl %2, %%ecx\n leaq watched(%%rip), %%rdi\n movabsq $0x800000000000, %%rsi\n"
                         "1: cmpl $1, %%ecx\n cmoveq %%rsi, %%rdi\n addl $5, %%ecx\n 5: movq (%%rdi), %%rdx\n subl $6, %%ecx\n jnz 1b\n ud2\n"
                         "8: leaq 5b(%%rip), %1\n movq %%rcx, %0" : "=&r"(rcx), "=&r"(rip) : "i"(HOT)
                         : "rax", "rcx", "rdx", "rsi", "rdi", "memory", "cc");
        check_eq("#GP in a hot loop: vector", caught.vector, 13);
        check_eq("#GP in a hot loop: RIP", caught.rip, rip);
        check_eq("#GP in a hot loop: RCX", caught.rcx, 6);
        check_eq("#GP in a hot loop: flags of ADD", caught.rflags & 0x8d5, 0x4);
        /* #GP: MOVAPS that loses its alignment. */
        __asm__ volatile("leaq 8f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movl %1, %%ecx\n leaq scratch(%%rip), %%rdi\n"
                         "1: cmpl $1, %%ecx\n sete %%al\n movzbl %%al, %%eax\n addq %%rax, %%rdi\n 5: movaps (%%rdi), %%xmm0\n decl %%ecx\n jnz 1b\n ud2\n"
                         "8: leaq 5b(%%rip), %0" : "=&r"(rip) : "i"(HOT) : "rax", "rcx", "rdi", "memory", "cc");
        check_eq("MOVAPS not aligned in a hot loop: vector", caught.vector, 13);
        check_eq("MOVAPS not aligned in a hot loop: RIP", caught.rip, rip);
        check_eq("MOVAPS not aligned in a hot loop: RCX", caught.rcx, 1);
        /* #GP: branches whose target is no address at last, with the flags of what was before. */
        BRANCH_NOWHERE("5: jmp *%%rdi\n", "");
        check_nowhere("JMP", rip);
        BRANCH_NOWHERE("5: call *%%rdi\n", "");
        check_nowhere("CALL", rip);
        BRANCH_NOWHERE("pushq %%rdi\n 5: ret\n", "popq %%rax\n");
        check_nowhere("RET", rip);
        if (!tcg) { /* #XM, unmasked while the loop is hot */
                static const uint32_t unmasked = 0x1f80 & ~0x200u, masked = 0x1f80;

                __asm__ volatile("leaq 8f(%%rip), %%rax\n movq %%rax, catch_at(%%rip)\n movl %1, %%ecx\n pxor %%xmm1, %%xmm1\n"
                                 "1: movl $1, %%eax\n cvtsi2ssl %%eax, %%xmm0\n cmpl $1, %%ecx\n jne 5f\n ldmxcsr %2\n"
                                 "5: divss %%xmm1, %%xmm0\n decl %%ecx\n jnz 1b\n ud2\n"
                                 "8: leaq 5b(%%rip), %0\n ldmxcsr %3" : "=&r"(rip) : "i"(HOT), "m"(unmasked), "m"(masked) : "rax", "rcx", "memory", "cc");
                check_eq("#XM in a hot loop: vector", caught.vector, 19);
                check_eq("#XM in a hot loop: RIP", caught.rip, rip);
                check_eq("#XM in a hot loop: RCX", caught.rcx, 1);
        }
}

/* ---- the other processor ---- */

static void check_cross(void)
{
        volatile uint8_t *at = code + 2048;
        uint64_t bad = 0;

        put_function(at, 0);
        heat(at);
        ap_do(1); /* writes turn into the function */
        for (uint32_t i = 1; i <= 1000; i++) {
                turn = i;
                while (answer != i)
                        pause_a_bit();
                serialise();
                bad += call(at) != i;
                if (i % 100 == 0)
                        heat(at);
        }
        check_eq("code written by another processor, with a handshake", bad, 0);
        ap_do(0);
        put_function(at + 3, 0x11111111);
        ap_do(3); /* writes 0x11111111 and 0x22222222 in turn, without a handshake: aligned, so either is seen */
        bad = 0;
        for (unsigned i = 0; i < 40 * HOT; i++) {
                uint32_t got = call(at + 3);

                bad += got != 0x11111111 && got != 0x22222222;
        }
        turn = 1;
        while (answer != 3)
                pause_a_bit();
        serialise();
        check_eq("code written by another processor at any time", bad, 0);
        check_eq("and its last store in the end", call(at + 3), 0x33333333);
}

void ap_main(unsigned number)
{
        volatile uint32_t *value = (volatile uint32_t *)(code + 2048 + 1), *aligned = (volatile uint32_t *)(code + 2048 + 4);
        uint32_t done = 0;

        (void)number;
        for (;;) {
                switch (ap_job) {
                case 1:
                        if (turn != done) {
                                *value = done = turn;
                                answer = done;
                        }
                        break;
                case 2:
                        for (unsigned i = 0; ap_job == 2; i++) {
                                apic[APIC_ICR_TO] = 0;
                                apic[APIC_ICR] = APIC_ASSERT | APIC_NMI;
                                for (uint64_t start = tsc(); ap_job == 2 && tsc() - start < 3000000;)
                                        pause_a_bit();
                        }
                        break;
                case 3:
                        if (answer != 3) {
                                while (!turn) {
                                        *aligned = 0x11111111;
                                        *aligned = 0x22222222;
                                }
                                *aligned = 0x33333333;
                                answer = 3;
                        }
                        break;
                default:
                        done = 0;
                        ap_idle = 1;
                        pause_a_bit();
                }
        }
}

/* ---- more code than a small cache holds ---- */

static void check_much(void)
{
        const unsigned functions = 8192, apart = 512;
        uint64_t bad = 0;

        for (unsigned round = 0; round < 2; round++) {
                for (unsigned n = 0; n < functions; n++) {
                        uint8_t *at = POOL + n * apart;

                        at[0] = 0xb8;
                        *(uint32_t *)(at + 1) = n * 3 + round;
                        for (unsigned i = 0; i < 60; i++) { /* add $1, %eax */
                                at[5 + 3 * i] = 0x83;
                                at[6 + 3 * i] = 0xc0;
                                at[7 + 3 * i] = 1;
                        }
                        at[5 + 180] = 0xc3;
                }
                for (unsigned again = 0; again < 40; again++)
                        for (unsigned n = 0; n < functions; n += again & 1 ? 1 : 7)
                                bad += call(POOL + n * apart) != n * 3 + round + 60;
        }
        check_eq("4 MiB of functions, twice", bad, 0);
}

void main(void)
{
        tcg = under_tcg();
        setup_processor();
        /* Outside of 32-bit addresses of nothing else: the page table for MAP. */
        pd[512] = (uint64_t)pt | 7;
        WRITE_CR(3, READ_CR(3));
        smp_start(2);
        check_near();
        check_writers();
        check_pages();
        check_dma();
        check_crossing();
        check_remap();
        check_returns();
        check_steps();
        check_breakpoints();
        check_faults();
        check_cross();
        check_loops();
        check_much();
        finish();
}
