/*
 * A container's configuration: the OCI runtime specification's config.json, read and checked whole before anything is done.
 *
 * Every member of the specification 1.2 that concerns Linux is here in the kernel's own terms (flags and numbers, not words).
 * What the file names that does not exist, contradicts itself or is out of range is refused with the place of it:
 * "linux.resources.memory.limit is not a number". Members that the specification does not know are ignored, as it asks (config.md,
 * "Extensibility").
 *
 * Texts and arrays belong to the struct config and live until config_done().
 *
 * Source: opencontainers/runtime-spec 1.2: config.md, config-linux.md.
 */
#pragma once

#include <sched.h>
#include <sys/resource.h>

#include "base/arena.h"
#include "base/json.h"

struct id_map {
        uint32_t inside, outside, count;
};

struct id_maps {
        struct id_map *uids, *gids;
        size_t uid_count, gid_count;
};

enum namespace_kind {
        NAMESPACE_USER, /* first: it decides about the rights over the others */
        NAMESPACE_CGROUP,
        NAMESPACE_IPC,
        NAMESPACE_UTS,
        NAMESPACE_NETWORK,
        NAMESPACE_PID,
        NAMESPACE_MOUNT,
        NAMESPACE_TIME,
        NAMESPACE_COUNT,
};

struct namespace_wish {
        bool wanted;
        const char *path; /* one to join; NULL: a new one */
};

struct capability_sets {
        bool given; /* absent: all are kept as they are */
        uint64_t effective, bounding, inheritable, permitted, ambient;
};

struct resource_limit {
        int resource; /* RLIMIT_… */
        struct rlimit limit;
};

struct scheduling {
        bool given;
        uint32_t policy; /* SCHED_… */
        int32_t nice;
        uint32_t priority;
        uint64_t flags; /* SCHED_FLAG_… */
        uint64_t runtime_ns, deadline_ns, period_ns;
};

/* config.md, "Process". */
struct process_config {
        bool terminal, no_new_privileges;
        unsigned console_rows, console_columns; /* 0: as it comes */
        const char *cwd;
        const char **args, **env; /* NULL-terminated */
        size_t arg_count, env_count;
        uint32_t uid, gid;
        uint32_t *groups;
        size_t group_count;
        bool umask_given;
        uint32_t umask;
        struct capability_sets capabilities;
        struct resource_limit *limits;
        size_t limit_count;
        bool oom_score_given;
        int oom_score_adj;
        const char *apparmor_profile, *selinux_label; /* NULL: none */
        struct scheduling scheduling;
        int io_priority; /* as ioprio_set(2) takes it; -1: as it is */
        const char *cpus_initial, *cpus_final; /* CPU lists, execCPUAffinity; NULL: none */
};

enum mount_kind { MOUNT_FILESYSTEM, MOUNT_BIND };

struct mount_config {
        enum mount_kind kind;
        const char *destination, *source, *type; /* source and type may be NULL */
        bool recursive_bind;
        uint64_t set, clear;                     /* MOUNT_ATTR_… of the mount itself */
        uint64_t set_recursive, clear_recursive; /* and of all below it */
        uint64_t propagation, propagation_recursive; /* MS_SHARED …; 0: private */
        const char **data;                       /* file system's own options: "size=64m", NULL-terminated */
        bool copy_up;                            /* a tmpfs starts with what was at its place */
        bool copy_symlink;                       /* a bind's source that is a link is made again as a link */
        bool remount;                            /* changes what is mounted there already */
        bool id_mapped, id_mapped_recursive;
        struct id_maps id_maps;                  /* empty: the container's own */
};

struct device_config {
        const char *path;
        mode_t type; /* S_IFCHR, S_IFBLK, S_IFIFO */
        uint32_t major, minor;
        mode_t mode;
        uint32_t uid, gid;
};

struct device_rule {
        bool allow;
        char type;             /* 'a', 'b' or 'c' */
        int64_t major, minor;  /* -1: any */
        bool read, write, make;
};

struct block_weight {
        uint32_t major, minor;
        int weight, leaf_weight; /* -1: none */
};

struct block_limit {
        uint32_t major, minor;
        uint64_t rate;
};

enum block_throttle { THROTTLE_READ_BPS, THROTTLE_WRITE_BPS, THROTTLE_READ_IOPS, THROTTLE_WRITE_IOPS, THROTTLE_COUNT };

/* A number that may be absent. */
struct maybe {
        bool given;
        int64_t value;
};

struct named_limit {
        const char *name;
        uint64_t value, second; /* hugepages: limit; rdma: handles and objects (UINT32_MAX: max); network: priority */
        bool value_given, second_given;
};

struct unified_entry {
        const char *file, *text;
};

/* config-linux.md, "Control groups". */
struct resources {
        struct device_rule *devices;
        size_t device_count;
        struct {
                struct maybe limit, reservation, swap, kernel, kernel_tcp, swappiness;
                struct maybe disable_oom_killer, use_hierarchy, check_before_update;
        } memory;
        struct {
                struct maybe shares, quota_us, period_us, burst_us, realtime_runtime_us, realtime_period_us, idle;
                const char *cpus, *mems;
        } cpu;
        struct maybe pids_limit;
        struct {
                struct maybe weight, leaf_weight;
                struct block_weight *weights;
                size_t weight_count;
                struct block_limit *throttles[THROTTLE_COUNT];
                size_t throttle_counts[THROTTLE_COUNT];
        } block;
        struct named_limit *huge_pages, *rdma, *priorities;
        size_t huge_page_count, rdma_count, priority_count;
        struct maybe class_id;
        struct unified_entry *unified;
        size_t unified_count;
};

struct syscall_argument_rule {
        unsigned index;
        uint64_t value, value_two;
        int op; /* enum scmp_compare */
};

struct syscall_config {
        const char **names; /* NULL-terminated */
        const char *action; /* one of seccomp's words, checked */
        struct maybe errno_ret;
        struct syscall_argument_rule *args;
        size_t arg_count;
};

struct seccomp_config {
        bool given;
        const char *default_action;
        struct maybe default_errno;
        const char **architectures; /* NULL-terminated */
        const char **flags;
        const char *listener_path, *listener_metadata;
        struct syscall_config *syscalls;
        size_t syscall_count;
};

enum hook_kind {
        HOOK_PRESTART,
        HOOK_CREATE_RUNTIME,
        HOOK_CREATE_CONTAINER,
        HOOK_START_CONTAINER,
        HOOK_POSTSTART,
        HOOK_POSTSTOP,
        HOOK_COUNT,
};

extern const char *const hook_names[HOOK_COUNT]; /* "prestart", "createRuntime" … */

struct hook_config {
        const char *path;
        const char **args, **env; /* NULL-terminated */
        unsigned timeout_s;       /* 0: none */
};

struct named_text {
        const char *name, *text;
};

struct config {
        const char *version;
        const char *root_path; /* as the file has it: absolute, or from the bundle */
        bool root_readonly;
        const char *hostname, *domain_name; /* NULL: as they are */
        bool process_given;
        struct process_config process;
        struct mount_config *mounts;
        size_t mount_count;
        struct hook_config *hooks[HOOK_COUNT];
        size_t hook_counts[HOOK_COUNT];
        struct named_text *annotations, *sysctls;
        size_t annotation_count, sysctl_count;

        struct namespace_wish namespaces[NAMESPACE_COUNT];
        struct id_maps id_maps;
        int64_t monotonic_s, boottime_s; /* time namespace's offsets */
        uint32_t monotonic_ns, boottime_ns;
        bool time_offsets_given;
        struct device_config *devices;
        size_t device_count;
        const char *cgroups_path; /* NULL: none given */
        struct resources resources;
        uint64_t root_propagation, root_propagation_recursive; /* MS_…; 0: none given */
        const char **masked_paths, **readonly_paths;
        const char *mount_label;
        struct seccomp_config seccomp;
        bool personality_given;
        uint32_t personality;
        bool intel_rdt; /* asked for; refused when it is to be made so */

        struct arena arena;
        json_t *json;
};

/* Reads a config.json's text. On failure *config is empty. */
int config_parse(struct config *config, const void *text, size_t size_bytes, struct err *err) _must_check_;
/* As config_parse(), from a file (at most JSON_TEXT_MAX bytes, a regular file). */
int config_read(struct config *config, int dir_fd, const char *path, struct err *err) _must_check_;
/* NULL-safe for an empty one. */
void config_done(struct config *config);

/* A process alone, as `exec --process` has it, into a config that has nothing else. */
int config_read_process(struct config *config, const char *path, struct err *err) _must_check_;
/* Resources alone, as `update --resources` has them ("-": standard input). Adds to what config has. */
int config_read_resources(struct config *config, const char *path, struct err *err) _must_check_;

/* The value of an annotation, or NULL. */
const char *config_annotation(const struct config *config, const char *name);
