/* bzImage files, as the loader reads them: the fuzzer's bytes, with the two magic numbers put right so that it gets past them. */
#include "fuzz-kernel.inc.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
        static uint8_t copy[65536];

        size = MIN(size, sizeof(copy));
        if (!size)
                return 0;
        memcpy(copy, bytes, size);
        if (size > 0x206) {
                memcpy(copy + 0x1fe, "\x55\xaa", 2);
                memcpy(copy + 0x202, "HdrS", 4);
        }
        fuzz_kernel(copy, size);
        return 0;
}
