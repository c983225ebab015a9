/* A hostile NBD client: the input is all that it says, handshake and requests. The disk is 1 MiB in memory. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/nbd/server.h"
#include "block/test-memory.h"

#define DISK_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

struct bed {
        uv_loop_t loop;
        struct nbd_server *server;
        bool stopped;
};

static void stopped(void *ctx)
{
        ((struct bed *)ctx)->stopped = true;
}

static void batch(void *ctx)
{
        nbd_server_batch(((struct bed *)ctx)->server);
}

/* Whatever the server says is thrown away. */
static void drain(int fd)
{
        static uint8_t bin[1 << 16];

        while (read(fd, bin, sizeof(bin)) > 0)
                ;
}

static void talk(struct bed *bed, int fd, const uint8_t *bytes, size_t size_bytes)
{
        while (size_bytes) {
                ssize_t r = write(fd, bytes, size_bytes);

                if (r < 0 && errno != EAGAIN)
                        break;
                if (r > 0) {
                        bytes += r;
                        size_bytes -= (size_t)r;
                }
                uv_run(&bed->loop, UV_RUN_NOWAIT);
                drain(fd);
        }
        shutdown(fd, SHUT_WR);
        for (int n = 0; n < 4; n++) {
                uv_run(&bed->loop, UV_RUN_NOWAIT);
                drain(fd);
        }
        nbd_server_stop(bed->server);
        while (!bed->stopped) {
                uv_run(&bed->loop, UV_RUN_NOWAIT);
                drain(fd);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        static const uint8_t start[4096] = "what the disk begins with";
        struct bed bed = { 0 };
        struct memory_file *file;
        struct nbd_server_config config = { .export_name = "", .connections_max = 1, .stopped = stopped, .ctx = &bed };
        int pair[2];

        log_init("fuzz", LOG_ERROR);
        signal(SIGPIPE, SIG_IGN);
        if (uv_loop_init(&bed.loop) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
                abort();
        file = memory_file_new(&bed.loop, start, sizeof(start));
        if (!file)
                abort();
        file->block.info.size_bytes = DISK_BYTES;
        config.disk = &file->block;
        if (nbd_server_new(&bed.loop, &config, &bed.server, NULL) < 0)
                abort();
        block_set_listener(&file->block, batch, &bed);
        if (nbd_server_connect(bed.server, pair[0], pair[0], NULL) < 0)
                abort();
        talk(&bed, pair[1], bytes, size_bytes);
        close(pair[1]);
        block_set_listener(&file->block, NULL, NULL);
        nbd_server_free(bed.server);
        block_close(&file->block);
        uv_run(&bed.loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&bed.loop) < 0)
                abort();
        fiber_thread_done();
        return 0;
}
