/*
 * The machine as an escaped guest: a real machine is made and confined as always, and then, where the first guest instruction
 * would be, its vCPU's thread and its main thread try every way out (base/test-escape.h).
 *
 * The linker puts the functions here around confine_enter() and confine_vcpu() (--wrap), so everything before them is what users run.
 * Usage: escape KERNEL. Exit 0 when no attempt worked.
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/test-escape.h"
#include "net/peer.h"
#include "vmm/confine.h"
#include "vmm/vmm.h"

static struct escape in;

int __real_confine_enter(struct confine *confine, const struct sandbox_directory *directories, size_t count, unsigned threads, struct err *err);
int __wrap_confine_enter(struct confine *confine, const struct sandbox_directory *directories, size_t count, unsigned threads, struct err *err);
int __real_confine_vcpu(const struct confine *confine, struct err *err);
int __wrap_confine_vcpu(const struct confine *confine, struct err *err);

static unsigned from_main;

int __wrap_confine_enter(struct confine *confine, const struct sandbox_directory *directories, size_t count, unsigned threads, struct err *err)
{
        int r = __real_confine_enter(confine, directories, count, threads, err);

        in.share = count ? directories[0].fd : -1;
        if (r >= 0)
                from_main = escape_try_all(&in, STDOUT_FILENO);
        return r;
}

int __wrap_confine_vcpu(const struct confine *confine, struct err *err)
{
        const struct sandbox *reached = &confine->reached;
        int r = __real_confine_vcpu(confine, err);
        unsigned from_vcpu = escape_count();

        if (r >= 0)
                from_vcpu = escape_try_all(&in, STDOUT_FILENO);
        else
                escape_say(STDOUT_FILENO, "not ok: %s\n", err->text);
        escape_say(STDOUT_FILENO, "namespaces user %d mount %d network %d, empty root %d, Landlock %d, no capabilities %d, no new privileges %d, filter %d\n",
                reached->user_ns, reached->mount_ns, reached->net_ns, reached->empty_root, reached->landlock, reached->no_capabilities,
                reached->no_new_privs, reached->filter);
        escape_say(STDOUT_FILENO, "%s: %u ways out tried from each of two threads, %u worked\n", from_main + from_vcpu ? "not ok" : "ok",
                escape_count(), from_main + from_vcpu);
        _exit(from_main + from_vcpu ? 1 : 0);
}

static int run_machine(const char *kernel, const char *share)
{
        struct vmm_config config = {
                .kernel = kernel, .accel = "software", .serial = VMM_SERIAL_NONE, .nets = 1, .shares = 1, .share = { { .path = share } },
        };
        struct err err = ERR_INIT;
        int exit_code = 1;

        if (net_options_parse("user", &config.net[0], &err) < 0 || vmm_run(&config, &exit_code, &err) < 0)
                printf("not ok: %s\n", err.text);
        return 1;
}

int main(int argc, char **argv)
{
        char share[] = "/tmp/virta-escape-XXXXXX";
        int status = 1;
        pid_t pid;

        if (argc > 1 && !strcmp(argv[1], NET_SERVE_COMMAND))
                return net_serve(NET_SERVE_FD, true, NULL) < 0;
        if (argc < 2 || access(argv[1], R_OK) < 0) {
                printf("the guest's kernel is not there: run scripts/guest\n");
                return 77;
        }
        log_init("virta", LOG_WARNING);
        if (escape_prepare(&in, share) < 0) {
                perror("preparing");
                return 1;
        }
        fflush(stdout);
        pid = fork();
        if (pid == 0)
                exit(run_machine(argv[1], share));
        waitpid(pid, &status, 0);
        escape_clean_up(&in, share);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
