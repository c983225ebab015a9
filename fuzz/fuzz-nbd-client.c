/* A hostile NBD server: the input is all that it says. The disk is opened, asked, read, written to and closed. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/block.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

struct script {
        int listener;
        const uint8_t *bytes;
        size_t size_bytes;
};

static void *say(void *arg)
{
        struct script *script = arg;
        int fd = accept(script->listener, NULL, NULL);
        uint8_t bin[4096];

        if (fd < 0)
                return NULL;
        for (size_t at = 0; at < script->size_bytes;) {
                ssize_t r = send(fd, script->bytes + at, script->size_bytes - at, MSG_NOSIGNAL);

                if (r <= 0)
                        break;
                at += (size_t)r;
        }
        shutdown(fd, SHUT_WR);
        while (read(fd, bin, sizeof(bin)) > 0)
                ;
        close(fd);
        return NULL;
}

static void use(struct block *block)
{
        static uint8_t data[65536];
        uint64_t size = block->info.size_bytes;
        struct block_extent extent;
        int r = block_status_through(block, 0, size, &extent);

        if (r == 0 && (!extent.size_bytes || extent.size_bytes > size))
                abort();
        r |= block_read(block, 0, data, MIN(size, (uint64_t)sizeof(data)));
        r |= block_read(block, size - 512, data, 512);
        if (!block->info.readonly) {
                r |= block_write(block, 0, data, 512);
                r |= block_do(block, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, 0, 512, NULL, 0);
                r |= block_flush(block);
        }
        (void)r;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        struct script script = { .bytes = bytes, .size_bytes = size_bytes };
        struct block_opening opening = { .format = "raw" };
        struct block *block;
        pthread_t thread;
        uv_loop_t loop;
        char uri[160];

        log_init("fuzz", LOG_ERROR);
        signal(SIGPIPE, SIG_IGN);
        snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/virta-fuzz-nbd.%d", (int)getpid());
        snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s&reconnect=0", address.sun_path);
        (void)unlink(address.sun_path);
        script.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (script.listener < 0 || bind(script.listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(script.listener, 1) < 0 ||
            uv_loop_init(&loop) < 0 || pthread_create(&thread, NULL, say, &script))
                abort();
        opening.loop = &loop;
        opening.path = uri;
        opening.flags = size_bytes & 1 ? BLOCK_OPEN_READONLY : 0;
        if (block_open(&opening, &block, NULL) == 0) {
                use(block);
                block_close(block);
        }
        uv_run(&loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&loop) < 0)
                abort();
        shutdown(script.listener, SHUT_RDWR);
        pthread_join(thread, NULL);
        close(script.listener);
        (void)unlink(address.sun_path);
        fiber_thread_done();
        return 0;
}
