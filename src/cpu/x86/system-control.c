/*
 * Control and debug registers, descriptor-table registers, TLB invalidation, MSRs, XCR0.
 *
 * Source: Intel SDM vol. 3A §2.5 (CR0, CR4 and their checks), §4.10.4 (invalidation); vol. 2 "MOV—Move to/from Control
 * Registers", "LMSW", "LGDT/LIDT", "INVPCID", "WRMSR", "XSETBV".
 */
#include "cpu/x86/system.h"

#include "cpu/x86/cpuid.h"

/* ---- CR0, CR3, CR4 ---- */

#define CR0_KNOWN (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | \
                   X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)

void x86_set_cr0(struct x86_cpu *cpu, uint64_t value)
{
        uint64_t old = cpu->s.cr0, changed, efer = cpu->s.efer;

        if (value >> 32 || (value & X86_CR0_PG && !(value & X86_CR0_PE)) || (value & X86_CR0_NW && !(value & X86_CR0_CD)))
                x86_gp0(cpu);
        value = (value & CR0_KNOWN) | X86_CR0_ET;
        changed = old ^ value;
        if (changed & X86_CR0_PG && value & X86_CR0_PG && efer & X86_EFER_LME) {
                if (!(cpu->s.cr4 & X86_CR4_PAE) || cpu->s.seg[X86_CS].access & X86_ACCESS_L)
                        x86_gp0(cpu);
                efer |= X86_EFER_LMA;
        }
        if (changed & X86_CR0_PG && !(value & X86_CR0_PG)) {
                if (cpu->mode64 || cpu->s.cr4 & X86_CR4_PCIDE)
                        x86_gp0(cpu);
                efer &= ~X86_EFER_LMA;
        }
        if (changed & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW) && !mmu_load_pdpte(cpu, value, cpu->s.cr3, cpu->s.cr4))
                x86_gp0(cpu);
        cpu->s.cr0 = value;
        cpu->s.efer = efer;
        if (changed & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE))
                mmu_flush(cpu, true);
        x86_mode_changed(cpu);
}

#define CR3_NOFLUSH (1ull << 63)

void x86_set_cr3(struct x86_cpu *cpu, uint64_t value)
{
        bool noflush = value & CR3_NOFLUSH && cpu->s.cr4 & X86_CR4_PCIDE;

        if (noflush)
                value &= ~CR3_NOFLUSH;
        if (x86_long(cpu) && value >> X86_PHYSICAL_BITS)
                x86_gp0(cpu);
        if (!mmu_load_pdpte(cpu, cpu->s.cr0, value, cpu->s.cr4))
                x86_gp0(cpu);
        cpu->s.cr3 = value;
        mmu_space_changed(cpu, noflush);
}

static uint64_t cr4_possible(const struct x86_cpu *cpu)
{
        static const struct {
                uint64_t bit;
                enum x86_feature feature;
        } by_feature[] = {
                { X86_CR4_OSFXSR, X86_F_FXSR },     { X86_CR4_OSXMMEXCPT, X86_F_SSE },  { X86_CR4_UMIP, X86_F_UMIP },
                { X86_CR4_FSGSBASE, X86_F_FSGSBASE }, { X86_CR4_PCIDE, X86_F_PCID },    { X86_CR4_OSXSAVE, X86_F_XSAVE },
                { X86_CR4_SMEP, X86_F_SMEP },       { X86_CR4_SMAP, X86_F_SMAP },
        };
        uint64_t bits = X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE;

        for (unsigned i = 0; i < ARRAY_SIZE(by_feature); i++)
                if (x86_has(cpu, by_feature[i].feature))
                        bits |= by_feature[i].bit;
        return bits;
}

void x86_set_cr4(struct x86_cpu *cpu, uint64_t value)
{
        uint64_t changed = cpu->s.cr4 ^ value;

        if (value & ~cr4_possible(cpu) || (x86_long(cpu) && !(value & X86_CR4_PAE)))
                x86_gp0(cpu);
        if (changed & value & X86_CR4_PCIDE && (!x86_long(cpu) || cpu->s.cr3 & 0xfff))
                x86_gp0(cpu);
        if (changed & (X86_CR4_PAE | X86_CR4_PSE | X86_CR4_PGE | X86_CR4_SMEP) && !mmu_load_pdpte(cpu, cpu->s.cr0, cpu->s.cr3, value))
                x86_gp0(cpu);
        cpu->s.cr4 = value;
        if (changed & (X86_CR4_PAE | X86_CR4_PSE | X86_CR4_PGE | X86_CR4_PCIDE | X86_CR4_SMEP | X86_CR4_SMAP))
                mmu_flush(cpu, true);
        x86_mode_changed(cpu);
}

static unsigned control_width(const struct x86_cpu *cpu)
{
        return cpu->mode64 ? 8 : 4;
}

static const struct insn *op_mov_from_cr(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value = 0;

        system_need_cpl0(cpu);
        switch (i->imm2) {
        case 0:
                value = cpu->s.cr0;
                break;
        case 2:
                value = cpu->s.cr2;
                break;
        case 3:
                value = cpu->s.cr3;
                break;
        case 4:
                value = cpu->s.cr4;
                break;
        case 8:
                value = cpu->platform->tpr_read(cpu->ctx);
                break;
        default:
                x86_ud(cpu);
        }
        system_set_reg(cpu, i->reg[0], value, control_width(cpu));
        return i + 1;
}

static const struct insn *op_mov_to_cr(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value = system_reg(cpu, i->reg[1], control_width(cpu));

        system_need_cpl0(cpu);
        /* rip first: leaving 64-bit mode changes how it is cut, and faults go back to the start anyway. */
        cpu->s.rip = insn_rip(cpu, i->end);
        switch (i->imm2) {
        case 0:
                x86_set_cr0(cpu, value);
                break;
        case 2:
                cpu->s.cr2 = value;
                break;
        case 3:
                x86_set_cr3(cpu, value);
                break;
        case 4:
                x86_set_cr4(cpu, value);
                break;
        case 8:
                if (value > 15)
                        x86_gp0(cpu);
                cpu->platform->tpr_write(cpu->ctx, (uint8_t)value);
                break;
        default:
                x86_ud(cpu);
        }
        return NULL;
}

static const struct insn *op_lmsw(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value, low = X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS;

        system_need_cpl0(cpu);
        value = system_word(cpu, i, 0);
        /* PE can be set this way, not cleared. */
        cpu->s.rip = insn_rip(cpu, i->end);
        x86_set_cr0(cpu, (cpu->s.cr0 & ~(low & ~X86_CR0_PE)) | (value & low));
        return NULL;
}

static void need_umip(struct x86_cpu *cpu)
{
        if (cpu->s.cr4 & X86_CR4_UMIP && cpu->cpl != 0)
                x86_gp0(cpu);
}

/* SMSW, SLDT, STR: a word to memory, or the whole register. */
static const struct insn *store_word(struct x86_cpu *cpu, const struct insn *i, uint64_t value)
{
        if (i->memory_operand == 0)
                mmu_write16(cpu, insn_linear(cpu, i, 2, true), (uint16_t)value);
        else
                system_set_reg(cpu, i->reg[0], value, i->opsize);
        return i + 1;
}

static const struct insn *op_smsw(struct x86_cpu *cpu, const struct insn *i)
{
        need_umip(cpu);
        return store_word(cpu, i, cpu->s.cr0);
}

static const struct insn *op_clts(struct x86_cpu *cpu, const struct insn *i)
{
        system_need_cpl0(cpu);
        cpu->s.cr0 &= ~X86_CR0_TS;
        x86_mode_changed(cpu);
        return system_leave(cpu, i);
}

/* ---- debug registers ---- */

static unsigned debug_number(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned n = i->imm2;

        if (n > 7 || ((n == 4 || n == 5) && cpu->s.cr4 & X86_CR4_DE))
                x86_ud(cpu);
        system_need_cpl0(cpu);
        if (cpu->s.dr[7] & 1u << 13) { /* GD: general detect */
                cpu->s.dr[6] |= 1u << 13;
                cpu->s.dr[7] &= ~(1ull << 13);
                x86_raise(cpu, X86_DB, 0);
        }
        return n == 4 || n == 5 ? n + 2 : n;
}

static const struct insn *op_mov_from_dr(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned n = debug_number(cpu, i);

        system_set_reg(cpu, i->reg[0], cpu->s.dr[n], control_width(cpu));
        return i + 1;
}

static const struct insn *op_mov_to_dr(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned n = debug_number(cpu, i);
        uint64_t value = system_reg(cpu, i->reg[1], control_width(cpu));

        if (n >= 6 && value >> 32)
                x86_gp0(cpu);
        if (n < 4 && !x86_canonical(value) && cpu->mode64)
                x86_gp0(cpu);
        if (n == 6)
                value = (value & 0xe00f) | 0xffff0ff0;
        else if (n == 7)
                value = (value & 0xffff23ff) | 0x400;
        cpu->s.dr[n] = value;
        if (n == 7)
                x86_mode_changed(cpu);
        return system_leave(cpu, i);
}

/* ---- descriptor-table registers ---- */

static const struct insn *op_load_table(struct x86_cpu *cpu, const struct insn *i)
{
        struct x86_table *table = i->op == ZYDIS_MNEMONIC_LGDT ? &cpu->s.gdtr : &cpu->s.idtr;
        unsigned base_bytes = cpu->mode64 ? 8 : 4;
        uint64_t base = 0, linear;
        uint8_t bytes[10];

        system_need_cpl0(cpu);
        linear = insn_linear(cpu, i, 2 + base_bytes, false);
        mmu_read_bytes(cpu, linear, bytes, 2 + base_bytes);
        memcpy(&base, bytes + 2, base_bytes);
        if (!cpu->mode64 && i->opsize == 2)
                base &= 0xffffff;
        if (!x86_canonical(base) && cpu->mode64)
                x86_raise(cpu, i->seg == X86_SS ? X86_SS_FAULT : X86_GP, 0);
        memcpy(&table->limit, bytes, 2);
        table->base = base;
        return i + 1;
}

static const struct insn *op_store_table(struct x86_cpu *cpu, const struct insn *i)
{
        const struct x86_table *table = i->op == ZYDIS_MNEMONIC_SGDT ? &cpu->s.gdtr : &cpu->s.idtr;
        unsigned base_bytes = cpu->mode64 ? 8 : 4;
        uint8_t bytes[10];

        need_umip(cpu);
        memcpy(bytes, &table->limit, 2);
        memcpy(bytes + 2, &table->base, base_bytes);
        mmu_write_bytes(cpu, insn_linear(cpu, i, 2 + base_bytes, true), bytes, 2 + base_bytes);
        return i + 1;
}

static void need_protected(struct x86_cpu *cpu)
{
        if (!x86_protected(cpu))
                x86_ud(cpu);
}

static const struct insn *op_sldt(struct x86_cpu *cpu, const struct insn *i)
{
        need_protected(cpu);
        need_umip(cpu);
        return store_word(cpu, i, i->op == ZYDIS_MNEMONIC_SLDT ? cpu->s.ldtr.selector : cpu->s.tr.selector);
}

static const struct insn *op_lldt(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector;

        need_protected(cpu);
        system_need_cpl0(cpu);
        selector = system_word(cpu, i, 0);
        if (i->op == ZYDIS_MNEMONIC_LLDT)
                load_ldtr(cpu, selector);
        else
                load_tr(cpu, selector);
        return i + 1;
}

/* ---- TLB ---- */

static const struct insn *op_invlpg(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t linear = insn_offset(cpu, i);

        system_need_cpl0(cpu);
        if (!cpu->mode64)
                linear = (uint32_t)(linear + cpu->s.seg[i->seg].base);
        else if (i->seg >= X86_FS)
                linear += cpu->s.seg[i->seg].base;
        if (x86_canonical(linear)) /* INVLPG of an address that is not canonical does nothing */
                mmu_flush_page(cpu, linear);
        return system_leave(cpu, i);
}

enum invpcid_type { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };

static const struct insn *op_invpcid(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t type, descriptor[2];

        system_need_cpl0(cpu);
        type = system_reg(cpu, i->reg[0], control_width(cpu));
        mmu_read_bytes(cpu, insn_linear(cpu, i, 16, false), descriptor, 16);
        if (type > INVPCID_ALL || descriptor[0] >> 12)
                x86_gp0(cpu);
        if (!(cpu->s.cr4 & X86_CR4_PCIDE) && descriptor[0] && type <= INVPCID_CONTEXT)
                x86_gp0(cpu);
        if (type == INVPCID_ADDRESS) {
                if (!x86_canonical(descriptor[1]))
                        x86_gp0(cpu);
                mmu_flush_pcid_page(cpu, (unsigned)descriptor[0], descriptor[1]);
        } else if (type == INVPCID_CONTEXT) {
                mmu_flush_pcid(cpu, (unsigned)descriptor[0]);
        } else if (type == INVPCID_ALL_GLOBAL) {
                mmu_flush(cpu, true);
        } else {
                mmu_flush_all_local(cpu);
        }
        return system_leave(cpu, i);
}

/* ---- MSRs and XCR0 ---- */

static const struct insn *op_rdmsr(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value;

        system_need_cpl0(cpu);
        if (x86_msr_read(cpu, (uint32_t)cpu->s.gpr[X86_RCX], &value) < 0)
                x86_gp0(cpu);
        cpu->s.gpr[X86_RAX] = (uint32_t)value;
        cpu->s.gpr[X86_RDX] = value >> 32;
        return i + 1;
}

static uint64_t edx_eax(const struct x86_cpu *cpu)
{
        return (uint64_t)(uint32_t)cpu->s.gpr[X86_RDX] << 32 | (uint32_t)cpu->s.gpr[X86_RAX];
}

static const struct insn *op_wrmsr(struct x86_cpu *cpu, const struct insn *i)
{
        system_need_cpl0(cpu);
        if (x86_msr_write(cpu, (uint32_t)cpu->s.gpr[X86_RCX], edx_eax(cpu)) < 0)
                x86_gp0(cpu);
        return system_leave(cpu, i);
}

static uint64_t xcr0_possible(const struct x86_cpu *cpu)
{
        return x86_has(cpu, X86_F_AVX) ? 7 : 3;
}

static const struct insn *op_xgetbv(struct x86_cpu *cpu, const struct insn *i)
{
        uint32_t index = (uint32_t)cpu->s.gpr[X86_RCX];
        uint64_t value = cpu->s.xcr0;

        if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
                x86_ud(cpu);
        if (index > 1 || (index == 1 && !x86_has(cpu, X86_F_XGETBV1)))
                x86_gp0(cpu);
        /* Index 1 is XCR0 & XINUSE: everything counts as in use but an SSE or AVX state that is all zero may. */
        cpu->s.gpr[X86_RAX] = (uint32_t)value;
        cpu->s.gpr[X86_RDX] = value >> 32;
        return i + 1;
}

static const struct insn *op_xsetbv(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value = edx_eax(cpu);

        if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
                x86_ud(cpu);
        system_need_cpl0(cpu);
        if ((uint32_t)cpu->s.gpr[X86_RCX] != 0 || !(value & 1) || value & ~xcr0_possible(cpu) || (value & 6) == 4)
                x86_gp0(cpu);
        cpu->s.xcr0 = value;
        x86_mode_changed(cpu);
        return system_leave(cpu, i);
}

/* ---- binding ---- */

static insn_fn ends(struct insn *insn, insn_fn fn)
{
        insn->flags |= INSN_ENDS_BLOCK;
        return fn;
}

static bool operand_class(const struct decoded *d, unsigned n, ZydisRegisterClass class)
{
        return d->operand[n].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(d->operand[n].reg.value) == class;
}

static insn_fn mov_bind(struct insn *insn, const struct decoded *d)
{
        for (unsigned n = 0; n < 2; n++) {
                bool control = operand_class(d, n, ZYDIS_REGCLASS_CONTROL);

                if (!control && !operand_class(d, n, ZYDIS_REGCLASS_DEBUG))
                        continue;
                insn->imm2 = (uint8_t)ZydisRegisterGetId(d->operand[n].reg.value);
                if (control)
                        return n == 0 ? ends(insn, op_mov_to_cr) : op_mov_from_cr;
                return n == 0 ? ends(insn, op_mov_to_dr) : op_mov_from_dr;
        }
        return NULL;
}

insn_fn system_control_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (insn->op) {
        case ZYDIS_MNEMONIC_MOV:
                return mov_bind(insn, d);
        case ZYDIS_MNEMONIC_LMSW:
                return ends(insn, op_lmsw);
        case ZYDIS_MNEMONIC_SMSW:
                return op_smsw;
        case ZYDIS_MNEMONIC_CLTS:
                return ends(insn, op_clts);
        case ZYDIS_MNEMONIC_LGDT:
        case ZYDIS_MNEMONIC_LIDT:
                return op_load_table;
        case ZYDIS_MNEMONIC_SGDT:
        case ZYDIS_MNEMONIC_SIDT:
                return op_store_table;
        case ZYDIS_MNEMONIC_SLDT:
        case ZYDIS_MNEMONIC_STR:
                return op_sldt;
        case ZYDIS_MNEMONIC_LLDT:
        case ZYDIS_MNEMONIC_LTR:
                return op_lldt;
        case ZYDIS_MNEMONIC_INVLPG:
                return ends(insn, op_invlpg);
        case ZYDIS_MNEMONIC_INVPCID:
                return ends(insn, op_invpcid);
        case ZYDIS_MNEMONIC_RDMSR:
                return op_rdmsr;
        case ZYDIS_MNEMONIC_WRMSR:
                return ends(insn, op_wrmsr);
        case ZYDIS_MNEMONIC_XGETBV:
                return op_xgetbv;
        case ZYDIS_MNEMONIC_XSETBV:
                return ends(insn, op_xsetbv);
        default:
                return NULL;
        }
}
