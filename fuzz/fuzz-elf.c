/* ELF kernels, as the loader reads them: the fuzzer's bytes behind the magic number. */
#include "fuzz-kernel.inc.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
        static uint8_t copy[65536];

        size = MIN(size, sizeof(copy));
        if (size < 4)
                return 0;
        memcpy(copy, bytes, size);
        memcpy(copy, "\177ELF", 4);
        fuzz_kernel(copy, size);
        return 0;
}
