#pragma once

#include "block/block.h"

/* Disks that an NBD server gives; see uri.h for how they are named. */
extern const struct block_driver block_nbd;
