/*
 * See tls.h. Sockets that do not block: GnuTLS says GNUTLS_E_AGAIN, and which way it wants to go on.
 *
 * gnutls_record_send() keeps what it could not send, so its bytes count as taken; it is pushed on by a call without bytes. Small pieces are put
 * together first, since each call makes a record.
 *
 * Source: the GnuTLS manual, "Asynchronous operation", "Verifying a certificate"; the protocol, "TLS support".
 */
#include "block/nbd/tls.h"

#include <dlfcn.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>

#define LIBRARY "libgnutls.so.30"
#define RECORD_BYTES 16384u
/* Those of the default, with forward secrecy first. */
#define PRIORITIES_X509 "NORMAL"
#define PRIORITIES_PSK "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK"

/* What is used of the library. */
#define FUNCTIONS(F)                                  \
        F(gnutls_bye)                                 \
        F(gnutls_certificate_allocate_credentials)    \
        F(gnutls_certificate_free_credentials)        \
        F(gnutls_certificate_server_set_request)      \
        F(gnutls_certificate_set_x509_crl_file)       \
        F(gnutls_certificate_set_x509_key_file)       \
        F(gnutls_certificate_set_x509_trust_file)     \
        F(gnutls_certificate_verification_status_print) \
        F(gnutls_credentials_set)                     \
        F(gnutls_deinit)                              \
        F(gnutls_error_is_fatal)                      \
        F(gnutls_handshake)                           \
        F(gnutls_init)                                \
        F(gnutls_priority_set_direct)                 \
        F(gnutls_psk_allocate_client_credentials)     \
        F(gnutls_psk_allocate_server_credentials)     \
        F(gnutls_psk_free_client_credentials)         \
        F(gnutls_psk_free_server_credentials)         \
        F(gnutls_psk_set_client_credentials)          \
        F(gnutls_psk_set_server_credentials_file)     \
        F(gnutls_record_get_direction)                \
        F(gnutls_record_recv)                         \
        F(gnutls_record_send)                         \
        F(gnutls_server_name_set)                     \
        F(gnutls_session_get_verify_cert_status)      \
        F(gnutls_session_set_verify_cert)             \
        F(gnutls_strerror)                            \
        F(gnutls_transport_set_int2)

struct library {
#define MEMBER(name) __typeof__(name) *name;
        FUNCTIONS(MEMBER)
#undef MEMBER
};

struct nbd_tls {
        struct library lib;
        bool server, anyone;
        gnutls_certificate_credentials_t x509;
        gnutls_psk_server_credentials_t psk_server;
        gnutls_psk_client_credentials_t psk_client;
};

struct nbd_tls_session {
        struct nbd_tls *tls;
        gnutls_session_t session;
        bool unsent;
        uint8_t gathered[RECORD_BYTES];
};

static int load(struct library *lib, struct err *err)
{
        /* It stays: unloading it buys nothing, and it keeps state for the threads. */
        void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);

        if (!handle)
                return err_set(err, -ENOPKG, "TLS needs %s (Debian: libgnutls30): %s", LIBRARY, dlerror());
#define LOAD(name)                                                                          \
        *(void **)&lib->name = dlsym(handle, #name);                                         \
        if (!lib->name)                                                                     \
                return err_set(err, -ENOPKG, "%s has no %s", LIBRARY, #name);
        FUNCTIONS(LOAD)
#undef LOAD
        return 0;
}

/* ---- credentials ---- */

static int bad_file(const struct nbd_tls *tls, int r, const char *what, const char *path, struct err *err)
{
        if (r == GNUTLS_E_FILE_ERROR)
                return err_set(err, access(path, R_OK) < 0 ? -errno : -EINVAL, "cannot read %s %s", what, path);
        return err_set(err, -EINVAL, "%s %s: %s", what, path, tls->lib.gnutls_strerror(r));
}

static int own_certificate(struct nbd_tls *tls, const struct nbd_tls_files *files, struct err *err)
{
        _cleanup_free_ char *certificate = NULL, *key = NULL;
        const char *who = files->server ? "server" : "client";
        int r;

        if (asprintf(&certificate, "%s/%s-cert.pem", files->directory, who) < 0 || asprintf(&key, "%s/%s-key.pem", files->directory, who) < 0)
                return err_nomem(err);
        if (!files->server && access(certificate, F_OK) < 0)
                return 0;
        r = tls->lib.gnutls_certificate_set_x509_key_file(tls->x509, certificate, key, GNUTLS_X509_FMT_PEM);
        if (r == GNUTLS_E_FILE_ERROR && access(certificate, R_OK) == 0)
                return bad_file(tls, r, "key", key, err);
        return r < 0 ? bad_file(tls, r, "certificate", certificate, err) : 0;
}

static int certificates(struct nbd_tls *tls, const struct nbd_tls_files *files, struct err *err)
{
        _cleanup_free_ char *authority = NULL, *revoked = NULL;
        int r;

        if (asprintf(&authority, "%s/ca-cert.pem", files->directory) < 0 || asprintf(&revoked, "%s/ca-crl.pem", files->directory) < 0)
                return err_nomem(err);
        if (tls->lib.gnutls_certificate_allocate_credentials(&tls->x509) < 0)
                return err_nomem(err);
        r = tls->lib.gnutls_certificate_set_x509_trust_file(tls->x509, authority, GNUTLS_X509_FMT_PEM);
        if (r < 0)
                return bad_file(tls, r, "certificate", authority, err);
        if (r == 0)
                return err_set(err, -EINVAL, "certificate %s: there is none in it", authority);
        if (access(revoked, F_OK) == 0) {
                r = tls->lib.gnutls_certificate_set_x509_crl_file(tls->x509, revoked, GNUTLS_X509_FMT_PEM);
                if (r < 0)
                        return bad_file(tls, r, "list of revoked certificates", revoked, err);
        }
        return own_certificate(tls, files, err);
}

/* The line of that user in a file of keys; into key. */
static int find_key(const char *path, const char *user, char *key, size_t size_bytes, struct err *err)
{
        FILE *file = fopen(path, "re");
        size_t length = strlen(user);
        char line[1024];
        int r = -ENOKEY;

        if (!file)
                return err_errno(err, -errno, "cannot read keys %s", path);
        while (r == -ENOKEY && fgets(line, sizeof(line), file)) {
                line[strcspn(line, "\r\n")] = '\0';
                if (strncmp(line, user, length) || line[length] != ':')
                        continue;
                r = (size_t)snprintf(key, size_bytes, "%s", line + length + 1) < size_bytes ? 0 : -EINVAL;
        }
        explicit_bzero(line, sizeof(line));
        fclose(file);
        if (r == -ENOKEY)
                return err_set(err, r, "keys %s: there is none of user '%s'", path, user);
        return r < 0 ? err_set(err, r, "keys %s: that of user '%s' is too long", path, user) : 0;
}

static int client_key(struct nbd_tls *tls, const struct nbd_tls_files *files, struct err *err)
{
        char key[513];
        gnutls_datum_t datum = { (unsigned char *)key, 0 };
        int r = find_key(files->keys, files->user, key, sizeof(key), err);

        if (r < 0)
                return r;
        datum.size = (unsigned)strlen(key);
        if (tls->lib.gnutls_psk_allocate_client_credentials(&tls->psk_client) < 0)
                return err_nomem(err);
        r = tls->lib.gnutls_psk_set_client_credentials(tls->psk_client, files->user, &datum, GNUTLS_PSK_KEY_HEX);
        explicit_bzero(key, sizeof(key));
        return r < 0 ? err_set(err, -EINVAL, "keys %s: that of user '%s': %s", files->keys, files->user, tls->lib.gnutls_strerror(r)) : 0;
}

static int keys(struct nbd_tls *tls, const struct nbd_tls_files *files, struct err *err)
{
        int r;

        if (!files->server)
                return client_key(tls, files, err);
        if (access(files->keys, R_OK) < 0)
                return err_errno(err, -errno, "cannot read keys %s", files->keys);
        if (tls->lib.gnutls_psk_allocate_server_credentials(&tls->psk_server) < 0)
                return err_nomem(err);
        r = tls->lib.gnutls_psk_set_server_credentials_file(tls->psk_server, files->keys);
        return r < 0 ? bad_file(tls, r, "keys", files->keys, err) : 0;
}

void nbd_tls_free(struct nbd_tls *tls)
{
        if (!tls)
                return;
        if (tls->x509)
                tls->lib.gnutls_certificate_free_credentials(tls->x509);
        if (tls->psk_server)
                tls->lib.gnutls_psk_free_server_credentials(tls->psk_server);
        if (tls->psk_client)
                tls->lib.gnutls_psk_free_client_credentials(tls->psk_client);
        free(tls);
}

int nbd_tls_new(const struct nbd_tls_files *files, struct nbd_tls **out, struct err *err)
{
        struct nbd_tls *tls = calloc(1, sizeof(*tls));
        int r;

        if (!tls)
                return err_nomem(err);
        tls->server = files->server;
        tls->anyone = files->anyone;
        r = load(&tls->lib, err);
        if (r < 0) {
                free(tls);
                return r;
        }
        r = files->keys ? keys(tls, files, err) : certificates(tls, files, err);
        if (r < 0) {
                nbd_tls_free(tls);
                return r;
        }
        *out = tls;
        return 0;
}

/* ---- sessions ---- */

static int set_up(struct nbd_tls_session *session, const char *hostname)
{
        struct nbd_tls *tls = session->tls;
        const struct library *lib = &tls->lib;
        int r = lib->gnutls_priority_set_direct(session->session, tls->x509 ? PRIORITIES_X509 : PRIORITIES_PSK, NULL);

        if (r < 0)
                return r;
        if (!tls->x509)
                return lib->gnutls_credentials_set(session->session, GNUTLS_CRD_PSK, tls->server ? (void *)tls->psk_server : (void *)tls->psk_client);
        r = lib->gnutls_credentials_set(session->session, GNUTLS_CRD_CERTIFICATE, tls->x509);
        if (r < 0)
                return r;
        if (tls->server)
                lib->gnutls_certificate_server_set_request(session->session, tls->anyone ? GNUTLS_CERT_IGNORE : GNUTLS_CERT_REQUIRE);
        else if (hostname)
                r = lib->gnutls_server_name_set(session->session, GNUTLS_NAME_DNS, hostname, strlen(hostname));
        if (!tls->anyone)
                lib->gnutls_session_set_verify_cert(session->session, hostname, 0);
        return r;
}

int nbd_tls_session_new(struct nbd_tls *tls, int in, int out, const char *hostname, struct nbd_tls_session **out_session, struct err *err)
{
        struct nbd_tls_session *session = malloc(sizeof(*session));
        int r;

        if (!session)
                return err_nomem(err);
        session->tls = tls;
        session->unsent = false;
        r = tls->lib.gnutls_init(&session->session, (tls->server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
        if (r < 0) {
                free(session);
                return err_set(err, -ENOMEM, "cannot set up TLS: %s", tls->lib.gnutls_strerror(r));
        }
        r = set_up(session, hostname);
        if (r < 0) {
                nbd_tls_session_free(session, false);
                return err_set(err, -EINVAL, "cannot set up TLS: %s", tls->lib.gnutls_strerror(r));
        }
        tls->lib.gnutls_transport_set_int2(session->session, in, out);
        *out_session = session;
        return 0;
}

void nbd_tls_session_free(struct nbd_tls_session *session, bool bye)
{
        if (!session)
                return;
        if (bye && !session->unsent)
                (void)session->tls->lib.gnutls_bye(session->session, GNUTLS_SHUT_WR);
        session->tls->lib.gnutls_deinit(session->session);
        free(session);
}

static int verification_failed(struct nbd_tls_session *session, struct err *err)
{
        const struct library *lib = &session->tls->lib;
        unsigned status = lib->gnutls_session_get_verify_cert_status(session->session);
        gnutls_datum_t text = { 0 };
        int r;

        if (lib->gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0)
                text.data = NULL;
        r = err_set(err, -EACCES, "TLS: the other side's certificate is not good: %s", text.data ? (const char *)text.data : "it is not one of ours");
        free(text.data);
        return r;
}

int nbd_tls_handshake(struct nbd_tls_session *session, struct err *err)
{
        const struct library *lib = &session->tls->lib;
        int r;

        do
                r = lib->gnutls_handshake(session->session);
        while (r == GNUTLS_E_INTERRUPTED || (r < 0 && r != GNUTLS_E_AGAIN && !lib->gnutls_error_is_fatal(r)));
        if (r == GNUTLS_E_AGAIN)
                return -EAGAIN;
        if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR)
                return verification_failed(session, err);
        if (r == GNUTLS_E_CERTIFICATE_REQUIRED || r == GNUTLS_E_NO_CERTIFICATE_FOUND)
                return err_set(err, -EACCES, "TLS: the other side has no certificate");
        return r < 0 ? err_set(err, -EPROTO, "TLS handshake: %s", lib->gnutls_strerror(r)) : 0;
}

static int result_of(ssize_t r)
{
        switch (r) {
        case GNUTLS_E_AGAIN: return -EAGAIN;
        case GNUTLS_E_PREMATURE_TERMINATION:
        case GNUTLS_E_PULL_ERROR:
        case GNUTLS_E_PUSH_ERROR: return -ECONNRESET;
        default: return -EPROTO;
        }
}

/* A peer that only ever sends what is no data (key updates) is not listened to for ever at one go. */
#define WARNINGS_MAX 16

ssize_t nbd_tls_recv(struct nbd_tls_session *session, void *to, size_t size_bytes)
{
        const struct library *lib = &session->tls->lib;
        ssize_t r = 0;

        for (unsigned n = 0; n < WARNINGS_MAX; n++) {
                r = lib->gnutls_record_recv(session->session, to, size_bytes);
                if (r == GNUTLS_E_REHANDSHAKE)
                        return -EPROTO;
                if (r >= 0 || r == GNUTLS_E_AGAIN || (r != GNUTLS_E_INTERRUPTED && lib->gnutls_error_is_fatal((int)r)))
                        break;
        }
        return r < 0 ? result_of(r) : r;
}

static ssize_t send_record(struct nbd_tls_session *session, const void *bytes, size_t size_bytes)
{
        ssize_t r;

        do
                r = session->tls->lib.gnutls_record_send(session->session, bytes, size_bytes);
        while (r == GNUTLS_E_INTERRUPTED);
        return r;
}

ssize_t nbd_tls_sendv(struct nbd_tls_session *session, const struct iovec *iov, unsigned count)
{
        const void *from = session->gathered;
        size_t size_bytes = 0;
        ssize_t r;

        if (session->unsent) {
                r = send_record(session, NULL, 0);
                if (r < 0)
                        return result_of(r);
                session->unsent = false;
        }
        if (count && iov[0].iov_len >= RECORD_BYTES) { /* goes as it is */
                from = iov[0].iov_base;
                size_bytes = RECORD_BYTES;
        } else {
                for (unsigned n = 0; n < count && size_bytes < RECORD_BYTES; n++) {
                        size_t some = MIN(iov[n].iov_len, RECORD_BYTES - size_bytes);

                        memcpy(session->gathered + size_bytes, iov[n].iov_base, some);
                        size_bytes += some;
                }
        }
        if (!size_bytes)
                return 0;
        r = send_record(session, from, size_bytes);
        if (r == GNUTLS_E_AGAIN) {
                session->unsent = true;
                return (ssize_t)size_bytes;
        }
        return r < 0 ? result_of(r) : r;
}

bool nbd_tls_unsent(const struct nbd_tls_session *session)
{
        return session->unsent;
}

bool nbd_tls_wants_write(const struct nbd_tls_session *session)
{
        return session->tls->lib.gnutls_record_get_direction(session->session);
}
