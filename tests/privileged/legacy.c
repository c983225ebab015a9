/*
 * The modes before long mode, from inside. Each check names the clause of the Intel SDM (volume 3A unless it says otherwise).
 * TCG knows no limits, types and reserved pointers of legacy modes: CHECK_STRICT().
 */
#include <stdint.h>

typedef uint32_t word;

struct frame {
        word edi, esi, ebp, esp_, ebx, edx, ecx, eax;
        word vector, error, ip, cs, flags, esp, ss, es, ds, fs, gs;
};

#define TRY_BEFORE "pushal\n movl %%esp, try_sp\n movl $99f, resume\n"
#define TRY_AFTER                                                                             \
        "movl $0, resume\n movl try_sp, %%esp\n movw $0x10, %%ax\n movw %%ax, %%ds\n"        \
        "movw %%ax, %%es\n movw %%ax, %%fs\n movw %%ax, %%gs\n popal"
#define TRY_CLOBBERS "memory", "cc"

#include "lib.h"

struct tss {
        uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
        uint32_t es, cs, ss, ds, fs, gs, ldt, bitmap;
};

extern uint32_t task_seen[5];
extern uint64_t gdt[];
extern uint8_t vectors[], stack_top[], leave_here[], gate_target[], task_entry[], real_code[], real_code_end[], v86_code[], v86_code_end[];
void enter(uint32_t eip, uint32_t cs, uint32_t eflags, uint32_t esp, uint32_t ss);
void real_mode(void);
void main(void);

static uint64_t idt[64];
static struct tss tss1, tss2;
static uint8_t stack0[4096] __attribute__((aligned(16))), user_stack[4096] __attribute__((aligned(16))), task_stack[4096] __attribute__((aligned(16)));
static uint32_t directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));
static uint64_t pae_directory[512] __attribute__((aligned(4096))), pae_pointers[4] __attribute__((aligned(32)));
static uint8_t page[4096] __attribute__((aligned(4096)));
static uint32_t v86_int;

void trap(struct frame *f)
{
        bool v86 = f->flags & 0x20000;
        uint8_t *code = (uint8_t *)((f->cs << 4) + f->ip);

        trap_record(f);
        if (v86 && f->vector == 13 && *code == 0xcd) { /* INT n in virtual-8086 mode, IOPL < 3 */
                v86_int = code[1];
                f->ip += 2;
        } else if (v86 || (f->cs & 3) == 3) {
                trap_to_kernel(f, leave_here);
        } else {
                trap_resume(f);
        }
}

static uint64_t gate(uint32_t selector, uint32_t offset, unsigned type, unsigned dpl, unsigned parameters)
{
        return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)parameters << 32 | (uint64_t)(0x80 | dpl << 5 | type) << 40 |
               (uint64_t)(offset & 0xffff0000) << 32;
}

static uint64_t tss_descriptor(const struct tss *tss)
{
        uint64_t base = (uint32_t)tss;

        return 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24) << 56;
}

static void load_idt(void)
{
        struct { uint16_t limit; uint32_t base; } __attribute__((packed)) pointer = { sizeof(idt) - 1, (uint32_t)idt };

        __asm__ volatile("lidt %0" : : "m"(pointer));
}

static void setup(void)
{
        for (unsigned v = 0; v < 64; v++)
                idt[v] = gate(8, (uint32_t)vectors + v * 16, 14, v == 0x30 ? 3 : 0, 0);
        load_idt();
        tss1.ss0 = 0x10;
        tss1.esp0 = (uint32_t)stack0 + sizeof(stack0);
        tss1.bitmap = 104u << 16;
        gdt[7] = tss_descriptor(&tss1);
        __asm__ volatile("ltr %w0" : : "r"(0x38));
        outb(0x21, 0xff);
        outb(0xa1, 0xff);
}

static void check_limits(void)
{
        /* 5.3: limit checks; 5.4: type checks. */
        TRY("movw $0x48, %%bx\n movw %%bx, %%fs\n movb %%fs:0xfff, %%al", "d"(0));
        CHECK_FAULT("last byte within the limit", NONE, 0);
        TRY("movw $0x48, %%bx\n movw %%bx, %%fs\n movb %%fs:0x1000, %%al", "d"(0));
        CHECK_STRICT("first byte past the limit", 13, 0);
        TRY("movw $0x48, %%bx\n movw %%bx, %%fs\n movl %%fs:0xffd, %%eax", "d"(0));
        CHECK_STRICT("four bytes over the limit", 13, 0);
        TRY("movw $0x50, %%bx\n movw %%bx, %%fs\n movb %%fs:0xfff, %%al", "d"(0));
        CHECK_STRICT("expand-down: at its limit", 13, 0);
        TRY("movw $0x50, %%bx\n movw %%bx, %%fs\n movb %%fs:0x1000, %%al", "d"(0));
        CHECK_FAULT("expand-down: above its limit", NONE, 0);
}

static void check_segments(void)
{
        TRY("movw $0x58, %%bx\n movw %%bx, %%fs\n movb %%al, %%fs:0", "d"(0));
        CHECK_STRICT("write to read-only data", 13, 0);
        TRY("movw $0x60, %%bx\n movw %%bx, %%fs", "d"(0));
        CHECK_FAULT("execute-only code as data", 13, 0x60);
        TRY("movb %%al, %%cs:0x7000", "d"(0));
        CHECK_STRICT("write through CS", 13, 0);
        TRY("xorl %%ebx, %%ebx\n movw %%bx, %%fs\n movb %%fs:0, %%al", "d"(0));
        CHECK_STRICT("read through a null selector", 13, 0);
        TRY("movw $0x78, %%bx\n movw %%bx, %%es", "d"(0));
        CHECK_FAULT("segment not present", 11, 0x78);
        TRY("xorl %%ebx, %%ebx\n movw %%bx, %%ss", "d"(0));
        CHECK_FAULT("null SS", 13, 0);
        TRY("movw $0x08, %%bx\n movw %%bx, %%ss", "d"(0));
        CHECK_FAULT("code as SS", 13, 8);
        TRY("ljmp $0x10, $0", "d"(0));
        CHECK_FAULT("far jump to data", 13, 0x10);
        TRY("ljmp $0x28, $0", "d"(0));
        CHECK_FAULT("far jump to DPL 3 code", 13, 0x28);
        TRY("ljmp $0x80, $1f\n 1: ljmp $8, $1f\n 1: nop", "d"(0));
        CHECK_FAULT("far jump to conforming code", NONE, 0);
        TRY("lcall $0, $0", "d"(0));
        CHECK_FAULT("far call through null", 13, 0);
        TRY("movl $9, %%eax\n boundl %%eax, (%%edx)", "d"(&(int32_t[2]){ 0, 8 }));
        CHECK_FAULT("BOUND out of range", 5, 0);
        TRY("movb $0x7f, %%al\n incb %%al\n into", "d"(0));
        CHECK_FAULT("INTO with OF", 4, 0);
        uint32_t zf, a = 0x10;

        __asm__ volatile("arpl %w2, %w1\n setz %b0" : "=q"(zf), "+r"(a) : "r"(3));
        check_eq("ARPL raises the RPL", (zf & 1) << 16 | (a & 0xffff), 1 << 16 | 0x13);
        __asm__ volatile("movb $0x79, %%al\n movb $0x35, %%bl\n addb %%bl, %%al\n daa\n movzbl %%al, %0" : "=r"(a) : : "eax", "ebx");
        check_eq("DAA", a, 0x14);
        __asm__ volatile("movl $0x0105, %%eax\n aad\n movzwl %%ax, %0" : "=r"(a) : : "eax");
        check_eq("AAD", a, 15);
}

static void __attribute__((naked)) user_gate(void)
{
        __asm__ volatile("pushl $5\n pushl $7\n lcall $0x6b, $0\n movl %esp, %ebx\n int $0x30");
}

static void __attribute__((naked)) user_out(void)
{
        __asm__ volatile("outb %al, $0x80\n int $0x30");
}

static void __attribute__((naked)) user_load(void)
{
        __asm__ volatile("movl $0x10, %eax\n movw %ax, %ds\n int $0x30");
}

static void __attribute__((naked)) user_kernel_return(void)
{
        __asm__ volatile("pushl $8\n pushl $0\n lretl");
}

static void run_user(void (*code)(void))
{
        last = (struct frame){ .vector = NONE };
        enter((uint32_t)code, 0x2b, 2, (uint32_t)user_stack + 4096, 0x33);
}

static void check_levels(void)
{
        gdt[13] = gate(8, (uint32_t)gate_target, 12, 3, 2);
        run_user(user_gate);
        CHECK_FAULT("call gate with two parameters", 0x30, 0);
        check_eq("call gate: the sum", last.eax, 12);
        check_eq("call gate: the caller's CS", last.ecx & 0xffff, 0x2b);
        check_eq("call gate: RET n takes them off both stacks", last.ebx, (uint32_t)user_stack + 4096);
        gdt[13] = gate(8, (uint32_t)gate_target, 12, 0, 2);
        run_user(user_gate);
        CHECK_FAULT("call gate of DPL 0", 13, 0x68);
        gdt[13] = gate(8, (uint32_t)gate_target, 12, 3, 2) & ~(1ull << 47);
        run_user(user_gate);
        CHECK_FAULT("call gate not present", 11, 0x68);
        run_user(user_out);
        CHECK_FAULT("OUT at CPL 3, no bitmap", 13, 0);
        run_user(user_load);
        CHECK_FAULT("DS of DPL 0 at CPL 3", 13, 0x10);
        run_user(user_kernel_return);
        CHECK_FAULT("far return to an inner level", 13, 8);
}

static void check_tasks(void)
{
        /* 7.3: a call to a TSS nests: link, NT, TS, busy bits. */
        tss2 = (struct tss){ .eip = (uint32_t)task_entry, .eflags = 2, .esp = (uint32_t)task_stack + 4096, .es = 0x10, .cs = 8, .ss = 0x10,
                             .ds = 0x10, .fs = 0x10, .gs = 0x10, .bitmap = 104u << 16 };
        gdt[8] = tss_descriptor(&tss2);
        TRY("movl $0x1234, %%ebx\n lcall $0x40, $0\n cmpl $0x1234, %%ebx\n je 1f\n ud2\n 1: nop", "d"(0));
        CHECK_FAULT("call to a TSS and back", NONE, 0);
        check_eq("task: ran", task_seen[4], 1);
        check_eq("task: its ESP", task_seen[0], (uint32_t)task_stack + 4096);
        check_eq("task: NT", task_seen[1] & 0x4000, 0x4000);
        check_eq("task: TR", task_seen[2] & 0xffff, 0x40);
        check_eq("task: CR0.TS", task_seen[3] & 8, 8);
        check_eq("task: link", tss2.link & 0xffff, 0x38);
        check_eq("task: no longer busy", gdt[8] >> 40 & 0xff, 0x89);
        check_eq("task: the caller is busy again", gdt[7] >> 40 & 0xff, 0x8b);
        __asm__ volatile("clts");
        gdt[14] = gate(0x40, 0, 5, 0, 0);
        TRY("lcall $0x70, $0", "d"(0));
        CHECK_FAULT("call through a task gate", NONE, 0);
        check_eq("task gate: ran again behind its IRET", task_seen[4], 2);
        __asm__ volatile("clts");
        gdt[8] |= 2ull << 40;
        TRY("lcall $0x40, $0", "d"(0));
        CHECK_FAULT("call to a busy TSS", 13, 0x40);
        gdt[8] = tss_descriptor(&tss2) & ~(1ull << 47);
        TRY("lcall $0x40, $0", "d"(0));
        CHECK_FAULT("call to a TSS that is not present", 11, 0x40);
        gdt[8] = tss_descriptor(&tss2) - 1;
        TRY("lcall $0x40, $0", "d"(0));
        CHECK_FAULT("call to a TSS that is too short", 10, 0x40);
}

static void check_paging(void)
{
        uint32_t cr4;

        /* 4.3: 32-bit paging with 4 MiB pages and a table of 4 KiB ones. */
        for (unsigned i = 0; i < 1024; i++)
                directory[i] = i << 22 | 0x83;
        directory[256] = (uint32_t)table | 3;
        table[0] = (uint32_t)page | 3;
        table[1] = 0;
        table[2] = (uint32_t)page | 1;
        __asm__ volatile("mov %%cr4, %0\n or $0x10, %0\n mov %0, %%cr4\n mov %1, %%cr3\n mov %%cr0, %0\n or $0x80010000, %0\n mov %0, %%cr0"
                         : "=&r"(cr4) : "r"(directory) : "memory");
        page[0] = 0x42;
        TRY("movb 0x40000000, %%al\n cmpb $0x42, %%al\n je 1f\n ud2\n 1: nop", "d"(0));
        CHECK_FAULT("32-bit paging: 4 KiB page", NONE, 0);
        TRY("movb 0x40001010, %%al", "d"(0));
        CHECK_FAULT("32-bit paging: not present", 14, 0);
        check_eq("its CR2", last_cr2, 0x40001010);
        TRY("movb %%al, 0x40002000", "d"(0));
        CHECK_FAULT("32-bit paging: read-only, WP", 14, 3);
        check_eq("accessed and dirty", table[0] & 0x60, 0x20);
        check_eq("large page: accessed", directory[0] & 0x20, 0x20);
        TRY("movb %%al, 0x40000003", "d"(0));
        check_eq("dirty behind a write", table[0] & 0x60, 0x60);

        /* 4.4: PAE; the pointers are read at MOV CR3. */
        for (unsigned i = 0; i < 512; i++)
                pae_directory[i] = (uint64_t)i << 21 | 0x83;
        pae_pointers[0] = (uint32_t)pae_directory | 1;
        pae_pointers[1] = (uint32_t)pae_directory | 1;
        __asm__ volatile("mov %%cr0, %0\n and $0x7fffffff, %0\n mov %0, %%cr0\n mov %%cr4, %0\n or $0x20, %0\n mov %0, %%cr4\n"
                         "mov %1, %%cr3\n mov %%cr0, %0\n or $0x80000000, %0\n mov %0, %%cr0" : "=&r"(cr4) : "r"(pae_pointers) : "memory");
        page[0] = 0x43;
        TRY("movb 0x40000000(%%edx), %%al\n cmpb $0x43, %%al\n je 1f\n ud2\n 1: nop", "d"(page));
        CHECK_FAULT("PAE: through the second pointer", NONE, 0);
        TRY("movb 0x80000000, %%al", "d"(0));
        CHECK_FAULT("PAE: pointer not present", 14, 0);
        pae_pointers[3] = (uint32_t)pae_directory | 3; /* bit 1 is reserved */
        TRY("movl %%edx, %%cr3", "d"(pae_pointers));
        CHECK_STRICT("PAE: MOV CR3 with a reserved bit in a pointer", 13, 0);
        __asm__ volatile("mov %%cr0, %0\n and $0x7fffffff, %0\n mov %0, %%cr0\n mov %%cr4, %0\n and $~0x30, %0\n mov %0, %%cr4" : "=&r"(cr4) : : "memory");
}

static void check_old_modes(void)
{
        for (unsigned i = 0; i < (unsigned)(real_code_end - real_code); i++)
                ((volatile uint8_t *)0x8000)[i] = real_code[i];
        for (unsigned i = 0x7000; i < 0x7010; i++)
                *(volatile uint8_t *)i = 0;
        *(volatile uint8_t *)0x10010 = 0;
        *(volatile uint8_t *)0x100010 = 0x66;
        real_mode();
        check_eq("real mode: INT through the IVT", *(volatile uint16_t *)0x7000, 1);
        check_eq("real mode: back with BX", *(volatile uint16_t *)0x7002, 0x1235);
        if (!tcg)
                check_eq("real mode: #GP past 64 KiB", *(volatile uint16_t *)0x7004, 1);
        check_eq("real mode: selector * 16", *(volatile uint8_t *)0x10010, 0x77);
        check_eq("real mode: above 1 MiB", *(volatile uint8_t *)0x7006, *(volatile uint8_t *)0x100010);
        check_eq("real mode: #DE", *(volatile uint16_t *)0x700a, 1);
        check_eq("real mode: 16-bit INC keeps the upper half", *(volatile uint32_t *)0x700c, 0x12340000);

        /* 20.2: virtual-8086 mode; INT n with IOPL 0 is #GP. */
        for (unsigned i = 0; i < (unsigned)(v86_code_end - v86_code); i++)
                ((volatile uint8_t *)0x9000)[i] = v86_code[i];
        *(volatile uint16_t *)0x9200 = 0;
        last = (struct frame){ .vector = NONE };
        enter(0, 0x900, 0x20002, 0xf00, 0x900);
        CHECK_FAULT("virtual-8086: HLT", 13, 0);
        check_eq("virtual-8086: its CS", last.cs, 0x900);
        check_eq("virtual-8086: VM in the frame", last.flags >> 17 & 1, 1);
        check_eq("virtual-8086: its DS in the frame", last.ds, 0x900);
        check_eq("virtual-8086: DS * 16", *(volatile uint16_t *)0x9200, 0x4321);
        check_eq("virtual-8086: INT n was seen", v86_int, 0x21);
        last = (struct frame){ .vector = NONE };
}

void main(void)
{
        tcg = under_tcg();
        setup();
        check_limits();
        check_segments();
        check_levels();
        check_tasks();
        check_paging();
        check_old_modes();
        finish();
}
