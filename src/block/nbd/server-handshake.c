/*
 * The server's side of the handshake: fixed newstyle, one option after the other.
 *
 *   greeting ─▶ client's flags ─▶ option … ─▶ NBD_OPT_GO or NBD_OPT_EXPORT_NAME ─▶ transmission
 *                                  └ STARTTLS: the options start anew, through TLS
 *
 * Limits: options of OPTION_MAX bytes, OPTIONS_MAX of them, in a time that the connection's deadline sets.
 */
#include <errno.h>
#include <stdio.h>

#include "base/cursor.h"
#include "block/bitmap.h"
#include "block/nbd/server-internal.h"
#include "block/nbd/tls.h"

#define OPTION_MAX 65536u
#define OPTIONS_MAX 1000
#define QUERIES_MAX 1000u
#define PREFERRED_BYTES 4096u
#define CONTEXT_NAME_MAX (sizeof(NBD_CONTEXT_BITMAP) + BLOCK_BITMAP_NAME_MAX)

struct option {
        uint32_t id, length;
        uint8_t *bytes; /* length of them */
};

/* An option's reply. */
static int answer(struct nbd_connection *c, const struct option *option, uint32_t reply, const void *bytes, uint32_t size_bytes)
{
        uint8_t head[NBD_OPTION_REPLY_BYTES], *at = nbd_put64(head, NBD_OPTION_REPLY_MAGIC);
        int r;

        at = nbd_put32(at, option->id);
        at = nbd_put32(at, reply);
        nbd_put32(at, size_bytes);
        r = nbd_stream_put(c->stream, head, sizeof(head));
        return r == 0 && size_bytes ? nbd_stream_put(c->stream, bytes, size_bytes) : r;
}

/* What is wrong, for people. */
static int refuse(struct nbd_connection *c, const struct option *option, uint32_t reply, const char *text)
{
        return answer(c, option, reply, text, (uint32_t)strlen(text));
}

static bool is_ours(const struct nbd_connection *c, const void *name, uint32_t size_bytes)
{
        return name && size_bytes == strlen(c->server->config.export_name) && !memcmp(name, c->server->config.export_name, size_bytes);
}

/* ---- what an export is ---- */

static uint32_t preferred_bytes(const struct block_info *info)
{
        uint32_t bytes = MAX(info->optimal_bytes, MAX(info->physical_bytes, PREFERRED_BYTES));

        return is_power_of_two(bytes) ? MIN(bytes, NBD_PAYLOAD_MAX) : PREFERRED_BYTES;
}

static int answer_info(struct nbd_connection *c, const struct option *option, uint16_t info)
{
        const struct nbd_server_config *config = &c->server->config;
        const char *text = info == NBD_INFO_NAME ? config->export_name : config->description;
        uint8_t bytes[2 + NBD_NAME_MAX], *at = nbd_put16(bytes, info);

        switch (info) {
        case NBD_INFO_EXPORT:
                at = nbd_put64(at, c->server->disk->info.size_bytes);
                at = nbd_put16(at, nbd_server_flags(c));
                break;
        case NBD_INFO_BLOCK_SIZE:
                at = nbd_put32(at, 1);
                at = nbd_put32(at, preferred_bytes(&c->server->disk->info));
                at = nbd_put32(at, NBD_PAYLOAD_MAX);
                break;
        case NBD_INFO_NAME:
        case NBD_INFO_DESCRIPTION:
                if (!text)
                        return 0;
                memcpy(at, text, strlen(text));
                at += strlen(text);
                break;
        default: return 0;
        }
        return answer(c, option, NBD_REP_INFO, bytes, (uint32_t)(at - bytes));
}

/* 1: transmission begins. */
static int info_or_go(struct nbd_connection *c, const struct option *option)
{
        struct cursor in = cursor_from(option->bytes, option->length);
        uint32_t length = cursor_be32(&in);
        const void *name = cursor_take(&in, length);
        uint16_t count = cursor_be16(&in);
        struct cursor wishes = cursor_sub(&in, (size_t)count * 2);
        int r;

        if (wishes.bad || cursor_left(&in) || length > NBD_NAME_MAX)
                return refuse(c, option, NBD_REP_ERR_INVALID, "the option's parts do not fit into it");
        if (!is_ours(c, name, length))
                return refuse(c, option, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
        /* A context of another export does not count; there is only one. */
        r = answer_info(c, option, NBD_INFO_EXPORT);
        if (r == 0)
                r = answer_info(c, option, NBD_INFO_BLOCK_SIZE);
        while (r == 0 && cursor_left(&wishes)) {
                uint16_t wish = cursor_be16(&wishes);

                if (wish != NBD_INFO_EXPORT && wish != NBD_INFO_BLOCK_SIZE)
                        r = answer_info(c, option, wish);
        }
        if (r == 0)
                r = answer(c, option, NBD_REP_ACK, NULL, 0);
        return r < 0 ? r : option->id == NBD_OPT_GO;
}

/* Old clients: no reply but the export itself, or the end. */
static int export_name(struct nbd_connection *c, const struct option *option, bool no_zeroes)
{
        uint8_t bytes[NBD_EXPORT_BYTES + NBD_EXPORT_ZEROES] = { 0 }, *at;
        int r;

        if (!is_ours(c, option->bytes, option->length))
                return -ENOENT;
        at = nbd_put64(bytes, c->server->disk->info.size_bytes);
        nbd_put16(at, nbd_server_flags(c));
        r = nbd_stream_put(c->stream, bytes, no_zeroes ? NBD_EXPORT_BYTES : sizeof(bytes));
        return r < 0 ? r : 1;
}

static int list(struct nbd_connection *c, const struct option *option)
{
        const struct nbd_server_config *config = &c->server->config;
        size_t name = strlen(config->export_name), about = config->description ? strlen(config->description) : 0;
        uint8_t bytes[4 + 2 * NBD_NAME_MAX], *at = nbd_put32(bytes, (uint32_t)name);
        int r;

        if (option->length)
                return refuse(c, option, NBD_REP_ERR_INVALID, "a list needs no data");
        memcpy(at, config->export_name, name);
        if (about)
                memcpy(at + name, config->description, about);
        r = answer(c, option, NBD_REP_SERVER, bytes, (uint32_t)(4 + name + about));
        return r == 0 ? answer(c, option, NBD_REP_ACK, NULL, 0) : r;
}

/* ---- contexts ---- */

static bool asks_for(const void *query, uint32_t size_bytes, const char *context)
{
        return size_bytes == strlen(context) && !memcmp(query, context, size_bytes);
}

static unsigned contexts(const struct nbd_connection *c)
{
        return 1 + c->server->config.bitmaps;
}

static void name_context(const struct nbd_connection *c, unsigned n, char name[CONTEXT_NAME_MAX])
{
        if (n)
                snprintf(name, CONTEXT_NAME_MAX, "%s%s", NBD_CONTEXT_BITMAP, c->server->config.bitmap[n - 1]->name);
        else
                snprintf(name, CONTEXT_NAME_MAX, "%s", NBD_CONTEXT_ALLOCATION);
}

static int answer_context(struct nbd_connection *c, const struct option *option, uint32_t id, const char *name)
{
        uint8_t bytes[4 + NBD_NAME_MAX], *at = nbd_put32(bytes, id);

        memcpy(at, name, strlen(name));
        return answer(c, option, NBD_REP_META_CONTEXT, bytes, (uint32_t)(4 + strlen(name)));
}

/* A query names a context; when listing also what several begin with, up to a colon. */
static bool matches(const struct option *option, const void *query, uint32_t size_bytes, const char *name)
{
        if (asks_for(query, size_bytes, name))
                return true;
        return option->id == NBD_OPT_LIST_META_CONTEXT && size_bytes && size_bytes < strlen(name) && ((const char *)query)[size_bytes - 1] == ':' &&
               !memcmp(query, name, size_bytes);
}

/* The contexts that a query asks for. */
static unsigned matching(const struct nbd_connection *c, const struct option *option, const void *query, uint32_t size_bytes)
{
        unsigned found = 0;

        for (unsigned n = 0; n < contexts(c); n++) {
                char name[CONTEXT_NAME_MAX];

                name_context(c, n, name);
                found |= (unsigned)matches(option, query, size_bytes, name) << n;
        }
        return found;
}

static int meta_context(struct nbd_connection *c, const struct option *option)
{
        bool set = option->id == NBD_OPT_SET_META_CONTEXT;
        struct cursor in = cursor_from(option->bytes, option->length);
        uint32_t length = cursor_be32(&in);
        const void *name = cursor_take(&in, length);
        uint32_t queries = cursor_be32(&in);
        unsigned wanted = !set && !queries ? (1u << contexts(c)) - 1 : 0;
        int r = 0;

        if (set)
                c->contexts = 0;
        if (!c->structured && set)
                return refuse(c, option, NBD_REP_ERR_INVALID, "contexts need structured replies");
        if (in.bad || length > NBD_NAME_MAX || queries > QUERIES_MAX)
                return refuse(c, option, NBD_REP_ERR_INVALID, "the option's parts do not fit into it");
        for (uint32_t n = 0; n < queries; n++) {
                uint32_t size_bytes = cursor_be32(&in);
                const void *query = cursor_take(&in, size_bytes);

                if (!query || size_bytes > NBD_NAME_MAX)
                        return refuse(c, option, NBD_REP_ERR_INVALID, "a query does not fit into its option");
                wanted |= matching(c, option, query, size_bytes);
        }
        if (cursor_left(&in))
                return refuse(c, option, NBD_REP_ERR_INVALID, "there is something behind the queries");
        if (!is_ours(c, name, length))
                return refuse(c, option, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
        for (unsigned n = 0; n < contexts(c) && r == 0; n++) {
                char name_of[CONTEXT_NAME_MAX];

                name_context(c, n, name_of);
                if (wanted & 1u << n)
                        r = answer_context(c, option, set ? n + 1 : 0, name_of);
        }
        if (set)
                c->contexts = wanted;
        return r == 0 ? answer(c, option, NBD_REP_ACK, NULL, 0) : r;
}

/* ---- options ---- */

static int start_tls(struct nbd_connection *c, const struct option *option, struct err *err)
{
        int r;

        if (option->length)
                return refuse(c, option, NBD_REP_ERR_INVALID, "starting TLS needs no data");
        if (!c->server->config.tls)
                return refuse(c, option, NBD_REP_ERR_POLICY, "TLS is not set up here");
        if (nbd_stream_has_tls(c->stream))
                return refuse(c, option, NBD_REP_ERR_INVALID, "this is TLS already");
        r = answer(c, option, NBD_REP_ACK, NULL, 0);
        if (r == 0)
                r = nbd_stream_start_tls(c->stream, c->server->config.tls, NULL, err);
        /* What was agreed on in the clear does not count. */
        c->structured = c->extended = false;
        c->contexts = 0;
        return r;
}

static int replies(struct nbd_connection *c, const struct option *option)
{
        if (option->length)
                return refuse(c, option, NBD_REP_ERR_INVALID, "the option takes no data");
        if (option->id == NBD_OPT_STRUCTURED_REPLY && c->extended)
                return refuse(c, option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are agreed on already");
        c->structured = true;
        c->extended |= option->id == NBD_OPT_EXTENDED_HEADERS;
        return answer(c, option, NBD_REP_ACK, NULL, 0);
}

/* 0: another one may follow; 1: transmission begins; 2: the client leaves. */
static int one_option(struct nbd_connection *c, const struct option *option, bool no_zeroes, struct err *err)
{
        bool wants_tls = c->server->config.tls && !nbd_stream_has_tls(c->stream);

        if (option->id == NBD_OPT_ABORT) {
                int r = answer(c, option, NBD_REP_ACK, NULL, 0);

                return r < 0 ? r : 2;
        }
        if (option->id == NBD_OPT_STARTTLS)
                return start_tls(c, option, err);
        if (wants_tls && option->id == NBD_OPT_EXPORT_NAME)
                return -EACCES;
        if (wants_tls)
                return refuse(c, option, NBD_REP_ERR_TLS_REQD, "this server wants TLS");
        switch (option->id) {
        case NBD_OPT_EXPORT_NAME: return export_name(c, option, no_zeroes);
        case NBD_OPT_LIST: return list(c, option);
        case NBD_OPT_INFO:
        case NBD_OPT_GO: return info_or_go(c, option);
        case NBD_OPT_STRUCTURED_REPLY:
        case NBD_OPT_EXTENDED_HEADERS: return replies(c, option);
        case NBD_OPT_LIST_META_CONTEXT:
        case NBD_OPT_SET_META_CONTEXT: return meta_context(c, option);
        default: return refuse(c, option, NBD_REP_ERR_UNSUP, "the option is not known here");
        }
}

static int read_option(struct nbd_connection *c, struct option *option, struct err *err)
{
        uint8_t head[NBD_OPTION_BYTES];
        int r = nbd_stream_get(c->stream, head, sizeof(head));

        if (r < 0)
                return r;
        if (nbd_get64(head) != NBD_OPTION_MAGIC)
                return err_set(err, -EPROTO, "no option where one should be");
        option->id = nbd_get32(head + 8);
        option->length = nbd_get32(head + 12);
        if (option->length > OPTION_MAX)
                return err_set(err, -EPROTO, "an option of %u bytes", option->length);
        option->bytes = malloc(option->length + 1);
        if (!option->bytes)
                return err_nomem(err);
        return nbd_stream_get(c->stream, option->bytes, option->length);
}

static int greet(struct nbd_connection *c, bool *no_zeroes, struct err *err)
{
        uint8_t hello[NBD_GREETING_BYTES], *at = nbd_put64(hello, NBD_GREETING), reply[4];
        uint32_t flags;
        int r;

        at = nbd_put64(at, NBD_OPTION_MAGIC);
        nbd_put16(at, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
        r = nbd_stream_put(c->stream, hello, sizeof(hello));
        if (r == 0)
                r = nbd_stream_get(c->stream, reply, sizeof(reply));
        if (r < 0)
                return r;
        flags = nbd_get32(reply);
        if (flags & ~(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
                return err_set(err, -EPROTO, "unknown flags %#x", flags);
        *no_zeroes = flags & NBD_NO_ZEROES;
        return 0;
}

int nbd_server_handshake(struct nbd_connection *c, struct err *err)
{
        bool no_zeroes = false;
        int r = greet(c, &no_zeroes, err);

        for (unsigned n = 0; r == 0; n++) {
                struct option option = { 0 };

                if (n == OPTIONS_MAX)
                        return err_set(err, -EPROTO, "more than %d options", OPTIONS_MAX);
                r = read_option(c, &option, err);
                if (r == 0)
                        r = one_option(c, &option, no_zeroes, err);
                free(option.bytes);
        }
        return r < 0 ? r : r - 1;
}
