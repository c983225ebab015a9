/*
 * What the groups measure, in the form of runc's `events --stats`, which containerd and others read.
 */
#include <errno.h>
#include <stdio.h>

#include "container/cgroup-file.h"
#include "container/cgroup-internal.h"

#define TEXT_MAX (64 << 10)

static void set_number(json_t *object, const char *key, uint64_t value)
{
        json_object_set_new(object, key, json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX)));
}

/* One file that holds a number. */
static void set_file(const struct cgroup *cgroup, const char *controller, const char *file, json_t *object, const char *key)
{
        char directory[4096];
        uint64_t value;

        if (cgroup_file_number(cgroup_directory(cgroup, controller, directory, sizeof(directory)), file, &value))
                set_number(object, key, value);
}

/* "key value" lines; NULL-safe. The whole is an object. */
static json_t *read_pairs(const struct cgroup *cgroup, const char *controller, const char *file)
{
        _cleanup_free_ char *text = malloc(TEXT_MAX);
        json_t *object = json_object();
        char directory[4096], *rest = text, *line;

        if (!text || !object || cgroup_file_read(cgroup_directory(cgroup, controller, directory, sizeof(directory)), file, text, TEXT_MAX) < 0)
                return object;
        while ((line = strsep(&rest, "\n"))) {
                char *blank = strchr(line, ' ');

                if (!blank)
                        continue;
                *blank = 0;
                set_number(object, line, strtoull(blank + 1, NULL, 10));
        }
        return object;
}

static uint64_t pair(const json_t *pairs, const char *key)
{
        return (uint64_t)json_integer_value(json_object_get(pairs, key));
}

static json_t *cpu_stats(const struct cgroup *cgroup)
{
        bool v2 = cgroup->mode == CGROUP_V2;
        _cleanup_json_ json_t *pairs = read_pairs(cgroup, "cpu", "cpu.stat");
        json_t *usage = json_object(), *throttling = json_object();
        char directory[4096], text[8192];

        if (v2) {
                set_number(usage, "total", pair(pairs, "usage_usec") * 1000);
                set_number(usage, "kernel", pair(pairs, "system_usec") * 1000);
                set_number(usage, "user", pair(pairs, "user_usec") * 1000);
        } else {
                set_file(cgroup, "cpuacct", "cpuacct.usage", usage, "total");
                set_file(cgroup, "cpuacct", "cpuacct.usage_sys", usage, "kernel");
                set_file(cgroup, "cpuacct", "cpuacct.usage_user", usage, "user");
                if (cgroup_file_read(cgroup_directory(cgroup, "cpuacct", directory, sizeof(directory)), "cpuacct.usage_percpu", text, sizeof(text)) > 0) {
                        json_t *each = json_array();
                        char *rest = text, *word;

                        while ((word = strsep(&rest, " \n")))
                                if (*word)
                                        json_array_append_new(each, json_integer((json_int_t)strtoull(word, NULL, 10)));
                        json_object_set_new(usage, "percpu", each);
                }
        }
        set_number(throttling, "periods", pair(pairs, "nr_periods"));
        set_number(throttling, "throttledPeriods", pair(pairs, "nr_throttled"));
        set_number(throttling, "throttledTime", v2 ? pair(pairs, "throttled_usec") * 1000 : pair(pairs, "throttled_time"));
        return json_pack("{s:o, s:o}", "usage", usage, "throttling", throttling);
}

static json_t *memory_entry(const struct cgroup *cgroup, const char *usage, const char *max, const char *limit, const char *failures)
{
        json_t *entry = json_object();

        set_file(cgroup, "memory", limit, entry, "limit");
        set_file(cgroup, "memory", usage, entry, "usage");
        if (max)
                set_file(cgroup, "memory", max, entry, "max");
        if (failures)
                set_file(cgroup, "memory", failures, entry, "failcnt");
        return entry;
}

static json_t *memory_stats(const struct cgroup *cgroup)
{
        json_t *pairs = read_pairs(cgroup, "memory", "memory.stat");
        json_t *memory = json_object();

        if (cgroup->mode == CGROUP_V2) {
                set_number(memory, "cache", pair(pairs, "file"));
                json_object_set_new(memory, "usage", memory_entry(cgroup, "memory.current", "memory.peak", "memory.max", NULL));
                json_object_set_new(memory, "swap", memory_entry(cgroup, "memory.swap.current", NULL, "memory.swap.max", NULL));
        } else {
                set_number(memory, "cache", pair(pairs, "cache"));
                json_object_set_new(memory, "usage", memory_entry(cgroup, "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes",
                                                                  "memory.failcnt"));
                json_object_set_new(memory, "swap", memory_entry(cgroup, "memory.memsw.usage_in_bytes", "memory.memsw.max_usage_in_bytes",
                                                                 "memory.memsw.limit_in_bytes", "memory.memsw.failcnt"));
                json_object_set_new(memory, "kernel", memory_entry(cgroup, "memory.kmem.usage_in_bytes", "memory.kmem.max_usage_in_bytes",
                                                                   "memory.kmem.limit_in_bytes", "memory.kmem.failcnt"));
        }
        json_object_set_new(memory, "raw", pairs);
        return memory;
}

/* "8:0 Read 123" lines of version 1. */
static json_t *block_entries(const struct cgroup *cgroup, const char *file)
{
        _cleanup_free_ char *text = malloc(TEXT_MAX);
        json_t *array = json_array();
        char directory[4096], *rest = text, *line;

        if (!text || cgroup_file_read(cgroup_directory(cgroup, "blkio", directory, sizeof(directory)), file, text, TEXT_MAX) < 0)
                return array;
        while ((line = strsep(&rest, "\n"))) {
                unsigned major_number, minor_number;
                unsigned long long value;
                char op[32];

                if (sscanf(line, "%u:%u %31s %llu", &major_number, &minor_number, op, &value) == 4)
                        json_array_append_new(array, json_pack("{s:I, s:I, s:s, s:I}", "major", (json_int_t)major_number, "minor",
                                                               (json_int_t)minor_number, "op", op, "value", (json_int_t)value));
        }
        return array;
}

/* "8:0 rbytes=1 wbytes=2 …" of version 2, as the same entries. */
static void add_io(json_t *bytes, json_t *operations, char *line)
{
        static const struct {
                const char *key, *op;
                bool count;
        } keys[] = { { "rbytes", "Read" }, { "wbytes", "Write" }, { "dbytes", "Discard" }, { "rios", "Read", true }, { "wios", "Write", true },
                     { "dios", "Discard", true } };
        unsigned major_number, minor_number;

        if (sscanf(line, "%u:%u", &major_number, &minor_number) != 2)
                return;
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
                char pattern[16], *at;

                snprintf(pattern, sizeof(pattern), " %s=", keys[i].key);
                at = strstr(line, pattern);
                if (at)
                        json_array_append_new(keys[i].count ? operations : bytes,
                                              json_pack("{s:I, s:I, s:s, s:I}", "major", (json_int_t)major_number, "minor", (json_int_t)minor_number, "op",
                                                        keys[i].op, "value", (json_int_t)strtoull(at + strlen(pattern), NULL, 10)));
        }
}

static json_t *block_stats(const struct cgroup *cgroup)
{
        _cleanup_free_ char *text = malloc(TEXT_MAX);
        json_t *bytes, *operations;
        char directory[4096], *rest = text, *line;

        if (cgroup->mode != CGROUP_V2)
                return json_pack("{s:o, s:o}", "ioServiceBytesRecursive", block_entries(cgroup, "blkio.throttle.io_service_bytes_recursive"),
                                 "ioServicedRecursive", block_entries(cgroup, "blkio.throttle.io_serviced_recursive"));
        bytes = json_array();
        operations = json_array();
        if (text && cgroup_file_read(cgroup_directory(cgroup, "io", directory, sizeof(directory)), "io.stat", text, TEXT_MAX) > 0)
                while ((line = strsep(&rest, "\n")))
                        add_io(bytes, operations, line);
        return json_pack("{s:o, s:o}", "ioServiceBytesRecursive", bytes, "ioServicedRecursive", operations);
}

json_t *cgroup_stats(const struct cgroup *cgroup)
{
        json_t *pids = json_object();

        if (cgroup->mode == CGROUP_NONE) {
                json_decref(pids);
                return json_object();
        }
        set_file(cgroup, "pids", "pids.current", pids, "current");
        set_file(cgroup, "pids", "pids.max", pids, "limit");
        /* No limit is told as 0. */
        if (pair(pids, "limit") == INT64_MAX)
                set_number(pids, "limit", 0);
        return json_pack("{s:o, s:o, s:o, s:o}", "cpu", cpu_stats(cgroup), "memory", memory_stats(cgroup), "pids", pids, "blkio", block_stats(cgroup));
}

int64_t cgroup_oom_kills(const struct cgroup *cgroup)
{
        _cleanup_json_ json_t *pairs = NULL;
        json_t *kills;

        if (cgroup->mode == CGROUP_NONE)
                return -1;
        pairs = read_pairs(cgroup, "memory", cgroup->mode == CGROUP_V2 ? "memory.events" : "memory.oom_control");
        kills = json_object_get(pairs, "oom_kill");
        return kills ? json_integer_value(kills) : -1;
}
