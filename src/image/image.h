/*
 * Images as a whole: fetched, given away, imported, exported, looked at.
 */
#pragma once

#include "image/layers.h"
#include "image/registry.h"

/* One platform's image out of the store. */
struct image {
        struct descriptor descriptor; /* of the manifest */
        struct manifest manifest;
        json_t *config;
        struct digest *diff_ids; /* one for each layer */
        char name[NAME_TEXT_MAX];
};

/* platform NULL: this machine's; it counts where the name stands for several. */
int image_load(const struct image_store *store, const struct image_name *name, const struct platform *platform, struct image *image,
               struct err *err) _must_check_;
void image_done(struct image *image);

#define _cleanup_image_ _cleanup_(image_done)

struct pull_options {
        const struct registry_config *config;
        const struct platform *platform; /* NULL: this machine's */
        bool insecure;
        const struct registry_progress *progress; /* may be NULL */
};

/* Into the store, under its whole name, which full (of NAME_TEXT_MAX) becomes. A short name is tried at each of the hosts configured. */
int image_pull(struct image_store *store, const struct image_name *name, const struct pull_options *options, char *full, struct err *err) _must_check_;
/* What the store has by `name` to where `to` says. */
int image_push(struct image_store *store, const struct image_name *name, const struct image_name *to, const struct pull_options *options,
               struct err *err) _must_check_;

/* ---- image-file.c: in and out of files ---- */

enum image_format {
        IMAGE_OCI_DIRECTORY,  /* a directory with oci-layout */
        IMAGE_OCI_ARCHIVE,    /* a tar of one */
        IMAGE_DOCKER_ARCHIVE, /* a tar with manifest.json */
        IMAGE_TAR,            /* a tar of a root file system */
        IMAGE_DIRECTORY,      /* a root file system */
};

/* In their order. */
#define IMAGE_FORMAT_NAMES { "oci-dir", "oci-archive", "docker-archive", "tar", "dir", NULL }

/* format -1: what it is, is seen. name empty: the one in the file. full: what it is called in the store then. */
int image_import(struct image_store *store, const char *path, int format, const char *name, char *full, struct err *err) _must_check_;
/* Of the formats OCI_ARCHIVE and DOCKER_ARCHIVE. The file must not be there. */
int image_export(struct image_store *store, const struct image *image, const char *path, enum image_format format, struct err *err) _must_check_;
