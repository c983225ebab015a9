/*
 * The fixed host code between C and translated blocks.
 *
 *      translator_enter() ─▶ ENTER ─┐                          ┌─▶ block … edge ─▶ thunk: saves ─▶ service (C)
 *                                   └─▶ RESUME: loads, jumps ──┘                        │ where to go on
 *                                          ▲────────────────────────────────────────────┤
 *      returns ◀─ callee-saved registers ◀───────────────────────────── NULL ───────────┘
 *
 * A thunk saves all guest general registers into s.gpr and the host's flags into jit.host_flags, and switches from the shadow
 * stack to the thread's. Vector registers stay in the host's registers: a service whose C code may use them calls the code at
 * vectors_save first, which notes it in jit.vectors_out, and RESUME loads them again.
 *
 * When all upper halves of the YMM registers are 0 they are loaded as XMM registers after VZEROUPPER, because processors run
 * SSE code slower while they believe an upper half to be in use (Intel optimization manual §15.3).
 */
#include "cpu/x86/translator-internal.h"

#include <errno.h>

#define CPU_AT(member) ((size_t)offsetof(struct x86_cpu, member))
#define GPR_AT(n) (CPU_AT(s.gpr) + (n) * 8u)
#define THUNKS_BYTES 8192u

static void bytes(struct x86_asm *a, const char *text, size_t n)
{
        asm_bytes(a, text, n);
}
#define EMIT(a, text) bytes(a, text, sizeof(text) - 1)

/* An instruction with the operand gs:[at]: head is everything up to the ModRM byte's reg field. */
static void with_gs(struct x86_asm *a, const uint8_t *head, size_t head_bytes, unsigned reg, size_t at)
{
        asm_byte(a, 0x65);
        asm_bytes(a, head, head_bytes);
        asm_byte(a, (uint8_t)((reg & 7) << 3 | 4));
        asm_byte(a, 0x25);
        asm_u32(a, (uint32_t)at);
}

/* MOVUPS or VMOVUPS between vector register n and its place. */
static void vector_move(const struct translator *tr, struct x86_asm *a, unsigned n, bool store, bool wide)
{
        size_t at = CPU_AT(s.fpu.ymm) + n * sizeof(union x86_vector);
        uint8_t opcode = store ? 0x11 : 0x10;

        if (tr->host_avx) {
                const uint8_t head[] = { 0xc5, (uint8_t)((n < 8 ? 0xf8 : 0x78) | (wide ? 4 : 0)), opcode };

                with_gs(a, head, sizeof(head), n, at);
        } else if (n < 8) {
                with_gs(a, (const uint8_t[]){ 0x0f, opcode }, 2, n, at);
        } else {
                with_gs(a, (const uint8_t[]){ 0x44, 0x0f, opcode }, 3, n, at);
        }
}

static void vectors_move(const struct translator *tr, struct x86_asm *a, bool store, bool wide)
{
        for (unsigned n = 0; n < 16; n++)
                vector_move(tr, a, n, store, wide);
}

static void vzeroupper(const struct translator *tr, struct x86_asm *a)
{
        if (tr->host_avx)
                EMIT(a, "\xc5\xf8\x77");
}

static void mxcsr(struct x86_asm *a, bool store, size_t at)
{
        with_gs(a, (const uint8_t[]){ 0x0f, 0xae }, 2, store ? 3 : 2, at);
}

/* mov byte gs:[at], value; cmp byte gs:[at], 0 */
static void set_byte(struct x86_asm *a, size_t at, uint8_t value)
{
        with_gs(a, (const uint8_t[]){ 0xc6 }, 1, 0, at);
        asm_byte(a, value);
}

static void test_byte(struct x86_asm *a, size_t at)
{
        with_gs(a, (const uint8_t[]){ 0x80 }, 1, 7, at);
        asm_byte(a, 0);
}

static void make_vectors_save(struct translator *tr, struct x86_asm *a)
{
        tr->vectors_save = (const void *)(uintptr_t)(a->address + a->used);
        vectors_move(tr, a, true, true);
        mxcsr(a, true, CPU_AT(s.fpu.mxcsr));
        mxcsr(a, false, CPU_AT(jit.host_mxcsr));
        vzeroupper(tr, a);
        set_byte(a, CPU_AT(jit.vectors_out), 1);
        asm_byte(a, 0xc3);
        asm_align(a, 16, 0);
}

static void load_vectors(struct translator *tr, struct x86_asm *a)
{
        struct asm_label narrow = { 0 }, done = { 0 };

        mxcsr(a, false, CPU_AT(s.fpu.mxcsr));
        set_byte(a, CPU_AT(jit.vectors_out), 0);
        if (!tr->host_avx) {
                vectors_move(tr, a, false, false);
                return;
        }
        for (unsigned n = 0; n < 32; n++) { /* all upper halves into RAX: MOV, then OR */
                size_t at = CPU_AT(s.fpu.ymm) + n / 2 * sizeof(union x86_vector) + 16 + n % 2 * 8;

                asm_rm(a, 8, n ? 0x0b : 0x8b, ASM_RAX, asm_gs(at));
        }
        asm_jcc(a, ASM_Z, &narrow);
        vectors_move(tr, a, false, true);
        asm_jmp(a, &done);
        asm_bind(a, &narrow);
        vzeroupper(tr, a);
        vectors_move(tr, a, false, false);
        asm_bind(a, &done);
}

enum { ALU_ADD = 0, ALU_OR = 1, ALU_AND = 4, ALU_CMP = 7 };

/* op byte gs:[at], imm */
static void byte_op(struct x86_asm *a, unsigned op, size_t at, uint8_t imm)
{
        asm_rm(a, 1, 0x80, op, asm_gs(at));
        asm_byte(a, imm);
}

/* Guest registers other than RAX and those in memory. */
static void move_registers(struct x86_asm *a, bool store)
{
        for (unsigned guest = 1; guest < 16; guest++) {
                uint8_t host = treg_of(guest);

                if (host == TREG_NONE)
                        continue;
                if (store)
                        asm_store(a, 8, asm_gs(GPR_AT(guest)), host);
                else
                        asm_load(a, 8, host, asm_gs(GPR_AT(guest)));
        }
}

static void make_resume(struct translator *tr, struct x86_asm *a, struct asm_label *resume)
{
        struct asm_label vectors = { 0 }, ready = { 0 };

        asm_bind(a, resume);
        test_byte(a, CPU_AT(jit.vectors_out));
        asm_jcc(a, ASM_NZ, &vectors);
        asm_bind(a, &ready);
        with_gs(a, (const uint8_t[]){ 0x0f, 0xb7 }, 2, ASM_RAX, CPU_AT(jit.host_flags)); /* movzx eax, word */
        EMIT(a, "\x04\x7f\x9e");                                                        /* add al, 0x7f; sahf */
        asm_load(a, 8, ASM_RSP, asm_gs(CPU_AT(jit.rsp)));
        move_registers(a, false);
        asm_load(a, 8, ASM_RAX, asm_gs(GPR_AT(X86_RAX)));
        with_gs(a, (const uint8_t[]){ 0xff }, 1, 4, CPU_AT(jit.resume)); /* jmp gs:[…] */
        asm_bind(a, &vectors);
        load_vectors(tr, a);
        asm_jmp(a, &ready);
        asm_align(a, 16, 0);
}

static void make_enter(struct translator *tr, struct x86_asm *a, struct asm_label *resume)
{
        tr->thunk[TTHUNK_ENTER] = (uint32_t)a->used;
        EMIT(a, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57\x48\x83\xec\x08"); /* push rbx, rbp, r12-r15; sub rsp, 8 */
        asm_store(a, 8, asm_gs(CPU_AT(jit.c_rsp)), ASM_RSP);
        asm_jmp(a, resume);
        asm_align(a, 16, 0);
}

/* Behind a service: on, or out. */
static void make_served(struct x86_asm *a, struct asm_label *served, struct asm_label *resume)
{
        struct asm_label out = { 0 };

        asm_bind(a, served);
        EMIT(a, "\x48\x85\xc0"); /* test rax, rax */
        asm_jcc(a, ASM_Z, &out);
        asm_store(a, 8, asm_gs(CPU_AT(jit.resume)), ASM_RAX);
        asm_jmp(a, resume);
        asm_bind(a, &out);
        EMIT(a, "\x48\x83\xc4\x08\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3");
        asm_align(a, 16, 0);
}

typedef const void *(*service_fn)(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);

/* ---- the jump cache and what is behind it; RBP is the linear address ---- */

/* imul ecx, reg, hash; shr; and: the offset of an entry of 16 bytes */
static void entry_offset(struct x86_asm *a, unsigned reg, uint32_t hash, unsigned bits)
{
        asm_rr(a, 4, 0x69, ASM_RCX, reg);
        asm_u32(a, hash);
        asm_rr(a, 4, 0xc1, 5, ASM_RCX);
        asm_byte(a, (uint8_t)(32 - bits - 4));
        asm_alu_imm(a, ALU_AND, 4, ASM_RCX, (int32_t)(((1u << bits) - 1) * 16));
}

static struct asm_mem in_table(size_t at)
{
        struct asm_mem mem = asm_at(ASM_RCX, (int32_t)at);

        mem.gs = true;
        return mem;
}

/* To where the jump cache has RBP; no register but RCX changes. */
static void jump_or(struct x86_asm *a, enum tlb_mode mode, struct asm_label *miss)
{
        size_t table = tjump_offset(mode);

        entry_offset(a, ASM_RBP, TJUMP_HASH, tjump_bits(mode));
        asm_rm(a, 8, 0x3b, ASM_RBP, in_table(table + offsetof(struct tjump, rip)));
        asm_jcc(a, ASM_NZ, miss);
        asm_rm(a, 4, 0xff, 4, in_table(table + offsetof(struct tjump, host)));
}

#define SECOND(member) (CPU_AT(jit.second) + offsetof(struct tjump_second, member))
_Static_assert(sizeof(struct tjump) == 16 && sizeof(struct tjump_second) == 16, "entry_offset()");

/* RAX = host address, put back into the jump cache, when the second table has RBP. */
static void find_second(struct x86_asm *a, enum tlb_mode mode, struct asm_label *miss)
{
        asm_load(a, 4, ASM_RAX, asm_gs(mode == TLB_USER ? CPU_AT(own.generation) : CPU_AT(jit.generation)));
        asm_mov(a, 4, ASM_RCX, ASM_RAX);
        asm_rr(a, 4, 0x33, ASM_RCX, ASM_RBP); /* xor */
        entry_offset(a, ASM_RCX, TJUMP_SECOND_HASH, TJUMP_SECOND_BITS);
        asm_rm(a, 8, 0x3b, ASM_RBP, in_table(SECOND(rip)));
        asm_jcc(a, ASM_NZ, miss);
        asm_rm(a, 4, 0x3b, ASM_RAX, in_table(SECOND(generation)));
        asm_jcc(a, ASM_NZ, miss);
        asm_load(a, 4, ASM_RAX, in_table(SECOND(host)));
        asm_rm(a, 8, 0x03, ASM_RAX, asm_gs(CPU_AT(jit.code)));
        entry_offset(a, ASM_RBP, TJUMP_HASH, tjump_bits(mode));
        asm_store(a, 8, in_table(tjump_offset(mode) + offsetof(struct tjump, rip)), ASM_RBP);
        asm_store(a, 8, in_table(tjump_offset(mode) + offsetof(struct tjump, host)), ASM_RAX);
}

#define SAVED_RAX CPU_AT(jit.temp[2])
#define SAVED_RCX CPU_AT(jit.temp[3])

/* RCX = what RET pops: size_bytes of the TSITE_JUMP with the number in SAVED_RCX (translator-sites.h). RAX is free. */
static void load_popped(struct x86_asm *a)
{
        asm_load(a, 4, ASM_RCX, asm_gs(SAVED_RCX));
        asm_mov(a, 4, ASM_RAX, ASM_RCX);
        asm_rr(a, 4, 0xc1, 5, ASM_RCX);                /* shr */
        asm_byte(a, TNUMBER_BITS);
        asm_rr(a, 8, 0x69, ASM_RCX, ASM_RCX);          /* imul */
        asm_u32(a, sizeof(struct tblock));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.blocks)));
        asm_alu_imm(a, ALU_AND, 4, ASM_RAX, TNUMBER_OWN);
        asm_rm(a, 2, 0x2b, ASM_RAX, asm_at(ASM_RCX, offsetof(struct tblock, sites))); /* sub */
        asm_rr(a, 8, ASM_0F | 0xbf, ASM_RAX, ASM_RAX); /* movsx rax, ax */
        asm_load(a, 4, ASM_RCX, asm_at(ASM_RCX, offsetof(struct tblock, data)));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.data)));
        asm_rm(a, 4, ASM_0F | 0xb6, ASM_RCX, asm_at_index(ASM_RCX, ASM_RAX, 4, -1)); /* movzx: the last byte of the unit before */
}

/* In front of the service for TSITE_JUMP; the host's flags are free. RCX is the site. */
static void make_jump_second(struct x86_asm *a)
{
        struct asm_label kernel = { 0 }, found = { 0 }, miss = { 0 }, service = { 0 };

        asm_rm(a, 4, 0x83, ALU_CMP, asm_gs(CPU_AT(jit.go)));
        asm_byte(a, 0);
        asm_jcc(a, ASM_Z, &service);
        asm_store(a, 8, asm_gs(SAVED_RAX), ASM_RAX);
        asm_store(a, 8, asm_gs(SAVED_RCX), ASM_RCX);
        byte_op(a, ALU_CMP, CPU_AT(tlb_mode), TLB_USER);
        asm_jcc(a, ASM_NZ, &kernel);
        find_second(a, TLB_USER, &miss);
        asm_bind(a, &found);
        asm_store(a, 8, asm_gs(CPU_AT(jit.resume)), ASM_RAX);
        load_popped(a);
        asm_rr(a, 8, 0x03, treg_of(X86_RSP), ASM_RCX);
        asm_load(a, 8, ASM_RAX, asm_gs(SAVED_RAX));
        asm_rm(a, 4, 0xff, 4, asm_gs(CPU_AT(jit.resume)));
        asm_bind(a, &kernel);
        byte_op(a, ALU_CMP, CPU_AT(tlb_mode), TLB_SUPERVISOR_SMAP);
        asm_jcc(a, ASM_NZ, &miss);
        find_second(a, TLB_SUPERVISOR_SMAP, &miss);
        asm_jmp(a, &found);
        asm_bind(a, &miss);
        asm_load(a, 8, ASM_RAX, asm_gs(SAVED_RAX));
        asm_load(a, 8, ASM_RCX, asm_gs(SAVED_RCX));
        asm_bind(a, &service);
}

/* ---- SYSCALL, SYSRET ---- */

/* mov size [at], imm */
static void store_imm(struct x86_asm *a, unsigned size_bytes, size_t at, uint32_t imm)
{
        asm_rm(a, size_bytes, size_bytes == 1 ? 0xc6 : 0xc7, 0, asm_gs(at));
        if (size_bytes == 1)
                asm_byte(a, (uint8_t)imm);
        else
                asm_u32(a, imm);
}

/* One of the fixed segments; the selector is in RCX. */
static void flat_segment(struct x86_asm *a, unsigned segment, unsigned dpl)
{
        size_t at = CPU_AT(s.seg) + segment * sizeof(struct x86_segment);
        uint32_t access = (segment == X86_CS ? 0xbu | X86_ACCESS_L : 3u | X86_ACCESS_DB) | X86_ACCESS_S | X86_ACCESS_P |
                          dpl << X86_ACCESS_DPL_SHIFT | X86_ACCESS_G;

        asm_rm(a, 2, 0x89, ASM_RCX, asm_gs(at + offsetof(struct x86_segment, selector)));
        store_imm(a, 4, at + offsetof(struct x86_segment, access), access);
        store_imm(a, 4, at + offsetof(struct x86_segment, limit), UINT32_MAX);
        store_imm(a, 8, at + offsetof(struct x86_segment, base), 0);
}

/* What a change of CPL alone means, as set_cpl() of translator-fast.c. */
static void change_cpl(struct x86_asm *a, unsigned cpl, enum tlb_mode mode)
{
        store_imm(a, 1, CPU_AT(cpl), cpl);
        asm_rm(a, 4, 0x81, cpl ? ALU_OR : ALU_AND, asm_gs(CPU_AT(mode_key)));
        asm_u32(a, cpl ? MODE_USER : ~MODE_USER);
        store_imm(a, 1, CPU_AT(tlb_mode), mode);
        asm_load(a, 8, ASM_RCX, asm_gs(CPU_AT(set) + mode * sizeof(struct tlb_set *)));
        asm_store(a, 8, asm_gs(CPU_AT(data)), ASM_RCX);
        store_imm(a, 1, CPU_AT(s.interrupt_shadow), 0);
        store_imm(a, 1, CPU_AT(step_trap), 0);
        asm_load(a, 8, ASM_RSP, asm_gs(CPU_AT(jit.shadow_base)));
}

/* test reg, imm */
static void test_imm(struct x86_asm *a, unsigned reg, uint32_t imm)
{
        asm_rr(a, 4, 0xf7, 0, reg);
        asm_u32(a, imm);
}

/* test byte gs:[at], imm */
static void test_bits(struct x86_asm *a, size_t at, uint8_t imm)
{
        asm_rm(a, 1, 0xf6, 0, asm_gs(at));
        asm_byte(a, imm);
}

#define RFLAGS_KEPT                                                                                                                  \
        (X86_FLAG_TF | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_IOPL | X86_FLAG_NT | X86_FLAG_AC | X86_FLAG_VIF | X86_FLAG_VIP | X86_FLAG_ID)
#define GUEST_RCX 11 /* treg_of(X86_RCX), which both instructions name: a scratch register before or after */
#define GUEST_R11 11 /* the guest's number */

/*
 * SYSCALL with a mask that clears the status flags and AC, into a kernel with SMAP: rip behind it is in RBP, the site in RCX, the flags in
 * jit.flags. Everything else is its handler's.
 */
static void make_syscall(struct translator *tr, struct x86_asm *a)
{
        struct asm_label slow = { 0 }, real = { 0 }, miss = { 0 };

        tr->thunk[TTHUNK_SYSCALL] = (uint32_t)a->used;
        asm_store(a, 8, asm_gs(SAVED_RCX), ASM_RCX);
        test_bits(a, CPU_AT(s.efer), X86_EFER_SCE);
        asm_jcc(a, ASM_Z, &slow);
        test_bits(a, CPU_AT(s.cr4) + 2, X86_CR4_SMAP >> 16);
        asm_jcc(a, ASM_Z, &slow);
        asm_load(a, 4, ASM_RCX, asm_gs(CPU_AT(s.sfmask)));
        asm_rr(a, 4, 0xf7, 2, ASM_RCX); /* not */
        test_imm(a, ASM_RCX, X86_FLAGS_STATUS | X86_FLAG_AC);
        asm_jcc(a, ASM_NZ, &slow);
        asm_rm(a, 4, 0x83, ALU_CMP, asm_gs(CPU_AT(jit.go)));
        asm_byte(a, 0);
        asm_jcc(a, ASM_Z, &slow);
        asm_load(a, 4, GUEST_RCX, asm_gs(CPU_AT(jit.flags)));
        test_imm(a, GUEST_RCX, TFLAGS_REAL);
        asm_jcc(a, ASM_NZ, &real);
        asm_call_to(a, a->address + tr->thunk[TTHUNK_FLAGS]);
        asm_mov(a, 8, ASM_RCX, ASM_RAX);
        EMIT(a, "\x9f\x0f\x90\xc0"); /* lahf; seto al */
        asm_mov(a, 4, GUEST_RCX, ASM_RAX);
        asm_mov(a, 8, ASM_RAX, ASM_RCX);
        asm_bind(a, &real);
        asm_mov(a, 4, ASM_RCX, GUEST_RCX);
        asm_rr(a, 4, 0xc1, 5, ASM_RCX); /* shr */
        asm_byte(a, 8);
        asm_alu_imm(a, ALU_AND, 4, ASM_RCX, 0xd5);
        asm_alu_imm(a, ALU_AND, 4, GUEST_RCX, 1);
        asm_rr(a, 4, 0xc1, 4, GUEST_RCX); /* shl */
        asm_byte(a, 11);
        asm_rr(a, 4, 0x0b, ASM_RCX, GUEST_RCX);
        asm_load(a, 4, GUEST_RCX, asm_gs(CPU_AT(s.rflags)));
        asm_alu_imm(a, ALU_AND, 4, GUEST_RCX, RFLAGS_KEPT);
        asm_alu_imm(a, ALU_OR, 4, GUEST_RCX, X86_FLAG_FIXED);
        asm_rr(a, 4, 0x0b, ASM_RCX, GUEST_RCX);
        asm_store(a, 8, asm_gs(GPR_AT(GUEST_R11)), ASM_RCX);
        asm_load(a, 4, ASM_RCX, asm_gs(CPU_AT(s.sfmask)));
        asm_rr(a, 4, 0xf7, 2, ASM_RCX);
        asm_rr(a, 4, 0x23, GUEST_RCX, ASM_RCX);
        asm_alu_imm(a, ALU_OR, 4, GUEST_RCX, X86_FLAG_FIXED);
        asm_store(a, 8, asm_gs(CPU_AT(s.rflags)), GUEST_RCX);
        store_imm(a, 4, CPU_AT(jit.flags), TFLAGS_REAL);
        asm_mov(a, 8, GUEST_RCX, ASM_RBP);
        asm_load(a, 4, ASM_RCX, asm_gs(CPU_AT(s.star) + 4));
        asm_alu_imm(a, ALU_AND, 4, ASM_RCX, 0xfffc);
        flat_segment(a, X86_CS, 0);
        asm_alu_imm(a, ALU_ADD, 4, ASM_RCX, 8);
        flat_segment(a, X86_SS, 0);
        change_cpl(a, 0, TLB_SUPERVISOR_SMAP);
        asm_load(a, 8, ASM_RBP, asm_gs(CPU_AT(s.lstar)));
        jump_or(a, TLB_SUPERVISOR_SMAP, &miss);
        asm_bind(a, &miss);
        asm_jmp_to(a, a->address + tr->thunk[TTHUNK_ARRIVE]);
        asm_bind(a, &slow);
        asm_load(a, 8, ASM_RCX, asm_gs(SAVED_RCX));
        asm_jmp_to(a, a->address + tr->thunk[TTHUNK_HANDLER]);
        asm_align(a, 16, 0);
}

/* SYSRET to 64-bit code without TF and AC, at a canonical address, when nothing waits for IF. The site is in RCX. */
static void make_sysret(struct translator *tr, struct x86_asm *a)
{
        struct asm_label slow = { 0 }, miss = { 0 };

        tr->thunk[TTHUNK_SYSRET] = (uint32_t)a->used;
        asm_store(a, 8, asm_gs(SAVED_RCX), ASM_RCX);
        test_bits(a, CPU_AT(s.efer), X86_EFER_SCE);
        asm_jcc(a, ASM_Z, &slow);
        byte_op(a, ALU_CMP, CPU_AT(cpl), 0);
        asm_jcc(a, ASM_NZ, &slow);
        asm_mov(a, 8, ASM_RBP, GUEST_RCX);
        asm_rr(a, 8, 0xc1, 7, ASM_RBP); /* sar: all of bits 47 to 63 */
        asm_byte(a, 47);
        asm_alu_imm(a, ALU_ADD, 8, ASM_RBP, 1);
        asm_alu_imm(a, ALU_CMP, 8, ASM_RBP, 1);
        asm_jcc(a, ASM_NBE, &slow);
        asm_load(a, 4, ASM_RBP, asm_gs(GPR_AT(GUEST_R11)));
        test_imm(a, ASM_RBP, X86_FLAG_TF | X86_FLAG_AC);
        asm_jcc(a, ASM_NZ, &slow);
        asm_rm(a, 4, 0x83, ALU_CMP, asm_gs(CPU_AT(requests)));
        asm_byte(a, 0);
        asm_jcc(a, ASM_NZ, &slow);
        asm_rm(a, 4, 0x83, ALU_CMP, asm_gs(CPU_AT(jit.go)));
        asm_byte(a, 0);
        asm_jcc(a, ASM_Z, &slow);
        asm_mov(a, 4, ASM_RCX, ASM_RBP);
        asm_alu_imm(a, ALU_AND, 4, ASM_RCX, RFLAGS_KEPT);
        asm_alu_imm(a, ALU_OR, 4, ASM_RCX, X86_FLAG_FIXED);
        asm_store(a, 8, asm_gs(CPU_AT(s.rflags)), ASM_RCX);
        asm_mov(a, 4, ASM_RCX, ASM_RBP);
        asm_alu_imm(a, ALU_AND, 4, ASM_RCX, 0xd5);
        asm_rr(a, 4, 0xc1, 4, ASM_RCX); /* shl */
        asm_byte(a, 8);
        asm_rr(a, 4, 0xc1, 5, ASM_RBP); /* shr */
        asm_byte(a, 11);
        asm_alu_imm(a, ALU_AND, 4, ASM_RBP, 1);
        asm_rr(a, 4, 0x0b, ASM_RCX, ASM_RBP);
        asm_alu_imm(a, ALU_OR, 4, ASM_RCX, TFLAGS_REAL);
        asm_store(a, 4, asm_gs(CPU_AT(jit.flags)), ASM_RCX);
        asm_rm(a, 4, ASM_0F | 0xb7, ASM_RBP, asm_gs(CPU_AT(s.star) + 6)); /* movzx */
        asm_lea(a, ASM_RCX, asm_at(ASM_RBP, 16));
        asm_alu_imm(a, ALU_OR, 4, ASM_RCX, 3);
        flat_segment(a, X86_CS, 3);
        asm_lea(a, ASM_RCX, asm_at(ASM_RBP, 8));
        asm_alu_imm(a, ALU_OR, 4, ASM_RCX, 3);
        flat_segment(a, X86_SS, 3);
        change_cpl(a, 3, TLB_USER);
        asm_mov(a, 8, ASM_RBP, GUEST_RCX);
        jump_or(a, TLB_USER, &miss);
        asm_bind(a, &miss);
        asm_jmp_to(a, a->address + tr->thunk[TTHUNK_ARRIVE]);
        asm_bind(a, &slow);
        asm_load(a, 8, ASM_RCX, asm_gs(SAVED_RCX));
        asm_jmp_to(a, a->address + tr->thunk[TTHUNK_HANDLER]);
        asm_align(a, 16, 0);
}

static void make_thunk(struct translator *tr, struct x86_asm *a, enum tthunk thunk, service_fn service, struct asm_label *served)
{
        tr->thunk[thunk] = (uint32_t)a->used;
        if (thunk == TTHUNK_STALE)
                asm_byte(a, 0x59); /* pop rcx: the call that a dead block's entry has become */
        if (thunk == TTHUNK_JUMP)
                make_jump_second(a);
        asm_store(a, 8, asm_gs(GPR_AT(X86_RAX)), ASM_RAX);
        EMIT(a, "\x9f\x0f\x90\xc0"); /* lahf; seto al */
        asm_byte(a, 0x65);           /* mov gs:[host_flags], ax */
        EMIT(a, "\x66\x89\x04\x25");
        asm_u32(a, (uint32_t)CPU_AT(jit.host_flags));
        move_registers(a, true);
        asm_store(a, 8, asm_gs(CPU_AT(jit.rsp)), ASM_RSP);
        asm_load(a, 8, ASM_RSP, asm_gs(CPU_AT(jit.c_rsp)));
        asm_load(a, 8, ASM_RDI, asm_gs(CPU_AT(jit.self)));
        asm_mov(a, 8, ASM_RSI, ASM_RCX);
        asm_mov(a, 8, ASM_RDX, ASM_RBP);
        asm_mov_imm(a, ASM_RAX, (uintptr_t)service);
        EMIT(a, "\xff\xd0"); /* call rax */
        asm_jmp(a, served);
        asm_align(a, 16, 0);
}

/* Called when jit.flags names a note: to the code that makes its flags. RCX is free, and so are the host's flags. */
static void make_flags(struct translator *tr, struct x86_asm *a)
{
        tr->thunk[TTHUNK_FLAGS] = (uint32_t)a->used;
        asm_store(a, 8, asm_gs(CPU_AT(jit.temp[3])), ASM_RAX);
        asm_load(a, 4, ASM_RCX, asm_gs(CPU_AT(jit.flags)));
        asm_rr(a, 4, ASM_0F | 0xb6, ASM_RAX, ASM_RCX); /* movzx eax, cl */
        asm_rr(a, 4, 0xc1, 5, ASM_RCX);                /* shr */
        asm_byte(a, TNUMBER_BITS);
        asm_rr(a, 8, 0x69, ASM_RCX, ASM_RCX);          /* imul */
        asm_u32(a, sizeof(struct tblock));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.blocks)));
        asm_load(a, 4, ASM_RCX, asm_at(ASM_RCX, offsetof(struct tblock, data)));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.data)));
        asm_rr(a, 4, 0x69, ASM_RAX, ASM_RAX);          /* imul */
        asm_u32(a, sizeof(struct tnote));
        asm_load(a, 4, ASM_RCX, asm_at_index(ASM_RCX, ASM_RAX, 1, (int32_t)offsetof(struct tnote, maker) - (int32_t)sizeof(struct tnote)));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.code)));
        asm_load(a, 8, ASM_RAX, asm_gs(CPU_AT(jit.temp[3])));
        EMIT(a, "\xff\xe1"); /* jmp rcx */
        asm_align(a, 16, 0);
}

int translator_make_thunks(struct translator *tr, struct err *err)
{
        static const struct {
                enum tthunk thunk;
                service_fn service;
        } thunks[] = {
                { TTHUNK_MEMORY, translator_serve_memory }, { TTHUNK_HANDLER, translator_serve_handler },
                { TTHUNK_CHAIN, translator_serve_chain },   { TTHUNK_JUMP, translator_serve_jump },
                { TTHUNK_GO, translator_serve_go },         { TTHUNK_LEAVE, translator_serve_leave },
                { TTHUNK_STALE, translator_serve_stale },   { TTHUNK_X87, translator_serve_x87 },
                { TTHUNK_ARRIVE, translator_serve_arrive },
        };
        struct asm_label resume = { 0 }, served = { 0 };
        struct x86_asm a = { .size = THUNKS_BYTES };
        uint32_t at;

        if (code_cache_reserve(tr->cache, THUNKS_BYTES, &at) < 0)
                return err_set(err, -ENOSPC, "the code cache has no room for its own code");
        a.buffer = code_cache_rw(tr->cache, at);
        a.address = (uintptr_t)code_cache_rx(tr->cache, at);
        make_resume(tr, &a, &resume);
        make_served(&a, &served, &resume);
        make_enter(tr, &a, &resume);
        make_vectors_save(tr, &a);
        for (size_t i = 0; i < ARRAY_SIZE(thunks); i++)
                make_thunk(tr, &a, thunks[i].thunk, thunks[i].service, &served);
        make_flags(tr, &a);
        make_syscall(tr, &a);
        make_sysret(tr, &a);
        if (a.full)
                return err_set(err, -ENOSPC, "the fixed code has more than %u bytes", THUNKS_BYTES);
        for (unsigned i = 0; i < TTHUNKS; i++)
                tr->thunk[i] += at;
        code_cache_commit(tr->cache, at, a.used);
        code_cache_keep(tr->cache);
        return 0;
}
