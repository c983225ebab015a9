/*
 * The local APIC's timer: one-shot, periodic, TSC deadline. Intel SDM vol. 3A §11.5.4.
 *
 * It counts at 1 GHz before the divider, in guest time. Only the next expiry is kept; the current count follows from it. The
 * callback runs on the event loop's thread and may come late or for a deadline that was replaced meanwhile: it looks at the
 * state under the timer's lock and arms itself again when it came for nothing.
 *
 *   stopped ──initial count / deadline──▶ armed ──expiry──▶ stopped (one-shot, deadline)
 *                                           ▲──────────────┘ periodic: the next multiple that is not past
 *
 * A periodic timer skips the expiries that it missed (its request bit would hold only one of them) and fires at most every
 * 20 us, so that a guest cannot keep the loop busy with it.
 */
#include "device/lapic-internal.h"

#define PERIOD_MIN_NS UINT64_C(20000)

static unsigned divisor(uint32_t divide)
{
        unsigned code = (divide & 3) | (divide >> 1 & 4);

        return code == 7 ? 1 : 2u << code;
}

static bool deadline_mode(const struct lapic *lapic)
{
        return (lapic_get(lapic->lvt[LVT_TIMER]) & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE;
}

static bool periodic(const struct lapic *lapic)
{
        return (lapic_get(lapic->lvt[LVT_TIMER]) & LVT_TIMER_MODE) == LVT_TIMER_PERIODIC;
}

static uint64_t period_ns(const struct lapic *lapic)
{
        return (uint64_t)lapic->timer_initial * divisor(lapic->timer_divide);
}

static uint64_t now_ns(const struct lapic *lapic)
{
        return board_clock_ns(lapic->bus->host->clock);
}

static uint64_t tsc_now(const struct lapic *lapic)
{
        return lapic->processor.tsc ? lapic->processor.tsc(lapic->processor.ctx) : 0;
}

/* Arms the host's timer for what is pending; timer_lock held. */
static void arm(struct lapic *lapic)
{
        struct board_clock *clock = lapic->bus->host->clock;
        uint64_t now, ticks;

        if (board_clock_stopped(clock))
                return;
        if (lapic->tsc_deadline) {
                now = tsc_now(lapic);
                ticks = lapic->tsc_deadline > now ? lapic->tsc_deadline - now : 0;
                /* More than 2^62 ns is for ever. */
                if (ticks / lapic->bus->tsc_frequency_hz > UINT64_C(4000000000))
                        timer_cancel(&lapic->timer);
                else
                        timer_arm(&lapic->timer, monotonic_ns() + muldiv64_up(ticks, 1000000000, lapic->bus->tsc_frequency_hz));
        } else if (lapic->deadline_ns) {
                timer_arm(&lapic->timer, board_clock_host(clock, lapic->deadline_ns));
        } else {
                timer_cancel(&lapic->timer);
        }
}

/* Whether the deadline has come; moves on to the next. timer_lock held. */
static bool expire(struct lapic *lapic)
{
        uint64_t now, period;

        if (lapic->tsc_deadline) {
                if (tsc_now(lapic) < lapic->tsc_deadline)
                        return false;
                lapic->tsc_deadline = 0;
                return true;
        }
        now = now_ns(lapic);
        if (!lapic->deadline_ns || now < lapic->deadline_ns)
                return false;
        period = period_ns(lapic);
        if (!periodic(lapic) || !period) {
                lapic->deadline_ns = 0;
                return true;
        }
        lapic->deadline_ns += ((now - lapic->deadline_ns) / period + 1) * period;
        while (lapic->deadline_ns < now + PERIOD_MIN_NS)
                lapic->deadline_ns += period * (PERIOD_MIN_NS / period + 1);
        return true;
}

static void timer_fired(void *ctx)
{
        struct lapic *lapic = ctx;
        bool fired = false;

        pthread_mutex_lock(&lapic->timer_lock);
        if (!board_clock_stopped(lapic->bus->host->clock)) {
                fired = expire(lapic);
                if (lapic->deadline_ns || lapic->tsc_deadline)
                        arm(lapic);
        }
        pthread_mutex_unlock(&lapic->timer_lock);
        if (fired)
                lapic_local(lapic, LVT_TIMER);
}

void lapic_timer_init(struct lapic *lapic)
{
        pthread_mutex_init(&lapic->timer_lock, NULL);
        timer_init(&lapic->timer, lapic->bus->host->timers, timer_fired, lapic);
}

void lapic_timer_stop(struct lapic *lapic)
{
        pthread_mutex_lock(&lapic->timer_lock);
        lapic->deadline_ns = 0;
        lapic->tsc_deadline = 0;
        timer_cancel(&lapic->timer);
        pthread_mutex_unlock(&lapic->timer_lock);
}

void lapic_timer_set_initial(struct lapic *lapic, uint32_t count)
{
        if (deadline_mode(lapic))
                return; /* §11.5.4.1: ignored */
        pthread_mutex_lock(&lapic->timer_lock);
        lapic->timer_initial = count;
        lapic->deadline_ns = count ? now_ns(lapic) + period_ns(lapic) : 0;
        arm(lapic);
        pthread_mutex_unlock(&lapic->timer_lock);
}

/* timer_lock held */
static uint32_t current_count(const struct lapic *lapic)
{
        uint64_t now = now_ns(lapic), period = period_ns(lapic), left;

        if (!lapic->deadline_ns || !period)
                return 0;
        if (now < lapic->deadline_ns)
                left = lapic->deadline_ns - now;
        else if (periodic(lapic))
                left = period - (now - lapic->deadline_ns) % period;
        else
                left = 0;
        left = (left + divisor(lapic->timer_divide) - 1) / divisor(lapic->timer_divide);
        /* A loaded or long-period deadline may lie more than one period ahead. */
        return (uint32_t)MIN(left, (uint64_t)lapic->timer_initial);
}

uint32_t lapic_timer_current(struct lapic *lapic)
{
        uint32_t count;

        pthread_mutex_lock(&lapic->timer_lock);
        count = current_count(lapic);
        pthread_mutex_unlock(&lapic->timer_lock);
        return count;
}

void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide)
{
        uint32_t left;

        pthread_mutex_lock(&lapic->timer_lock);
        left = current_count(lapic);
        lapic->timer_divide = divide & 0xb;
        /* What is left is counted at the new rate. */
        if (lapic->deadline_ns)
                lapic->deadline_ns = now_ns(lapic) + (uint64_t)left * divisor(divide);
        arm(lapic);
        pthread_mutex_unlock(&lapic->timer_lock);
}

void lapic_timer_mode(struct lapic *lapic, uint32_t before, uint32_t after)
{
        bool was = (before & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE, is = (after & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE;

        /* Entering or leaving deadline mode disarms the timer (§11.5.4.1). */
        if (was == is)
                return;
        pthread_mutex_lock(&lapic->timer_lock);
        lapic->timer_initial = 0;
        pthread_mutex_unlock(&lapic->timer_lock);
        lapic_timer_stop(lapic);
}

uint64_t lapic_timer_deadline(struct lapic *lapic)
{
        uint64_t tsc;

        pthread_mutex_lock(&lapic->timer_lock);
        tsc = lapic->tsc_deadline;
        pthread_mutex_unlock(&lapic->timer_lock);
        return tsc;
}

void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc)
{
        bool fired;

        if (!deadline_mode(lapic))
                return;
        pthread_mutex_lock(&lapic->timer_lock);
        lapic->tsc_deadline = tsc;
        fired = tsc && expire(lapic);
        if (!fired)
                arm(lapic);
        else
                timer_cancel(&lapic->timer);
        pthread_mutex_unlock(&lapic->timer_lock);
        if (fired)
                lapic_local(lapic, LVT_TIMER);
}

void lapic_timer_rearm(struct lapic *lapic)
{
        pthread_mutex_lock(&lapic->timer_lock);
        arm(lapic);
        pthread_mutex_unlock(&lapic->timer_lock);
}
