/*
 * What is left: flag instructions (CLC … STD, LAHF, SAHF, SALC), decimal arithmetic (AAA, AAD, AAM, AAS, DAA, DAS), BOUND, fences
 * and the instructions that do nothing (NOP, the prefetches).
 *
 * Decimal arithmetic follows the algorithms of SDM vol. 2; flags it leaves undefined are as on the hardware where the
 * differential test can run it natively (32-bit code), else 0.
 */
#include "cpu/x86/integer.h"

HANDLER(nop)
{
        NEXT;
}

/* Loads and stores of the host are ordered as the guest's but for a store followed by a load. */
HANDLER(mfence)
{
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        NEXT;
}

/* MOVNTxx stores are ordinary ones, so there is nothing for SFENCE to wait for. */
HANDLER(sfence)
{
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        NEXT;
}

/* ---- flags ---- */

HANDLER(clc)
{
        flags_set_cf(cpu, 0);
        NEXT;
}

HANDLER(stc)
{
        flags_set_cf(cpu, 1);
        NEXT;
}

HANDLER(cmc)
{
        flags_set_cf(cpu, !flag_cf(cpu));
        NEXT;
}

HANDLER(cld)
{
        cpu->s.rflags &= ~X86_FLAG_DF;
        NEXT;
}

HANDLER(std)
{
        cpu->s.rflags |= X86_FLAG_DF;
        NEXT;
}

HANDLER(lahf)
{
        reg_set8(cpu, RAX_AT + 1, (uint8_t)(flags_status(cpu) | X86_FLAG_FIXED));
        NEXT;
}

HANDLER(sahf)
{
        const uint64_t low = X86_FLAG_SF | X86_FLAG_ZF | X86_FLAG_AF | X86_FLAG_PF | X86_FLAG_CF;

        flags_set_status(cpu, (reg_get8(cpu, RAX_AT + 1) & low) | (flag_of(cpu) ? X86_FLAG_OF : 0));
        NEXT;
}

HANDLER(salc)
{
        reg_set8(cpu, RAX_AT, flag_cf(cpu) ? 0xff : 0);
        NEXT;
}

/* ---- decimal ---- */

static void adjust_decimal(struct x86_cpu *cpu, bool add)
{
        uint8_t al = reg_get8(cpu, RAX_AT), before = al;
        bool cf = flag_cf(cpu), af = flag_af(cpu), carry = cf;

        cf = false;
        if ((al & 15) > 9 || af) {
                cf = carry || (add ? al > UINT8_MAX - 6 : al < 6);
                al = (uint8_t)(add ? al + 6 : al - 6);
                af = true;
        }
        if (before > 0x99 || carry) {
                al = (uint8_t)(add ? al + 0x60 : al - 0x60);
                cf = true;
        } else if (add) {
                cf = false;
        }
        reg_set8(cpu, RAX_AT, al);
        flags_given8(cpu, al, cf, 0, af);
}

HANDLER(daa)
{
        adjust_decimal(cpu, true);
        NEXT;
}

HANDLER(das)
{
        adjust_decimal(cpu, false);
        NEXT;
}

static void adjust_ascii(struct x86_cpu *cpu, bool add)
{
        uint16_t ax = reg_get16(cpu, RAX_AT);
        bool adjust = (ax & 15) > 9 || flag_af(cpu);

        if (adjust)
                ax = (uint16_t)(add ? ax + 0x106 : ax - 0x106);
        reg_set16(cpu, RAX_AT, ax & 0xff0f);
        flags_given8(cpu, ax & 15, adjust, 0, adjust);
}

HANDLER(aaa)
{
        adjust_ascii(cpu, true);
        NEXT;
}

HANDLER(aas)
{
        adjust_ascii(cpu, false);
        NEXT;
}

HANDLER(aam)
{
        uint8_t al = reg_get8(cpu, RAX_AT), base = (uint8_t)i->imm;

        if (base == 0)
                x86_raise(cpu, X86_DE, 0);
        reg_set16(cpu, RAX_AT, (uint16_t)((al / base) << 8 | al % base));
        flags_logic8(cpu, al % base);
        NEXT;
}

/* CF, OF and AF are undefined; processors leave those of the addition. */
HANDLER(aad)
{
        uint8_t al = reg_get8(cpu, RAX_AT), tens = (uint8_t)(reg_get8(cpu, RAX_AT + 1) * i->imm), sum = (uint8_t)(al + tens);

        reg_set16(cpu, RAX_AT, sum);
        flags_sum8(cpu, al, tens, sum);
        NEXT;
}

/* ---- BOUND ---- */

static int64_t bound_at(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        return size_bytes == 2 ? (int16_t)mmu_read16(cpu, linear) : (int32_t)mmu_read32(cpu, linear);
}

/* The upper bound is not looked at when the lower one is enough to raise #BR. */
HANDLER(bound)
{
        unsigned size = i->opsize;
        uint64_t linear = x86_linear(cpu, i->seg, insn_offset(cpu, i), 2 * size, false);
        int64_t index = size == 2 ? (int16_t)reg_get16(cpu, i->reg[0]) : (int32_t)reg_get32(cpu, i->reg[0]);

        if (index < bound_at(cpu, linear, size) || index > bound_at(cpu, linear + size, size))
                x86_raise(cpu, X86_BR, 0);
        NEXT;
}

insn_fn misc_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_NOP:
        case ZYDIS_MNEMONIC_PREFETCH:
        case ZYDIS_MNEMONIC_PREFETCHW:
        case ZYDIS_MNEMONIC_PREFETCHWT1:
        case ZYDIS_MNEMONIC_PREFETCHNTA:
        case ZYDIS_MNEMONIC_PREFETCHT0:
        case ZYDIS_MNEMONIC_PREFETCHT1:
        case ZYDIS_MNEMONIC_PREFETCHT2:
        case ZYDIS_MNEMONIC_LFENCE: return nop;
        case ZYDIS_MNEMONIC_MFENCE: return mfence;
        case ZYDIS_MNEMONIC_SFENCE: return sfence;
        case ZYDIS_MNEMONIC_CLC: return clc;
        case ZYDIS_MNEMONIC_STC: return stc;
        case ZYDIS_MNEMONIC_CMC: return cmc;
        case ZYDIS_MNEMONIC_CLD: return cld;
        case ZYDIS_MNEMONIC_STD: return std;
        case ZYDIS_MNEMONIC_LAHF: return lahf;
        case ZYDIS_MNEMONIC_SAHF: return sahf;
        case ZYDIS_MNEMONIC_SALC: return salc;
        case ZYDIS_MNEMONIC_DAA: return daa;
        case ZYDIS_MNEMONIC_DAS: return das;
        case ZYDIS_MNEMONIC_AAA: return aaa;
        case ZYDIS_MNEMONIC_AAS: return aas;
        case ZYDIS_MNEMONIC_AAM: return aam;
        case ZYDIS_MNEMONIC_AAD: return aad;
        case ZYDIS_MNEMONIC_BOUND: return bound;
        default: return NULL;
        }
}
