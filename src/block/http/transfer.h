/*
 * Parts of one file of a web server, by libcurl: a number of transfers side by side, driven by the loop, or by who waits without it.
 *
 *      http_transfer_start(fetch)   idle ─▶ runs ─▶ bytes(): they go where they belong ─▶ done(): all of them, or why not
 *                                           └ fails for a reason that may pass ─▶ waits ─▶ runs again, for what is left
 *
 * libcurl is loaded when it is needed (block/nbd/tls.h says why). Its callbacks only take notes: done() is called when it has returned.
 *
 * Each answer has to be 206 with the part that was asked for (RFC 9110 §14.4), of a file of the same length, and the same ETag or date as the
 * first one's.
 */
#pragma once

#include <uv.h>

#include "base/err.h"
#include "block/http/url.h"

#define HTTP_FETCHES 6u
#define HTTP_TAG_MAX 256u

struct http_transfers;

struct http_fetch {
        uint64_t offset_bytes, size_bytes, got_bytes;
        /* Of the owner, who starts it and gets it back. */
        uint64_t first;
        unsigned count;
        bool busy;
        bool probe;              /* the first of all: what the file is like comes with it */
        struct err why;          /* of an end that is none of all */

        /* Of the transfers. */
        struct http_transfers *all;
        void *easy;
        bool running, over;
        int result;              /* what has been found wrong with the answer */
        uint64_t begun_ms, due_ms; /* due: of the next try; 0: none waits */
        unsigned tries;
        unsigned status;
        bool ranged, encoded;
        uint64_t range_first, range_last, total_bytes;
        char tag[HTTP_TAG_MAX], date[HTTP_TAG_MAX];
        char text[256];          /* libcurl's */
};

struct http_transfer_ops {
        /* The next bytes of a fetch, within its size. From within libcurl: only to be put somewhere. */
        void (*bytes)(void *ctx, struct http_fetch *fetch, const uint8_t *bytes, size_t size_bytes);
        /* 0 or -errno, with fetch->why. It may be started again. */
        void (*done)(void *ctx, struct http_fetch *fetch, int result);
        /* Something has happened, which is not told of yet in any other way. */
        void (*progress)(void *ctx);
};

/* What the server has, as the first answer said. */
struct http_file {
        uint64_t size_bytes;
        char tag[HTTP_TAG_MAX], date[HTTP_TAG_MAX];
};

/* what: for messages. url is borrowed. */
int http_transfers_new(uv_loop_t *loop, const struct http_url *url, const char *what, const struct http_transfer_ops *ops, void *ctx,
                       struct http_transfers **transfers, struct err *err) _must_check_;
/* All fetches were forgotten. NULL is fine. The loop has to run once more. */
void http_transfers_free(struct http_transfers *transfers);
/* offset and size are set. */
void http_transfer_start(struct http_transfers *transfers, struct http_fetch *fetch);
/* Breaks it off if it runs, without done(); the struct is as it was at first. */
void http_transfer_forget(struct http_transfers *transfers, struct http_fetch *fetch);
/* Without the loop: until something has happened. Something runs, or waits for its next try. */
void http_transfers_wait(struct http_transfers *transfers);
const struct http_file *http_transfers_file(const struct http_transfers *transfers);
