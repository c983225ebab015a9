/* A hostile qcow2 image. */
#define IMAGE_FORMAT "qcow2"
#include "fuzz-image.inc.h"
