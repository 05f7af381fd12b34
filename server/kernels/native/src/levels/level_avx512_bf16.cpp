#define GREENROOM_LEVEL kAvx512Bf16
#define GREENROOM_LEVEL_NAME "avx512_bf16"
#include "levels/kernels.inc"
