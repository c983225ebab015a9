/*
 * Calls through pointers. `indirect table`: sixteen small functions in a table, in random order; `indirect virtual`: objects of
 * four classes whose methods call each other, as object-oriented programs do.
 */
#include "../bench.h"

#define STEPS 12000000u
#define OBJECTS 1024u

typedef uint64_t step(uint64_t value, uint64_t n);

#define STEP(name, expression) \
        static BENCH_NOINLINE uint64_t name(uint64_t value, uint64_t n) \
        { \
                (void)n; \
                return (expression); \
        }
STEP(step_0, value + n)
STEP(step_1, value ^ n)
STEP(step_2, value - n * 3)
STEP(step_3, value * 5 + n)
STEP(step_4, (value << 1 | value >> 63) ^ n)
STEP(step_5, (value >> 3 | value << 61) + n)
STEP(step_6, ~value + n)
STEP(step_7, value + (n & 255))
STEP(step_8, value ^ n << 7)
STEP(step_9, value + 17)
STEP(step_10, value * 3 ^ n)
STEP(step_11, value - (n >> 2))
STEP(step_12, value ^ value >> 7)
STEP(step_13, value + (n | 64))
STEP(step_14, value * 9)
STEP(step_15, value ^ 0x5555)

static BENCH_NOINLINE uint64_t through_table(step *const table[16], const uint8_t *order)
{
        uint64_t value = 1;

        for (uint64_t n = 0; n < STEPS; n++)
                value = table[order[n & 4095]](value, n);
        return value;
}

struct object;
struct class {
        uint64_t (*area)(const struct object *object);
        uint64_t (*grow)(struct object *object, uint32_t by);
        uint64_t (*visit)(struct object *object, uint32_t n);
};
struct object {
        const struct class *class;
        uint32_t width, height;
};

static BENCH_NOINLINE uint64_t area_box(const struct object *o) { return (uint64_t)o->width * o->height; }
static BENCH_NOINLINE uint64_t area_triangle(const struct object *o) { return (uint64_t)o->width * o->height / 2; }
static BENCH_NOINLINE uint64_t area_circle(const struct object *o) { return (uint64_t)o->width * o->width * 3; }
static BENCH_NOINLINE uint64_t area_none(const struct object *o) { return o->height; }
static BENCH_NOINLINE uint64_t grow_both(struct object *o, uint32_t by) { o->width += by; o->height += by; return by; }
static BENCH_NOINLINE uint64_t grow_width(struct object *o, uint32_t by) { return o->width = (o->width + by) & 0xffff; }
static BENCH_NOINLINE uint64_t visit_plain(struct object *o, uint32_t n) { return o->class->area(o) + o->class->grow(o, n & 3); }
static BENCH_NOINLINE uint64_t visit_twice(struct object *o, uint32_t n) { return o->class->grow(o, n & 1) ^ o->class->area(o); }

static const struct class classes[4] = {
        { area_box, grow_both, visit_plain },
        { area_triangle, grow_width, visit_twice },
        { area_circle, grow_width, visit_plain },
        { area_none, grow_both, visit_twice },
};

static BENCH_NOINLINE uint64_t through_objects(struct object *objects)
{
        uint64_t sum = 0;

        for (uint32_t n = 0; n < STEPS / 3; n++) {
                struct object *o = &objects[n % OBJECTS];

                sum += o->class->visit(o, n);
        }
        return sum;
}

int main(int argc, char **argv)
{
        static step *const table[16] = { step_0, step_1, step_2, step_3, step_4, step_5, step_6, step_7, step_8, step_9, step_10,
                                         step_11, step_12, step_13, step_14, step_15 };
        struct object *objects = bench_alloc(OBJECTS * sizeof(*objects));
        uint8_t *order = bench_alloc(4096);
        uint64_t seed = 17, sum;
        double start;

        for (uint32_t n = 0; n < 4096; n++)
                order[n] = bench_random(&seed) % 16;
        for (uint32_t n = 0; n < OBJECTS; n++)
                objects[n] = (struct object){ &classes[bench_random(&seed) % 4], n, 2 * n };
        start = bench_now();
        sum = strcmp(bench_word(argc, argv, 1, "table"), "virtual") ? through_table(table, order) : through_objects(objects);
        return bench_report(argc, argv, bench_now() - start, sum);
}
