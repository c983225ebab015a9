/* What the machine is: accelerators, processor, cgroups, file systems. */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "base/timer.h"
#include "cli/doctor.h"
#include "vmm/vmm.h"

static int probe_accel(const char *name, char found[FOUND_MAX])
{
        struct vmm_accel_probe accel;

        for (unsigned i = 0; vmm_probe_accel(i, &accel); i++) {
                if (strcmp(accel.name, name) != 0)
                        continue;
                if (accel.result < 0)
                        snprintf(found, FOUND_MAX, "%.*s", FOUND_MAX - 1, accel.err.text);
                else if (accel.million_instructions_s > 0)
                        snprintf(found, FOUND_MAX, "a tiny guest ran at %.0f million instructions a second", accel.million_instructions_s);
                else
                        snprintf(found, FOUND_MAX, "%s", accel.text);
                return accel.result;
        }
        return -ENOENT;
}

static int probe_kvm(char found[FOUND_MAX])
{
        return probe_accel("kvm", found);
}

static int probe_software(char found[FOUND_MAX])
{
        return probe_accel("software", found);
}

static int probe_processor(char found[FOUND_MAX])
{
        __builtin_cpu_init();
        if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("popcnt")) {
                snprintf(found, FOUND_MAX, "this processor is of level x86-64-v1");
                return FOUND_PARTLY;
        }
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("fma")) {
                snprintf(found, FOUND_MAX, "this processor is of level x86-64-v2");
                return FOUND_PARTLY;
        }
        snprintf(found, FOUND_MAX, "this processor is of level x86-64-v3, %ld online", sysconf(_SC_NPROCESSORS_ONLN));
        return FOUND_WORKS;
}

/* The guest's clock is the host's TSC: CPUID 0x80000007 EDX bit 8 says that it ticks at one rate (SDM vol. 3B §18.17). */
static int probe_tsc(char found[FOUND_MAX])
{
        unsigned eax, ebx, ecx, edx;
        char clock[64] = "unknown";
        bool invariant = __get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) && edx >> 8 & 1;

        (void)doctor_read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", clock, sizeof(clock));
        snprintf(found, FOUND_MAX, "%s by CPUID, the host keeps time with %s", invariant ? "invariant" : "not invariant", clock);
        return invariant ? FOUND_WORKS : FOUND_PARTLY;
}

/* Where this process is in hierarchy `controller` of v1 ("" for v2): the path below the mount. */
static int own_cgroup(const char *controller, char *path, size_t size_bytes)
{
        FILE *file = fopen("/proc/self/cgroup", "re");
        char line[512];
        int r = -ENOENT;

        if (!file)
                return -errno;
        while (r < 0 && fgets(line, sizeof(line), file)) {
                char *names = strchr(line, ':');
                char *at = names ? strchr(names + 1, ':') : NULL;

                if (!at)
                        continue;
                *at = 0;
                at[1 + strcspn(at + 1, "\n")] = 0;
                if (!strcmp(names + 1, controller)) {
                        snprintf(path, size_bytes, "%s", !strcmp(at + 1, "/") ? "" : at + 1);
                        r = 0;
                }
        }
        fclose(file);
        return r;
}

/* Makes a group below the process's own, puts a limit there, and takes it away. */
static int try_group(const char *mount, const char *controller, const char *file, const char *value)
{
        char own[256], path[600], limit[700];
        int r = own_cgroup(controller, own, sizeof(own));

        if (r < 0)
                return r;
        snprintf(path, sizeof(path), "%s%s/virta-doctor-%d", mount, own, (int)getpid());
        if (mkdir(path, 0700) < 0)
                return -errno;
        snprintf(limit, sizeof(limit), "%s/%s", path, file);
        r = doctor_write(limit, value);
        rmdir(path);
        return r;
}

static int probe_cgroup2(char found[FOUND_MAX])
{
        static const char *const mounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
        char controllers[256] = "", path[300];
        struct statfs fs;
        int r;

        for (size_t i = 0; i < ARRAY_SIZE(mounts); i++) {
                if (statfs(mounts[i], &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
                        continue;
                snprintf(path, sizeof(path), "%s/cgroup.controllers", mounts[i]);
                (void)doctor_read_line(path, controllers, sizeof(controllers));
                r = try_group(mounts[i], "", "cgroup.max.descendants", "1");
                snprintf(found, FOUND_MAX, "mounted at %s, %s%s, a group %s%s", mounts[i], controllers[0] ? "with " : "without controllers",
                         controllers, r < 0 ? "cannot be made: " : "can be made", r < 0 ? strerror(-r) : "");
                if (r < 0)
                        return r;
                return strstr(controllers, "memory") && strstr(controllers, "cpu") ? FOUND_WORKS : FOUND_PARTLY;
        }
        snprintf(found, FOUND_MAX, "not mounted");
        return -ENOENT;
}

static int probe_cgroup1(char found[FOUND_MAX])
{
        struct statfs fs;
        int r;

        if (statfs("/sys/fs/cgroup/memory", &fs) < 0 || fs.f_type != CGROUP_SUPER_MAGIC) {
                snprintf(found, FOUND_MAX, "no memory controller of version 1 is mounted");
                return -ENOENT;
        }
        r = try_group("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "16777216");
        snprintf(found, FOUND_MAX, "memory controller mounted, a group with a limit %s%s", r < 0 ? "cannot be made: " : "can be made",
                 r < 0 ? strerror(-r) : "");
        return r;
}

static int probe_overlayfs(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWNS);

        if (r < 0)
                return r;
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("tmpfs", "/tmp", "tmpfs", 0, NULL) < 0)
                return -errno;
        if (mkdir("/tmp/low", 0700) < 0 || mkdir("/tmp/up", 0700) < 0 || mkdir("/tmp/work", 0700) < 0 || mkdir("/tmp/all", 0700) < 0)
                return -errno;
        if (mount("overlay", "/tmp/all", "overlay", 0, "lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work") < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "mounted one, writable");
        return FOUND_WORKS;
}

static int probe_fuse(char found[FOUND_MAX])
{
        char options[128];
        int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        int r;

        if (fd < 0) {
                r = -errno;
                snprintf(found, FOUND_MAX, "/dev/fuse: %s", strerror(-r));
                return r;
        }
        r = doctor_unshare(CLONE_NEWNS);
        if (r < 0)
                return r;
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return -errno;
        snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
        if (mount("virta-doctor", "/mnt", "fuse", MS_NOSUID | MS_NODEV, options) < 0)
                return -errno;
        umount2("/mnt", MNT_DETACH);
        snprintf(found, FOUND_MAX, "mounted one%s", access("/usr/bin/fusermount3", X_OK) ? "; fusermount3 is not installed" : "");
        return FOUND_WORKS;
}

static int probe_loop(char found[FOUND_MAX])
{
        int fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        int number;

        if (fd < 0) {
                int r = -errno;

                snprintf(found, FOUND_MAX, "/dev/loop-control: %s", strerror(-r));
                return r;
        }
        number = ioctl(fd, 0x4c82 /* LOOP_CTL_GET_FREE, linux/loop.h */);
        if (number < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "/dev/loop%d is free", number);
        return FOUND_WORKS;
}

static int open_device(const char *path, char found[FOUND_MAX])
{
        int fd = open(path, O_RDWR | O_CLOEXEC);
        int r = fd < 0 ? -errno : 0;

        snprintf(found, FOUND_MAX, "%s: %s", path, r < 0 ? strerror(-r) : "opened");
        return r;
}

static int probe_device_mapper(char found[FOUND_MAX])
{
        return open_device("/dev/mapper/control", found);
}

static int probe_nbd(char found[FOUND_MAX])
{
        return open_device("/dev/nbd0", found);
}

static int probe_ublk(char found[FOUND_MAX])
{
        return open_device("/dev/ublk-control", found);
}

const struct facility doctor_host[] = {
        { "kvm", "Processors", "guests at the processor's own speed", "the software accelerator runs the guest, many times slower",
          "enable VT-x or AMD-V in the firmware (or nested virtualization in the cloud's settings), load kvm_intel or kvm_amd, and join the group 'kvm'",
          probe_kvm },
        { "software", "Processors", "guests without any help from the processor", "only KVM is left", "run it on x86-64", probe_software },
        { "processor level", "Processors", "vector instructions of guests run on the host's own",
          "--cpu x86-64-v3 (and part of max) is refused; guests see the lower level", "use a processor of 2013 or later", probe_processor },
        { "invariant TSC", "Processors", "the guest's clocks are the host's TSC", "the guest is given kvm-clock, corrected against the host",
          "boot the host with tsc=reliable when its processor has a steady TSC", probe_tsc },
        { "cgroup v2", "Limits", "limits of memory and CPU for instances", "cgroup v1 or rlimits bound an instance",
          "boot with systemd.unified_cgroup_hierarchy=1 and delegate memory, cpu and pids to the user", probe_cgroup2 },
        { "cgroup v1", "Limits", "the same on hosts that have not moved to v2", "cgroup v2 or rlimits bound an instance",
          "not needed where cgroup v2 works", probe_cgroup1 },
        { "overlayfs", "File systems", "containers share their image's layers", "layers are copied",
          "a kernel with overlayfs (5.11 or later for users without root)", probe_overlayfs },
        { "FUSE", "File systems", "volumes and disk images are shown as files", "disks are reached only by the guests themselves",
          "load the module fuse, install fuse3, and let the user open /dev/fuse", probe_fuse },
        { "loop devices", "File systems", "the host can mount a raw disk image", "a disk image is only mounted inside of a guest",
          "load the module loop; needs root", probe_loop },
        { "device-mapper", "File systems", "pools on logical volumes, encryption in the kernel", "pools are files and directories",
          "load the module dm-mod; needs root", probe_device_mapper },
        { "NBD client", "File systems", "the host mounts a disk served over the network", "FUSE shows it as a file", "load the module nbd; needs root",
          probe_nbd },
        { "ublk", "File systems", "fast block devices served by a program", "FUSE shows disks as files",
          "Linux 6.0 or later with the module ublk_drv; needs root", probe_ublk },
        { 0 },
};
