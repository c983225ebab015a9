/*
 * What the machine and its network process say to each other before frames flow: structs as they are, since both are the same
 * executable.
 */
#pragma once

#include "net/net.h"

struct peer_request {
        char driver[32];
        struct net_options options; /* driver is NULL in it */
};

struct peer_hello {
        int32_t result; /* 0 or -errno with text */
        uint32_t features;
        uint16_t mtu;
        char text[ERR_TEXT_MAX];
};
