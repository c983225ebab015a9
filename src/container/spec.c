/* A configuration to start from, with what is safe: no capability but a few, no new privileges, hidden and read-only paths, a list of system calls. */
#include "container/container.h"

static const char template[] =
        "{\"ociVersion\":\"1.2.0\",\"process\":{\"terminal\":true,\"user\":{\"uid\":0,\"gid\":0},\"args\":[\"sh\"],"
        "\"env\":[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\",\"TERM=xterm\"],\"cwd\":\"/\","
        "\"capabilities\":{\"bounding\":[\"CAP_AUDIT_WRITE\",\"CAP_KILL\",\"CAP_NET_BIND_SERVICE\"],"
        "\"effective\":[\"CAP_AUDIT_WRITE\",\"CAP_KILL\",\"CAP_NET_BIND_SERVICE\"],"
        "\"permitted\":[\"CAP_AUDIT_WRITE\",\"CAP_KILL\",\"CAP_NET_BIND_SERVICE\"]},"
        "\"rlimits\":[{\"type\":\"RLIMIT_NOFILE\",\"hard\":1024,\"soft\":1024}],\"noNewPrivileges\":true},"
        "\"root\":{\"path\":\"rootfs\",\"readonly\":true},\"hostname\":\"virta\",\"mounts\":["
        "{\"destination\":\"/proc\",\"type\":\"proc\",\"source\":\"proc\",\"options\":[\"nosuid\",\"noexec\",\"nodev\"]},"
        "{\"destination\":\"/dev\",\"type\":\"tmpfs\",\"source\":\"tmpfs\",\"options\":[\"nosuid\",\"strictatime\",\"mode=755\",\"size=65536k\"]},"
        "{\"destination\":\"/dev/pts\",\"type\":\"devpts\",\"source\":\"devpts\",\"options\":[\"nosuid\",\"noexec\",\"newinstance\","
        "\"ptmxmode=0666\",\"mode=0620\",\"gid=5\"]},"
        "{\"destination\":\"/dev/shm\",\"type\":\"tmpfs\",\"source\":\"shm\",\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"mode=1777\",\"size=65536k\"]},"
        "{\"destination\":\"/dev/mqueue\",\"type\":\"mqueue\",\"source\":\"mqueue\",\"options\":[\"nosuid\",\"noexec\",\"nodev\"]},"
        "{\"destination\":\"/sys\",\"type\":\"sysfs\",\"source\":\"sysfs\",\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"ro\"]},"
        "{\"destination\":\"/sys/fs/cgroup\",\"type\":\"cgroup\",\"source\":\"cgroup\",\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"relatime\",\"ro\"]}],"
        "\"linux\":{\"resources\":{\"devices\":[{\"allow\":false,\"access\":\"rwm\"}]},\"namespaces\":[{\"type\":\"pid\"},{\"type\":\"network\"},"
        "{\"type\":\"ipc\"},{\"type\":\"uts\"},{\"type\":\"mount\"},{\"type\":\"cgroup\"}],"
        "\"maskedPaths\":[\"/proc/acpi\",\"/proc/asound\",\"/proc/kcore\",\"/proc/keys\",\"/proc/latency_stats\",\"/proc/timer_list\","
        "\"/proc/timer_stats\",\"/proc/sched_debug\",\"/proc/scsi\",\"/sys/firmware\",\"/sys/devices/virtual/powercap\"],"
        "\"readonlyPaths\":[\"/proc/bus\",\"/proc/fs\",\"/proc/irq\",\"/proc/sys\",\"/proc/sysrq-trigger\"]}}";

/* What a plain user may not do is taken out: a user namespace that maps only oneself, the host's network and sysfs. */
static int make_rootless(json_t *spec)
{
        json_t *linux_json = json_object_get(spec, "linux"), *namespaces = json_object_get(linux_json, "namespaces"), *one;
        json_t *mounts = json_object_get(spec, "mounts"), *mount;
        size_t i;

        json_array_foreach(namespaces, i, one)
                if (!strcmp(json_string_value(json_object_get(one, "type")), "network"))
                        json_array_remove(namespaces, i--);
        json_array_append_new(namespaces, json_pack("{s:s}", "type", "user"));
        json_object_del(linux_json, "resources");
        json_object_set_new(linux_json, "uidMappings", json_pack("[{s:i, s:I, s:i}]", "containerID", 0, "hostID", (json_int_t)geteuid(), "size", 1));
        json_object_set_new(linux_json, "gidMappings", json_pack("[{s:i, s:I, s:i}]", "containerID", 0, "hostID", (json_int_t)getegid(), "size", 1));
        json_array_foreach(mounts, i, mount) {
                const char *destination = json_string_value(json_object_get(mount, "destination"));

                if (!strcmp(destination, "/sys")) {
                        json_object_set_new(mount, "type", json_string("none"));
                        json_object_set_new(mount, "source", json_string("/sys"));
                        json_object_set_new(mount, "options", json_pack("[s, s, s, s, s]", "rbind", "nosuid", "noexec", "nodev", "ro"));
                } else if (!strcmp(destination, "/sys/fs/cgroup")) {
                        json_array_remove(mounts, i--);
                } else if (!strcmp(destination, "/dev/pts")) {
                        json_array_remove(json_object_get(mount, "options"), 5);
                }
        }
        return 0;
}

json_t *container_spec(bool rootless)
{
        json_t *spec = json_loads(template, 0, NULL);

        if (spec && rootless)
                make_rootless(spec);
        return spec;
}
