/*
 * The client's side of the handshake.
 *
 *   greeting ─▶ (STARTTLS) ─▶ EXTENDED_HEADERS, else STRUCTURED_REPLY ─▶ SET_META_CONTEXT ─▶ GO, else EXPORT_NAME ─▶ transmission
 *
 * Each byte is the server's: replies are bounded in size and number, and its words are escaped before anybody sees them.
 */
#include <errno.h>

#include "base/cursor.h"
#include "base/text.h"
#include "block/nbd/client-internal.h"

#define OLDSTYLE UINT64_C(0x0000420281861253)
#define REPLY_MAX 65536u
#define REPLIES_MAX 256

struct option_reply {
        uint32_t kind, length;
        uint8_t bytes[512]; /* the first of them */
        uint32_t size_bytes;
};

static int send_option(struct nbd_client *c, uint32_t option, const void *bytes, size_t size_bytes)
{
        uint8_t head[NBD_OPTION_BYTES], *at = nbd_put64(head, NBD_OPTION_MAGIC);
        int r;

        at = nbd_put32(at, option);
        nbd_put32(at, (uint32_t)size_bytes);
        r = nbd_stream_put(c->stream, head, sizeof(head));
        return r == 0 && size_bytes ? nbd_stream_put(c->stream, bytes, size_bytes) : r;
}

static int get_reply(struct nbd_client *c, uint32_t option, struct option_reply *reply, struct err *err)
{
        uint8_t head[NBD_OPTION_REPLY_BYTES];
        int r = nbd_stream_get(c->stream, head, sizeof(head));

        if (r < 0)
                return r;
        reply->kind = nbd_get32(head + 12);
        reply->length = nbd_get32(head + 16);
        if (nbd_get64(head) != NBD_OPTION_REPLY_MAGIC || nbd_get32(head + 8) != option || reply->length > REPLY_MAX)
                return err_set(err, -EPROTO, "the server's answer makes no sense");
        reply->size_bytes = MIN(reply->length, (uint32_t)sizeof(reply->bytes));
        r = nbd_stream_get(c->stream, reply->bytes, reply->size_bytes);
        return r == 0 ? nbd_stream_skip(c->stream, reply->length - reply->size_bytes) : r;
}

static int refused(const struct nbd_client *c, const struct option_reply *reply, struct err *err)
{
        char text[256];

        text_escape(reply->bytes, reply->size_bytes, text, sizeof(text));
        switch (reply->kind) {
        case NBD_REP_ERR_UNKNOWN:
                return err_set(err, -ENOENT, "the server has no export '%s'", c->uri.export_name);
        case NBD_REP_ERR_TLS_REQD:
                return err_set(err, -EACCES, "the server wants TLS: nbds:// with tls-certificates or tls-psk-file");
        case NBD_REP_ERR_POLICY: return err_set(err, -EACCES, "the server refuses%s%s", *text ? ": " : "", text);
        case NBD_REP_ERR_SHUTDOWN: return err_set(err, -ESHUTDOWN, "the server is about to end");
        case NBD_REP_ERR_BLOCK_SIZE_REQD: return err_set(err, -EINVAL, "the server's blocks are of a size that we do not know");
        default: return err_set(err, -EPROTO, "the server refuses (%#x)%s%s", reply->kind, *text ? ": " : "", text);
        }
}

/* An option without data, which is agreed on or not. */
static int agree(struct nbd_client *c, uint32_t option, bool *agreed, struct option_reply *reply, struct err *err)
{
        int r = send_option(c, option, NULL, 0);

        if (r == 0)
                r = get_reply(c, option, reply, err);
        *agreed = r == 0 && reply->kind == NBD_REP_ACK;
        if (r == 0 && !*agreed && !(reply->kind & NBD_REP_ERROR))
                r = err_set(err, -EPROTO, "the server's answer makes no sense");
        return r;
}

static int start_tls(struct nbd_client *c, struct err *err)
{
        struct option_reply reply;
        bool agreed;
        int r = agree(c, NBD_OPT_STARTTLS, &agreed, &reply, err);

        if (r < 0)
                return r;
        if (!agreed)
                return err_set(err, -EPROTO, "the server does not speak TLS");
        return nbd_stream_start_tls(c->stream, c->tls, c->uri.socket ? NULL : c->uri.host, err);
}

static int agree_on_replies(struct nbd_client *c, struct nbd_export *export, struct err *err)
{
        struct option_reply reply;
        int r = agree(c, NBD_OPT_EXTENDED_HEADERS, &export->extended, &reply, err);

        if (r == 0 && !export->extended && reply.kind == NBD_REP_ERR_TLS_REQD)
                return refused(c, &reply, err);
        export->structured = export->extended;
        return r == 0 && !export->extended ? agree(c, NBD_OPT_STRUCTURED_REPLY, &export->structured, &reply, err) : r;
}

static int set_context(struct nbd_client *c, struct nbd_export *export, struct err *err)
{
        static const char context[] = NBD_CONTEXT_ALLOCATION;
        size_t name = strlen(c->uri.export_name), query = strlen(context);
        uint8_t bytes[12 + NBD_NAME_MAX + sizeof(context)], *at = nbd_put32(bytes, (uint32_t)name);
        int r;

        memcpy(at, c->uri.export_name, name);
        at = nbd_put32(at + name, 1);
        at = nbd_put32(at, (uint32_t)query);
        memcpy(at, context, query);
        r = send_option(c, NBD_OPT_SET_META_CONTEXT, bytes, 12 + name + query);
        for (unsigned n = 0; r == 0; n++) {
                struct option_reply reply;

                r = n < REPLIES_MAX ? get_reply(c, NBD_OPT_SET_META_CONTEXT, &reply, err) : -EPROTO;
                if (r < 0 || reply.kind != NBD_REP_META_CONTEXT)
                        break;
                if (reply.length == 4 + query && !memcmp(reply.bytes + 4, context, query)) {
                        export->context = nbd_get32(reply.bytes);
                        export->allocation = true;
                }
        }
        return r; /* an error of the server's: then without */
}

static int check_block_sizes(const struct nbd_export *export, struct err *err)
{
        if (!is_power_of_two(export->minimum_bytes) || export->minimum_bytes > 65536 || export->preferred_bytes < export->minimum_bytes ||
            export->maximum_bytes < export->minimum_bytes || export->maximum_bytes % export->minimum_bytes)
                return err_set(err, -EPROTO, "the server's block sizes make no sense: %u, %u, %u bytes", export->minimum_bytes, export->preferred_bytes,
                               export->maximum_bytes);
        return 0;
}

static int take_info(struct nbd_export *export, const struct option_reply *reply, bool *exported, struct err *err)
{
        struct cursor in = cursor_from(reply->bytes, reply->size_bytes);

        switch (cursor_be16(&in)) {
        case NBD_INFO_EXPORT:
                export->size_bytes = cursor_be64(&in);
                export->flags = cursor_be16(&in);
                *exported = true;
                break;
        case NBD_INFO_BLOCK_SIZE:
                export->minimum_bytes = cursor_be32(&in);
                export->preferred_bytes = cursor_be32(&in);
                export->maximum_bytes = cursor_be32(&in);
                break;
        default: break;
        }
        return in.bad ? err_set(err, -EPROTO, "the server's answer is too short") : 0;
}

/* *known false: the server does not know the option. */
static int go(struct nbd_client *c, struct nbd_export *export, bool *known, struct err *err)
{
        size_t name = strlen(c->uri.export_name);
        uint8_t bytes[8 + NBD_NAME_MAX], *at = nbd_put32(bytes, (uint32_t)name);
        bool exported = false;
        int r;

        memcpy(at, c->uri.export_name, name);
        at = nbd_put16(at + name, 1);
        nbd_put16(at, NBD_INFO_BLOCK_SIZE);
        r = send_option(c, NBD_OPT_GO, bytes, 8 + name);
        *known = true;
        for (unsigned n = 0; r == 0; n++) {
                struct option_reply reply;

                r = n < REPLIES_MAX ? get_reply(c, NBD_OPT_GO, &reply, err) : err_set(err, -EPROTO, "the server talks without end");
                if (r < 0)
                        break;
                if (reply.kind == NBD_REP_ACK)
                        return exported ? 0 : err_set(err, -EPROTO, "the server does not say how large its export is");
                *known = reply.kind != NBD_REP_ERR_UNSUP;
                if (reply.kind & NBD_REP_ERROR)
                        return *known ? refused(c, &reply, err) : 0;
                r = reply.kind == NBD_REP_INFO ? take_info(export, &reply, &exported, err) : err_set(err, -EPROTO, "the server's answer makes no sense");
        }
        return r;
}

static int by_name(struct nbd_client *c, struct nbd_export *export, bool no_zeroes, struct err *err)
{
        uint8_t bytes[NBD_EXPORT_BYTES];
        int r = send_option(c, NBD_OPT_EXPORT_NAME, c->uri.export_name, strlen(c->uri.export_name));

        if (r == 0)
                r = nbd_stream_get(c->stream, bytes, sizeof(bytes));
        if (r == -ECONNRESET)
                return err_set(err, -ENOENT, "the server has no export '%s'", c->uri.export_name);
        if (r == 0 && !no_zeroes)
                r = nbd_stream_skip(c->stream, NBD_EXPORT_ZEROES);
        if (r < 0)
                return r;
        export->size_bytes = nbd_get64(bytes);
        export->flags = nbd_get16(bytes + 8);
        return 0;
}

static int greet(struct nbd_client *c, bool *fixed, bool *no_zeroes, struct err *err)
{
        uint8_t hello[NBD_GREETING_BYTES], reply[4];
        int r = nbd_stream_get(c->stream, hello, sizeof(hello));
        uint16_t flags;

        if (r < 0)
                return r;
        if (nbd_get64(hello) == NBD_GREETING && nbd_get64(hello + 8) == OLDSTYLE)
                return err_set(err, -EPROTO, "the server speaks an NBD from before 2012");
        if (nbd_get64(hello) != NBD_GREETING || nbd_get64(hello + 8) != NBD_OPTION_MAGIC)
                return err_set(err, -EPROTO, "this is no NBD server");
        flags = nbd_get16(hello + 16);
        *fixed = flags & NBD_FIXED_NEWSTYLE;
        *no_zeroes = flags & NBD_NO_ZEROES;
        nbd_put32(reply, flags & (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES));
        return nbd_stream_put(c->stream, reply, sizeof(reply));
}

static int options(struct nbd_client *c, struct nbd_export *export, bool fixed, bool no_zeroes, struct err *err)
{
        bool known = false;
        int r = 0;

        if (c->tls && !fixed)
                return err_set(err, -EPROTO, "the server does not speak TLS");
        if (c->tls)
                r = start_tls(c, err);
        if (r == 0 && fixed)
                r = agree_on_replies(c, export, err);
        if (r == 0 && export->structured)
                r = set_context(c, export, err);
        if (r == 0 && fixed)
                r = go(c, export, &known, err);
        return r == 0 && !known ? by_name(c, export, no_zeroes, err) : r;
}

int nbd_client_handshake(struct nbd_client *c, struct nbd_export *out, struct err *err)
{
        struct nbd_export export = { .minimum_bytes = 1, .preferred_bytes = 4096, .maximum_bytes = NBD_PAYLOAD_MAX };
        bool fixed = false, no_zeroes = false;
        int r = greet(c, &fixed, &no_zeroes, err);

        if (r == 0)
                r = options(c, &export, fixed, no_zeroes, err);
        if (r == 0)
                r = check_block_sizes(&export, err);
        if (r == 0 && (!export.size_bytes || export.size_bytes > INT64_MAX / 4096 * 4096))
                r = err_set(err, -EPROTO, "the server's export has %llu bytes", (unsigned long long)export.size_bytes);
        if (r < 0)
                return r;
        if (!(export.flags & NBD_HAS_FLAGS))
                export.flags = 0;
        export.maximum_bytes = MIN(export.maximum_bytes, NBD_PAYLOAD_MAX);
        *out = export;
        return 0;
}
