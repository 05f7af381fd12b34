#include "levels/level.h"

#include <cstring>

#ifdef GREENROOM_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace greenroom {
namespace {

struct Choice {
  const Level* level;
  bool can_run;
};

#ifdef GREENROOM_X86
// Clang's `__builtin_cpu_supports` does not support this feature.
[[maybe_unused]] bool has_f16c() {
  unsigned int a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

// Linux lets a process use tiles after it has asked for them. It may refuse, so the processor is not enough.
[[maybe_unused]] bool may_use_tiles() {
  constexpr unsigned int kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux 5.16
  unsigned int a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & kBf16 && d & kTile &&
         !syscall(SYS_arch_prctl, kRequest, kTileData);
}
#endif

}  // namespace

const Level* find_level(const char* most) {
#ifdef GREENROOM_X86
  __builtin_cpu_init();
  [[maybe_unused]] const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  [[maybe_unused]] const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  [[maybe_unused]] const bool has_avx512_bf16 =
      has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512vbmi");
  const Choice choices[] = {
      {&kPortable, true},
#ifndef GREENROOM_NO_AVX2
      {&kAvx2, has_avx2},
#endif
#ifndef GREENROOM_NO_AVX512
      {&kAvx512, has_avx512},
#endif
#ifndef GREENROOM_NO_AVX512_BF16
      {&kAvx512Bf16, has_avx512_bf16},
#endif
#ifndef GREENROOM_NO_AMX
      {&kAmx, has_avx512_bf16 && most && !std::strcmp(most, kAmx.name) && may_use_tiles()},
#endif
  };
#else
  const Choice choices[] = {{&kPortable, true}};
#endif
  const Level* best = nullptr;
  for (const Choice& choice : choices) {
    if (choice.can_run) best = choice.level;
    if (most && !std::strcmp(most, choice.level->name)) return best;
  }
  return most ? nullptr : best;
}

}  // namespace greenroom
