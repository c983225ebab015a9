/*
 * Inside the registry's client: requests and the right to make them, for registry.c and registry-push.c.
 */
#pragma once

#include <curl/curl.h>

#include "image/registry.h"

#define URL_MAX 4096
#define ERROR_BODY_MAX 2048u

struct registry {
        char host[NAME_HOST_MAX], path[NAME_PATH_MAX];
        struct registry_options options;
        bool insecure, plain_http;
        char *authorization; /* "Authorization: …", or NULL */
        unsigned authorized; /* how often it was asked for */
};

/* What is asked, and what comes back. Reused for tries. */
struct request {
        const char *method;  /* NULL: GET */
        const char *url;     /* whole, or from "/v2/" on */
        const char *accept;  /* NULL: anything */
        const char *media_type; /* of the body */
        const void *body;    /* NULL: body_fd, or none */
        uint64_t body_bytes;
        int body_fd;         /* read from body_at on, with pread(); -1: none */
        uint64_t body_at, from_byte; /* from_byte: of what is asked for */
        /* Takes what comes when the status is 200 or 206; an error, which is set, ends the request. */
        int (*take)(void *ctx, const void *bytes, size_t size_bytes, struct err *err);
        void (*again)(void *ctx); /* before each try; may be NULL */
        void *ctx;

        CURL *easy;
        struct curl_slist *headers;
        struct registry *registry;
        struct err err;      /* of take() */
        long status;         /* HTTP's; 0: none came */
        char error_body[ERROR_BODY_MAX];
        size_t error_length;
        char challenge[1024], location[URL_MAX], media_type_got[128], content_range[128];
        unsigned retry_after_s;
};

#define REQUEST_INIT ((struct request){ .body_fd = -1 })
void request_done(struct request *request);
#define _cleanup_request_ _cleanup_(request_done)

/* Makes request->easy ready for a (further) try. */
int request_prepare(struct registry *registry, struct request *request, struct err *err) _must_check_;
/* After it ended with `code`: 0, an error, or one of these. */
enum { REQUEST_AGAIN = 1, REQUEST_LATER = 2 };
int request_judge(struct request *request, CURLcode code, struct err *err) _must_check_;
/* All of it, with its tries. The statuses 200 to 299 are good. */
int request_perform(struct registry *registry, struct request *request, struct err *err) _must_check_;
/* How long to wait before try n (from 1), in milliseconds. */
unsigned request_pause_ms(const struct request *request, unsigned n);

/* Collects a document: take() with a struct bytes as its ctx. */
struct bytes {
        char *text;
        size_t length, room, max;
};

int bytes_take(void *ctx, const void *bytes, size_t size_bytes, struct err *err);
/* again(): what came before a cut is no beginning. */
void bytes_forget(void *ctx);
