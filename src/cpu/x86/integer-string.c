/*
 * String instructions: MOVS, STOS, LODS, SCAS, CMPS with REP, REPE, REPNE. (INS and OUTS are system instructions.)
 *
 * Registers are written after every element, or after every run of elements that was done at once, so a fault or an interrupt
 * in the middle leaves the instruction restartable, as SDM vol. 2 "REP" wants it. A run is what lies in one page of plain memory
 * on both sides, forward; everything else goes element by element. Between runs requests are looked at; under single step each
 * element is a step. The flags of SCAS and CMPS are written at the end only, and CMPS reads its second operand first: both as the
 * hardware does, seen when there is a fault in the middle.
 */
#include "cpu/x86/integer.h"

/* How many elements are done between two looks at the requests. */
#define ELEMENTS_AT_ONCE 512u

struct string {
        uint64_t mask;  /* of the address size */
        uint64_t step;  /* +size or -size */
        uint64_t left;  /* elements; 1 without REP */
        bool repeat;
};

static inline uint64_t address_mask(const struct insn *i)
{
        return i->asize == 8 ? UINT64_MAX : i->asize == 4 ? UINT32_MAX : UINT16_MAX;
}

static inline void set_masked(struct x86_cpu *cpu, unsigned reg, uint64_t value, uint64_t mask)
{
        uint64_t *at = &cpu->s.gpr[reg];

        if (mask == UINT16_MAX)
                *at = (*at & ~mask) | (value & mask);
        else
                *at = value & mask;
}

/* With REP and 32-bit addresses the hardware clears the upper halves first, even for no element: RCX always, others as told. */
static inline struct string string_begin(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes, bool source,
                                         bool destination)
{
        struct string s = { .mask = address_mask(i), .repeat = i->flags & (INSN_REP | INSN_REPNE) };

        s.step = cpu->s.rflags & X86_FLAG_DF ? -(uint64_t)size_bytes : size_bytes;
        s.left = s.repeat ? cpu->s.gpr[X86_RCX] & s.mask : 1;
        if (unlikely(s.repeat && s.mask == UINT32_MAX)) {
                set_masked(cpu, X86_RCX, cpu->s.gpr[X86_RCX], s.mask);
                if (source)
                        set_masked(cpu, X86_RSI, cpu->s.gpr[X86_RSI], s.mask);
                if (destination)
                        set_masked(cpu, X86_RDI, cpu->s.gpr[X86_RDI], s.mask);
        }
        return s;
}

/* done elements are finished: moves the registers. */
static inline void string_advance(struct x86_cpu *cpu, struct string *s, bool source, bool destination, uint64_t done)
{
        if (source)
                set_masked(cpu, X86_RSI, cpu->s.gpr[X86_RSI] + s->step * done, s->mask);
        if (destination)
                set_masked(cpu, X86_RDI, cpu->s.gpr[X86_RDI] + s->step * done, s->mask);
        s->left -= done;
        if (s->repeat)
                set_masked(cpu, X86_RCX, s->left, s->mask);
}

static inline bool string_pause(const struct x86_cpu *cpu)
{
        return block_interrupted(cpu) || cpu->mode_key & MODE_STEP;
}

/* Unfinished: the same instruction again after whatever wants to come in between. */
static const struct insn *string_leave(struct x86_cpu *cpu, const struct insn *i)
{
        return block_leave(cpu, insn_rip(cpu, i->start));
}

static inline uint64_t source_linear(struct x86_cpu *cpu, const struct insn *i, const struct string *s, unsigned size_bytes)
{
        return x86_linear(cpu, i->seg, cpu->s.gpr[X86_RSI] & s->mask, size_bytes, false);
}

static inline uint64_t destination_linear(struct x86_cpu *cpu, const struct string *s, unsigned size_bytes, bool write)
{
        return x86_linear(cpu, X86_ES, cpu->s.gpr[X86_RDI] & s->mask, size_bytes, write);
}

/*
 * Bytes that may be done in one run by register reg: up to where the address wraps. 0 where a segment limit could be met in
 * the middle, or going backward.
 */
static uint64_t run_limit(const struct x86_cpu *cpu, const struct string *s, unsigned reg, unsigned size_bytes)
{
        uint64_t offset = cpu->s.gpr[reg] & s->mask;
        uint64_t to_wrap = s->mask - offset + 1; /* 0 for all 64 bits from 0 */

        if (!s->repeat || s->step >> 63 || cpu->mode_key & MODE_STEP || !(cpu->mode64 || cpu->mode_key & MODE_FLAT))
                return 0;
        if (s->left > GUEST_PAGE_SIZE)
                return to_wrap ? MIN(to_wrap, GUEST_PAGE_SIZE) : GUEST_PAGE_SIZE;
        return to_wrap ? MIN(to_wrap, s->left * size_bytes) : s->left * size_bytes;
}

/* Copies as REP MOVS would: an overlapping destination repeats what was just written. */
static void copy_elements(uint8_t *to, const uint8_t *from, uint64_t bytes, unsigned size_bytes)
{
        if (to <= from || to >= from + bytes) {
                memmove(to, from, bytes);
                return;
        }
        for (uint64_t at = 0; at < bytes; at += size_bytes) {
                uint64_t element = 0;

                memcpy(&element, from + at, size_bytes);
                memcpy(to + at, &element, size_bytes);
        }
}

/* How many elements were moved at once; 0 when they must go one by one. */
static uint64_t move_run(struct x86_cpu *cpu, const struct insn *i, struct string *s, unsigned size_bytes)
{
        uint64_t most = MIN(run_limit(cpu, s, X86_RSI, size_bytes), run_limit(cpu, s, X86_RDI, size_bytes)), run;
        const uint8_t *from;
        uint8_t *to;

        if (most < 2 * size_bytes)
                return 0;
        from = mmu_run(cpu, source_linear(cpu, i, s, size_bytes), false, most, &run);
        if (!from || run < size_bytes) /* an element on two pages: its read faults before its write */
                return 0;
        most = MIN(most, run);
        to = mmu_run(cpu, destination_linear(cpu, s, size_bytes, true), true, most, &run);
        if (!to)
                return 0;
        most = MIN(most, run) & -(uint64_t)size_bytes;
        copy_elements(to, from, most, size_bytes);
        return most / size_bytes;
}

static void fill_elements(uint8_t *to, uint64_t value, uint64_t count, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1:
                memset(to, (uint8_t)value, count);
                break;
        case 2:
                for (uint64_t n = 0; n < count; n++)
                        memcpy(to + 2 * n, &value, 2);
                break;
        case 4:
                for (uint64_t n = 0; n < count; n++)
                        memcpy(to + 4 * n, &value, 4);
                break;
        default:
                for (uint64_t n = 0; n < count; n++)
                        memcpy(to + 8 * n, &value, 8);
                break;
        }
}

static uint64_t store_run(struct x86_cpu *cpu, struct string *s, unsigned size_bytes)
{
        uint64_t most = run_limit(cpu, s, X86_RDI, size_bytes), run, count;
        uint8_t *to;

        if (most < 2 * size_bytes)
                return 0;
        to = mmu_run(cpu, destination_linear(cpu, s, size_bytes, true), true, most, &run);
        if (!to)
                return 0;
        count = MIN(most, run) / size_bytes;
        fill_elements(to, cpu->s.gpr[X86_RAX], count, size_bytes);
        return count;
}

/* Repeats the statement, which does one element or more, with requests looked at now and then. */
#define REPEAT(...)                                                                              \
        do {                                                                                     \
                for (unsigned n = ELEMENTS_AT_ONCE; s.left; n--) {                               \
                        if (n == 0 || (n < ELEMENTS_AT_ONCE && cpu->mode_key & MODE_STEP)) {     \
                                if (string_pause(cpu))                                           \
                                        return string_leave(cpu, i);                             \
                                n = ELEMENTS_AT_ONCE;                                            \
                        }                                                                        \
                        __VA_ARGS__                                                              \
                }                                                                                \
        } while (0)

#define STRING(bits)                                                                                             \
        HANDLER(movs##bits)                                                                                      \
        {                                                                                                        \
                struct string s = string_begin(cpu, i, bits / 8, true, true);                                    \
                                                                                                                 \
                REPEAT({                                                                                         \
                        uint64_t done = move_run(cpu, i, &s, bits / 8);                                          \
                                                                                                                 \
                        if (!done) {                                                                             \
                                uint##bits##_t value = mmu_read##bits(cpu, source_linear(cpu, i, &s, bits / 8)); \
                                                                                                                 \
                                mmu_write##bits(cpu, destination_linear(cpu, &s, bits / 8, true), value);        \
                                done = 1;                                                                        \
                        } else {                                                                                 \
                                n = 1;                                                                           \
                        }                                                                                        \
                        string_advance(cpu, &s, true, true, done);                                               \
                });                                                                                              \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(stos##bits)                                                                                      \
        {                                                                                                        \
                struct string s = string_begin(cpu, i, bits / 8, false, true);                                   \
                                                                                                                 \
                REPEAT({                                                                                         \
                        uint64_t done = store_run(cpu, &s, bits / 8);                                            \
                                                                                                                 \
                        if (!done) {                                                                             \
                                mmu_write##bits(cpu, destination_linear(cpu, &s, bits / 8, true), reg_get##bits(cpu, RAX_AT)); \
                                done = 1;                                                                        \
                        } else {                                                                                 \
                                n = 1;                                                                           \
                        }                                                                                        \
                        string_advance(cpu, &s, false, true, done);                                              \
                });                                                                                              \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(lods##bits)                                                                                      \
        {                                                                                                        \
                struct string s = string_begin(cpu, i, bits / 8, false, false);                                  \
                                                                                                                 \
                REPEAT({                                                                                         \
                        reg_set##bits(cpu, RAX_AT, mmu_read##bits(cpu, source_linear(cpu, i, &s, bits / 8)));    \
                        string_advance(cpu, &s, true, false, 1);                                                 \
                });                                                                                              \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(scas##bits)                                                                                      \
        {                                                                                                        \
                struct string s = string_begin(cpu, i, bits / 8, false, false);                                  \
                bool until = !(i->flags & INSN_REPNE), any = s.left;                                             \
                uint##bits##_t a = reg_get##bits(cpu, RAX_AT), b = 0;                                            \
                                                                                                                 \
                REPEAT({                                                                                         \
                        b = mmu_read##bits(cpu, destination_linear(cpu, &s, bits / 8, false));                   \
                        string_advance(cpu, &s, false, true, 1);                                                 \
                        if ((a == b) != until)                                                                   \
                                break;                                                                           \
                });                                                                                              \
                if (any)                                                                                         \
                        flags_difference##bits(cpu, a, b, (uint##bits##_t)(a - b));                              \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(cmps##bits)                                                                                      \
        {                                                                                                        \
                struct string s = string_begin(cpu, i, bits / 8, false, false);                                  \
                bool until = !(i->flags & INSN_REPNE), any = s.left;                                             \
                uint##bits##_t a = 0, b = 0;                                                                     \
                                                                                                                 \
                REPEAT({                                                                                         \
                        b = mmu_read##bits(cpu, destination_linear(cpu, &s, bits / 8, false));                   \
                        a = mmu_read##bits(cpu, source_linear(cpu, i, &s, bits / 8));                            \
                        string_advance(cpu, &s, true, true, 1);                                                  \
                        if ((a == b) != until)                                                                   \
                                break;                                                                           \
                });                                                                                              \
                if (any)                                                                                         \
                        flags_difference##bits(cpu, a, b, (uint##bits##_t)(a - b));                              \
                NEXT;                                                                                            \
        }
FOR_EACH_WIDTH(STRING)

insn_fn string_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        static const insn_fn movs[] = { movs8, movs16, movs32, movs64 };
        static const insn_fn stos[] = { stos8, stos16, stos32, stos64 };
        static const insn_fn lods[] = { lods8, lods16, lods32, lods64 };
        static const insn_fn scas[] = { scas8, scas16, scas32, scas64 };
        static const insn_fn cmps[] = { cmps8, cmps16, cmps32, cmps64 };
        unsigned width = width_index(insn->opsize);

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_MOVSD:
                if (d->z->meta.category != ZYDIS_CATEGORY_STRINGOP)
                        return NULL; /* the SSE2 one */
                return movs[width];
        case ZYDIS_MNEMONIC_CMPSD:
                if (d->z->meta.category != ZYDIS_CATEGORY_STRINGOP)
                        return NULL;
                return cmps[width];
        case ZYDIS_MNEMONIC_MOVSB:
        case ZYDIS_MNEMONIC_MOVSW:
        case ZYDIS_MNEMONIC_MOVSQ: return movs[width];
        case ZYDIS_MNEMONIC_STOSB:
        case ZYDIS_MNEMONIC_STOSW:
        case ZYDIS_MNEMONIC_STOSD:
        case ZYDIS_MNEMONIC_STOSQ: return stos[width];
        case ZYDIS_MNEMONIC_LODSB:
        case ZYDIS_MNEMONIC_LODSW:
        case ZYDIS_MNEMONIC_LODSD:
        case ZYDIS_MNEMONIC_LODSQ: return lods[width];
        case ZYDIS_MNEMONIC_SCASB:
        case ZYDIS_MNEMONIC_SCASW:
        case ZYDIS_MNEMONIC_SCASD:
        case ZYDIS_MNEMONIC_SCASQ: return scas[width];
        case ZYDIS_MNEMONIC_CMPSB:
        case ZYDIS_MNEMONIC_CMPSW:
        case ZYDIS_MNEMONIC_CMPSQ: return cmps[width];
        default: return NULL;
        }
}
