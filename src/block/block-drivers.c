/* The one table of block drivers. */
#include "block/block-raw.h"

const struct block_driver *const block_drivers[] = {
        &block_raw,
        NULL,
};
