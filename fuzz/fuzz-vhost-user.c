/*
 * A hostile vhost-user front end: the input is its messages, and what is in the memory it shares. Each message is a byte for its request, one for its
 * flags, one for the descriptors that come with it (how many, which), one for the length of its payload, and the payload. The disk is in memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/test-memory.h"
#include "device/vhost-user-wire.h"
#include "device/vhost-user.h"

#define DISK_BYTES (1u << 20)
#define MACHINE_BYTES (64u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

struct bed {
        uv_loop_t loop;
        struct vhost_user_server *server;
        int socket, memory, record, bell, file;
};

static void batch(void *ctx)
{
        vhost_user_server_batch(((struct bed *)ctx)->server);
}

static void answers(struct bed *bed)
{
        uint8_t bin[1024];

        for (int n = 0; n < 3; n++)
                uv_run(&bed->loop, UV_RUN_NOWAIT);
        while (recv(bed->socket, bin, sizeof(bin), MSG_DONTWAIT) > 0)
                ;
}

static void say(struct bed *bed, uint8_t request, uint8_t flags, uint8_t what, const uint8_t *payload, size_t size_bytes)
{
        const int choice[4] = { bed->memory, bed->bell, bed->record, bed->file };
        struct vhost_user_header head = { .request = request, .flags = flags & 0x80 ? flags : (VHOST_USER_VERSION | (flags & 8)), .size = (uint32_t)size_bytes };
        unsigned fds = what & 7;
        union {
                struct cmsghdr head;
                char room[CMSG_SPACE(8 * sizeof(int))];
        } control = { 0 };
        struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)payload, size_bytes } };
        struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

        if (fds) {
                msg.msg_control = &control;
                msg.msg_controllen = CMSG_SPACE(fds * sizeof(int));
                control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(fds * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
                for (unsigned n = 0; n < fds; n++)
                        memcpy(CMSG_DATA(&control.head) + n * sizeof(int), &choice[what >> 3 & 3], sizeof(int));
        }
        (void)!sendmsg(bed->socket, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (what & 0x80)
                (void)!eventfd_write(bed->bell, 1);
        answers(bed);
}

/* The first two bytes say how much of the input is the memory's; in it all is the front end's and its guest's. */
static void talk(struct bed *bed, const uint8_t *bytes, size_t size_bytes)
{
        size_t shared = size_bytes < 2 ? 0 : MIN((size_t)(bytes[0] | bytes[1] << 8), size_bytes - 2);

        if (size_bytes < 2)
                return;
        (void)!pwrite(bed->memory, bytes + 2, shared, 0);
        (void)!pwrite(bed->record, bytes + 2, MIN(shared, (size_t)4096), 0);
        bytes += 2 + shared;
        size_bytes -= 2 + shared;
        while (size_bytes >= 4) {
                size_t length = MIN((size_t)bytes[3], size_bytes - 4);

                say(bed, bytes[0], bytes[1], bytes[2], bytes + 4, length);
                bytes += 4 + length;
                size_bytes -= 4 + length;
        }
}

static int machine_memory(size_t size_bytes, bool sealed)
{
        int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0 || (sealed && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0))
                abort();
        return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        static const uint8_t start[4096] = "what the disk begins with";
        struct bed bed = { .memory = machine_memory(MACHINE_BYTES, false), .record = machine_memory(MACHINE_BYTES, true) };
        struct vhost_user_config config = { .serial = "fuzz", .queues = 2 };
        struct memory_file *file;
        int pair[2];

        log_init("fuzz", LOG_ERROR);
        signal(SIGPIPE, SIG_IGN);
        bed.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        bed.file = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (uv_loop_init(&bed.loop) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
                abort();
        bed.socket = pair[1];
        file = memory_file_new(&bed.loop, start, sizeof(start));
        if (!file)
                abort();
        file->block.info.size_bytes = DISK_BYTES;
        config.disk = &file->block;
        if (vhost_user_server_new(&bed.loop, &config, &bed.server, NULL) < 0)
                abort();
        block_set_listener(&file->block, batch, &bed);
        if (vhost_user_server_connect(bed.server, pair[0], NULL) < 0)
                abort();
        talk(&bed, bytes, size_bytes);
        vhost_user_server_stop(bed.server);
        vhost_user_server_free(bed.server);
        close(pair[1]);
        block_set_listener(&file->block, NULL, NULL);
        block_close(&file->block);
        uv_run(&bed.loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&bed.loop) < 0)
                abort();
        close(bed.bell);
        close(bed.file);
        close(bed.memory);
        close(bed.record);
        fiber_thread_done();
        return 0;
}
