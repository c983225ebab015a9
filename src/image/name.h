/*
 * Names of images: [HOST[:PORT]/]PATH[:TAG][@DIGEST].
 *
 * A first part with a dot or a colon in it, or "localhost", is a host. Without one the name is short: it is looked for among the images
 * that are here, and a pull takes the host from the configuration (registry-config.h); there is none that is built in.
 *
 * Source: distribution-spec "Pulling manifests" (<name>, <reference>); the grammar is that of the registries' own clients.
 */
#pragma once

#include "image/digest.h"

#define NAME_HOST_MAX 256
#define NAME_PATH_MAX 256
#define NAME_TAG_MAX 129
#define NAME_TEXT_MAX (NAME_HOST_MAX + NAME_PATH_MAX + NAME_TAG_MAX + DIGEST_TEXT_MAX + 4)

struct image_name {
        char host[NAME_HOST_MAX]; /* empty: a short name */
        char path[NAME_PATH_MAX];
        char tag[NAME_TAG_MAX];   /* "latest" where neither a tag nor a digest is given */
        struct digest digest;     /* empty: none */
};

int image_name_parse(const char *text, struct image_name *name, struct err *err) _must_check_;
/* HOST/PATH:TAG; with a digest and no tag HOST/PATH@DIGEST. Returns text. */
const char *image_name_format(const struct image_name *name, char text[NAME_TEXT_MAX]);
