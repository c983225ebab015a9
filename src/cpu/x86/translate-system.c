/*
 * System instructions whose usual case is a few host instructions: SYSCALL, SYSRET, SWAPGS, CLI, STI, STAC, CLAC, RDTSC of the kernel, CLD, STD, PAUSE,
 * selectors into registers, and the bases of FS and GS.
 *
 * STAC and CLAC choose another set of the TLB, which the rest of the block then uses; the key that a direct branch is looked
 * up by follows cpu->tlb_mode. Without CR4.SMAP (seen only when it runs) CLAC is left to its handler, and the block ends there.
 *
 * BT, BTS, BTR and BTC of memory by a register reach far from the operand's address: the word with the bit is looked up.
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
static struct asm_label *handler_edge(struct translation *t, struct tinsn *i, struct tsite **site)
{
        uint32_t number;

        *site = translate_site(t, TSITE_HANDLER, i, &number);
        return translate_edge(t, *site, number, TTHUNK_HANDLER);
}

static void emit_sti(struct translation *t, struct tinsn *i)
{
        struct asm_label *edge;
        struct tsite *site;

        lose_host_flags(t);
        edge = handler_edge(t, i, &site);
        if (i + 1 == t->insn + t->count) {
                asm_jmp(t->a, edge);
                return;
        }
        asm_rm(t->a, 4, 0x83, ALU_CMP, asm_gs(AT(requests)));
        asm_byte(t->a, 0);
        asm_jcc(t->a, ASM_NZ, edge);
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
        struct asm_label *edge;
        struct tsite *site;

        if (t->tlb_mode == TLB_SUPERVISOR_SMAP)
                return; /* AC is 0 */
        lose_host_flags(t);
        edge = handler_edge(t, i, &site);
        asm_rm(t->a, 1, 0xf6, 0, asm_gs(AT(s.cr4) + 2)); /* test */
        asm_byte(t->a, X86_CR4_SMAP >> 16);
        asm_jcc(t->a, ASM_Z, edge);
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
        translate_edge_here(t, number, TTHUNK_HANDLER);
        asm_bind(t->a, &done);
        site->next = translate_here(t); /* the flags are where they were, and wherever a handler leaves them */
}

/* The usual case is a thunk's, since it is much code that stands in few places: the rest the handler's. The flags are in jit.flags. */
static void emit_system_call(struct translation *t, struct tinsn *i)
{
        enum tthunk thunk = i->z.mnemonic == ZYDIS_MNEMONIC_SYSCALL ? TTHUNK_SYSCALL : TTHUNK_SYSRET;
        uint32_t number;

        flags_to_slot(t);
        translate_site(t, TSITE_HANDLER, i, &number);
        asm_load(t->a, 8, TREG_ADDRESS, guest_slot(GPR_BLOCK));
        asm_lea(t->a, TREG_ADDRESS, asm_at(TREG_ADDRESS, i->insn.end));
        translate_edge_here(t, number, thunk);
}

static temit_fn system_call_translate(struct tinsn *i)
{
        i->site = i->ends = i->hands_on = true;
        i->reads = i->writes = TFLAGS_ALL;
        return emit_system_call;
}

/* ---- TSC, selectors, bases ---- */

/* What i puts into a general register is in RCX; the flags stay. */
static void put_result(struct translation *t, struct tinsn *i)
{
        guest_store(t, i->insn.reg[0] / 8, TREG_SCRATCH);
        flags_after(t, i);
}

static void result_begins(struct translation *t, struct tinsn *i)
{
        flags_before(t, i);
        if (flags_wanted(t, i))
                flags_to_host(t);
}

static void emit_from_segment(struct translation *t, struct tinsn *i)
{
        size_t at = AT(s.seg) + i->insn.imm2 * sizeof(struct x86_segment) + offsetof(struct x86_segment, selector);

        result_begins(t, i);
        asm_rm(t->a, 4, ASM_0F | 0xb7, TREG_SCRATCH, asm_gs(at)); /* movzx */
        if (i->insn.opsize >= 4) {
                put_result(t, i);
                return;
        }
        if (treg_of(i->insn.reg[0] / 8) == TREG_NONE)
                asm_rm(t->a, 2, 0x89, TREG_SCRATCH, guest_slot(i->insn.reg[0] / 8));
        else
                asm_rr(t->a, 2, 0x89, TREG_SCRATCH, treg_of(i->insn.reg[0] / 8));
        flags_after(t, i);
}

/* ---- bits that are far ---- */

/* RCX = the number of the word that the bit is in, from the operand's. Flags change. */
static void far_word(struct translation *t, const struct tinsn *i)
{
        unsigned from = guest_load(t, i->insn.reg[1] / 8, TREG_SCRATCH);

        if (i->insn.opsize == 8) {
                asm_mov(t->a, 8, TREG_SCRATCH, from);
                asm_rr(t->a, 8, 0xc1, 7, TREG_SCRATCH); /* sar */
                asm_byte(t->a, 6);
                return;
        }
        asm_rr(t->a, 8, 0x63, TREG_SCRATCH, from); /* movsxd */
        asm_rr(t->a, 8, 0xc1, 7, TREG_SCRATCH);
        asm_byte(t->a, 5);
}

/* RBP = where that word is in the host's memory; RCX is free. */
static void look_up_word(struct translation *t, const struct tinsn *i, bool write, struct asm_label *miss)
{
        unsigned size = i->insn.opsize;
        uint32_t set = tlb_set_offset(t->tlb_mode);
        size_t tags = write ? offsetof(struct tlb_set, write_tag) : offsetof(struct tlb_set, read_tag);

        memory_address(t, &i->insn);
        far_word(t, i);
        asm_lea(t->a, TREG_ADDRESS, asm_at_index(TREG_ADDRESS, TREG_SCRATCH, size, 0));
        if (i->insn.seg >= X86_FS)
                asm_rm(t->a, 8, 0x03, TREG_ADDRESS, asm_gs(AT(s.seg) + i->insn.seg * sizeof(struct x86_segment) + offsetof(struct x86_segment, base)));
        asm_mov(t->a, 4, TREG_SCRATCH, TREG_ADDRESS);
        asm_rr(t->a, 4, 0xc1, 5, TREG_SCRATCH); /* shr */
        asm_byte(t->a, GUEST_PAGE_SHIFT);
        asm_alu_imm(t->a, ALU_AND, 4, TREG_SCRATCH, TLB_ENTRIES - 1);
        asm_rm(t->a, 8, 0x33, TREG_ADDRESS, asm_gs_index(TREG_SCRATCH, 8, set + tags)); /* xor */
        asm_alu_imm(t->a, ALU_CMP, 8, TREG_ADDRESS, (int32_t)(GUEST_PAGE_SIZE - size));
        asm_jcc(t->a, ASM_NBE, miss);
        asm_rm(t->a, 8, 0x03, TREG_ADDRESS, asm_gs_index(TREG_SCRATCH, 8, set + offsetof(struct tlb_set, host))); /* add */
}

static uint32_t bit_opcode(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_BT: return ASM_0F | 0xa3;
        case ZYDIS_MNEMONIC_BTS: return ASM_0F | 0xab;
        case ZYDIS_MNEMONIC_BTR: return ASM_0F | 0xb3;
        default: return ASM_0F | 0xbb;
        }
}

static void emit_far_bit(struct translation *t, struct tinsn *i)
{
        bool write = i->z.mnemonic != ZYDIS_MNEMONIC_BT;
        unsigned size = i->insn.opsize;
        struct asm_label *edge;
        struct tsite *site;

        lose_host_flags(t);
        edge = handler_edge(t, i, &site);
        look_up_word(t, i, write, edge);
        if (write) { /* back to what the processor counts from */
                far_word(t, i);
                asm_rr(t->a, 8, 0xf7, 3, TREG_SCRATCH); /* neg */
                asm_lea(t->a, TREG_ADDRESS, asm_at_index(TREG_ADDRESS, TREG_SCRATCH, size, 0));
        } else {
                asm_load(t->a, size, TREG_ADDRESS, asm_at(TREG_ADDRESS, 0));
        }
        flags_before(t, i);
        if (flags_wanted(t, i))
                flags_to_host(t);
        if (write) {
                unsigned bit = guest_load(t, i->insn.reg[1] / 8, TREG_SCRATCH);

                if (i->insn.flags & INSN_LOCK)
                        asm_byte(t->a, 0xf0);
                asm_rm(t->a, size, bit_opcode(i), bit, asm_at(TREG_ADDRESS, 0));
        } else {
                asm_rr(t->a, size, bit_opcode(i), guest_load(t, i->insn.reg[1] / 8, TREG_SCRATCH), TREG_ADDRESS);
        }
        flags_after(t, i);
        site->next = t->slotted ? 0 : translate_here(t);
}

/* Of 4 or 8 bytes, by a register. */
static bool far_bit(const struct tinsn *i)
{
        return i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY && i->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i->insn.opsize >= 4 &&
               i->insn.asize == 8 && memory_possible(i);
}

/* Supervisor's, which CR4.TSD does not keep from it. BMI2's shifts leave the flags alone. */
static void emit_rdtsc(struct translation *t, struct tinsn *i)
{
        bool p = i->z.mnemonic == ZYDIS_MNEMONIC_RDTSCP;

        if (translator_lock_step(t->tr)) {
                emit_handler(t, i);
                return;
        }
        result_begins(t, i);
        asm_bytes(t->a, p ? "\x0f\x01\xf9" : "\x0f\x31", p ? 3 : 2);
        asm_mov_imm(t->a, TREG_SCRATCH, 32);
        asm_bytes(t->a, "\xc4\xe2\xf1\xf7\xd2", 5); /* shlx rdx, rdx, rcx */
        asm_lea(t->a, ASM_RAX, asm_at_index(ASM_RAX, ASM_RDX, 1, 0));
        asm_load(t->a, 8, ASM_RDX, asm_gs(AT(s.tsc_offset)));
        asm_lea(t->a, ASM_RAX, asm_at_index(ASM_RAX, ASM_RDX, 1, 0));
        asm_bytes(t->a, "\xc4\xe2\xf3\xf7\xd0", 5); /* shrx rdx, rax, rcx */
        asm_mov(t->a, 4, ASM_RAX, ASM_RAX);
        if (p)
                asm_load(t->a, 4, treg_of(X86_RCX), asm_gs(AT(s.tsc_aux)));
        flags_after(t, i);
}

static void emit_from_cr2(struct translation *t, struct tinsn *i)
{
        result_begins(t, i);
        asm_load(t->a, 8, TREG_SCRATCH, asm_gs(AT(s.cr2)));
        guest_store(t, (unsigned)ZydisRegisterGetId(i->operand[0].reg.value), TREG_SCRATCH);
        flags_after(t, i);
}

static struct asm_mem base_slot(const struct tinsn *i)
{
        bool fs = i->z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE || i->z.mnemonic == ZYDIS_MNEMONIC_WRFSBASE;

        return asm_gs(AT(s.seg) + (fs ? X86_FS : X86_GS) * sizeof(struct x86_segment) + offsetof(struct x86_segment, base));
}

static void emit_read_base(struct translation *t, struct tinsn *i)
{
        result_begins(t, i);
        asm_load(t->a, i->insn.opsize, TREG_SCRATCH, base_slot(i));
        put_result(t, i);
}

/* An address that is not canonical is the handler's: bits 47 to 63 are not all the same. */
static void emit_write_base(struct translation *t, struct tinsn *i)
{
        struct asm_label upper = { 0 }, lower = { 0 };
        struct tsite *site;
        uint32_t number;
        unsigned from = guest_load(t, i->insn.reg[0] / 8, TREG_ADDRESS);

        asm_mov(t->a, i->insn.opsize, TREG_ADDRESS, from);
        if (i->insn.opsize == 4) {
                asm_store(t->a, 8, base_slot(i), TREG_ADDRESS);
                return;
        }
        asm_mov_imm(t->a, TREG_SCRATCH, 47);
        asm_bytes(t->a, "\xc4\xe2\xf2\xf7\xcd", 5); /* sarx rcx, rbp, rcx */
        asm_jrcxz(t->a, &lower);
        asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_SCRATCH, 1));
        asm_jrcxz(t->a, &upper);
        site = translate_site(t, TSITE_HANDLER, i, &number);
        translate_edge_here(t, number, TTHUNK_HANDLER);
        asm_bind(t->a, &lower);
        asm_bind(t->a, &upper);
        asm_store(t->a, 8, base_slot(i), TREG_ADDRESS);
        site->next = translate_here(t);
}

static bool is_register(const ZydisDecodedOperand *operand, ZydisRegisterClass class)
{
        return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(operand->reg.value) == class;
}

static bool reads_segment(const struct tinsn *i)
{
        return is_register(&i->operand[1], ZYDIS_REGCLASS_SEGMENT) && i->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

temit_fn system_translate(struct tinsn *i, uint32_t key)
{
        bool kernel = !(key & MODE_USER);

        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_SYSCALL: return kernel ? NULL : system_call_translate(i);
        case ZYDIS_MNEMONIC_SYSRET: return kernel && i->insn.opsize == 8 ? system_call_translate(i) : NULL;
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
        case ZYDIS_MNEMONIC_MOV:
                if (kernel && i->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i->operand[1].reg.value == ZYDIS_REGISTER_CR2) {
                        i->reads = i->writes = i->changes = 0; /* undefined, and left alone */
                        return emit_from_cr2;
                }
                return reads_segment(i) ? emit_from_segment : NULL;
        case ZYDIS_MNEMONIC_RDTSC:
        case ZYDIS_MNEMONIC_RDTSCP:
                i->site = kernel; /* only for the lock step */
                return kernel ? emit_rdtsc : NULL;
        case ZYDIS_MNEMONIC_RDFSBASE:
        case ZYDIS_MNEMONIC_RDGSBASE: return key & MODE_FSGSBASE ? emit_read_base : NULL;
        case ZYDIS_MNEMONIC_WRFSBASE:
        case ZYDIS_MNEMONIC_WRGSBASE:
                i->site = key & MODE_FSGSBASE;
                return key & MODE_FSGSBASE ? emit_write_base : NULL;
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC:
                if (!far_bit(i))
                        return NULL;
                i->site = true;
                return emit_far_bit;
        case ZYDIS_MNEMONIC_STAC: return kernel ? emit_stac : NULL;
        case ZYDIS_MNEMONIC_CLAC:
                i->site = kernel;
                return kernel ? emit_clac : NULL;
        default: return NULL;
        }
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
