/* The http and https driver, read-only. See http.c. */
#pragma once

#include "block/block.h"

extern const struct block_driver block_http;
