/*
 * Parts of a disk that somebody writes, copies or reads for the time being, so that a job and the guest do not do it at once.
 *
 * Claims are granted in the order they came, each when none in front of it is in its way:
 *
 *                 write  copy   read
 *      write        -    waits  waits     writes of the guest may overlap: that is its own affair
 *      copy       waits  waits    -
 *      read       waits    -      -
 *      alone      waits  waits  waits    and others of its kind
 */
#pragma once

#include "base/fiber.h"

enum claim_kind { CLAIM_WRITE, CLAIM_COPY, CLAIM_READ, CLAIM_ALONE };

struct claim {
        struct claim *next;
        uint64_t from, to; /* bytes */
        enum claim_kind kind;
};

struct claims {
        struct claim *first, **last;
        struct fiber_queue ended;
};

void claims_init(struct claims *claims);
/* In a fiber: waits for it. */
void claim_begin(struct claims *claims, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes, enum claim_kind kind);
/* false: something is in its way. */
bool claim_try(struct claims *claims, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes, enum claim_kind kind);
void claim_end(struct claims *claims, struct claim *claim);
