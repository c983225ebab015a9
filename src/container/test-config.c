/* Configurations: what is read, and what is refused with which words. */
#include "base/test.h"

#include <errno.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "container/config.h"
#include "container/container.h"

/* A configuration with `linux_part` inside linux and `rest` behind it. */
static int parse(struct config *config, const char *process_part, const char *linux_part, const char *rest, struct err *err)
{
        char text[8192];
        int n = snprintf(text, sizeof(text),
                         "{\"ociVersion\":\"1.2.0\",\"root\":{\"path\":\"rootfs\"},\"process\":{\"cwd\":\"/\",\"args\":[\"sh\"]%s},"
                         "\"linux\":{\"namespaces\":[{\"type\":\"mount\"},{\"type\":\"pid\"}]%s}%s}",
                         process_part, linux_part, rest);

        return config_parse(config, text, (size_t)n, err);
}

static void refuses(const char *process_part, const char *linux_part, const char *rest, const char *words)
{
        struct err err = ERR_INIT;
        struct config config;

        assert_true(parse(&config, process_part, linux_part, rest, &err) < 0);
        if (!strstr(err.text, words))
                fail_msg("'%s' does not say '%s'", err.text, words);
}

static void test_minimal(void **state)
{
        struct config config;
        struct err err = ERR_INIT;

        assert_int_equal(parse(&config, "", "", "", &err), 0);
        assert_string_equal(config.root_path, "rootfs");
        assert_int_equal(config.process.arg_count, 1);
        assert_string_equal(config.process.args[0], "sh");
        assert_null(config.process.args[1]);
        assert_true(config.namespaces[NAMESPACE_PID].wanted);
        assert_false(config.namespaces[NAMESPACE_NETWORK].wanted);
        assert_int_equal(config.process.io_priority, -1);
        config_done(&config);
}

static void test_process(void **state)
{
        struct config config;
        struct err err = ERR_INIT;

        assert_int_equal(parse(&config,
                               ",\"user\":{\"uid\":5,\"gid\":6,\"umask\":18,\"additionalGids\":[7,8]},\"capabilities\":{\"effective\":[\"CAP_KILL\","
                               "\"CAP_OF_TOMORROW\"],\"bounding\":[\"CAP_CHOWN\",\"CAP_BPF\"]},\"rlimits\":[{\"type\":\"RLIMIT_CORE\",\"soft\":1,\"hard\":"
                               "18446744073709551615}],\"oomScoreAdj\":-5,\"noNewPrivileges\":true,\"ioPriority\":{\"class\":\"IOPRIO_CLASS_BE\","
                               "\"priority\":4},\"scheduler\":{\"policy\":\"SCHED_BATCH\",\"nice\":3}",
                               "", "", &err),
                         0);
        assert_int_equal(config.process.uid, 5);
        assert_int_equal(config.process.gid, 6);
        assert_true(config.process.umask_given);
        assert_int_equal(config.process.umask, 022);
        assert_int_equal(config.process.group_count, 2);
        assert_int_equal(config.process.groups[1], 8);
        assert_int_equal(config.process.capabilities.effective, 1 << 5);
        assert_int_equal(config.process.capabilities.bounding, 1 | UINT64_C(1) << 39);
        assert_int_equal(config.process.limits[0].limit.rlim_cur, 1);
        assert_int_equal(config.process.limits[0].limit.rlim_max, RLIM_INFINITY);
        assert_int_equal(config.process.oom_score_adj, -5);
        assert_int_equal(config.process.io_priority, 2 << 13 | 4);
        assert_int_equal(config.process.scheduling.policy, 3);
        config_done(&config);
}

static void test_mounts(void **state)
{
        struct config config;
        struct err err = ERR_INIT;

        assert_int_equal(parse(&config, "", "",
                               ",\"mounts\":[{\"destination\":\"/a\",\"source\":\"x\",\"options\":[\"rbind\",\"rw\",\"ro\",\"rslave\",\"rnoexec\"]},"
                               "{\"destination\":\"/b\",\"type\":\"tmpfs\",\"options\":[\"size=1m\",\"strictatime\",\"sync\",\"tmpcopyup\"]}]",
                               &err),
                         0);
        assert_int_equal(config.mounts[0].kind, MOUNT_BIND);
        assert_true(config.mounts[0].recursive_bind);
        assert_int_equal(config.mounts[0].set, MOUNT_ATTR_RDONLY);
        assert_int_equal(config.mounts[0].clear, 0);
        assert_int_equal(config.mounts[0].set_recursive, MOUNT_ATTR_NOEXEC);
        assert_int_equal(config.mounts[0].propagation_recursive, MS_SLAVE);
        assert_int_equal(config.mounts[1].kind, MOUNT_FILESYSTEM);
        assert_string_equal(config.mounts[1].data[0], "size=1m");
        assert_string_equal(config.mounts[1].data[1], "sync");
        assert_null(config.mounts[1].data[2]);
        assert_true(config.mounts[1].copy_up);
        assert_int_equal(config.mounts[1].set, MOUNT_ATTR_STRICTATIME);
        config_done(&config);
}

static void test_resources(void **state)
{
        struct config config;
        struct err err = ERR_INIT;

        assert_int_equal(parse(&config, "",
                               ",\"resources\":{\"memory\":{\"limit\":-1,\"swappiness\":60},\"cpu\":{\"shares\":512,\"cpus\":\"0-1\"},\"pids\":{\"limit\":9},"
                               "\"devices\":[{\"allow\":false,\"access\":\"rwm\"},{\"allow\":true,\"type\":\"c\",\"major\":1,\"access\":\"r\"}],"
                               "\"unified\":{\"memory.high\":\"1M\"},\"rdma\":{\"mlx\":{\"hcaHandles\":3}}}",
                               "", &err),
                         0);
        assert_true(config.resources.memory.limit.given);
        assert_int_equal(config.resources.memory.limit.value, -1);
        assert_int_equal(config.resources.cpu.shares.value, 512);
        assert_string_equal(config.resources.cpu.cpus, "0-1");
        assert_int_equal(config.resources.device_count, 2);
        assert_int_equal(config.resources.devices[0].type, 'a');
        assert_int_equal(config.resources.devices[1].minor, -1);
        assert_true(config.resources.devices[1].read);
        assert_false(config.resources.devices[1].write);
        assert_string_equal(config.resources.unified[0].file, "memory.high");
        assert_true(config.resources.rdma[0].value_given);
        assert_false(config.resources.rdma[0].second_given);
        config_done(&config);
}

static void test_refused(void **state)
{
        refuses("", ",\"namespaces\":[]", "", "duplicate");
        refuses(",\"rlimits\":[{\"type\":\"RLIMIT_X\",\"soft\":1,\"hard\":1}]", "", "", "process.rlimits[0].type is 'RLIMIT_X'");
        refuses(",\"rlimits\":[{\"type\":\"RLIMIT_CPU\",\"soft\":2,\"hard\":1}]", "", "", "soft limit 2 above the hard one 1");
        refuses(",\"rlimits\":[{\"type\":\"RLIMIT_CPU\",\"soft\":1,\"hard\":1},{\"type\":\"RLIMIT_CPU\",\"soft\":1,\"hard\":1}]", "", "",
                "gives RLIMIT_CPU a second time");
        refuses(",\"user\":{\"uid\":-1}", "", "", "process.user.uid is -1");
        refuses(",\"user\":{\"uid\":4294967295}", "", "", "which no user can have");
        refuses(",\"terminal\":1", "", "", "process.terminal is neither true nor false");
        refuses(",\"oomScoreAdj\":1001", "", "", "process.oomScoreAdj is 1001");
        refuses("", ",\"uidMappings\":[{\"containerID\":0,\"hostID\":1,\"size\":1}]", "", "need a user namespace");
        refuses("", ",\"seccomp\":{\"defaultAction\":5}", "", "linux.seccomp.defaultAction is not a string");
        refuses("", ",\"resources\":{\"unified\":{\"../x.y\":\"1\"}}", "", "cannot be a file's");
        refuses("", ",\"resources\":{\"devices\":[{\"type\":\"cc\"}]}", "", "none of a, b, c");
        refuses("", ",\"devices\":[{\"path\":\"null\",\"type\":\"c\"}]", "", "is not absolute");
        refuses("", ",\"rootfsPropagation\":\"wide\"", "", "linux.rootfsPropagation is 'wide'");
        refuses("", ",\"timeOffsets\":{\"monotonic\":{\"secs\":1}}", "", "needs a new time namespace");
        refuses("", "", ",\"hostname\":\"x\"", "needs a UTS namespace");
        refuses("", "", ",\"mounts\":[{\"source\":\"x\"}]", "mounts[0].destination is missing");
        refuses("", "", ",\"mounts\":[{\"destination\":\"/x\",\"type\":\"bind\"}]", "without a source");
        refuses("", "", ",\"mounts\":{}", "mounts is not an array");
        refuses("", "", ",\"hooks\":{\"prestart\":[{\"path\":\"x\"}]}", "is not absolute");
}

static void refuses_text(const char *text, const char *words)
{
        struct err err = ERR_INIT;
        struct config config;

        assert_true(config_parse(&config, text, strlen(text), &err) < 0);
        if (!strstr(err.text, words))
                fail_msg("'%s' does not say '%s'", err.text, words);
}

static void test_broken(void **state)
{
        refuses_text("", "line 1");
        refuses_text("{", "line 1");
        refuses_text("[]", "not a JSON object");
        refuses_text("{}", "ociVersion is missing");
        refuses_text("{\"ociVersion\":\"2.0.0\"}", "only 1.x");
        refuses_text("{\"ociVersion\":\"one\"}", "not a version");
        refuses_text("{\"ociVersion\":\"1.0.0\"}", "root is missing");
        refuses_text("{\"ociVersion\":\"1.0.0\",\"root\":{\"path\":\"r\"}}", "linux is missing");
        refuses_text("{\"ociVersion\":\"1.0.0\",\"root\":{\"path\":\"r\"},\"process\":{},\"linux\":{}}", "has no args");
        refuses_text("{\"ociVersion\":\"1.0.0\",\"root\":{\"path\":\"r\"},\"linux\":{\"namespaces\":[{\"type\":\"mnt\"}]}}", "is of the type 'mnt'");
        refuses_text("{\"ociVersion\":\"1.0.0\",\"root\":{\"path\":\"r\"},\"linux\":{}}", "has no mount namespace");
}

/* What we write to start from is what we read. */
static void test_spec(void **state)
{
        for (int rootless = 0; rootless < 2; rootless++) {
                json_t *json = container_spec(rootless);
                char *text = json_dumps(json, 0);
                struct config config;
                struct err err = ERR_INIT;

                assert_int_equal(config_parse(&config, text, strlen(text), &err), 0);
                assert_int_equal(config.namespaces[NAMESPACE_USER].wanted, rootless);
                config_done(&config);
                free(text);
                json_decref(json);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_minimal), cmocka_unit_test(test_process), cmocka_unit_test(test_mounts), cmocka_unit_test(test_resources),
                cmocka_unit_test(test_refused), cmocka_unit_test(test_broken),  cmocka_unit_test(test_spec),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
