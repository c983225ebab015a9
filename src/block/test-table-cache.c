/* The cache of tables by itself, with somebody who changes pages while it waits for a flush. */
#include "base/test.h"

#include "base/fiber.h"
#include "base/log.h"
#include "block/table-cache.h"
#include "block/test-memory.h"

#define PAGE 512u
#define PAGES 64u /* the least that a cache keeps */

struct fixture {
        struct memory_disk on;
        struct table_cache cache;
        struct memory_log log;
        struct table_page *changing; /* by the barrier */
        unsigned changes, barriers;
};

/* A name of a place in the page's first bytes: its data was written just now. */
static void name_something(struct fixture *f, struct table_page *page)
{
        uint64_t name = ++f->cache.written;

        memcpy(page->bytes, &name, sizeof(name));
        table_page_changed(&f->cache, page, true);
}

/* The flush covers what was written before; then, while it is waited for, another request names one more place in a page. */
static int barrier(struct table_cache *cache)
{
        struct fixture *f = container_of(cache, struct fixture, cache);
        int r = block_flush(&f->on.file->block);

        f->barriers++;
        if (f->changes) {
                f->changes--;
                name_something(f, f->changing);
        }
        return r;
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        memory_disk_begin(&f->on, 1u << 20);
        table_cache_init(&f->cache, PAGE, 0);
        f->cache.barrier = barrier;
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        table_cache_done(&f->cache);
        memory_log_done(&f->log);
        memory_disk_end(&f->on);
        free(f);
        return 0;
}

static struct table_page *dirty_page(struct fixture *f, unsigned n)
{
        struct table_page *page;

        assert_int_equal(table_page_get(&f->cache, &f->on.file->block, n * PAGE, &page), 0);
        name_something(f, page);
        table_page_put(page);
        return page;
}

/* Flushes are `names` apart from each other in what they cover: page n's name is n + 1 here, those of the barrier come behind. */
static void look_at_log(struct fixture *f)
{
        uint64_t flushed = 0, named = PAGES;

        for (unsigned n = 0; n < f->log.events; n++) {
                const struct memory_event *event = &f->log.event[n];
                uint64_t name;

                if (event->op == BLOCK_FLUSH) {
                        flushed = named++;
                        continue;
                }
                assert_int_equal(event->op, BLOCK_WRITE);
                memcpy(&name, event->bytes, sizeof(name));
                assert_true(name <= flushed);
        }
}

/* Room is made by a page that names another place while the flush that it wants is on its way: it wants one more. */
static void a_page_changes_behind_its_barrier(void **state)
{
        struct fixture *f = *state;
        struct table_page *page;

        f->changing = dirty_page(f, 0);
        for (unsigned n = 1; n < PAGES; n++)
                dirty_page(f, n);
        assert_int_equal(f->cache.dirty, PAGES);
        f->changes = 3;
        f->on.file->log = &f->log;
        assert_int_equal(table_page_get(&f->cache, &f->on.file->block, PAGES * PAGE, &page), 0);
        table_page_put(page);
        f->on.file->log = NULL;
        assert_int_equal(f->barriers, 4);
        assert_true(f->log.events > 4);
        look_at_log(f);
}

/* The same where all pages are written. */
static void a_page_changes_while_all_are_written(void **state)
{
        struct fixture *f = *state;

        f->changing = dirty_page(f, 0);
        for (unsigned n = 1; n < PAGES; n++)
                dirty_page(f, n);
        f->changes = 2;
        f->on.file->log = &f->log;
        assert_int_equal(table_cache_write(&f->cache), 0);
        f->on.file->log = NULL;
        assert_true(table_cache_idle(&f->cache));
        look_at_log(f);
}

struct eviction {
        struct fixture *f;
        bool over;
};

static void evict(void *arg)
{
        struct eviction *e = arg;
        struct table_page *page;

        assert_int_equal(table_page_get(&e->f->cache, &e->f->on.file->block, PAGES * PAGE, &page), 0);
        table_page_put(page);
        e->over = true;
}

/* A page on its way to the disk is not there yet, though it is not dirty any more. */
static void a_page_on_its_way_is_not_written(void **state)
{
        struct fixture *f = *state;
        struct eviction e = { .f = f };
        struct table_page *page[PAGES];

        for (unsigned n = 0; n < PAGES; n++)
                assert_int_equal(table_page_get(&f->cache, &f->on.file->block, n * PAGE, &page[n]), 0);
        table_page_put(page[0]);
        dirty_page(f, 0);
        f->on.file->hold_op = BLOCK_WRITE;
        f->on.file->hold_to = PAGE;
        assert_int_equal(fiber_start(evict, &e), 0);
        for (unsigned n = 0; n < 5; n++)
                uv_run(&f->on.loop, UV_RUN_NOWAIT);
        assert_false(e.over);
        assert_int_equal(f->cache.dirty, 0);
        assert_false(table_cache_idle(&f->cache));
        memory_let_go(f->on.file);
        for (unsigned n = 0; n < 5; n++)
                uv_run(&f->on.loop, UV_RUN_NOWAIT);
        assert_true(e.over);
        assert_true(table_cache_idle(&f->cache));
        for (unsigned n = 1; n < PAGES; n++)
                table_page_put(page[n]);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(a_page_changes_behind_its_barrier), CASE(a_page_changes_while_all_are_written), CASE(a_page_on_its_way_is_not_written),
        };

        log_init("test-table-cache", LOG_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
