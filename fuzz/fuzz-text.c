/* What people and other programs type: sizes, numbers, fields, text for the terminal, JSON. */
#include "base/json.h"
#include "base/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        char *text = malloc(size_bytes + 1);
        struct err err = ERR_INIT;
        char escaped[64];
        json_t *json = NULL;
        uint64_t value;
        char *rest;

        memcpy(text, bytes, size_bytes);
        text[size_bytes] = 0;
        if (!size_parse(text, &value, &err) && !value)
                abort();
        if (!number_parse(text, 3, 77, &value, &err) && (value < 3 || value > 77))
                abort();
        if (text_escape(bytes, size_bytes, escaped, sizeof(escaped)) >= sizeof(escaped))
                abort();
        for (const char *at = escaped; *at; at++) {
                if ((unsigned char)*at < 0x20 || *at == 0x7f)
                        abort();
        }
        if (!json_parse(bytes, size_bytes, &json, &err))
                json_decref(json);
        rest = text;
        while (field_next(&rest))
                ;
        free(text);
        return 0;
}
