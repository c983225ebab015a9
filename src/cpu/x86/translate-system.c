/*
 * System instructions whose usual case is a few host instructions: SWAPGS, CLI, STI, STAC, CLAC of the kernel, CLD, STD, PAUSE.
 *
 * STAC and CLAC choose another set of the TLB, which the rest of the block then uses; the key that a direct branch is looked
 * up by follows cpu->tlb_mode. Without CR4.SMAP (seen only when it runs) CLAC is left to its handler, and the block ends there.
 *
 * STI is done here only when no request is up, so that nobody sees the missing shadow: whatever comes later clears jit.go, which is
 * looked at behind the next instruction at the earliest. It needs that instruction to be in the block.
 *
 * Source: Intel SDM vol. 2 "SWAPGS", "CLI", "STI", "STAC", "CLAC", "CLD", "STD"; vol. 3A §4.6 (access rights).
 */
#include "cpu/x86/translate.h"

#define AT(member) offsetof(struct x86_cpu, member)
enum { ALU_OR = 1, ALU_AND = 4, ALU_CMP = 7 };

/* op byte gs:[at], imm */
static void byte_op(struct translation *t, unsigned op, size_t at, uint8_t imm)
{
        asm_rm(t->a, 1, 0x80, op, asm_gs(at));
        asm_byte(t->a, imm);
}

static void lose_host_flags(struct translation *t)
{
        flags_keep(t);
        t->places &= ~(unsigned)TPLACE_HOST;
}

/* Sets or clears a bit of RFLAGS that does not live in the host's. */
static void rflags_bit(struct translation *t, uint64_t flag, bool set)
{
        unsigned bit = (unsigned)__builtin_ctzll(flag);
        uint8_t mask = (uint8_t)(1u << bit % 8);

        lose_host_flags(t);
        byte_op(t, set ? ALU_OR : ALU_AND, AT(s.rflags) + bit / 8, set ? mask : (uint8_t)~mask);
}

static void emit_swapgs(struct translation *t, struct tinsn *i)
{
        struct asm_mem gs = asm_gs(AT(s.seg[X86_GS].base)), kernel = asm_gs(AT(s.kernel_gs_base));

        asm_load(t->a, 8, TREG_SCRATCH, gs);
        asm_load(t->a, 8, TREG_ADDRESS, kernel);
        asm_store(t->a, 8, kernel, TREG_SCRATCH);
        asm_store(t->a, 8, gs, TREG_ADDRESS);
}

static void emit_direction(struct translation *t, struct tinsn *i)
{
        rflags_bit(t, X86_FLAG_DF, i->z.mnemonic == ZYDIS_MNEMONIC_STD);
}

static void emit_cli(struct translation *t, struct tinsn *i)
{
        rflags_bit(t, X86_FLAG_IF, false);
}

/* A site for the cases that the handler has to do; the caller has lost the host's flags. */
static struct asm_label *handler_stub(struct translation *t, struct tinsn *i, struct tsite **site)
{
        uint32_t number;

        *site = translate_site(t, TSITE_HANDLER, i, &number);
        return translate_stub(t, *site, number, TTHUNK_HANDLER);
}

static void emit_sti(struct translation *t, struct tinsn *i)
{
        struct asm_label *stub;
        struct tsite *site;

        lose_host_flags(t);
        stub = handler_stub(t, i, &site);
        if (i + 1 == t->insn + t->count) {
                asm_jmp(t->a, stub);
                return;
        }
        asm_rm(t->a, 4, 0x83, ALU_CMP, asm_gs(AT(requests)));
        asm_byte(t->a, 0);
        asm_jcc(t->a, ASM_NZ, stub);
        rflags_bit(t, X86_FLAG_IF, true);
}

static void use_set(struct translation *t, unsigned mode)
{
        asm_rm(t->a, 1, 0xc6, 0, asm_gs(AT(tlb_mode)));
        asm_byte(t->a, (uint8_t)mode);
        asm_load(t->a, 8, TREG_SCRATCH, asm_gs(AT(set) + mode * sizeof(struct tlb_set *)));
        asm_store(t->a, 8, asm_gs(AT(data)), TREG_SCRATCH);
        t->tlb_mode = mode;
}

static void emit_stac(struct translation *t, struct tinsn *i)
{
        rflags_bit(t, X86_FLAG_AC, true);
        if (t->tlb_mode == TLB_SUPERVISOR_SMAP)
                use_set(t, TLB_SUPERVISOR);
}

static void emit_clac(struct translation *t, struct tinsn *i)
{
        struct asm_label *stub;
        struct tsite *site;

        if (t->tlb_mode == TLB_SUPERVISOR_SMAP)
                return; /* AC is 0 */
        lose_host_flags(t);
        stub = handler_stub(t, i, &site);
        asm_rm(t->a, 1, 0xf6, 0, asm_gs(AT(s.cr4) + 2)); /* test */
        asm_byte(t->a, X86_CR4_SMAP >> 16);
        asm_jcc(t->a, ASM_Z, stub);
        rflags_bit(t, X86_FLAG_AC, false);
        use_set(t, TLB_SUPERVISOR_SMAP);
}

/* The host's, too; now and then the handler, which gives way to another thread. */
static void emit_pause(struct translation *t, struct tinsn *i)
{
        struct asm_label yield = { 0 }, done = { 0 };
        struct tsite *site;
        uint32_t number;

        asm_load(t->a, 4, TREG_SCRATCH, asm_gs(AT(pauses)));
        asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_SCRATCH, 1));
        asm_store(t->a, 4, asm_gs(AT(pauses)), TREG_SCRATCH);
        asm_rr(t->a, 4, ASM_0F | 0xb6, TREG_SCRATCH, TREG_SCRATCH); /* movzx ecx, cl */
        asm_jrcxz(t->a, &yield);
        asm_bytes(t->a, "\xf3\x90", 2);
        asm_jmp_short(t->a, &done);
        asm_bind(t->a, &yield);
        site = translate_site(t, TSITE_HANDLER, i, &number);
        translate_stub_here(t, number, TTHUNK_HANDLER);
        asm_bind(t->a, &done);
        site->next = translate_here(t); /* the flags are where they were, and wherever a handler leaves them */
}

temit_fn system_translate(struct tinsn *i, uint32_t key)
{
        bool kernel = !(key & MODE_USER);

        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_SWAPGS: return kernel ? emit_swapgs : NULL;
        case ZYDIS_MNEMONIC_CLD:
        case ZYDIS_MNEMONIC_STD: return emit_direction;
        case ZYDIS_MNEMONIC_CLI: return kernel ? emit_cli : NULL;
        case ZYDIS_MNEMONIC_STI:
                i->site = kernel;
                return kernel ? emit_sti : NULL;
        case ZYDIS_MNEMONIC_PAUSE:
                i->site = true;
                return emit_pause;
        case ZYDIS_MNEMONIC_STAC: return kernel ? emit_stac : NULL;
        case ZYDIS_MNEMONIC_CLAC:
                i->site = kernel;
                return kernel ? emit_clac : NULL;
        default: return NULL;
        }
}

static bool is_register(const ZydisDecodedOperand *operand, ZydisRegisterClass class)
{
        return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(operand->reg.value) == class;
}

fast_fn system_fast(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_MOV:
                if (is_register(&i->operand[1], ZYDIS_REGCLASS_SEGMENT))
                        return i->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? fast_segment_handler() : NULL;
                return is_register(&i->operand[0], ZYDIS_REGCLASS_CONTROL) ? fast_handler(&i->insn) : NULL;
        case ZYDIS_MNEMONIC_MOVSD: return i->z.meta.category == ZYDIS_CATEGORY_STRINGOP ? fast_handler(&i->insn) : NULL;
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC:
                return i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY && i->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER
                               ? fast_bit_handler(&i->insn, i->z.attributes & ZYDIS_ATTRIB_HAS_LOCK)
                               : NULL;
        default: return fast_handler(&i->insn);
        }
}
