/* The block driver of plain files and of the host's block devices. See block-raw.c. */
#pragma once

#include "block/block.h"

extern const struct block_driver block_raw;
