#include "level.h"

#include <cstring>

#ifdef GREENROOM_X86
#include <cpuid.h>
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
  const Choice choices[] = {
      {&kPortable, true},
#ifndef GREENROOM_NO_AVX2
      {&kAvx2, has_avx2},
#endif
#ifndef GREENROOM_NO_AVX512
      {&kAvx512, has_avx512},
#endif
#ifndef GREENROOM_NO_AVX512_BF16
      {&kAvx512Bf16,
       has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")},
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
