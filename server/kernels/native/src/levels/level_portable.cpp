#define GREENROOM_LEVEL kPortable
#define GREENROOM_LEVEL_NAME "portable"
#include "levels/kernels.inc"
