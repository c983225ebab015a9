/*
 * A hostile virtio driver for fuzz targets: the input is a program of configuration accesses, ring contents, notifications,
 * resets, saves and loads against one device.
 */
#pragma once

#include "device/test-virtio.h"

struct hostile {
        struct testbed bed;
        struct test_driver d;
        struct device *dev;
        void *ctx;
};

struct hostile_device {
        unsigned id;     /* virtio id */
        unsigned queues; /* to enable in the quick start */
        /* Makes h->dev; aborts when it cannot. */
        void (*make)(struct hostile *h);
        /* One thing the host does with the device, chosen by these bytes; may be NULL. */
        void (*host)(struct hostile *h, struct cursor *in);
        /* The device is gone; what make left in ctx. May be NULL. */
        void (*done)(struct hostile *h);
};

int hostile_run(const struct hostile_device *device, const uint8_t *bytes, size_t size_bytes);
