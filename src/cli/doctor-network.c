/* What can be built of networks: taps, bridges, tunnels, packet filters, and the kernel's own servers for virtio. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <linux/vhost.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "cli/doctor.h"

static int probe_tun(char found[FOUND_MAX])
{
        struct ifreq request = { .ifr_name = "virta0", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
        int r = doctor_unshare(CLONE_NEWNET);
        int fd;

        if (r < 0)
                return r;
        fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        if (fd < 0) {
                r = -errno;
                snprintf(found, FOUND_MAX, "/dev/net/tun: %s", strerror(-r));
                return r;
        }
        if (ioctl(fd, TUNSETIFF, &request) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "made a tap with offload headers");
        return FOUND_WORKS;
}

/* One netlink request with an acknowledgement asked for: 0 or the kernel's -errno. */
static int transact(int protocol, void *request, size_t size_bytes)
{
        struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
        struct {
                struct nlmsghdr head;
                struct nlmsgerr error;
                char rest[512];
        } answer;
        _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
        ssize_t n;

        if (fd < 0)
                return -errno;
        if (sendto(fd, request, size_bytes, 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
                return -errno;
        n = recv(fd, &answer, sizeof(answer), 0);
        if (n < 0)
                return -errno;
        if ((size_t)n >= sizeof(answer.head) + sizeof(int) && answer.head.nlmsg_type == NLMSG_ERROR)
                return answer.error.error;
        return (size_t)n >= sizeof(answer.head) ? 0 : -EBADMSG;
}

struct message {
        struct nlmsghdr head;
        char body[256];
};

static void *message_add(struct message *message, size_t size_bytes)
{
        void *at = (char *)message + message->head.nlmsg_len;

        message->head.nlmsg_len += (uint32_t)NLMSG_ALIGN(size_bytes);
        return at;
}

static struct rtattr *attribute_add(struct message *message, unsigned short type, const void *value, size_t size_bytes)
{
        struct rtattr *attribute = message_add(message, RTA_LENGTH(size_bytes));

        attribute->rta_type = type;
        attribute->rta_len = (unsigned short)RTA_LENGTH(size_bytes);
        if (size_bytes)
                memcpy(RTA_DATA(attribute), value, size_bytes);
        return attribute;
}

/* A link of this kind, in a network namespace of our own. */
static int probe_link(const char *kind, char found[FOUND_MAX])
{
        struct message message = { .head = { .nlmsg_len = NLMSG_HDRLEN, .nlmsg_type = RTM_NEWLINK,
                                             .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL } };
        struct ifinfomsg *info = message_add(&message, sizeof(*info));
        struct rtattr *link, *data;
        uint32_t vni = 42;
        int r = doctor_unshare(CLONE_NEWNET);

        if (r < 0)
                return r;
        info->ifi_family = AF_UNSPEC;
        attribute_add(&message, IFLA_IFNAME, "virta0", sizeof("virta0"));
        link = attribute_add(&message, IFLA_LINKINFO, NULL, 0);
        attribute_add(&message, IFLA_INFO_KIND, kind, strlen(kind));
        if (!strcmp(kind, "vxlan")) {
                data = attribute_add(&message, IFLA_INFO_DATA, NULL, 0);
                attribute_add(&message, IFLA_VXLAN_ID, &vni, sizeof(vni));
                data->rta_len = (unsigned short)((char *)&message + message.head.nlmsg_len - (char *)data);
        }
        link->rta_len = (unsigned short)((char *)&message + message.head.nlmsg_len - (char *)link);
        r = transact(NETLINK_ROUTE, &message, message.head.nlmsg_len);
        if (r == -EOPNOTSUPP)
                snprintf(found, FOUND_MAX, "this kernel has no links of kind '%s'", kind);
        else if (!r)
                snprintf(found, FOUND_MAX, "made one");
        return r;
}

static int probe_bridge(char found[FOUND_MAX])
{
        return probe_link("bridge", found);
}

static int probe_veth(char found[FOUND_MAX])
{
        return probe_link("veth", found);
}

static int probe_vxlan(char found[FOUND_MAX])
{
        return probe_link("vxlan", found);
}

static int probe_wireguard(char found[FOUND_MAX])
{
        return probe_link("wireguard", found);
}

static int probe_nftables(char found[FOUND_MAX])
{
        struct message message = { .head = { .nlmsg_len = NLMSG_HDRLEN, .nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN,
                                             .nlmsg_flags = NLM_F_REQUEST } };
        struct nfgenmsg *family = message_add(&message, sizeof(*family));
        int r = doctor_unshare(CLONE_NEWNET);

        if (r < 0)
                return r;
        family->version = NFNETLINK_V0;
        r = transact(NETLINK_NETFILTER, &message, message.head.nlmsg_len);
        if (r < 0)
                return r;
        snprintf(found, FOUND_MAX, "the kernel answered%s",
                 access("/usr/sbin/nft", X_OK) ? "; the program nft is not installed" : ", nft is installed");
        return FOUND_WORKS;
}

static int probe_vhost(const char *path, char found[FOUND_MAX])
{
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint64_t features = 0;

        if (fd < 0) {
                int r = -errno;

                snprintf(found, FOUND_MAX, "%s: %s", path, strerror(-r));
                return r;
        }
        if (ioctl(fd, VHOST_SET_OWNER) < 0 || ioctl(fd, VHOST_GET_FEATURES, &features) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "%s, features 0x%llx", path, (unsigned long long)features);
        return FOUND_WORKS;
}

static int probe_vhost_net(char found[FOUND_MAX])
{
        return probe_vhost("/dev/vhost-net", found);
}

static int probe_vhost_vsock(char found[FOUND_MAX])
{
        return probe_vhost("/dev/vhost-vsock", found);
}

static int probe_ipv6(char found[FOUND_MAX])
{
        struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "bound to ::1");
        return FOUND_WORKS;
}

const struct facility doctor_network[] = {
        { "tun/tap", "Networks", "guests on bridges and overlays", "guests have the user network", "load the module tun", probe_tun },
        { "bridge", "Networks", "guests and containers on one network", "each has a user network of its own", "load the module bridge",
          probe_bridge },
        { "veth", "Networks", "containers' network cards", "containers have the user network", "load the module veth", probe_veth },
        { "VXLAN", "Networks", "networks across machines", "networks end at the machine", "load the module vxlan", probe_vxlan },
        { "WireGuard", "Networks", "encrypted networks across machines", "VXLAN inside of a trusted network", "load the module wireguard",
          probe_wireguard },
        { "nftables", "Networks", "address translation and firewalls", "only the user network, which has neither",
          "load the module nf_tables and install nftables", probe_nftables },
        { "vhost-net", "Networks", "network cards served by the kernel", "Virta serves them itself", "load the module vhost_net; access to /dev/vhost-net",
          probe_vhost_net },
        { "vhost-vsock", "Networks", "vsock served by the kernel", "Virta serves it itself on unix sockets",
          "load the module vhost_vsock; access to /dev/vhost-vsock", probe_vhost_vsock },
        { "IPv6", "Networks", "guests speak IPv6 with the host", "they speak IPv4", "sysctl net.ipv6.conf.all.disable_ipv6=0", probe_ipv6 },
        { 0 },
};
