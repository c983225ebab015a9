/* A container's config.json, and its list of system calls compiled. */
#include "container/config.h"
#include "container/seccomp-filter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct config config;
        struct seccomp_filter filter;
        struct err err = ERR_INIT;

        if (size > 64 << 10 || config_parse(&config, data, size, &err) < 0)
                return 0;
        if (seccomp_compile(&config.seccomp, &filter, &err) == 0)
                seccomp_filter_done(&filter);
        config_done(&config);
        return 0;
}
