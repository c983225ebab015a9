/*
 * The commands of images: their tables are in both programs, what they do is in virta-image.
 */
#pragma once

#include "cli/cli.h"

/* Of all commands here; each uses some. */
struct image_args {
        const char *name, *other, *store, *platform, *path;
        int format;
        bool json, insecure, quiet, force;
};
