/* Linked only while src/vmm has no vmm_run() of its own (see meson.build). */
#include <errno.h>

#include "vmm/vmm.h"

int vmm_run(const struct vmm_config *config, int *exit_code, struct err *err)
{
        return err_set(err, -ENOSYS, "this build of virta has no machine");
}

bool vmm_probe_accel(unsigned index, struct vmm_accel_probe *probe)
{
        return false;
}
