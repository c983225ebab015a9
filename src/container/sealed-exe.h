/*
 * The runtime runs from a file that a container cannot write to.
 *
 * A process that enters a container shows its program there as /proc/PID/exe; a container's root that opened it for writing once the
 * runtime has ended could replace the runtime itself (CVE-2019-5736). So the program is executed again from a read-only mount of
 * its own that is attached nowhere, or, where that may not be made, from a sealed copy in memory.
 */
#pragma once

#include "base/err.h"

/* Returns 0 when we run from such a file; else executes ourselves again with the same arguments and does not return. */
int sealed_exe_ensure(struct err *err) _must_check_;
