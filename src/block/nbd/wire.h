/*
 * NBD on the wire: what server and client share (the NBD project's doc/proto.md, "the protocol" here). All numbers are big-endian.
 *
 *      handshake      server greets, client chooses its flags; then options, each answered, until one of them begins the transmission
 *      transmission   requests in any number, answered in any order; each reply carries the cookie of its request
 */
#pragma once

#include <endian.h>

#include "base/util.h"

/* ---- handshake ---- */

#define NBD_GREETING UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)

#define NBD_FIXED_NEWSTYLE 1u
#define NBD_NO_ZEROES 2u

enum nbd_option {
        NBD_OPT_EXPORT_NAME = 1,
        NBD_OPT_ABORT = 2,
        NBD_OPT_LIST = 3,
        NBD_OPT_STARTTLS = 5,
        NBD_OPT_INFO = 6,
        NBD_OPT_GO = 7,
        NBD_OPT_STRUCTURED_REPLY = 8,
        NBD_OPT_LIST_META_CONTEXT = 9,
        NBD_OPT_SET_META_CONTEXT = 10,
        NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERROR (UINT32_C(1) << 31)

enum nbd_option_reply {
        NBD_REP_ACK = 1,
        NBD_REP_SERVER = 2,
        NBD_REP_INFO = 3,
        NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP (NBD_REP_ERROR + 1)
#define NBD_REP_ERR_POLICY (NBD_REP_ERROR + 2)
#define NBD_REP_ERR_INVALID (NBD_REP_ERROR + 3)
#define NBD_REP_ERR_PLATFORM (NBD_REP_ERROR + 4)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR + 5)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_ERROR + 6)
#define NBD_REP_ERR_SHUTDOWN (NBD_REP_ERROR + 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERROR + 8)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_ERROR + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERROR + 10)

enum nbd_info { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2, NBD_INFO_BLOCK_SIZE = 3 };

/* Names of exports and of contexts. */
#define NBD_NAME_MAX 4096u

#define NBD_GREETING_BYTES 18u     /* magic, option magic, flags 16 */
#define NBD_OPTION_BYTES 16u       /* magic, option 32, length 32 */
#define NBD_OPTION_REPLY_BYTES 20u /* magic, option 32, reply 32, length 32 */
#define NBD_EXPORT_BYTES 10u       /* size 64, flags 16: the end of a handshake by NBD_OPT_EXPORT_NAME */
#define NBD_EXPORT_ZEROES 124u     /* behind them, unless NBD_NO_ZEROES */

/* What an export can do. */
#define NBD_HAS_FLAGS (1u << 0)
#define NBD_READ_ONLY (1u << 1)
#define NBD_SEND_FLUSH (1u << 2)
#define NBD_SEND_FUA (1u << 3)
#define NBD_ROTATIONAL (1u << 4)
#define NBD_SEND_TRIM (1u << 5)
#define NBD_SEND_WRITE_ZEROES (1u << 6)
#define NBD_SEND_DF (1u << 7)
#define NBD_CAN_MULTI_CONN (1u << 8)
#define NBD_SEND_RESIZE (1u << 9)
#define NBD_SEND_CACHE (1u << 10)
#define NBD_SEND_FAST_ZERO (1u << 11)

#define NBD_CONTEXT_ALLOCATION "base:allocation"
#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u
/* QEMU's, docs/interop/nbd: "qemu:dirty-bitmap:NAME" */
#define NBD_CONTEXT_BITMAP "qemu:dirty-bitmap:"
#define NBD_STATE_DIRTY 1u

/* ---- transmission ---- */

#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_REQUEST_EXT_MAGIC UINT32_C(0x21e41c71)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC UINT32_C(0x668e33ef)
#define NBD_CHUNK_EXT_MAGIC UINT32_C(0x6e8a278c)

#define NBD_REQUEST_BYTES 28u     /* magic, flags 16, command 16, cookie 64, offset 64, length 32 */
#define NBD_REQUEST_EXT_BYTES 32u /* the same with length 64 */
#define NBD_SIMPLE_REPLY_BYTES 16u /* magic, error 32, cookie 64 */
#define NBD_CHUNK_BYTES 20u       /* magic, flags 16, type 16, cookie 64, length 32 */
#define NBD_CHUNK_EXT_BYTES 32u   /* magic, flags 16, type 16, cookie 64, offset 64, length 64 */

enum nbd_command {
        NBD_CMD_READ = 0,
        NBD_CMD_WRITE = 1,
        NBD_CMD_DISC = 2,
        NBD_CMD_FLUSH = 3,
        NBD_CMD_TRIM = 4,
        NBD_CMD_CACHE = 5,
        NBD_CMD_WRITE_ZEROES = 6,
        NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA 1u
#define NBD_CMD_FLAG_NO_HOLE 2u
#define NBD_CMD_FLAG_DF 4u
#define NBD_CMD_FLAG_REQ_ONE 8u
#define NBD_CMD_FLAG_FAST_ZERO 16u
#define NBD_CMD_FLAG_PAYLOAD_LEN 32u

#define NBD_CHUNK_DONE 1u

enum nbd_chunk_type {
        NBD_CHUNK_NONE = 0,
        NBD_CHUNK_OFFSET_DATA = 1,      /* offset 64, data */
        NBD_CHUNK_OFFSET_HOLE = 2,      /* offset 64, length 32 */
        NBD_CHUNK_BLOCK_STATUS = 5,     /* context 32, then length 32, flags 32 for each extent */
        NBD_CHUNK_BLOCK_STATUS_EXT = 6, /* context 32, count 32, then length 64, flags 64 for each extent */
        NBD_CHUNK_ERROR = 0x8001,       /* error 32, length 16, text */
        NBD_CHUNK_ERROR_OFFSET = 0x8002, /* the same, then offset 64 */
};
#define NBD_CHUNK_IS_ERROR 0x8000u

/* The largest payload of a read or a write, in each direction: what all peers take. */
#define NBD_PAYLOAD_MAX (32u << 20)

enum nbd_error {
        NBD_EPERM = 1,
        NBD_EIO = 5,
        NBD_ENOMEM = 12,
        NBD_EINVAL = 22,
        NBD_ENOSPC = 28,
        NBD_EOVERFLOW = 75,
        NBD_ENOTSUP = 95,
        NBD_ESHUTDOWN = 108,
};

/* Of a -errno, and back; 0 stays 0. */
uint32_t nbd_error_from(int result);
int nbd_error_to(uint32_t error);

static inline uint16_t nbd_get16(const uint8_t *at)
{
        uint16_t v;

        memcpy(&v, at, sizeof(v));
        return be16toh(v);
}

static inline uint32_t nbd_get32(const uint8_t *at)
{
        uint32_t v;

        memcpy(&v, at, sizeof(v));
        return be32toh(v);
}

static inline uint64_t nbd_get64(const uint8_t *at)
{
        uint64_t v;

        memcpy(&v, at, sizeof(v));
        return be64toh(v);
}

/* These return what is behind the number. */
static inline uint8_t *nbd_put16(uint8_t *at, uint16_t v)
{
        v = htobe16(v);
        memcpy(at, &v, sizeof(v));
        return at + sizeof(v);
}

static inline uint8_t *nbd_put32(uint8_t *at, uint32_t v)
{
        v = htobe32(v);
        memcpy(at, &v, sizeof(v));
        return at + sizeof(v);
}

static inline uint8_t *nbd_put64(uint8_t *at, uint64_t v)
{
        v = htobe64(v);
        memcpy(at, &v, sizeof(v));
        return at + sizeof(v);
}

/* A request as either form of header has it. */
struct nbd_header {
        uint16_t flags, command;
        uint64_t cookie, offset, length;
};

/* A chunk's, of a structured reply. */
struct nbd_chunk {
        uint16_t flags, type;
        uint64_t cookie, offset, length; /* offset: of the request, with extended headers */
};

static inline unsigned nbd_request_bytes(bool extended)
{
        return extended ? NBD_REQUEST_EXT_BYTES : NBD_REQUEST_BYTES;
}

static inline unsigned nbd_chunk_bytes(bool extended)
{
        return extended ? NBD_CHUNK_EXT_BYTES : NBD_CHUNK_BYTES;
}

/* These return what is behind the header; false: another magic number. */
uint8_t *nbd_put_request(uint8_t *at, const struct nbd_header *header, bool extended);
bool nbd_get_request(const uint8_t *at, struct nbd_header *header, bool extended) _must_check_;
uint8_t *nbd_put_chunk(uint8_t *at, const struct nbd_chunk *chunk, bool extended);
bool nbd_get_chunk(const uint8_t *at, struct nbd_chunk *chunk, bool extended) _must_check_;
