/*
 * The container's list of system calls.
 *
 * The profile is compiled by libseccomp, before the container's process needs it: what is wrong with a profile is told at create.
 *
 * Source: runtime-spec config-linux.md "Seccomp"; seccomp(2), seccomp_unotify(2).
 */
#pragma once

#include <linux/filter.h>

#include "container/config.h"

/* A compiled profile. */
struct seccomp_filter {
        struct sock_fprog program; /* its code is ours to free; NULL: no profile */
        unsigned flags;            /* SECCOMP_FILTER_FLAG_… */
        bool notifies;             /* some calls are asked about: the filter has a listener */
};

int seccomp_compile(const struct seccomp_config *config, struct seccomp_filter *filter, struct err *err) _must_check_;
/* Puts it on the calling thread. *listener_fd: the caller's, or -1. */
int seccomp_load_filter(const struct seccomp_filter *filter, int *listener_fd, struct err *err) _must_check_;
void seccomp_filter_done(struct seccomp_filter *filter);

/* The words, for `features`; NULL-terminated. */
extern const char *const seccomp_actions[], *const seccomp_operators[], *const seccomp_architectures[], *const seccomp_flags[];
/* Those of the flags that the kernel takes. */
bool seccomp_flag_works(const char *name);
