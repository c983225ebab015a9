/*
 * Armed timers form a pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986), linked through the timers themselves so that
 * arming needs no memory and cannot fail. The timerfd is only set anew when the earliest deadline moves forward: a guest that
 * pushes its deadline back again and again, as kernels do, costs one early wake-up instead of a system call each time.
 *
 *      a heap node's `child` is its first child, `next` its next sibling, `back` its previous sibling or, for a first child,
 *      its parent; `back` is NULL at the root
 */
#include "base/timer.h"

#include <errno.h>
#include <pthread.h>
#include <sys/timerfd.h>
#include <time.h>

#define NEVER UINT64_MAX

struct timer_set {
        uv_poll_t poll;
        pthread_mutex_t lock;
        struct timer *root;
        uint64_t armed_ns; /* what the timerfd is set for; NEVER when it is not */
        uint64_t pass_ns;  /* when expired timers were last looked for; deadlines before it are put just after it */
        int fd;
};

/* Both are roots (or NULL); the result's back and next are NULL. */
static struct timer *meld(struct timer *a, struct timer *b)
{
        struct timer *low, *high;

        if (!a || !b)
                return a ? a : b;
        low = a->deadline_ns <= b->deadline_ns ? a : b;
        high = low == a ? b : a;
        high->next = low->child;
        if (high->next)
                high->next->back = high;
        high->back = low;
        low->child = high;
        return low;
}

/* Two passes over the siblings, which become roots; without recursion, so that the stack stays small. */
static struct timer *meld_siblings(struct timer *first)
{
        struct timer *pairs = NULL;
        struct timer *root = NULL;

        while (first) {
                struct timer *a = first;
                struct timer *b = a->next;

                first = b ? b->next : NULL;
                a->next = a->back = NULL;
                if (b)
                        b->next = b->back = NULL;
                a = meld(a, b);
                a->next = pairs;
                pairs = a;
        }
        while (pairs) {
                struct timer *pair = pairs;

                pairs = pair->next;
                pair->next = NULL;
                root = meld(root, pair);
        }
        return root;
}

static void heap_add(struct timer_set *set, struct timer *timer)
{
        timer->child = timer->next = timer->back = NULL;
        set->root = meld(set->root, timer);
}

static void heap_remove(struct timer_set *set, struct timer *timer)
{
        struct timer *children = meld_siblings(timer->child);

        if (timer == set->root) {
                set->root = children;
        } else {
                if (timer->back->child == timer)
                        timer->back->child = timer->next;
                else
                        timer->back->next = timer->next;
                if (timer->next)
                        timer->next->back = timer->back;
                set->root = meld(set->root, children);
        }
        timer->child = timer->next = timer->back = NULL;
        timer->deadline_ns = 0;
}

/* Sets the timerfd for the earliest deadline, when it would come too late else. With the lock held. */
static void arm_fd(struct timer_set *set)
{
        struct itimerspec when = { 0 };
        uint64_t deadline_ns;

        if (!set->root || set->root->deadline_ns >= set->armed_ns)
                return;
        deadline_ns = set->root->deadline_ns;
        when.it_value.tv_sec = (time_t)(deadline_ns / UINT64_C(1000000000));
        when.it_value.tv_nsec = (long)(deadline_ns % UINT64_C(1000000000));
        if (!timerfd_settime(set->fd, TFD_TIMER_ABSTIME, &when, NULL))
                set->armed_ns = deadline_ns;
}

/* The earliest timer when it is due at now_ns, taken out; NULL when none is. */
static struct timer *take_due(struct timer_set *set, uint64_t now_ns, void (**fn)(void *), void **ctx)
{
        struct timer *due = NULL;

        pthread_mutex_lock(&set->lock);
        if (set->root && set->root->deadline_ns <= now_ns) {
                due = set->root;
                *fn = due->fn;
                *ctx = due->ctx;
                heap_remove(set, due);
        } else {
                arm_fd(set);
        }
        pthread_mutex_unlock(&set->lock);
        return due;
}

static void on_expired(uv_poll_t *poll, int status, int events)
{
        struct timer_set *set = container_of(poll, struct timer_set, poll);
        uint64_t expirations, now_ns;
        void (*fn)(void *ctx);
        void *ctx;

        pthread_mutex_lock(&set->lock);
        /* Not blocking. Nothing there means that it was set again since the loop saw it readable. */
        if (read(set->fd, &expirations, sizeof(expirations)) == sizeof(expirations))
                set->armed_ns = NEVER;
        /* A callback that arms itself for a time gone by comes after all that are due now, in the loop's next round. */
        set->pass_ns = now_ns = monotonic_ns();
        pthread_mutex_unlock(&set->lock);
        while (take_due(set, now_ns, &fn, &ctx))
                fn(ctx);
}

int timer_set_new(uv_loop_t *loop, struct timer_set **set, struct err *err)
{
        struct timer_set *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return err_nomem(err);
        s->armed_ns = NEVER;
        s->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (s->fd < 0) {
                r = err_errno(err, -errno, "cannot create a timer");
                free(s);
                return r;
        }
        r = uv_poll_init(loop, &s->poll, s->fd);
        if (r < 0) {
                r = err_set(err, r, "cannot watch a timer: %s", uv_strerror(r));
                close(s->fd);
                free(s);
                return r;
        }
        pthread_mutex_init(&s->lock, NULL);
        r = uv_poll_start(&s->poll, UV_READABLE, on_expired);
        if (r < 0) {
                r = err_set(err, r, "cannot watch a timer: %s", uv_strerror(r));
                timer_set_free(s);
                return r;
        }
        *set = s;
        return 0;
}

static void on_closed(uv_handle_t *handle)
{
        struct timer_set *set = container_of((uv_poll_t *)handle, struct timer_set, poll);

        close(set->fd);
        pthread_mutex_destroy(&set->lock);
        free(set);
}

void timer_set_free(struct timer_set *set)
{
        if (!set)
                return;
        uv_poll_stop(&set->poll);
        uv_close((uv_handle_t *)&set->poll, on_closed);
}

void timer_init(struct timer *timer, struct timer_set *set, void (*fn)(void *ctx), void *ctx)
{
        *timer = (struct timer){ .fn = fn, .ctx = ctx, .set = set };
}

void timer_arm(struct timer *timer, uint64_t deadline_ns)
{
        struct timer_set *set = timer->set;

        pthread_mutex_lock(&set->lock);
        if (timer->deadline_ns)
                heap_remove(set, timer);
        /* Never 0, which means not armed and would disarm the timerfd. */
        timer->deadline_ns = MIN(MAX(deadline_ns, set->pass_ns + 1), (uint64_t)INT64_MAX);
        heap_add(set, timer);
        arm_fd(set);
        pthread_mutex_unlock(&set->lock);
}

void timer_cancel(struct timer *timer)
{
        struct timer_set *set = timer->set;

        if (!set)
                return;
        pthread_mutex_lock(&set->lock);
        if (timer->deadline_ns)
                heap_remove(set, timer);
        pthread_mutex_unlock(&set->lock);
}
