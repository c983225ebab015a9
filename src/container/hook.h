/*
 * Programs that the configuration wants to be run at points of a container's life.
 *
 * Each gets the container's state as JSON on its standard input, and is killed with all that it started when its time is over.
 *
 * Source: runtime-spec config.md "POSIX-platform Hooks".
 */
#pragma once

#include "container/config.h"

/* Runs those of one kind in their order; the first that fails ends it. state: the JSON. directory: where they run (the bundle); NULL: where we are. */
int hooks_run(const struct config *config, enum hook_kind kind, const char *state, const char *directory, struct err *err) _must_check_;
/* As hooks_run(), and a failure is told to warn() while the others go on. */
void hooks_run_all(const struct config *config, enum hook_kind kind, const char *state, const char *directory, void (*warn)(void *ctx, const struct err *err),
                   void *ctx);
