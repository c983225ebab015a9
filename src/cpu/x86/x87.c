/*
 * x87 instructions, executed by the host's own x87 unit.
 *
 * The guest's whole x87 state is put into the host with FXRSTOR, the instruction executed, and the state taken back with
 * FXSAVE; none of these waits for pending exceptions, so stack faults, condition codes, rounding, precision control and
 * unmasked exceptions with their scaled results are the hardware's, bit by bit. The host never takes #MF: it would at the
 * next waiting instruction, and FNINIT comes before that. Every register form and memory form exists once in a table.
 *
 * What is done in C: control and environment instructions, the pointers to the last instruction and operand, #NM and #MF.
 * With CR0.NE clear a PC signals FERR# and the chip set IRQ 13; machines here have no such wire, so #MF is raised in any case.
 *
 * Source: SDM vol. 1 §8, vol. 2 "FXSAVE", vol. 3A §2.5 (CR0.EM, MP, TS, NE).
 */
#include "cpu/x86/cpuid.h"
#include "cpu/x86/x87.h"

struct fxsave {
        uint16_t fcw, fsw;
        uint8_t ftw, reserved;
        uint16_t fop;
        uint64_t fip, fdp;
        uint32_t mxcsr, mxcsr_mask;
        uint8_t st[8][16];
        uint8_t xmm[16][16];
        uint8_t available[96];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct fxsave) == 512, "the processor's layout");

/*
 * uint64_t x87_execute(struct fxsave *image (rdi), void *memory (rsi), const void *form (rdx), uint32_t flags (ecx)): loads, runs
 * the form with ZF, PF and CF from flags, saves. The flags after it come back. FXRSTOR replaces the XMM registers and MXCSR: the
 * former belong to the callee of a call, the latter is loaded from the image with its default and needs none.
 */
uint64_t x87_execute(struct fxsave *image, void *memory, const void *form, uint32_t flags) __attribute__((visibility("hidden")));

__asm__(".text\n\t.balign 16\n\t.type x87_execute, @function\nx87_execute:\n\tendbr64\n\t"
        "fxrstor64 (%rdi)\n\tmovl %ecx, %eax\n\tmovb %al, %ah\n\tsahf\n\tcall *%rdx\n\tlahf\n\tfxsave64 (%rdi)\n\tfninit\n\t"
        "movzbl %ah, %eax\n\tret\n\t.size x87_execute, . - x87_execute\n\t"
        ".globl x87_register_forms, x87_memory_forms\n\t.hidden x87_register_forms, x87_memory_forms\n\t.balign 8\nx87_register_forms:\n\t"
        ".irp e, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf\n\t"
        ".irp h, 0xc0, 0xc8, 0xd0, 0xd8, 0xe0, 0xe8, 0xf0, 0xf8\n\t"
        ".irp l, 0, 1, 2, 3, 4, 5, 6, 7\n\t"
        "endbr64\n\t.byte \\e, \\h + \\l\n\tret\n\t.balign 8\n\t"
        ".endr\n\t.endr\n\t.endr\n"
        "x87_memory_forms:\n\t"
        ".irp e, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf\n\t"
        ".irp l, 0, 1, 2, 3, 4, 5, 6, 7\n\t"
        "endbr64\n\t.byte \\e, \\l * 8 + 6\n\tret\n\t.balign 8\n\t"
        ".endr\n\t.endr\n\t");

#define FPU (&cpu->s.fpu)

void fpu_init_x87(struct x86_fpu *fpu)
{
        fpu->fcw = FPU_FCW_DEFAULT;
        fpu->fsw = 0;
        fpu->ftw = 0;
        fpu->fop = 0;
        fpu->fcs = fpu->fds = 0;
        fpu->fip = fpu->fdp = 0;
}

void fpu_normalise(struct x86_fpu *fpu)
{
        fpu->fcw = (uint16_t)((fpu->fcw & 0x1f3f) | 0x40);
        fpu->fsw &= (uint16_t)~(FPU_FSW_ES | FPU_FSW_BUSY);
        if (fpu->fsw & ~fpu->fcw & 0x3f)
                fpu->fsw |= FPU_FSW_ES | FPU_FSW_BUSY;
}

void x87_check_pending(struct x86_cpu *cpu)
{
        if (unlikely(FPU->fsw & FPU_FSW_ES))
                x86_raise(cpu, X86_MF, 0);
}

/* ---- arithmetic: on the host ---- */

static const void *form_of(const struct insn *i)
{
        unsigned escape = (unsigned)i->imm >> 8 & 7, modrm = (unsigned)i->imm & 0xff;

        return modrm >= 0xc0 ? x87_register_forms[escape][modrm & 63] : x87_memory_forms[escape][modrm >> 3 & 7];
}

static void to_host(const struct x86_fpu *fpu, struct fxsave *image)
{
        unsigned top = fpu_top(fpu);

        image->fcw = fpu->fcw;
        image->fsw = fpu->fsw;
        image->ftw = fpu->ftw;
        image->reserved = 0;
        image->fop = 0;
        image->fip = image->fdp = 0;
        image->mxcsr = MXCSR_DEFAULT;
        image->mxcsr_mask = 0;
        for (unsigned n = 0; n < 8; n++)
                memcpy(image->st[n], fpu->r[(top + n) & 7], 16);
}

static void from_host(struct x86_fpu *fpu, const struct fxsave *image)
{
        fpu->fcw = image->fcw;
        fpu->fsw = image->fsw;
        fpu->ftw = image->ftw;
        for (unsigned n = 0, top = fpu_top(fpu); n < 8; n++)
                memcpy(fpu->r[(top + n) & 7], image->st[n], 10);
}

void x87_set_pointers(struct x86_cpu *cpu, const struct insn *i)
{
        FPU->fop = (uint16_t)(i->imm & 0x7ff);
        FPU->fip = insn_rip(cpu, i->start);
        FPU->fcs = cpu->s.seg[X86_CS].selector;
        if (i->flags & INSN_MEMORY) {
                FPU->fdp = insn_offset(cpu, i);
                FPU->fds = cpu->s.seg[i->seg].selector;
        }
}

const struct insn *x87_run_register(struct x86_cpu *cpu, const struct insn *i)
{
        struct fxsave image;

        x87_check_pending(cpu);
        to_host(FPU, &image);
        x87_execute(&image, NULL, form_of(i), 0);
        from_host(FPU, &image);
        x87_set_pointers(cpu, i);
        return i + 1;
}

/* FCMOVcc reads the flags, FCOMI and its kin set them (this processor: even when an unmasked exception stops them). */
HANDLER(run_fcmov)
{
        struct fxsave image;

        x87_check_pending(cpu);
        to_host(FPU, &image);
        x87_execute(&image, NULL, form_of(i), (uint32_t)x86_flags(cpu));
        from_host(FPU, &image);
        x87_set_pointers(cpu, i);
        return i + 1;
}

const struct insn *x87_run_fcomi(struct x86_cpu *cpu, const struct insn *i)
{
        struct fxsave image;
        uint64_t flags;

        x87_check_pending(cpu);
        to_host(FPU, &image);
        flags = x87_execute(&image, NULL, form_of(i), 0);
        from_host(FPU, &image);
        x87_set_pointers(cpu, i);
        simd_set_flags(cpu, flags & (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_ZF));
        return i + 1;
}

/* imm2: bytes of the operand. */
const struct insn *x87_run_load(struct x86_cpu *cpu, const struct insn *i)
{
        uint8_t memory[16] __attribute__((aligned(16)));
        struct fxsave image;

        x87_check_pending(cpu);
        simd_read(cpu, insn_linear(cpu, i, i->imm2, false), memory, i->imm2);
        to_host(FPU, &image);
        x87_execute(&image, memory, form_of(i), 0);
        from_host(FPU, &image);
        x87_set_pointers(cpu, i);
        return i + 1;
}

/* Unmasked invalid, overflow and underflow leave a destination in memory as it was, an inexact result is written. */
const struct insn *x87_run_store(struct x86_cpu *cpu, const struct insn *i)
{
        uint8_t memory[16] __attribute__((aligned(16)));
        struct fxsave image;

        x87_check_pending(cpu);
        to_host(FPU, &image);
        x87_execute(&image, memory, form_of(i), 0);
        if (!(image.fsw & ~image.fcw & 0x19))
                simd_write(cpu, insn_linear(cpu, i, i->imm2, true), memory, i->imm2);
        from_host(FPU, &image);
        x87_set_pointers(cpu, i);
        return i + 1;
}

/* ---- control ---- */

HANDLER(fninit)
{
        fpu_init_x87(FPU);
        return i + 1;
}

HANDLER(fnclex)
{
        FPU->fsw &= 0x7f00;
        return i + 1;
}

HANDLER(fwait)
{
        x87_check_pending(cpu);
        return i + 1;
}

/* FENI, FDISI and FSETPM of the 8087 and 80287 do nothing, and do not wait. */
HANDLER(old_nop)
{
        return i + 1;
}

HANDLER(fldcw)
{
        x87_check_pending(cpu);
        FPU->fcw = mmu_read16(cpu, insn_linear(cpu, i, 2, false));
        fpu_normalise(FPU);
        return i + 1;
}

HANDLER(fnstcw)
{
        mmu_write16(cpu, insn_linear(cpu, i, 2, true), FPU->fcw);
        return i + 1;
}

HANDLER(fnstsw_memory)
{
        mmu_write16(cpu, insn_linear(cpu, i, 2, true), FPU->fsw);
        return i + 1;
}

HANDLER(fnstsw_ax)
{
        *(uint16_t *)gpr_at(cpu, X86_RAX * 8) = FPU->fsw;
        return i + 1;
}

/* ---- the environment, in four formats (SDM vol. 1 §8.1.10) ---- */

/* Two bits a register: valid, zero, special, empty. */
static uint16_t full_tags(const struct x86_fpu *fpu)
{
        uint16_t tags = 0;

        for (unsigned n = 0; n < 8; n++) {
                uint64_t mantissa;
                uint16_t exponent;
                unsigned tag;

                memcpy(&mantissa, fpu->r[n], 8);
                memcpy(&exponent, fpu->r[n] + 8, 2);
                exponent &= 0x7fff;
                if (!(fpu->ftw >> n & 1))
                        tag = 3;
                else if (!exponent && !mantissa)
                        tag = 1;
                else
                        tag = !exponent || exponent == 0x7fff || !(mantissa >> 63) ? 2 : 0;
                tags |= (uint16_t)(tag << n * 2);
        }
        return tags;
}

static bool real_format(const struct x86_cpu *cpu)
{
        return !(cpu->mode_key & MODE_PROTECTED);
}

static unsigned environment_bytes(const struct insn *i)
{
        return i->imm2 == 2 ? 14 : 28;
}

static void put_environment(const struct x86_cpu *cpu, const struct insn *i, uint8_t *at)
{
        const struct x86_fpu *fpu = FPU;
        uint16_t tags = full_tags(fpu);
        uint32_t ip = (uint32_t)fpu->fip, dp = (uint32_t)fpu->fdp;

        if (real_format(cpu)) {
                ip += (uint32_t)fpu->fcs << 4;
                dp += (uint32_t)fpu->fds << 4;
        }
        if (i->imm2 == 2) {
                uint16_t out[7] = { fpu->fcw, fpu->fsw, tags, (uint16_t)ip, fpu->fcs, (uint16_t)dp, fpu->fds };

                if (real_format(cpu)) {
                        out[4] = (uint16_t)((ip >> 4 & 0xf000) | fpu->fop);
                        out[6] = (uint16_t)(dp >> 4 & 0xf000);
                }
                memcpy(at, out, sizeof(out));
        } else {
                uint32_t out[7] = { 0xffff0000 | fpu->fcw, 0xffff0000 | fpu->fsw, 0xffff0000 | tags, ip,
                                    fpu->fcs | (uint32_t)fpu->fop << 16, dp, 0xffff0000 | fpu->fds };

                if (real_format(cpu)) {
                        out[3] = 0xffff0000 | (uint16_t)ip;
                        out[4] = (ip >> 4 & 0x0ffff000) | fpu->fop;
                        out[5] = 0xffff0000 | (uint16_t)dp;
                        out[6] = dp >> 4 & 0x0ffff000;
                }
                memcpy(at, out, sizeof(out));
        }
}

static void get_environment(struct x86_cpu *cpu, const struct insn *i, const uint8_t *at)
{
        struct x86_fpu *fpu = FPU;
        uint32_t in[7];
        uint16_t half[7];

        if (i->imm2 == 2) {
                memcpy(half, at, sizeof(half));
                for (unsigned n = 0; n < 7; n++)
                        in[n] = half[n];
        } else {
                memcpy(in, at, sizeof(in));
        }
        fpu->fcw = (uint16_t)in[0];
        fpu->fsw = (uint16_t)in[1];
        fpu->ftw = 0;
        for (unsigned n = 0; n < 8; n++)
                fpu->ftw |= (uint8_t)(((in[2] >> n * 2 & 3) != 3) << n);
        fpu->fcs = fpu->fds = 0;
        if (real_format(cpu)) {
                fpu->fip = (in[3] & 0xffff) | (in[4] << 4 & (i->imm2 == 2 ? 0xf0000 : 0xffff0000));
                fpu->fop = in[4] & 0x7ff;
                fpu->fdp = (in[5] & 0xffff) | (in[6] << 4 & (i->imm2 == 2 ? 0xf0000 : 0xffff0000));
        } else {
                fpu->fip = in[3];
                fpu->fcs = (uint16_t)in[4];
                fpu->fop = i->imm2 == 2 ? 0 : in[4] >> 16 & 0x7ff;
                fpu->fdp = in[5];
                fpu->fds = (uint16_t)in[6];
        }
        fpu_normalise(fpu);
}

HANDLER(fnstenv)
{
        uint8_t out[28];
        unsigned bytes = environment_bytes(i);

        put_environment(cpu, i, out);
        mmu_write_bytes(cpu, insn_linear(cpu, i, bytes, true), out, bytes);
        FPU->fcw |= 0x3f;
        fpu_normalise(FPU);
        return i + 1;
}

HANDLER(fldenv)
{
        uint8_t in[28];
        unsigned bytes = environment_bytes(i);

        x87_check_pending(cpu);
        mmu_read_bytes(cpu, insn_linear(cpu, i, bytes, false), in, bytes);
        get_environment(cpu, i, in);
        return i + 1;
}

HANDLER(fnsave)
{
        uint8_t out[108];
        unsigned bytes = environment_bytes(i), top = fpu_top(FPU);

        put_environment(cpu, i, out);
        for (unsigned n = 0; n < 8; n++)
                memcpy(out + bytes + n * 10, FPU->r[(top + n) & 7], 10);
        mmu_write_bytes(cpu, insn_linear(cpu, i, bytes + 80, true), out, bytes + 80);
        fpu_init_x87(FPU);
        return i + 1;
}

HANDLER(frstor)
{
        uint8_t in[108];
        unsigned bytes = environment_bytes(i);

        x87_check_pending(cpu);
        mmu_read_bytes(cpu, insn_linear(cpu, i, bytes + 80, false), in, bytes + 80);
        get_environment(cpu, i, in);
        for (unsigned n = 0, top = fpu_top(FPU); n < 8; n++)
                memcpy(FPU->r[(top + n) & 7], in + bytes + n * 10, 10);
        return i + 1;
}

/* ---- binding ---- */

static const struct insn *raise_nm(struct x86_cpu *cpu, const struct insn *i)
{
        x86_raise(cpu, X86_NM, 0);
}

static insn_fn bind_control(const struct insn *i, const struct decoded *d)
{
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_FNINIT: return fninit;
        case ZYDIS_MNEMONIC_FNCLEX: return fnclex;
        case ZYDIS_MNEMONIC_FWAIT: return fwait;
        case ZYDIS_MNEMONIC_FENI8087_NOP:
        case ZYDIS_MNEMONIC_FDISI8087_NOP:
        case ZYDIS_MNEMONIC_FSETPM287_NOP: return old_nop;
        case ZYDIS_MNEMONIC_FLDCW: return fldcw;
        case ZYDIS_MNEMONIC_FNSTCW: return fnstcw;
        case ZYDIS_MNEMONIC_FNSTSW: return i->flags & INSN_MEMORY ? fnstsw_memory : fnstsw_ax;
        case ZYDIS_MNEMONIC_FNSTENV: return fnstenv;
        case ZYDIS_MNEMONIC_FLDENV: return fldenv;
        case ZYDIS_MNEMONIC_FNSAVE: return fnsave;
        case ZYDIS_MNEMONIC_FRSTOR: return frstor;
        default: return NULL;
        }
}

static insn_fn bind_host(struct insn *i, const struct decoded *d)
{
        const ZydisDecodedOperand *memory = &d->operand[0];
        insn_fn fast;

        i->imm = (uint64_t)(d->z->opcode & 7) << 8 | (uint64_t)d->z->raw.modrm.mod << 6 | (uint64_t)d->z->raw.modrm.reg << 3 | d->z->raw.modrm.rm;
        for (unsigned k = 0; k < d->z->operand_count_visible; k++)
                if (d->operand[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
                        memory = &d->operand[k];
        if (d->z->raw.modrm.mod != 3)
                i->imm2 = (uint8_t)(memory->size / 8);
        fast = x87_bind_fast(i);
        if (fast)
                return fast;
        if (d->z->raw.modrm.mod != 3)
                return memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? x87_run_store : x87_run_load;
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_FCOMI:
        case ZYDIS_MNEMONIC_FCOMIP:
        case ZYDIS_MNEMONIC_FUCOMI:
        case ZYDIS_MNEMONIC_FUCOMIP:
                return x87_run_fcomi;
        default:
                return d->z->meta.isa_set == ZYDIS_ISA_SET_FCMOV ? run_fcmov : x87_run_register;
        }
}

insn_fn x87_bind(struct x86_cpu *cpu, struct insn *i, const struct decoded *d)
{
        insn_fn fn;

        if (d->z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !x86_has(cpu, X86_F_FPU))
                return NULL;
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_FCOMI:
        case ZYDIS_MNEMONIC_FCOMIP:
        case ZYDIS_MNEMONIC_FUCOMI:
        case ZYDIS_MNEMONIC_FUCOMIP:
                break;
        default:
                if (d->z->meta.isa_ext != ZYDIS_ISA_EXT_X87 && d->z->mnemonic != ZYDIS_MNEMONIC_FISTTP &&
                    d->z->mnemonic != ZYDIS_MNEMONIC_FWAIT)
                        return NULL;
        }
        fn = bind_control(i, d);
        i->imm2 = d->z->operand_width == 16 ? 2 : 4;
        if (!fn) {
                if (d->z->opcode < 0xd8 || d->z->opcode > 0xdf || d->z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
                        return NULL;
                fn = bind_host(i, d);
        }
        if (fn == fwait)
                return (cpu->mode_key & (MODE_CR0_MP | MODE_CR0_TS)) == (MODE_CR0_MP | MODE_CR0_TS) ? raise_nm : fn;
        return cpu->mode_key & (MODE_CR0_EM | MODE_CR0_TS) ? raise_nm : fn;
}
