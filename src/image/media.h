/*
 * The documents of an image: descriptors, indexes, manifests, configurations, of OCI and of Docker's second schema, which differ in
 * the names of their media types only.
 *
 * All of it comes from outside: sizes are bounded, digests and numbers checked, and what is not understood is refused by its name.
 *
 * Source: image-spec descriptor.md, image-index.md, manifest.md, config.md, media-types.md.
 */
#pragma once

#include "base/json.h"
#include "image/digest.h"

#define MEDIA_INDEX "application/vnd.oci.image.index.v1+json"
#define MEDIA_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define MEDIA_CONFIG "application/vnd.oci.image.config.v1+json"
#define MEDIA_LAYER "application/vnd.oci.image.layer.v1.tar"
#define MEDIA_LAYER_GZIP "application/vnd.oci.image.layer.v1.tar+gzip"
#define MEDIA_LAYER_ZSTD "application/vnd.oci.image.layer.v1.tar+zstd"
#define MEDIA_DOCKER_INDEX "application/vnd.docker.distribution.manifest.list.v2+json"
#define MEDIA_DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"

/* Manifests, indexes and configurations; a registry may refuse more. */
#define MEDIA_DOCUMENT_MAX ((size_t)4 << 20)
#define MEDIA_LAYERS_MAX 1000u
/* "MUST NOT exceed" is nowhere said; what a disk can hold. */
#define MEDIA_BLOB_MAX (UINT64_C(1) << 42)

struct platform {
        char os[32], architecture[32], variant[32]; /* as Go names them: linux, amd64, v2 */
};

struct descriptor {
        char media_type[128];
        struct digest digest;
        uint64_t size_bytes;
        struct platform platform; /* os empty: not said */
};

enum layer_compression { LAYER_PLAIN, LAYER_GZIP, LAYER_ZSTD };

/* -EBADMSG. */
int descriptor_parse(const json_t *json, struct descriptor *descriptor, struct err *err) _must_check_;
/* NULL: no memory. The caller's. */
json_t *descriptor_write(const struct descriptor *descriptor);

bool media_is_index(const char *media_type);
bool media_is_manifest(const char *media_type);

struct manifest {
        struct descriptor config;
        struct descriptor *layers; /* the lowest first */
        size_t layer_count;
};

int manifest_read(const json_t *json, struct manifest *manifest, struct err *err) _must_check_;
void manifest_done(struct manifest *manifest);

#define _cleanup_manifest_ _cleanup_(manifest_done)

/* What a layer's media type says; -ENOTSUP: it is none that is known. */
int layer_compression_of(const char *media_type, struct err *err) _must_check_;

/* "linux/arm64/v8"; of this machine: platform_host(). */
int platform_parse(const char *text, struct platform *platform, struct err *err) _must_check_;
void platform_host(struct platform *platform);
const char *platform_format(const struct platform *platform, char text[100]);

/* The manifest of an index for a platform: the one that fits best. -ENOENT tells which there are. */
int index_choose(const json_t *json, const struct platform *platform, struct descriptor *descriptor, struct err *err) _must_check_;

/* The digests of the layers' plain tars, as a configuration has them, into diff_ids[count]; -EBADMSG: they are not `count`. */
int config_diff_ids(const json_t *config, struct digest *diff_ids, size_t count, struct err *err) _must_check_;
