/* A hostile VDI image. */
#define IMAGE_FORMAT "vdi"
#include "fuzz-image.inc.h"
