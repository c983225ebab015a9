/*
 * For tests of image formats: random requests, several at once, on a disk with a copy of it in memory, and judges of what comes out.
 *
 *      model_begin(m, "qcow2", false)     a loop, and a folder of its own
 *      model_room(m, bytes)               the copy, all zeroes
 *      m->disk = …                        whatever image the test opens
 *      random_requests(m, 300)            on both
 *      compare_all(m)
 *      model_close(m, true)               … and again
 *      model_end(m)
 *
 * What is not as it should be fails the test. The same seed gives the same requests.
 */
#pragma once

#include "block/block.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1) << 20)

struct model_disk {
        uv_loop_t loop;
        char dir[64], model_path[96]; /* model_path: a file for the copy, in dir */
        struct block *disk;           /* NULL: none is open */
        uint8_t *model, *seen;        /* the copy; room for as much that was read */
        uint64_t size_bytes, seed;    /* of the disk and the copy; not 0 */
        unsigned flush_one_in, durable_one_in; /* so many requests */
};

/* in_memory: the folder is where flushes cost nothing, if there is such a place. */
void model_begin(struct model_disk *m, const char *name, bool in_memory);
/* Closes, and removes the folder with all files in it. */
void model_end(struct model_disk *m);
void model_room(struct model_disk *m, uint64_t size_bytes);
void model_run_loop(struct model_disk *m);
void model_close(struct model_disk *m, bool finish);

uint32_t random_of(struct model_disk *m, uint32_t below);
/* Mostly of whole sectors. */
void random_range(struct model_disk *m, uint64_t *from, uint64_t *size_bytes);
/* All have ended at the end. Those in flight never overlap. */
void random_requests(struct model_disk *m, unsigned count);
/* A discard leaves whatever it leaves: the copy learns it. */
void random_discards(struct model_disk *m, unsigned count);
/* The disk reads as the copy. */
void compare_all(struct model_disk *m);
/* Our own check of the open disk, if its format has one: no errors, and no leaks unless they are allowed. */
void check_disk(struct model_disk *m, bool leaks, enum block_mend mend);

/* ---- other programs ---- */

void dump(const char *path, const uint8_t *bytes, uint64_t size_bytes);
/* By a shell: its exit status. */
int command(const char *fmt, ...) _printf_(1, 2);
bool have_qemu_img(void);
/* The copy goes into m->model_path, and qemu-img says that the image of that format (its own name for it) reads the same. */
void compare_by_qemu(struct model_disk *m, const char *theirs, const char *path);
