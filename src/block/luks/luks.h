#pragma once

#include "block/block.h"

/* Encrypted disks, LUKS1 and LUKS2; header.h has the format, luks.c what becomes of requests. */
extern const struct block_driver block_luks;
