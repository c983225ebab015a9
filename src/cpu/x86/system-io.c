/*
 * Port input and output: IN, OUT, INS, OUTS with REP.
 *
 * A REP runs at most IO_BURST elements and then goes back to the run loop with RIP at itself, so that interrupts come in
 * between as on a processor. Registers are changed after each element, so a fault in the middle leaves a state to go on from.
 *
 * Source: Intel SDM vol. 1 chapter 19 (I/O), §19.5.2 (I/O permission bit map); vol. 2 "IN", "OUT", "INS", "OUTS".
 */
#include "cpu/x86/system.h"

#define IO_BURST 256
#define TSS_IO_MAP_AT 0x66

/* IOPL, or the TSS's bit map: every port of the access needs a 0 bit. */
static void check_port(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
        const struct x86_segment *tr = &cpu->s.tr;
        uint16_t map, bits;
        uint64_t at;

        if (!(cpu->s.cr0 & X86_CR0_PE) || (!x86_v86(cpu) && cpu->cpl <= x86_iopl(cpu)))
                return;
        if (!(tr->access & 8) || tr->limit < TSS_IO_MAP_AT + 1)
                x86_gp0(cpu);
        mmu_system_read(cpu, tr->base + TSS_IO_MAP_AT, &map, 2);
        at = (uint64_t)map + port / 8;
        if (at + 1 > tr->limit) /* two bytes are always read */
                x86_gp0(cpu);
        mmu_system_read(cpu, tr->base + at, &bits, 2);
        if (bits >> (port % 8) & ((1u << size_bytes) - 1))
                x86_gp0(cpu);
}

static uint32_t port_read(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
        uint32_t value;

        complex_leave(cpu);
        value = cpu->platform->pio_read(cpu->ctx, port, size_bytes);
        complex_enter(cpu);
        x86_debug_io(cpu, port, size_bytes);
        return value;
}

static void port_write(struct x86_cpu *cpu, uint16_t port, uint32_t value, unsigned size_bytes)
{
        complex_leave(cpu);
        cpu->platform->pio_write(cpu->ctx, port, value, size_bytes);
        complex_enter(cpu);
        x86_debug_io(cpu, port, size_bytes);
}

static uint32_t cut(uint32_t value, unsigned size_bytes)
{
        return size_bytes == 4 ? value : value & ((1u << size_bytes * 8) - 1);
}

/* imm2: bytes; imm: the port, or aux set when it is in DX. */
static uint16_t port_of(const struct x86_cpu *cpu, const struct insn *i)
{
        return i->aux ? (uint16_t)cpu->s.gpr[X86_RDX] : (uint8_t)i->imm;
}

static const struct insn *op_in(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t port = port_of(cpu, i);

        check_port(cpu, port, i->imm2);
        system_set_reg(cpu, X86_RAX * 8, cut(port_read(cpu, port, i->imm2), i->imm2), i->imm2);
        return system_leave(cpu, i);
}

static const struct insn *op_out(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t port = port_of(cpu, i);

        check_port(cpu, port, i->imm2);
        port_write(cpu, port, cut((uint32_t)cpu->s.gpr[X86_RAX], i->imm2), i->imm2);
        return system_leave(cpu, i);
}

/* ---- strings ---- */

static uint64_t address_mask(const struct insn *i)
{
        return i->asize == 8 ? UINT64_MAX : i->asize == 4 ? UINT32_MAX : UINT16_MAX;
}

static void put_masked(uint64_t *reg, uint64_t value, uint64_t mask)
{
        /* A 32-bit result clears the upper half, a 16-bit one leaves the rest. */
        *reg = mask == UINT16_MAX ? (*reg & ~mask) | (value & mask) : value & mask;
}

static void one_in(struct x86_cpu *cpu, const struct insn *i, uint16_t port, uint64_t mask)
{
        uint64_t linear = x86_linear(cpu, X86_ES, cpu->s.gpr[X86_RDI] & mask, i->imm2, true);
        uint32_t value;

        mmu_probe_write(cpu, linear, i->imm2); /* the port must not be read when the store then faults */
        value = cut(port_read(cpu, port, i->imm2), i->imm2);
        if (i->imm2 == 1)
                mmu_write8(cpu, linear, (uint8_t)value);
        else if (i->imm2 == 2)
                mmu_write16(cpu, linear, (uint16_t)value);
        else
                mmu_write32(cpu, linear, value);
}

static void one_out(struct x86_cpu *cpu, const struct insn *i, uint16_t port, uint64_t mask)
{
        uint64_t linear = x86_linear(cpu, i->seg, cpu->s.gpr[X86_RSI] & mask, i->imm2, false);
        uint32_t value;

        if (i->imm2 == 1)
                value = mmu_read8(cpu, linear);
        else if (i->imm2 == 2)
                value = mmu_read16(cpu, linear);
        else
                value = mmu_read32(cpu, linear);
        port_write(cpu, port, value, i->imm2);
}

static const struct insn *op_string(struct x86_cpu *cpu, const struct insn *i)
{
        bool in = i->op == ZYDIS_MNEMONIC_INSB || i->op == ZYDIS_MNEMONIC_INSW || i->op == ZYDIS_MNEMONIC_INSD;
        bool rep = i->flags & (INSN_REP | INSN_REPNE);
        uint64_t mask = address_mask(i), *index = &cpu->s.gpr[in ? X86_RDI : X86_RSI];
        uint64_t step = cpu->s.rflags & X86_FLAG_DF ? (uint64_t)-(int64_t)i->imm2 : i->imm2;
        uint16_t port = (uint16_t)cpu->s.gpr[X86_RDX];

        check_port(cpu, port, i->imm2); /* also for no element */
        if (rep && !(cpu->s.gpr[X86_RCX] & mask))
                return system_leave(cpu, i);
        for (unsigned n = 0; n < IO_BURST; n++) {
                if (in)
                        one_in(cpu, i, port, mask);
                else
                        one_out(cpu, i, port, mask);
                put_masked(index, *index + step, mask);
                if (!rep)
                        return system_leave(cpu, i);
                put_masked(&cpu->s.gpr[X86_RCX], cpu->s.gpr[X86_RCX] - 1, mask);
                if (!(cpu->s.gpr[X86_RCX] & mask))
                        return system_leave(cpu, i);
                if (cpu->mode_key & MODE_STEP)
                        break;
        }
        cpu->s.rip = insn_rip(cpu, i->start);
        return NULL;
}

insn_fn system_io_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        insn_fn fn;
        unsigned data;

        switch (insn->op) {
        case ZYDIS_MNEMONIC_IN:
        case ZYDIS_MNEMONIC_OUT:
                data = insn->op == ZYDIS_MNEMONIC_IN ? 0 : 1;
                insn->imm2 = (uint8_t)(d->operand[data].size / 8);
                insn->aux = d->operand[!data].type == ZYDIS_OPERAND_TYPE_REGISTER ? insn : NULL;
                fn = data ? op_out : op_in;
                break;
        case ZYDIS_MNEMONIC_INSB:
        case ZYDIS_MNEMONIC_OUTSB:
                insn->imm2 = 1;
                fn = op_string;
                break;
        case ZYDIS_MNEMONIC_INSW:
        case ZYDIS_MNEMONIC_OUTSW:
                insn->imm2 = 2;
                fn = op_string;
                break;
        case ZYDIS_MNEMONIC_INSD:
        case ZYDIS_MNEMONIC_OUTSD:
                insn->imm2 = 4;
                fn = op_string;
                break;
        default:
                return NULL;
        }
        insn->flags |= INSN_ENDS_BLOCK;
        return fn;
}
