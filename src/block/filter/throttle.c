/*
 * Limits on requests and bytes, by leaky buckets: each admitted request fills a bucket, which runs empty at the limit's rate. A request is
 * admitted when no bucket that it concerns is above its burst; so one larger than the burst goes when there is room, and others wait for it.
 *
 *      submit ──room, nobody waits──▶ child
 *         └──▶ the group's queue ──timer, when the first one's buckets have room──▶ child
 */
#include <errno.h>

#include "block/filter/filter.h"

enum { ALL_REQUESTS, ALL_BYTES, READS, WRITES, READ_BYTES, WRITTEN_BYTES, BUCKETS };

struct bucket {
        double a_second, burst, level;
};

struct waiting {
        struct waiting *next;
        struct block *block;
        struct block_request *req;
};

struct block_throttle_group {
        unsigned references;
        struct bucket bucket[BUCKETS];
        uint64_t request_bytes, then_ns; /* buckets are as of then */
        struct waiting *first, **last;
        uv_timer_t timer;
};

struct throttle {
        struct block block;
        struct block_throttle_group *group;
};

static struct throttle *to_throttle(struct block *block)
{
        return container_of(block, struct throttle, block);
}

/* ---- buckets ---- */

static void run_empty(struct block_throttle_group *g)
{
        uint64_t now_ns = uv_hrtime();
        double seconds = (double)(now_ns - g->then_ns) / 1e9;

        for (unsigned n = 0; n < BUCKETS; n++) {
                struct bucket *b = &g->bucket[n];

                b->level = MAX(b->level - b->a_second * seconds, 0.0);
        }
        g->then_ns = now_ns;
}

/* How much of each a request takes. */
static void costs(const struct block_throttle_group *g, const struct block_request *req, double cost[BUCKETS])
{
        double bytes = (double)req->size_bytes, requests = 1;

        memset(cost, 0, BUCKETS * sizeof(*cost));
        if (req->op == BLOCK_FLUSH)
                return;
        if (g->request_bytes && req->size_bytes > g->request_bytes) {
                uint64_t whole = (req->size_bytes + g->request_bytes - 1) / g->request_bytes;

                requests = (double)whole;
        }
        if (req->op != BLOCK_READ && req->op != BLOCK_WRITE)
                bytes = 0; /* none go over the wire */
        cost[ALL_REQUESTS] = cost[req->op == BLOCK_READ ? READS : WRITES] = requests;
        cost[ALL_BYTES] = cost[req->op == BLOCK_READ ? READ_BYTES : WRITTEN_BYTES] = bytes;
}

/* Seconds until the request may go; 0: now. */
static double wait_of(const struct block_throttle_group *g, const double cost[BUCKETS])
{
        double longest = 0;

        for (unsigned n = 0; n < BUCKETS; n++) {
                const struct bucket *b = &g->bucket[n];

                /* All of it must fit, or as much of it as ever can. */
                if (b->a_second > 0 && cost[n] > 0)
                        longest = MAX(longest, (b->level + MIN(cost[n], b->burst) - b->burst) / b->a_second);
        }
        return longest;
}

static void fill(struct block_throttle_group *g, const double cost[BUCKETS])
{
        for (unsigned n = 0; n < BUCKETS; n++)
                if (g->bucket[n].a_second > 0)
                        g->bucket[n].level += cost[n];
}

/* ---- the queue ---- */

static void let_go(struct block_throttle_group *g, struct waiting **at)
{
        struct waiting *w = *at;
        struct block *block = w->block;

        *at = w->next;
        if (!*at)
                g->last = at;
        filter_pass(block, w->req, 0);
        free(w);
        block_kick(block->child[BLOCK_FILE]);
}

static void go_on(uv_timer_t *timer)
{
        struct block_throttle_group *g = timer->data;

        run_empty(g);
        while (g->first) {
                double cost[BUCKETS], wait;

                costs(g, g->first->req, cost);
                wait = wait_of(g, cost);
                if (wait > 0) {
                        uv_timer_start(timer, go_on, (uint64_t)(wait * 1000) + 1, 0);
                        return;
                }
                fill(g, cost);
                let_go(g, &g->first);
        }
}

static void throttle_submit(struct block *block, struct block_request *req)
{
        struct block_throttle_group *g = to_throttle(block)->group;
        struct waiting *w;
        double cost[BUCKETS], wait;

        run_empty(g);
        costs(g, req, cost);
        wait = wait_of(g, cost);
        if (req->op == BLOCK_FLUSH || (!g->first && wait <= 0)) {
                fill(g, cost);
                filter_pass(block, req, 0);
                return;
        }
        w = malloc(sizeof(*w));
        if (!w) {
                block_complete(block, req, -ENOMEM);
                return;
        }
        *w = (struct waiting){ .block = block, .req = req };
        *g->last = w;
        g->last = &w->next;
        if (g->first == w) {
                uv_update_time(g->timer.loop);
                uv_timer_start(&g->timer, go_on, (uint64_t)(wait * 1000) + 1, 0);
        }
}

/* Somebody drains the disk: the first of its own goes on. The child is waited for by then. */
static void throttle_wait(struct block *block)
{
        struct block_throttle_group *g = to_throttle(block)->group;

        for (struct waiting **at = &g->first; *at; at = &(*at)->next)
                if ((*at)->block == block) {
                        let_go(g, at);
                        return;
                }
}

static void throttle_close(struct block *block)
{
        block_throttle_group_unref(to_throttle(block)->group);
        block_done(block);
        free(to_throttle(block));
}

static const struct block_driver block_throttle_driver = {
        .name = "throttle",
        .text = "so much a second, and no more",
        .close = throttle_close,
        .submit = throttle_submit,
        .wait = throttle_wait,
        .status = filter_status,
        .resize = filter_resize,
        .refresh = filter_refresh,
};

/* ---- groups ---- */

static void set_bucket(struct bucket *b, const struct block_limit *limit)
{
        b->a_second = (double)limit->a_second;
        b->burst = limit->burst ? (double)limit->burst : MAX(b->a_second / 10, 1.0);
}

void block_throttle_group_set(struct block_throttle_group *group, const struct block_limits *limits)
{
        run_empty(group);
        set_bucket(&group->bucket[ALL_REQUESTS], &limits->requests);
        set_bucket(&group->bucket[ALL_BYTES], &limits->bytes);
        set_bucket(&group->bucket[READS], &limits->reads);
        set_bucket(&group->bucket[WRITES], &limits->writes);
        set_bucket(&group->bucket[READ_BYTES], &limits->read_bytes);
        set_bucket(&group->bucket[WRITTEN_BYTES], &limits->written_bytes);
        group->request_bytes = limits->request_bytes;
        if (group->first)
                uv_timer_start(&group->timer, go_on, 0, 0);
}

int block_throttle_group_new(uv_loop_t *loop, const struct block_limits *limits, struct block_throttle_group **group, struct err *err)
{
        struct block_throttle_group *g = calloc(1, sizeof(*g));

        if (!g)
                return err_nomem(err);
        g->references = 1;
        g->last = &g->first;
        g->then_ns = uv_hrtime();
        uv_timer_init(loop, &g->timer);
        g->timer.data = g;
        block_throttle_group_set(g, limits);
        *group = g;
        return 0;
}

static void timer_closed(uv_handle_t *handle)
{
        free(handle->data);
}

void block_throttle_group_unref(struct block_throttle_group *group)
{
        if (group && --group->references == 0)
                uv_close((uv_handle_t *)&group->timer, timer_closed);
}

int block_throttle_new(struct block *child, struct block_throttle_group *group, struct block **block, struct err *err)
{
        int r = filter_new(child, &block_throttle_driver, sizeof(struct throttle), block, err);

        if (r < 0)
                return r;
        to_throttle(*block)->group = group;
        group->references++;
        filter_begin(*block, child);
        return 0;
}
