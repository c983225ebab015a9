#pragma once

#include "block/block.h"

/* Disk images of Virtual PC and of early Hyper-V; image.h has the format and how it is kept right. */
extern const struct block_driver block_vhd;
