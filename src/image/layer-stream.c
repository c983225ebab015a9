#include "image/layer-stream.h"

#include <zlib.h>
#include <zstd.h>

#define IN_BYTES (128u << 10)
#define OUT_BYTES (256u << 10)
/* 128 MiB: what other tools take without being asked. */
#define ZSTD_WINDOW_LOG_MAX 27

struct layer_stream {
        int fd;
        enum layer_compression compression;
        struct hasher hasher;
        z_stream zlib;
        ZSTD_DStream *zstd;
        uint64_t position_bytes;
        size_t in_at, in_end;
        bool in_over;     /* nothing is left in the file */
        bool between;     /* before the first member or frame, or after one */
        bool begun;
        uint8_t in[IN_BYTES], out[OUT_BYTES];
};

int layer_stream_open(int fd, enum layer_compression compression, const struct digest *like, struct layer_stream **stream, struct err *err)
{
        struct layer_stream *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return err_nomem(err);
        s->fd = fd;
        s->compression = compression;
        s->between = true;
        r = hasher_begin(&s->hasher, like, err);
        if (!r && compression == LAYER_GZIP && inflateInit2(&s->zlib, 16 + MAX_WBITS) != Z_OK)
                r = err_nomem(err);
        if (!r && compression == LAYER_ZSTD) {
                s->zstd = ZSTD_createDStream();
                if (!s->zstd || ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX)))
                        r = err_nomem(err);
        }
        if (r < 0)
                layer_stream_close(s);
        else
                *stream = s;
        return r;
}

void layer_stream_close(struct layer_stream *s)
{
        if (!s)
                return;
        if (s->compression == LAYER_GZIP)
                inflateEnd(&s->zlib);
        ZSTD_freeDStream(s->zstd);
        hasher_done(&s->hasher);
        free(s);
}

static int fill(struct layer_stream *s, struct err *err)
{
        ssize_t n;

        if (s->in_at < s->in_end || s->in_over)
                return 0;
        do
                n = read(s->fd, s->in, sizeof(s->in));
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return err_errno(err, -errno, "cannot read the layer");
        s->in_at = 0;
        s->in_end = (size_t)n;
        s->in_over = !n;
        s->position_bytes += (uint64_t)n;
        return 0;
}

/* Puts up to OUT_BYTES into out; the number of bytes, which is 0 when more input is needed. */
static ssize_t step_gzip(struct layer_stream *s, struct err *err)
{
        int r;

        if (s->between && s->begun && inflateReset(&s->zlib) != Z_OK)
                return err_nomem(err);
        s->zlib.next_in = s->in + s->in_at;
        s->zlib.avail_in = (uInt)(s->in_end - s->in_at);
        s->zlib.next_out = s->out;
        s->zlib.avail_out = sizeof(s->out);
        r = inflate(&s->zlib, Z_NO_FLUSH);
        s->in_at = s->in_end - s->zlib.avail_in;
        if (r == Z_MEM_ERROR)
                return err_nomem(err);
        if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
                return err_set(err, -EBADMSG, "the layer is no gzip stream: %s", s->zlib.msg ? s->zlib.msg : "it is damaged");
        s->between = r == Z_STREAM_END;
        return (ssize_t)(sizeof(s->out) - s->zlib.avail_out);
}

static ssize_t step_zstd(struct layer_stream *s, struct err *err)
{
        ZSTD_inBuffer in = { s->in, s->in_end, s->in_at };
        ZSTD_outBuffer out = { s->out, sizeof(s->out), 0 };
        size_t r = ZSTD_decompressStream(s->zstd, &out, &in);

        if (ZSTD_isError(r))
                return err_set(err, -EBADMSG, "the layer is no zstd stream: %s", ZSTD_getErrorName(r));
        s->in_at = in.pos;
        s->between = !r;
        return (ssize_t)out.pos;
}

ssize_t layer_stream_read(struct layer_stream *s, const void **bytes, struct err *err)
{
        ssize_t n = 0;

        *bytes = s->out;
        while (!n) {
                int r = fill(s, err);

                if (r < 0)
                        return r;
                if (s->compression == LAYER_PLAIN) {
                        *bytes = s->in + s->in_at;
                        n = (ssize_t)(s->in_end - s->in_at);
                        s->in_at = s->in_end;
                        break;
                }
                if (s->in_over && s->in_at == s->in_end) {
                        if (!s->between || !s->begun)
                                return err_set(err, -EBADMSG, "the layer is cut: its compressed stream has no end");
                        break;
                }
                n = s->compression == LAYER_GZIP ? step_gzip(s, err) : step_zstd(s, err);
                if (n < 0)
                        return n;
                s->begun = true;
        }
        hasher_add(&s->hasher, *bytes, (size_t)n);
        return n;
}

void layer_stream_digest(struct layer_stream *s, struct digest *digest)
{
        hasher_end(&s->hasher, digest);
}

uint64_t layer_stream_position(const struct layer_stream *s)
{
        return s->position_bytes;
}
