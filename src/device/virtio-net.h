/* Network card: virtio 1.2 §5.1 in front of a network backend (net/net.h). */
#pragma once

#include "device/virtio.h"
#include "net/net.h"

struct virtio_net_config {
        uint8_t mac[6]; /* all zero: 52:54:00 and three bytes made of id */
        uint16_t mtu;   /* 0: the backend's */
};

/*
 * Takes over net (frees it with the device) when it succeeds. The card is *card's pci.dev to the machine. On the loop's
 * thread.
 */
int virtio_net_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_net_config *config,
                   struct net_backend *net, struct virtio **card, struct err *err) _must_check_;
