/*
 * The Linux part of a configuration: config-linux.md.
 */
#include <errno.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "container/config-internal.h"

static int read_maybe(const struct place *object, const char *key, int64_t min, int64_t max, struct maybe *to, struct err *err)
{
        struct place place = place_member(object, key);
        int r = read_number(object, key, min, max, &to->value, err);

        if (!r && place.json)
                to->given = true;
        return r;
}

static int read_maybe_bool(const struct place *object, const char *key, struct maybe *to, struct err *err)
{
        struct place place = place_member(object, key);
        bool value = false;
        int r = read_bool(object, key, &value, err);

        if (!r && place.json)
                *to = (struct maybe){ true, value };
        return r;
}

static int parse_namespaces(const struct place *linux_place, struct config *config, struct err *err)
{
        struct place array;
        size_t count;
        int r = read_array(linux_place, "namespaces", &array, &count, err);

        for (size_t i = 0; !r && i < count; i++) {
                struct place place = place_element(&array, i);
                const char *type = NULL, *path = NULL;
                int kind = 0;

                r = read_required_text(&place, "type", &type, err);
                if (!r)
                        r = read_path(&place, "path", &path, err);
                if (r < 0)
                        break;
                while (kind < NAMESPACE_COUNT && strcmp(namespace_words[kind].name, type) != 0)
                        kind++;
                if (kind == NAMESPACE_COUNT)
                        return place_error(&place, -EINVAL, err, "is of the type '%s', which no namespace has", type);
                /* "If a namespaces field contains duplicated namespaces with same type, the runtime MUST generate an error." */
                if (config->namespaces[kind].wanted)
                        return place_error(&place, -EINVAL, err, "asks for '%s' a second time", type);
                if (path && !*path)
                        path = NULL;
                if (path && *path != '/')
                        return place_error(&place, -EINVAL, err, "has a path '%s' that is not absolute", path);
                config->namespaces[kind] = (struct namespace_wish){ true, path };
        }
        return r;
}

static int parse_one_offset(const struct place *offsets, const char *key, int64_t *seconds, uint32_t *nanoseconds, bool *given, struct err *err)
{
        struct place place;
        int64_t value = 0;
        int r = read_object(offsets, key, &place, err);

        if (r < 0 || !place.json)
                return r;
        *given = true;
        r = read_number(&place, "secs", INT64_MIN, INT64_MAX, seconds, err);
        if (!r)
                r = read_number(&place, "nanosecs", 0, 999999999, &value, err);
        *nanoseconds = (uint32_t)value;
        return r;
}

static int parse_time_offsets(const struct place *linux_place, struct config *config, struct err *err)
{
        struct place offsets;
        int r = read_object(linux_place, "timeOffsets", &offsets, err);

        if (!r)
                r = parse_one_offset(&offsets, "monotonic", &config->monotonic_s, &config->monotonic_ns, &config->time_offsets_given, err);
        if (!r)
                r = parse_one_offset(&offsets, "boottime", &config->boottime_s, &config->boottime_ns, &config->time_offsets_given, err);
        if (!r && config->time_offsets_given && (!config->namespaces[NAMESPACE_TIME].wanted || config->namespaces[NAMESPACE_TIME].path))
                return place_error(&offsets, -EINVAL, err, "needs a new time namespace");
        return r;
}

static int read_device_number(const struct place *place, uint32_t *major_number, uint32_t *minor_number, struct err *err)
{
        int64_t high = 0, low = 0;
        int r = read_number(place, "major", 0, UINT32_MAX, &high, err);

        if (!r)
                r = read_number(place, "minor", 0, UINT32_MAX, &low, err);
        *major_number = (uint32_t)high;
        *minor_number = (uint32_t)low;
        return r;
}

static int parse_device(const struct place *place, void *element, void *ctx, struct err *err)
{
        static const struct word types[] = { { "c", S_IFCHR }, { "u", S_IFCHR }, { "b", S_IFBLK }, { "p", S_IFIFO }, { 0 } };
        struct device_config *device = element;
        const struct word *type = NULL;
        int64_t mode = 0666;
        int r = read_required_text(place, "path", &device->path, err);

        if (!r)
                r = read_path(place, "path", &device->path, err);
        if (!r && device->path[0] != '/')
                return place_error(place, -EINVAL, err, "has a path '%s' that is not absolute", device->path);
        if (!r)
                r = read_word(place, "type", types, &type, err);
        if (!r && !type)
                return place_error(place, -EINVAL, err, "has no type");
        if (!r)
                r = read_device_number(place, &device->major, &device->minor, err);
        if (!r)
                r = read_number(place, "fileMode", 0, 0177777, &mode, err);
        if (!r)
                r = read_u32(place, "uid", &device->uid, err);
        if (!r)
                r = read_u32(place, "gid", &device->gid, err);
        if (!r) {
                device->type = (mode_t)type->value;
                device->mode = (mode_t)mode & 07777;
        }
        return r;
}

static int parse_device_rule(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct device_rule *rule = element;
        const char *type = "a", *access = "rwm";
        int r = read_bool(place, "allow", &rule->allow, err);

        rule->major = rule->minor = -1;
        if (!r)
                r = read_text(place, "type", &type, err);
        if (!r)
                r = read_number(place, "major", -1, UINT32_MAX, &rule->major, err);
        if (!r)
                r = read_number(place, "minor", -1, UINT32_MAX, &rule->minor, err);
        if (!r)
                r = read_text(place, "access", &access, err);
        if (r < 0)
                return r;
        if (!*type)
                type = "a";
        if (strlen(type) != 1 || !strchr("abc", *type))
                return place_error(place, -EINVAL, err, "is of the type '%s', none of a, b, c", type);
        if (!*access)
                access = "rwm";
        if (strspn(access, "rwm") != strlen(access))
                return place_error(place, -EINVAL, err, "has an access '%s', not of r, w and m", access);
        rule->type = *type;
        rule->read = strchr(access, 'r');
        rule->write = strchr(access, 'w');
        rule->make = strchr(access, 'm');
        return 0;
}

static int parse_memory(const struct place *resources, struct resources *to, struct err *err)
{
        struct {
                const char *key;
                struct maybe *to;
        } const numbers[] = {
                { "limit", &to->memory.limit }, { "reservation", &to->memory.reservation }, { "swap", &to->memory.swap },
                { "kernel", &to->memory.kernel }, { "kernelTCP", &to->memory.kernel_tcp },
        }, flags[] = {
                { "disableOOMKiller", &to->memory.disable_oom_killer }, { "useHierarchy", &to->memory.use_hierarchy },
                { "checkBeforeUpdate", &to->memory.check_before_update },
        };
        struct place memory;
        int r = read_object(resources, "memory", &memory, err);

        for (size_t i = 0; !r && i < ARRAY_SIZE(numbers); i++)
                r = read_maybe(&memory, numbers[i].key, -1, INT64_MAX, numbers[i].to, err);
        for (size_t i = 0; !r && i < ARRAY_SIZE(flags); i++)
                r = read_maybe_bool(&memory, flags[i].key, flags[i].to, err);
        if (!r)
                r = read_maybe(&memory, "swappiness", 0, 100, &to->memory.swappiness, err);
        return r;
}

static int parse_cpu(const struct place *resources, struct resources *to, struct err *err)
{
        struct {
                const char *key;
                int64_t min;
                struct maybe *to;
        } const numbers[] = {
                { "shares", 0, &to->cpu.shares }, { "quota", -1, &to->cpu.quota_us }, { "period", 0, &to->cpu.period_us },
                { "burst", 0, &to->cpu.burst_us }, { "realtimeRuntime", -1, &to->cpu.realtime_runtime_us },
                { "realtimePeriod", 0, &to->cpu.realtime_period_us }, { "idle", 0, &to->cpu.idle },
        };
        struct place cpu;
        int r = read_object(resources, "cpu", &cpu, err);

        for (size_t i = 0; !r && i < ARRAY_SIZE(numbers); i++)
                r = read_maybe(&cpu, numbers[i].key, numbers[i].min, INT64_MAX, numbers[i].to, err);
        if (!r)
                r = read_text(&cpu, "cpus", &to->cpu.cpus, err);
        if (!r)
                r = read_text(&cpu, "mems", &to->cpu.mems, err);
        return r;
}

static int parse_weight(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct block_weight *weight = element;
        int64_t value = -1, leaf = -1;
        int r = read_device_number(place, &weight->major, &weight->minor, err);

        if (!r)
                r = read_number(place, "weight", 0, 10000, &value, err);
        if (!r)
                r = read_number(place, "leafWeight", 0, 10000, &leaf, err);
        weight->weight = (int)value;
        weight->leaf_weight = (int)leaf;
        return r;
}

static int parse_throttle(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct block_limit *limit = element;
        int r = read_device_number(place, &limit->major, &limit->minor, err);

        return r < 0 ? r : read_u64(place, "rate", &limit->rate, err);
}

static int parse_block(const struct place *resources, struct config *config, struct err *err)
{
        static const char *const throttles[THROTTLE_COUNT] = {
                [THROTTLE_READ_BPS] = "throttleReadBpsDevice",
                [THROTTLE_WRITE_BPS] = "throttleWriteBpsDevice",
                [THROTTLE_READ_IOPS] = "throttleReadIOPSDevice",
                [THROTTLE_WRITE_IOPS] = "throttleWriteIOPSDevice",
        };
        struct resources *to = &config->resources;
        struct place block;
        int r = read_object(resources, "blockIO", &block, err);

        if (!r)
                r = read_maybe(&block, "weight", 0, 10000, &to->block.weight, err);
        if (!r)
                r = read_maybe(&block, "leafWeight", 0, 10000, &to->block.leaf_weight, err);
        if (!r)
                r = read_list(&block, "weightDevice", &config->arena, sizeof(*to->block.weights), &to->block.weights, &to->block.weight_count,
                              parse_weight, NULL, err);
        for (int i = 0; !r && i < THROTTLE_COUNT; i++)
                r = read_list(&block, throttles[i], &config->arena, sizeof(**to->block.throttles), &to->block.throttles[i],
                              &to->block.throttle_counts[i], parse_throttle, NULL, err);
        return r;
}

/* A name that becomes part of a file's name. */
static int check_file_part(const struct place *place, const char *name, struct err *err)
{
        if (!*name || strchr(name, '/') || strlen(name) > 100)
                return place_error(place, -EINVAL, err, "has the name '%s', which cannot be a file's", name);
        return 0;
}

static int parse_huge_page(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct named_limit *limit = element;
        int r = read_required_text(place, "pageSize", &limit->name, err);

        if (!r)
                r = read_u64(place, "limit", &limit->value, err);
        return r < 0 ? r : check_file_part(place, limit->name, err);
}

static int parse_priority(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct named_limit *limit = element;
        uint32_t priority = 0;
        int r = read_required_text(place, "name", &limit->name, err);

        if (!r)
                r = read_u32(place, "priority", &priority, err);
        limit->second = priority;
        return r;
}

static int parse_network(const struct place *resources, struct config *config, struct err *err)
{
        struct place network;
        int r = read_object(resources, "network", &network, err);

        if (!r)
                r = read_maybe(&network, "classID", 0, UINT32_MAX, &config->resources.class_id, err);
        if (!r)
                r = read_list(&network, "priorities", &config->arena, sizeof(*config->resources.priorities), &config->resources.priorities,
                              &config->resources.priority_count, parse_priority, NULL, err);
        return r;
}

static int parse_rdma(const struct place *resources, struct config *config, struct err *err)
{
        struct place rdma;
        struct named_limit *limit;
        const char *name;
        json_t *value;
        int r = read_object(resources, "rdma", &rdma, err);

        if (r < 0 || !rdma.json)
                return r;
        limit = arena_take(&config->arena, json_object_size(rdma.json), sizeof(*limit));
        if (!limit)
                return err_nomem(err);
        config->resources.rdma = limit;
        json_object_foreach(rdma.json, name, value) {
                struct place place;
                struct maybe handles = { 0 }, objects = { 0 };

                r = read_object(&rdma, name, &place, err);
                if (!r)
                        r = read_maybe(&place, "hcaHandles", 0, UINT32_MAX, &handles, err);
                if (!r)
                        r = read_maybe(&place, "hcaObjects", 0, UINT32_MAX, &objects, err);
                if (r < 0)
                        return r;
                *limit++ = (struct named_limit){ name, (uint64_t)handles.value, (uint64_t)objects.value, handles.given, objects.given };
        }
        config->resources.rdma_count = (size_t)(limit - config->resources.rdma);
        return 0;
}

static int parse_unified(const struct place *resources, struct config *config, struct err *err)
{
        struct place unified;
        struct unified_entry *entry;
        const char *file;
        json_t *value;
        int r = read_object(resources, "unified", &unified, err);

        if (r < 0 || !unified.json)
                return r;
        entry = arena_take(&config->arena, json_object_size(unified.json), sizeof(*entry));
        if (!entry)
                return err_nomem(err);
        config->resources.unified = entry;
        json_object_foreach(unified.json, file, value) {
                r = check_file_part(&unified, file, err);
                if (!r)
                        r = read_text(&unified, file, &entry->text, err);
                if (r < 0)
                        return r;
                if (!strchr(file, '.'))
                        return place_error(&unified, -EINVAL, err, "has the name '%s', which no controller's file has", file);
                entry++->file = file;
        }
        config->resources.unified_count = (size_t)(entry - config->resources.unified);
        return 0;
}

int parse_resources(const struct place *place, struct config *config, struct err *err)
{
        struct resources *to = &config->resources;
        struct place pids;
        int r = read_list(place, "devices", &config->arena, sizeof(*to->devices), &to->devices, &to->device_count, parse_device_rule, NULL, err);

        if (!r)
                r = parse_memory(place, to, err);
        if (!r)
                r = parse_cpu(place, to, err);
        if (!r)
                r = read_object(place, "pids", &pids, err);
        if (!r)
                r = read_maybe(&pids, "limit", INT64_MIN, INT64_MAX, &to->pids_limit, err);
        if (!r)
                r = parse_block(place, config, err);
        if (!r)
                r = read_list(place, "hugepageLimits", &config->arena, sizeof(*to->huge_pages), &to->huge_pages, &to->huge_page_count,
                              parse_huge_page, NULL, err);
        if (!r)
                r = parse_network(place, config, err);
        if (!r)
                r = parse_rdma(place, config, err);
        if (!r)
                r = parse_unified(place, config, err);
        return r;
}

static int parse_syscall_argument(const struct place *place, void *element, void *ctx, struct err *err)
{
        static const struct word compares[] = {
                { "SCMP_CMP_NE", SCMP_CMP_NE }, { "SCMP_CMP_LT", SCMP_CMP_LT }, { "SCMP_CMP_LE", SCMP_CMP_LE }, { "SCMP_CMP_EQ", SCMP_CMP_EQ },
                { "SCMP_CMP_GE", SCMP_CMP_GE }, { "SCMP_CMP_GT", SCMP_CMP_GT }, { "SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ }, { 0 },
        };
        struct syscall_argument_rule *rule = element;
        const struct word *op = NULL;
        int64_t index = 0;
        int r = read_number(place, "index", 0, 5, &index, err);

        if (!r)
                r = read_u64(place, "value", &rule->value, err);
        if (!r)
                r = read_u64(place, "valueTwo", &rule->value_two, err);
        if (!r)
                r = read_word(place, "op", compares, &op, err);
        if (!r && !op)
                return place_error(place, -EINVAL, err, "has no op");
        if (!r) {
                rule->index = (unsigned)index;
                rule->op = (int)op->value;
        }
        return r;
}

static int parse_syscall(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct config *config = ctx;
        struct syscall_config *rule = element;
        size_t names = 0;
        int r = read_texts(place, "names", &config->arena, &rule->names, &names, err);

        if (!r && !names)
                return place_error(place, -EINVAL, err, "has no names");
        if (!r)
                r = read_required_text(place, "action", &rule->action, err);
        if (!r)
                r = read_maybe(place, "errnoRet", 0, 4095, &rule->errno_ret, err);
        if (!r)
                r = read_list(place, "args", &config->arena, sizeof(*rule->args), &rule->args, &rule->arg_count, parse_syscall_argument, NULL, err);
        return r;
}

static int parse_seccomp(const struct place *linux_place, struct config *config, struct err *err)
{
        static const char *none[] = { NULL };
        struct seccomp_config *to = &config->seccomp;
        struct place place;
        int r = read_object(linux_place, "seccomp", &place, err);

        if (r < 0 || !place.json)
                return r;
        to->given = true;
        to->architectures = to->flags = none;
        r = read_required_text(&place, "defaultAction", &to->default_action, err);
        if (!r)
                r = read_maybe(&place, "defaultErrnoRet", 0, 4095, &to->default_errno, err);
        if (!r)
                r = read_texts(&place, "architectures", &config->arena, &to->architectures, NULL, err);
        if (!r)
                r = read_texts(&place, "flags", &config->arena, &to->flags, NULL, err);
        if (!r)
                r = read_path(&place, "listenerPath", &to->listener_path, err);
        if (!r)
                r = read_text(&place, "listenerMetadata", &to->listener_metadata, err);
        if (!r)
                r = read_list(&place, "syscalls", &config->arena, sizeof(*to->syscalls), &to->syscalls, &to->syscall_count, parse_syscall, config,
                              err);
        return r;
}

static int parse_personality(const struct place *linux_place, struct config *config, struct err *err)
{
        const struct word *domain = NULL;
        struct place place;
        int r = read_object(linux_place, "personality", &place, err);

        if (!r && place.json)
                r = read_word(&place, "domain", personality_words, &domain, err);
        if (!r && domain) {
                config->personality_given = true;
                config->personality = (uint32_t)domain->value;
        }
        return r;
}

/* Things that cannot be meant together. */
static int check_linux(const struct config *config, struct err *err)
{
        const struct namespace_wish *user = &config->namespaces[NAMESPACE_USER];

        if ((config->id_maps.uid_count || config->id_maps.gid_count) && !user->wanted)
                return err_set(err, -EINVAL, "linux.uidMappings and gidMappings need a user namespace, which linux.namespaces does not ask for");
        if (user->path && (config->id_maps.uid_count || config->id_maps.gid_count))
                return err_set(err, -EINVAL, "linux.uidMappings cannot be given for a user namespace that is joined");
        if ((config->hostname || config->domain_name) && !config->namespaces[NAMESPACE_UTS].wanted)
                return err_set(err, -EINVAL, "%s needs a UTS namespace, which linux.namespaces does not ask for",
                               config->hostname ? "hostname" : "domainname");
        if (!config->namespaces[NAMESPACE_MOUNT].wanted)
                return err_set(err, -EINVAL, "linux.namespaces has no mount namespace: the root and the mounts of a container need one");
        return 0;
}

int parse_linux(const struct place *place, struct config *config, struct err *err)
{
        const struct word *propagation = NULL;
        struct place resources, rdt;
        int r = parse_namespaces(place, config, err);

        if (!r)
                r = parse_id_maps(place, "uidMappings", "gidMappings", &config->arena, &config->id_maps, err);
        if (!r)
                r = parse_time_offsets(place, config, err);
        if (!r)
                r = read_list(place, "devices", &config->arena, sizeof(*config->devices), &config->devices, &config->device_count, parse_device,
                              NULL, err);
        if (!r)
                r = read_path(place, "cgroupsPath", &config->cgroups_path, err);
        if (!r)
                r = read_object(place, "resources", &resources, err);
        if (!r && resources.json)
                r = parse_resources(&resources, config, err);
        if (!r)
                r = read_word(place, "rootfsPropagation", propagation_words, &propagation, err);
        if (!r && propagation) {
                bool recursive = propagation->value & MS_REC;

                *(recursive ? &config->root_propagation_recursive : &config->root_propagation) = propagation->value & ~(uint64_t)MS_REC;
        }
        if (!r)
                r = read_texts(place, "maskedPaths", &config->arena, &config->masked_paths, NULL, err);
        if (!r)
                r = read_texts(place, "readonlyPaths", &config->arena, &config->readonly_paths, NULL, err);
        if (!r)
                r = read_text(place, "mountLabel", &config->mount_label, err);
        if (!r)
                r = parse_sysctls(place, config, err);
        if (!r)
                r = parse_seccomp(place, config, err);
        if (!r)
                r = parse_personality(place, config, err);
        if (!r)
                r = read_object(place, "intelRdt", &rdt, err);
        if (!r)
                config->intel_rdt = rdt.json && json_object_size(rdt.json);
        return r < 0 ? r : check_linux(config, err);
}
