/*
 * The table of accelerators and the choice between them.
 */
#include "vmm/accel.h"

#include <errno.h>
#include <stdio.h>

#include "vmm/vmm.h"

const struct accel_ops *const accel_drivers[] = { &accel_kvm_ops, &accel_software_ops, NULL };

const char *vmm_accel_names(void)
{
        return "auto, kvm, software";
}

bool vmm_probe_accel(unsigned index, struct vmm_accel_probe *probe)
{
        if (index >= ARRAY_SIZE(accel_drivers) - 1)
                return false;
        *probe = (struct vmm_accel_probe){ .name = accel_drivers[index]->name, .text = accel_drivers[index]->text };
        probe->result = accel_drivers[index]->probe(&probe->million_instructions_s, &probe->err);
        return true;
}

static int choose_first(const struct accel_ops **ops, struct err *why, struct err *err)
{
        for (unsigned i = 0; accel_drivers[i]; i++) {
                double speed;
                int r = accel_drivers[i]->probe(&speed, accel_drivers[i + 1] ? why : err);

                if (r >= 0) {
                        *ops = accel_drivers[i];
                        return 0;
                }
        }
        return err->code ? err->code : -ENOSYS;
}

int accel_choose(const char *name, const struct accel_ops **ops, struct err *why, struct err *err)
{
        struct err local = ERR_INIT;
        double speed;
        int r;

        if (!name || !strcmp(name, "auto")) {
                r = choose_first(ops, why, &local);
                return r < 0 ? err_set(err, r, "%s", local.text) : 0;
        }
        for (unsigned i = 0; accel_drivers[i]; i++) {
                if (strcmp(name, accel_drivers[i]->name))
                        continue;
                r = accel_drivers[i]->probe(&speed, err);
                if (r < 0)
                        return r;
                *ops = accel_drivers[i];
                return 0;
        }
        return err_set(err, -EINVAL, "there is no accelerator '%s'; one of %s", name, vmm_accel_names());
}
