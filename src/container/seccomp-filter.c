#include "container/seccomp-filter.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV /* Linux 5.19 */
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

const char *const seccomp_actions[] = {
        "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP", NULL,
};

const char *const seccomp_operators[] = {
        "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE", NULL,
};

static const struct {
        const char *name, *library;
} architectures[] = {
        { "SCMP_ARCH_AARCH64", "aarch64" }, { "SCMP_ARCH_ARM", "arm" },         { "SCMP_ARCH_MIPS", "mips" },
        { "SCMP_ARCH_MIPS64", "mips64" },   { "SCMP_ARCH_MIPS64N32", "mips64n32" }, { "SCMP_ARCH_MIPSEL", "mipsel" },
        { "SCMP_ARCH_MIPSEL64", "mipsel64" }, { "SCMP_ARCH_MIPSEL64N32", "mipsel64n32" }, { "SCMP_ARCH_PPC", "ppc" },
        { "SCMP_ARCH_PPC64", "ppc64" },     { "SCMP_ARCH_PPC64LE", "ppc64le" }, { "SCMP_ARCH_RISCV64", "riscv64" },
        { "SCMP_ARCH_S390", "s390" },       { "SCMP_ARCH_S390X", "s390x" },     { "SCMP_ARCH_X32", "x32" },
        { "SCMP_ARCH_X86", "x86" },         { "SCMP_ARCH_X86_64", "x86_64" },
};

const char *const seccomp_architectures[] = {
        "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X",
        "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", NULL,
};

static const struct {
        const char *name;
        unsigned flag;
} flags[] = {
        { "SECCOMP_FILTER_FLAG_TSYNC", SECCOMP_FILTER_FLAG_TSYNC },
        { "SECCOMP_FILTER_FLAG_SPEC_ALLOW", SECCOMP_FILTER_FLAG_SPEC_ALLOW },
        { "SECCOMP_FILTER_FLAG_LOG", SECCOMP_FILTER_FLAG_LOG },
        { "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV },
};

const char *const seccomp_flags[] = {
        "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", NULL,
};

/* The kernel looks at the flags before the program: a bad address says that it knows them. seccomp(2), ERRORS. */
bool seccomp_flag_works(const char *name)
{
        for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
                if (!strcmp(flags[i].name, name))
                        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags[i].flag, NULL) < 0 && errno == EFAULT;
        return false;
}

static int action_of(const char *name, const struct maybe *errno_ret, uint32_t *action, struct err *err)
{
        /* "errnoRet … default EPERM"; for TRACE it is what the tracer is told. */
        uint16_t value = errno_ret->given ? (uint16_t)errno_ret->value : EPERM;
        const struct {
                const char *name;
                uint32_t action;
                bool takes_value;
        } actions[] = {
                { "SCMP_ACT_KILL", SCMP_ACT_KILL_THREAD },
                { "SCMP_ACT_KILL_THREAD", SCMP_ACT_KILL_THREAD },
                { "SCMP_ACT_KILL_PROCESS", SCMP_ACT_KILL_PROCESS },
                { "SCMP_ACT_TRAP", SCMP_ACT_TRAP },
                { "SCMP_ACT_ERRNO", SCMP_ACT_ERRNO(value), true },
                { "SCMP_ACT_TRACE", SCMP_ACT_TRACE(value), true },
                { "SCMP_ACT_ALLOW", SCMP_ACT_ALLOW },
                { "SCMP_ACT_LOG", SCMP_ACT_LOG },
                { "SCMP_ACT_NOTIFY", SCMP_ACT_NOTIFY },
        };

        for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
                if (strcmp(actions[i].name, name) != 0)
                        continue;
                if (errno_ret->given && !actions[i].takes_value)
                        return err_set(err, -EINVAL, "linux.seccomp has an errnoRet with the action %s, which returns none", name);
                *action = actions[i].action;
                return 0;
        }
        return err_set(err, -EINVAL, "linux.seccomp has the unknown action '%s'", name);
}

static int add_rule(scmp_filter_ctx ctx, const struct syscall_config *rule, uint32_t action, int number, const char *name, struct err *err)
{
        struct scmp_arg_cmp compares[6];
        bool twice = false;
        uint32_t seen = 0;
        int r = 0;

        for (size_t i = 0; i < rule->arg_count; i++) {
                const struct syscall_argument_rule *arg = &rule->args[i];

                /* For MASKED_EQ the specification's value is the mask and valueTwo what is compared, as libseccomp has them. */
                if (i < 6)
                        compares[i] = (struct scmp_arg_cmp){ arg->index, (enum scmp_compare)arg->op, arg->value, arg->value_two };
                twice |= seen >> arg->index & 1;
                seen |= 1u << arg->index;
        }
        /* One argument twice: "or", which libseccomp has as rules of their own. */
        if (twice || rule->arg_count > 6) {
                for (size_t i = 0; i < rule->arg_count && !r; i++) {
                        const struct syscall_argument_rule *arg = &rule->args[i];
                        struct scmp_arg_cmp one = { arg->index, (enum scmp_compare)arg->op, arg->value, arg->value_two };

                        r = seccomp_rule_add_array(ctx, action, number, 1, &one);
                        r = r == -EEXIST ? 0 : r;
                }
        } else {
                r = seccomp_rule_add_array(ctx, action, number, (unsigned)rule->arg_count, compares);
        }
        /* The same rule twice, or one that the default covers. */
        if (r < 0 && r != -EEXIST)
                return err_errno(err, r, "linux.seccomp cannot have a rule for '%s'", name);
        return 0;
}

static int add_rules(scmp_filter_ctx ctx, const struct seccomp_config *config, uint32_t default_action, struct seccomp_filter *filter, struct err *err)
{
        for (size_t i = 0; i < config->syscall_count; i++) {
                const struct syscall_config *rule = &config->syscalls[i];
                uint32_t action;
                int r = action_of(rule->action, &rule->errno_ret, &action, err);

                if (r < 0)
                        return r;
                if (action == default_action)
                        continue;
                filter->notifies |= action == SCMP_ACT_NOTIFY;
                for (const char **name = rule->names; *name; name++) {
                        int number = seccomp_syscall_resolve_name(*name);

                        /* Profiles name calls of other architectures and of later kernels. */
                        if (number == __NR_SCMP_ERROR)
                                continue;
                        /* The answer that lets the process go on would have to be asked for by write(2). */
                        if (action == SCMP_ACT_NOTIFY && number == SCMP_SYS(write))
                                return err_set(err, -EINVAL, "linux.seccomp asks about 'write', without which nobody can be asked");
                        r = add_rule(ctx, rule, action, number, *name, err);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int add_architectures(scmp_filter_ctx ctx, const char **names, struct err *err)
{
        for (; *names; names++) {
                uint32_t token = 0;
                int r;

                for (size_t i = 0; i < ARRAY_SIZE(architectures); i++)
                        if (!strcmp(architectures[i].name, *names))
                                token = seccomp_arch_resolve_name(architectures[i].library);
                if (!token)
                        return err_set(err, -EINVAL, "linux.seccomp has the unknown architecture '%s'", *names);
                r = seccomp_arch_add(ctx, token);
                if (r < 0 && r != -EEXIST)
                        return err_errno(err, r, "linux.seccomp cannot have the architecture '%s'", *names);
        }
        return 0;
}

static int take_flags(const char **names, struct seccomp_filter *filter, struct err *err)
{
        for (; *names; names++) {
                size_t i = 0;

                while (i < ARRAY_SIZE(flags) && strcmp(flags[i].name, *names) != 0)
                        i++;
                if (i == ARRAY_SIZE(flags))
                        return err_set(err, -EINVAL, "linux.seccomp has the unknown flag '%s'", *names);
                filter->flags |= flags[i].flag;
        }
        return 0;
}

/* libseccomp writes the program to a descriptor. */
static int export(scmp_filter_ctx ctx, struct seccomp_filter *filter, struct err *err)
{
        _cleanup_close_ int fd = memfd_create("seccomp", MFD_CLOEXEC);
        int r = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);
        off_t size = r < 0 ? 0 : lseek(fd, 0, SEEK_END);
        struct sock_filter *code;

        if (r < 0)
                return err_errno(err, r, "cannot compile linux.seccomp");
        if (size / (off_t)sizeof(*code) > BPF_MAXINSNS)
                return err_set(err, -E2BIG, "linux.seccomp makes a program of %lld instructions, more than the kernel's %d",
                               (long long)size / (long long)sizeof(*code), BPF_MAXINSNS);
        code = malloc((size_t)size);
        if (!code)
                return err_nomem(err);
        if (pread(fd, code, (size_t)size, 0) != size) {
                free(code);
                return err_errno(err, -errno, "cannot compile linux.seccomp");
        }
        filter->program = (struct sock_fprog){ (unsigned short)((size_t)size / sizeof(*code)), code };
        return 0;
}

int seccomp_compile(const struct seccomp_config *config, struct seccomp_filter *filter, struct err *err)
{
        struct seccomp_filter compiled = { 0 };
        scmp_filter_ctx ctx;
        uint32_t action;
        int r;

        *filter = compiled;
        if (!config->given)
                return 0;
        r = action_of(config->default_action, &config->default_errno, &action, err);
        if (r < 0)
                return r;
        if (action == SCMP_ACT_NOTIFY)
                return err_set(err, -EINVAL, "linux.seccomp.defaultAction cannot be SCMP_ACT_NOTIFY");
        ctx = seccomp_init(action);
        if (!ctx)
                return err_nomem(err);
        r = take_flags(config->flags, &compiled, err);
        if (!r)
                r = add_architectures(ctx, config->architectures, err);
        /* A tree of comparisons instead of a list: fewer steps for each call. */
        if (!r)
                (void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        if (!r)
                r = add_rules(ctx, config, action, &compiled, err);
        if (!r)
                r = export(ctx, &compiled, err);
        seccomp_release(ctx);
        if (!r)
                *filter = compiled;
        return r;
}

int seccomp_load_filter(const struct seccomp_filter *filter, int *listener_fd, struct err *err)
{
        unsigned with = filter->flags;
        long r;

        *listener_fd = -1;
        if (!filter->program.filter)
                return 0;
        if (filter->notifies)
                with |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
        /* Both answer by the return value: the kernel wants the word that the listener's counts. */
        if (filter->notifies && with & SECCOMP_FILTER_FLAG_TSYNC)
                with |= SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, with, &filter->program);
        if (r < 0)
                return err_errno(err, -errno, "cannot load the seccomp filter of %u instructions", filter->program.len);
        if (filter->notifies)
                *listener_fd = (int)r;
        return 0;
}

void seccomp_filter_done(struct seccomp_filter *filter)
{
        free(filter->program.filter);
        *filter = (struct seccomp_filter){ 0 };
}
