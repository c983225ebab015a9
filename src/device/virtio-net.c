/*
 * Network card, virtio 1.2 §5.1: one pair of queues and a control queue in front of a backend (net/net.h).
 *
 * What a frame still needs and the other side does not take is done here (net/offload.h): checksums are completed, large TCP
 * segments cut, or sent on as one large packet where the backend takes any size. Features do not depend on the backend, so
 * that a saved card can be loaded in front of another one.
 *
 * Nothing is buffered here. Where the other side is full the frame stays where it is: the guest's chain goes back to its queue
 * (unpop), the backend keeps its frame. A segment that was sent in part is gone on with from tx_done or rx_done.
 *
 *      guest full:   receive() -EAGAIN, notifications on ──kick──▶ net_resume()
 *      backend full: net_send() -EAGAIN, tx_blocked ──writable()──▶ virtio_wake(TX)
 *
 * Limits: frames of NET_FRAME_MAX bytes; no VLAN filter, no UDP segmentation, one queue pair. A frame for which the guest's
 * buffers are too small (no mergeable buffers) is dropped.
 */
#include "device/virtio-net.h"

#include <endian.h>
#include <errno.h>

#include "base/log.h"
#include "device/virtio-net-control.h"
#include "net/offload.h"

enum { RX, TX, CONTROL, QUEUES };

#define RX_SIZE 256
#define TX_SIZE 256
#define CONTROL_SIZE 64
#define BATCH 256u
#define RX_IOV_MAX 2048u   /* buffers of all chains that one frame takes */
#define RX_CHAINS_MAX 256u
#define CONTROL_BYTES_MAX 8192u

#define STATUS_LINK_UP 1u
#define STATUS_ANNOUNCE 2u

#define HEADER_F_NEEDS_CSUM 1u
#define HEADER_F_DATA_VALID 2u
#define HEADER_GSO_ECN 0x80u

/* struct virtio_net_hdr with num_buffers, §5.1.6; little-endian */
struct header {
        uint8_t flags;
        uint8_t gso_type;
        uint16_t hdr_len;
        uint16_t gso_size;
        uint16_t csum_start;
        uint16_t csum_offset;
        uint16_t num_buffers;
};
_Static_assert(sizeof(struct header) == 12, "virtio_net_hdr");

/* struct virtio_net_config, §5.1.4, as far as the features offered go */
struct config {
        uint8_t mac[6];
        uint16_t status;
        uint16_t max_virtqueue_pairs;
        uint16_t mtu;
};
_Static_assert(sizeof(struct config) == 12, "virtio_net_config");

struct virtio_net {
        struct virtio virtio;
        struct net_backend *net;
        struct net_control control;
        uint8_t mac[6]; /* as it was made */
        uint16_t mtu;
        bool tx_blocked;
        bool rx_blocked;
        bool rx_pushed; /* since the last interrupt */
        bool moved;     /* loaded, and not resumed yet */
        size_t tx_done, rx_done;

        struct virtio_iov storage; /* one chain at a time */
        struct iovec parts[VIRTIO_CHAIN_MAX];
        /* The chains that one frame goes to. */
        struct virtio_chain rx_chain[RX_CHAINS_MAX];
        struct iovec rx_iov[RX_IOV_MAX];
        uint8_t frame[NET_FRAME_MAX];
        uint8_t scratch[NET_FRAME_MAX];
        uint8_t control_bytes[CONTROL_BYTES_MAX];
};

static struct virtio_net *from_virtio(struct virtio *v)
{
        return container_of(v, struct virtio_net, virtio);
}

/* --- from the guest --- */

/* What the driver's header says, or -EINVAL where it breaks §5.1.6.2.1 or uses what was not negotiated. */
static int offload_from_header(const struct virtio_net *card, const struct header *header, struct net_offload *offload)
{
        const struct virtio *v = &card->virtio;
        uint8_t gso = header->gso_type & (uint8_t)~HEADER_GSO_ECN;

        *offload = (struct net_offload){ 0 };
        if (header->flags & HEADER_F_NEEDS_CSUM) {
                if (!virtio_has(v, VIRTIO_NET_F_CSUM))
                        return -EINVAL;
                offload->flags = NET_NEEDS_CSUM;
                offload->csum_start = le16toh(header->csum_start);
                offload->csum_offset = le16toh(header->csum_offset);
        }
        if (gso == NET_GSO_NONE)
                return 0;
        if (gso != NET_GSO_TCPV4 && gso != NET_GSO_TCPV6)
                return -EINVAL;
        if (!virtio_has(v, gso == NET_GSO_TCPV4 ? VIRTIO_NET_F_HOST_TSO4 : VIRTIO_NET_F_HOST_TSO6) || !offload->flags)
                return -EINVAL;
        offload->gso = gso;
        offload->ecn = header->gso_type & HEADER_GSO_ECN;
        offload->gso_bytes = le16toh(header->gso_size);
        offload->header_bytes = le16toh(header->hdr_len);
        return offload->gso_bytes ? 0 : -EINVAL;
}

static int send_plain(void *ctx, const uint8_t *frame, size_t size_bytes)
{
        struct virtio_net *card = ctx;
        struct iovec iov = { .iov_base = (void *)frame, .iov_len = size_bytes };
        struct net_offload none = { 0 };

        return net_send(card->net, &iov, 1, &none);
}

/* A large segment for a backend that cannot cut it. */
static int send_segments(struct virtio_net *card, size_t size_bytes, const struct net_offload *offload)
{
        int r;

        if (card->net->features & NET_FEATURE_SEND_BIG && net_checksum_packet(card->frame, size_bytes) == 0)
                return send_plain(card, card->frame, size_bytes);
        r = net_segment(card->frame, size_bytes, offload, card->scratch, &card->tx_done, send_plain, card);
        if (r != -EAGAIN)
                card->tx_done = 0;
        return r;
}

/* 0: done with, sent or not; -EAGAIN. */
static int transmit(struct virtio_net *card, const struct virtio_chain *chain)
{
        uint32_t takes = card->net->features;
        struct net_offload offload;
        struct header header;
        size_t size_bytes;
        int r;

        if (chain->out_bytes < sizeof(header) + NET_FRAME_MIN || chain->out_bytes > sizeof(header) + NET_FRAME_MAX) {
                log_guest("%s: the driver sends a frame of %u bytes with its header", card->virtio.pci.dev.id, chain->out_bytes);
                return 0;
        }
        iov_to_buf(chain->out, chain->out_count, 0, &header, sizeof(header));
        if (offload_from_header(card, &header, &offload) < 0) {
                log_guest("%s: the driver asks for an offload of flags 0x%x and type 0x%x that was not agreed on",
                          card->virtio.pci.dev.id, header.flags, header.gso_type);
                return 0;
        }
        size_bytes = chain->out_bytes - sizeof(header);
        if (takes & NET_FEATURE_SEND_CSUM &&
            (!offload.gso || takes & (offload.gso == NET_GSO_TCPV4 ? NET_FEATURE_SEND_TSO4 : NET_FEATURE_SEND_TSO6))) {
                unsigned parts = iov_slice(chain->out, chain->out_count, sizeof(header), size_bytes, card->parts);

                return net_send(card->net, card->parts, parts, &offload);
        }

        iov_to_buf(chain->out, chain->out_count, sizeof(header), card->frame, size_bytes);
        if (offload.gso)
                r = send_segments(card, size_bytes, &offload);
        else if (offload.flags && net_checksum_complete(card->frame, size_bytes, &offload) < 0)
                r = -EBADMSG;
        else
                r = send_plain(card, card->frame, size_bytes);
        if (r < 0 && r != -EAGAIN) {
                log_guest("%s: the driver sends a frame of %zu bytes that its header does not fit", card->virtio.pci.dev.id,
                          size_bytes);
                return 0;
        }
        return r;
}

static void transmit_all(struct virtio_net *card)
{
        struct virtio *v = &card->virtio;
        unsigned budget = BATCH;
        struct virtio_chain chain;

        if (card->tx_blocked)
                return;
        virtqueue_notifications(v, TX, false);
        for (; budget; budget--) {
                if (virtqueue_pop(v, TX, &card->storage, &chain) <= 0)
                        break;
                if (transmit(card, &chain) == -EAGAIN) {
                        virtqueue_unpop(v, TX, &chain);
                        card->tx_blocked = true;
                        break;
                }
                virtqueue_push(v, TX, &chain, 0);
        }
        virtqueue_interrupt(v, TX);
        if (card->tx_blocked)
                return;
        if (!budget || virtqueue_notifications(v, TX, true))
                virtio_wake(v, TX);
}

/* The backend has room again. */
static void writable(void *ctx)
{
        struct virtio_net *card = ctx;

        virtio_lock(&card->virtio);
        card->tx_blocked = false;
        virtio_unlock(&card->virtio);
        virtio_wake(&card->virtio, TX);
}

/* --- to the guest --- */

/* The next chain for a frame, with its buffers kept beside the others'. -EAGAIN: there is none; -EPROTO: broken. */
static int take_chain(struct virtio_net *card, unsigned chains, unsigned *iovs)
{
        struct virtio *v = &card->virtio;
        struct virtio_chain *chain = &card->rx_chain[chains];
        int r;

        if (chains == RX_CHAINS_MAX)
                return -EMSGSIZE;
        do {
                r = virtqueue_pop(v, RX, &card->storage, chain);
        } while (r == 0 && virtqueue_notifications(v, RX, true));
        if (r <= 0)
                return r < 0 ? -EPROTO : -EAGAIN;
        if (chain->in_bytes < sizeof(struct header) || chain->out_bytes) {
                virtio_break(v, "a receive buffer of %u bytes, of which %u to be read", chain->in_bytes, chain->out_bytes);
                return -EPROTO;
        }
        if (chain->in_count > RX_IOV_MAX - *iovs) {
                virtqueue_unpop(v, RX, chain);
                return -EMSGSIZE;
        }
        memcpy(card->rx_iov + *iovs, chain->in, chain->in_count * sizeof(struct iovec));
        chain->in = card->rx_iov + *iovs;
        *iovs += chain->in_count;
        return 0;
}

/* Puts one frame, with its header in front, into as many chains as it takes. */
static int deliver(struct virtio_net *card, const struct iovec *iov, unsigned count, size_t size_bytes, struct header *header)
{
        struct virtio *v = &card->virtio;
        bool merge = virtio_has(v, VIRTIO_NET_F_MRG_RXBUF);
        unsigned chains = 0, iovs = 0, part = 0;
        size_t total = sizeof(*header) + size_bytes, room = 0, part_at = 0;

        do {
                int r = take_chain(card, chains, &iovs);

                if (r == 0)
                        room += card->rx_chain[chains++].in_bytes;
                if (r == 0 && room < total && !merge)
                        r = -EMSGSIZE;
                if (r < 0) {
                        while (chains)
                                virtqueue_unpop(v, RX, &card->rx_chain[--chains]);
                        if (r == -EMSGSIZE)
                                log_guest("%s: a frame of %zu bytes does not fit into the driver's buffers", v->pci.dev.id,
                                          size_bytes);
                        return r;
                }
        } while (room < total);

        header->num_buffers = htole16((uint16_t)chains);
        for (unsigned i = 0; i < chains; i++) {
                struct virtio_chain *chain = &card->rx_chain[i];
                size_t at = 0;

                if (i == 0)
                        at = buf_to_iov(chain->in, chain->in_count, 0, header, sizeof(*header));
                while (at < chain->in_bytes && part < count) {
                        size_t done = buf_to_iov(chain->in, chain->in_count, at, (uint8_t *)iov[part].iov_base + part_at,
                                                 iov[part].iov_len - part_at);

                        at += done;
                        part_at += done;
                        if (part_at == iov[part].iov_len) {
                                part++;
                                part_at = 0;
                        }
                }
                chain->written = (uint32_t)at;
        }
        virtqueue_push_together(v, RX, card->rx_chain, chains);
        card->rx_pushed = true;
        return 0;
}

static int deliver_segment(void *ctx, const uint8_t *frame, size_t size_bytes)
{
        struct virtio_net *card = ctx;
        struct iovec iov = { .iov_base = (void *)frame, .iov_len = size_bytes };
        struct header header = { 0 };

        if (card->control.offloads >> VIRTIO_NET_F_GUEST_CSUM & virtio_has(&card->virtio, VIRTIO_NET_F_GUEST_CSUM))
                header.flags = HEADER_F_DATA_VALID;
        return deliver(card, &iov, 1, size_bytes, &header);
}

/* A frame with what the guest takes left to do, and the rest done here. */
static int deliver_offload(struct virtio_net *card, const struct iovec *iov, unsigned count, size_t size_bytes,
                           const struct net_offload *offload)
{
        uint64_t takes = card->virtio.features & card->control.offloads;
        bool csum = takes >> VIRTIO_NET_F_GUEST_CSUM & 1;
        unsigned tso = offload->gso == NET_GSO_TCPV4 ? VIRTIO_NET_F_GUEST_TSO4 : VIRTIO_NET_F_GUEST_TSO6;
        struct iovec whole = { .iov_base = card->frame, .iov_len = size_bytes };
        struct header header = { 0 };
        int r;

        if (offload->gso && !(csum && takes >> tso & 1 && (!offload->ecn || takes >> VIRTIO_NET_F_GUEST_ECN & 1))) {
                iov_to_buf(iov, count, 0, card->frame, size_bytes);
                r = net_segment(card->frame, size_bytes, offload, card->scratch, &card->rx_done, deliver_segment, card);
                if (r != -EAGAIN)
                        card->rx_done = 0;
                return r;
        }
        if (offload->flags & NET_NEEDS_CSUM && !csum) {
                iov_to_buf(iov, count, 0, card->frame, size_bytes);
                r = net_checksum_complete(card->frame, size_bytes, offload);
                return r < 0 ? r : deliver(card, &whole, 1, size_bytes, &header);
        }
        if (offload->flags & NET_NEEDS_CSUM) {
                header.flags = HEADER_F_NEEDS_CSUM;
                header.csum_start = htole16(offload->csum_start);
                header.csum_offset = htole16(offload->csum_offset);
        } else if (offload->flags & NET_DATA_VALID && csum) {
                header.flags = HEADER_F_DATA_VALID;
        }
        if (offload->gso) {
                header.gso_type = (uint8_t)(offload->gso | (offload->ecn ? HEADER_GSO_ECN : 0));
                header.gso_size = htole16(offload->gso_bytes);
                header.hdr_len = htole16(offload->header_bytes);
        }
        return deliver(card, iov, count, size_bytes, &header);
}

static int receive(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct virtio_net *card = ctx;
        struct virtio *v = &card->virtio;
        size_t size_bytes = 0;
        uint8_t destination[6];
        int r = 0;

        for (unsigned i = 0; i < count; i++)
                size_bytes += iov[i].iov_len;
        if (size_bytes < NET_FRAME_MIN || size_bytes > NET_FRAME_MAX)
                return 0;
        virtio_lock(v);
        if (v->quiesced) {
                r = -EAGAIN;
        } else if (virtqueue_ready(v, RX)) {
                iov_to_buf(iov, count, 0, destination, sizeof(destination));
                if (net_filter_takes(&card->control, destination))
                        r = deliver_offload(card, iov, count, size_bytes, offload);
        }
        card->rx_blocked = r == -EAGAIN;
        if (card->rx_blocked && card->rx_pushed) {
                virtqueue_interrupt(v, RX);
                card->rx_pushed = false;
        }
        virtio_unlock(v);
        return r == -EAGAIN ? r : 0;
}

/* A batch of frames is over. */
static void flush(void *ctx)
{
        struct virtio_net *card = ctx;

        virtio_lock(&card->virtio);
        if (card->rx_pushed)
                virtqueue_interrupt(&card->virtio, RX);
        card->rx_pushed = false;
        virtio_unlock(&card->virtio);
}

static void receive_again(struct virtio_net *card)
{
        /* Buffers are asked for only while a frame waits for them. */
        virtqueue_notifications(&card->virtio, RX, false);
        if (card->rx_blocked) {
                card->rx_blocked = false;
                net_resume(card->net);
        }
}

/* --- control and configuration --- */

static void control_all(struct virtio_net *card)
{
        struct virtio *v = &card->virtio;
        unsigned budget = BATCH;
        struct virtio_chain chain;

        for (; budget; budget--) {
                uint8_t answer = 0;

                if (virtqueue_pop(v, CONTROL, &card->storage, &chain) <= 0)
                        break;
                if (!chain.in_bytes) {
                        virtio_break(v, "a control command without room for its answer");
                        break;
                }
                if (chain.out_bytes > CONTROL_BYTES_MAX) {
                        answer = 1;
                } else {
                        iov_to_buf(chain.out, chain.out_count, 0, card->control_bytes, chain.out_bytes);
                        answer = net_control_command(&card->control, v->features, card->control_bytes, chain.out_bytes) < 0;
                }
                /* §5.1.6.5: the answer is the command's last byte. */
                buf_to_iov(chain.in, chain.in_count, 0, &answer, 1);
                virtqueue_push(v, CONTROL, &chain, 1);
        }
        virtqueue_interrupt(v, CONTROL);
        if (!budget)
                virtio_wake(v, CONTROL);
}

static void notify(struct virtio *v, unsigned queue)
{
        struct virtio_net *card = from_virtio(v);

        if (queue == RX)
                receive_again(card);
        else if (queue == TX)
                transmit_all(card);
        else
                control_all(card);
}

static uint64_t features(struct virtio *v)
{
        static const uint8_t bits[] = {
                VIRTIO_NET_F_CSUM,       VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MTU,
                VIRTIO_NET_F_MAC,        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,          VIRTIO_NET_F_GUEST_ECN,
                VIRTIO_NET_F_HOST_TSO4,  VIRTIO_NET_F_HOST_TSO6,  VIRTIO_NET_F_HOST_ECN,            VIRTIO_NET_F_MRG_RXBUF,
                VIRTIO_NET_F_STATUS,     VIRTIO_NET_F_CTRL_VQ,    VIRTIO_NET_F_CTRL_RX,             VIRTIO_NET_F_CTRL_RX_EXTRA,
                VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_CTRL_MAC_ADDR,
        };
        uint64_t offered = 0;

        for (unsigned i = 0; i < ARRAY_SIZE(bits); i++)
                offered |= UINT64_C(1) << bits[i];
        return offered;
}

/* §5.1.3.1: which feature needs which. */
static bool features_ok(struct virtio *v, uint64_t wanted)
{
        static const uint8_t needs[][2] = {
                { VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM }, { VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM },
                { VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM },        { VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM },
                { VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ },       { VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ },
                { VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_CTRL_VQ }, { VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ },
        };

        for (unsigned i = 0; i < ARRAY_SIZE(needs); i++) {
                if (wanted >> needs[i][0] & 1 && !(wanted >> needs[i][1] & 1))
                        return false;
        }
        return true;
}

static void config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        struct virtio_net *card = from_virtio(v);
        struct config config = { .max_virtqueue_pairs = htole16(1), .mtu = htole16(card->mtu) };
        uint16_t status = 0;

        if (net_link(card->net))
                status |= STATUS_LINK_UP;
        if (card->control.announce)
                status |= STATUS_ANNOUNCE;
        config.status = htole16(status);
        memcpy(config.mac, card->control.mac, sizeof(config.mac));
        memcpy(to, (uint8_t *)&config + offset, size_bytes);
}

static void link_changed(void *ctx)
{
        struct virtio_net *card = ctx;

        virtio_lock(&card->virtio);
        virtio_config_changed(&card->virtio);
        virtio_unlock(&card->virtio);
}

/* --- life --- */

static void reset(struct virtio *v)
{
        struct virtio_net *card = from_virtio(v);

        /* The backend's frame waits for buffers of the next driver; tx_blocked is the backend's to clear. */
        card->tx_done = card->rx_done = 0;
        card->rx_pushed = false;
        net_control_reset(&card->control, card->mac);
}

static void resume(struct virtio *v)
{
        struct virtio_net *card = from_virtio(v);

        virtio_lock(v);
        /* After a load the network may be another one: its switches are to hear where the guest is. */
        if (card->moved && virtio_running(v) && virtio_has(v, VIRTIO_NET_F_GUEST_ANNOUNCE)) {
                card->control.announce = true;
                virtio_config_changed(v);
        }
        card->moved = false;
        card->rx_blocked = false;
        virtio_unlock(v);
        net_resume(card->net);
}

static void save(struct virtio *v, struct writer *out)
{
        net_control_save(&from_virtio(v)->control, out);
}

static int load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct virtio_net *card = from_virtio(v);
        int r;

        if (version != 1)
                return err_set(err, -EBADMSG, "a network card's record has version %u, this is 1", version);
        r = net_control_load(&card->control, in, err);
        if (r < 0)
                return r;
        card->moved = true;
        return 0;
}

static void virtio_net_free(struct virtio *v)
{
        struct virtio_net *card = from_virtio(v);

        if (card->net) {
                net_connect(card->net, NULL);
                net_free(card->net);
        }
        virtio_done(v);
        free(card);
}

static const struct virtio_ops virtio_net_ops = {
        .name = "virtio-net",
        .id = VIRTIO_NET,
        .class_code = 0x020000,
        .features = features,
        .features_ok = features_ok,
        .config_bytes = sizeof(struct config),
        .config_read = config_read,
        .notify = notify,
        .reset = reset,
        .resume = resume,
        .version = 1,
        .save = save,
        .load = load,
        .free = virtio_net_free,
};

/* An address of the range that is locally administered by habit of virtual machines, different for each id. */
static void make_mac(const char *id, uint8_t mac[6])
{
        uint32_t hash = 2166136261u; /* FNV-1a */

        for (const char *c = id; *c; c++)
                hash = (hash ^ (uint8_t)*c) * 16777619u;
        memcpy(mac, (uint8_t[]){ 0x52, 0x54, 0x00, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8), (uint8_t)hash }, 6);
}

int virtio_net_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_net_config *config,
                   struct net_backend *net, struct virtio **made, struct err *err)
{
        static const uint16_t sizes[QUEUES] = { RX_SIZE, TX_SIZE, CONTROL_SIZE };
        static const uint8_t none[6];
        struct virtio_net *card = calloc(1, sizeof(*card));
        int r;

        if (!card)
                return err_nomem(err);
        if (memcmp(config->mac, none, sizeof(none)) == 0)
                make_mac(id, card->mac);
        else
                memcpy(card->mac, config->mac, sizeof(card->mac));
        if (card->mac[0] & 1) {
                free(card);
                return err_set(err, -EINVAL, "network card %s: its address is a multicast address", id);
        }
        card->mtu = config->mtu ? config->mtu : net->mtu;
        net_control_reset(&card->control, card->mac);
        r = virtio_init(&card->virtio, host, bus, &virtio_net_ops, id, sizes, QUEUES, err);
        if (r < 0) {
                virtio_net_free(&card->virtio);
                return r;
        }
        card->net = net;
        net_connect(net, &(struct net_client){
                .receive = receive, .flush = flush, .writable = writable, .link_changed = link_changed, .ctx = card });
        *made = &card->virtio;
        return 0;
}
