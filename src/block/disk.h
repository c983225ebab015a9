/*
 * A disk as its users have it: a node that stays, in front of a root that jobs may change while requests are in flight.
 *
 *      virtio-blk, NBD, FUSE ─▶ block_disk ─▶ root: qcow2, …      a job puts a filter between, or another image in the root's place
 *                                       └───▶ attached: what a job works on besides; it is driven (kicked, waited for) with the disk
 *
 *      block_disk_hold(disk);            requests that come wait; those that were passed on have ended
 *      block_disk_swap(disk, root);
 *      block_disk_let_go(disk);          and go on, at the new root
 *
 * While it is held only block requests of the disk's own tree and of what is attached may be waited for: whoever drains the disk then waits for
 * these, and nothing else would end.
 *
 * Named bitmaps are the root's. The size of a disk with a job is not changed, but by a job that does that. Requests that begin within the disk as it
 * was and do not end within it any more fail: -EIO.
 */
#pragma once

#include "block/block.h"

struct block_job;

/* Takes root over when it was made. */
int block_disk_new(struct block *root, struct block **disk, struct err *err) _must_check_;
/* NULL: it is none. */
struct block *block_disk_root(struct block *disk);
/* Its root, or itself when it is no such node. */
struct block *block_disk_image(struct block *disk);

/* Waits as block_read() does. Not twice. */
void block_disk_hold(struct block *disk);
bool block_disk_held(const struct block *disk);
/* Held. The old root is the caller's; the new one has the disk's size. */
void block_disk_swap(struct block *disk, struct block *root);
void block_disk_let_go(struct block *disk);

/* Held. Waits as block_read() does. */
int block_disk_resize(struct block *disk, uint64_t size_bytes, struct err *err) _must_check_;

/* Borrowed; NULL: nothing any more. */
void block_disk_attach(struct block *disk, struct block *other);

/* What its image itself says of a place (block_status()); of another node the same. */
int block_disk_image_status(struct block *disk, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent) _must_check_;

/* The job that runs on it; of job.c. */
struct block_job **block_disk_job(struct block *disk);
