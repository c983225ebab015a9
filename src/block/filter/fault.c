/* Errors at chosen requests. */
#include <errno.h>

#include "block/filter/filter.h"

struct rule {
        struct block_fault fault;
        uint64_t seen, failed, random;
};

struct fault {
        struct block block;
        unsigned count;
        struct rule rule[];
};

static struct fault *to_fault(const struct block *block)
{
        return container_of(block, struct fault, block);
}

static bool touches(const struct block_fault *f, const struct block_request *req)
{
        if (f->ops && !(f->ops & (1u << req->op)))
                return false;
        return !f->to_bytes || (req->op != BLOCK_FLUSH && req->offset_bytes < f->to_bytes && req->offset_bytes + req->size_bytes > f->from_bytes);
}

static bool by_chance(struct rule *rule)
{
        if (!rule->fault.chance)
                return true;
        rule->random = rule->random * UINT64_C(6364136223846793005) + 1442695040888963407;
        return (rule->random >> 33) % 1000000 < rule->fault.chance;
}

static bool fails(struct rule *rule, const struct block_request *req)
{
        if (!touches(&rule->fault, req) || rule->seen++ < rule->fault.after)
                return false;
        if ((rule->fault.times && rule->failed >= rule->fault.times) || !by_chance(rule))
                return false;
        rule->failed++;
        return true;
}

static void fault_submit(struct block *block, struct block_request *req)
{
        struct fault *fault = to_fault(block);

        for (unsigned n = 0; n < fault->count; n++) {
                struct rule *rule = &fault->rule[n];

                if (!fails(rule, req))
                        continue;
                if (rule->fault.late)
                        filter_pass(block, req, rule->fault.error);
                else
                        block_complete(block, req, rule->fault.error);
                return;
        }
        filter_pass(block, req, 0);
}

static void fault_close(struct block *block)
{
        block_done(block);
        free(to_fault(block));
}

static const struct block_driver block_fault_driver = {
        .name = "fault",
        .text = "errors at chosen requests",
        .close = fault_close,
        .submit = fault_submit,
        .status = filter_status,
        .resize = filter_resize,
        .refresh = filter_refresh,
};

int block_fault_new(struct block *child, const struct block_fault *fault, unsigned count, struct block **block, struct err *err)
{
        int r = filter_new(child, &block_fault_driver, sizeof(struct fault) + count * sizeof(struct rule), block, err);

        if (r < 0)
                return r;
        to_fault(*block)->count = count;
        for (unsigned n = 0; n < count; n++)
                to_fault(*block)->rule[n] = (struct rule){ .fault = fault[n], .random = fault[n].seed };
        filter_begin(*block, child);
        return 0;
}

uint64_t block_fault_count(const struct block *block, unsigned rule)
{
        return to_fault(block)->rule[rule].failed;
}
