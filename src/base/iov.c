#include "base/iov.h"

size_t iov_total(const struct iovec *iov, unsigned count)
{
        size_t total = 0;

        for (unsigned i = 0; i < count; i++)
                total += iov[i].iov_len;
        return total;
}

/* The next piece of what is left of a range: from piece *i on, *offset bytes into it; false: there is none. */
static bool next_piece(const struct iovec *iov, unsigned count, unsigned *i, size_t *offset, size_t left, struct iovec *piece)
{
        while (*i < count && *offset >= iov[*i].iov_len)
                *offset -= iov[(*i)++].iov_len;
        if (*i == count || !left)
                return false;
        *piece = (struct iovec){ (uint8_t *)iov[*i].iov_base + *offset, MIN(iov[*i].iov_len - *offset, left) };
        *offset += piece->iov_len;
        return true;
}

size_t iov_to_buf(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t size_bytes)
{
        struct iovec piece;
        size_t done = 0;

        for (unsigned i = 0; next_piece(iov, count, &i, &offset, size_bytes - done, &piece); done += piece.iov_len)
                memcpy((uint8_t *)to + done, piece.iov_base, piece.iov_len);
        return done;
}

size_t buf_to_iov(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t size_bytes)
{
        struct iovec piece;
        size_t done = 0;

        for (unsigned i = 0; next_piece(iov, count, &i, &offset, size_bytes - done, &piece); done += piece.iov_len)
                memcpy(piece.iov_base, (const uint8_t *)from + done, piece.iov_len);
        return done;
}

size_t iov_zero(const struct iovec *iov, unsigned count, size_t offset, size_t size_bytes)
{
        struct iovec piece;
        size_t done = 0;

        for (unsigned i = 0; next_piece(iov, count, &i, &offset, size_bytes - done, &piece); done += piece.iov_len)
                memset(piece.iov_base, 0, piece.iov_len);
        return done;
}

unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t size_bytes, struct iovec *out)
{
        unsigned used = 0;

        for (unsigned i = 0; next_piece(iov, count, &i, &offset, size_bytes, &out[used]); used++)
                size_bytes -= out[used].iov_len;
        return used;
}

unsigned iov_append(struct iovec *out, unsigned count, struct iovec piece, size_t *skip)
{
        size_t gone = MIN(*skip, piece.iov_len);

        *skip -= gone;
        if (gone == piece.iov_len)
                return count;
        out[count] = (struct iovec){ (uint8_t *)piece.iov_base + gone, piece.iov_len - gone };
        return count + 1;
}
