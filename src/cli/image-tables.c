/* The commands of `virta image` as they are typed: for virta-image, which does them, and for virta, which knows them by name and help. */
#include "cli/image.h"
#include "image/image.h"

static const struct opt_note image_notes[] = {
        { "virta image pull registry.example/debian:12", "fetch one" },
        { "virta image import app.tar --name app:1", "take one out of a file of another tool" },
        { "virta image list", "what is here" },
        { "virta image export app:1 app.tar", "for another machine" },
        { 0 },
};

static const struct opt_section image_sections[] = { { "Examples", NULL, image_notes }, { 0 } };

const struct opt_command image_table = {
        .name = "image",
        .group = true,
        .summary = "fetch, import, look at and give away images of containers",
        .description = "Images are kept in /var/lib/virta/images, for others than root in ~/.local/share/virta/images. The folder is an OCI image layout, "
                       "which other tools can read. Layers are stored once however many images have them.\n"
                       "A name is [HOST/]NAME[:TAG][@DIGEST]. No host is built in: short names are looked for among the images that are here, "
                       "and pulled from the hosts that /etc/virta/registries.json lists under \"short-names\". Credentials are those that other tools keep "
                       "(auth.json, ~/.docker/config.json).",
        .sections = image_sections,
};

#define IMAGE(field) offsetof(struct image_args, field)
#define STORE_OPTION { "store", "DIRECTORY", "where images are kept", OPT_TEXT, IMAGE(store), .complete = OPT_COMPLETE_DIRECTORY }
#define PLATFORM_OPTION                                                                                                                \
        { "platform", "OS/ARCH[/VARIANT]", "the one to take where a name stands for several", OPT_TEXT, IMAGE(platform), \
                          .fallback = "this machine's" }
#define JSON_OPTION { "json", NULL, "print JSON", OPT_FLAG, IMAGE(json) }
#define INSECURE_OPTION { "insecure", NULL, "also without TLS, or with a certificate that nobody vouches for", OPT_FLAG, IMAGE(insecure) }
#define QUIET_OPTION { "quiet", NULL, "no progress", OPT_FLAG, IMAGE(quiet), .letter = 'q' }

static const struct opt pull_options[] = { PLATFORM_OPTION, INSECURE_OPTION, QUIET_OPTION, STORE_OPTION, { 0 } };
static const struct opt pull_operands[] = { { NULL, "NAME", "the image", OPT_TEXT, IMAGE(name), .required = true }, { 0 } };

const struct opt_command image_pull_table = {
        .name = "image pull",
        .summary = "fetch an image from a registry",
        .description = "Fetches what is not here yet, a few layers at once, compares every byte with its digest, and unpacks the layers. What was cut is "
                       "gone on with the next time. Prints the name the image has here.",
        .options = pull_options,
        .operands = pull_operands,
};

static const struct opt push_operands[] = {
        { NULL, "NAME", "the image, as it is called here", OPT_TEXT, IMAGE(name), .required = true },
        { NULL, "TO", "what it is to be called there: HOST/NAME[:TAG]; without it, its name", OPT_TEXT, IMAGE(other) },
        { 0 },
};

const struct opt_command image_push_table = {
        .name = "image push",
        .summary = "give an image to a registry",
        .description = "Sends the contents that the registry does not have, then the manifest that names them: a name there never stands for half an image.",
        .options = pull_options,
        .operands = push_operands,
};

static const struct opt list_options[] = { JSON_OPTION, STORE_OPTION, { 0 } };

const struct opt_command image_list_table = {
        .name = "image list",
        .summary = "the images that are here",
        .description = "One line an image: the first digits of its digest, what it takes as it is stored, when it was made, and its name.",
        .options = list_options,
};

static const struct opt show_options[] = { PLATFORM_OPTION, JSON_OPTION, STORE_OPTION, { 0 } };

const struct opt_command image_show_table = {
        .name = "image show",
        .summary = "what an image is made of, and how it is run",
        .description = "The name, digest, platform, layers and configuration of an image; with --json the configuration is as the image has it.",
        .options = show_options,
        .operands = pull_operands,
};

static const char *const image_formats[] = IMAGE_FORMAT_NAMES;

static const struct opt import_options[] = {
        { "name", "NAME", "what it is to be called", OPT_TEXT, IMAGE(name), .fallback = "as the file says" },
        { "format", "FORMAT", "of the file", OPT_CHOICE, IMAGE(format), .fallback = "what is found in it", .choices = image_formats },
        QUIET_OPTION,
        STORE_OPTION,
        { 0 },
};

static const struct opt import_operands[] = {
        { NULL, "FILE", "an OCI layout (directory or tar), docker-archive, or a root file system (tar or directory)", OPT_TEXT, IMAGE(path), .required = true,
          .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command image_import_table = {
        .name = "image import",
        .summary = "take an image out of a file or directory",
        .description = "Takes what `docker save`, `podman save` or `skopeo copy` wrote, plain or compressed, or a root file system, which becomes an image of "
                       "one layer. Prints the name the image has here.",
        .options = import_options,
        .operands = import_operands,
};

static const char *const export_formats[] = { "oci-archive", "docker-archive", NULL };

static const struct opt export_options[] = {
        { "format", "FORMAT", "of the file", OPT_CHOICE, IMAGE(format), .fallback = "oci-archive", .choices = export_formats },
        PLATFORM_OPTION,
        STORE_OPTION,
        { 0 },
};

static const struct opt export_operands[] = {
        { NULL, "NAME", "the image", OPT_TEXT, IMAGE(name), .required = true },
        { NULL, "FILE", "to be made; it must not be there", OPT_TEXT, IMAGE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command image_export_table = {
        .name = "image export",
        .summary = "put an image into a file",
        .description = "The same image gives the same bytes each time.",
        .options = export_options,
        .operands = export_operands,
};

static const struct opt store_options[] = { STORE_OPTION, { 0 } };

const struct opt_command image_delete_table = {
        .name = "image delete",
        .summary = "take an image away",
        .description = "Takes the name away, and what no other image and no container needs. While others use the images that stays until `virta image prune`.",
        .options = store_options,
        .operands = pull_operands,
};

const struct opt_command image_prune_table = {
        .name = "image prune",
        .summary = "take away what no image and no container needs",
        .description = "Also what was fetched in part. Prints what it was.",
        .options = store_options,
};
