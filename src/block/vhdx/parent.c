/*
 * The parent of a differencing image (§2.6.2.6): its relative path, else the last part of the absolute one, beside the image. What is opened
 * passes the policy of block-open.c, and must be as it was when the image was made from it ("parent_linkage": its DataWriteGuid).
 */
#include <errno.h>
#include <stdio.h>

#include "block/vhdx/image.h"

#define LOCATOR_BYTES_MAX 65536u

/* UTF-16 as what of it is ASCII; others are refused. The caller's to free. */
static char *text_of(const uint8_t *bytes, size_t size_bytes)
{
        char *text = malloc(size_bytes / 2 + 1);
        size_t n;

        for (n = 0; text && n < size_bytes / 2; n++) {
                if (bytes[2 * n + 1] || !bytes[2 * n] || bytes[2 * n] > 126) {
                        free(text);
                        return NULL;
                }
                text[n] = bytes[2 * n] == '\\' ? '/' : (char)bytes[2 * n];
        }
        if (text)
                text[n] = '\0';
        return text;
}

/* The value of a key; NULL: there is none. */
static char *value_of(const uint8_t *locator, uint32_t size_bytes, const char *key)
{
        uint16_t count;

        memcpy(&count, locator + 18, 2);
        for (unsigned n = 0; n < count && 20 + (n + 1) * 12 <= size_bytes; n++) {
                const uint8_t *entry = locator + 20 + n * 12;
                uint32_t key_at = get_le32(entry), value_at = get_le32(entry + 4), lengths = get_le32(entry + 8);
                uint32_t key_bytes = lengths & 0xffff, value_bytes = lengths >> 16;
                _cleanup_free_ char *name = NULL;

                if (key_at > size_bytes || key_bytes > size_bytes - key_at || value_at > size_bytes || value_bytes > size_bytes - value_at)
                        return NULL;
                name = text_of(locator + key_at, key_bytes);
                if (name && strcmp(name, key) == 0)
                        return text_of(locator + value_at, value_bytes);
        }
        return NULL;
}

static bool links_to(const char *linkage, const uint8_t guid[16])
{
        char text[37];

        mapped_uuid_text(guid, true, text);
        return linkage && strlen(linkage) == 38 && *linkage == '{' && strncasecmp(linkage + 1, text, 36) == 0;
}

int vhdx_open_parent(struct vhdx *v, const struct block_opening *opening, struct err *err)
{
        _cleanup_free_ uint8_t *locator = NULL;
        _cleanup_free_ char *path = NULL, *linkage = NULL, *linkage2 = NULL;
        const char *name, *slash;
        struct block *parent;
        int r;

        if (!v->locator_at || v->locator_bytes < 20 || v->locator_bytes > LOCATOR_BYTES_MAX)
                return err_set(err, -EINVAL, "disk %s is a differencing VHDX image that does not say what it lies on", opening->path);
        locator = malloc(v->locator_bytes);
        r = locator ? vhdx_read(v, v->locator_at, locator, v->locator_bytes) : -ENOMEM;
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", opening->path);
        linkage = value_of(locator, v->locator_bytes, "parent_linkage");
        linkage2 = value_of(locator, v->locator_bytes, "parent_linkage2");
        path = value_of(locator, v->locator_bytes, "relative_path");
        name = path;
        if (!path) {
                path = value_of(locator, v->locator_bytes, "absolute_win32_path");
                slash = path ? strrchr(path, '/') : NULL;
                name = slash ? slash + 1 : path;
        }
        if (!name || !*name)
                return err_set(err, -EINVAL, "disk %s lies on an image whose name cannot be used here", opening->path);
        while (strncmp(name, "./", 2) == 0)
                name += 2;
        r = block_open_backing(opening, name, "vhdx", &parent, err);
        if (r < 0)
                return r;
        block_adopt(&v->m.block, BLOCK_BACKING, parent);
        v->m.backing = parent;
        if (!links_to(linkage, to_vhdx(to_mapped(parent))->data_guid) && !links_to(linkage2, to_vhdx(to_mapped(parent))->data_guid))
                return err_set(err, -EINVAL, "disk %s lies on %s as it was before somebody wrote to it", opening->path, parent->path);
        return 0;
}
