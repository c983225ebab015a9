/*
 * A processor's record from outside: refused, or a state that saves to the same bytes and that a processor starts to run.
 */
#include <assert.h>

#include "cpu/x86/state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        static struct x86_state state;
        struct cursor in = cursor_from(data, size);
        struct writer out = { 0 };
        struct err err = ERR_INIT;
        char text[4096];

        if (x86_state_load(&state, &in, &err) < 0)
                return 0;
        x86_state_save(&state, &out);
        assert(out.bad || (out.size <= size && memcmp(out.bytes, data, out.size) == 0));
        writer_done(&out);
        x86_state_format(&state, text, sizeof(text));
        return 0;
}
