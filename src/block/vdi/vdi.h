#pragma once

#include "block/block.h"

/* VirtualBox's disk images; vdi.c has the format and how it is kept right. */
extern const struct block_driver block_vdi;
