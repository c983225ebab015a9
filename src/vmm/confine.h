/*
 * The machine's process in its sandbox (base/sandbox.h): what it keeps, stage by stage.
 *
 *   confine_isolate()  first of all, on the only thread. The network processes were started before it.
 *   confine_enter()    everything is open: kernel, disks, terminal, /dev/kvm, shared directories. From here on no path but the
 *                      shared directories' exists.
 *   confine_vcpu()     each vCPU's thread, before its first guest instruction: it computes, waits, and rings doorbells.
 *
 * With --sandbox off none of it happens and a warning says so.
 */
#pragma once

#include "base/guest-memory.h"
#include "base/sandbox.h"

struct confine {
        bool off;
        struct sandbox reached;
};

/* Warns when off, and with what the host does not allow. */
int confine_isolate(struct confine *confine, bool off, struct err *err) _must_check_;

/* threads: vCPUs; the pool's are added. The lists hold for every thread of the process, also for later ones. */
int confine_enter(struct confine *confine, const struct sandbox_directory *directories, size_t count, unsigned threads,
                  struct err *err) _must_check_;

int confine_vcpu(const struct confine *confine, struct err *err) _must_check_;
