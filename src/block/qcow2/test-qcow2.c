/*
 * qcow2 images: random requests, several at once, against a copy in memory; what comes out is judged by our own check, by a second opening
 * and by qemu-img, where that is installed.
 */
#include "base/test.h"

#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "block/test-requests.h"

#define SNAPSHOTS 3

struct fixture {
        struct model_disk m;
        char path[96], base[96], secret[96]; /* secret: file:PATH, of the encrypted one */
        const struct block_option *option;
        unsigned options;
        uint8_t *kept[SNAPSHOTS]; /* what the snapshots have; NULL: there is none */
        bool no_snapshots;        /* counts are too narrow */
        bool backing, encrypted;
        unsigned flags;
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        model_begin(&f->m, "qcow2", false);
        f->m.flush_one_in = 6;
        f->m.durable_one_in = 8;
        snprintf(f->path, sizeof(f->path), "%s/disk.qcow2", f->m.dir);
        snprintf(f->base, sizeof(f->base), "%s/base.raw", f->m.dir);
        snprintf(f->secret, sizeof(f->secret), "file:%s/pass", f->m.dir);
        dump(f->secret + 5, (const uint8_t *)"a passphrase", 12);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        model_end(&f->m);
        for (unsigned n = 0; n < SNAPSHOTS; n++)
                free(f->kept[n]);
        free(f);
        return 0;
}

/* ---- images ---- */

static void open_image(struct fixture *f, unsigned flags)
{
        struct err err = ERR_INIT;
        struct block_opening opening = { .loop = &f->m.loop, .path = f->path, .format = "qcow2", .flags = f->flags | flags,
                                         .secret = f->secret };

        if (block_open(&opening, &f->m.disk, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(f->m.disk->info.size_bytes, f->m.size_bytes);
}

static void create_image(struct fixture *f)
{
        struct err err = ERR_INIT;
        struct block_creation creation = { .size_bytes = f->m.size_bytes, .option = f->option, .options = f->options };
        struct block_opening opening = { .loop = &f->m.loop, .path = f->path, .format = "qcow2", .secret = f->secret };

        model_room(&f->m, f->m.size_bytes);
        if (f->backing) { /* shorter than the image, and not of whole clusters */
                uint64_t size_bytes = f->m.size_bytes * 3 / 4 / 512 * 512 - 512;

                for (uint64_t at = 0; at < size_bytes; at++)
                        f->m.model[at] = at % 50000 < 20000 ? 0 : (uint8_t)(at >> 9 ^ at);
                dump(f->base, f->m.model, size_bytes);
                creation.backing = "base.raw";
                creation.backing_format = "raw";
        }
        if (block_create(&opening, &creation, true, &err) < 0)
                fail_msg("%s", err.text);
        model_run_loop(&f->m);
}

/* ---- judges ---- */

static void judge(struct fixture *f, bool leaks)
{
        int r;

        open_image(f, BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR | BLOCK_OPEN_NO_LOCK);
        check_disk(&f->m, leaks, BLOCK_MEND_NOTHING);
        model_close(&f->m, false);
        if (!have_qemu_img())
                return;
        if (f->encrypted)
                r = command("qemu-img check -q --object secret,id=s,file=%s --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=%s >/dev/null 2>&1",
                            f->secret + 5, f->path);
        else
                r = command("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1", f->path);
        if (r != 0 && !(leaks && r == 3))
                fail_msg("qemu-img check ends with %d", r);
        if (!f->encrypted) {
                compare_by_qemu(&f->m, "qcow2", f->path);
                return;
        }
        dump(f->m.model_path, f->m.model, f->m.size_bytes);
        assert_int_equal(command("qemu-img compare -q --object secret,id=s,file=%s --image-opts driver=raw,file.filename=%s "
                                 "driver=qcow2,encrypt.key-secret=s,file.filename=%s", f->secret + 5, f->m.model_path, f->path), 0);
}

/* ---- what becomes of an image ---- */

/* Makes, goes back to or deletes one. */
static void random_snapshot(struct fixture *f)
{
        const struct block_snapshot_ops *ops = f->m.disk->driver->snapshots;
        unsigned n = random_of(&f->m, SNAPSHOTS);
        struct err err = ERR_INIT;
        char name[16];
        int r;

        snprintf(name, sizeof(name), "state %u", n);
        if (!f->kept[n]) {
                r = ops->create(f->m.disk, name, &err);
                if (r < 0 && !f->no_snapshots)
                        fail_msg("%s", err.text);
                assert_int_equal(r, f->no_snapshots ? -ERANGE : 0);
                if (f->no_snapshots)
                        return;
                f->kept[n] = malloc(f->m.size_bytes);
                memcpy(f->kept[n], f->m.model, f->m.size_bytes);
        } else if (random_of(&f->m, 2)) {
                if (ops->apply(f->m.disk, name, &err) < 0)
                        fail_msg("%s", err.text);
                memcpy(f->m.model, f->kept[n], f->m.size_bytes);
        } else {
                if (ops->delete(f->m.disk, name, &err) < 0)
                        fail_msg("%s", err.text);
                free(f->kept[n]);
                f->kept[n] = NULL;
        }
}

static void random_life(struct fixture *f, uint64_t size_bytes, unsigned rounds)
{
        f->m.size_bytes = size_bytes;
        create_image(f);
        for (unsigned round = 0; round < rounds; round++) {
                bool finish = round % 2;

                open_image(f, 0);
                compare_all(&f->m);
                random_requests(&f->m, 400);
                random_discards(&f->m, 20);
                random_snapshot(f);
                random_requests(&f->m, 200);
                compare_all(&f->m);
                random_snapshot(f);
                random_requests(&f->m, 100);
                random_snapshot(f);
                if (!finish)
                        assert_int_equal(block_flush(f->m.disk), 0);
                model_close(&f->m, finish);
                judge(f, !finish || round > 0);
        }
}

static void random_plain(void **state)
{
        struct fixture *f = *state;

        f->m.seed = 1;
        random_life(f, 9 * MIB + 512, 4);
}

static void random_threads(void **state)
{
        struct fixture *f = *state;

        f->m.seed = 2;
        f->flags = BLOCK_OPEN_NO_URING;
        random_life(f, 9 * MIB + 512, 2);
}

static void random_backing(void **state)
{
        struct fixture *f = *state;

        f->m.seed = 3;
        f->backing = true;
        random_life(f, 7 * MIB, 4);
}

#define RANDOM_WITH(name, number, behind, size, ...)                                                  \
        static void name(void **state)                                                                \
        {                                                                                             \
                static const struct block_option option[] = { __VA_ARGS__ };                          \
                struct fixture *f = *state;                                                           \
                                                                                                      \
                f->m.seed = number;                                                                     \
                f->no_snapshots = number == 8;                                                        \
                f->backing = behind;                                                                  \
                f->encrypted = number >= 12;                                                          \
                f->option = option;                                                                   \
                f->options = ARRAY_SIZE(option);                                                      \
                random_life(f, size, 3);                                                              \
        }

RANDOM_WITH(random_tiny_clusters, 4, false, 4 * MIB, { "cluster_size", "512" })
RANDOM_WITH(random_tiny_backing, 5, true, 4 * MIB, { "cluster_size", "512" })
RANDOM_WITH(random_huge_clusters, 6, true, 16 * MIB, { "cluster_size", "2M" })
RANDOM_WITH(random_old_version, 7, false, 6 * MIB, { "version", "2" }, { "cluster_size", "4096" })
RANDOM_WITH(random_one_bit, 8, true, 6 * MIB, { "refcount_bits", "1" }, { "cluster_size", "4K" })
RANDOM_WITH(random_64_bits, 9, false, 6 * MIB, { "refcount_bits", "64" }, { "cluster_size", "1K" })
RANDOM_WITH(random_subclusters, 10, true, 8 * MIB, { "extended_l2", "on" })
RANDOM_WITH(random_small_subclusters, 11, false, 8 * MIB, { "extended_l2", "on" }, { "cluster_size", "16K" })
RANDOM_WITH(random_encrypted, 12, true, 6 * MIB + 512, { "encrypt", "luks" }, { "encrypt.iter_time", "10" })
RANDOM_WITH(random_encrypted_subclusters, 13, false, 6 * MIB, { "encrypt", "luks" }, { "encrypt.iter_time", "10" }, { "extended_l2", "on" })

int main(void)
{
        log_init("test-qcow2", LOG_INFO);
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(random_plain), CASE(random_threads), CASE(random_backing), CASE(random_tiny_clusters), CASE(random_tiny_backing),
                CASE(random_huge_clusters), CASE(random_old_version), CASE(random_one_bit), CASE(random_64_bits), CASE(random_subclusters),
                CASE(random_small_subclusters), CASE(random_encrypted), CASE(random_encrypted_subclusters),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
