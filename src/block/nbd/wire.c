#include "block/nbd/wire.h"

#include <errno.h>

uint32_t nbd_error_from(int result)
{
        switch (-result) {
        case 0: return 0;
        case EPERM:
        case EACCES:
        case EROFS: return NBD_EPERM;
        case ENOMEM: return NBD_ENOMEM;
        case EINVAL: return NBD_EINVAL;
        case ENOSPC:
        case EDQUOT:
        case EFBIG: return NBD_ENOSPC;
        case EOVERFLOW: return NBD_EOVERFLOW;
        case EOPNOTSUPP: return NBD_ENOTSUP;
        case ESHUTDOWN: return NBD_ESHUTDOWN;
        default: return NBD_EIO;
        }
}

int nbd_error_to(uint32_t error)
{
        switch (error) {
        case 0: return 0;
        case NBD_EPERM: return -EPERM;
        case NBD_ENOMEM: return -ENOMEM;
        case NBD_ENOSPC: return -ENOSPC;
        case NBD_EOVERFLOW: return -EOVERFLOW;
        case NBD_ENOTSUP: return -EOPNOTSUPP;
        case NBD_ESHUTDOWN: return -ESHUTDOWN;
        case NBD_EIO: return -EIO;
        default: return -EINVAL;
        }
}

uint8_t *nbd_put_request(uint8_t *at, const struct nbd_header *header, bool extended)
{
        at = nbd_put32(at, extended ? NBD_REQUEST_EXT_MAGIC : NBD_REQUEST_MAGIC);
        at = nbd_put16(at, header->flags);
        at = nbd_put16(at, header->command);
        at = nbd_put64(at, header->cookie);
        at = nbd_put64(at, header->offset);
        return extended ? nbd_put64(at, header->length) : nbd_put32(at, (uint32_t)header->length);
}

bool nbd_get_request(const uint8_t *at, struct nbd_header *header, bool extended)
{
        if (nbd_get32(at) != (extended ? NBD_REQUEST_EXT_MAGIC : NBD_REQUEST_MAGIC))
                return false;
        *header = (struct nbd_header){
                .flags = nbd_get16(at + 4),
                .command = nbd_get16(at + 6),
                .cookie = nbd_get64(at + 8),
                .offset = nbd_get64(at + 16),
                .length = extended ? nbd_get64(at + 24) : nbd_get32(at + 24),
        };
        return true;
}

uint8_t *nbd_put_chunk(uint8_t *at, const struct nbd_chunk *chunk, bool extended)
{
        at = nbd_put32(at, extended ? NBD_CHUNK_EXT_MAGIC : NBD_CHUNK_MAGIC);
        at = nbd_put16(at, chunk->flags);
        at = nbd_put16(at, chunk->type);
        at = nbd_put64(at, chunk->cookie);
        if (!extended)
                return nbd_put32(at, (uint32_t)chunk->length);
        at = nbd_put64(at, chunk->offset);
        return nbd_put64(at, chunk->length);
}

bool nbd_get_chunk(const uint8_t *at, struct nbd_chunk *chunk, bool extended)
{
        if (nbd_get32(at) != (extended ? NBD_CHUNK_EXT_MAGIC : NBD_CHUNK_MAGIC))
                return false;
        *chunk = (struct nbd_chunk){ .flags = nbd_get16(at + 4), .type = nbd_get16(at + 6), .cookie = nbd_get64(at + 8) };
        if (extended) {
                chunk->offset = nbd_get64(at + 16);
                chunk->length = nbd_get64(at + 24);
        } else {
                chunk->length = nbd_get32(at + 16);
        }
        return true;
}
