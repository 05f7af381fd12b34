// A module of Linux. Bochs lacks a feature, XFD, without which Linux keeps the tile registers of AMX from programs. This
// enables them. Linux does not save them then, so only one thread at a time may use them.

#include <linux/module.h>

static int __init enable_tiles(void) {
  u32 low, high;

  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  asm volatile("xsetbv" : : "a"(low | 3 << 17), "d"(high), "c"(0));
  return 0;
}

module_init(enable_tiles);
MODULE_DESCRIPTION("Lets programs use the tile registers of AMX");
MODULE_LICENSE("GPL");
