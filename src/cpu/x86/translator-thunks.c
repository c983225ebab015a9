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
#define THUNKS_BYTES 4096u

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

static void make_thunk(struct translator *tr, struct x86_asm *a, enum tthunk thunk, service_fn service, struct asm_label *served)
{
        tr->thunk[thunk] = (uint32_t)a->used;
        if (thunk == TTHUNK_STALE)
                asm_byte(a, 0x59); /* pop rcx: the call that a dead block's entry has become */
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

/* Called when jit.flags names a site: to the code that makes its flags. RCX is free. */
static void make_flags(struct translator *tr, struct x86_asm *a)
{
        tr->thunk[TTHUNK_FLAGS] = (uint32_t)a->used;
        asm_load(a, 4, ASM_RCX, asm_gs(CPU_AT(jit.flags)));
        asm_rr(a, 4, 0xc1, 5, ASM_RCX); /* shr */
        asm_byte(a, TFLAGS_SITE);
        asm_rr(a, 8, 0x69, ASM_RCX, ASM_RCX); /* imul */
        asm_u32(a, sizeof(struct tsite));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.sites)));
        asm_load(a, 4, ASM_RCX, asm_at(ASM_RCX, offsetof(struct tsite, retry)));
        asm_rm(a, 8, 0x03, ASM_RCX, asm_gs(CPU_AT(jit.code)));
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
        if (a.full)
                return err_set(err, -ENOSPC, "the fixed code has more than %u bytes", THUNKS_BYTES);
        for (unsigned i = 0; i < TTHUNKS; i++)
                tr->thunk[i] += at;
        code_cache_commit(tr->cache, at, a.used);
        code_cache_keep(tr->cache);
        return 0;
}
