#pragma once

#include "block/block.h"

/* Regular files and block devices of the host. */
extern const struct block_driver block_file;
