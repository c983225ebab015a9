/* Opening and closing disks: what does not depend on the format. */
#include "block/block.h"

#include <errno.h>
#include <stdio.h>

static const struct block_driver *find_driver(const char *format)
{
        for (unsigned i = 0; block_drivers[i]; i++) {
                if (strcmp(block_drivers[i]->name, format) == 0)
                        return block_drivers[i];
        }
        return NULL;
}

static int unknown_format(const char *path, const char *format, struct err *err)
{
        char names[256] = "";
        size_t used = 0;

        for (unsigned i = 0; block_drivers[i] && used < sizeof(names); i++)
                used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "", block_drivers[i]->name);
        return err_set(err, -EINVAL, "disk %s: no format '%s'; there are: %s", path, format, names);
}

int block_open(uv_loop_t *loop, const char *path, const char *format, unsigned flags, struct block **disk, struct err *err)
{
        const struct block_driver *driver = find_driver(format ? format : "raw");

        if (!driver)
                return unknown_format(path, format, err);
        return driver->open(loop, path, flags, disk, err);
}

void block_close(struct block *disk)
{
        if (!disk)
                return;
        block_drain(disk);
        disk->driver->close(disk);
}
