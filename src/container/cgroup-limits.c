/*
 * What a configuration's resources are in the files of either version.
 *
 * The specification's numbers are version 1's. Where version 2 has another scale they are converted: shares of 2 to 262144 to weights of 1
 * to 10000, and block weights of 10 to 1000 to the same, linearly.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "container/cgroup-file.h"
#include "container/cgroup-internal.h"

bool resources_given(const struct resources *r)
{
        size_t throttles = 0;

        for (int i = 0; i < THROTTLE_COUNT; i++)
                throttles += r->block.throttle_counts[i];
        return r->memory.limit.given || r->memory.reservation.given || r->memory.swap.given || r->memory.swappiness.given ||
               r->memory.disable_oom_killer.given || r->cpu.shares.given || r->cpu.quota_us.given || r->cpu.realtime_runtime_us.given ||
               r->cpu.idle.given || (r->cpu.cpus && *r->cpu.cpus) || (r->cpu.mems && *r->cpu.mems) || (r->pids_limit.given && r->pids_limit.value > 0) ||
               r->block.weight.given || r->block.weight_count || throttles || r->huge_page_count || r->rdma_count || r->priority_count ||
               r->class_id.given || r->unified_count;
}

/* A writer of one group's files that stops at the first failure. */
struct writer {
        const struct cgroup *cgroup;
        struct err *err;
        int failed;
};

static void put(struct writer *w, const char *controller, const char *file, const char *text)
{
        const struct cgroup_place *place = cgroup_find(w->cgroup, controller);
        char directory[4096];

        if (w->failed < 0)
                return;
        if (!place)
                w->failed = err_set(w->err, -ENOENT, "this host has no cgroup controller '%s', which '%s' needs", controller, file);
        else
                w->failed = cgroup_file_write(cgroup_place_directory(place, directory, sizeof(directory)), file, text, w->err);
        if (w->failed == -ENOENT && place && w->cgroup->mode == CGROUP_V2)
                err_wrap(w->err, w->failed, "the cgroup controller '%s' is not given to this user or group", controller);
}

static void put_number(struct writer *w, const char *controller, const char *file, int64_t value)
{
        char text[32];

        snprintf(text, sizeof(text), "%lld", (long long)value);
        put(w, controller, file, text);
}

/* -1 is "no limit". */
static void put_limit(struct writer *w, const char *controller, const char *file, int64_t value)
{
        if (value < 0 && w->cgroup->mode == CGROUP_V2)
                put(w, controller, file, "max");
        else
                put_number(w, controller, file, value);
}

static bool has_file(const struct cgroup *cgroup, const char *controller, const char *file)
{
        char directory[4096], path[4200];

        snprintf(path, sizeof(path), "%s/%s", cgroup_directory(cgroup, controller, directory, sizeof(directory)), file);
        return access(path, F_OK) == 0;
}

/* The one of memory and memory with swap that grows is set first, or the kernel refuses the other. */
static void limit_memory_v1(struct writer *w, const struct resources *r)
{
        struct maybe limit = r->memory.limit, swap = r->memory.swap;
        char directory[4096];
        uint64_t now = 0;

        if (swap.given && !has_file(w->cgroup, "memory", "memory.memsw.limit_in_bytes"))
                swap.given = false;
        (void)cgroup_file_number(cgroup_directory(w->cgroup, "memory", directory, sizeof(directory)), "memory.limit_in_bytes", &now);
        if (limit.given && swap.given && (limit.value < 0 || (uint64_t)limit.value > now)) {
                put_number(w, "memory", "memory.memsw.limit_in_bytes", swap.value);
                swap.given = false;
        }
        /* "No limit" of memory needs no limit of both first. */
        if (limit.given && limit.value < 0 && !r->memory.swap.given && has_file(w->cgroup, "memory", "memory.memsw.limit_in_bytes"))
                put_number(w, "memory", "memory.memsw.limit_in_bytes", -1);
        if (limit.given)
                put_number(w, "memory", "memory.limit_in_bytes", limit.value);
        if (swap.given)
                put_number(w, "memory", "memory.memsw.limit_in_bytes", swap.value);
        if (r->memory.reservation.given)
                put_number(w, "memory", "memory.soft_limit_in_bytes", r->memory.reservation.value);
        if (r->memory.kernel_tcp.given)
                put_number(w, "memory", "memory.kmem.tcp.limit_in_bytes", r->memory.kernel_tcp.value);
        if (r->memory.swappiness.given)
                put_number(w, "memory", "memory.swappiness", r->memory.swappiness.value);
        if (r->memory.disable_oom_killer.given)
                put_number(w, "memory", "memory.oom_control", r->memory.disable_oom_killer.value);
}

static void limit_memory_v2(struct writer *w, const struct resources *r)
{
        const struct maybe *limit = &r->memory.limit, *swap = &r->memory.swap;

        if (swap->given) {
                /* Version 1 counts both together, version 2 swap alone. */
                if (swap->value >= 0 && (!limit->given || limit->value < 0 || swap->value < limit->value)) {
                        w->failed = err_set(w->err, -EINVAL, "linux.resources.memory.swap is below memory.limit, which it contains");
                        return;
                }
                if (has_file(w->cgroup, "memory", "memory.swap.max"))
                        put_limit(w, "memory", "memory.swap.max", swap->value < 0 ? -1 : swap->value - limit->value);
        }
        if (limit->given)
                put_limit(w, "memory", "memory.max", limit->value);
        if (r->memory.reservation.given)
                put_limit(w, "memory", "memory.low", MAX(r->memory.reservation.value, (int64_t)0));
        if (r->memory.swappiness.given)
                w->failed = err_set(w->err, -ENOTSUP, "linux.resources.memory.swappiness is not in cgroup version 2");
        if (r->memory.disable_oom_killer.given && r->memory.disable_oom_killer.value)
                w->failed = err_set(w->err, -ENOTSUP, "linux.resources.memory.disableOOMKiller is not in cgroup version 2");
}

static void limit_cpu_v1(struct writer *w, const struct resources *r)
{
        if (r->cpu.shares.given && r->cpu.shares.value)
                put_number(w, "cpu", "cpu.shares", r->cpu.shares.value);
        if (r->cpu.idle.given)
                put_number(w, "cpu", "cpu.idle", r->cpu.idle.value);
        /* A burst above the quota is refused, so it goes down first and up last. */
        if (r->cpu.burst_us.given && r->cpu.quota_us.given)
                put_number(w, "cpu", "cpu.cfs_burst_us", 0);
        if (r->cpu.period_us.given && r->cpu.period_us.value)
                put_number(w, "cpu", "cpu.cfs_period_us", r->cpu.period_us.value);
        if (r->cpu.quota_us.given)
                put_number(w, "cpu", "cpu.cfs_quota_us", r->cpu.quota_us.value ? r->cpu.quota_us.value : -1);
        if (r->cpu.burst_us.given)
                put_number(w, "cpu", "cpu.cfs_burst_us", r->cpu.burst_us.value);
        if (r->cpu.realtime_period_us.given && r->cpu.realtime_period_us.value)
                put_number(w, "cpu", "cpu.rt_period_us", r->cpu.realtime_period_us.value);
        if (r->cpu.realtime_runtime_us.given && r->cpu.realtime_runtime_us.value)
                put_number(w, "cpu", "cpu.rt_runtime_us", r->cpu.realtime_runtime_us.value);
}

static void limit_cpu_v2(struct writer *w, const struct resources *r)
{
        char text[64], directory[4096], now[64];

        if (r->cpu.shares.given && r->cpu.shares.value) {
                int64_t shares = MIN(MAX(r->cpu.shares.value, (int64_t)2), (int64_t)262144);

                put_number(w, "cpu", "cpu.weight", 1 + (shares - 2) * 9999 / 262142);
        }
        if (r->cpu.idle.given)
                put_number(w, "cpu", "cpu.idle", r->cpu.idle.value);
        if (r->cpu.quota_us.given || r->cpu.period_us.given) {
                char quota[32] = "max";
                uint64_t period = 100000;

                /* One of the two alone: the other stays. "max 100000" */
                if (cgroup_file_read(cgroup_directory(w->cgroup, "cpu", directory, sizeof(directory)), "cpu.max", now, sizeof(now)) > 0) {
                        char *blank = strchr(now, ' ');

                        snprintf(quota, sizeof(quota), "%.*s", (int)strcspn(now, " "), now);
                        period = blank ? strtoull(blank, NULL, 10) : period;
                }
                if (r->cpu.quota_us.given && r->cpu.quota_us.value > 0)
                        snprintf(quota, sizeof(quota), "%lld", (long long)r->cpu.quota_us.value);
                else if (r->cpu.quota_us.given)
                        strcpy(quota, "max");
                if (r->cpu.period_us.given && r->cpu.period_us.value)
                        period = (uint64_t)r->cpu.period_us.value;
                snprintf(text, sizeof(text), "%s %llu", quota, (unsigned long long)period);
                if (r->cpu.burst_us.given)
                        put_number(w, "cpu", "cpu.max.burst", 0);
                put(w, "cpu", "cpu.max", text);
        }
        if (r->cpu.burst_us.given)
                put_number(w, "cpu", "cpu.max.burst", r->cpu.burst_us.value);
        if ((r->cpu.realtime_runtime_us.given && r->cpu.realtime_runtime_us.value > 0) ||
            (r->cpu.realtime_period_us.given && r->cpu.realtime_period_us.value > 0))
                w->failed = err_set(w->err, -ENOTSUP, "linux.resources.cpu.realtimeRuntime is not in cgroup version 2");
}

static void limit_cpuset(struct writer *w, const struct resources *r)
{
        if (r->cpu.cpus && *r->cpu.cpus)
                put(w, "cpuset", "cpuset.cpus", r->cpu.cpus);
        if (r->cpu.mems && *r->cpu.mems)
                put(w, "cpuset", "cpuset.mems", r->cpu.mems);
}

static void limit_block_v1(struct writer *w, const struct resources *r)
{
        static const char *const files[THROTTLE_COUNT] = {
                [THROTTLE_READ_BPS] = "blkio.throttle.read_bps_device",
                [THROTTLE_WRITE_BPS] = "blkio.throttle.write_bps_device",
                [THROTTLE_READ_IOPS] = "blkio.throttle.read_iops_device",
                [THROTTLE_WRITE_IOPS] = "blkio.throttle.write_iops_device",
        };
        bool bfq = !has_file(w->cgroup, "blkio", "blkio.weight") && has_file(w->cgroup, "blkio", "blkio.bfq.weight");
        char text[64];

        if (r->block.weight.given && r->block.weight.value)
                put_number(w, "blkio", bfq ? "blkio.bfq.weight" : "blkio.weight", r->block.weight.value);
        if (r->block.leaf_weight.given && r->block.leaf_weight.value)
                put_number(w, "blkio", "blkio.leaf_weight", r->block.leaf_weight.value);
        for (size_t i = 0; i < r->block.weight_count; i++) {
                const struct block_weight *weight = &r->block.weights[i];

                snprintf(text, sizeof(text), "%u:%u %d", weight->major, weight->minor, weight->weight);
                if (weight->weight >= 0)
                        put(w, "blkio", bfq ? "blkio.bfq.weight_device" : "blkio.weight_device", text);
                snprintf(text, sizeof(text), "%u:%u %d", weight->major, weight->minor, weight->leaf_weight);
                if (weight->leaf_weight >= 0)
                        put(w, "blkio", "blkio.leaf_weight_device", text);
        }
        for (int kind = 0; kind < THROTTLE_COUNT; kind++) {
                for (size_t i = 0; i < r->block.throttle_counts[kind]; i++) {
                        const struct block_limit *limit = &r->block.throttles[kind][i];

                        snprintf(text, sizeof(text), "%u:%u %llu", limit->major, limit->minor, (unsigned long long)limit->rate);
                        put(w, "blkio", files[kind], text);
                }
        }
}

static void limit_block_v2(struct writer *w, const struct resources *r)
{
        static const char *const keys[THROTTLE_COUNT] = {
                [THROTTLE_READ_BPS] = "rbps", [THROTTLE_WRITE_BPS] = "wbps", [THROTTLE_READ_IOPS] = "riops", [THROTTLE_WRITE_IOPS] = "wiops",
        };
        bool bfq = has_file(w->cgroup, "io", "io.bfq.weight");
        char text[64];

        if (r->block.weight.given && r->block.weight.value) {
                int64_t weight = MIN(MAX(r->block.weight.value, (int64_t)10), (int64_t)1000);

                put_number(w, "io", bfq ? "io.bfq.weight" : "io.weight", bfq ? weight : 1 + (weight - 10) * 9999 / 990);
        }
        for (size_t i = 0; i < r->block.weight_count; i++) {
                const struct block_weight *weight = &r->block.weights[i];

                snprintf(text, sizeof(text), "%u:%u %d", weight->major, weight->minor, weight->weight);
                if (weight->weight >= 0)
                        put(w, "io", bfq ? "io.bfq.weight" : "io.weight", text);
        }
        for (int kind = 0; kind < THROTTLE_COUNT; kind++) {
                for (size_t i = 0; i < r->block.throttle_counts[kind]; i++) {
                        const struct block_limit *limit = &r->block.throttles[kind][i];

                        if (limit->rate)
                                snprintf(text, sizeof(text), "%u:%u %s=%llu", limit->major, limit->minor, keys[kind], (unsigned long long)limit->rate);
                        else
                                snprintf(text, sizeof(text), "%u:%u %s=max", limit->major, limit->minor, keys[kind]);
                        put(w, "io", "io.max", text);
                }
        }
}

static void limit_named(struct writer *w, const struct resources *r)
{
        bool v2 = w->cgroup->mode == CGROUP_V2;
        char file[160], text[256];

        for (size_t i = 0; i < r->huge_page_count; i++) {
                snprintf(text, sizeof(text), "%llu", (unsigned long long)r->huge_pages[i].value);
                snprintf(file, sizeof(file), "hugetlb.%s.%s", r->huge_pages[i].name, v2 ? "max" : "limit_in_bytes");
                put(w, "hugetlb", file, text);
                snprintf(file, sizeof(file), "hugetlb.%s.rsvd.%s", r->huge_pages[i].name, v2 ? "max" : "limit_in_bytes");
                if (has_file(w->cgroup, "hugetlb", file))
                        put(w, "hugetlb", file, text);
        }
        for (size_t i = 0; i < r->rdma_count; i++) {
                int n = snprintf(text, sizeof(text), "%.100s", r->rdma[i].name);

                if (r->rdma[i].value_given)
                        n += snprintf(text + n, sizeof(text) - (size_t)n, " hca_handle=%llu", (unsigned long long)r->rdma[i].value);
                if (r->rdma[i].second_given)
                        snprintf(text + n, sizeof(text) - (size_t)n, " hca_object=%llu", (unsigned long long)r->rdma[i].second);
                put(w, "rdma", "rdma.max", text);
        }
        if (r->class_id.given && !v2)
                put_number(w, "net_cls", "net_cls.classid", r->class_id.value);
        for (size_t i = 0; i < r->priority_count && !v2; i++) {
                snprintf(text, sizeof(text), "%.100s %llu", r->priorities[i].name, (unsigned long long)r->priorities[i].second);
                put(w, "net_prio", "net_prio.ifpriomap", text);
        }
}

/* What every program expects to be able to use: config-linux.md, "Default Devices"; making any node is harmless without using it. */
static const struct device_rule default_rules[] = {
        { true, 'c', -1, -1, false, false, true }, { true, 'b', -1, -1, false, false, true },
        { true, 'c', 1, 3, true, true, true },     { true, 'c', 1, 5, true, true, true },
        { true, 'c', 1, 7, true, true, true },     { true, 'c', 1, 8, true, true, true },
        { true, 'c', 1, 9, true, true, true },     { true, 'c', 5, 0, true, true, true },
        { true, 'c', 5, 1, true, true, true },     { true, 'c', 5, 2, true, true, true },
        { true, 'c', 136, -1, true, true, true },
};

static void device_number(int64_t number, char text[16])
{
        if (number < 0)
                strcpy(text, "*");
        else
                snprintf(text, 16, "%u", (unsigned)number);
}

static void put_device_rule(struct writer *w, const struct device_rule *rule)
{
        char text[64], major_text[16], minor_text[16];

        device_number(rule->major, major_text);
        device_number(rule->minor, minor_text);
        /* "a" alone stands for everything and sets the default. */
        if (rule->type == 'a' && rule->major < 0 && rule->minor < 0)
                strcpy(text, "a");
        else
                snprintf(text, sizeof(text), "%c %s:%s %s%s%s", rule->type, major_text, minor_text, rule->read ? "r" : "", rule->write ? "w" : "",
                         rule->make ? "m" : "");
        put(w, "devices", rule->allow ? "devices.allow" : "devices.deny", text);
}

static void limit_devices(struct writer *w, const struct resources *r)
{
        struct device_rule rules[256 + ARRAY_SIZE(default_rules)];
        char directory[4096];
        size_t count = 0;

        if (!r->device_count)
                return;
        if (r->device_count > 256) {
                w->failed = err_set(w->err, -E2BIG, "linux.resources.devices has %zu rules, more than 256", r->device_count);
                return;
        }
        memcpy(rules, r->devices, r->device_count * sizeof(*rules));
        memcpy(rules + r->device_count, default_rules, sizeof(default_rules));
        count = r->device_count + ARRAY_SIZE(default_rules);
        if (w->cgroup->mode == CGROUP_V1) {
                for (size_t i = 0; i < count; i++)
                        put_device_rule(w, &rules[i]);
                return;
        }
        _cleanup_close_ int fd = open(cgroup_directory(w->cgroup, "", directory, sizeof(directory)), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                w->failed = err_errno(w->err, -errno, "cannot open the cgroup '%s'", directory);
        else
                w->failed = cgroup_devices_program(fd, rules, count, w->err);
}

static void limit_unified(struct writer *w, const struct resources *r)
{
        for (size_t i = 0; i < r->unified_count; i++) {
                char controller[64];

                snprintf(controller, sizeof(controller), "%.*s", (int)strcspn(r->unified[i].file, "."), r->unified[i].file);
                put(w, controller, r->unified[i].file, r->unified[i].text);
        }
}

int cgroup_limit(const struct cgroup *cgroup, const struct resources *resources, struct err *err)
{
        struct writer w = { cgroup, err, 0 };
        bool v2 = cgroup->mode == CGROUP_V2;

        if (cgroup->mode == CGROUP_NONE)
                return 0;
        if (resources->unified_count && !v2)
                return err_set(err, -ENOTSUP, "linux.resources.unified needs cgroup version 2, which this host does not have");
        /* Outside a group of one's own nothing may be limited; devices are then left to the file modes. */
        if (!v2 ? cgroup_find(cgroup, "devices") != NULL : geteuid() == 0)
                limit_devices(&w, resources);
        (v2 ? limit_memory_v2 : limit_memory_v1)(&w, resources);
        (v2 ? limit_cpu_v2 : limit_cpu_v1)(&w, resources);
        limit_cpuset(&w, resources);
        if (resources->pids_limit.given) {
                if (resources->pids_limit.value <= 0)
                        put(&w, "pids", "pids.max", "max");
                else
                        put_number(&w, "pids", "pids.max", resources->pids_limit.value);
        }
        (v2 ? limit_block_v2 : limit_block_v1)(&w, resources);
        limit_named(&w, resources);
        limit_unified(&w, resources);
        return w.failed;
}
