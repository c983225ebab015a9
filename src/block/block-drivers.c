/* The one table of block drivers; raw is none, it is the file itself. */
#include "block/block-file.h"

const struct block_driver *const block_drivers[] = {
        &block_file,
        NULL,
};
