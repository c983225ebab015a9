/*
 * Fibers by a switch of stacks; fiber.h says what they promise.
 *
 * A struct fiber stands at the top of its own stack. What the thread knows of its fibers is in one thread-local struct: it belongs to
 * the thread as its stack does, so there is no object to hang it on.
 *
 *      idle ──start──▶ running ◀──wake── waiting
 *       ▲                │  └────wait──────▲
 *       └────fn returns──┘
 *
 * The address sanitizer has to be told of each switch, or it takes the new stack for an overrun of the old one.
 */
#include "base/fiber.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define KEPT_MAX 64
#define GUARD_BYTES ((size_t)4096)

struct fiber {
        void *sp;              /* while it does not run */
        struct fiber *back;    /* who started or woke it; NULL: the thread's own stack */
        struct fiber *next;    /* in a queue, or among the kept ones */
        void (*fn)(void *arg);
        void *arg;
        bool over;
        void *fake_stack;      /* the sanitizer's */
};

struct fiber_thread {
        struct fiber *running;
        struct fiber *kept;
        unsigned kept_count;
        void *own_sp;          /* of the thread's own stack while a fiber runs */
        void *own_fake_stack;
        const void *own_bottom;
        size_t own_bytes;
};

static _Thread_local struct fiber_thread here;

void fiber_switch(void **save, void *to);

static uint8_t *bottom_of(struct fiber *fiber)
{
        return (uint8_t *)(fiber + 1) - FIBER_STACK_BYTES;
}

#ifdef WITH_ASAN
/* to NULL: the thread's own stack. from_over: it will not be gone back to. */
static void leaving(void **fake_stack, struct fiber *to, bool from_over)
{
        __sanitizer_start_switch_fiber(from_over ? NULL : fake_stack, to ? bottom_of(to) : here.own_bottom, to ? FIBER_STACK_BYTES : here.own_bytes);
}

static void arrived(void *fake_stack, struct fiber *from)
{
        const void *bottom;
        size_t size_bytes;

        __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size_bytes);
        if (!from) {
                here.own_bottom = bottom;
                here.own_bytes = size_bytes;
        }
}

/* Frames that never returned leave their red zones behind, for whoever has the memory next. */
static void unpoison(struct fiber *fiber)
{
        ASAN_UNPOISON_MEMORY_REGION(bottom_of(fiber), FIBER_STACK_BYTES);
}
#else
static void leaving(void **fake_stack, struct fiber *to, bool from_over)
{
}

static void arrived(void *fake_stack, struct fiber *from)
{
}

static void unpoison(struct fiber *fiber)
{
}
#endif

static void run(struct fiber *fiber)
{
        struct fiber *from = here.running;
        void **sp = from ? &from->sp : &here.own_sp, **fake_stack = from ? &from->fake_stack : &here.own_fake_stack;

        fiber->back = from;
        here.running = fiber;
        leaving(fake_stack, fiber, false);
        fiber_switch(sp, fiber->sp);
        arrived(*fake_stack, fiber);
        here.running = from;
}

static void leave(struct fiber *fiber)
{
        struct fiber *to = fiber->back;

        leaving(&fiber->fake_stack, to, fiber->over);
        fiber_switch(&fiber->sp, to ? to->sp : here.own_sp);
        arrived(fiber->fake_stack, fiber->back);
}

static void first(void)
{
        struct fiber *fiber = here.running;

        arrived(NULL, fiber->back);
        fiber->fn(fiber->arg);
        fiber->over = true;
        leave(fiber);
        abort();
}

static void give_back(struct fiber *fiber)
{
        munmap(bottom_of(fiber) - GUARD_BYTES, GUARD_BYTES + FIBER_STACK_BYTES);
}

static struct fiber *take(void)
{
        struct fiber *fiber = here.kept;
        uint8_t *map;

        if (fiber) {
                here.kept = fiber->next;
                here.kept_count--;
                return fiber;
        }
        map = mmap(NULL, GUARD_BYTES + FIBER_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (map == MAP_FAILED)
                return NULL;
        if (mprotect(map, GUARD_BYTES, PROT_NONE) < 0) {
                munmap(map, GUARD_BYTES + FIBER_STACK_BYTES);
                return NULL;
        }
        return (struct fiber *)(map + GUARD_BYTES + FIBER_STACK_BYTES) - 1;
}

static void keep(struct fiber *fiber)
{
        unpoison(fiber);
        if (here.kept_count == KEPT_MAX) {
                give_back(fiber);
                return;
        }
        fiber->next = here.kept;
        here.kept = fiber;
        here.kept_count++;
}

static void run_and_keep(struct fiber *fiber)
{
        run(fiber);
        if (fiber->over)
                keep(fiber);
}

/* What fiber_switch() finds on a new stack: six registers, and where it returns to, as a call would have left it. */
static void *first_frame(struct fiber *fiber)
{
        void **sp = (void **)align_down((uint64_t)(uintptr_t)fiber, 16);

        *--sp = NULL;
        *--sp = (void *)(uintptr_t)first;
        for (unsigned n = 0; n < 6; n++)
                *--sp = NULL;
        return sp;
}

int fiber_start(void (*fn)(void *arg), void *arg)
{
        struct fiber *fiber = take();

        if (!fiber)
                return -ENOMEM;
        *fiber = (struct fiber){ .fn = fn, .arg = arg };
        fiber->sp = first_frame(fiber);
        run_and_keep(fiber);
        return 0;
}

struct fiber *fiber_self(void)
{
        return here.running;
}

void fiber_wait(void)
{
        assert(here.running);
        leave(here.running);
}

void fiber_wake(struct fiber *fiber)
{
        assert(fiber != here.running && !fiber->over);
        run_and_keep(fiber);
}

void fiber_thread_done(void)
{
        assert(!here.running);
        while (here.kept) {
                struct fiber *fiber = here.kept;

                here.kept = fiber->next;
                give_back(fiber);
        }
        here.kept_count = 0;
}

void fiber_queue_wait(struct fiber_queue *queue)
{
        struct fiber *self = here.running;

        assert(self);
        self->next = NULL;
        if (queue->last)
                queue->last->next = self;
        else
                queue->first = self;
        queue->last = self;
        fiber_wait();
}

static struct fiber *take_first(struct fiber_queue *queue)
{
        struct fiber *fiber = queue->first;

        if (fiber) {
                queue->first = fiber->next;
                if (!queue->first)
                        queue->last = NULL;
        }
        return fiber;
}

bool fiber_queue_wake(struct fiber_queue *queue)
{
        struct fiber *fiber = take_first(queue);

        if (fiber)
                fiber_wake(fiber);
        return fiber;
}

void fiber_queue_wake_all(struct fiber_queue *queue)
{
        struct fiber_queue now = *queue;

        *queue = (struct fiber_queue){ 0 };
        while (fiber_queue_wake(&now))
                ;
}

void fiber_lock(struct fiber_lock *lock)
{
        if (lock->held)
                fiber_queue_wait(&lock->waiting); /* it is ours then */
        else
                lock->held = true;
}

void fiber_unlock(struct fiber_lock *lock)
{
        struct fiber *next = take_first(&lock->waiting);

        assert(lock->held);
        if (next)
                fiber_wake(next);
        else
                lock->held = false;
}
