/* Copies and comparisons of disks as commands run them: with progress on a terminal. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/fiber.h"
#include "cli/disk.h"

#define PROGRESS_MS 200

struct progress {
        uint64_t start_ms, shown_ms;
        bool any;
};

static void show(struct block_copy *copy, void *ctx)
{
        struct progress *p = ctx;
        uint64_t now_ms = uv_hrtime() / 1000000;

        if (now_ms < p->shown_ms + PROGRESS_MS)
                return;
        fprintf(stderr, "\r%5.1f %%  %" PRIu64 " MiB of %" PRIu64 " MiB  %.1f s ",
                copy->size_bytes ? 100.0 * (double)copy->done_bytes / (double)copy->size_bytes : 100.0, copy->done_bytes >> 20, copy->size_bytes >> 20,
                (double)(now_ms - p->start_ms) / 1000);
        p->shown_ms = now_ms;
        p->any = true;
}

int disk_copy_run(struct disk_session *session, struct block_copy *copy, bool quiet, struct err *err)
{
        struct progress progress = { .start_ms = uv_hrtime() / 1000000 };
        int r;

        progress.shown_ms = progress.start_ms + 1000 - PROGRESS_MS; /* what is over sooner needs none */
        r = block_copy_run(copy, &session->loop, !quiet && isatty(STDERR_FILENO) ? show : NULL, &progress);
        if (progress.any)
                fprintf(stderr, "\r\x1b[K");
        fiber_thread_done();
        return r < 0 ? err_errno(err, r, "%s", copy->to ? "cannot copy" : "cannot compare") : 0;
}
