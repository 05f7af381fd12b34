#define GREENROOM_LEVEL kAmx
#define GREENROOM_LEVEL_NAME "amx"
#define GREENROOM_AMX
#include "levels/kernels.inc"
