/*
 * Sites as they are kept, and notes.
 *
 * A site takes one to four units of 32 bits, by its kind, and its number counts units. The first one:
 *
 *      bits  0-3   kind
 *            4-15  at (RETURN: patch, in units of TRETURN_ALIGNMENT)
 *           16-17  flags
 *           18-20  MEMORY, GROUP: write, stack. CHAIN: not_host. JUMP: checked. Bit 20: x87
 *           21-23  MEMORY, GROUP: the size, see tsite_sizes
 *           24-31  note. JUMP: size_bytes. CHAIN without: bits 21-31 are instead
 *
 * MEMORY has retry and next in the second one, HANDLER next, X87 retry, FAULT patch, CHAIN patch and next, GROUP patch and retry. The
 * third of those that may be linked is the next site linked to the same block; GROUP's fourth is its span.
 */
#pragma once

#include "cpu/x86/translator.h"

#define TRETURN_ALIGNMENT 8

static inline unsigned tsite_units(unsigned kind)
{
        switch (kind) {
        case TSITE_MEMORY:
        case TSITE_HANDLER:
        case TSITE_FAULT:
        case TSITE_X87: return 2;
        case TSITE_CHAIN: return 3;
        case TSITE_GROUP: return 4;
        default: return 1;
        }
}

static const uint8_t tsite_sizes[8] = { 0, 1, 2, 4, 8, 10, 16, 32 };

static inline struct tsite tsite_unpack(const uint32_t *unit)
{
        uint32_t word = unit[0];
        struct tsite site = { .kind = word & 15, .at = word >> 4 & 0xfff, .flags = word >> 16 & 3, .note = word >> 24, .x87 = word >> 20 & 1 };

        if (site.kind == TSITE_MEMORY || site.kind == TSITE_GROUP) {
                site.write = word >> 18 & 1;
                site.stack = word >> 19 & 1;
                site.size_bytes = tsite_sizes[word >> 21 & 7];
        }
        switch (site.kind) {
        case TSITE_MEMORY:
                site.retry = (uint16_t)unit[1];
                site.next = unit[1] >> 16;
                break;
        case TSITE_GROUP:
                site.patch = (uint16_t)unit[1];
                site.retry = unit[1] >> 16;
                site.below = unit[3] & 0x3ff;
                site.span = unit[3] >> 10 & 0x3ff;
                site.span_write = unit[3] >> 20 & 1;
                break;
        case TSITE_HANDLER: site.next = unit[1] >> 16; break;
        case TSITE_X87: site.retry = (uint16_t)unit[1]; break;
        case TSITE_FAULT: site.patch = (uint16_t)unit[1]; break;
        case TSITE_RETURN: site.patch = (uint16_t)(site.at * TRETURN_ALIGNMENT); break;
        case TSITE_JUMP:
                site.checked = word >> 18 & 1;
                site.size_bytes = site.note;
                site.note = 0;
                break;
        case TSITE_CHAIN:
                site.not_host = word >> 18 & 1;
                site.patch = (uint16_t)unit[1];
                site.next = unit[1] >> 16;
                if (site.flags == TFLAGS_HOST) {
                        site.instead = word >> 21;
                        site.note = 0;
                }
                break;
        default: break;
        }
        return site;
}

static inline uint32_t tsite_pack_access(const struct tsite *site)
{
        uint32_t size = 0;

        for (unsigned n = 1; n < ARRAY_SIZE(tsite_sizes); n++)
                if (tsite_sizes[n] == site->size_bytes)
                        size = n;
        return (uint32_t)site->write << 18 | (uint32_t)site->stack << 19 | size << 21 | (uint32_t)site->note << 24;
}

static inline void tsite_pack(const struct tsite *site, uint32_t *unit)
{
        uint32_t word = site->kind | (uint32_t)site->at << 4 | (uint32_t)site->flags << 16 | (uint32_t)site->x87 << 20;

        switch (site->kind) {
        case TSITE_MEMORY:
                word |= tsite_pack_access(site);
                unit[1] = site->retry | (uint32_t)site->next << 16;
                break;
        case TSITE_GROUP:
                word |= tsite_pack_access(site);
                unit[1] = site->patch | (uint32_t)site->retry << 16;
                unit[2] = site->incoming;
                unit[3] = site->below | (uint32_t)site->span << 10 | (uint32_t)site->span_write << 20;
                break;
        case TSITE_HANDLER:
        case TSITE_X87:
                word |= (uint32_t)site->note << 24;
                unit[1] = site->retry | (uint32_t)site->next << 16;
                break;
        case TSITE_FAULT:
                word |= (uint32_t)site->note << 24;
                unit[1] = site->patch;
                break;
        case TSITE_RETURN: word |= site->patch / TRETURN_ALIGNMENT << 4; break;
        case TSITE_JUMP: word |= (uint32_t)site->checked << 18 | (uint32_t)site->size_bytes << 24; break;
        case TSITE_CHAIN:
                word |= (uint32_t)site->not_host << 18;
                word |= site->flags == TFLAGS_HOST ? (uint32_t)site->instead << 21 : (uint32_t)site->note << 24;
                unit[1] = site->patch | (uint32_t)site->next << 16;
                unit[2] = site->incoming;
                break;
        default: word |= (uint32_t)site->note << 24; break;
        }
        unit[0] = word;
}

/* Of a CHAIN or GROUP: the next site that is linked to the same block. */
static inline uint32_t *tsite_incoming(uint32_t *unit)
{
        return &unit[2];
}

/* ---- notes ---- */

/* a and b are numbers of registers or slots; 31: none. */
static inline struct tnote tnote_of(const struct tflags_recipe *recipe, uint32_t x87_op)
{
        uint32_t size = recipe->size_bytes ? (uint32_t)__builtin_ctz(recipe->size_bytes) : 0;

        return (struct tnote){
                .what = recipe->op | size << 4 | (uint32_t)(recipe->a / 8) << 6 | (uint32_t)(recipe->b / 8) << 11 | (uint32_t)(uint16_t)recipe->delta << 16,
                .imm = recipe->imm, .x87_op = x87_op,
        };
}

static inline struct tflags_recipe tnote_recipe(const struct tnote *note)
{
        unsigned a = note->what >> 6 & 31, b = note->what >> 11 & 31;

        return (struct tflags_recipe){
                .op = note->what & 15, .size_bytes = (uint8_t)(1u << (note->what >> 4 & 3)), .a = a == 31 ? 0xff : (uint8_t)(a * 8),
                .b = b == 31 ? 0xff : (uint8_t)(b * 8), .delta = (int16_t)(note->what >> 16), .imm = note->imm,
        };
}
