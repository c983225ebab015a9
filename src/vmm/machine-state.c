/*
 * A machine's state as records, and back. See machine.h.
 *
 *      "machine"   what it is made of: accelerator, processor model, processors, memory, devices by name and in order
 *      "board"     the board's own devices and the guest's clock
 *      NAME        one for each device on the PCI bus, by its id
 *      …           one for each vCPU, the accelerator's own
 *
 * A stream is loaded into a machine that was made from the same description; the first record proves it. Memory's contents travel
 * by other ways: the memfd itself, a copy of it, or page by page.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "vmm/machine-internal.h"

#define MACHINE_RECORD "machine"
#define MACHINE_VERSION 1
#define TEXT_MAX 64u

static void put_text(struct writer *out, const char *text)
{
        size_t length = MIN(strlen(text), (size_t)TEXT_MAX);

        writer_u8(out, (uint8_t)length);
        writer_put(out, text, length);
}

static void get_text(struct cursor *in, char text[TEXT_MAX + 1])
{
        size_t length = cursor_u8(in);

        text[0] = '\0';
        if (length > TEXT_MAX)
                in->bad = true;
        else if (cursor_get(in, text, length) >= 0)
                text[length] = '\0';
}

static const char *model_name(const struct machine *machine)
{
        return machine->config.cpu_model ? machine->config.cpu_model : "max";
}

static void save_description(struct machine *machine, struct writer *out)
{
        size_t mark = record_begin(out, MACHINE_RECORD, MACHINE_VERSION);

        put_text(out, machine->ops->name);
        put_text(out, model_name(machine));
        writer_le32(out, machine->config.cpus);
        writer_le32(out, machine->mem.regions);
        for (unsigned i = 0; i < machine->mem.regions; i++) {
                writer_le64(out, machine->mem.region[i].gpa);
                writer_le64(out, machine->mem.region[i].size_bytes);
                writer_le64(out, machine->mem.region[i].fd_offset);
        }
        writer_le64(out, machine->layout.window64);
        writer_le64(out, machine->layout.window64_size);
        writer_le32(out, machine->devices);
        for (unsigned i = 0; i < machine->devices; i++)
                put_text(out, machine->device[i]->id);
        record_end(out, mark);
}

int machine_save(struct machine *machine, struct writer *out, struct err *err)
{
        int r;

        if (!machine->pauses)
                return err_set(err, -EBUSY, "the machine runs; pause it before its state is saved");
        if (machine->ended || atomic_load(&machine->events))
                return err_set(err, -ESHUTDOWN, "the machine ends or resets just now; there is nothing to save");
        save_description(machine, out);
        board_save(machine->board, out);
        for (unsigned i = 0; i < machine->devices; i++)
                device_record_save(machine->device[i], out);
        for (unsigned i = 0; i < machine->config.cpus; i++) {
                r = machine->ops->save(machine->vcpu[i].vcpu, out, err);
                if (r < 0)
                        return r;
        }
        return out->bad ? err_nomem(err) : 0;
}

static int expect(const struct record *record, const char *name, struct err *err)
{
        if (strcmp(record->name, name))
                return err_set(err, -EBADMSG, "record '%s' where '%s' belongs", record->name, name);
        return 0;
}

static int check_text(struct cursor *in, const char *what, const char *ours, struct err *err)
{
        char text[TEXT_MAX + 1];

        get_text(in, text);
        if (in->bad || strncmp(text, ours, TEXT_MAX))
                return err_set(err, -EINVAL, "the saved machine has %s '%s', this one '%s'", what, text, ours);
        return 0;
}

static int check_number(struct cursor *in, const char *what, uint64_t value, uint64_t ours, struct err *err)
{
        if (in->bad || value != ours)
                return err_set(err, -EINVAL, "the saved machine has %s %" PRIu64 ", this one %" PRIu64, what, value, ours);
        return 0;
}

static int check_description(struct machine *machine, struct cursor *in, struct err *err)
{
        int r = check_text(in, "accelerator", machine->ops->name, err);

        if (r >= 0)
                r = check_text(in, "processor model", model_name(machine), err);
        if (r >= 0)
                r = check_number(in, "processors:", cursor_le32(in), machine->config.cpus, err);
        if (r >= 0)
                r = check_number(in, "memory regions:", cursor_le32(in), machine->mem.regions, err);
        for (unsigned i = 0; r >= 0 && i < machine->mem.regions; i++) {
                r = check_number(in, "memory at", cursor_le64(in), machine->mem.region[i].gpa, err);
                if (r >= 0)
                        r = check_number(in, "memory of bytes:", cursor_le64(in), machine->mem.region[i].size_bytes, err);
                if (r >= 0)
                        r = check_number(in, "memory at offset", cursor_le64(in), machine->mem.region[i].fd_offset, err);
        }
        if (r >= 0)
                r = check_number(in, "a PCI window at", cursor_le64(in), machine->layout.window64, err);
        if (r >= 0)
                r = check_number(in, "a PCI window of bytes:", cursor_le64(in), machine->layout.window64_size, err);
        if (r >= 0)
                r = check_number(in, "devices:", cursor_le32(in), machine->devices, err);
        for (unsigned i = 0; r >= 0 && i < machine->devices; i++)
                r = check_text(in, "device", machine->device[i]->id, err);
        return r;
}

static int load_device(struct device *dev, struct cursor *in, struct err *err)
{
        struct record record;
        int r;

        if (!dev->ops->save)
                return 0;
        r = record_next(in, &record, err);
        return r < 0 ? err_wrap(err, r, "restoring device %s", dev->id) : device_record_load(dev, &record, err);
}

static int load_parts(struct machine *machine, struct cursor *in, struct err *err)
{
        struct record record;
        int r = record_next(in, &record, err);

        if (r >= 0)
                r = expect(&record, "board", err);
        if (r >= 0)
                r = board_load(machine->board, record.version, &record.body, err);
        if (r >= 0)
                r = record_finish(&record, err);
        for (unsigned i = 0; r >= 0 && i < machine->devices; i++)
                r = load_device(machine->device[i], in, err);
        for (unsigned i = 0; r >= 0 && i < machine->config.cpus; i++) {
                r = machine->ops->load(machine->vcpu[i].vcpu, in, err);
                if (r < 0)
                        err_wrap(err, r, "restoring vCPU %u", i);
        }
        if (r >= 0 && cursor_left(in))
                return err_set(err, -EBADMSG, "%zu bytes are left after the last vCPU", cursor_left(in));
        return r;
}

int machine_load(struct machine *machine, struct cursor *in, struct err *err)
{
        struct record record;
        int r;

        if (!machine->pauses)
                return err_set(err, -EBUSY, "the machine runs; pause it before its state is restored");
        r = record_next(in, &record, err);
        if (r >= 0)
                r = expect(&record, MACHINE_RECORD, err);
        if (r >= 0 && record.version != MACHINE_VERSION)
                r = err_set(err, -EBADMSG, "a machine of version %u, this program knows %u", record.version, MACHINE_VERSION);
        if (r >= 0)
                r = check_description(machine, &record.body, err);
        if (r >= 0)
                r = record_finish(&record, err);
        if (r < 0)
                return err_wrap(err, r, "cannot restore machine %s", machine->config.name);
        r = load_parts(machine, in, err);
        if (r < 0) {
                struct err ignored = ERR_INIT;

                if (machine_reset(machine, &ignored) < 0)
                        log_error("and it cannot be reset: %s", ignored.text);
                return err_wrap(err, r, "cannot restore machine %s", machine->config.name);
        }
        /* Memory may be another machine's now. */
        for (unsigned i = 0; i < machine->mem.regions; i++)
                guest_memory_written(&machine->mem, machine->mem.region[i].gpa, machine->mem.region[i].size_bytes);
        pthread_mutex_lock(&machine->lock);
        for (unsigned i = 0; i < machine->config.cpus; i++)
                machine->vcpu[i].stopped = false;
        pthread_mutex_unlock(&machine->lock);
        atomic_store(&machine->events, 0);
        machine->ended = false;
        return 0;
}
