#define GREENROOM_LEVEL kAvx2
#define GREENROOM_LEVEL_NAME "avx2"
#include "levels/kernels.inc"
