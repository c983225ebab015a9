/*
 * Image formats beside qcow2: random requests, several at once, against a copy in memory; then QEMU writes to the same image. What comes out
 * is judged by our own check, by a second opening, and by qemu-img, where that is installed.
 */
#include "base/test.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "block/test-requests.h"

#define COMMANDS_MAX 16384

struct fixture {
        struct model_disk m;
        char path[96];
        const char *format, *theirs; /* the name that QEMU has for it */
        bool checked_by_qemu, backing, resized;
        char secret[96];             /* of encrypted ones, file:PATH */
        const struct block_option *option;
        unsigned options;
        uint64_t room_bytes;
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        model_begin(&f->m, "formats", true); /* flushes are nothing that this test looks at */
        f->m.flush_one_in = 40;
        f->m.durable_one_in = 60;
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        model_end(&f->m);
        free(f);
        return 0;
}

/* ---- images ---- */

static void open_image(struct fixture *f, unsigned flags)
{
        struct err err = ERR_INIT;
        struct block_opening opening = { .loop = &f->m.loop, .path = f->path, .format = f->format, .flags = flags, .secret = f->secret };

        if (block_open(&opening, &f->m.disk, &err) < 0)
                fail_msg("%s", err.text);
        if (!(flags & BLOCK_OPEN_REPAIR))
                assert_int_equal(f->m.disk->info.size_bytes, f->m.size_bytes);
}

/* What is behind, in the same format. */
static void create_backing(struct fixture *f, struct block_creation *creation)
{
        char path[96], *at = strrchr(f->path, '/');
        struct block_creation base = { .size_bytes = f->m.size_bytes };
        struct block_opening opening = { .loop = &f->m.loop, .path = path, .format = f->format };
        struct err err = ERR_INIT;
        struct block *disk;

        snprintf(path, sizeof(path), "%.*s/base%s", (int)(at - f->path), f->path, strrchr(at, '.'));
        for (uint64_t k = 0; k < f->m.size_bytes; k++)
                f->m.model[k] = k % 500000 < 200000 ? 0 : (uint8_t)(k >> 9 ^ k);
        if (block_create(&opening, &base, true, &err) < 0 || block_open(&opening, &disk, &err) < 0)
                fail_msg("%s", err.text);
        for (uint64_t k = 0; k < f->m.size_bytes; k += 500000) {
                uint64_t from = k + 200000;

                if (from < f->m.size_bytes)
                        assert_int_equal(block_write(disk, from, f->m.model + from, MIN(UINT64_C(300000), f->m.size_bytes - from)), 0);
        }
        if (block_finish(disk, &err) < 0)
                fail_msg("%s", err.text);
        block_close(disk);
        model_run_loop(&f->m);
        creation->backing = strdup(strrchr(path, '/') + 1);
        creation->backing_format = f->format;
}

static void create_image(struct fixture *f)
{
        struct err err = ERR_INIT;
        struct block_creation creation = { .size_bytes = f->m.size_bytes, .option = f->option, .options = f->options };
        struct block_opening opening = { .loop = &f->m.loop, .path = f->path, .format = f->format, .secret = f->secret };

        f->room_bytes = f->m.size_bytes * 2;
        model_room(&f->m, f->room_bytes);
        if (f->backing)
                create_backing(f, &creation);
        snprintf(f->secret, sizeof(f->secret), "file:%s/pass", f->m.dir);
        dump(f->secret + 5, (const uint8_t *)"a passphrase\n", 13);
        if (block_create(&opening, &creation, true, &err) < 0)
                fail_msg("%s", err.text);
        model_run_loop(&f->m);
        free((char *)creation.backing);
}

/* ---- judges ---- */

static void check_image(struct fixture *f, bool leaks, enum block_mend mend)
{
        open_image(f, BLOCK_OPEN_REPAIR | (mend ? 0 : BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK));
        check_disk(&f->m, leaks, mend);
        model_close(&f->m, mend);
}

static void judge(struct fixture *f)
{
        if (!f->theirs || !have_qemu_img())
                return;
        if (f->checked_by_qemu)
                assert_int_equal(command("qemu-img check -q -f %s '%s' >'%s/out' 2>&1 || { cat '%s/out'; exit 1; }", f->theirs, f->path, f->m.dir,
                                         f->m.dir), 0);
        compare_by_qemu(&f->m, f->theirs, f->path);
}

/* ---- what becomes of an image ---- */

static void random_resize(struct fixture *f)
{
        uint64_t size_bytes = f->room_bytes / 2048 * 512 + (uint64_t)random_of(&f->m, (uint32_t)(f->room_bytes / 4 * 3 / 512)) * 512;
        struct err err = ERR_INIT;

        if (block_resize(f->m.disk, size_bytes, &err) < 0)
                fail_msg("%s", err.text);
        if (size_bytes > f->m.size_bytes)
                memset(f->m.model + f->m.size_bytes, 0, size_bytes - f->m.size_bytes);
        f->m.size_bytes = size_bytes;
}

/* Whole sectors, as it has them; all in one run of qemu-io. */
static void writes_by_qemu(struct fixture *f, unsigned count)
{
        char *commands = malloc(COMMANDS_MAX);
        size_t used = 0;

        if (!f->theirs || !have_qemu_img()) {
                free(commands);
                return;
        }
        for (unsigned n = 0; n < count; n++) {
                uint64_t from, size_bytes;
                unsigned fill = random_of(&f->m, 256);

                random_range(&f->m, &from, &size_bytes);
                from = from / 512 * 512;
                size_bytes = MIN(align_up(size_bytes, 512), f->m.size_bytes - from);
                if (random_of(&f->m, 4) == 0) {
                        used += (size_t)snprintf(commands + used, COMMANDS_MAX - used, " -c 'write -z %" PRIu64 " %" PRIu64 "'", from, size_bytes);
                        fill = 0;
                } else {
                        used += (size_t)snprintf(commands + used, COMMANDS_MAX - used, " -c 'write -P %u %" PRIu64 " %" PRIu64 "'", fill, from, size_bytes);
                }
                memset(f->m.model + from, (int)fill, size_bytes);
        }
        assert_int_equal(command("qemu-io -f %s %s '%s' >'%s/out' 2>&1 && ! grep -i -q fail '%s/out' || { cat '%s/out'; exit 1; }", f->theirs, commands,
                                 f->path, f->m.dir, f->m.dir, f->m.dir), 0);
        free(commands);
}

static void random_life(struct fixture *f, unsigned rounds)
{
        create_image(f);
        for (unsigned round = 0; round < rounds; round++) {
                bool finish = round % 2 == 0;

                open_image(f, 0);
                if (round == 0 && f->m.disk->info.noise)
                        assert_int_equal(block_do(f->m.disk, BLOCK_WRITE_ZEROES, 0, 0, f->m.size_bytes, NULL, 0), 0);
                compare_all(&f->m);
                random_requests(&f->m, 30); /* some blocks stay free */
                compare_all(&f->m);
                random_requests(&f->m, 300);
                random_discards(&f->m, 20);
                compare_all(&f->m);
                if (f->resized)
                        random_resize(f);
                random_requests(&f->m, 100);
                compare_all(&f->m);
                if (!finish)
                        assert_int_equal(block_flush(f->m.disk), 0);
                model_close(&f->m, finish);
                if (!finish && f->theirs && strcmp(f->theirs, "vhdx") == 0 && have_qemu_img()) { /* its log is one for QEMU, too */
                        dump(f->m.model_path, f->m.model, f->m.size_bytes);
                        assert_int_equal(command("cd '%s' && cp disk.vhdx copy && qemu-img check -q -r all -f vhdx copy && "
                                                 "qemu-img compare -q -f raw -F vhdx model.raw copy", f->m.dir), 0);
                }
                check_image(f, !finish, BLOCK_MEND_NOTHING);
                if (!finish)
                        check_image(f, true, BLOCK_MEND_ALL);
                judge(f);
                writes_by_qemu(f, 20);
                check_image(f, false, BLOCK_MEND_NOTHING);
        }
        open_image(f, BLOCK_OPEN_READONLY);
        compare_all(&f->m);
        model_close(&f->m, true);
}

/* A name; the format, its suffix, QEMU's name for it; flags; size; options. */
#define CHECKED 1
#define BACKED 2
#define RESIZED 4
#define LIFE(name, ours, suffix, qemu, flags, size, ...)                                                                                \
        static void name(void **state)                                                                                                  \
        {                                                                                                                               \
                static const struct block_option option[] = { __VA_ARGS__ };                                                            \
                struct fixture *f = *state;                                                                                             \
                                                                                                                                        \
                f->m.seed = UINT64_C(88172645463325252) + __LINE__;                                                                       \
                f->format = ours;                                                                                                       \
                f->theirs = qemu;                                                                                                       \
                f->checked_by_qemu = (flags) & CHECKED;                                                                                 \
                f->backing = (flags) & BACKED;                                                                                          \
                f->resized = (flags) & RESIZED;                                                                                         \
                f->m.size_bytes = size;                                                                                                   \
                f->option = option;                                                                                                     \
                f->options = ARRAY_SIZE(option);                                                                                        \
                snprintf(f->path, sizeof(f->path), "%s/disk" suffix, f->m.dir);                                                           \
                random_life(f, 3);                                                                                                      \
        }

LIFE(vdi_dynamic, "vdi", ".vdi", "vdi", CHECKED, 40 * MIB + 512, { "static", "off" })
LIFE(vdi_static, "vdi", ".vdi", "vdi", CHECKED, 9 * MIB + 512, { "static", "on" })
LIFE(vdi_small_blocks, "vdi", ".vdi", NULL, RESIZED, 9 * MIB + 512, { "block_size", "8K" })
LIFE(vdi_resized, "vdi", ".vdi", "vdi", CHECKED | RESIZED, 20 * MIB, { "static", "off" })
LIFE(vhd_dynamic, "vhd", ".vhd", "vpc", 0, 40 * MIB + 512, { "subformat", "dynamic" })
LIFE(vhd_fixed, "vhd", ".vhd", "vpc", RESIZED, 9 * MIB + 512, { "subformat", "fixed" })
LIFE(vhd_small_blocks, "vhd", ".vpc", "vpc", RESIZED, 9 * MIB + 512, { "block_size", "16K" })
LIFE(vmdk_sparse, "vmdk", ".vmdk", "vmdk", CHECKED, 40 * MIB + 512, { "subformat", "monolithicSparse" })
LIFE(vmdk_flat, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "monolithicFlat" })
LIFE(vmdk_split, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "twoGbMaxExtentSparse" })
LIFE(vmdk_split_flat, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "twoGbMaxExtentFlat" })
LIFE(vmdk_zeroed, "vmdk", ".vmdk", "vmdk", CHECKED, 40 * MIB + 512, { "zeroed_grain", "on" })
LIFE(vmdk_backing, "vmdk", ".vmdk", "vmdk", CHECKED | BACKED, 20 * MIB, { "zeroed_grain", "off" })
LIFE(vmdk_backing_zeroed, "vmdk", ".vmdk", "vmdk", CHECKED | BACKED, 20 * MIB + 512, { "zeroed_grain", "on" })
LIFE(vhdx_dynamic, "vhdx", ".vhdx", "vhdx", CHECKED, 40 * MIB + 512, { "block_size", "1M" })
LIFE(vhdx_fixed, "vhdx", ".vhdx", "vhdx", CHECKED, 9 * MIB + 512, { "subformat", "fixed" })
LIFE(vhdx_sectors, "vhdx", ".vhdx", NULL, 0, 20 * MIB, { "logical_sector", "4096" }, { "block_size", "2M" })
LIFE(luks_1, "luks", ".luks", NULL, RESIZED, 5 * MIB + 512, { "version", "1" }, { "iter_time", "10" })
LIFE(luks_2, "luks", ".luks", NULL, 0, 5 * MIB, { "sector_size", "4096" }, { "iter_time", "10" }, { "memory", "1M" })

int main(int argc, char **argv)
{
        log_init("test-formats", LOG_INFO);
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(vdi_dynamic), CASE(vdi_static), CASE(vdi_small_blocks), CASE(vdi_resized),
                CASE(vhd_dynamic), CASE(vhd_fixed), CASE(vhd_small_blocks),
                CASE(vmdk_sparse), CASE(vmdk_flat), CASE(vmdk_split), CASE(vmdk_split_flat), CASE(vmdk_zeroed), CASE(vmdk_backing), CASE(vmdk_backing_zeroed),
                CASE(vhdx_dynamic), CASE(vhdx_fixed), CASE(vhdx_sectors), CASE(luks_1), CASE(luks_2),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
