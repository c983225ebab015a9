/*
 * Requests on a qcow2 image.
 *
 *   reading              no fiber as long as the pages of L2 are in memory and nothing is compressed: parts go to the data file and the
 *                        backing file, or are zeroes. Else a fiber goes on where that stopped.
 *   writing in place     the same, where clusters are there and nobody's but the guest's.
 *   else                 a fiber: wait until nobody else is about to put a cluster there (busy), take a cluster, write what was there around
 *                        the guest's bytes and these in one go, then name the cluster in the L2 entry.
 *   clusters given back  are used again behind the flush that made their release durable, and behind the end of all reads that had begun when
 *                        that was over: these may have found them in the tables before. Reads belong to an epoch, which such a flush ends.
 *   flushing             when pages or clusters to be given back wait, in a fiber, one at a time; all that asked meanwhile share the next.
 *
 * A request counts its parts in req->rest, and itself while it hands them out; the last to end completes it. req->transferred is how far it
 * has come.
 */
#include <assert.h>
#include <errno.h>

#include "base/iov.h"
#include "block/qcow2/qcow2.h"

#define PART_PIECES 16

struct qcow2_part {
        struct block_request req;
        struct qcow2 *q;
        struct block_request *guest;
        struct qcow2_part *next;
        struct qcow2_part **link; /* a write in place: what leads to it in q->direct; NULL: none */
        struct qcow2_part *direct;
        bool reading;             /* from a cluster, since */
        unsigned epoch;
        struct iovec *more;       /* when the pieces are too many */
        struct iovec iov[PART_PIECES];
};

/* ---- parts ---- */

static void let_go(struct qcow2 *q, struct block_request *guest)
{
        if (--guest->rest == 0)
                block_complete(&q->block, guest, guest->result);
}

static void hold(struct block_request *guest)
{
        guest->result = 0;
        guest->rest = 1;
        guest->transferred = 0;
}

static void failed(struct block_request *guest, int result)
{
        if (guest->result == 0)
                guest->result = result;
}

static struct qcow2_part *part_new(struct qcow2 *q)
{
        struct qcow2_part *part = q->parts;

        if (!part)
                return malloc(sizeof(*part));
        q->parts = part->next;
        return part;
}

static void part_free(struct qcow2 *q, struct qcow2_part *part)
{
        free(part->more);
        part->next = q->parts;
        q->parts = part;
}

static void link_direct(struct qcow2 *q, struct qcow2_part *part)
{
        part->direct = q->direct;
        part->link = &q->direct;
        if (part->direct)
                part->direct->link = &part->direct;
        q->direct = part;
}

static void unlink_direct(struct qcow2_part *part)
{
        *part->link = part->direct;
        if (part->direct)
                part->direct->link = part->link;
}

static void part_done(struct block_request *req, int result)
{
        struct qcow2_part *part = container_of(req, struct qcow2_part, req);
        struct block_request *guest = part->guest;
        struct qcow2 *q = part->q;

        if (result < 0)
                failed(guest, result);
        if (part->link) {
                unlink_direct(part);
                fiber_queue_wake_all(&q->direct_over);
        }
        if (part->reading)
                qcow2_read_end(q, part->epoch);
        part_free(q, part);
        let_go(q, guest);
}

/* size_bytes of the request from how far it has come, to or from a place of another disk. direct: a write in place. */
static int send_part(struct qcow2 *q, struct block *to, struct block_request *guest, uint64_t at, uint64_t size_bytes, bool direct)
{
        struct qcow2_part *part = part_new(q);

        if (!part)
                return -ENOMEM;
        part->q = q;
        part->guest = guest;
        part->link = NULL;
        part->reading = false;
        part->more = NULL;
        part->req = (struct block_request){ .op = guest->op, .flags = guest->flags, .offset_bytes = at, .size_bytes = size_bytes, .done = part_done };
        if (guest->iov_count && size_bytes == guest->size_bytes) {
                part->req.iov = guest->iov;
                part->req.iov_count = guest->iov_count;
        } else if (guest->iov_count) {
                struct iovec *iov = part->iov;

                if (guest->iov_count > PART_PIECES)
                        iov = part->more = calloc(guest->iov_count, sizeof(*iov));
                if (!iov) {
                        part_free(q, part);
                        return -ENOMEM;
                }
                part->req.iov = iov;
                part->req.iov_count = iov_slice(guest->iov, guest->iov_count, guest->transferred, size_bytes, iov);
        }
        if (direct)
                link_direct(q, part);
        part->reading = guest->op == BLOCK_READ && to == q->content;
        if (part->reading)
                part->epoch = qcow2_read_begin(q);
        guest->rest++;
        block_submit(to, &part->req);
        return 0;
}

void qcow2_data_done(struct qcow2 *q)
{
        free(q->holder);
        while (q->parts) {
                struct qcow2_part *next = q->parts->next;

                free(q->parts);
                q->parts = next;
        }
}

/* ---- fibers ---- */

/* Runs work on the request in a fiber, which lets go of it at its end. */
static void in_fiber(struct qcow2 *q, struct block_request *guest, void (*work)(void *guest))
{
        guest->next = (struct block_request *)q; /* nobody else has the request now */
        if (fiber_start(work, guest) < 0) {
                failed(guest, -ENOMEM);
                let_go(q, guest);
        }
}

static struct qcow2 *of_request(struct block_request *guest)
{
        return (struct qcow2 *)guest->next;
}

/* ---- reading ---- */

/*
 * The image of the chain that decides about a place, and for how many bytes; NULL: they are zeroes. Images between are passed over as far as
 * their tables are in memory: false, when they are not.
 */
static bool look_through(struct qcow2 *q, uint64_t at, uint64_t *size_bytes, struct block **holder)
{
        struct block *node = q->backing;

        while (node && at < node->info.size_bytes) {
                struct qcow2_run run;

                *size_bytes = MIN(*size_bytes, node->info.size_bytes - at);
                *holder = node;
                if (node->driver != &block_qcow2)
                        return true;
                if (qcow2_map(to_qcow2(node), at, *size_bytes, false, &run) < 0)
                        return false;
                *size_bytes = run.size_bytes;
                if (run.kind == QCOW2_DATA || run.kind == QCOW2_PACKED)
                        return true;
                node = run.kind == QCOW2_ABSENT ? to_qcow2(node)->backing : NULL;
        }
        *holder = NULL;
        return true;
}

/*
 * What was found is remembered, so that a long chain costs a look at each image once. Nobody writes to a backing file but what the images in
 * front have there (commit); where a cluster is dropped, or the chain becomes another, what was remembered is forgotten (qcow2_drop_cluster(),
 * qcow2_backing_changed()).
 */
static struct block *find_holder(struct qcow2 *q, uint64_t at, uint64_t *size_bytes)
{
        uint64_t from = align_down(at, QCOW2_HOLDER_BYTES), wide = QCOW2_HOLDER_BYTES;
        struct qcow2_holder *known;
        struct block *holder;

        if (!q->holder && q->backing && q->backing->child[BLOCK_BACKING])
                q->holder = calloc(QCOW2_HOLDERS, sizeof(*q->holder)); /* without memory it is slower */
        if (!q->holder) {
                (void)look_through(q, at, size_bytes, &holder);
                return holder;
        }
        known = &q->holder[at / QCOW2_HOLDER_BYTES % QCOW2_HOLDERS];
        if (at < known->from || at >= known->to) {
                if (!look_through(q, from, &wide, &holder) || from + wide <= at) {
                        from = at;
                        wide = QCOW2_HOLDER_BYTES - at % QCOW2_HOLDER_BYTES;
                        if (!look_through(q, at, &wide, &holder)) {
                                *size_bytes = MIN(*size_bytes, wide);
                                return holder;
                        }
                }
                *known = (struct qcow2_holder){ from, from + wide, holder };
        }
        *size_bytes = MIN(*size_bytes, known->to - at);
        return known->node;
}

/* Absent here. *size_bytes: how much of it was wanted, and was done. */
static int read_absent(struct qcow2 *q, struct block_request *guest, uint64_t at, uint64_t *size_bytes)
{
        struct block *holder = find_holder(q, at, size_bytes);

        if (holder)
                return send_part(q, holder, guest, at, *size_bytes, false);
        iov_zero(guest->iov, guest->iov_count, guest->transferred, *size_bytes);
        return 0;
}

static int read_packed(struct qcow2 *q, struct block_request *guest, uint64_t at, const struct qcow2_run *run)
{
        _cleanup_free_ uint8_t *cluster = malloc(q->cluster_bytes);
        unsigned epoch = qcow2_read_begin(q);
        int r = cluster ? qcow2_unpack(q, run->entry, cluster, run->size_bytes < q->cluster_bytes) : -ENOMEM;

        qcow2_read_end(q, epoch);
        if (r == 0)
                buf_to_iov(guest->iov, guest->iov_count, guest->transferred, cluster + (at & (q->cluster_bytes - 1)), run->size_bytes);
        return r;
}

/* -EAGAIN: the rest wants a fiber. */
static int read_on(struct qcow2 *q, struct block_request *guest, bool wait)
{
        while (guest->transferred < guest->size_bytes) {
                uint64_t at = guest->offset_bytes + guest->transferred;
                struct qcow2_run run;
                int r = qcow2_map(q, at, guest->size_bytes - guest->transferred, wait, &run);

                if (r == 0 && run.kind == QCOW2_PACKED && !wait)
                        r = -EAGAIN;
                if (r < 0)
                        return r;
                switch (run.kind) {
                case QCOW2_DATA: r = send_part(q, q->content, guest, run.host, run.size_bytes, false); break;
                case QCOW2_ABSENT: r = read_absent(q, guest, at, &run.size_bytes); break;
                case QCOW2_ZEROES: iov_zero(guest->iov, guest->iov_count, guest->transferred, run.size_bytes); break;
                case QCOW2_PACKED: r = read_packed(q, guest, at, &run); break;
                }
                if (r < 0)
                        return r;
                guest->transferred += run.size_bytes;
        }
        return 0;
}

static void end_work(struct qcow2 *q, struct block_request *guest, int result)
{
        if (result < 0)
                failed(guest, result);
        block_kick(&q->block);
        let_go(q, guest);
}

static void read_work(void *arg)
{
        struct block_request *guest = arg;
        struct qcow2 *q = of_request(guest);

        end_work(q, guest, read_on(q, guest, true));
}

static void submit_read(struct qcow2 *q, struct block_request *guest)
{
        int r = read_on(q, guest, false);

        if (r == -EAGAIN) {
                in_fiber(q, guest, read_work);
                return;
        }
        if (r < 0)
                failed(guest, r);
        let_go(q, guest);
}

/* ---- who is about to put clusters where ---- */

static struct qcow2_busy *find_busy(struct qcow2 *q, uint64_t from, uint64_t to)
{
        struct qcow2_busy *busy = q->busy;

        while (busy && (busy->to <= from || busy->from >= to))
                busy = busy->next;
        return busy;
}

static void busy_begin(struct qcow2 *q, struct qcow2_busy *mine, uint64_t from, uint64_t to)
{
        struct qcow2_busy *other;

        from = align_down(from, q->cluster_bytes);
        to = align_up(to, q->cluster_bytes);
        while ((other = find_busy(q, from, to)))
                fiber_queue_wait(&other->waiting);
        *mine = (struct qcow2_busy){ .next = q->busy, .from = from, .to = to };
        q->busy = mine;
}

static void busy_end(struct qcow2 *q, struct qcow2_busy *mine)
{
        struct qcow2_busy **at = &q->busy;

        while (*at != mine)
                at = &(*at)->next;
        *at = mine->next;
        fiber_queue_wake_all(&mine->waiting);
}

/* ---- writing ---- */

static bool in_place(const struct qcow2_run *run)
{
        return run->kind == QCOW2_DATA && run->copied;
}

/* As much as can be written where it is. -EAGAIN: the rest wants a fiber. */
static int write_on(struct qcow2 *q, struct block_request *guest)
{
        while (guest->transferred < guest->size_bytes) {
                uint64_t at = guest->offset_bytes + guest->transferred, left = guest->size_bytes - guest->transferred;
                struct qcow2_run run;
                int r;

                if (q->busy && find_busy(q, align_down(at, q->cluster_bytes), align_up(at + left, q->cluster_bytes)))
                        return -EAGAIN;
                r = qcow2_map(q, at, left, false, &run);
                if (r == 0 && !in_place(&run))
                        r = -EAGAIN;
                if (r == 0)
                        r = send_part(q, q->content, guest, run.host, run.size_bytes, true);
                if (r < 0)
                        return r;
                guest->transferred += run.size_bytes;
        }
        return 0;
}

/* What the guest sees at a range that lies within one cluster and in one run's kind each; blocking. */
static int read_old(struct qcow2 *q, uint64_t at, uint8_t *to, uint64_t size_bytes)
{
        while (size_bytes) {
                struct qcow2_run run;
                uint64_t there;
                int r = qcow2_map(q, at, size_bytes, true, &run);

                if (r < 0)
                        return r;
                memset(to, 0, run.size_bytes);
                if (run.kind == QCOW2_DATA) {
                        r = block_read(q->content, run.host, to, run.size_bytes);
                } else if (run.kind == QCOW2_PACKED) {
                        _cleanup_free_ uint8_t *cluster = malloc(q->cluster_bytes);

                        r = cluster ? qcow2_unpack(q, run.entry, cluster, true) : -ENOMEM;
                        if (r == 0)
                                memcpy(to, cluster + (at & (q->cluster_bytes - 1)), run.size_bytes);
                } else if (run.kind == QCOW2_ABSENT && q->backing && at < q->backing->info.size_bytes) {
                        there = MIN(run.size_bytes, q->backing->info.size_bytes - at);
                        r = block_read(q->backing, at, to, there);
                }
                if (r < 0)
                        return r;
                at += run.size_bytes;
                to += run.size_bytes;
                size_bytes -= run.size_bytes;
        }
        return 0;
}

/* Some of a request that goes into new clusters, or into old ones whose subclusters are not all there. */
struct filling {
        uint64_t from, to;          /* the guest's bytes */
        uint64_t first, end;        /* from and to, with what must be written around them */
        uint64_t host;              /* of the cluster that holds `from` */
        uint64_t cluster, clusters; /* taken; 0: the old ones are kept */
        bool fresh, copied;         /* they read as zeroes; what was elsewhere is written into them */
        uint8_t *head, *tail;
};

/* Whether all that a range covers reads as zeroes, as far as tables say. */
static int reads_as_zeroes(struct qcow2 *q, uint64_t from, uint64_t to, bool *zeroes)
{
        *zeroes = true;
        while (from < to && *zeroes) {
                struct qcow2_run run;
                int r = qcow2_map(q, from, to - from, true, &run);

                if (r < 0)
                        return r;
                *zeroes = run.kind == QCOW2_ZEROES || (run.kind == QCOW2_ABSENT && (!q->backing || from >= q->backing->info.size_bytes));
                from += run.size_bytes;
        }
        return 0;
}

/* What is between a unit's start or end and the guest's bytes. A fresh cluster needs no zeroes. */
static int fetch_around(struct qcow2 *q, struct filling *f, uint64_t from, uint64_t to, uint8_t **bytes)
{
        bool zeroes;
        int r;

        if (from == to)
                return 0;
        r = reads_as_zeroes(q, from, to, &zeroes);
        if (r < 0 || (zeroes && f->fresh))
                return r;
        *bytes = malloc(to - from);
        if (!*bytes)
                return -ENOMEM;
        f->copied = true;
        if (!zeroes)
                return read_old(q, from, *bytes, to - from);
        memset(*bytes, 0, to - from);
        return 0;
}

/* Head, the guest's bytes, tail, in one go. */
static int write_filling(struct qcow2 *q, struct filling *f, struct block_request *guest)
{
        uint64_t head = f->head ? f->from - f->first : 0, tail = f->tail ? f->end - f->to : 0, size_bytes = head + (f->to - f->from) + tail;
        _cleanup_free_ struct iovec *iov = calloc(guest->iov_count + 2, sizeof(*iov));
        unsigned count = 0;

        if (!iov)
                return -ENOMEM;
        if (head)
                iov[count++] = (struct iovec){ f->head, head };
        count += iov_slice(guest->iov, guest->iov_count, guest->transferred, f->to - f->from, iov + count);
        if (tail)
                iov[count++] = (struct iovec){ f->tail, tail };
        return block_do(q->content, BLOCK_WRITE, 0, f->host + (f->from - head - align_down(f->from, q->cluster_bytes)), size_bytes, iov, count);
}

/* The bits of the units of a cluster that [from, to) touches. */
static uint64_t units(const struct qcow2 *q, uint64_t cluster_at, uint64_t from, uint64_t to)
{
        uint64_t low = MAX(from, cluster_at) - cluster_at, high = MIN(to, cluster_at + q->cluster_bytes) - cluster_at;
        unsigned first = (unsigned)(low >> q->unit_bits), last = (unsigned)((high - 1) >> q->unit_bits);

        return ((UINT64_C(2) << last) - 1) & ~((UINT64_C(1) << first) - 1);
}

/* The old cluster of an entry is not named any more. */
static int release_entry(struct qcow2 *q, uint64_t entry)
{
        uint64_t offset, size_bytes;

        if (entry & QCOW2_COMPRESSED) {
                qcow2_forget_unpacked(q);
                qcow2_packed_place(q, entry, &offset, &size_bytes);
                for (uint64_t c = offset >> q->header.cluster_bits; c <= (offset + size_bytes - 1) >> q->header.cluster_bits; c++) {
                        int r = qcow2_release(q, c, 1);

                        if (r < 0)
                                return r;
                }
                return 0;
        }
        return entry & QCOW2_OFFSET && q->data == q->file ? qcow2_release(q, (entry & QCOW2_OFFSET) >> q->header.cluster_bits, 1) : 0;
}

/*
 * Whether the table must not be on the disk before what was just written is: what would be seen then, after a crash, is neither the old
 * nor the new. Zeroes that take the place of zeroes do no harm.
 */
static bool wants_flush(const struct qcow2 *q, const struct filling *f, uint64_t old)
{
        if (f->copied || !f->clusters || !f->fresh || q->backing || old & QCOW2_COMPRESSED) /* of a packed one the lowest bit is of its place */
                return true;
        return old & QCOW2_OFFSET && !(old & QCOW2_ZERO && !q->extended);
}

static int name_clusters(struct qcow2 *q, const struct filling *f)
{
        uint64_t start = align_down(f->from, q->cluster_bytes);
        int r = 0;

        q->cache.written++;
        for (uint64_t at = start; at < f->to && r == 0; at += q->cluster_bytes) {
                struct table_page *page;
                uint64_t old, bitmap;
                uint8_t *entry;

                r = qcow2_entry_get(q, at, &page, &entry);
                if (r < 0)
                        return r;
                old = be64(entry);
                if (f->clusters) {
                        put_be64(entry, (f->host + (at - start)) | QCOW2_COPIED);
                        r = release_entry(q, old);
                }
                if (q->extended) {
                        /* A new cluster keeps what the old one had in subclusters that were not written: zeroes, or nothing. */
                        bitmap = old & QCOW2_COMPRESSED ? 0 : be64(entry + 8);
                        bitmap |= units(q, at, f->first, f->end);
                        bitmap &= ~(units(q, at, f->first, f->end) << 32);
                        put_be64(entry + 8, bitmap);
                }
                qcow2_page_changed(q, page, wants_flush(q, f, old));
                qcow2_page_put(page);
        }
        return r;
}

/* An external data file's clusters are where the guest's are. */
static int take_clusters(struct qcow2 *q, struct filling *f, uint64_t wanted)
{
        uint64_t start = align_down(f->from, q->cluster_bytes);
        int r;

        if (q->data != q->file) {
                f->host = start;
                f->clusters = wanted;
                f->fresh = false;
                return 0;
        }
        f->clusters = wanted;
        r = qcow2_take(q, &f->clusters, false, &f->cluster, &f->fresh);
        f->fresh &= !qcow2_encrypted(q); /* zeroes of the file are none of the guest */
        f->host = f->cluster << q->header.cluster_bits;
        return r;
}

/* With subclusters a cluster of the guest's own may lack some: only they are filled. */
static bool keeps_cluster(const struct qcow2 *q, const struct qcow2_run *run)
{
        return q->extended && run->kind != QCOW2_PACKED && run->entry & QCOW2_COPIED && (run->entry & QCOW2_OFFSET || q->data != q->file);
}

/*
 * In a cluster that is taken anew what the guest had there must come along: all of it, but with subclusters only those that were there and
 * touched units. For simplicity a new cluster takes the place of an old one whole when that held anything.
 */
static void widen(struct qcow2 *q, struct filling *f, const struct qcow2_run *run)
{
        uint64_t whole = q->cluster_bytes, unit = q->extended && !(run->entry & (QCOW2_OFFSET | QCOW2_COMPRESSED)) ? UINT64_C(1) << q->unit_bits : whole;

        if (keeps_cluster(q, run))
                unit = UINT64_C(1) << q->unit_bits;
        f->first = align_down(f->from, unit);
        f->end = align_up(f->to, unit);
}

/* Clusters from `from` on that want the same: new ones. With subclusters one at a time. */
static int plan(struct qcow2 *q, struct block_request *guest, const struct qcow2_run *run, struct filling *f)
{
        uint64_t start = align_down(guest->offset_bytes + guest->transferred, q->cluster_bytes), wanted = 1, limit;
        int r;

        *f = (struct filling){ .from = guest->offset_bytes + guest->transferred, .to = guest->offset_bytes + guest->size_bytes };
        if (keeps_cluster(q, run)) {
                f->host = q->data != q->file ? start : run->entry & QCOW2_OFFSET;
                f->to = MIN(f->to, start + q->cluster_bytes);
                widen(q, f, run);
                return 0;
        }
        limit = q->extended ? 1 : qcow2_clusters(q, f->to - start);
        for (uint64_t at = start + q->cluster_bytes; wanted < limit; at += q->cluster_bytes, wanted++) {
                struct qcow2_run next;

                r = qcow2_map(q, at, 1, true, &next);
                if (r < 0)
                        return r;
                if (in_place(&next))
                        break;
        }
        r = take_clusters(q, f, wanted);
        if (r < 0)
                return r;
        f->to = MIN(f->to, start + f->clusters * q->cluster_bytes);
        widen(q, f, run);
        return 0;
}

/* The next of the request's bytes that need clusters. */
static int fill_some(struct qcow2 *q, struct block_request *guest, const struct qcow2_run *run)
{
        struct filling f;
        struct table_page *page;
        uint8_t *entry;
        int r = qcow2_entry_get(q, guest->offset_bytes + guest->transferred, &page, &entry); /* the table must be there */

        if (r < 0)
                return r;
        qcow2_page_put(page);
        r = plan(q, guest, run, &f);
        if (r < 0)
                return r;
        r = fetch_around(q, &f, f.first, f.from, &f.head);
        if (r == 0)
                r = fetch_around(q, &f, f.to, f.end, &f.tail);
        if (r == 0)
                r = write_filling(q, &f, guest);
        if (r == 0)
                r = name_clusters(q, &f);
        else if (f.clusters && q->data == q->file)
                qcow2_untake(q, f.cluster, f.clusters);
        if (r == 0)
                guest->transferred += f.to - f.from;
        free(f.head);
        free(f.tail);
        return r;
}

static int write_some(struct qcow2 *q, struct block_request *guest)
{
        uint64_t at = guest->offset_bytes + guest->transferred, left = guest->size_bytes - guest->transferred;
        struct qcow2_busy busy;
        struct qcow2_run run;
        int r;

        busy_begin(q, &busy, at, at + left);
        r = qcow2_map(q, at, left, true, &run);
        if (r == 0 && in_place(&run)) {
                r = send_part(q, q->content, guest, run.host, run.size_bytes, true);
                if (r == 0)
                        guest->transferred += run.size_bytes;
        } else if (r == 0) {
                r = fill_some(q, guest, &run);
        }
        busy_end(q, &busy);
        return r;
}

static int write_rest(struct qcow2 *q, struct block_request *guest)
{
        int r = 0;

        while (r == 0 && guest->transferred < guest->size_bytes)
                r = q->broken ? -EIO : write_some(q, guest);
        return r;
}

static void write_work(void *arg)
{
        struct block_request *guest = arg;
        struct qcow2 *q = of_request(guest);

        end_work(q, guest, write_rest(q, guest));
}

static void submit_in_place_or_not(struct qcow2 *q, struct block_request *guest)
{
        int r = q->broken ? -EIO : write_on(q, guest);

        if (r == -EAGAIN) {
                in_fiber(q, guest, write_work);
                return;
        }
        if (r < 0)
                failed(guest, r);
        let_go(q, guest);
}

static void pack_work(void *arg)
{
        struct block_request *guest = arg;
        struct qcow2 *q = of_request(guest);

        end_work(q, guest, q->broken ? -EIO : qcow2_write_packed(q, guest));
}

static void submit_write(struct qcow2 *q, struct block_request *guest)
{
        if (guest->flags & BLOCK_F_COMPRESS) {
                in_fiber(q, guest, pack_work);
                return;
        }
        submit_in_place_or_not(q, guest);
}

/* ---- zeroes, and what is not needed ---- */

/* Entry of a whole cluster that reads as zeroes, or is not needed, from now on. */
static int clear_entry(struct qcow2 *q, uint64_t at, bool zeroes, bool unmap)
{
        struct table_page *page;
        uint8_t *entry;
        uint64_t old, new;
        bool keep;
        int r = qcow2_entry_get(q, at, &page, &entry);

        if (r < 0)
                return r;
        old = be64(entry);
        /* Its cluster stays, so that the next write need not look for one. */
        keep = zeroes && !unmap && !(old & QCOW2_COMPRESSED) && old & QCOW2_COPIED && old & QCOW2_OFFSET;
        new = keep || q->data != q->file ? old : 0;
        if (zeroes && !q->extended)
                new |= QCOW2_ZERO;
        if (!zeroes && q->data != q->file)
                new = 0;
        if (!keep)
                r = release_entry(q, old);
        if (r == 0) {
                put_be64(entry, new);
                if (q->extended)
                        put_be64(entry + 8, zeroes ? UINT64_C(0xffffffff) << 32 : 0);
                qcow2_page_changed(q, page, false);
        }
        qcow2_page_put(page);
        return r;
}

int qcow2_drop_cluster(struct qcow2 *q, uint64_t at)
{
        struct table_page *page;
        uint8_t *entry;
        int r = qcow2_entry_get(q, at, &page, &entry);

        if (r < 0)
                return r;
        free(steal_ptr(q->holder));
        r = release_entry(q, be64(entry));
        if (r == 0) {
                memset(entry, 0, q->l2_entry_bytes);
                table_page_changed(&q->cache, page, false);
        }
        table_page_put(page);
        return r;
}

static bool any_direct(const struct qcow2 *q, uint64_t from, uint64_t to)
{
        const struct qcow2_part *part = q->direct;

        while (part && (part->guest->offset_bytes >= to || part->guest->offset_bytes + part->guest->size_bytes <= from))
                part = part->direct;
        return part;
}

/* Writes may be on their way to clusters that are about to be given back. */
static void wait_for_direct(struct qcow2 *q, uint64_t from, uint64_t to)
{
        while (any_direct(q, from, to))
                fiber_queue_wait(&q->direct_over);
}

static int write_zero_bytes(struct qcow2 *q, struct block_request *guest, uint64_t from, uint64_t to)
{
        _cleanup_free_ uint8_t *zeroes = calloc(1, to - from);
        struct iovec iov = { zeroes, to - from };
        bool already;
        int r = zeroes ? reads_as_zeroes(q, from, to, &already) : -ENOMEM;

        if (r < 0 || already)
                return r;
        return block_do(&q->block, BLOCK_WRITE, guest->flags & ~(unsigned)BLOCK_F_DURABLE, from, to - from, &iov, 1);
}

/*
 * Whole clusters by their entries, which say zeroes afterwards, or nothing. Around them zeroes are written when they are asked for; what is
 * discarded there stays.
 */
static int clear_range(struct qcow2 *q, struct block_request *guest, bool zeroes)
{
        bool asked = guest->op == BLOCK_WRITE_ZEROES;
        uint64_t from = guest->offset_bytes, to = from + guest->size_bytes, end = q->block.info.size_bytes;
        uint64_t first = align_up(from, q->cluster_bytes), last = to == end ? align_up(to, q->cluster_bytes) : align_down(to, q->cluster_bytes);
        struct qcow2_busy busy;
        int r = 0;

        if (first >= last)
                return asked ? write_zero_bytes(q, guest, from, to) : 0;
        if (asked && from < first)
                r = write_zero_bytes(q, guest, from, first);
        if (asked && r == 0 && to > last)
                r = write_zero_bytes(q, guest, last, to);
        if (r < 0)
                return r;
        busy_begin(q, &busy, first, last);
        wait_for_direct(q, first, last);
        for (uint64_t at = first; at < last && r == 0;) {
                struct qcow2_run run;

                r = qcow2_map(q, at, last - at, true, &run);
                if (r < 0)
                        break;
                if (run.kind == QCOW2_ABSENT && (!zeroes || !q->backing || at >= q->backing->info.size_bytes) && run.size_bytes >= q->cluster_bytes) {
                        at += align_down(run.size_bytes, q->cluster_bytes);
                        continue;
                }
                r = clear_entry(q, at, zeroes, guest->flags & BLOCK_F_UNMAP);
                at += q->cluster_bytes;
        }
        busy_end(q, &busy);
        return r;
}

/* What is discarded from an image with a backing file must not show that again: zeroes. Version 2 has no zeroes. */
static int clear(struct qcow2 *q, struct block_request *guest)
{
        bool zeroes = guest->op == BLOCK_WRITE_ZEROES || q->backing;

        if (q->broken)
                return -EIO;
        if (q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA) /* the data file is to be right by itself */
                return block_do(q->data, guest->op, guest->flags, guest->offset_bytes, guest->size_bytes, NULL, 0);
        if (zeroes && q->header.version < 3 && q->backing)
                return guest->op == BLOCK_WRITE_ZEROES ? -EOPNOTSUPP : 0;
        return clear_range(q, guest, zeroes && q->header.version >= 3);
}

static void clear_work(void *arg)
{
        struct block_request *guest = arg;
        struct qcow2 *q = of_request(guest);

        end_work(q, guest, clear(q, guest));
}

/* ---- flushing ---- */

/* Those that began before now, and may read what is given back next. */
static void wait_for_reads(struct qcow2 *q)
{
        unsigned before = q->epoch++ & 1;

        while (q->reads[before])
                fiber_queue_wait(&q->reads_over);
}

int qcow2_flush(struct qcow2 *q)
{
        uint64_t asked = ++q->flushes_asked;
        struct qcow2_extent *released = NULL;
        uint64_t written;
        int r = 0;

        fiber_lock(&q->flush_lock);
        if (q->flushes_done >= asked) { /* one that began after we asked is over */
                fiber_unlock(&q->flush_lock);
                return 0;
        }
        asked = q->flushes_asked;
        released = q->pending;
        q->pending = NULL;
        written = q->cache.written;
        if (q->data != q->file)
                r = block_flush(q->data);
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0) {
                q->cache.flushed = MAX(q->cache.flushed, written);
                q->flushes_done = asked;
                if (released)
                        wait_for_reads(q);
                r = qcow2_release_now(q, released);
        } else {
                struct qcow2_extent **end = &released;

                while (*end)
                        end = &(*end)->next;
                *end = q->pending;
                q->pending = released;
        }
        fiber_unlock(&q->flush_lock);
        return r;
}

static void flush_work(void *arg)
{
        struct block_request *guest = arg;
        struct qcow2 *q = of_request(guest);

        end_work(q, guest, qcow2_flush(q));
}

static void submit_flush(struct qcow2 *q, struct block_request *guest)
{
        struct qcow2_part *part;

        if (!table_cache_idle(&q->cache) || q->pending || q->flush_lock.held || q->data != q->file) {
                in_fiber(q, guest, flush_work);
                return;
        }
        part = part_new(q);
        if (part) {
                *part = (struct qcow2_part){ .req = { .op = BLOCK_FLUSH, .done = part_done }, .q = q, .guest = guest };
                guest->rest++;
                block_submit(q->file, &part->req);
        } else {
                failed(guest, -ENOMEM);
        }
        let_go(q, guest);
}

/* ---- a write that is to be durable: a request of our own, and a flush behind it ---- */

struct durable {
        struct block_request req;
        struct qcow2 *q;
        struct block_request *guest;
};

static void durable_done(struct block_request *req, int result)
{
        struct durable *d = container_of(req, struct durable, req);
        struct block_request *guest = d->guest;
        struct qcow2 *q = d->q;

        free(d);
        if (result < 0) {
                failed(guest, result);
                let_go(q, guest);
                return;
        }
        submit_flush(q, guest);
        block_kick(&q->block);
}

static void submit_durable(struct qcow2 *q, struct block_request *guest)
{
        struct durable *d = malloc(sizeof(*d));

        if (!d) {
                failed(guest, -ENOMEM);
                let_go(q, guest);
                return;
        }
        *d = (struct durable){ .req = *guest, .q = q, .guest = guest };
        d->req.flags &= ~(unsigned)BLOCK_F_DURABLE;
        d->req.done = durable_done;
        block_submit(&q->block, &d->req);
}

/* ---- all of them ---- */

void qcow2_submit(struct block *block, struct block_request *req)
{
        struct qcow2 *q = to_qcow2(block);

        hold(req);
        if (req->flags & BLOCK_F_DURABLE && req->op != BLOCK_READ && req->op != BLOCK_FLUSH) {
                submit_durable(q, req);
                return;
        }
        switch (req->op) {
        case BLOCK_READ: submit_read(q, req); break;
        case BLOCK_WRITE: submit_write(q, req); break;
        case BLOCK_FLUSH: submit_flush(q, req); break;
        case BLOCK_DISCARD:
        case BLOCK_WRITE_ZEROES: in_fiber(q, req, clear_work); break;
        }
}

int qcow2_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        struct qcow2 *q = to_qcow2(block);
        struct qcow2_run run;
        int r = qcow2_map(q, offset_bytes, size_bytes, true, &run);

        if (r < 0)
                return r;
        *extent = (struct block_extent){
                .size_bytes = run.size_bytes,
                .present = run.kind != QCOW2_ABSENT,
                .zero = run.kind == QCOW2_ZEROES || (run.kind == QCOW2_ABSENT && !q->backing),
                .compressed = run.kind == QCOW2_PACKED,
                .host_bytes = run.kind == QCOW2_DATA && !qcow2_encrypted(q) ? run.host : BLOCK_NOWHERE,
        };
        return 0;
}
