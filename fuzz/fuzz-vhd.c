/* A hostile VHD image. */
#define IMAGE_FORMAT "vhd"
#include "fuzz-image.inc.h"
