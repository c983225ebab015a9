/* What goes over a vhost-user socket: QEMU's docs/interop/vhost-user. All numbers are in the byte order of the machine that both are on. */
#pragma once

#include <stdint.h>

struct vhost_user_header {
        uint32_t request;
        uint32_t flags;
        uint32_t size; /* of what follows */
};

#define VHOST_USER_VERSION 1u
#define VHOST_USER_VERSION_MASK 3u
#define VHOST_USER_F_REPLY 4u
#define VHOST_USER_F_NEED_REPLY 8u

/* From the front end */
enum {
        VHOST_USER_GET_FEATURES = 1,
        VHOST_USER_SET_FEATURES = 2,
        VHOST_USER_SET_OWNER = 3,
        VHOST_USER_RESET_OWNER = 4,
        VHOST_USER_SET_MEM_TABLE = 5,
        VHOST_USER_SET_VRING_NUM = 8,
        VHOST_USER_SET_VRING_ADDR = 9,
        VHOST_USER_SET_VRING_BASE = 10,
        VHOST_USER_GET_VRING_BASE = 11,
        VHOST_USER_SET_VRING_KICK = 12,
        VHOST_USER_SET_VRING_CALL = 13,
        VHOST_USER_SET_VRING_ERR = 14,
        VHOST_USER_GET_PROTOCOL_FEATURES = 15,
        VHOST_USER_SET_PROTOCOL_FEATURES = 16,
        VHOST_USER_GET_QUEUE_NUM = 17,
        VHOST_USER_SET_VRING_ENABLE = 18,
        VHOST_USER_SET_BACKEND_REQ_FD = 21,
        VHOST_USER_GET_CONFIG = 24,
        VHOST_USER_SET_CONFIG = 25,
        VHOST_USER_GET_INFLIGHT_FD = 31,
        VHOST_USER_SET_INFLIGHT_FD = 32,
        VHOST_USER_RESET_DEVICE = 34,
        VHOST_USER_GET_MAX_MEM_SLOTS = 36,
        VHOST_USER_ADD_MEM_REG = 37,
        VHOST_USER_REM_MEM_REG = 38,
        VHOST_USER_REQUESTS
};

/* From the back end */
#define VHOST_USER_BACKEND_CONFIG_CHANGE 2u

/* Among the features of virtio */
#define VHOST_USER_F_PROTOCOL_FEATURES 30

enum {
        VHOST_USER_PROTOCOL_MQ = 0,
        VHOST_USER_PROTOCOL_REPLY_ACK = 3,
        VHOST_USER_PROTOCOL_BACKEND_REQ = 5,
        VHOST_USER_PROTOCOL_CONFIG = 9,
        VHOST_USER_PROTOCOL_INFLIGHT_SHMFD = 12,
        VHOST_USER_PROTOCOL_RESET_DEVICE = 13,
        VHOST_USER_PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
};

#define VHOST_USER_FDS_MAX 8u      /* with one message */
#define VHOST_USER_CONFIG_MAX 256u
#define VHOST_USER_VRING_INDEX 0xffu
#define VHOST_USER_VRING_NO_FD 0x100u
