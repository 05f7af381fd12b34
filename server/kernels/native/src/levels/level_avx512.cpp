#define GREENROOM_LEVEL kAvx512
#define GREENROOM_LEVEL_NAME "avx512"
#include "levels/kernels.inc"
