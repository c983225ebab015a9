/*
 * A whole machine with small guests of its own: it runs to power-off, is paused, reset, saved in the middle of its work and gone
 * on with in another machine, and ends as it should on resets and triple faults. Broken saved states are refused and harm
 * nothing.
 *
 * With VIRTA_GUEST it is Linux that is frozen and goes on. VIRTA_TEST_ACCEL names the accelerator (software); tests/kvm/run runs
 * this inside of a true KVM.
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "device/char.h"
#include "vmm/load-samples.h"
#include "vmm/machine.h"

#define ROUNDS 16
#define RESULT_DIGITS 24u
#define TIME_LIMIT_NS UINT64_C(60000000000)
#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)

/*
 * A dot for each 65536 steps of a sum that lives in general registers, SSE, x87 and memory; at the end the sums in hexadecimal on
 * the serial line, and power-off. Its counterpart is expected_result(). 32-bit code for the PVH entry at 1 MiB.
 */
__asm__(".pushsection .rodata\n"
        ".code32\n"
        "sum_guest:\n"
        "       mov $0x9000, %esp\n"
        "       mov %cr4, %eax\n"
        "       or $0x600, %eax\n"
        "       mov %eax, %cr4\n"
        "       fninit\n"
        "       fldz\n"
        "       xor %ebx, %ebx\n"
        "       mov $1, %ecx\n"
        "       pxor %xmm0, %xmm0\n"
        "       movl $0, 0x200000\n"
        "1:     imul $1664525, %ecx, %ecx\n"
        "       add $1013904223, %ecx\n"
        "       movd %ecx, %xmm1\n"
        "       paddd %xmm1, %xmm0\n"
        "       fld1\n"
        "       faddp\n"
        "       add %ecx, 0x200000\n"
        "       inc %ebx\n"
        "       test $0xffff, %ebx\n"
        "       jnz 1b\n"
        "       mov $'.', %al\n"
        "       call 8f\n"
        "       cmp $(" STRINGIFY(ROUNDS) " << 16), %ebx\n"
                                          "       jb 1b\n"
                                          "       mov %ecx, %ebp\n"
                                          "       call 5f\n"
                                          "       movd %xmm0, %ebp\n"
                                          "       call 5f\n"
                                          "       fistpl 0x200004\n"
                                          "       mov 0x200004, %ebp\n"
                                          "       add 0x200000, %ebp\n"
                                          "       call 5f\n"
                                          "       mov $0x604, %dx\n"
                                          "       mov $(5 << 10 | 1 << 13), %ax\n"
                                          "       out %ax, %dx\n"
                                          "2:     hlt\n"
                                          "       jmp 2b\n"
                                          /* EBP in hexadecimal. */
                                          "5:     mov $8, %esi\n"
                                          "6:     rol $4, %ebp\n"
                                          "       mov %ebp, %eax\n"
                                          "       and $15, %al\n"
                                          "       add $'0', %al\n"
                                          "       cmp $'9', %al\n"
                                          "       jbe 7f\n"
                                          "       add $('a' - '9' - 1), %al\n"
                                          "7:     call 8f\n"
                                          "       dec %esi\n"
                                          "       jnz 6b\n"
                                          "       ret\n"
                                          /* AL to the serial line. */
                                          "8:     mov %al, %ah\n"
                                          "9:     mov $0x3fd, %dx\n"
                                          "       in %dx, %al\n"
                                          "       test $0x20, %al\n"
                                          "       jz 9b\n"
                                          "       mov $0x3f8, %dx\n"
                                          "       mov %ah, %al\n"
                                          "       out %al, %dx\n"
                                          "       ret\n"
                                          "sum_guest_end:\n"
                                          ".code64\n"
                                          ".popsection\n");
extern const uint8_t sum_guest[], sum_guest_end[];

static const uint8_t fault_guest[] = { 0x0f, 0x0b };                                                 /* ud2, with no IDT */
static const uint8_t reset_guest[] = { 0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd }; /* out 6 to 0xcf9; hlt */
static const uint8_t halt_guest[] = { 0xf4, 0xeb, 0xfd };                                            /* hlt for ever */

static void expected_result(char text[RESULT_DIGITS + 1])
{
        uint32_t value = 1, sse = 0, memory = 0, count = 0;

        for (uint32_t i = 0; i < ROUNDS << 16; i++) {
                value = value * 1664525u + 1013904223u;
                sse += value;
                memory += value;
                count++;
        }
        snprintf(text, RESULT_DIGITS + 1, "%08x%08x%08x", value, sse, memory + count);
}

/* Everything around a machine. */
struct rig {
        uv_loop_t loop;
        struct machine *machine;
        struct char_backend serial;
        pthread_mutex_t lock;
        char output[1 << 18];
        size_t used;
        bool ended;
        enum vmm_exit exit;
        struct err err;
        unsigned resets;
        char path[64];
        int fd;
};

static size_t take_output(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct rig *rig = ctx;

        pthread_mutex_lock(&rig->lock);
        for (size_t i = 0; i < size_bytes && rig->used < sizeof(rig->output) - 1; i++)
                rig->output[rig->used++] = (char)bytes[i];
        pthread_mutex_unlock(&rig->lock);
        return size_bytes;
}

static size_t output_used(struct rig *rig)
{
        size_t used;

        pthread_mutex_lock(&rig->lock);
        used = rig->used;
        pthread_mutex_unlock(&rig->lock);
        return used;
}

static void no_room_wanted(void *ctx)
{
}

static void on_ended(void *ctx, enum vmm_exit exit, const struct err *err)
{
        struct rig *rig = ctx;

        rig->ended = true;
        rig->exit = exit;
        if (err)
                rig->err = *err;
}

static void on_reset(void *ctx)
{
        ((struct rig *)ctx)->resets++;
}

static const struct accel_ops *test_accel(void)
{
        const struct accel_ops *ops;
        struct err why = ERR_INIT, err = ERR_INIT;
        const char *name = getenv("VIRTA_TEST_ACCEL");

        if (accel_choose(name ? name : "software", &ops, &why, &err) < 0)
                fail_msg("%s", err.text);
        return ops;
}

static struct rig *rig_empty(void)
{
        struct rig *rig = calloc(1, sizeof(*rig));

        assert_non_null(rig);
        pthread_mutex_init(&rig->lock, NULL);
        rig->serial = (struct char_backend){ take_output, no_room_wanted, rig };
        assert_int_equal(uv_loop_init(&rig->loop), 0);
        rig->fd = -1;
        return rig;
}

static void rig_make(struct rig *rig, const struct vmm_config *config)
{
        const struct machine_host host = { .ended = on_ended, .was_reset = on_reset, .ctx = rig, .serial = &rig->serial };
        const int no_nets[VMM_NETS_MAX] = { -1, -1, -1, -1 };
        struct err err = ERR_INIT;

        if (machine_new(config, test_accel(), &rig->loop, &host, no_nets, &rig->machine, &err) < 0 ||
            machine_boot(rig->machine, &err) < 0 || machine_start(rig->machine, &err) < 0)
                fail_msg("%s", err.text);
}

/* A machine with a guest of ours. */
static struct rig *rig_new(const void *code, size_t size, unsigned cpus, bool no_reboot)
{
        static uint8_t file[65536];
        struct vmm_config config = { .memory_bytes = VMM_MEMORY_MIN_BYTES, .cpus = cpus, .no_reboot = no_reboot };
        struct rig *rig = rig_empty();
        size_t file_size;

        rig->fd = memfd_create("kernel", MFD_CLOEXEC);
        file_size = sample_elf(file, code, (uint32_t)size, true);
        assert_int_equal(write(rig->fd, file, file_size), file_size);
        snprintf(rig->path, sizeof(rig->path), "/proc/self/fd/%d", rig->fd);
        config.kernel = rig->path;
        rig_make(rig, &config);
        return rig;
}

static void rig_free(struct rig *rig)
{
        machine_free(rig->machine);
        uv_run(&rig->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&rig->loop), 0);
        pthread_mutex_destroy(&rig->lock);
        closep(&rig->fd);
        free(rig);
}

static void tick(uv_timer_t *timer)
{
}

/* Runs the loop until there are so many bytes of output, or the machine ended, or so many resets; fails when none comes. */
static void run_until(struct rig *rig, size_t bytes, unsigned resets)
{
        uint64_t end = uv_hrtime() + TIME_LIMIT_NS;
        uv_timer_t timer;

        uv_timer_init(&rig->loop, &timer);
        uv_timer_start(&timer, tick, 1, 1);
        while (!rig->ended && output_used(rig) < bytes && rig->resets < resets && uv_hrtime() < end)
                uv_run(&rig->loop, UV_RUN_ONCE);
        uv_close((uv_handle_t *)&timer, NULL);
        uv_run(&rig->loop, UV_RUN_NOWAIT);
        if (!rig->ended && output_used(rig) < bytes && rig->resets < resets) {
                fprintf(stderr, "%s\n", rig->output);
                fail_msg("the guest does not go on");
        }
}

static void check_result(struct rig *rig, size_t dots)
{
        char expected[RESULT_DIGITS + 1];

        assert_true(rig->ended);
        assert_int_equal(rig->exit, VMM_EXIT_OK);
        assert_int_equal(rig->used, dots + RESULT_DIGITS);
        for (size_t i = 0; i < dots; i++)
                assert_int_equal(rig->output[i], '.');
        expected_result(expected);
        assert_memory_equal(rig->output + dots, expected, RESULT_DIGITS);
}

static void runs_to_power_off(void **state)
{
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 1, false);

        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 1);
        check_result(rig, ROUNDS);
        rig_free(rig);
}

static void pauses_change_nothing(void **state)
{
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 2, false);

        machine_resume(rig->machine);
        for (size_t dots = 1; dots < ROUNDS; dots += 3) {
                size_t used;

                run_until(rig, dots, 1);
                machine_pause(rig->machine);
                machine_pause(rig->machine);
                used = output_used(rig);
                machine_resume(rig->machine);
                usleep(10000);
                assert_int_equal(output_used(rig), used);
                machine_resume(rig->machine);
        }
        run_until(rig, SIZE_MAX, 1);
        check_result(rig, ROUNDS);
        rig_free(rig);
}

static void reset_starts_again(void **state)
{
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 1, false);
        struct err err = ERR_INIT;

        machine_resume(rig->machine);
        run_until(rig, 3, 1);
        machine_pause(rig->machine);
        assert_int_equal(machine_reset(rig->machine, &err), 0);
        rig->used = 0;
        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 1);
        check_result(rig, ROUNDS);
        rig_free(rig);
}

/* The kernel's file is gone when the guest is to start again. */
static void failed_reset_runs_nothing(void **state)
{
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 2, false);
        struct err err = ERR_INIT;
        size_t used;

        machine_resume(rig->machine);
        run_until(rig, 1, 1);
        assert_int_equal(ftruncate(rig->fd, 0), 0);
        assert_true(machine_reset(rig->machine, &err) < 0);
        assert_non_null(strstr(err.text, rig->path));
        used = output_used(rig);
        usleep(50000);
        uv_run(&rig->loop, UV_RUN_NOWAIT);
        assert_int_equal(output_used(rig), used);
        assert_false(rig->ended);
        rig_free(rig);
}

static void copy_memory(struct rig *to, struct rig *from)
{
        struct guest_memory *a = machine_memory(to->machine), *b = machine_memory(from->machine);

        assert_int_equal(a->regions, b->regions);
        for (unsigned i = 0; i < a->regions; i++)
                memcpy(a->region[i].host, b->region[i].host, a->region[i].size_bytes);
}

/* False when the guest came to its end meanwhile. */
static bool save(struct rig *rig, struct writer *out)
{
        struct err err = ERR_INIT;
        int r = machine_save(rig->machine, out, &err);

        if (r < 0 && r != -ESHUTDOWN)
                fail_msg("%s", err.text);
        return r >= 0;
}

static void goes_on_in_another_machine(void **state)
{
        size_t dots = 0;
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 2, false);

        machine_resume(rig->machine);
        for (unsigned hop = 0; hop < 3; hop++) {
                struct writer out = { 0 };
                struct err err = ERR_INIT;
                struct cursor in;
                struct rig *next;

                run_until(rig, 2, 1);
                machine_pause(rig->machine);
                if (!save(rig, &out)) {
                        machine_resume(rig->machine);
                        break;
                }
                next = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 2, false);
                dots += rig->used;
                copy_memory(next, rig);
                rig_free(rig);
                in = cursor_from(out.bytes, out.size);
                if (machine_load(next->machine, &in, &err) < 0)
                        fail_msg("%s", err.text);
                writer_done(&out);
                rig = next;
                machine_resume(rig->machine);
        }
        run_until(rig, SIZE_MAX, 1);
        check_result(rig, ROUNDS - dots);
        rig_free(rig);
}

/* Loads what should fail, or harm nothing when it does not; afterwards the machine is whole. */
static void broken_states_are_refused(void **state)
{
        struct rig *rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 1, false);
        struct writer out = { 0 };
        struct err err = ERR_INIT;
        uint32_t seed = 1;

        machine_resume(rig->machine);
        run_until(rig, 1, 1);
        machine_pause(rig->machine);
        assert_true(save(rig, &out));
        for (size_t cut = 0; cut < out.size; cut += 1 + cut / 2 + out.size / 40) {
                struct cursor in = cursor_from(out.bytes, cut);

                err = ERR_INIT;
                assert_true(machine_load(rig->machine, &in, &err) < 0);
                assert_true(err.text[0]);
        }
        for (unsigned i = 0; i < 40; i++) {
                struct cursor in = cursor_from(out.bytes, out.size);
                uint8_t before;
                size_t at = (seed = seed * 1664525 + 1013904223) % out.size;

                before = out.bytes[at];
                out.bytes[at] ^= (uint8_t)(1 + (seed >> 24) % 255);
                (void)!machine_load(rig->machine, &in, &err);
                out.bytes[at] = before;
        }
        writer_done(&out);
        err = ERR_INIT;
        assert_int_equal(machine_reset(rig->machine, &err), 0);
        rig->used = 0;
        rig->ended = false;
        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 1);
        check_result(rig, ROUNDS);
        rig_free(rig);
}

static void triple_fault_ends(void **state)
{
        struct rig *rig = rig_new(fault_guest, sizeof(fault_guest), 1, false);

        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 1);
        assert_int_equal(rig->exit, VMM_EXIT_TRIPLE_FAULT);
        rig_free(rig);
}

static void guest_resets(void **state)
{
        struct rig *rig = rig_new(reset_guest, sizeof(reset_guest), 1, true);

        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 1);
        assert_true(rig->ended);
        assert_int_equal(rig->exit, VMM_EXIT_RESET);
        rig_free(rig);
        rig = rig_new(reset_guest, sizeof(reset_guest), 2, false);
        machine_resume(rig->machine);
        run_until(rig, SIZE_MAX, 5);
        assert_false(rig->ended);
        rig_free(rig);
}

/* Ends at any time: a machine that never ran, one that is halted, one that works. */
static void ends_at_any_time(void **state)
{
        struct rig *rig = rig_new(halt_guest, sizeof(halt_guest), 3, false);
        char text[4096];

        rig_free(rig);
        rig = rig_new(halt_guest, sizeof(halt_guest), 3, false);
        machine_resume(rig->machine);
        usleep(20000);
        machine_power_button(rig->machine);
        machine_status(rig->machine, text, sizeof(text));
        assert_non_null(strstr(text, "running"));
        assert_non_null(strstr(text, "128 MiB"));
        rig_free(rig);
        rig = rig_new(sum_guest, (size_t)(sum_guest_end - sum_guest), 1, false);
        machine_resume(rig->machine);
        run_until(rig, 1, 1);
        rig_free(rig);
}

/* ---- Linux ---- */

/* Everything of a machine in ordinary memory, its RAM too; the machine is gone. */
struct frozen {
        struct writer state;
        uint8_t *ram;
        size_t ram_bytes;
        char *output; /* so far */
};

/* False when it is at its end, and runs on. */
static bool freeze(struct rig *rig, struct frozen *frozen)
{
        const struct guest_memory *mem = machine_memory(rig->machine);

        machine_pause(rig->machine);
        frozen->state = (struct writer){ 0 };
        if (!save(rig, &frozen->state)) {
                machine_resume(rig->machine);
                return false;
        }
        frozen->ram_bytes = mem->region[0].size_bytes;
        frozen->ram = malloc(frozen->ram_bytes);
        assert_non_null(frozen->ram);
        memcpy(frozen->ram, mem->region[0].host, frozen->ram_bytes);
        frozen->output = strndup(rig->output, rig->used);
        rig_free(rig);
        return true;
}

static struct rig *thaw(struct frozen *frozen, const struct vmm_config *config)
{
        struct cursor in = cursor_from(frozen->state.bytes, frozen->state.size);
        struct rig *rig = rig_empty();
        struct err err = ERR_INIT;

        rig_make(rig, config);
        memcpy(machine_memory(rig->machine)->region[0].host, frozen->ram, frozen->ram_bytes);
        if (machine_load(rig->machine, &in, &err) < 0)
                fail_msg("%s", err.text);
        rig->used = strlen(frozen->output);
        memcpy(rig->output, frozen->output, rig->used);
        free(frozen->output);
        free(frozen->ram);
        writer_done(&frozen->state);
        machine_resume(rig->machine);
        return rig;
}

static bool healthy(const char *log)
{
        static const char *const complaints[] = { "BUG:",     "Oops",      "Call Trace", "stall",
                                                  "unstable", "hung task", "I/O error",  "soft lockup" };

        for (size_t i = 0; i < ARRAY_SIZE(complaints); i++)
                if (strstr(log, complaints[i]))
                        return false;
        return true;
}

/*
 * The example guest (scripts/guest), its whole demo, frozen and thawed again and again on the way: in the middle of its boot, of
 * disk writes, of anything. VIRTA_GUEST is its folder.
 */
static void linux_goes_on_in_other_machines(void **state)
{
        const char *guest = getenv("VIRTA_GUEST");
        char kernel[512], initrd[512], share[512], command[2048], disk[] = "/tmp/virta-machine-XXXXXX";
        struct vmm_config config = {
                .kernel = kernel,
                .initrd = initrd,
                .memory_bytes = UINT64_C(192) << 20,
                .cpus = 2,
                .disks = 1,
                .shares = 1,
                .append = "console=ttyS0 loglevel=7 virta.demo virta.cpus=2",
        };
        struct rig *rig;
        size_t next = 1500;

        snprintf(kernel, sizeof(kernel), "%s/vmlinuz", guest);
        snprintf(initrd, sizeof(initrd), "%s/initrd.gz", guest);
        snprintf(share, sizeof(share), "%s/share", guest);
        close(mkstemp(disk));
        snprintf(command, sizeof(command), "cp --sparse=always '%s/disk.img' %s", guest, disk);
        assert_int_equal(system(command), 0);
        config.disk[0].path = disk;
        config.share[0].path = share;
        rig = rig_empty();
        rig_make(rig, &config);
        machine_resume(rig->machine);
        while (!rig->ended) {
                struct frozen frozen;

                run_until(rig, next, 1);
                if (rig->ended)
                        break;
                next = rig->used + 2000;
                if (freeze(rig, &frozen))
                        rig = thaw(&frozen, &config);
        }
        unlink(disk);
        if (rig->exit != VMM_EXIT_OK || !strstr(rig->output, "demo: cpus: ok") || !strstr(rig->output, "demo: disk: ok") ||
            !strstr(rig->output, "demo: share: ok") || !healthy(rig->output)) {
                fputs(rig->output, stderr);
                fail();
        }
        rig_free(rig);
}

static void layouts(void **state)
{
        struct machine_layout layout;
        struct err err = ERR_INIT;

        assert_int_equal(machine_layout(VMM_MEMORY_MIN_BYTES - 4096, 39, &layout, &err), -EINVAL);
        assert_int_equal(machine_layout(VMM_MEMORY_MIN_BYTES + 1, 39, &layout, &err), -EINVAL);
        assert_int_equal(machine_layout(VMM_MEMORY_MAX_BYTES + 4096, 52, &layout, &err), -EINVAL);
        assert_int_equal(machine_layout(UINT64_C(1) << 39, 39, &layout, &err), -EINVAL);
        for (uint64_t mib = 128; mib <= 1 << 20; mib += 1 + mib / 3) {
                uint64_t bytes = mib << 20;

                assert_int_equal(machine_layout(bytes, 46, &layout, &err), 0);
                assert_int_equal(layout.low_bytes + layout.high_bytes, bytes);
                assert_true(layout.low_bytes <= UINT64_C(3) << 30);
                assert_true(!layout.high_bytes || layout.low_bytes == UINT64_C(3) << 30);
                assert_true(layout.window64 >= (UINT64_C(4) << 30) + layout.high_bytes && layout.window64_size);
        }
        /* No room for the window is no reason to refuse. */
        assert_int_equal(machine_layout(UINT64_C(60) << 30, 36, &layout, &err), 0);
        assert_int_equal(layout.window64_size, 0);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(layouts),
                cmocka_unit_test(runs_to_power_off),
                cmocka_unit_test(pauses_change_nothing),
                cmocka_unit_test(reset_starts_again),
                cmocka_unit_test(failed_reset_runs_nothing),
                cmocka_unit_test(goes_on_in_another_machine),
                cmocka_unit_test(broken_states_are_refused),
                cmocka_unit_test(triple_fault_ends),
                cmocka_unit_test(guest_resets),
                cmocka_unit_test(ends_at_any_time),
        };
        const struct CMUnitTest with_linux[] = { cmocka_unit_test(linux_goes_on_in_other_machines) };

        if (getenv("VIRTA_GUEST") && access(getenv("VIRTA_GUEST"), R_OK) < 0) {
                printf("skipped: no example guest in %s (scripts/guest)\n", getenv("VIRTA_GUEST"));
                return 77;
        }
        if (getenv("VIRTA_GUEST"))
                return cmocka_run_group_tests(with_linux, NULL, NULL);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
