#include "common.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace driver {

std::mt19937 random_bits;
int num_wrong = 0;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }
bool one_in(int64_t count) { return between(1, count) == 1; }
float normal() { return std::normal_distribution<float>()(random_bits); }

std::vector<float> normals(int64_t count, float scale, float mean) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = mean + scale * normal();
  return numbers;
}

Format plain_format() { return static_cast<Format>(between(0, 2)); }

double put_plain(Format format, float number, char* target) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  if (format == Format::kFloat32) {
    std::memcpy(target, &bits, 4);
    return number;
  }
  uint16_t half;
  if (format == Format::kBFloat16) {
    bits &= 0xFFFF0000u;
    half = static_cast<uint16_t>(bits >> 16);
  } else {  // a normal number of float16, or zero
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    const bool is_normal = exponent > 0 && exponent < 31;
    bits = is_normal ? bits & 0xFFFFE000u : 0;
    half = is_normal ? static_cast<uint16_t>((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3FFu)) : 0;
  }
  std::memcpy(target, &half, 2);
  std::memcpy(&number, &bits, 4);
  return number;
}

namespace {

// Decodes a sign, some bits of exponent and some of fraction; subnormal numbers included.
double small_float(int bits, int exponent_bits, int fraction_bits) {
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1), fraction = bits & ((1 << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double magnitude = exponent ? std::ldexp(1.0 + std::ldexp(fraction, -fraction_bits), exponent - bias)
                                    : std::ldexp(fraction, 1 - bias - fraction_bits);
  return bits >> (exponent_bits + fraction_bits) & 1 ? -magnitude : magnitude;
}

}  // namespace

double get_plain(Format format, const char* source) {
  if (format == Format::kFloat32) {
    float number;
    std::memcpy(&number, source, 4);
    return number;
  }
  uint16_t half;
  std::memcpy(&half, source, 2);
  return format == Format::kBFloat16 ? small_float(half, 8, 7) : small_float(half, 5, 10);
}

double get_scale(Format format, const char* source) {
  const int byte = static_cast<uint8_t>(*source);
  if (format == Format::kFp8) return small_float(byte, 4, 3);
  if (format == Format::kE8m0) return std::ldexp(1.0, byte - 127);
  return get_plain(format, source);
}

int64_t scale_bytes(Format format) { return format == Format::kFp8 || format == Format::kE8m0 ? 1 : bytes_of(format); }

Numbers::Numbers(Format format, int64_t count, float scale)
    : format(format), bytes(new char[static_cast<size_t>(count * bytes_of(format))]) {
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(put_plain(format, scale * normal(), bytes.get() + i * bytes_of(format)));
  }
}

void check(const char* what, const char* level, Format format, double found, double wanted, double most) {
  if (std::fabs(found - wanted) <= most) return;  // false for NaN, too
  if (++num_wrong <= 20) {
    std::printf("%s at %s, format %d: %g in place of %g\n", what, level, static_cast<int>(format), found, wanted);
  }
}

void check_same(const char* what, const char* level, const void* found, const void* wanted, int64_t bytes) {
  if (!bytes || !std::memcmp(found, wanted, static_cast<size_t>(bytes))) return;
  if (++num_wrong <= 20) std::printf("%s at %s: other bits\n", what, level);
}

}  // namespace driver
