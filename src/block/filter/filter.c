/* What filters share, and filters by a text. */
#include "block/filter/filter.h"

#include <errno.h>

#include "base/text.h"

int filter_new(struct block *child, const struct block_driver *driver, size_t size_bytes, struct block **block, struct err *err)
{
        struct block_opening opening = { .loop = child->loop, .path = child->path };
        struct block *b = calloc(1, size_bytes);
        int r;

        if (!b)
                return err_nomem(err);
        r = block_init(b, driver, &opening, err);
        if (r < 0) {
                free(b);
                return r;
        }
        *block = b;
        return 0;
}

void filter_begin(struct block *block, struct block *child)
{
        block->info = child->info;
        block_adopt(block, BLOCK_FILE, child);
}

static void passed(struct block_request *req, int result)
{
        struct filter_request *f = container_of(req, struct filter_request, req);
        struct block_request *guest = f->guest;
        struct block *block = f->block;

        result = f->result ? f->result : result;
        free(f);
        block_complete(block, guest, result);
}

void filter_pass(struct block *block, struct block_request *guest, int result)
{
        struct filter_request *f = malloc(sizeof(*f));

        if (!f) {
                block_complete(block, guest, -ENOMEM);
                return;
        }
        *f = (struct filter_request){ .req = *guest, .guest = guest, .block = block, .result = result };
        f->req.done = passed;
        block_submit(block->child[BLOCK_FILE], &f->req);
}

int filter_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        /* What lies behind the child is not behind the filter: the answer is of all of it. */
        int r = block_status_through(block->child[BLOCK_FILE], offset_bytes, size_bytes, extent);

        extent->present |= r == 0;
        extent->depth = 0;
        return r;
}

int filter_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        int r = block_resize(block->child[BLOCK_FILE], size_bytes, err);

        block->info = block->child[BLOCK_FILE]->info;
        return r;
}

int filter_refresh(struct block *block, struct err *err)
{
        int r = block_refresh(block->child[BLOCK_FILE], err);

        block->info = block->child[BLOCK_FILE]->info;
        return r;
}

void block_filter_remove(struct block *filter)
{
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX; n++)
                (void)block_detach(filter, n);
        block_close(filter);
}

/* ---- by a text ---- */

struct parsed {
        struct block_limits limits;
        struct block_fault fault;
};

static const struct {
        const char *key;
        size_t offset;
} throttle_keys[] = {
        { "requests", offsetof(struct block_limits, requests.a_second) }, { "burst-requests", offsetof(struct block_limits, requests.burst) },
        { "bytes", offsetof(struct block_limits, bytes.a_second) }, { "burst-bytes", offsetof(struct block_limits, bytes.burst) },
        { "reads", offsetof(struct block_limits, reads.a_second) }, { "burst-reads", offsetof(struct block_limits, reads.burst) },
        { "writes", offsetof(struct block_limits, writes.a_second) }, { "burst-writes", offsetof(struct block_limits, writes.burst) },
        { "read-bytes", offsetof(struct block_limits, read_bytes.a_second) }, { "burst-read-bytes", offsetof(struct block_limits, read_bytes.burst) },
        { "written-bytes", offsetof(struct block_limits, written_bytes.a_second) },
        { "burst-written-bytes", offsetof(struct block_limits, written_bytes.burst) },
        { "request-bytes", offsetof(struct block_limits, request_bytes) },
}, fault_keys[] = {
        { "after", offsetof(struct block_fault, after) }, { "times", offsetof(struct block_fault, times) }, { "seed", offsetof(struct block_fault, seed) },
        { "from", offsetof(struct block_fault, from_bytes) }, { "to", offsetof(struct block_fault, to_bytes) },
};

static const struct {
        const char *name;
        int value;
} errors[] = { { "EIO", -EIO }, { "ENOSPC", -ENOSPC }, { "ENOMEM", -ENOMEM }, { "EACCES", -EACCES }, { "EBUSY", -EBUSY }, { "ETIMEDOUT", -ETIMEDOUT } },
  ops[] = { { "read", 1 << BLOCK_READ }, { "write", 1 << BLOCK_WRITE }, { "flush", 1 << BLOCK_FLUSH }, { "discard", 1 << BLOCK_DISCARD },
            { "zeroes", 1 << BLOCK_WRITE_ZEROES } };

/* A number by itself, or a size. */
static int take_number(const char *value, uint64_t *number)
{
        char *end;

        if (*value < '0' || *value > '9')
                return -EINVAL;
        *number = strtoull(value, &end, 10);
        return *end ? size_parse(value, number, NULL) : 0;
}

static int take_fault(struct block_fault *fault, const char *key, const char *value)
{
        uint64_t number;

        for (unsigned n = 0; strcmp(key, "errno") == 0 && n < ARRAY_SIZE(errors); n++)
                if (strcmp(value, errors[n].name) == 0) {
                        fault->error = errors[n].value;
                        return 0;
                }
        for (unsigned n = 0; strcmp(key, "op") == 0 && n < ARRAY_SIZE(ops); n++)
                if (strcmp(value, ops[n].name) == 0) {
                        fault->ops |= (unsigned)ops[n].value;
                        return 0;
                }
        if (strcmp(key, "chance") == 0 && take_number(value, &number) == 0 && number && number <= 1000000) {
                fault->chance = (unsigned)number;
                return 0;
        }
        if (strcmp(key, "late") == 0 && strcmp(value, "on") == 0) {
                fault->late = true;
                return 0;
        }
        for (unsigned n = 0; n < ARRAY_SIZE(fault_keys); n++)
                if (strcmp(key, fault_keys[n].key) == 0)
                        return take_number(value, (uint64_t *)((char *)fault + fault_keys[n].offset));
        return -EINVAL;
}

static int take_limit(struct block_limits *limits, const char *key, const char *value)
{
        for (unsigned n = 0; n < ARRAY_SIZE(throttle_keys); n++)
                if (strcmp(key, throttle_keys[n].key) == 0)
                        return take_number(value, (uint64_t *)((char *)limits + throttle_keys[n].offset));
        return -EINVAL;
}

static int take_all(struct parsed *parsed, bool throttle, char *text, struct err *err)
{
        char *save = NULL;

        for (char *item = strtok_r(text, ",:", &save); item; item = strtok_r(NULL, ",:", &save)) {
                char *value = strchr(item, '=');

                if (!value || value == item || !value[1])
                        return err_set(err, -EINVAL, "a filter's '%s' is not KEY=VALUE", item);
                *value++ = '\0';
                if ((throttle ? take_limit(&parsed->limits, item, value) : take_fault(&parsed->fault, item, value)) < 0)
                        return err_set(err, -EINVAL, "a filter of type %s takes no %s=%s", throttle ? "throttle" : "fault", item, value);
        }
        return 0;
}

static int new_throttle(struct block *child, const struct parsed *parsed, struct block **block, struct err *err)
{
        struct block_throttle_group *group;
        int r = block_throttle_group_new(child->loop, &parsed->limits, &group, err);

        if (r < 0)
                return r;
        r = block_throttle_new(child, group, block, err);
        block_throttle_group_unref(group);
        return r;
}

int block_filter_new(struct block *child, const char *text, struct block **block, struct err *err)
{
        struct parsed parsed = { .fault = { .error = -EIO } };
        _cleanup_free_ char *copy = strdup(text);
        char *colon = copy ? strchr(copy, ':') : NULL;
        bool throttle;
        int r;

        if (!copy)
                return err_nomem(err);
        if (!strcmp(copy, "copy-on-read"))
                return block_copy_on_read_new(child, true, block, err);
        if (!strncmp(copy, "checksum:file=", 14) && copy[14])
                return block_checksum_new(child, copy + 14, block, err);
        if (colon)
                *colon = '\0';
        throttle = strcmp(copy, "throttle") == 0;
        if (!throttle && strcmp(copy, "fault"))
                return err_set(err, -EINVAL, "no filter '%s'; there are: throttle, fault, copy-on-read, checksum:file=FILE", text);
        r = colon ? take_all(&parsed, throttle, colon + 1, err) : 0;
        if (r < 0)
                return r;
        return throttle ? new_throttle(child, &parsed, block, err) : block_fault_new(child, &parsed.fault, 1, block, err);
}

int block_filters_new(struct block *child, const char *const *text, unsigned count, struct block **block, struct err *err)
{
        struct block *top = child;
        int r = 0;

        for (unsigned n = 0; n < count && r == 0; n++)
                r = block_filter_new(top, text[n], &top, err);
        while (r < 0 && top != child) {
                struct block *behind = top->child[BLOCK_FILE];

                block_filter_remove(top);
                top = behind;
        }
        if (r == 0)
                *block = top;
        return r;
}
