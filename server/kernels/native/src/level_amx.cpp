#define GREENROOM_LEVEL kAmx
#define GREENROOM_LEVEL_NAME "amx"
#include "kernels.inc"
