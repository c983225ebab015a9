/* Within vhost-user: the messages (vhost-user-server.c) for the transport (vhost-user.c), which has memory and rings. */
#pragma once

#include <uv.h>

#include "device/virtio-internal.h"

/* A descriptor that the loop polls. */
struct vhost_user_watch;

/* Takes fd when it is made, and leaves it when not. readable may free it. */
int vhost_user_watch_new(uv_loop_t *loop, int fd, void (*readable)(void *ctx, unsigned number), void *ctx, unsigned number,
                         struct vhost_user_watch **watch, struct err *err) _must_check_;
/* Closes the descriptor. NULL is fine. The loop has to run once more. */
void vhost_user_watch_free(struct vhost_user_watch *watch);
int vhost_user_watch_fd(const struct vhost_user_watch *watch);

#define VHOST_USER_REGIONS_MAX GUEST_REGIONS_MAX

/* A piece of the machine's memory, by three addresses. */
struct vhost_user_region {
        uint64_t gpa, size_bytes;
        uint64_t user;   /* in the front end's own address space, which ring addresses are of */
        uint64_t offset; /* in the file that is shared */
};

enum vhost_user_eventfd { VHOST_USER_KICK, VHOST_USER_CALL, VHOST_USER_ERR };

struct vhost_user_ring_addresses {
        uint64_t desc, used, avail; /* in the front end's address space */
};

/* All of these on the loop's thread, and drain the disk where something in flight is in the way. What fails changes nothing, or stops a ring. */
int vhost_user_set_features(struct virtio *v, uint64_t features, bool rings_on, struct err *err) _must_check_;
/* fds as many as regions; the caller's. */
int vhost_user_set_memory(struct virtio *v, const struct vhost_user_region *region, const int *fd, unsigned count, struct err *err) _must_check_;
int vhost_user_add_memory(struct virtio *v, const struct vhost_user_region *region, int fd, struct err *err) _must_check_;
int vhost_user_remove_memory(struct virtio *v, const struct vhost_user_region *region, struct err *err) _must_check_;
/* queue is checked. */
int vhost_user_set_size(struct virtio *v, unsigned queue, uint32_t size, struct err *err) _must_check_;
int vhost_user_set_addresses(struct virtio *v, unsigned queue, const struct vhost_user_ring_addresses *at, struct err *err) _must_check_;
int vhost_user_set_base(struct virtio *v, unsigned queue, uint32_t base, struct err *err) _must_check_;
/* Stops the ring. */
int vhost_user_get_base(struct virtio *v, unsigned queue, uint32_t *base, struct err *err) _must_check_;
int vhost_user_enable(struct virtio *v, unsigned queue, bool on, struct err *err) _must_check_;
/* fd -1: there is none. Taken from *fd when all is well. */
int vhost_user_set_eventfd(struct virtio *v, unsigned queue, enum vhost_user_eventfd which, int *fd, struct err *err) _must_check_;
/* A record of what is in flight, for so many rings of so many entries: a new one, or one to go on with. */
uint64_t vhost_user_inflight_bytes(unsigned queues, unsigned entries);
int vhost_user_new_inflight(unsigned queues, unsigned entries, int *fd, struct err *err) _must_check_;
int vhost_user_set_inflight(struct virtio *v, int fd, uint64_t offset, uint64_t size_bytes, unsigned queues, unsigned entries, struct err *err) _must_check_;
/* Called when the configuration changed. */
void vhost_user_on_config(struct virtio *v, void (*changed)(void *ctx), void *ctx);
/* As when nobody has ever come. */
void vhost_user_forget(struct virtio *v);
