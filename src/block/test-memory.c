#include "block/test-memory.h"

#include <errno.h>
#include <limits.h>

#include "base/fiber.h"
#include "base/iov.h"

static struct memory_file *to_memory(struct block *block)
{
        return container_of(block, struct memory_file, block);
}

static int grow(struct memory_file *m, uint64_t size_bytes)
{
        uint8_t *bytes;

        if (size_bytes <= m->size_bytes)
                return 0;
        if (m->limit_bytes && size_bytes > m->limit_bytes)
                return -ENOSPC;
        if (size_bytes > m->room_bytes) {
                uint64_t room = MAX(size_bytes, m->room_bytes * 2);

                bytes = realloc(m->bytes, room);
                if (!bytes)
                        return -ENOMEM;
                memset(bytes + m->room_bytes, 0, room - m->room_bytes);
                m->bytes = bytes;
                m->room_bytes = room;
        }
        m->size_bytes = size_bytes;
        return 0;
}

static void note(struct memory_file *m, enum block_op op, uint64_t offset_bytes, uint64_t size_bytes, const uint8_t *bytes)
{
        struct memory_log *log = m->log;
        struct memory_event *event;

        if (!log)
                return;
        if (log->events == log->room) {
                log->room = MAX(log->room * 2, 256u);
                log->event = realloc(log->event, log->room * sizeof(*log->event));
                if (!log->event)
                        abort();
        }
        event = &log->event[log->events++];
        *event = (struct memory_event){
                .op = op, .offset_bytes = offset_bytes, .size_bytes = size_bytes, .part = m->part, .file_bytes = m->size_bytes,
        };
        event->asked = log->clock;
        if (!m->shuffle || (op == BLOCK_WRITE_ZEROES && !size_bytes))
                event->told = ++log->clock;
        if (bytes) {
                event->bytes = malloc(MAX(size_bytes, UINT64_C(1)));
                if (!event->bytes)
                        abort();
                memcpy(event->bytes, bytes, size_bytes);
        }
}

static void read_bytes(struct memory_file *m, const struct block_request *req)
{
        uint64_t there = req->offset_bytes < m->size_bytes ? MIN(req->size_bytes, m->size_bytes - req->offset_bytes) : 0;

        buf_to_iov(req->iov, req->iov_count, 0, m->bytes + req->offset_bytes, there);
        iov_zero(req->iov, req->iov_count, there, req->size_bytes - there);
}

static int write_bytes(struct memory_file *m, const struct block_request *req)
{
        int r = grow(m, req->offset_bytes + req->size_bytes);

        if (r < 0)
                return r;
        iov_to_buf(req->iov, req->iov_count, 0, m->bytes + req->offset_bytes, req->size_bytes);
        note(m, BLOCK_WRITE, req->offset_bytes, req->size_bytes, m->bytes + req->offset_bytes);
        return 0;
}

static void clear_bytes(struct memory_file *m, const struct block_request *req)
{
        uint64_t there = req->offset_bytes < m->size_bytes ? MIN(req->size_bytes, m->size_bytes - req->offset_bytes) : 0;

        if (!there)
                return;
        memset(m->bytes + req->offset_bytes, 0, there);
        note(m, BLOCK_WRITE_ZEROES, req->offset_bytes, there, NULL);
}

static int execute(struct memory_file *m, const struct block_request *req)
{
        if (m->fail_after >= 0 && m->fail_after-- == 0) {
                m->failed = true;
                return m->fail_error;
        }
        switch (req->op) {
        case BLOCK_READ: read_bytes(m, req); break;
        case BLOCK_WRITE: return write_bytes(m, req);
        case BLOCK_FLUSH: note(m, BLOCK_FLUSH, 0, 0, NULL); break;
        case BLOCK_DISCARD:
        case BLOCK_WRITE_ZEROES: clear_bytes(m, req); break;
        }
        return 0;
}

/* Within submit, so the core tells of it later. */
static void memory_submit(struct block *block, struct block_request *req)
{
        struct memory_file *m = to_memory(block);

        if (req->op == m->hold_op && req->offset_bytes < m->hold_to && req->offset_bytes + req->size_bytes > m->hold_from) {
                req->next = m->held;
                m->held = req;
                return;
        }
        if (!m->shuffle) {
                block_complete(block, req, execute(m, req));
                return;
        }
        req->stage = 0;
        req->transferred = m->log ? m->log->clock : 0;
        req->next = m->waiting;
        m->waiting = req;
        m->waiting_count++;
}

static unsigned random_below(struct memory_file *m, unsigned below)
{
        m->shuffle = m->shuffle * UINT64_C(6364136223846793005) + 1442695040888963407;
        return (unsigned)(m->shuffle >> 33) % below;
}

bool memory_step(struct memory_file *m)
{
        struct block_request **at = &m->waiting, *req;

        if (!m->waiting)
                return false;
        for (unsigned n = random_below(m, m->waiting_count); n; n--)
                at = &(*at)->next;
        req = *at;
        if (req->stage == 0) {
                unsigned events = m->log ? m->log->events : 0;

                req->result = execute(m, req);
                req->stage = 1;
                req->rest = m->log && m->log->events > events ? events : UINT_MAX; /* its event */
                if (req->op == BLOCK_FLUSH && req->rest != UINT_MAX)
                        m->log->event[req->rest].asked = (unsigned)req->transferred;
                return true;
        }
        if (m->log && req->rest != UINT_MAX)
                m->log->event[req->rest].told = ++m->log->clock;
        *at = req->next;
        m->waiting_count--;
        block_complete(&m->block, req, req->result);
        return true;
}

static void memory_wait(struct block *block)
{
        struct memory_file *m = to_memory(block);
        unsigned before = m->waiting_count;

        while (m->waiting_count >= before && memory_step(m)) /* one is told of */
                ;
}

void memory_let_go(struct memory_file *m)
{
        m->hold_to = 0;
        while (m->held) {
                struct block_request *req = m->held;

                m->held = req->next;
                block_complete(&m->block, req, execute(m, req));
        }
}

static int memory_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct memory_file *m = to_memory(block);
        int r = grow(m, size_bytes);

        if (r < 0)
                return r;
        if (size_bytes < m->size_bytes)
                memset(m->bytes + size_bytes, 0, m->size_bytes - size_bytes);
        m->size_bytes = block->info.size_bytes = size_bytes;
        note(m, BLOCK_WRITE_ZEROES, 0, 0, NULL);
        return 0;
}

static void memory_close(struct block *block)
{
        struct memory_file *m = to_memory(block);

        block_done(block);
        free(m->bytes);
        free(m);
}

static const struct block_driver block_memory = {
        .name = "memory",
        .close = memory_close,
        .submit = memory_submit,
        .wait = memory_wait,
        .resize = memory_resize,
};

struct memory_file *memory_file_new(uv_loop_t *loop, const uint8_t *bytes, uint64_t size_bytes)
{
        struct memory_file *m = calloc(1, sizeof(*m));

        if (!m || block_init(&m->block, &block_memory, &(struct block_opening){ .loop = loop, .path = "memory" }, NULL) < 0)
                abort();
        m->fail_after = -1;
        if (grow(m, size_bytes) < 0)
                abort();
        if (size_bytes)
                memcpy(m->bytes, bytes, size_bytes);
        m->block.info = (struct block_info){
                .size_bytes = align_up(size_bytes, BLOCK_SECTOR), .logical_bytes = 512, .physical_bytes = 4096, .discard_bytes = 4096,
                .zeroes_bytes = 1u << 30, .grows = true,
        };
        return m;
}

void memory_disk_begin(struct memory_disk *d, uint64_t size_bytes)
{
        if (uv_loop_init(&d->loop) < 0)
                abort();
        d->file = memory_file_new(&d->loop, NULL, 0);
        if (block_resize(&d->file->block, size_bytes, NULL) < 0)
                abort();
}

void memory_disk_end(struct memory_disk *d)
{
        memory_let_go(d->file);
        block_close(d->disk ? d->disk : &d->file->block);
        uv_run(&d->loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&d->loop) < 0)
                abort(); /* a handle was left open */
        fiber_thread_done();
}

void memory_log_done(struct memory_log *log)
{
        for (unsigned n = 0; n < log->events; n++)
                free(log->event[n].bytes);
        free(log->event);
        *log = (struct memory_log){ 0 };
}

void memory_replay(uint8_t *bytes, uint64_t size_bytes, const struct memory_event *event, uint64_t from, uint64_t to)
{
        to = MIN(to, event->size_bytes);
        if (event->op == BLOCK_FLUSH || from >= to || event->offset_bytes + to > size_bytes)
                return;
        if (event->bytes)
                memcpy(bytes + event->offset_bytes + from, event->bytes + from, to - from);
        else
                memset(bytes + event->offset_bytes + from, 0, to - from);
}
