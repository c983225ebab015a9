/*
 * The mounts of a new mount namespace.
 */
#pragma once

#include "base/util.h"

/*
 * All mounts get the propagation (MS_PRIVATE, MS_SLAVE …), so that what is mounted from here on stays here. Also in a chroot. 0 or
 * -errno.
 */
int mounts_propagate(unsigned long propagation);
