/*
 * The files of a cgroup: small texts, each written by one write().
 */
#pragma once

#include "base/err.h"

int cgroup_file_write(const char *directory, const char *file, const char *text, struct err *err);
/* The text with an ending 0, cut at size_bytes; its length or -errno. */
ssize_t cgroup_file_read(const char *directory, const char *file, char *text, size_t size_bytes);
/* A single number; false when there is none ("max" is UINT64_MAX). */
bool cgroup_file_number(const char *directory, const char *file, uint64_t *number);
