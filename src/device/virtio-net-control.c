#include "device/virtio-net-control.h"

#include <errno.h>

/* Classes and commands, virtio 1.2 §5.1.6.5.1 to .6 */
enum { CLASS_RX = 0, CLASS_MAC = 1, CLASS_ANNOUNCE = 3, CLASS_GUEST_OFFLOADS = 5 };
enum { RX_PROMISCUOUS, RX_ALL_MULTICAST, RX_ALL_UNICAST, RX_NO_MULTICAST, RX_NO_UNICAST, RX_NO_BROADCAST };
enum { MAC_TABLE_SET = 0, MAC_ADDRESS_SET = 1 };
enum { ANNOUNCE_ACK = 0 };
enum { GUEST_OFFLOADS_SET = 0 };

void net_control_reset(struct net_control *control, const uint8_t mac[6])
{
        *control = (struct net_control){ .filter.promiscuous = true, .offloads = VIRTIO_NET_GUEST_OFFLOADS };
        memcpy(control->mac, mac, sizeof(control->mac));
}

static bool has(uint64_t features, unsigned bit)
{
        return features >> bit & 1;
}

static int rx_command(struct net_filter *filter, uint64_t features, uint8_t code, struct cursor *in)
{
        bool *const mode[] = { &filter->promiscuous,  &filter->all_multicast, &filter->all_unicast,
                               &filter->no_multicast, &filter->no_unicast,    &filter->no_broadcast };
        uint8_t on = cursor_u8(in);

        if (code >= ARRAY_SIZE(mode) || !has(features, code < RX_ALL_UNICAST ? VIRTIO_NET_F_CTRL_RX : VIRTIO_NET_F_CTRL_RX_EXTRA))
                return -EINVAL;
        if (in->bad || on > 1)
                return -EINVAL;
        *mode[code] = on;
        return 0;
}

/* A count and as many addresses. */
static int read_table(struct cursor *in, uint8_t (*to)[6], uint8_t *count, bool *all)
{
        uint32_t entries = cursor_le32(in);
        const void *bytes;

        if (entries > cursor_left(in) / 6)
                return -EINVAL;
        bytes = cursor_take(in, (size_t)entries * 6);
        if (!bytes)
                return -EINVAL;
        *all = entries > NET_FILTER_ADDRESSES_MAX;
        *count = *all ? 0 : (uint8_t)entries;
        memcpy(to, bytes, *count * 6u);
        return 0;
}

static int mac_command(struct net_control *control, uint64_t features, uint8_t code, struct cursor *in)
{
        struct net_filter filter = control->filter;
        uint8_t mac[6];

        if (code == MAC_ADDRESS_SET && has(features, VIRTIO_NET_F_CTRL_MAC_ADDR)) {
                if (cursor_get(in, mac, sizeof(mac)) < 0)
                        return -EINVAL;
                memcpy(control->mac, mac, sizeof(mac));
                return 0;
        }
        if (code != MAC_TABLE_SET || !has(features, VIRTIO_NET_F_CTRL_RX))
                return -EINVAL;
        if (read_table(in, filter.unicast, &filter.unicast_count, &filter.all_listed_unicast) < 0 ||
            read_table(in, filter.multicast, &filter.multicast_count, &filter.all_listed_multicast) < 0)
                return -EINVAL;
        control->filter = filter;
        return 0;
}

int net_control_command(struct net_control *control, uint64_t features, const void *bytes, size_t size_bytes)
{
        struct cursor in = cursor_from(bytes, size_bytes);
        uint8_t class = cursor_u8(&in);
        uint8_t code = cursor_u8(&in);
        uint64_t offloads;

        if (in.bad)
                return -EINVAL;
        switch (class) {
        case CLASS_RX:
                return rx_command(&control->filter, features, code, &in);
        case CLASS_MAC:
                return mac_command(control, features, code, &in);
        case CLASS_ANNOUNCE:
                if (code != ANNOUNCE_ACK || !has(features, VIRTIO_NET_F_GUEST_ANNOUNCE) || !control->announce)
                        return -EINVAL;
                control->announce = false;
                return 0;
        case CLASS_GUEST_OFFLOADS:
                offloads = cursor_le64(&in);
                if (code != GUEST_OFFLOADS_SET || !has(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || in.bad ||
                    offloads & ~(VIRTIO_NET_GUEST_OFFLOADS & features))
                        return -EINVAL;
                control->offloads = offloads;
                return 0;
        default:
                return -EINVAL;
        }
}

static bool listed(const uint8_t (*table)[6], unsigned count, const uint8_t address[6])
{
        for (unsigned i = 0; i < count; i++) {
                if (memcmp(table[i], address, 6) == 0)
                        return true;
        }
        return false;
}

bool net_filter_takes(const struct net_control *control, const uint8_t destination[6])
{
        static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
        const struct net_filter *filter = &control->filter;

        if (filter->promiscuous)
                return true;
        if (memcmp(destination, broadcast, 6) == 0)
                return !filter->no_broadcast;
        if (destination[0] & 1)
                return !filter->no_multicast && (filter->all_multicast || filter->all_listed_multicast ||
                                                 listed(filter->multicast, filter->multicast_count, destination));
        return !filter->no_unicast && (filter->all_unicast || filter->all_listed_unicast ||
                                       memcmp(destination, control->mac, 6) == 0 ||
                                       listed(filter->unicast, filter->unicast_count, destination));
}

void net_control_save(const struct net_control *control, struct writer *out)
{
        const struct net_filter *f = &control->filter;
        const bool flags[] = { f->promiscuous, f->all_multicast,      f->all_unicast,          f->no_multicast,   f->no_unicast,
                               f->no_broadcast, f->all_listed_unicast, f->all_listed_multicast, control->announce };
        uint16_t bits = 0;

        for (unsigned i = 0; i < ARRAY_SIZE(flags); i++)
                bits |= (uint16_t)(flags[i] << i);
        writer_put(out, control->mac, sizeof(control->mac));
        writer_le64(out, control->offloads);
        writer_le16(out, bits);
        writer_u8(out, f->unicast_count);
        writer_u8(out, f->multicast_count);
        writer_put(out, f->unicast, f->unicast_count * 6u);
        writer_put(out, f->multicast, f->multicast_count * 6u);
}

int net_control_load(struct net_control *control, struct cursor *in, struct err *err)
{
        struct net_control c = { 0 };
        struct net_filter *f = &c.filter;
        bool *const flags[] = { &f->promiscuous,        &f->all_multicast,        &f->all_unicast,
                                &f->no_multicast,       &f->no_unicast,           &f->no_broadcast,
                                &f->all_listed_unicast, &f->all_listed_multicast, &c.announce };
        uint16_t bits;

        if (cursor_get(in, c.mac, sizeof(c.mac)) < 0)
                return err_set(err, -EBADMSG, "the network card's record is cut");
        c.offloads = cursor_le64(in) & VIRTIO_NET_GUEST_OFFLOADS;
        bits = cursor_le16(in);
        for (unsigned i = 0; i < ARRAY_SIZE(flags); i++)
                *flags[i] = bits >> i & 1;
        f->unicast_count = cursor_u8(in);
        f->multicast_count = cursor_u8(in);
        if (f->unicast_count > NET_FILTER_ADDRESSES_MAX || f->multicast_count > NET_FILTER_ADDRESSES_MAX)
                return err_set(err, -EBADMSG, "the network card's record has %u and %u addresses, at most %u fit",
                               f->unicast_count, f->multicast_count, NET_FILTER_ADDRESSES_MAX);
        if (cursor_get(in, f->unicast, f->unicast_count * 6u) < 0 || cursor_get(in, f->multicast, f->multicast_count * 6u) < 0)
                return err_set(err, -EBADMSG, "the network card's record is cut");
        *control = c;
        return 0;
}
