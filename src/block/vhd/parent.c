/*
 * The parent of a differencing image ("Parent Locator Entries"): the relative name for Windows first, else the file's name beside the image.
 * Absolute names of another machine's mean nothing here; what is opened passes the policy of block-open.c, and must have the number that
 * the image remembers ("Parent Unique ID").
 */
#include <errno.h>
#include <inttypes.h>

#include "block/vhd/image.h"

#define LOCATORS 8
#define LOCATOR_BYTES 24
#define NAME_BYTES_MAX 4096u
#define RELATIVE 0x57327275u /* "W2ru" */

static size_t put_utf8(char *to, uint32_t c)
{
        if (c < 0x80) {
                to[0] = (char)c;
                return 1;
        }
        if (c < 0x800) {
                to[0] = (char)(0xc0 | c >> 6);
                to[1] = (char)(0x80 | (c & 0x3f));
                return 2;
        }
        if (c < 0x10000) {
                to[0] = (char)(0xe0 | c >> 12);
                to[1] = (char)(0x80 | (c >> 6 & 0x3f));
                to[2] = (char)(0x80 | (c & 0x3f));
                return 3;
        }
        to[0] = (char)(0xf0 | c >> 18);
        to[1] = (char)(0x80 | (c >> 12 & 0x3f));
        to[2] = (char)(0x80 | (c >> 6 & 0x3f));
        to[3] = (char)(0x80 | (c & 0x3f));
        return 4;
}

/* UTF-16 up to its end or a zero; backslashes become slashes. NULL: no memory, or it is no text. The caller's to free. */
static char *text_of(const uint8_t *bytes, size_t size_bytes, bool little)
{
        char *text = malloc(size_bytes * 2 + 1);
        size_t used = 0;

        for (size_t n = 0; text && n + 1 < size_bytes; n += 2) {
                uint32_t c = little ? (uint32_t)(bytes[n] | bytes[n + 1] << 8) : get_be16(bytes + n);

                if (!c)
                        break;
                if (c >= 0xd800 && c < 0xdc00 && n + 3 < size_bytes) {
                        uint32_t low = little ? (uint32_t)(bytes[n + 2] | bytes[n + 3] << 8) : get_be16(bytes + n + 2);

                        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
                        n += 2;
                }
                used += put_utf8(text + used, c == '\\' ? '/' : c);
        }
        if (text)
                text[used] = '\0';
        if (used)
                return text;
        free(text);
        return NULL;
}

/* NULL: there is none. */
static char *relative_name(struct vhd *v)
{
        for (unsigned n = 0; n < LOCATORS; n++) {
                const uint8_t *locator = v->header + VHD_LOCATORS + n * LOCATOR_BYTES;
                uint32_t size_bytes = get_be32(locator + 8);
                uint64_t at = get_be64(locator + 16);
                uint8_t bytes[NAME_BYTES_MAX];

                if (get_be32(locator) != RELATIVE || !size_bytes || size_bytes > sizeof(bytes) || at > v->m.file->info.size_bytes)
                        continue;
                if (block_read(v->m.file, at, bytes, size_bytes) == 0)
                        return text_of(bytes, size_bytes, true);
        }
        return NULL;
}

static const char *last_part(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? slash + 1 : path;
}

int vhd_open_parent(struct vhd *v, const struct block_opening *opening, struct err *err)
{
        _cleanup_free_ char *name = relative_name(v);
        const char *path = name;
        struct block *parent;
        int r;

        if (!name) {
                name = text_of(v->header + VHD_PARENT_NAME, 512, false);
                path = name ? last_part(name) : NULL;
        }
        if (!path || !*path)
                return err_set(err, -EINVAL, "disk %s is a differencing VHD image that does not say what it lies on", opening->path);
        while (strncmp(path, "./", 2) == 0)
                path += 2;
        r = block_open_backing(opening, path, "vhd", &parent, err);
        if (r < 0)
                return r;
        block_adopt(&v->m.block, BLOCK_BACKING, parent);
        v->m.backing = parent;
        if (memcmp(to_vhd(to_mapped(parent))->footer + VHD_UUID, v->header + VHD_PARENT_UUID, 16) != 0)
                return err_set(err, -EINVAL, "disk %s lies on another image than %s, which has its name", opening->path, parent->path);
        return 0;
}
