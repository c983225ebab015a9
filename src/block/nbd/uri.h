/*
 * Names of NBD disks (the NBD project's doc/uri.md, and QEMU's older form):
 *
 *      nbd://HOST[:PORT]/EXPORT                 nbds:// with TLS
 *      nbd+unix:///EXPORT?socket=PATH           nbds+unix:// with TLS
 *      nbd:unix:PATH[:exportname=EXPORT]
 *      nbd:HOST:PORT[:exportname=EXPORT]
 *
 * Behind a question mark, separated by &: tls-certificates=DIR, tls-psk-file=FILE (nbds://USER@…), tls-verify-peer=0, reconnect=SECONDS.
 */
#pragma once

#include "base/err.h"

#define NBD_RECONNECT_S 30u

struct nbd_uri {
        char *socket;       /* path; NULL: TCP */
        char *host, *port;
        char *export_name;  /* never NULL */
        char *user;         /* or NULL */
        char *certificates, *keys;
        bool tls, anyone;
        unsigned reconnect_s; /* so long requests wait for a server that is gone; 0: not at all */
};

int nbd_uri_parse(const char *text, struct nbd_uri *uri, struct err *err) _must_check_;
void nbd_uri_done(struct nbd_uri *uri);
