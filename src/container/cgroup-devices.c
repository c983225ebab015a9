/*
 * Device rules of cgroup version 2: a BPF program asked at each open and mknod of a device.
 *
 * The program gets a struct bpf_cgroup_dev_ctx: access_type holds the device's type in its lower half and the access in its upper,
 * then major and minor. The rules are tried from the last to the first, since a later one counts more; the first that fits
 * decides. A rule fits when it names the device and one of the accesses asked for; one that allows must have all of them, and
 * one that forbids any of them. Nothing fits: refused.
 *
 * Source: linux/bpf.h; Linux admin-guide/cgroup-v2, "Device controller"; bpf(2).
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <sys/syscall.h>

#include "container/cgroup.h"

/* Registers: r1 context (given), r2 type, r3 access, r4 major, r5 minor. */
enum { R_RESULT = 0, R_CONTEXT = 1, R_TYPE = 2, R_ACCESS = 3, R_MAJOR = 4, R_MINOR = 5, R_SCRATCH = 6 };

struct program {
        struct bpf_insn *code;
        size_t count, room;
};

static void emit(struct program *p, uint8_t op, uint8_t to, uint8_t from, int16_t offset, int32_t value)
{
        if (p->count < p->room)
                p->code[p->count] = (struct bpf_insn){ .code = op, .dst_reg = to, .src_reg = from, .off = offset, .imm = value };
        p->count++;
}

static void emit_prologue(struct program *p)
{
        emit(p, BPF_LDX | BPF_MEM | BPF_W, R_TYPE, R_CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, access_type), 0);
        emit(p, BPF_ALU | BPF_MOV | BPF_X, R_ACCESS, R_TYPE, 0, 0);
        emit(p, BPF_ALU | BPF_AND | BPF_K, R_TYPE, 0, 0, 0xffff);
        emit(p, BPF_ALU | BPF_RSH | BPF_K, R_ACCESS, 0, 0, 16);
        emit(p, BPF_LDX | BPF_MEM | BPF_W, R_MAJOR, R_CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, major), 0);
        emit(p, BPF_LDX | BPF_MEM | BPF_W, R_MINOR, R_CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, minor), 0);
}

static void emit_result(struct program *p, bool allow)
{
        emit(p, BPF_ALU64 | BPF_MOV | BPF_K, R_RESULT, 0, 0, allow);
        emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* Jumps over the rest of the rule, whose length is known at its end. */
static size_t emit_skip_unless(struct program *p, uint8_t op, uint8_t reg, int32_t value)
{
        emit(p, BPF_JMP32 | op | BPF_K, reg, 0, 0, value);
        return p->count - 1;
}

static void emit_rule(struct program *p, const struct device_rule *rule)
{
        uint32_t access = (rule->read ? BPF_DEVCG_ACC_READ : 0) | (rule->write ? BPF_DEVCG_ACC_WRITE : 0) | (rule->make ? BPF_DEVCG_ACC_MKNOD : 0);
        size_t skips[4], count = 0;

        if (rule->type != 'a')
                skips[count++] = emit_skip_unless(p, BPF_JNE, R_TYPE, rule->type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR);
        if (access != 7) {
                emit(p, BPF_ALU | BPF_MOV | BPF_X, R_SCRATCH, R_ACCESS, 0, 0);
                emit(p, BPF_ALU | BPF_AND | BPF_K, R_SCRATCH, 0, 0, (int32_t)(rule->allow ? ~access & 7 : access));
                /* Allowing: none of the others may be asked for. Forbidding: one of these must be. */
                skips[count++] = emit_skip_unless(p, rule->allow ? BPF_JNE : BPF_JEQ, R_SCRATCH, 0);
        }
        if (rule->major >= 0)
                skips[count++] = emit_skip_unless(p, BPF_JNE, R_MAJOR, (int32_t)rule->major);
        if (rule->minor >= 0)
                skips[count++] = emit_skip_unless(p, BPF_JNE, R_MINOR, (int32_t)rule->minor);
        emit_result(p, rule->allow);
        for (size_t i = 0; i < count && p->count <= p->room; i++)
                p->code[skips[i]].off = (int16_t)(p->count - skips[i] - 1);
}

/* Everything behind a rule that fits all would never be reached, and the kernel refuses such code. */
static bool fits_all(const struct device_rule *rule)
{
        return rule->type == 'a' && rule->major < 0 && rule->minor < 0 && rule->read && rule->write && rule->make;
}

static long bpf(int command, union bpf_attr *attr, size_t size)
{
        return syscall(SYS_bpf, command, attr, size);
}

#define PROGRAMS_MAX 64

/* Those that are attached to the group already, to be replaced when limits change. */
static size_t attached(int cgroup_fd, uint32_t ids[PROGRAMS_MAX])
{
        union bpf_attr attr = { 0 };

        attr.query.target_fd = (uint32_t)cgroup_fd;
        attr.query.attach_type = BPF_CGROUP_DEVICE;
        attr.query.prog_ids = (uintptr_t)ids;
        attr.query.prog_cnt = PROGRAMS_MAX;
        return bpf(BPF_PROG_QUERY, &attr, sizeof(attr)) < 0 ? 0 : MIN(attr.query.prog_cnt, (uint32_t)PROGRAMS_MAX);
}

static void detach(int cgroup_fd, uint32_t id)
{
        union bpf_attr attr = { 0 };

        attr.prog_id = id;
        _cleanup_close_ int fd = (int)bpf(BPF_PROG_GET_FD_BY_ID, &attr, sizeof(attr));
        if (fd < 0)
                return;
        attr = (union bpf_attr){ 0 };
        attr.target_fd = (uint32_t)cgroup_fd;
        attr.attach_bpf_fd = (uint32_t)fd;
        attr.attach_type = BPF_CGROUP_DEVICE;
        (void)bpf(BPF_PROG_DETACH, &attr, sizeof(attr));
}

int cgroup_devices_program(int cgroup_fd, const struct device_rule *rules, size_t count, struct err *err)
{
        _cleanup_free_ struct bpf_insn *code = calloc(count + 2, 16 * sizeof(*code));
        struct program p = { code, 0, (count + 2) * 16 };
        uint32_t old[PROGRAMS_MAX];
        size_t old_count;
        union bpf_attr attr = { 0 };
        bool decided = false;

        if (!code)
                return err_nomem(err);
        emit_prologue(&p);
        for (size_t i = count; i-- && !decided;) {
                emit_rule(&p, &rules[i]);
                decided = fits_all(&rules[i]);
        }
        if (!decided)
                emit_result(&p, false);
        attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
        attr.insns = (uintptr_t)code;
        attr.insn_cnt = (uint32_t)p.count;
        attr.license = (uintptr_t) "GPL";
        _cleanup_close_ int fd = (int)bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
        if (fd < 0)
                return err_errno(err, -errno, "the kernel does not take the program of %zu device rules", count);
        old_count = attached(cgroup_fd, old);
        attr = (union bpf_attr){ 0 };
        attr.target_fd = (uint32_t)cgroup_fd;
        attr.attach_bpf_fd = (uint32_t)fd;
        attr.attach_type = BPF_CGROUP_DEVICE;
        attr.attach_flags = BPF_F_ALLOW_MULTI;
        if (bpf(BPF_PROG_ATTACH, &attr, sizeof(attr)) < 0)
                return err_errno(err, -errno, "cannot attach the device rules to the cgroup");
        for (size_t i = 0; i < old_count; i++)
                detach(cgroup_fd, old[i]);
        return 0;
}
