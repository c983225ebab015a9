/*
 * The ACPI tables: checksums and links here, their meaning by somebody else's program: iasl takes each apart and, for what it
 * wrote, compiles it again without an error or a warning (left out, and said so, where iasl is not installed).
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/cursor.h"
#include "vmm/acpi.h"

static uint8_t sum(const uint8_t *bytes, size_t size)
{
        uint8_t total = 0;

        while (size--)
                total = (uint8_t)(total + *bytes++);
        return total;
}

static uint32_t le32(const uint8_t *at)
{
        return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void build(unsigned cpus, bool hpet, struct writer *out)
{
        const struct acpi_config config = {
                .cpus = cpus, .hpet = hpet, .window64 = UINT64_C(64) << 30, .window64_size = UINT64_C(32) << 30
        };
        struct err err = ERR_INIT;

        assert_int_equal(acpi_tables(&config, out, &err), 0);
}

static const uint8_t *table_at(const struct writer *out, uint64_t address)
{
        assert_true(address >= ACPI_BASE && address - ACPI_BASE + 36 <= out->size);
        return out->bytes + (address - ACPI_BASE);
}

static void check_links(const struct writer *out, unsigned expected)
{
        const uint8_t *rsdp = out->bytes, *xsdt;
        unsigned count;

        assert_memory_equal(rsdp, "RSD PTR ", 8);
        assert_int_equal(sum(rsdp, 20), 0);
        assert_int_equal(sum(rsdp, 36), 0);
        xsdt = table_at(out, le32(rsdp + 24));
        assert_memory_equal(xsdt, "XSDT", 4);
        assert_int_equal(sum(xsdt, le32(xsdt + 4)), 0);
        count = (le32(xsdt + 4) - 36) / 8;
        assert_int_equal(count, expected);
        for (unsigned i = 0; i < count; i++) {
                const uint8_t *table = table_at(out, le32(xsdt + 36 + 8 * i));

                assert_int_equal(sum(table, le32(table + 4)), 0);
                if (!memcmp(table, "FACP", 4)) {
                        const uint8_t *dsdt = table_at(out, le32(table + 40));

                        assert_int_equal(le32(table + 4), 276);
                        assert_memory_equal(dsdt, "DSDT", 4);
                        assert_int_equal(sum(dsdt, le32(dsdt + 4)), 0);
                        assert_memory_equal(table_at(out, le32(table + 36)), "FACS", 4);
                        assert_int_equal(le32(table + 36) % 64, 0);
                }
        }
}

static void tables_are_linked(void **state)
{
        for (unsigned cpus = 1; cpus <= 64; cpus += cpus < 4 ? 1 : 12) {
                struct writer out = { 0 };

                build(cpus, cpus & 1, &out);
                check_links(&out, cpus & 1 ? 4 : 3);
                writer_done(&out);
        }
}

static int run_in(const char *dir, const char *command)
{
        char line[512];
        int status;

        snprintf(line, sizeof(line), "cd %s && { %s; } >log 2>&1 </dev/null", dir, command);
        status = system(line);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void write_table(const char *dir, const char *name, const uint8_t *bytes, size_t size)
{
        char path[256];
        int fd;

        snprintf(path, sizeof(path), "%s/%s.dat", dir, name);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, size), size);
        close(fd);
}

static void recompile(const char *dir, const char *name)
{
        char command[300];

        snprintf(command, sizeof(command),
                 "iasl -d %s.dat && ! grep -iE 'error|warning|unknown|invalid' %s.dsl && iasl -p again %s.dsl && "
                 "grep -q '0 Errors, 0 Warnings' log || { grep -q 'Compilation successful' log && ! grep -E '[1-9][0-9]* Errors' "
                 "log; }",
                 name, name, name);
        if (run_in(dir, command)) {
                snprintf(command, sizeof(command), "cat %s/log", dir);
                (void)!system(command);
                fail_msg("iasl does not like table %s", name);
        }
}

static void iasl_reads_and_recompiles(void **state)
{
        char dir[] = "/tmp/virta-acpi-XXXXXX";
        struct writer out = { 0 };
        const uint8_t *xsdt, *fadt = NULL;

        if (system("command -v iasl >/dev/null 2>&1")) {
                print_message("iasl is not installed: its part is left out\n");
                skip();
        }
        assert_non_null(mkdtemp(dir));
        build(4, true, &out);
        xsdt = table_at(&out, le32(out.bytes + 24));
        for (unsigned i = 0; i < (le32(xsdt + 4) - 36) / 8; i++) {
                const uint8_t *table = table_at(&out, le32(xsdt + 36 + 8 * i));
                char name[5] = { 0 };

                memcpy(name, table, 4);
                if (!memcmp(table, "FACP", 4))
                        fadt = table;
                write_table(dir, name, table, le32(table + 4));
                recompile(dir, name);
        }
        assert_non_null(fadt);
        write_table(dir, "DSDT", table_at(&out, le32(fadt + 40)), le32(table_at(&out, le32(fadt + 40)) + 4));
        recompile(dir, "DSDT");
        /* What was compiled again is, but for the compiler's own name in the header, what was written. */
        assert_int_equal(run_in(dir, "cmp -i 36 DSDT.dat again.aml"), 0);
        run_in(dir, "rm -f ./*.dat ./*.dsl ./*.aml log");
        assert_int_equal(rmdir(dir), 0);
        writer_done(&out);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(tables_are_linked),
                cmocka_unit_test(iasl_reads_and_recompiles),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
