/* Memory balloon, virtio 1.2 §5.5. See virtio-balloon.c. */
#pragma once

#include "device/virtio.h"

/* What the guest said last; a member the guest does not know is UINT64_MAX. Bytes, except where the name says otherwise. */
struct virtio_balloon_stats {
        uint64_t updated_ns; /* CLOCK_MONOTONIC; 0 when the guest never said anything */
        uint64_t swap_in, swap_out;
        uint64_t major_faults_count, minor_faults_count;
        uint64_t free_memory, total_memory, available_memory, disk_caches;
        uint64_t hugetlb_allocations_count, hugetlb_failures_count;
};

struct virtio_balloon_state {
        uint64_t target_bytes;   /* what the guest was asked to give */
        uint64_t actual_bytes;   /* what it says it gave */
        uint64_t returned_bytes; /* given back to the host so far, by balloon and by free-page reports */
};

int virtio_balloon_new(struct device_host *host, struct pci_bus *bus, const char *id, struct device **dev,
                       struct err *err) _must_check_;

/* Asks the guest to give so much memory (rounded down to 4 KiB; 0: none). -EINVAL when it is more than there is. Any thread. */
int virtio_balloon_set_target(struct device *dev, uint64_t target_bytes, struct err *err) _must_check_;
void virtio_balloon_get_state(struct device *dev, struct virtio_balloon_state *state);
/* The last statistics; and asks the guest for new ones, for the next call. Any thread. */
void virtio_balloon_get_stats(struct device *dev, struct virtio_balloon_stats *stats);
