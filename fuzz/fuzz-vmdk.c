/* A hostile VMDK image, in one file. */
#define IMAGE_FORMAT "vmdk"
#include "fuzz-image.inc.h"
