/*
 * TLS for NBD, by GnuTLS: X.509 certificates, or keys that both sides know (PSK).
 *
 * Files of a directory are named as QEMU and libnbd have them: ca-cert.pem, ca-crl.pem (may be missing), server-cert.pem and server-key.pem, or
 * client-cert.pem and client-key.pem (may be missing). A file of keys has lines USER:KEY, the key in hexadecimal, as psktool makes it.
 *
 * The library is loaded when TLS is asked for and not with the program: it takes milliseconds and megabytes, and few disks need it.
 */
#pragma once

#include <sys/uio.h>

#include "base/err.h"

struct nbd_tls;
struct nbd_tls_session;

struct nbd_tls_files {
        bool server;
        const char *directory;   /* of certificates; or NULL */
        const char *keys;        /* file of keys; or NULL */
        const char *user;        /* a client's, whose key it is */
        bool anyone;             /* a server that lets clients in without a certificate; a client that takes any of the server's */
};

int nbd_tls_new(const struct nbd_tls_files *files, struct nbd_tls **tls, struct err *err) _must_check_;
/* No session is left. NULL is fine. */
void nbd_tls_free(struct nbd_tls *tls);

/* Descriptors that do not block; borrowed. */
int nbd_tls_session_new(struct nbd_tls *tls, int in, int out, const char *hostname, struct nbd_tls_session **session, struct err *err) _must_check_;
/* bye: the other side is told, if that goes at once. NULL is fine. */
void nbd_tls_session_free(struct nbd_tls_session *session, bool bye);

/* All of these: -EAGAIN when they would wait, for what nbd_tls_wants_write() says. */
int nbd_tls_handshake(struct nbd_tls_session *session, struct err *err) _must_check_;
/* 0: the other side has said bye. */
ssize_t nbd_tls_recv(struct nbd_tls_session *session, void *to, size_t size_bytes) _must_check_;
/* How many bytes were taken. They may have to be pushed on by another call, with or without bytes: nbd_tls_unsent(). */
ssize_t nbd_tls_sendv(struct nbd_tls_session *session, const struct iovec *iov, unsigned count) _must_check_;
bool nbd_tls_unsent(const struct nbd_tls_session *session);
bool nbd_tls_wants_write(const struct nbd_tls_session *session);
