/* What a registry or an archive says of an image: names, digests, indexes, manifests, configurations. */
#include <assert.h>

#include "image/media.h"
#include "image/name.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A name that is taken is the same when it is written and read again. */
static void try_name(const uint8_t *data, size_t size)
{
        char text[2048], written[NAME_TEXT_MAX];
        struct image_name name, again;

        if (size >= sizeof(text))
                return;
        memcpy(text, data, size);
        text[size] = 0;
        if (image_name_parse(text, &name, NULL) < 0)
                return;
        assert(image_name_parse(image_name_format(&name, written), &again, NULL) == 0);
        assert(!strcmp(name.host, again.host) && !strcmp(name.path, again.path) && !strcmp(name.tag, again.tag));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct manifest manifest;
        struct descriptor chosen;
        struct platform platform;
        struct digest digests[4];
        struct err err = ERR_INIT;
        json_t *json, *again;

        try_name(data, size);
        if (size > 64 << 10 || json_parse(data, size, &json, NULL) < 0)
                return 0;
        platform_host(&platform);
        (void)!index_choose(json, &platform, &chosen, &err);
        (void)!config_diff_ids(json, digests, ARRAY_SIZE(digests), &err);
        if (manifest_read(json, &manifest, &err) == 0) {
                again = descriptor_write(&manifest.config);
                if (again) /* NULL: its media type is no UTF-8 */
                        assert(descriptor_parse(again, &chosen, &err) == 0 && digest_equal(&chosen.digest, &manifest.config.digest));
                json_decref(again);
                manifest_done(&manifest);
        }
        json_decref(json);
        return 0;
}
