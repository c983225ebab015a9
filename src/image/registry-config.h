/*
 * What this host says about registries, and who it is to them.
 *
 * /etc/virta/registries.json, or for others than root first $XDG_CONFIG_HOME/virta/registries.json; none need be there:
 *
 *      { "short-names": ["registry.example"],              hosts that a name without one is looked for at, in this order
 *        "mirrors": { "registry.example": ["mirror:5000"] }, asked first; what they send has the same digests, or is refused
 *        "insecure": ["mirror:5000"] }                       may be spoken to without TLS, or with a certificate that nobody vouches for
 *
 * Credentials are where other tools keep them: $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
 * $XDG_CONFIG_HOME/containers/auth.json, ~/.docker/config.json; the first that has the host.
 */
#pragma once

#include "base/json.h"
#include "image/name.h"

struct registry_config {
        json_t *json; /* an object */
};

int registry_config_load(struct registry_config *config, struct err *err) _must_check_;
void registry_config_done(struct registry_config *config);

#define _cleanup_registry_config_ _cleanup_(registry_config_done)

/* The i-th of them; NULL: there are no more. */
const char *registry_config_short(const struct registry_config *config, size_t i);
const char *registry_config_mirror(const struct registry_config *config, const char *host, size_t i);
/* Loopback always is. */
bool registry_config_insecure(const struct registry_config *config, const char *host);

/* "USER:PASSWORD" for a host, the caller's to clear and free; *credentials NULL: none are known. */
int registry_credentials(const char *host, char **credentials, struct err *err) _must_check_;
