/*
 * What is printed of a vCPU that cannot go on: its registers and the bytes around its instruction.
 *
 * The instruction's linear address is translated by walking the guest's own tables without touching them (no accessed bits). Only
 * what is needed to read code: 4-level and PAE paging, 32-bit paging, no paging. Source: Intel SDM vol. 3A §4.3-4.5.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "vmm/machine-internal.h"

#define CODE_BEFORE 16u
#define CODE_AFTER 32u
#define PAGE_PRESENT 1u
#define PAGE_LARGE 0x80u
#define ADDRESS_MASK UINT64_C(0x000ffffffffff000)

static bool read_entry(const struct guest_memory *mem, uint64_t table, uint64_t index, unsigned bytes, uint64_t *entry)
{
        *entry = 0;
        return guest_memory_read(mem, table + index * bytes, entry, bytes) >= 0 && *entry & PAGE_PRESENT;
}

/* levels of 9 bits each above a 4 KiB page; PAE's top level has 2 bits. */
static bool walk_long(const struct guest_memory *mem, uint64_t cr3, unsigned levels, uint64_t linear, uint64_t *gpa)
{
        uint64_t table = cr3 & (levels == 3 ? UINT64_C(0xffffffe0) : ADDRESS_MASK);

        for (unsigned level = levels; level; level--) {
                unsigned shift = 12 + 9 * (level - 1);
                uint64_t entry;

                if (!read_entry(mem, table, linear >> shift & (levels == 3 && level == 3 ? 3 : 0x1ff), 8, &entry))
                        return false;
                if (level == 1 || (level < 4 && entry & PAGE_LARGE && !(levels == 3 && level == 3))) {
                        uint64_t offset = (UINT64_C(1) << shift) - 1;

                        *gpa = (entry & ADDRESS_MASK & ~offset) | (linear & offset);
                        return true;
                }
                table = entry & ADDRESS_MASK;
        }
        return false;
}

static bool walk_32(const struct guest_memory *mem, const struct x86_state *state, uint64_t linear, uint64_t *gpa)
{
        uint64_t entry;

        if (!read_entry(mem, state->cr3 & 0xfffff000, linear >> 22 & 0x3ff, 4, &entry))
                return false;
        if (entry & PAGE_LARGE && state->cr4 & X86_CR4_PSE) {
                *gpa = (entry & 0xffc00000) | (linear & 0x3fffff);
                return true;
        }
        if (!read_entry(mem, entry & 0xfffff000, linear >> 12 & 0x3ff, 4, &entry))
                return false;
        *gpa = (entry & 0xfffff000) | (linear & 0xfff);
        return true;
}

static bool translate(const struct guest_memory *mem, const struct x86_state *state, uint64_t linear, uint64_t *gpa)
{
        if (!(state->cr0 & X86_CR0_PG)) {
                *gpa = linear;
                return true;
        }
        if (state->efer & X86_EFER_LMA)
                return walk_long(mem, state->cr3, 4, linear, gpa);
        if (state->cr4 & X86_CR4_PAE)
                return walk_long(mem, state->cr3, 3, (uint32_t)linear, gpa);
        return walk_32(mem, state, (uint32_t)linear, gpa);
}

/* As Linux prints an oops: the byte at the instruction pointer in angle brackets, "??" for what cannot be read. */
static void format_code(const struct guest_memory *mem, const struct x86_state *state, char *text, size_t size_bytes)
{
        bool long_mode = state->efer & X86_EFER_LMA && state->seg[X86_CS].access & X86_ACCESS_L;
        uint64_t linear = state->rip + (long_mode ? 0 : state->seg[X86_CS].base);
        size_t used = 0;

        *text = '\0';
        for (unsigned i = 0; i < CODE_BEFORE + CODE_AFTER && used + 8 < size_bytes; i++) {
                uint64_t gpa;
                uint8_t byte;
                bool known = translate(mem, state, linear - CODE_BEFORE + i, &gpa) && guest_memory_read(mem, gpa, &byte, 1) >= 0;

                used += (size_t)snprintf(text + used, size_bytes - used, i == CODE_BEFORE ? "<" : i ? " " : "");
                if (known)
                        used += (size_t)snprintf(text + used, size_bytes - used, "%02x%s", byte, i == CODE_BEFORE ? ">" : "");
                else
                        used += (size_t)snprintf(text + used, size_bytes - used, "??%s", i == CODE_BEFORE ? ">" : "");
        }
}

/* AMD-V keeps nothing of a processor that shut down: KVM then shows it as after INIT (Linux arch/x86/kvm/svm). */
static bool lost(const struct machine *machine, const struct x86_state *state)
{
        return machine->ops == &accel_kvm_ops && state->rip == 0xfff0 && state->seg[X86_CS].selector == 0xf000 &&
               !state->gpr[X86_RSP];
}

void machine_print_crash(struct machine *machine, unsigned index)
{
        _cleanup_free_ struct x86_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
        char registers[4096], code[256];
        struct err err = ERR_INIT;

        log_error("vCPU %u: triple fault", index);
        if (!state || machine->ops->get_state(machine->vcpu[index].vcpu, state, &err) < 0) {
                log_error("its registers cannot be read: %s", err.text);
                return;
        }
        if (lost(machine, state))
                log_error("this host's processor does not keep the state at the fault; what follows is that after INIT");
        x86_state_format(state, registers, sizeof(registers));
        format_code(&machine->mem, state, code, sizeof(code));
        fprintf(stderr, "%s%scode %s\n", registers, *registers && registers[strlen(registers) - 1] != '\n' ? "\n" : "", code);
}
