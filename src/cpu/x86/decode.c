/*
 * The decoder: Zydis does the bytes, this file turns its answer into a struct insn and asks the binders.
 *
 * Zydis is told to decode as a processor with our CPUID would: where an extension reuses an encoding that older processors take
 * as a NOP (CET, MPX, CLDEMOTE) or as another instruction (LZCNT is BSR, TZCNT is BSF), its mode follows the model. Everything
 * else that the model does not have is told from its instruction set and becomes #UD.
 *
 * Faults of decoding: more than 15 bytes are #GP(0), everything else that is no instruction (also LOCK where it is not allowed,
 * SDM vol. 2 "LOCK") is #UD. They are raised when the instruction is executed, not when it is decoded: the instructions before
 * it in its block come first.
 */
#include "cpu/x86/decode.h"

#include <assert.h>
#include <errno.h>

#include "cpu/x86/cpuid.h"

/* Instruction sets that every model has, or that have no CPUID bit. */
static const uint8_t sets_always[] = {
        ZYDIS_ISA_SET_I86, ZYDIS_ISA_SET_I186, ZYDIS_ISA_SET_I286PROTECTED, ZYDIS_ISA_SET_I286REAL, ZYDIS_ISA_SET_I386,
        ZYDIS_ISA_SET_I486, ZYDIS_ISA_SET_I486REAL, ZYDIS_ISA_SET_PENTIUMREAL, ZYDIS_ISA_SET_PPRO, ZYDIS_ISA_SET_FAT_NOP,
        ZYDIS_ISA_SET_PAUSE, ZYDIS_ISA_SET_PREFETCH_NOP, ZYDIS_ISA_SET_PREFETCHWT1, ZYDIS_ISA_SET_RDPMC, ZYDIS_ISA_SET_AMD,
        /* Only VMCALL and VMMCALL of these are known to a binder: the paravirtual calls. */
        ZYDIS_ISA_SET_VTX, ZYDIS_ISA_SET_SVM,
        /* SYSCALL is known to its binder by CPUID. */
        ZYDIS_ISA_SET_LONGMODE,
};

static const struct {
        uint8_t set;
        enum x86_feature feature;
} sets_by_feature[] = {
        { ZYDIS_ISA_SET_X87, X86_F_FPU },
        { ZYDIS_ISA_SET_CMOV, X86_F_CMOV },
        { ZYDIS_ISA_SET_FCMOV, X86_F_CMOV },
        { ZYDIS_ISA_SET_PENTIUMMMX, X86_F_MMX },
        { ZYDIS_ISA_SET_FXSAVE, X86_F_FXSR },
        { ZYDIS_ISA_SET_FXSAVE64, X86_F_FXSR },
        { ZYDIS_ISA_SET_SSE, X86_F_SSE },
        { ZYDIS_ISA_SET_SSEMXCSR, X86_F_SSE },
        { ZYDIS_ISA_SET_SSE_PREFETCH, X86_F_SSE },
        { ZYDIS_ISA_SET_SSE2, X86_F_SSE2 },
        { ZYDIS_ISA_SET_SSE2MMX, X86_F_SSE2 },
        { ZYDIS_ISA_SET_SSE3, X86_F_SSE3 },
        { ZYDIS_ISA_SET_SSE3X87, X86_F_SSE3 },
        { ZYDIS_ISA_SET_SSSE3, X86_F_SSSE3 },
        { ZYDIS_ISA_SET_SSSE3MMX, X86_F_SSSE3 },
        { ZYDIS_ISA_SET_SSE4, X86_F_SSE41 },
        { ZYDIS_ISA_SET_SSE42, X86_F_SSE42 },
        { ZYDIS_ISA_SET_POPCNT, X86_F_POPCNT },
        { ZYDIS_ISA_SET_AES, X86_F_AES },
        { ZYDIS_ISA_SET_PCLMULQDQ, X86_F_PCLMUL },
        { ZYDIS_ISA_SET_AVX, X86_F_AVX },
        { ZYDIS_ISA_SET_AVXAES, X86_F_AVX },
        { ZYDIS_ISA_SET_AVX2, X86_F_AVX2 },
        { ZYDIS_ISA_SET_AVX2GATHER, X86_F_AVX2 },
        { ZYDIS_ISA_SET_FMA, X86_F_FMA },
        { ZYDIS_ISA_SET_F16C, X86_F_F16C },
        { ZYDIS_ISA_SET_BMI1, X86_F_BMI1 },
        { ZYDIS_ISA_SET_BMI2, X86_F_BMI2 },
        { ZYDIS_ISA_SET_LZCNT, X86_F_LZCNT },
        { ZYDIS_ISA_SET_MOVBE, X86_F_MOVBE },
        { ZYDIS_ISA_SET_ADOX_ADCX, X86_F_ADX },
        { ZYDIS_ISA_SET_CMPXCHG16B, X86_F_CX16 },
        { ZYDIS_ISA_SET_LAHF, X86_F_LAHF },
        { ZYDIS_ISA_SET_CLFSH, X86_F_CLFSH },
        { ZYDIS_ISA_SET_CLFLUSHOPT, X86_F_CLFLUSHOPT },
        { ZYDIS_ISA_SET_CLWB, X86_F_CLWB },
        { ZYDIS_ISA_SET_RDTSCP, X86_F_RDTSCP },
        { ZYDIS_ISA_SET_RDPID, X86_F_RDPID },
        { ZYDIS_ISA_SET_RDRAND, X86_F_RDRAND },
        { ZYDIS_ISA_SET_RDSEED, X86_F_RDSEED },
        { ZYDIS_ISA_SET_RDWRFSGS, X86_F_FSGSBASE },
        { ZYDIS_ISA_SET_INVPCID, X86_F_INVPCID },
        { ZYDIS_ISA_SET_SMAP, X86_F_SMAP },
        { ZYDIS_ISA_SET_PKU, X86_F_PKU },
        { ZYDIS_ISA_SET_XSAVE, X86_F_XSAVE },
        { ZYDIS_ISA_SET_XSAVEC, X86_F_XSAVEC },
        { ZYDIS_ISA_SET_XSAVEOPT, X86_F_XSAVEOPT },
};

enum { DECODER_LONG64, DECODER_COMPAT32, DECODER_COMPAT16, DECODER_LEGACY32, DECODER_LEGACY16, DECODER_REAL16, DECODERS };

static const struct {
        ZydisMachineMode mode;
        ZydisStackWidth stack;
} decoder_modes[DECODERS] = {
        [DECODER_LONG64] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
        [DECODER_COMPAT32] = { ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32 },
        [DECODER_COMPAT16] = { ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16 },
        [DECODER_LEGACY32] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
        [DECODER_LEGACY16] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
        [DECODER_REAL16] = { ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16 },
};

void decode_init(struct x86_cpu *cpu, struct block_cache *cache)
{
        for (size_t i = 0; i < ARRAY_SIZE(sets_always); i++)
                cache->isa_set[sets_always[i]] = true;
        for (size_t i = 0; i < ARRAY_SIZE(sets_by_feature); i++)
                cache->isa_set[sets_by_feature[i].set] = x86_has(cpu, sets_by_feature[i].feature);

        static_assert(DECODERS <= ARRAY_SIZE(cache->decoder), "a decoder for each mode");
        for (unsigned i = 0; i < DECODERS; i++) {
                ZydisDecoder *decoder = &cache->decoder[i];

                ZydisDecoderInit(decoder, decoder_modes[i].mode, decoder_modes[i].stack);
                ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, false);
                ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, false);
                ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, false);
                ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_LZCNT, x86_has(cpu, X86_F_LZCNT));
                ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_TZCNT, x86_has(cpu, X86_F_BMI1));
        }
}

static const ZydisDecoder *decoder_for(const struct x86_cpu *cpu)
{
        const ZydisDecoder *decoder = cpu->blocks->decoder;
        uint32_t mode = cpu->mode_key;

        if (mode & MODE_64)
                return &decoder[DECODER_LONG64];
        if (mode & MODE_LONG && mode & MODE_PROTECTED)
                return &decoder[mode & MODE_CODE32 ? DECODER_COMPAT32 : DECODER_COMPAT16];
        if (mode & MODE_CODE32)
                return &decoder[DECODER_LEGACY32];
        return &decoder[mode & MODE_PROTECTED ? DECODER_LEGACY16 : DECODER_REAL16];
}

/* ---- instructions that only raise ---- */

static const struct insn *raise_ud(struct x86_cpu *cpu, const struct insn *i)
{
        x86_ud(cpu);
}

static const struct insn *raise_gp(struct x86_cpu *cpu, const struct insn *i)
{
        x86_gp0(cpu);
}

static const struct insn *run_off_end(struct x86_cpu *cpu, const struct insn *i)
{
        return block_go_on(cpu, i);
}

static void insn_clear(struct insn *insn, insn_fn fn, unsigned start)
{
        *insn = (struct insn){
                .fn = fn, .start = (uint16_t)start, .end = (uint16_t)start, .base = GPR_ZERO * 8, .index = GPR_ZERO * 8,
                .memory_operand = 0xff, .flags = INSN_ENDS_BLOCK,
        };
}

void decode_end_mark(unsigned at, struct insn *insn)
{
        insn_clear(insn, run_off_end, at);
}

/* ---- operands ---- */

/* General registers as byte offsets into the register file, others as their number. */
static uint8_t register_field(ZydisRegister reg)
{
        if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
                return (uint8_t)((reg - ZYDIS_REGISTER_RAX) * 8);
        if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
                return (uint8_t)((reg - ZYDIS_REGISTER_EAX) * 8);
        if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
                return (uint8_t)((reg - ZYDIS_REGISTER_AX) * 8);
        if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
                return (uint8_t)((reg - ZYDIS_REGISTER_SPL + 4) * 8);
        if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
                return (uint8_t)((reg - ZYDIS_REGISTER_AH) * 8 + 1);
        if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
                return (uint8_t)((reg - ZYDIS_REGISTER_AL) * 8);
        return (uint8_t)MAX(ZydisRegisterGetId(reg), (ZyanI8)0);
}

static bool is_address_register(ZydisRegister reg)
{
        return reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15;
}

static void take_memory(struct insn *insn, const ZydisDecodedOperandMem *mem)
{
        insn->disp = mem->disp.value;
        insn->base = GPR_ZERO * 8;
        insn->index = GPR_ZERO * 8;
        insn->shift = 0;
        if (mem->base == ZYDIS_REGISTER_RIP || mem->base == ZYDIS_REGISTER_EIP) {
                insn->base = GPR_BLOCK * 8;
                insn->disp += insn->end;
        } else if (is_address_register(mem->base)) {
                insn->base = register_field(mem->base);
        }
        if (is_address_register(mem->index)) {
                insn->index = register_field(mem->index);
                insn->shift = (uint8_t)(mem->scale ? __builtin_ctz(mem->scale) : 0);
        }
        if (mem->segment >= ZYDIS_REGISTER_ES && mem->segment <= ZYDIS_REGISTER_GS)
                insn->seg = (uint8_t)(mem->segment - ZYDIS_REGISTER_ES);
        else
                insn->seg = X86_DS;
}

/* The source of MOVS and its like, XLAT's table, MASKMOV's destination: memory that is named by no operand. */
static void take_hidden_memory(struct insn *insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
        for (unsigned n = z->operand_count_visible; n < z->operand_count; n++) {
                const ZydisDecodedOperandMem *mem = &operand[n].mem;
                uint8_t base;

                if (operand[n].type != ZYDIS_OPERAND_TYPE_MEMORY || !is_address_register(mem->base))
                        continue;
                base = register_field(mem->base) / 8;
                if (base == X86_RSP || base == X86_RBP)
                        continue;
                take_memory(insn, mem);
                if (base == X86_RSI)
                        return;
        }
}

/*
 * SIB base 5 with mod 0 is a displacement alone, whatever REX.B says (SDM vol. 2A table 2-5); Zydis 4.0 makes R13D
 * without displacement of it with 32-bit addresses.
 */
static bool no_base(const ZydisDecodedInstruction *z)
{
        return z->attributes & ZYDIS_ATTRIB_HAS_SIB && z->raw.modrm.mod == 0 && z->raw.modrm.rm == 4 && z->raw.sib.base == 5;
}

static void take_operands(struct insn *insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
        unsigned immediates = 0;

        for (unsigned n = 0; n < z->operand_count_visible; n++) {
                const ZydisDecodedOperand *o = &operand[n];

                switch (o->type) {
                case ZYDIS_OPERAND_TYPE_REGISTER:
                        if (n < ARRAY_SIZE(insn->reg))
                                insn->reg[n] = register_field(o->reg.value);
                        break;
                case ZYDIS_OPERAND_TYPE_MEMORY:
                        insn->flags |= INSN_MEMORY;
                        insn->memory_operand = (uint8_t)n;
                        insn->memory_size = o->size / 8 <= UINT8_MAX ? (uint8_t)(o->size / 8) : 0;
                        take_memory(insn, &o->mem);
                        if (no_base(z)) {
                                insn->base = GPR_ZERO * 8;
                                insn->disp = z->raw.disp.value;
                        }
                        break;
                case ZYDIS_OPERAND_TYPE_IMMEDIATE:
                        if (immediates++)
                                insn->imm2 = (uint8_t)o->imm.value.u;
                        else
                                insn->imm = o->imm.is_relative ? o->imm.value.u + insn->end : o->imm.value.u;
                        break;
                default:
                        break;
                }
        }
        if (!(insn->flags & INSN_MEMORY))
                take_hidden_memory(insn, z, operand);
}

static uint16_t flags_from(const ZydisDecodedInstruction *z)
{
        uint16_t flags = 0;

        /* The last of F2 and F3 counts; a mandatory prefix shows here as well. */
        for (unsigned n = 0; n < z->raw.prefix_count; n++) {
                if (z->raw.prefixes[n].value == 0xf3)
                        flags = INSN_REP;
                else if (z->raw.prefixes[n].value == 0xf2)
                        flags = INSN_REPNE;
        }
        if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
                flags |= INSN_LOCK;
        if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
                flags |= INSN_VEX;
                if (z->raw.vex.L)
                        flags |= INSN_VEX_L;
        }
        if (z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
                flags |= INSN_MODE64;
        return flags;
}

static insn_fn bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        insn_fn fn = NULL;

        if (cpu->blocks->isa_set[d->z->meta.isa_set]) {
                fn = integer_bind(cpu, insn, d);
                if (!fn)
                        fn = system_bind(cpu, insn, d);
                if (!fn)
                        fn = x87_bind(cpu, insn, d);
                if (!fn)
                        fn = simd_bind(cpu, insn, d);
        }
        if (!fn) {
                insn->flags |= INSN_ENDS_BLOCK;
                fn = raise_ud;
        }
        return fn;
}

int decode_insn(struct x86_cpu *cpu, const uint8_t *bytes, size_t size_bytes, unsigned start, struct insn *insn)
{
        ZydisDecodedInstruction z;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];

        return decode_insn_full(cpu, bytes, size_bytes, start, insn, &z, operand);
}

int decode_insn_full(struct x86_cpu *cpu, const uint8_t *bytes, size_t size_bytes, unsigned start, struct insn *insn,
                     ZydisDecodedInstruction *z, ZydisDecodedOperand *operand)
{
        ZyanStatus status;

        size_bytes = MIN(size_bytes, (size_t)INSN_LENGTH_MAX);
        status = ZydisDecoderDecodeFull(decoder_for(cpu), bytes, size_bytes, z, operand);
        if (ZYAN_FAILED(status)) {
                memset(z, 0, sizeof(*z));
                if (status == ZYDIS_STATUS_NO_MORE_DATA && size_bytes < INSN_LENGTH_MAX)
                        return -EAGAIN;
                insn_clear(insn,
                           status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? raise_gp
                                                                                                              : raise_ud,
                           start);
                /* All bytes that were looked at belong to it: when one of them changes it may be an instruction. */
                insn->end = (uint16_t)(start + size_bytes);
                return 0;
        }

        *insn = (struct insn){
                .base = GPR_ZERO * 8, .index = GPR_ZERO * 8, .seg = X86_DS, .memory_operand = 0xff,
                .opsize = z->operand_width / 8, .asize = z->address_width / 8, .stack_size = z->operand_width / 8,
                .length = z->length, .start = (uint16_t)start, .end = (uint16_t)(start + z->length), .op = (uint16_t)z->mnemonic,
                .flags = flags_from(z),
        };
        take_operands(insn, z, operand);
        insn->fn = bind(cpu, insn, &(struct decoded){ .z = z, .operand = operand, .bytes = bytes });
        return 0;
}
