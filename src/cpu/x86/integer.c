#include "cpu/x86/integer.h"

/* ---- memory operands out of line ---- */

static uint64_t read_sized(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1: return mmu_read8(cpu, linear);
        case 2: return mmu_read16(cpu, linear);
        case 4: return mmu_read32(cpu, linear);
        default: return mmu_read64(cpu, linear);
        }
}

static void write_sized(struct x86_cpu *cpu, uint64_t linear, uint64_t value, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1: mmu_write8(cpu, linear, (uint8_t)value); break;
        case 2: mmu_write16(cpu, linear, (uint16_t)value); break;
        case 4: mmu_write32(cpu, linear, (uint32_t)value); break;
        default: mmu_write64(cpu, linear, value); break;
        }
}

_cold_ uint64_t exec_load_slow(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes)
{
        return read_sized(cpu, insn_linear(cpu, i, size_bytes, false), size_bytes);
}

_cold_ void exec_store_slow(struct x86_cpu *cpu, const struct insn *i, uint64_t value, unsigned size_bytes)
{
        write_sized(cpu, insn_linear(cpu, i, size_bytes, true), value, size_bytes);
}

_cold_ uint64_t exec_modify_load(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes)
{
        uint64_t linear = insn_linear(cpu, i, size_bytes, true);

        mmu_probe_write(cpu, linear, size_bytes);
        return read_sized(cpu, linear, size_bytes);
}

_cold_ void exec_modify_store(struct x86_cpu *cpu, const struct insn *i, uint64_t value, unsigned size_bytes)
{
        write_sized(cpu, insn_linear(cpu, i, size_bytes, true), value, size_bytes);
}

/* ---- binding ---- */

typedef insn_fn (*bind_fn)(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);

insn_fn integer_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        /* The most frequent first. */
        static const bind_fn topics[] = {
                mov_bind,    alu_bind,    branch_bind, stack_bind, shift_bind, bits_bind,
                muldiv_bind, string_bind, atomic_bind, bmi_bind,   misc_bind,
        };

        for (size_t n = 0; n < ARRAY_SIZE(topics); n++) {
                insn_fn fn = topics[n](cpu, insn, d);

                if (fn)
                        return fn;
        }
        return NULL;
}

void integer_fuse(struct insn *insn, unsigned count)
{
        insn_fn fn = alu_fused(&insn[count - 2], &insn[count - 1]);

        if (fn)
                insn[count - 2].fn = fn;
}
