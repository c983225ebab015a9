/*
 * From the PVH entry (32-bit protected mode, paging off; Xen's PVH ABI) to long mode with the first 4 GiB mapped by 1 GiB
 * worth of 2 MiB pages four times, then an IDT whose entries push a uniform frame for trap() in long.c.
 */
        .section .note.pvh, "a", @note
        .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .long start

        .code32
        .text
        .globl start
start:
        cli
        movl $stack_top, %esp
        /* PML4[0] -> PDPT, PDPT[0..3] -> 4 PDs of 2 MiB pages */
        movl $pdpt + 7, pml4
        movl $pd + 7, %eax
        movl $pdpt, %edi
        movl $4, %ecx
1:      movl %eax, (%edi)
        addl $4096, %eax
        addl $8, %edi
        loop 1b
        movl $pd, %edi
        movl $0x87, %eax                /* present, writable, user, large: the tests take rights away by own tables */
        movl $2048, %ecx
2:      movl %eax, (%edi)
        movl $0, 4(%edi)
        addl $0x200000, %eax
        addl $8, %edi
        loop 2b
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
        lgdt gdt_pointer
        ljmp $8, $long_mode

        .code64
long_mode:
        movw $16, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        xorl %eax, %eax
        movw %ax, %fs
        movw %ax, %gs
        leaq stack_top(%rip), %rsp
        call main
3:      hlt
        jmp 3b

/* 256 entries of 16 bytes: push 0 where the processor pushes no error code, then the vector. */
        .balign 16
        .globl vectors
vectors:
        .set vector, 0
        .rept 256
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
        .else
        pushq $0
        .endif
        pushq $vector
        jmp common
        .set vector, vector + 1
        .endr

common:
        pushq %rax
        pushq %rcx
        pushq %rdx
        pushq %rbx
        pushq %rbp
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, %rdi
        movq %rsp, %rbp
        andq $-16, %rsp
        cld
        call trap
        movq %rbp, %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rbp
        popq %rbx
        popq %rdx
        popq %rcx
        popq %rax
        addq $16, %rsp
        iretq

/* void enter_user(uint64_t rip, uint64_t rsp, uint64_t rflags): comes back when trap() sets the frame to user_return. */
        .globl enter_user, user_return
enter_user:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, kernel_rsp(%rip)
        pushq $0x2b                     /* user SS: 0x28 | 3 */
        pushq %rsi
        pushq %rdx
        pushq $0x33                     /* user CS: 0x30 | 3 */
        pushq %rdi
        iretq
/* The same with the program's RDI and RBX. */
        .globl enter_calls
enter_calls:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, kernel_rsp(%rip)
        pushq $0x2b
        pushq %rsi
        pushq %rdx
        pushq $0x33
        pushq %rdi
        movq %rcx, %rdi
        movq %r8, %rbx
        iretq
user_return:
        movq kernel_rsp(%rip), %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
        popq %rbx
        ret

/* void enter_compat(uint32_t eip, uint32_t esp): as enter_user, 32-bit code at CPL 3 */
        .globl enter_compat
enter_compat:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, kernel_rsp(%rip)
        pushq $0x2b
        pushq %rsi
        pushq $2
        pushq $0x23
        pushq %rdi
        iretq

        .globl syscall_entry
syscall_entry:
        movq %rcx, syscall_rcx(%rip)
        movq %r11, syscall_r11(%rip)
        pushfq
        popq syscall_flags(%rip)
        movw %cs, syscall_cs(%rip)
        movw %ss, syscall_ss(%rip)
        sysretq

/*
 * The same as often as a translator wants, without the user's stack. syscall_flags collects what it is entered with. RDI asks for
 * something in the round in which RBX is 1: 1: vector 0x40 for this processor (in all rounds), 2: SYSRET to no address, 3: TF, 4: AC.
 */
        .globl syscall_hot
syscall_hot:
        movq %rsp, syscall_rsp(%rip)
        leaq hot_stack(%rip), %rsp
        pushfq
        popq %rdx
        orq %rdx, syscall_flags(%rip)
        movq %rcx, syscall_rcx(%rip)
        incq syscall_count(%rip)
        cmpl $1, %edi
        je 1f
        cmpl $1, %ebx
        jne 9f
        cmpl $2, %edi
        je 2f
        cmpl $3, %edi
        je 3f
        cmpl $4, %edi
        je 4f
9:      movq syscall_rsp(%rip), %rsp
        sysretq
1:      movl $0xfee00300, %edx
        movl $0x44040, (%rdx)
        jmp 9b
2:      movabsq $0x800000000000, %rcx
        sysretq
3:      orq $0x100, %r11
        jmp 9b
4:      orq $0x40000, %r11
        jmp 9b

        .data
        .globl syscall_count
        .globl gdt, gdt_pointer, tss, syscall_rcx, syscall_r11, syscall_flags, syscall_cs, syscall_ss
        .balign 16
gdt:    .quad 0
        .quad 0x00af9b000000ffff        /* 08: kernel code, 64-bit */
        .quad 0x00cf93000000ffff        /* 10: kernel data */
        .quad 0                         /* 18 */
        .quad 0x00cffb000000ffff        /* 20: user code, 32-bit (SYSRET to compatibility: STAR 0x20) */
        .quad 0x00cff3000000ffff        /* 28: user data */
        .quad 0x00affb000000ffff        /* 30: user code, 64-bit */
        .quad 0x00af1b000000ffff        /* 38: kernel code, not present */
        .quad 0, 0                      /* 40: TSS */
        .quad 0x00cf9b000000ffff        /* 50: kernel code, 32-bit */
        .quad 0x00cf13000000ffff        /* 58: data, not present */
        .quad 0x00cf99000000ffff        /* 60: code, execute only */
        .quad 0x00cf91000000ffff        /* 68: data, read only */
        .quad 0x00af9f000000ffff        /* 70: conforming code, 64-bit */
        .quad 0, 0                      /* 78: call gate (set by the test) */
        .quad 0, 0                      /* 88 */
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
syscall_rcx: .quad 0
syscall_r11: .quad 0
syscall_flags: .quad 0
syscall_cs: .quad 0
syscall_ss: .quad 0
kernel_rsp: .quad 0
syscall_rsp: .quad 0
syscall_count: .quad 0

        .bss
        .balign 4096
        .globl pml4, pdpt, pd, stack_top
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 4 * 4096
tss:    .skip 4096
        .skip 4096
hot_stack:
        .skip 16384
stack_top:
