/*
 * Frames and what a guest says about them: 8 bytes of offload, then the frame. Segments must not leave their buffer, and each
 * must be a frame that is understood.
 */
#include <errno.h>
#include <stdlib.h>

#include "net/offload.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

static int emit(void *ctx, const uint8_t *frame, size_t size_bytes)
{
        struct net_headers headers;
        unsigned *left = ctx;

        if (net_headers_parse(frame, size_bytes, &headers) < 0)
                abort();
        return --*left ? 0 : -EAGAIN;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct cursor in = cursor_from(bytes, size_bytes);
        struct net_offload offload = {
                .flags = NET_NEEDS_CSUM,
                .gso = cursor_u8(&in),
                .gso_bytes = cursor_le16(&in),
                .csum_start = cursor_le16(&in),
                .csum_offset = cursor_le16(&in),
        };
        size_t frame_bytes = MIN(cursor_left(&in), (size_t)NET_FRAME_MAX);
        unsigned left = cursor_u8(&in) + 1u;
        uint8_t *frame, *scratch;
        size_t done = 0;

        if (in.bad)
                return 0;
        frame_bytes = MIN(cursor_left(&in), frame_bytes);
        frame = malloc(frame_bytes + !frame_bytes);
        scratch = malloc(NET_FRAME_MAX);
        if (frame && scratch && cursor_get(&in, frame, frame_bytes) == 0) {
                /* As a card does it: what was sent in part is gone on with. */
                for (unsigned i = 0; i < 3; i++) {
                        if (net_segment(frame, frame_bytes, &offload, scratch, &done, emit, &left) != -EAGAIN)
                                break;
                        left = 1000;
                }
                if (net_checksum_complete(frame, frame_bytes, &offload) == 0)
                        (void)!net_checksum_packet(frame, frame_bytes);
        }
        free(frame);
        free(scratch);
        return 0;
}
