/*
 * A read in flight never sees a cluster that was given back meanwhile and holds something else: the read is held in the file below, while its
 * cluster is discarded, flushed, and others want clusters. Nor does a discard in flight wipe out what came after.
 */
#include "base/test.h"

#include "base/log.h"
#include "block/qcow2/qcow2.h"
#include "block/test-memory.h"

#define CLUSTER 65536
#define OTHERS 200

struct op {
        struct block_request req;
        struct iovec iov;
        bool done;
        int result;
};

struct fixture {
        struct memory_disk on;
        uint8_t a[CLUSTER], b[CLUSTER], seen[CLUSTER];
};

static int setup(void **state)
{
        static const struct block_creation creation = { .size_bytes = UINT64_C(64) << 20 };
        struct fixture *f = calloc(1, sizeof(*f));
        struct block_opening opening = { .path = "memory.qcow2" };

        memory_disk_begin(&f->on, 0);
        assert_int_equal(block_qcow2.create(&f->on.file->block, &creation, NULL), 0);
        opening.loop = &f->on.loop;
        opening.file = &f->on.file->block;
        assert_int_equal(block_qcow2.open(&opening, &f->on.disk, NULL), 0);
        for (unsigned n = 0; n < CLUSTER; n++) {
                f->a[n] = (uint8_t)(n >> 6);
                f->b[n] = 0xbb;
        }
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        memory_disk_end(&f->on);
        free(f);
        return 0;
}

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);

        op->done = true;
        op->result = result;
}

static void begin(struct fixture *f, struct op *op, enum block_op kind, uint64_t offset, uint64_t size_bytes, void *bytes)
{
        *op = (struct op){ .req = { .op = kind, .offset_bytes = offset, .size_bytes = size_bytes, .iov = bytes ? &op->iov : NULL, .iov_count = bytes ? 1 : 0,
                                    .done = op_done },
                           .iov = { bytes, size_bytes } };
        block_submit(f->on.disk, &op->req);
        block_kick(f->on.disk);
        for (unsigned n = 0; n < 5; n++)
                uv_run(&f->on.loop, UV_RUN_NOWAIT);
}

static void taken_away(struct fixture *f, unsigned flags, bool packed)
{
        static struct op read, flush, other[OTHERS], flushes[OTHERS];
        struct iovec iov = { f->a, CLUSTER };
        struct block_extent extent;
        uint64_t host;

        assert_int_equal(block_do(f->on.disk, BLOCK_WRITE, packed ? BLOCK_F_COMPRESS : 0, 0, CLUSTER, &iov, 1), 0);
        assert_int_equal(block_flush(f->on.disk), 0);
        assert_int_equal(block_status(f->on.disk, 0, CLUSTER, &extent), 0);
        host = packed ? to_qcow2(f->on.disk)->pack_at & ~(uint64_t)(CLUSTER - 1) : extent.host_bytes;
        f->on.file->hold_from = host;
        f->on.file->hold_to = host + CLUSTER;
        begin(f, &read, BLOCK_READ, 0, 4096, f->seen);
        assert_false(read.done);
        if (flags)
                assert_int_equal(block_do(f->on.disk, BLOCK_WRITE_ZEROES, flags, 0, CLUSTER, NULL, 0), 0);
        else
                assert_int_equal(block_do(f->on.disk, BLOCK_DISCARD, 0, 0, CLUSTER, NULL, 0), 0);
        begin(f, &flush, BLOCK_FLUSH, 0, 0, NULL);
        assert_false(flush.done);
        for (unsigned n = 0; n < OTHERS; n++) {
                begin(f, &other[n], BLOCK_WRITE, (uint64_t)(n + 1) * CLUSTER, CLUSTER, f->b);
                begin(f, &flushes[n], BLOCK_FLUSH, 0, 0, NULL);
        }
        if (!packed)
                assert_memory_equal(f->on.file->bytes + host, f->a, CLUSTER);
        memory_let_go(f->on.file);
        block_drain(f->on.disk);
        assert_true(read.done && flush.done && read.result == 0 && flush.result == 0);
        assert_memory_equal(f->seen, f->a, 4096);
        for (unsigned n = 0; n < OTHERS; n++) {
                assert_true(other[n].done && flushes[n].done && other[n].result == 0);
                assert_int_equal(block_read(f->on.disk, (uint64_t)(n + 1) * CLUSTER, f->seen, CLUSTER), 0);
                assert_memory_equal(f->seen, f->b, CLUSTER);
        }
}

static void by_a_discard(void **state)
{
        taken_away(*state, 0, false);
}

static void by_zeroes(void **state)
{
        taken_away(*state, BLOCK_F_UNMAP, false);
}

static void a_compressed_one(void **state)
{
        taken_away(*state, 0, true);
}

/* The file below takes its time to discard: nobody has the cluster before it is done. */
static void a_slow_discard(void **state)
{
        static struct op flush, other[OTHERS];
        struct fixture *f = *state;
        struct block_extent extent;

        assert_int_equal(block_write(f->on.disk, 0, f->a, CLUSTER), 0);
        assert_int_equal(block_flush(f->on.disk), 0);
        assert_int_equal(block_status(f->on.disk, 0, CLUSTER, &extent), 0);
        f->on.file->hold_op = BLOCK_DISCARD;
        f->on.file->hold_from = extent.host_bytes;
        f->on.file->hold_to = extent.host_bytes + CLUSTER;
        assert_int_equal(block_do(f->on.disk, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, 0, CLUSTER, NULL, 0), 0);
        begin(f, &flush, BLOCK_FLUSH, 0, 0, NULL);
        assert_false(flush.done);
        for (unsigned n = 0; n < OTHERS; n++)
                begin(f, &other[n], BLOCK_WRITE, (uint64_t)(n + 1) * CLUSTER, CLUSTER, f->b);
        memory_let_go(f->on.file);
        block_drain(f->on.disk);
        assert_true(flush.done && flush.result == 0);
        for (unsigned n = 0; n < OTHERS; n++) {
                assert_true(other[n].done && other[n].result == 0);
                assert_int_equal(block_read(f->on.disk, (uint64_t)(n + 1) * CLUSTER, f->seen, CLUSTER), 0);
                assert_memory_equal(f->seen, f->b, CLUSTER);
        }
}

static unsigned count_flushes(const struct memory_log *log)
{
        unsigned flushes = 0;

        for (unsigned n = 0; n < log->events; n++)
                flushes += log->event[n].op == BLOCK_FLUSH;
        return flushes;
}

/* Each costs as much as the disk takes for it: what a snapshot needs is the time that it takes. */
static void few_flushes(void **state)
{
        struct fixture *f = *state;
        struct memory_log log = { 0 };

        assert_int_equal(block_write(f->on.disk, 0, f->a, CLUSTER), 0);
        assert_int_equal(block_finish(f->on.disk, NULL), 0);
        f->on.file->log = &log;
        assert_int_equal(block_qcow2.snapshots->create(f->on.disk, "one", NULL), 0);
        assert_true(count_flushes(&log) <= 7); /* before, the dirty bit, the reserve, the list, the header, after, the bit again */
        memory_log_done(&log);
        assert_int_equal(block_finish(f->on.disk, NULL), 0);
        assert_true(count_flushes(&log) <= 2);
        f->on.file->log = NULL;
        memory_log_done(&log);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = { CASE(by_a_discard), CASE(by_zeroes), CASE(a_compressed_one), CASE(a_slow_discard), CASE(few_flushes) };

        log_init("test-reuse", LOG_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
