/*
 * The file server's state: which files the client knows, by directory and name, and which it has open.
 *
 *   initialized (1) · minor (4) · node count (4) · nodes · handle count (4) · handles
 *   node:   id (8) · lookups (8) · parent's id, 0 when not known (8) · name length (1) · name
 *   handle: id (8) · node's id (8) · flags (4)
 *
 * A parent comes before its children. What is not there any more when it is loaded is stale for the client.
 */
#include "device/fs-internal.h"

#include <errno.h>

static void save_node(struct writer *out, const struct fs_node *node)
{
        size_t length = node->parent ? strlen(node->name) : 0;

        writer_le64(out, fs_node_id(node));
        writer_le64(out, node->lookups);
        writer_le64(out, node->parent ? fs_node_id(node->parent) : 0);
        writer_u8(out, (uint8_t)length);
        writer_put(out, node->name, length);
}

/* The node after those above it that are not saved yet. */
static void save_path(struct fs_server *fs, struct writer *out, struct fs_node *node)
{
        while (!node->saved) {
                struct fs_node *top = node;

                while (top->parent && !top->parent->saved)
                        top = top->parent;
                save_node(out, top);
                top->saved = true;
        }
}

void fs_server_save(struct fs_server *fs, struct writer *out)
{
        writer_u8(out, fs->initialized);
        writer_le32(out, fs->minor);
        writer_le32(out, fs->nodes - 1);
        for (uint32_t i = 0; i < fs->slots; i++) {
                if (fs->slot[i].node)
                        fs->slot[i].node->saved = i == FUSE_ROOT_ID;
        }
        for (uint32_t i = 2; i < fs->slots; i++) {
                if (fs->slot[i].node)
                        save_path(fs, out, fs->slot[i].node);
        }
        writer_le32(out, fs->handles_open);
        for (uint32_t i = 0; i < fs->handles; i++) {
                struct fs_handle *handle = fs->handle[i].handle;

                if (handle) {
                        writer_le64(out, (uint64_t)handle->generation << 32 | handle->index);
                        writer_le64(out, fs_node_id(handle->node));
                        writer_le32(out, handle->flags);
                }
        }
}

static int load_node(struct fs_server *fs, struct cursor *in)
{
        uint64_t id = cursor_le64(in);
        uint64_t lookups = cursor_le64(in);
        uint64_t parent_id = cursor_le64(in);
        size_t length = cursor_u8(in);
        const void *bytes = cursor_take(in, length);
        struct fs_node *parent = parent_id ? fs_node_at(fs, parent_id) : NULL;
        char name[NAME_MAX + 1] = "";

        if (!bytes || (parent_id && (!parent || parent->type != S_IFDIR) && !(parent && parent->stale)))
                return -EBADMSG;
        memcpy(name, bytes, length);
        if (parent &&
            (!length || strlen(name) != length || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0))
                return -EBADMSG;
        return fs_node_load(fs, id, lookups, parent, name);
}

/* A file that cannot be opened any more answers EBADF. */
static int load_handle(struct fs_server *fs, struct cursor *in)
{
        uint64_t id = cursor_le64(in);
        uint64_t node_id = cursor_le64(in);
        uint32_t flags = cursor_le32(in);
        struct fs_node *node;
        int fd, r = 0;

        if (in->bad)
                return -EBADMSG;
        if (fs_pin(fs, node_id, &node) < 0)
                return 0;
        if (fs->readonly)
                flags &= ~(uint32_t)O_ACCMODE;
        fd = fs_node_open(fs, node, (int)(flags & (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC)));
        if (fd >= 0)
                r = fs_handle_load(fs, id, node, fd, flags);
        fs_unpin(fs, node);
        return r;
}

int fs_server_load(struct fs_server *fs, struct cursor *in, struct err *err)
{
        uint32_t count;
        int r = 0;

        fs_server_reset(fs);
        fs->initialized = cursor_u8(in);
        fs->minor = cursor_le32(in);
        count = cursor_le32(in);
        while (r == 0 && count-- && !in->bad)
                r = load_node(fs, in);
        count = cursor_le32(in);
        while (r == 0 && count-- && !in->bad)
                r = load_handle(fs, in);
        fs_nodes_loaded(fs);
        if (r == 0 && in->bad)
                r = -EBADMSG;
        if (r < 0) {
                fs_server_reset(fs);
                return err_set(err, r, "the record of a shared directory is damaged");
        }
        return 0;
}
