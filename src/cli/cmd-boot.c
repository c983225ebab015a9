/*
 * `virta boot`: the command line of one virtual machine, into struct vmm_config.
 *
 * What is a matter of form is refused here (exit 2); what depends on files, ports and the host is refused by vmm_run() (exit 1).
 */
#include <errno.h>

#include "base/log.h"
#include "base/text.h"
#include "cli/cli.h"
#include "vmm/vmm.h"

#define OWNED_MAX (VMM_DISKS_MAX + VMM_SHARES_MAX + 2)

struct boot_args {
        struct vmm_config config; /* first: the table's offsets are its */
        int accel, engine, sandbox;       /* indices in the lists of choices */
        bool net_given;
        unsigned owned_count;
        char *owned[OWNED_MAX];   /* what the fields of --disk and others point into */
};

/* A copy of value that lives as long as args, for field_next() to cut up. */
static char *own(struct boot_args *args, const char *value)
{
        char *copy = args->owned_count < OWNED_MAX ? strdup(value) : NULL;

        if (copy)
                args->owned[args->owned_count++] = copy;
        return copy;
}

/* field is "key=value" with something behind it: value, else NULL. */
static const char *field_value(const char *field, const char *key)
{
        size_t length = strlen(key);

        return !strncmp(field, key, length) && field[length] == '=' && field[length + 1] ? field + length + 1 : NULL;
}

static int add_disk(void *into, const char *value, struct err *err)
{
        struct boot_args *args = into;
        struct vmm_disk disk = { 0 };
        char *rest, *field;

        if (args->config.disks == VMM_DISKS_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %u disks", value, VMM_DISKS_MAX);
        rest = own(args, value);
        if (!rest)
                return err_nomem(err);
        disk.path = field_next(&rest);
        if (!*disk.path)
                return err_set(err, -EINVAL, "'%s' names no file", value);
        while ((field = field_next(&rest))) {
                if (!strcmp(field, "ro"))
                        disk.readonly = true;
                else if (!strcmp(field, "commit"))
                        disk.commit = true;
                else if (field_value(field, "format"))
                        disk.format = field_value(field, "format");
                else if (field_value(field, "filter") && disk.filters < VMM_FILTERS_MAX)
                        disk.filter[disk.filters++] = field_value(field, "filter");
                else if (field_value(field, "serial"))
                        disk.serial = field_value(field, "serial");
                else if (field_value(field, "onerror"))
                        disk.on_error = field_value(field, "onerror");
                else if (field_value(field, "secret"))
                        disk.secret = field_value(field, "secret");
                else
                        return err_set(err, -EINVAL, "'%s' is none of ro, commit, filter=NAME, format=NAME, serial=TEXT, onerror=full|report|pause, secret=SECRET "
                               "(a comma "
                                       "in a file's name is written twice)", field);
        }
        args->config.disk[args->config.disks++] = disk;
        return 0;
}

static int add_share(void *into, const char *value, struct err *err)
{
        struct boot_args *args = into;
        struct vmm_share share = { 0 };
        char *rest, *field;

        if (args->config.shares == VMM_SHARES_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %u directories", value, VMM_SHARES_MAX);
        rest = own(args, value);
        if (!rest)
                return err_nomem(err);
        share.path = field_next(&rest);
        if (!*share.path)
                return err_set(err, -EINVAL, "'%s' names no directory", value);
        while ((field = field_next(&rest))) {
                if (!strcmp(field, "ro"))
                        share.readonly = true;
                else if (field_value(field, "tag"))
                        share.tag = field_value(field, "tag");
                else
                        return err_set(err, -EINVAL, "'%s' is neither 'ro' nor 'tag=NAME' (a comma in a directory's name is written twice)",
                                       field);
        }
        /* virtio 1.2 §5.11.4: 36 bytes, not ended by 0 when all are used. */
        if (share.tag && strlen(share.tag) > 36)
                return err_set(err, -EINVAL, "tag '%s' is longer than 36 bytes", share.tag);
        args->config.share[args->config.shares++] = share;
        return 0;
}

static int add_net(void *into, const char *value, struct err *err)
{
        struct boot_args *args = into;
        int r;

        args->net_given = true;
        if (args->config.nets == VMM_NETS_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %u network cards", value, VMM_NETS_MAX);
        r = net_options_parse(value, &args->config.net[args->config.nets], err);
        if (r < 0)
                return r;
        if (args->config.net[args->config.nets].driver)
                args->config.nets++;
        return 0;
}

static int set_serial(void *into, const char *value, struct err *err)
{
        struct vmm_config *config = &((struct boot_args *)into)->config;

        if (!strcmp(value, "stdio")) {
                config->serial = VMM_SERIAL_STDIO;
        } else if (!strcmp(value, "none")) {
                config->serial = VMM_SERIAL_NONE;
        } else if (!strncmp(value, "file:", 5) && value[5]) {
                config->serial = VMM_SERIAL_FILE;
                config->serial_path = value + 5;
        } else if (!strncmp(value, "unix:", 5) && value[5]) {
                config->serial = VMM_SERIAL_UNIX;
                config->serial_path = value + 5;
        } else {
                return err_set(err, -EINVAL, "'%s' is none of stdio, file:FILE, unix:FILE, none", value);
        }
        return 0;
}

static int set_vsock(void *into, const char *value, struct err *err)
{
        struct boot_args *args = into;
        uint64_t cid = 3;
        char *rest, *field;
        const char *path;
        int r;

        rest = own(args, value);
        if (!rest)
                return err_nomem(err);
        path = field_next(&rest);
        if (!*path)
                return err_set(err, -EINVAL, "'%s' names no socket", value);
        while ((field = field_next(&rest))) {
                if (!field_value(field, "cid"))
                        return err_set(err, -EINVAL, "'%s' is not 'cid=NUMBER'", field);
                /* 0-2 and the highest are taken: virtio 1.2 §5.10.4. */
                r = number_parse(field_value(field, "cid"), 3, UINT32_MAX - 1, &cid, err);
                if (r < 0)
                        return err_wrap(err, r, "cid");
        }
        args->config.vsock_path = path;
        args->config.vsock_cid = (uint32_t)cid;
        return 0;
}

/* The name shows in the log, the process list and file names. */
static int set_name(void *into, const char *value, struct err *err)
{
        struct vmm_config *config = &((struct boot_args *)into)->config;

        if (strlen(value) > VMM_NAME_MAX)
                return err_set(err, -EINVAL, "'%.20s...' is longer than %u bytes", value, VMM_NAME_MAX);
        for (const char *at = value; *at; at++) {
                bool word = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9');

                if (!word && (at == value || !strchr("-_.", *at)))
                        return err_set(err, -EINVAL, "'%s' is not letters and digits, with '-', '_' and '.' within", value);
        }
        config->name = value;
        return 0;
}

static int set_append(void *into, const char *value, struct err *err)
{
        struct vmm_config *config = &((struct boot_args *)into)->config;

        if (strlen(value) > VMM_COMMAND_LINE_MAX)
                return err_set(err, -EINVAL, "the text has %zu bytes, at most %u are passed on", strlen(value), VMM_COMMAND_LINE_MAX);
        config->append = value;
        return 0;
}

#define CONFIG(member) (offsetof(struct boot_args, config) + offsetof(struct vmm_config, member))

static const char *const accels[] = { "auto", "kvm", "software", NULL };
static const char *const engines[] = { "auto", "translator", "interpreter", "lock-step", NULL };
static const char *const cpu_models[] = { "max", "x86-64-v1", "x86-64-v2", "x86-64-v3", NULL };
static const char *const serials[] = { "stdio", "file:", "unix:", "none", NULL };
static const char *const on_off[] = { "on", "off", NULL };
static const char *const nets[] = { "user", "none", NULL };

static const struct opt boot_options[] = {
        { "kernel", "FILE", "the kernel: a bzImage, a PVH ELF file or an uncompressed vmlinux", OPT_TEXT, CONFIG(kernel),
          .required = true, .complete = OPT_COMPLETE_FILE },
        { "initrd", "FILE", "initial RAM disk", OPT_TEXT, CONFIG(initrd), .complete = OPT_COMPLETE_FILE },
        { "append", "TEXT", "the kernel's command line", OPT_CALL, .call = set_append, .fallback = "console=ttyS0", .may_be_empty = true },
        { "memory", "SIZE", "memory: 512M, 2G, 1536K, or a number of MiB", OPT_SIZE, CONFIG(memory_bytes), .fallback = "512M",
          .min = VMM_MEMORY_MIN_BYTES, .max = VMM_MEMORY_MAX_BYTES },
        { "cpus", "N", "virtual processors", OPT_NUMBER, CONFIG(cpus), .fallback = "1", .min = 1, .max = VMM_CPUS_MAX },
        { "cpu", "MODEL", "processor model: max, x86-64-v1, x86-64-v2 or x86-64-v3", OPT_TEXT, CONFIG(cpu_model), .fallback = "max",
          .choices = cpu_models },
        { "disk", "FILE[,ro][,commit][,filter=X][,format=F][,serial=S][,onerror=E][,secret=P]",
          "a disk, /dev/vda and on; raw unless its suffix or format= says another format. E: full (a full host pauses the guest until there is "
          "space; other errors are the guest's to see), report (all are), pause (all pause it). commit: jobs may write to its backing files. X: throttle, "
          "fault, copy-on-read or checksum, with their options, as filter=throttle:requests=500:bytes=20M. P: where the passphrase of an encrypted disk is, "
          "file:PATH, - (standard input) or keyring:NAME", OPT_CALL, .call = add_disk, .repeated = true, .complete = OPT_COMPLETE_FILE },
        { "job-folder", "DIR", "where the monitor's jobs on disks (mirror, backup) may make and open images", OPT_TEXT, CONFIG(job_folder),
          .complete = OPT_COMPLETE_DIRECTORY },
        { "net", "user[,forward=tcp:HOST:GUEST]...|none", "a network card; user is a network of its own with the host's connections", OPT_CALL,
          .call = add_net, .repeated = true, .fallback = "user", .choices = nets },
        { "share", "DIR[,tag=T][,ro]", "a directory shared with the guest, which mounts it with 'mount -t virtiofs share /mnt'", OPT_CALL,
          .call = add_share, .repeated = true, .complete = OPT_COMPLETE_DIRECTORY },
        { "accel", "NAME", "what executes guest instructions", OPT_CHOICE, offsetof(struct boot_args, accel), .fallback = "auto",
          .choices = accels },
        { "cpu-engine", "NAME", "how software processors run guest code: auto and translator make host code of it, lock-step has the "
          "interpreter check each step", OPT_CHOICE, offsetof(struct boot_args, engine), .fallback = "auto", .choices = engines },
        { "code-cache", "SIZE", "memory for translated guest code", OPT_SIZE, CONFIG(code_cache_bytes), .fallback = "64M",
          .min = UINT64_C(4) << 20, .max = UINT64_C(1) << 30 },
        { "cpu-stats", NULL, "print where the time of software processors went when the machine ends", OPT_FLAG, CONFIG(cpu_stats) },
        { "perf-map", NULL, "list translated code in /tmp/perf-PID.map, for perf", OPT_FLAG, CONFIG(perf_map) },
        { "serial", "stdio|file:F|unix:F|none", "where the guest's first serial port leads", OPT_CALL, .call = set_serial,
          .fallback = "stdio", .choices = serials },
        { "vsock", "SOCKET[,cid=N]", "a vsock device, served by unix sockets on the host beside SOCKET", OPT_CALL, .call = set_vsock,
          .complete = OPT_COMPLETE_FILE },
        { "name", "NAME", "the machine's name, for the log and the process list", OPT_CALL, .call = set_name, .fallback = "vm" },
        { "no-reboot", NULL, "end with exit status 3 when the guest asks for a reset", OPT_FLAG, CONFIG(no_reboot) },
        { "sandbox", "on|off", "give up all rights before the first guest instruction", OPT_CHOICE, offsetof(struct boot_args, sandbox),
          .fallback = "on", .choices = on_off },
        { 0 },
};

static const struct opt_note keys[] = {
        { "Ctrl-A x", "end the machine at once" },
        { "Ctrl-A c", "a small monitor: status, power button, balloon, disks and jobs on them, pause, reset, quit" },
        { "Ctrl-A h", "help" },
        { "Ctrl-A Ctrl-A", "a Ctrl-A for the guest" },
        { 0 },
};

static const struct opt_note exits[] = {
        { "0", "the guest powered off" },
        { "1", "it could not run; one line on standard error says why" },
        { "2", "the command line was wrong" },
        { "3", "the guest asked for a reset and --no-reboot was given" },
        { "4", "triple fault; the registers and the last code bytes are printed" },
        { 0 },
};

static const struct opt_note signals[] = {
        { "SIGTERM, SIGHUP", "press the power button; a second one, or 30 s, ends the machine" },
        { 0 },
};

static const struct opt_note examples[] = {
        { "virta boot --kernel vmlinuz --initrd initrd.gz", "a kernel on this terminal" },
        { "virta boot --kernel vmlinuz --disk root.img,format=qcow2 --append 'console=ttyS0 root=/dev/vda' --cpus 2 --memory 2G",
          "a disk's root file system" },
        { "virta boot --kernel vmlinuz --initrd initrd.gz --net user,forward=tcp:2222:22", "the guest's SSH at the host's port 2222" },
        { 0 },
};

static const struct opt_section boot_sections[] = {
        { "Keys on the stdio console", NULL, keys },
        { "Exit status", NULL, exits },
        { "Signals", NULL, signals },
        { "Examples", NULL, examples },
        { 0 },
};

const struct opt_command boot_table = {
        .name = "boot",
        .summary = "boot a virtual machine from a kernel",
        .description = "Boots an unmodified guest and shows its console. It needs no daemon, no root and no setup; where the processor offers "
                       "no virtualization the guest runs in software.\n"
                       "Standard input that is closed or not a terminal neither ends nor blocks the guest.",
        .options = boot_options,
        .sections = boot_sections,
};

static void boot_prepare(void *into)
{
        struct boot_args *args = into;

        args->config.memory_bytes = UINT64_C(512) << 20;
        args->config.cpus = 1;
        args->config.code_cache_bytes = UINT64_C(64) << 20;
}

static int boot_run(void *into)
{
        struct boot_args *args = into;
        struct vmm_config *config = &args->config;
        struct err err = ERR_INIT;
        int exit_code = VMM_EXIT_FAILED;

        config->accel = accels[args->accel];
        config->cpu_engine = engines[args->engine];
        config->no_sandbox = args->sandbox == 1;
        if (!args->net_given) {
                if (net_options_parse("user", &config->net[0], &err) < 0) {
                        log_error("%s", err.text);
                        return CLI_FAILED;
                }
                config->nets = 1;
        }
        if (vmm_run(config, &exit_code, &err) < 0) {
                log_error("%s", err.text);
                return CLI_FAILED;
        }
        return exit_code;
}

static void boot_finish(void *into)
{
        struct boot_args *args = into;

        for (unsigned i = 0; i < args->owned_count; i++)
                free(args->owned[i]);
}

const struct cli_command cli_boot = {
        .table = &boot_table, .args_size = sizeof(struct boot_args), .run = boot_run, .prepare = boot_prepare, .finish = boot_finish,
};
