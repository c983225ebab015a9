#include "container/words.h"

#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/resource.h>

const struct namespace_word namespace_words[NAMESPACE_COUNT] = {
        [NAMESPACE_USER] = { "user", "user", CLONE_NEWUSER },
        [NAMESPACE_CGROUP] = { "cgroup", "cgroup", CLONE_NEWCGROUP },
        [NAMESPACE_IPC] = { "ipc", "ipc", CLONE_NEWIPC },
        [NAMESPACE_UTS] = { "uts", "uts", CLONE_NEWUTS },
        [NAMESPACE_NETWORK] = { "network", "net", CLONE_NEWNET },
        [NAMESPACE_PID] = { "pid", "pid", CLONE_NEWPID },
        [NAMESPACE_MOUNT] = { "mount", "mnt", CLONE_NEWNS },
        [NAMESPACE_TIME] = { "time", "time", CLONE_NEWTIME },
};

#define CAPABILITY(name) { #name, name }

const struct word capability_words[] = {
        CAPABILITY(CAP_CHOWN),
        CAPABILITY(CAP_DAC_OVERRIDE),
        CAPABILITY(CAP_DAC_READ_SEARCH),
        CAPABILITY(CAP_FOWNER),
        CAPABILITY(CAP_FSETID),
        CAPABILITY(CAP_KILL),
        CAPABILITY(CAP_SETGID),
        CAPABILITY(CAP_SETUID),
        CAPABILITY(CAP_SETPCAP),
        CAPABILITY(CAP_LINUX_IMMUTABLE),
        CAPABILITY(CAP_NET_BIND_SERVICE),
        CAPABILITY(CAP_NET_BROADCAST),
        CAPABILITY(CAP_NET_ADMIN),
        CAPABILITY(CAP_NET_RAW),
        CAPABILITY(CAP_IPC_LOCK),
        CAPABILITY(CAP_IPC_OWNER),
        CAPABILITY(CAP_SYS_MODULE),
        CAPABILITY(CAP_SYS_RAWIO),
        CAPABILITY(CAP_SYS_CHROOT),
        CAPABILITY(CAP_SYS_PTRACE),
        CAPABILITY(CAP_SYS_PACCT),
        CAPABILITY(CAP_SYS_ADMIN),
        CAPABILITY(CAP_SYS_BOOT),
        CAPABILITY(CAP_SYS_NICE),
        CAPABILITY(CAP_SYS_RESOURCE),
        CAPABILITY(CAP_SYS_TIME),
        CAPABILITY(CAP_SYS_TTY_CONFIG),
        CAPABILITY(CAP_MKNOD),
        CAPABILITY(CAP_LEASE),
        CAPABILITY(CAP_AUDIT_WRITE),
        CAPABILITY(CAP_AUDIT_CONTROL),
        CAPABILITY(CAP_SETFCAP),
        CAPABILITY(CAP_MAC_OVERRIDE),
        CAPABILITY(CAP_MAC_ADMIN),
        CAPABILITY(CAP_SYSLOG),
        CAPABILITY(CAP_WAKE_ALARM),
        CAPABILITY(CAP_BLOCK_SUSPEND),
        CAPABILITY(CAP_AUDIT_READ),
        CAPABILITY(CAP_PERFMON),
        CAPABILITY(CAP_BPF),
        CAPABILITY(CAP_CHECKPOINT_RESTORE),
        { 0 },
};

#define LIMIT(name) { #name, (uint64_t)name }

const struct word limit_words[] = {
        LIMIT(RLIMIT_AS),         LIMIT(RLIMIT_CORE),   LIMIT(RLIMIT_CPU),        LIMIT(RLIMIT_DATA),
        LIMIT(RLIMIT_FSIZE),      LIMIT(RLIMIT_LOCKS),  LIMIT(RLIMIT_MEMLOCK),    LIMIT(RLIMIT_MSGQUEUE),
        LIMIT(RLIMIT_NICE),       LIMIT(RLIMIT_NOFILE), LIMIT(RLIMIT_NPROC),      LIMIT(RLIMIT_RSS),
        LIMIT(RLIMIT_RTPRIO),     LIMIT(RLIMIT_RTTIME), LIMIT(RLIMIT_SIGPENDING), LIMIT(RLIMIT_STACK),
        { 0 },
};

const struct word propagation_words[] = {
        { "shared", MS_SHARED },
        { "rshared", MS_SHARED | MS_REC },
        { "slave", MS_SLAVE },
        { "rslave", MS_SLAVE | MS_REC },
        { "private", MS_PRIVATE },
        { "rprivate", MS_PRIVATE | MS_REC },
        { "unbindable", MS_UNBINDABLE },
        { "runbindable", MS_UNBINDABLE | MS_REC },
        { 0 },
};

/* sched_setattr(2); config.md, "Process", scheduler. */
const struct word scheduler_words[] = {
        { "SCHED_OTHER", SCHED_OTHER }, { "SCHED_FIFO", SCHED_FIFO },       { "SCHED_RR", SCHED_RR },
        { "SCHED_BATCH", SCHED_BATCH }, { "SCHED_ISO", 4 /* reserved */ },  { "SCHED_IDLE", SCHED_IDLE },
        { "SCHED_DEADLINE", SCHED_DEADLINE },
        { 0 },
};

const struct word scheduler_flag_words[] = {
        { "SCHED_FLAG_RESET_ON_FORK", SCHED_FLAG_RESET_ON_FORK },
        { "SCHED_FLAG_RECLAIM", SCHED_FLAG_RECLAIM },
        { "SCHED_FLAG_DL_OVERRUN", SCHED_FLAG_DL_OVERRUN },
        { "SCHED_FLAG_KEEP_POLICY", SCHED_FLAG_KEEP_POLICY },
        { "SCHED_FLAG_KEEP_PARAMS", SCHED_FLAG_KEEP_PARAMS },
        { "SCHED_FLAG_UTIL_CLAMP_MIN", SCHED_FLAG_UTIL_CLAMP_MIN },
        { "SCHED_FLAG_UTIL_CLAMP_MAX", SCHED_FLAG_UTIL_CLAMP_MAX },
        { 0 },
};

const struct word personality_words[] = {
        { "LINUX", PER_LINUX },
        { "LINUX32", PER_LINUX32 },
        { 0 },
};

#define SET(name, attr) { name, MOUNT_WORD_SET, attr, 0, false }, { "r" name, MOUNT_WORD_SET, attr, 0, true }
#define CLEAR(name, attr) { name, MOUNT_WORD_SET, 0, attr, false }, { "r" name, MOUNT_WORD_SET, 0, attr, true }
#define TIME(name, attr) { name, MOUNT_WORD_SET, attr, MOUNT_ATTR__ATIME, false }, { "r" name, MOUNT_WORD_SET, attr, MOUNT_ATTR__ATIME, true }
#define PROPAGATE(name, flag) { name, MOUNT_WORD_PROPAGATION, flag, 0, false }, { "r" name, MOUNT_WORD_PROPAGATION, flag, 0, true }

const struct mount_word mount_words[] = {
        SET("ro", MOUNT_ATTR_RDONLY),
        CLEAR("rw", MOUNT_ATTR_RDONLY),
        SET("nosuid", MOUNT_ATTR_NOSUID),
        CLEAR("suid", MOUNT_ATTR_NOSUID),
        SET("nodev", MOUNT_ATTR_NODEV),
        CLEAR("dev", MOUNT_ATTR_NODEV),
        SET("noexec", MOUNT_ATTR_NOEXEC),
        CLEAR("exec", MOUNT_ATTR_NOEXEC),
        SET("nodiratime", MOUNT_ATTR_NODIRATIME),
        CLEAR("diratime", MOUNT_ATTR_NODIRATIME),
        SET("nosymfollow", MOUNT_ATTR_NOSYMFOLLOW),
        CLEAR("symfollow", MOUNT_ATTR_NOSYMFOLLOW),
        TIME("noatime", MOUNT_ATTR_NOATIME),
        TIME("strictatime", MOUNT_ATTR_STRICTATIME),
        TIME("relatime", MOUNT_ATTR_RELATIME),
        TIME("atime", MOUNT_ATTR_RELATIME),
        TIME("norelatime", MOUNT_ATTR_STRICTATIME),
        TIME("nostrictatime", MOUNT_ATTR_RELATIME),
        { "defaults", MOUNT_WORD_OTHER },
        { "bind", MOUNT_WORD_BIND },
        { "rbind", MOUNT_WORD_BIND, .recursive = true },
        PROPAGATE("shared", MS_SHARED),
        PROPAGATE("slave", MS_SLAVE),
        PROPAGATE("private", MS_PRIVATE),
        PROPAGATE("unbindable", MS_UNBINDABLE),
        { "async", MOUNT_WORD_OTHER },
        { "sync", MOUNT_WORD_SUPER },
        { "dirsync", MOUNT_WORD_SUPER },
        { "lazytime", MOUNT_WORD_SUPER },
        { "nolazytime", MOUNT_WORD_OTHER },
        { "mand", MOUNT_WORD_SUPER },
        { "nomand", MOUNT_WORD_OTHER },
        { "iversion", MOUNT_WORD_SUPER },
        { "noiversion", MOUNT_WORD_OTHER },
        { "silent", MOUNT_WORD_OTHER },
        { "loud", MOUNT_WORD_OTHER },
        { "tmpcopyup", MOUNT_WORD_OTHER },
        { "copy-symlink", MOUNT_WORD_OTHER },
        { "remount", MOUNT_WORD_OTHER },
        { "idmap", MOUNT_WORD_OTHER },
        { "ridmap", MOUNT_WORD_OTHER, .recursive = true },
        { 0 },
};

const struct word *word_find(const struct word *table, const char *name)
{
        for (; table->name; table++)
                if (!strcmp(table->name, name))
                        return table;
        return NULL;
}

const struct mount_word *mount_word_find(const char *name)
{
        for (const struct mount_word *word = mount_words; word->name; word++)
                if (!strcmp(word->name, name))
                        return word;
        return NULL;
}
