#pragma once

#include "block/block.h"

/* Hyper-V's disk images; image.h has the format and how it is kept right. */
extern const struct block_driver block_vhdx;
