/*
 * Starts the other processors: INIT and SIPI bring them to 0x8000 in real mode (SDM vol. 3A 8.4), where smp_start() in smp.h has
 * copied ap_start; from there to long mode with the page tables of the first, each on a stack of its own, into ap_main(number).
 */
        .code16
        .text
        .globl ap_start, ap_end
ap_start:
        cli
        lgdtl %cs:(ap_gdt - ap_start)
        movl %cr0, %eax
        orl $1, %eax
        movl %eax, %cr0
        ljmpl $0x50, $ap32
ap_gdt: .word 0x97
        .long gdt
ap_end:

        .code32
ap32:
        movw $16, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movl $pml4, %eax
        movl %eax, %cr3
        movl $0x6a0, %eax               /* PAE, PGE, OSFXSR, OSXMMEXCPT */
        movl %eax, %cr4
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x901, %eax                /* SCE, LME, NXE */
        wrmsr
        movl $0x80010033, %eax          /* PG, WP, NE, ET, MP, PE */
        movl %eax, %cr0
        ljmp $8, $ap64

        .code64
ap64:
        movw $16, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        xorl %eax, %eax
        movw %ax, %fs
        movw %ax, %gs
        movl $1, %edi
        lock xaddl %edi, ap_number(%rip)
        movl %edi, %eax
        shll $14, %eax
        leaq ap_stacks(%rip), %rsp      /* number 1 has the first 16 KiB */
        addq %rax, %rsp
        lidt idt_pointer(%rip)
        call ap_main
1:      hlt
        jmp 1b

        .data
        .globl ap_number
        .balign 8
ap_number: .long 1                      /* the next to arrive */

        .bss
        .balign 4096
ap_stacks: .skip 7 * 16384
