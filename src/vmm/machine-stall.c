/*
 * A machine that stands still because a device waits for something on the host: a disk whose image finds no space, as a rule.
 *
 *      running ──stall()──▶ paused ──RETRY_MS──▶ running on probation ──RETRY_MS──▶ running
 *                             ▲                        │
 *                             └────────stall()─────────┘
 *
 * The device tries again as soon as the machine is resumed, so a probation that fails is short. It is said once when the machine stops
 * and once when it has gone on for good.
 */
#include <errno.h>

#include "base/log.h"
#include "vmm/machine-internal.h"

#define RETRY_MS 1000

enum stall_state { STALL_NONE, STALL_COMES, STALL_PAUSED, STALL_PROBATION };

struct machine_stall {
        uv_timer_t timer;
        struct machine *machine;
        enum stall_state state;
        bool said;
        char why[320];
};

static void tick(uv_timer_t *timer);

static void wait_then_tick(struct machine_stall *stall, enum stall_state state, uint64_t ms)
{
        stall->state = state;
        uv_timer_start(&stall->timer, tick, ms, 0);
}

static void tick(uv_timer_t *timer)
{
        struct machine_stall *stall = container_of(timer, struct machine_stall, timer);
        struct machine *machine = stall->machine;

        switch (stall->state) {
        case STALL_COMES:
                machine_pause(machine);
                if (!stall->said)
                        log_warning("%s; the machine is paused and tries again every %d s", stall->why, RETRY_MS / 1000);
                stall->said = true;
                wait_then_tick(stall, STALL_PAUSED, RETRY_MS);
                break;
        case STALL_PAUSED:
                /* Somebody else's pause: while that lasts the devices do not try either. */
                if (machine->pauses > 1 || machine->ended) {
                        wait_then_tick(stall, STALL_PAUSED, RETRY_MS);
                        break;
                }
                wait_then_tick(stall, STALL_PROBATION, RETRY_MS);
                machine_resume(machine);
                break;
        case STALL_PROBATION:
                if (machine->pauses) {
                        wait_then_tick(stall, STALL_PROBATION, RETRY_MS);
                        break;
                }
                stall->state = STALL_NONE;
                stall->said = false;
                log_info("the machine goes on");
                break;
        case STALL_NONE:
                break;
        }
}

/* Within a device's completion: the pause has to wait for the loop's next round. */
static void stalled(void *ctx, const char *id, const char *why)
{
        struct machine_stall *stall = ((struct machine *)ctx)->stall;

        if (stall->state == STALL_COMES || stall->state == STALL_PAUSED)
                return;
        snprintf(stall->why, sizeof(stall->why), "%s: %s", id, why);
        wait_then_tick(stall, STALL_COMES, 0);
}

int machine_stall_init(struct machine *machine, struct err *err)
{
        struct machine_stall *stall = calloc(1, sizeof(*stall));
        int r;

        if (!stall)
                return err_nomem(err);
        r = uv_timer_init(machine->host.loop, &stall->timer);
        if (r < 0) {
                free(stall);
                return err_set(err, r, "cannot make a timer: %s", uv_strerror(r));
        }
        stall->machine = machine;
        machine->stall = stall;
        machine->host.stall = stalled;
        return 0;
}

static void closed(uv_handle_t *handle)
{
        free(container_of((uv_timer_t *)handle, struct machine_stall, timer));
}

void machine_stall_free(struct machine *machine)
{
        machine->host.stall = NULL;
        if (machine->stall)
                uv_close((uv_handle_t *)&machine->stall->timer, closed);
        machine->stall = NULL;
}

const char *machine_stall_why(const struct machine *machine)
{
        return machine->stall && machine->stall->said ? machine->stall->why : NULL;
}
