/* Numbers in images of the processor's state, at any address: little-endian, as the host's own. */
#pragma once

#include "base/util.h"

#define BYTES_ACCESS(bits)                                              \
        static inline uint##bits##_t get##bits(const uint8_t *at)       \
        {                                                               \
                uint##bits##_t value;                                   \
                                                                        \
                memcpy(&value, at, sizeof(value));                      \
                return value;                                           \
        }                                                               \
        static inline void put##bits(uint8_t *at, uint##bits##_t value) \
        {                                                               \
                memcpy(at, &value, sizeof(value));                      \
        }

BYTES_ACCESS(16)
BYTES_ACCESS(32)
BYTES_ACCESS(64)
#undef BYTES_ACCESS
