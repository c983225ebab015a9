/*
 * Names of disks that web servers have:
 *
 *      http://HOST[:PORT]/PATH[?QUERY]      https:// over TLS
 *
 * Behind a # (which servers never see), separated by &: ca=FILE (authorities, in place of the system's), login=SECRET (where USER:PASSWORD is:
 * file:PATH, -, keyring:NAME), retry=SECONDS (so long reads wait for a server that is gone).
 */
#pragma once

#include "base/err.h"

#define HTTP_RETRY_S 30u

struct http_url {
        char *url;   /* what servers see */
        char *ca, *login;
        bool tls;
        unsigned retry_s; /* 0: nothing is asked twice */
};

int http_url_parse(const char *text, struct http_url *url, struct err *err) _must_check_;
void http_url_done(struct http_url *url);
