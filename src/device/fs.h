/*
 * A file server: the FUSE protocol (linux/fuse.h, 7.31 and later) over one directory of the host. What virtio-fs.c carries.
 *
 * The client is hostile. It names files by node ids that it was given and by single names, never by paths; each name is opened
 * beneath a descriptor of its directory with openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS), so that no
 * "..", link, rename or race leads out. Nothing needs /proc or a path after fs_server_new(): it works in an empty root.
 *
 * Of what a client could leave behind on the host for others this is refused or taken away: set-user-id and set-group-id bits of
 * files, device nodes, extended attributes other than user.*. Symbolic links are stored as they are; the host's programs that
 * follow one are on their own.
 *
 * Ownership: where the process may give files away (root) they belong to the user of the guest who made them. Where it may
 * not, all belong to the process's user, whom the guest sees as its root; other users of the host are nobody (65534).
 */
#pragma once

#include <sys/uio.h>

#include "base/record.h"

struct fs_server;

/*
 * Opens dir. -ENOENT, -ENOTDIR, -EACCES name it. Of the descriptors that the process may have one server takes at most five
 * eighths; a client that opens more files gets ENFILE.
 */
int fs_server_new(const char *dir, bool readonly, struct fs_server **fs, struct err *err) _must_check_;
/* The server is one of so many in the process: they divide the descriptors. Before the first request. */
void fs_server_divide(struct fs_server *fs, unsigned servers);
void fs_server_free(struct fs_server *fs);

/* The directory's descriptor (O_PATH), the server's own. A sandbox may put another one of the same directory in its place. */
int fs_server_root(const struct fs_server *fs);

/*
 * Serves one request: out is what the client sent, in where the answer goes; both may be memory that the client changes. The
 * bytes of the answer, 0 when the request has none. Blocks as the host's file system does. Thread-safe.
 */
uint32_t fs_server_handle(struct fs_server *fs, const struct iovec *out, unsigned out_count, const struct iovec *in,
                          unsigned in_count);

/* Forgets the client: all its nodes and open files. No request may be under way in these three. */
void fs_server_reset(struct fs_server *fs);
void fs_server_save(struct fs_server *fs, struct writer *out);
/* A file that is gone meanwhile is stale for the client (ESTALE); that is no error here. */
int fs_server_load(struct fs_server *fs, struct cursor *in, struct err *err) _must_check_;
