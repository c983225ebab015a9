/*
 * What a process that has been taken over would try. See test-escape.h.
 */
#include "base/test-escape.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

static long connect_tcp(const struct escape *in)
{
        struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(in->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static long connect_unix(const char *name, bool abstract)
{
        struct sockaddr_un to = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name) + !abstract);

        memcpy(to.sun_path + abstract, name, strlen(name));
        return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, length);
}

static long gain_capabilities(void)
{
        struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct all[2] = { { ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u } };

        return syscall(SYS_capset, &header, all);
}

static long map_executable(void)
{
        return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

static long open_etc_passwd(const struct escape *in)
{
        return open("/etc/passwd", O_RDONLY);
}

static long open_a_file_above_the_share(const struct escape *in)
{
        return openat(in->share, "../../../../../etc/passwd", O_RDONLY);
}

static long follow_a_link_out_of_the_share(const struct escape *in)
{
        return openat(in->share, "link-to-etc/passwd", O_RDONLY);
}

static long open_proc_self_mem(const struct escape *in)
{
        return open("/proc/self/mem", O_RDWR);
}

static long open_dev_kmsg(const struct escape *in)
{
        return open("/dev/kmsg", O_WRONLY);
}

static long write_a_file_to_the_root(const struct escape *in)
{
        return open("/new", O_CREAT | O_WRONLY, 0600);
}

static long open_a_file_by_handle(const struct escape *in)
{
        return syscall(SYS_open_by_handle_at, in->share, (char[16]){ 8 }, O_RDONLY);
}

static long execute_a_program(const struct escape *in)
{
        return execl("/bin/true", "true", NULL);
}

static long execute_a_descriptor(const struct escape *in)
{
        return syscall(SYS_execveat, in->share, "there", (char *[]){ NULL }, (char *[]){ NULL }, 0);
}

static long fork_process(const struct escape *in)
{
        return fork();
}

static long make_a_namespace(const struct escape *in)
{
        return unshare(CLONE_NEWUSER);
}

static long join_a_namespace(const struct escape *in)
{
        return setns(in->share, 0);
}

static long mount_a_file_system(const struct escape *in)
{
        return mount("none", "/", "tmpfs", 0, NULL);
}

static long unmount_the_root(const struct escape *in)
{
        return umount2("/", MNT_DETACH);
}

static long change_the_root(const struct escape *in)
{
        return chroot(".");
}

static long bind_a_tree(const struct escape *in)
{
        return syscall(SYS_open_tree, in->share, "..", OPEN_TREE_CLONE);
}

static long make_a_device_node(const struct escape *in)
{
        return mknodat(in->share, "disk", S_IFBLK | 0600, 8 << 8);
}

static long connect_by_tcp(const struct escape *in)
{
        return connect_tcp(in);
}

static long connect_to_a_unix_socket_by_path(const struct escape *in)
{
        return connect_unix(in->path_socket, false);
}

static long connect_to_an_abstract_unix_socket(const struct escape *in)
{
        return connect_unix(in->abstract_socket, true);
}

static long open_a_netlink_socket(const struct escape *in)
{
        return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
}

static long open_a_packet_socket(const struct escape *in)
{
        return socket(AF_PACKET, SOCK_RAW, 0);
}

static long trace_the_parent(const struct escape *in)
{
        return ptrace(PTRACE_SEIZE, in->parent, NULL, NULL);
}

static long read_the_parent_s_memory(const struct escape *in)
{
        char byte = 0;

        return process_vm_readv(in->parent, &(struct iovec){ &byte, 1 }, 1, &(struct iovec){ (void *)in, 1 }, 1, 0);
}

static long write_the_parent_s_memory(const struct escape *in)
{
        char byte = 0;

        return process_vm_writev(in->parent, &(struct iovec){ &byte, 1 }, 1, &(struct iovec){ (void *)in, 1 }, 1, 0);
}

static long signal_the_parent(const struct escape *in)
{
        return kill(in->parent, 0);
}

static long signal_a_thread_of_the_parent(const struct escape *in)
{
        return syscall(SYS_tgkill, in->parent, in->parent, 0);
}

static long take_a_descriptor_of_the_parent(const struct escape *in)
{
        return syscall(SYS_pidfd_open, in->parent, 0);
}

static long raise_the_parent_s_limits(const struct escape *in)
{
        return prlimit(in->parent, RLIMIT_NOFILE, &(struct rlimit){ 1 << 20, 1 << 20 }, NULL);
}

static long become_root(const struct escape *in)
{
        return syscall(SYS_setresuid, 0, 0, 0) < 0 || in->was_root ? -1 : 0;
}

static long take_capabilities(const struct escape *in)
{
        return gain_capabilities();
}

static long load_a_kernel_module(const struct escape *in)
{
        return syscall(SYS_init_module, in, 1, "");
}

static long load_a_program_into_the_kernel(const struct escape *in)
{
        return syscall(SYS_bpf, 5, in, 128);
}

static long watch_kernel_performance(const struct escape *in)
{
        return syscall(SYS_perf_event_open, (char[128]){ 0 }, 0, -1, -1, 0);
}

static long use_a_new_io_uring(const struct escape *in)
{
        return syscall(SYS_io_uring_setup, 8, (char[256]){ 0 });
}

static long read_the_kernel_s_log(const struct escape *in)
{
        char byte = 0;

        return syscall(SYS_syslog, 3, &byte, 1);
}

static long set_the_clock(const struct escape *in)
{
        return clock_settime(CLOCK_REALTIME, &(struct timespec){ 0 });
}

static long set_the_host_s_name(const struct escape *in)
{
        return sethostname("x", 1);
}

static long reboot(const struct escape *in)
{
        return syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL);
}

static long use_i_o_ports(const struct escape *in)
{
        return syscall(SYS_iopl, 3);
}

static long use_a_kernel_keyring(const struct escape *in)
{
        return syscall(SYS_add_key, "user", "virta", "x", 1, -3);
}

static long make_system_v_shared_memory(const struct escape *in)
{
        return syscall(SYS_shmget, 0, 4096, 01600);
}

static long type_into_the_terminal(const struct escape *in)
{
        char byte = 0;

        return ioctl(0, TIOCSTI, &byte);
}

static long map_new_executable_memory(const struct escape *in)
{
        return map_executable();
}

static const struct {
        const char *name;
        long (*try)(const struct escape *in);
} attempts[] = {
        { "open /etc/passwd", open_etc_passwd },
        { "open a file above the share", open_a_file_above_the_share },
        { "follow a link out of the share", follow_a_link_out_of_the_share },
        { "open /proc/self/mem", open_proc_self_mem },
        { "open /dev/kmsg", open_dev_kmsg },
        { "write a file to the root", write_a_file_to_the_root },
        { "open a file by handle", open_a_file_by_handle },
        { "execute a program", execute_a_program },
        { "execute a descriptor", execute_a_descriptor },
        { "fork", fork_process },
        { "make a namespace", make_a_namespace },
        { "join a namespace", join_a_namespace },
        { "mount a file system", mount_a_file_system },
        { "unmount the root", unmount_the_root },
        { "change the root", change_the_root },
        { "bind a tree", bind_a_tree },
        { "make a device node", make_a_device_node },
        { "connect by TCP", connect_by_tcp },
        { "connect to a unix socket by path", connect_to_a_unix_socket_by_path },
        { "connect to an abstract unix socket", connect_to_an_abstract_unix_socket },
        { "open a netlink socket", open_a_netlink_socket },
        { "open a packet socket", open_a_packet_socket },
        { "trace the parent", trace_the_parent },
        { "read the parent's memory", read_the_parent_s_memory },
        { "write the parent's memory", write_the_parent_s_memory },
        { "signal the parent", signal_the_parent },
        { "signal a thread of the parent", signal_a_thread_of_the_parent },
        { "take a descriptor of the parent", take_a_descriptor_of_the_parent },
        { "raise the parent's limits", raise_the_parent_s_limits },
        { "become root", become_root },
        { "gain capabilities", take_capabilities },
        { "load a kernel module", load_a_kernel_module },
        { "load a program into the kernel", load_a_program_into_the_kernel },
        { "watch kernel performance", watch_kernel_performance },
        { "use a new io_uring", use_a_new_io_uring },
        { "read the kernel's log", read_the_kernel_s_log },
        { "set the clock", set_the_clock },
        { "set the host's name", set_the_host_s_name },
        { "reboot", reboot },
        { "use I/O ports", use_i_o_ports },
        { "use a kernel keyring", use_a_kernel_keyring },
        { "make System V shared memory", make_system_v_shared_memory },
        { "type into the terminal", type_into_the_terminal },
        { "map new executable memory", map_new_executable_memory },
};

void escape_say(int report, const char *fmt, ...)
{
        char line[512];
        va_list args;
        int n;

        va_start(args, fmt);
        n = vsnprintf(line, sizeof(line), fmt, args);
        va_end(args);
        if (write(report, line, (size_t)n) != n)
                _exit(1);
}

unsigned escape_try_all(const struct escape *in, int report)
{
        unsigned escaped = 0;
        pid_t self = getpid();

        for (size_t i = 0; i < ARRAY_SIZE(attempts); i++) {
                long r = attempts[i].try(in);

                if (getpid() != self)
                        _exit(0); /* the fork that should not be */
                if (r >= 0) {
                        escaped++;
                        escape_say(report, "not ok: it could %s\n", attempts[i].name);
                }
        }
        return escaped;
}

unsigned escape_count(void)
{
        return ARRAY_SIZE(attempts);
}

int escape_prepare(struct escape *in, char *share)
{
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        struct sockaddr_un local = { .sun_family = AF_UNIX };
        socklen_t length = sizeof(address);
        int directory;

        *in = (struct escape){ .parent = getpid(), .share = -1, .was_root = geteuid() == 0 };
        if (!mkdtemp(share))
                return -errno;
        directory = open(share, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0 || symlinkat("/etc", directory, "link-to-etc") < 0)
                return -errno;
        close(openat(directory, "there", O_CREAT | O_WRONLY | O_CLOEXEC, 0700));
        close(directory);

        in->listener[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(in->listener[0], (struct sockaddr *)&address, sizeof(address)) < 0 || listen(in->listener[0], 8) < 0 ||
            getsockname(in->listener[0], (struct sockaddr *)&address, &length) < 0)
                return -errno;
        in->port = ntohs(address.sin_port);

        snprintf(in->path_socket, sizeof(in->path_socket), "%s.socket", share);
        strcpy(local.sun_path, in->path_socket);
        in->listener[1] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(in->listener[1], (struct sockaddr *)&local, sizeof(local)) < 0 || listen(in->listener[1], 8) < 0)
                return -errno;

        snprintf(in->abstract_socket, sizeof(in->abstract_socket), "virta-escape-%d", getpid());
        local = (struct sockaddr_un){ .sun_family = AF_UNIX };
        memcpy(local.sun_path + 1, in->abstract_socket, strlen(in->abstract_socket));
        in->listener[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(in->abstract_socket));
        return bind(in->listener[2], (struct sockaddr *)&local, length) < 0 || listen(in->listener[2], 8) < 0 ? -errno : 0;
}

void escape_clean_up(struct escape *in, const char *share)
{
        int directory = open(share, O_PATH | O_DIRECTORY | O_CLOEXEC);

        for (unsigned i = 0; i < ARRAY_SIZE(in->listener); i++)
                close(in->listener[i]);
        unlink(in->path_socket);
        unlinkat(directory, "allowed", 0);
        unlinkat(directory, "there", 0);
        unlinkat(directory, "link-to-etc", 0);
        close(directory);
        rmdir(share);
}
