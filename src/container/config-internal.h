/*
 * Between config.c and config-linux.c: reading parts.
 */
#pragma once

#include "container/config.h"
#include "container/reader.h"
#include "container/words.h"

/* A text that must be one of the table. */
int read_word(const struct place *object, const char *key, const struct word *table, const struct word **to, struct err *err) _must_check_;
/* A text shorter than PATH_MAX. */
int read_path(const struct place *object, const char *key, const char **to, struct err *err) _must_check_;

int parse_process(const struct place *place, struct config *config, struct err *err) _must_check_;
int parse_id_maps(const struct place *object, const char *uids, const char *gids, struct arena *arena, struct id_maps *to,
                  struct err *err) _must_check_;
int parse_sysctls(const struct place *linux_place, struct config *config, struct err *err) _must_check_;
int parse_linux(const struct place *place, struct config *config, struct err *err) _must_check_;
int parse_resources(const struct place *place, struct config *config, struct err *err) _must_check_;
