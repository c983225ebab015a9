/*
 * void fiber_switch(void **save (rdi), void *to (rsi)): leaves the registers that a call preserves (System V AMD64 ABI, "Registers") on
 * the stack, the stack pointer in *save, and goes on with another that was left so. MXCSR and the x87 control word are the thread's:
 * nobody here changes them over a wait.
 */
        .text
        .globl fiber_switch
        .hidden fiber_switch
        .type fiber_switch, @function
        .balign 16
fiber_switch:
        .cfi_startproc
        endbr64
        push %rbp
        push %rbx
        push %r12
        push %r13
        push %r14
        push %r15
        mov %rsp, (%rdi)
        mov %rsi, %rsp
        pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbx
        pop %rbp
        ret
        .cfi_endproc
        .size fiber_switch, . - fiber_switch
        .section .note.GNU-stack, "", @progbits
