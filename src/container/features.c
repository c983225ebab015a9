/* What the runtime can do: runtime-spec features.md. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>

#include "container/container.h"
#include "container/seccomp-filter.h"
#include "container/words.h"

static json_t *strings(const char *const *list)
{
        json_t *array = json_array();

        for (; array && *list; list++)
                json_array_append_new(array, json_string(*list));
        return array;
}

static int compare(const void *a, const void *b)
{
        return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* "MUST be sorted" is not said, but all do it, so that outputs can be compared. */
static json_t *words(const struct word *table)
{
        const char *names[128];
        size_t count = 0;

        for (; table->name && count < ARRAY_SIZE(names) - 1; table++)
                names[count++] = table->name;
        qsort(names, count, sizeof(*names), compare);
        names[count] = NULL;
        return strings(names);
}

static json_t *mount_options(void)
{
        const char *names[160];
        size_t count = 0;

        for (const struct mount_word *word = mount_words; word->name && count < ARRAY_SIZE(names) - 1; word++)
                names[count++] = word->name;
        qsort(names, count, sizeof(*names), compare);
        names[count] = NULL;
        return strings(names);
}

static json_t *namespaces(void)
{
        const char *names[NAMESPACE_COUNT + 1] = { 0 };

        for (int i = 0; i < NAMESPACE_COUNT; i++)
                names[i] = namespace_words[i].name;
        qsort(names, NAMESPACE_COUNT, sizeof(*names), compare);
        return strings(names);
}

static json_t *working_flags(void)
{
        json_t *array = json_array();

        for (const char *const *flag = seccomp_flags; array && *flag; flag++)
                if (seccomp_flag_works(*flag))
                        json_array_append_new(array, json_string(*flag));
        return array;
}

json_t *container_features(void)
{
        const struct scmp_version *library = seccomp_version();
        json_t *seccomp = json_pack("{s:b, s:o, s:o, s:o, s:o, s:o}", "enabled", 1, "actions", strings(seccomp_actions), "operators",
                                    strings(seccomp_operators), "archs", strings(seccomp_architectures), "knownFlags", strings(seccomp_flags),
                                    "supportedFlags", working_flags());
        char version[32];
        json_t *linux_json = json_pack("{s:o, s:o, s:{s:b, s:b, s:b, s:b, s:b}, s:o, s:{s:b}, s:{s:b}, s:{s:b}, s:{s:{s:b}}}", "namespaces", namespaces(),
                                       "capabilities", words(capability_words), "cgroup", "v1", 1, "v2", 1, "systemd", 0, "systemdUser", 0, "rdma", 1,
                                       "seccomp", seccomp, "apparmor", "enabled", 1, "selinux", "enabled", 1, "intelRdt", "enabled", 0,
                                       "mountExtensions", "idmap", "enabled", 1);

        snprintf(version, sizeof(version), "%u.%u.%u", library->major, library->minor, library->micro);
        return json_pack("{s:s, s:s, s:o, s:o, s:o, s:{s:s}}", "ociVersionMin", "1.0.0", "ociVersionMax", "1.2.0", "hooks",
                         strings((const char *const[]){ hook_names[0], hook_names[1], hook_names[2], hook_names[3], hook_names[4], hook_names[5], NULL }),
                         "mountOptions", mount_options(), "linux", linux_json, "annotations", "io.github.seccomp.libseccomp.version", version);
}
