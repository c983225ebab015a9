/* One kernel file for the loaders, from a fuzzer's bytes: the file is a memfd, the memory is made once and kept. */
#pragma once

#include <sys/mman.h>

#include "vmm/load.h"

#define FUZZ_MEMORY_BYTES (UINT64_C(64) << 20)

static inline void fuzz_kernel(const uint8_t *bytes, size_t size)
{
        static struct guest_memory mem;
        static struct x86_state state;
        static char path[] = "fuzz", command_line[] = "quiet";
        struct load_input in = {
                .initrd.fd = -1, .low_end = FUZZ_MEMORY_BYTES, .rsdp = 0xe0000, .ranges = 1, .command_line = command_line
        };
        struct err err = ERR_INIT;

        if (!size)
                return;
        if (!mem.regions && (guest_memory_init(&mem, "fuzz", &err) < 0 || guest_memory_add(&mem, 0, FUZZ_MEMORY_BYTES, &err) < 0))
                abort();
        in.e820[0] = (struct e820_range){ 0, FUZZ_MEMORY_BYTES, E820_RAM };
        in.kernel = (struct load_file){ .fd = memfd_create("kernel", MFD_CLOEXEC), .size_bytes = size, .path = path };
        if (in.kernel.fd < 0 || write(in.kernel.fd, bytes, size) != (ssize_t)size)
                abort();
        if (load_boot(&in, &mem, &state, &err) >= 0) {
                /* What was accepted starts inside of memory. */
                if (state.rip < LOAD_HIGH || state.rip >= FUZZ_MEMORY_BYTES)
                        abort();
        } else if (!err.text[0]) {
                abort();
        }
        close(in.kernel.fd);
}
