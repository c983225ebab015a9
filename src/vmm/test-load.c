/*
 * The loaders: what they take, where they put it, and that every cut, changed or random file is refused with words. Files are
 * memfds, so nothing is left behind.
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "vmm/load-samples.h"
#include "vmm/load.h"

#define MEMORY_BYTES (UINT64_C(128) << 20)
#define FILE_BYTES 65536u

struct fixture {
        struct guest_memory mem;
        struct load_input in;
        struct x86_state *state;
        uint8_t bytes[FILE_BYTES];
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));
        struct err err = ERR_INIT;

        assert_non_null(f);
        assert_int_equal(guest_memory_init(&f->mem, "test", &err), 0);
        assert_int_equal(guest_memory_add(&f->mem, 0, MEMORY_BYTES, &err), 0);
        f->state = aligned_alloc(64, align_up(sizeof(*f->state), 64));
        assert_non_null(f->state);
        memset(f->state, 0, sizeof(*f->state));
        f->in = (struct load_input){ .kernel.fd = -1, .initrd.fd = -1, .low_end = MEMORY_BYTES, .rsdp = 0xe0000, .ranges = 2 };
        f->in.e820[0] = (struct e820_range){ 0, LOAD_LOW_END, E820_RAM };
        f->in.e820[1] = (struct e820_range){ LOAD_HIGH, MEMORY_BYTES - LOAD_HIGH, E820_RAM };
        f->in.command_line = strdup("console=ttyS0");
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        load_close(&f->in);
        guest_memory_done(&f->mem);
        free(f->state);
        free(f);
        return 0;
}

static void give(struct load_file *file, const char *name, const void *bytes, size_t size)
{
        closep(&file->fd);
        free(file->path);
        file->fd = memfd_create(name, MFD_CLOEXEC);
        assert_true(file->fd >= 0);
        assert_int_equal(write(file->fd, bytes, size), size);
        file->size_bytes = size;
        file->path = strdup(name);
}

static int boot(struct fixture *f, struct err *err)
{
        *err = ERR_INIT;
        return load_boot(&f->in, &f->mem, f->state, err);
}

static void bzimage_is_loaded(void **state)
{
        struct fixture *f = *state;
        const struct boot_params *bp = guest_memory_at(&f->mem, LOAD_BOOT_PARAMS, sizeof(*bp));
        const uint64_t *tables = guest_memory_at(&f->mem, LOAD_PAGE_TABLES, 6 * GUEST_PAGE_SIZE);
        struct err err;

        give(&f->in.kernel, "bzImage", f->bytes, sample_bzimage(f->bytes, 4000));
        give(&f->in.initrd, "initrd", "an initrd", 9);
        assert_int_equal(boot(f, &err), 0);
        assert_int_equal(f->state->rip, 0x1000200);
        assert_int_equal(f->state->gpr[X86_RSI], LOAD_BOOT_PARAMS);
        assert_int_equal(f->state->cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE | X86_CR0_PG);
        assert_int_equal(f->state->efer, X86_EFER_LME | X86_EFER_LMA);
        assert_int_equal(f->state->seg[X86_CS].selector, 0x10);
        assert_true(f->state->seg[X86_CS].access & X86_ACCESS_L);
        assert_int_equal(f->state->rflags, X86_FLAG_FIXED);
        /* Identity: the last 2 MiB below 4 GiB. */
        assert_int_equal(tables[2 * 512 + 4 * 512 - 1], 0xffe00083);
        assert_memory_equal(guest_memory_at(&f->mem, 0x1000000, 4000), f->bytes + 1024, 4000);
        assert_int_equal(bp->hdr.header, 0x53726448);
        assert_int_equal(bp->acpi_rsdp_addr, 0xe0000);
        assert_int_equal(bp->e820_entries, 2);
        assert_int_equal(bp->hdr.ramdisk_size, 9);
        assert_true(bp->hdr.ramdisk_image + 9 <= MEMORY_BYTES && bp->hdr.ramdisk_image % GUEST_PAGE_SIZE == 0);
        assert_memory_equal(guest_memory_at(&f->mem, bp->hdr.ramdisk_image, 9), "an initrd", 9);
        assert_string_equal(guest_memory_at(&f->mem, bp->hdr.cmd_line_ptr, 14), "console=ttyS0");
        assert_int_equal(*(uint32_t *)guest_memory_at(&f->mem, bp->hdr.setup_data + 8, 4), 9); /* a seed */
}

static void pvh_is_loaded(void **state)
{
        struct fixture *f = *state;
        const uint32_t *info = guest_memory_at(&f->mem, LOAD_PVH_INFO, 64);
        struct err err;

        give(&f->in.kernel, "pvh", f->bytes, sample_elf(f->bytes, "\x0f\x0b", 2, true));
        give(&f->in.initrd, "initrd", "an initrd", 9);
        /* The part of a segment that is not in the file is zeroed, whatever was there. */
        memset(guest_memory_at(&f->mem, 0x100000, 8192), 0xff, 8192);
        assert_int_equal(boot(f, &err), 0);
        assert_int_equal(f->state->rip, 0x100000);
        assert_int_equal(f->state->gpr[X86_RBX], LOAD_PVH_INFO);
        assert_int_equal(f->state->cr0, X86_CR0_PE | X86_CR0_ET);
        assert_int_equal(f->state->seg[X86_CS].access & (X86_ACCESS_DB | X86_ACCESS_L), X86_ACCESS_DB);
        assert_int_equal(info[0], 0x336ec578);
        assert_int_equal(info[1], 1);
        assert_int_equal(info[3], 1); /* one module: the initrd */
        assert_int_equal(*(uint16_t *)guest_memory_at(&f->mem, 0x100000, 2), 0x0b0f);
        assert_int_equal(*(uint64_t *)guest_memory_at(&f->mem, 0x100008, 8), 0);
}

static void vmlinux_is_loaded(void **state)
{
        struct fixture *f = *state;
        struct err err;

        give(&f->in.kernel, "vmlinux", f->bytes, sample_elf(f->bytes, "\x0f\x0b", 2, false));
        assert_int_equal(boot(f, &err), 0);
        assert_int_equal(f->state->rip, 0x100000);
        assert_int_equal(f->state->gpr[X86_RSI], LOAD_BOOT_PARAMS);
        assert_true(f->state->seg[X86_CS].access & X86_ACCESS_L);
}

/* A refusal has words and no code of success. */
static void refused(struct fixture *f, int code)
{
        struct err err;
        int r = boot(f, &err);

        assert_true(r < 0);
        if (code)
                assert_int_equal(r, code);
        assert_int_equal(err.code, r);
        assert_true(err.text[0] && !strchr(err.text, '\n'));
}

static void each_cut_is_refused(void **state)
{
        struct fixture *f = *state;
        size_t size = sample_bzimage(f->bytes, 1024);

        for (size_t n = 1; n < size - 15; n += n < 1100 ? 1 : 13) {
                give(&f->in.kernel, "cut", f->bytes, n);
                refused(f, 0);
        }
        size = sample_elf(f->bytes, "\x0f\x0b\x90\x90", 4, true);
        for (size_t n = 1; n < size; n++) {
                give(&f->in.kernel, "cut", f->bytes, n);
                refused(f, 0);
        }
}

static void other_files_are_refused(void **state)
{
        struct fixture *f = *state;
        uint32_t seed = 1;

        for (unsigned round = 0; round < 50; round++) {
                for (size_t i = 0; i < 4096; i++)
                        f->bytes[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
                give(&f->in.kernel, "random", f->bytes, 4096);
                refused(f, -ENOEXEC);
        }
        memset(f->bytes, 0, 4096);
        give(&f->in.kernel, "zeroes", f->bytes, 4096);
        refused(f, -ENOEXEC);
}

static void too_large_is_refused(void **state)
{
        struct fixture *f = *state;
        struct setup_header *hdr = (struct setup_header *)(f->bytes + 0x1f1);
        size_t size = sample_bzimage(f->bytes, 1024);
        Elf64_Phdr *ph = (Elf64_Phdr *)(f->bytes + sizeof(Elf64_Ehdr));

        hdr->init_size = (uint32_t)MEMORY_BYTES;
        give(&f->in.kernel, "large", f->bytes, size);
        refused(f, -ENOMEM);
        sample_bzimage(f->bytes, 1024);
        hdr->pref_address = UINT64_MAX - 100;
        give(&f->in.kernel, "far", f->bytes, size);
        refused(f, 0);
        sample_bzimage(f->bytes, 1024);
        hdr->pref_address = 0x8000;
        give(&f->in.kernel, "low", f->bytes, size);
        refused(f, -EBADMSG);
        size = sample_elf(f->bytes, "\x0f\x0b", 2, true);
        ph->p_memsz = UINT64_MAX;
        give(&f->in.kernel, "wide", f->bytes, size);
        refused(f, 0);
        sample_elf(f->bytes, "\x0f\x0b", 2, true);
        ph->p_paddr = MEMORY_BYTES - 100;
        give(&f->in.kernel, "end", f->bytes, size);
        refused(f, -ENOMEM);
        sample_elf(f->bytes, "\x0f\x0b", 2, true);
        ph->p_filesz = ph->p_memsz = UINT64_MAX - 10;
        give(&f->in.kernel, "filesz", f->bytes, size);
        refused(f, 0);
}

static void initrd_must_fit(void **state)
{
        struct fixture *f = *state;

        give(&f->in.kernel, "bzImage", f->bytes, sample_bzimage(f->bytes, 1024));
        give(&f->in.initrd, "initrd", "x", 1);
        assert_int_equal(ftruncate(f->in.initrd.fd, (off_t)MEMORY_BYTES - 0x1100000 + 1), 0);
        f->in.initrd.size_bytes = MEMORY_BYTES - 0x1100000 + 1;
        refused(f, -ENOMEM);
}

static void command_line_has_a_limit(void **state)
{
        struct fixture *f = *state;
        struct err err;

        give(&f->in.kernel, "bzImage", f->bytes, sample_bzimage(f->bytes, 1024));
        free(f->in.command_line);
        f->in.command_line = calloc(1, 2049);
        assert_non_null(f->in.command_line);
        memset(f->in.command_line, 'a', 2048);
        refused(f, -E2BIG);
        f->in.command_line[2047] = '\0';
        assert_int_equal(boot(f, &err), 0);
}

static void other_architectures_are_refused(void **state)
{
        struct fixture *f = *state;
        size_t size = sample_elf(f->bytes, "\x0f\x0b", 2, true);
        Elf64_Ehdr *eh = (Elf64_Ehdr *)f->bytes;

        eh->e_machine = EM_AARCH64;
        give(&f->in.kernel, "arm", f->bytes, size);
        refused(f, -ENOEXEC);
        eh->e_machine = EM_X86_64;
        eh->e_type = ET_DYN;
        give(&f->in.kernel, "shared", f->bytes, size);
        refused(f, -ENOEXEC);
}

static void opening(void **state)
{
        struct load_input in;
        struct err err = ERR_INIT;

        assert_int_equal(load_open(&in, "/", NULL, "", &err), -EISDIR);
        assert_int_equal(load_open(&in, "/dev/null", NULL, "", &err), -EINVAL);
        assert_int_equal(load_open(&in, "/no/such/file", NULL, "", &err), -ENOENT);
        assert_non_null(strstr(err.text, "/no/such/file"));
        assert_int_equal(load_open(&in, "/proc/self/exe", "/no/such/initrd", "", &err), -ENOENT);
        assert_int_equal(in.kernel.fd, -1);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(bzimage_is_loaded, setup, teardown),
                cmocka_unit_test_setup_teardown(pvh_is_loaded, setup, teardown),
                cmocka_unit_test_setup_teardown(vmlinux_is_loaded, setup, teardown),
                cmocka_unit_test_setup_teardown(each_cut_is_refused, setup, teardown),
                cmocka_unit_test_setup_teardown(other_files_are_refused, setup, teardown),
                cmocka_unit_test_setup_teardown(too_large_is_refused, setup, teardown),
                cmocka_unit_test_setup_teardown(initrd_must_fit, setup, teardown),
                cmocka_unit_test_setup_teardown(command_line_has_a_limit, setup, teardown),
                cmocka_unit_test_setup_teardown(other_architectures_are_refused, setup, teardown),
                cmocka_unit_test(opening),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
