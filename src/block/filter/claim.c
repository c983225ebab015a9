#include "block/filter/claim.h"

void claims_init(struct claims *claims)
{
        *claims = (struct claims){ .last = &claims->first };
}

static bool in_the_way(const struct claim *a, const struct claim *b)
{
        if (a->from >= b->to || b->from >= a->to)
                return false;
        if (a->kind == CLAIM_ALONE || b->kind == CLAIM_ALONE)
                return true;
        if (a->kind == b->kind)
                return a->kind == CLAIM_COPY;
        return a->kind == CLAIM_WRITE || b->kind == CLAIM_WRITE;
}

static bool waits(const struct claims *claims, const struct claim *claim)
{
        const struct claim *at = claims->first;

        while (at != claim && !in_the_way(at, claim))
                at = at->next;
        return at != claim;
}

static void add(struct claims *claims, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes, enum claim_kind kind)
{
        *claim = (struct claim){ .from = offset_bytes, .to = offset_bytes + size_bytes, .kind = kind };
        *claims->last = claim;
        claims->last = &claim->next;
}

static void take_out(struct claims *claims, struct claim *claim)
{
        struct claim **at = &claims->first;

        while (*at != claim)
                at = &(*at)->next;
        *at = claim->next;
        if (!*at)
                claims->last = at;
}

void claim_begin(struct claims *claims, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes, enum claim_kind kind)
{
        add(claims, claim, offset_bytes, size_bytes, kind);
        while (waits(claims, claim))
                fiber_queue_wait(&claims->ended);
}

bool claim_try(struct claims *claims, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes, enum claim_kind kind)
{
        add(claims, claim, offset_bytes, size_bytes, kind);
        if (!waits(claims, claim))
                return true;
        take_out(claims, claim);
        return false;
}

void claim_end(struct claims *claims, struct claim *claim)
{
        take_out(claims, claim);
        fiber_queue_wake_all(&claims->ended);
}
