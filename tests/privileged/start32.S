/*
 * From the PVH entry straight into 32-bit protected mode without paging, with entries for 64 vectors that push a uniform frame for
 * trap() in legacy.c, and the pieces of code that run in other modes: real mode, virtual-8086 mode, 16-bit segments, tasks.
 */
        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long start

        .code32
        .text
        .globl start
start:
        cli
        movl $stack_top, %esp
        lgdt gdt_pointer
        ljmp $8, $1f
1:      movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw %ax, %fs
        movw %ax, %gs
        call main
2:      hlt
        jmp 2b

        .balign 16
        .globl vectors
vectors:
        .set vector, 0
        .rept 64
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
        .else
        pushl $0
        .endif
        pushl $vector
        jmp common
        .set vector, vector + 1
        .endr

common:
        pushal
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movl %esp, %ebp
        cld
        pushl %ebp
        call trap
        movl %ebp, %esp
        popal
        addl $8, %esp
        iretl

/* void enter(uint32_t eip, cs, eflags, esp, ss): IRET to an outer level; with VM in eflags to virtual-8086 mode. */
        .globl enter, leave_here
enter:
        pushal
        movl %esp, kernel_esp
        movl 36(%esp), %eax
        movl 40(%esp), %ecx
        movl 44(%esp), %edx
        movl 48(%esp), %ebx
        movl 52(%esp), %esi
        testl $0x20000, %edx
        jz 1f
        pushl $0                        /* GS */
        pushl $0                        /* FS */
        pushl $0                        /* DS */
        pushl $0                        /* ES */
1:      pushl %esi
        pushl %ebx
        pushl %edx
        pushl %ecx
        pushl %eax
        iretl
leave_here:                             /* trap() sends us here at CPL 0 */
        movl kernel_esp, %esp
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %fs
        movw %ax, %gs
        popal
        ret

/* uint32_t gate_target(a, b): reached by a call gate with two parameters; adds them up beside the caller's CS. */
        .globl gate_target
gate_target:
        movl 8(%esp), %eax
        addl 12(%esp), %eax
        movl 4(%esp), %ecx              /* caller's CS */
        lretl $8

/* The other task: stores what it sees and goes back by IRET (NT is set). Runs again behind it. */
        .globl task_entry, task_seen
task_entry:
        movl %esp, task_seen
        pushfl
        popl task_seen + 4
        str task_seen + 8
        movl %cr0, %eax
        movl %eax, task_seen + 12
        incl task_seen + 16
        clts
        iretl
        jmp task_entry

/*
 * void real_mode(void): to real mode below 64 KiB and back. The 16-bit code is copied to 0x8000 by the caller; it takes INT 0x21
 * through the IVT at 0, reads beyond a 64 KiB limit (#GP, vector 13) and counts what it saw at 0x7000.
 */
        .globl real_mode
real_mode:
        pushal
        movl %esp, kernel_esp
        sgdt 0x7f00
        sidt 0x7f08
        ljmp $0x18, $0x8000             /* 16-bit protected segment first (9.9.2) */
real_back:
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw %ax, %fs
        movw %ax, %gs
        movl kernel_esp, %esp
        lidt 0x7f08
        popal
        ret

        .code16
        .globl real_code, real_code_end
real_code:
        movw $0x20, %ax                 /* 16-bit data: limits of 64 KiB for all */
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw %ax, %fs
        movw %ax, %gs
        movl %cr0, %eax
        andb $0xfe, %al
        movl %eax, %cr0
        ljmp $0, $(0x8000 + 1f - real_code)
1:      xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %ss
        movw $0x6ff0, %sp
        lidtl %cs:(0x8000 + real_idt - real_code)
        movw $(0x8000 + int21 - real_code), 0x21 * 4
        movw $0, 0x21 * 4 + 2
        movw $(0x8000 + int13 - real_code), 13 * 4
        movw $0, 13 * 4 + 2
        movw $(0x8000 + int0 - real_code), 0
        movw $0, 2
        movw $0x1234, %bx
        int $0x21
        movw %bx, 0x7002                /* 0x1235 */
        movw $0xffff, %si
        movw (%si), %ax                 /* crosses the limit: #GP, handler skips 2 bytes */
        movw $0x1000, %ax
        movw %ax, %es
        movb $0x77, %es:0x10            /* 0x10010 */
        movw $0xffff, %ax
        movw %ax, %es
        movb %es:0x20, %al              /* 0x100010: A20 is on */
        movb %al, 0x7006
        xorw %cx, %cx
        divb %cl                        /* #DE: the handler skips 2 bytes */
        pushf
        popw 0x7008
        movw $0x8000, %ax               /* 16-bit arithmetic keeps the upper half */
        movl $0x12340000, %edx
        movw $0xffff, %dx
        incw %dx
        movl %edx, 0x700c
        pushw $0
        pushw $(0x8000 + 2f - real_code)
        lretw
2:      movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmpl $8, $real_back
int21:  incw %bx
        incw 0x7000
        iretw
int13:  incw 0x7004
        movw %sp, %bp
        addw $2, (%bp)
        iretw
int0:   incw 0x700a
        movw %sp, %bp
        addw $2, (%bp)
        iretw
real_idt:
        .word 0x3ff
        .long 0
real_code_end:

/* Virtual-8086 code, copied to 0x9000: ends with HLT, which is privileged. */
        .globl v86_code, v86_code_end
v86_code:
        movw $0x900, %ax
        movw %ax, %ds
        movw $0x4321, 0x200
        int $0x21
        hlt
v86_code_end:

        .data
        .balign 8
        .globl gdt, gdt_pointer
gdt:    .quad 0
        .quad 0x00cf9b000000ffff        /* 08: code */
        .quad 0x00cf93000000ffff        /* 10: data */
        .quad 0x00009b000000ffff        /* 18: 16-bit code, 64 KiB */
        .quad 0x000093000000ffff        /* 20: 16-bit data, 64 KiB */
        .quad 0x00cffb000000ffff        /* 28: user code */
        .quad 0x00cff3000000ffff        /* 30: user data */
        .quad 0                         /* 38: TSS 1 */
        .quad 0                         /* 40: TSS 2 */
        .quad 0x0040930000000fff        /* 48: data of 4 KiB at 0 */
        .quad 0x0040970000000fff        /* 50: expand-down: valid above 0xfff */
        .quad 0x00cf91000000ffff        /* 58: read-only */
        .quad 0x00cf99000000ffff        /* 60: execute-only */
        .quad 0                         /* 68: call gate */
        .quad 0                         /* 70: task gate */
        .quad 0x00cf13000000ffff        /* 78: not present */
        .quad 0x00cf9f000000ffff        /* 80: conforming code */
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt
kernel_esp: .long 0
task_seen: .long 0, 0, 0, 0, 0

        .bss
        .balign 4096
        .globl stack_top
        .skip 16384
stack_top:
