// Calls the C interface of the native kernels at every level of this processor with random shapes, and holds the results
// against plain loops. It is linked with the kernels' objects, so that sanitizers see both; memory is as large as it has
// to be and no larger. `driver ROUNDS [SEED]` answers 0, or 1 with a line for each result that is off.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "experts.h"
#include "linear.h"

struct Handle;
extern "C" {
const char* greenroom_level(const char* most);
Handle* greenroom_open(int num_threads, const char* most);
void greenroom_close(Handle* handle);
int greenroom_linear(Handle* handle, const greenroom::LinearCall* call);
int greenroom_experts(Handle* handle, const greenroom::ExpertShape* shape, const greenroom::ExpertBatch* batch);
int greenroom_combine(Handle* handle, const greenroom::Combination* call);
}

namespace {

using namespace greenroom;

constexpr const char* kLevels[] = {"portable", "avx2", "avx512", "avx512_bf16"};
constexpr Format kFormats[] = {Format::kFloat32, Format::kBFloat16, Format::kFloat16,
                               Format::kQ8,      Format::kQ4,       Format::kMxfp4};
constexpr double kQ4Numbers[16] = {-51, -37, -26, -17, -9, -2, 5, 11, 17, 23, 29, 36, 43, 51, 60, 74};
constexpr double kFp4Numbers[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
constexpr double kExact = 1e-4, kRounded = 0.06;  // parts of the sum of magnitudes that a result may be off

std::mt19937 random_bits;
int num_wrong = 0;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }
float normal() { return std::normal_distribution<float>()(random_bits); }

// A plain number that takes part in sums: its bits, and what they mean.
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
  } else {  // of what float16 has as a normal number, else zero
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    const bool is_normal = exponent > 0 && exponent < 31;
    bits = is_normal ? bits & 0xFFFFE000u : 0;
    half = is_normal ? static_cast<uint16_t>((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3FFu)) : 0;
  }
  std::memcpy(target, &half, 2);
  std::memcpy(&number, &bits, 4);
  return number;
}

double get_plain(Format format, const char* source) {
  if (format == Format::kFloat32) {
    float number;
    std::memcpy(&number, source, 4);
    return number;
  }
  uint16_t half;
  std::memcpy(&half, source, 2);
  const int exponent_bits = format == Format::kBFloat16 ? 8 : 5, fraction_bits = 15 - exponent_bits;
  const int exponent = half >> fraction_bits & ((1 << exponent_bits) - 1), fraction = half & ((1 << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double magnitude = exponent ? std::ldexp(1.0 + std::ldexp(fraction, -fraction_bits), exponent - bias)
                                    : std::ldexp(fraction, 1 - bias - fraction_bits);
  return half & 0x8000 ? -magnitude : magnitude;
}

// Numbers of a plain format in memory of their own.
struct Numbers {
  Numbers(Format format, int64_t count, float scale = 1.0f)
      : format(format), bytes(new char[static_cast<size_t>(count * bytes_of(format))]) {
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(put_plain(format, scale * normal(), bytes.get() + i * bytes_of(format)));
    }
  }

  Format format;
  std::unique_ptr<char[]> bytes;
  std::vector<double> values;
};

Format plain_format() { return kFormats[between(0, 2)]; }

// A matrix as it lies in memory, and the numbers (outputs, inputs) that it stands for.
struct Weights {
  Weights(Format format, bool is_transposed, int64_t outputs, int64_t inputs)
      : format(format), is_transposed(is_transposed), outputs(outputs), inputs(inputs), values(outputs * inputs) {
    const int64_t wide = round_up(outputs, kBlock), deep = round_up(inputs, kGroup), groups = deep / kGroup;
    switch (format) {
      case Format::kQ8:
      case Format::kQ4: {
        const bool is_q8 = format == Format::kQ8;
        codes.resize(wide * deep / (is_q8 ? 1 : 2));
        scales.resize(wide * groups * 2);
        for (int64_t output = 0; output < wide; ++output) {
          for (int64_t group = 0; group < groups; ++group) put_group(is_q8, output, group, groups);
        }
        break;
      }
      case Format::kMxfp4:
        codes.resize(outputs * inputs / 2);
        scales.resize(outputs * inputs / kGroup);
        for (char& scale : scales) scale = static_cast<char>(between(118, 124));
        for (int64_t i = 0; i < outputs * inputs; ++i) {
          const int64_t code = between(0, 15);
          codes[i / 2] = static_cast<char>(codes[i / 2] | code << (i % 2 * 4));
          values[i] = std::ldexp(kFp4Numbers[code], scales[i / kGroup] - 127);
        }
        break;
      default:
        codes.resize(outputs * inputs * bytes_of(format));
        for (int64_t output = 0; output < outputs; ++output) {
          for (int64_t input = 0; input < inputs; ++input) {
            const int64_t place = is_transposed ? input * outputs + output : output * inputs + input;
            values[output * inputs + input] = put_plain(format, normal(), codes.data() + place * bytes_of(format));
          }
        }
    }
  }

  void put_group(bool is_q8, int64_t output, int64_t group, int64_t groups) {
    const int64_t block = output / kBlock, lane = output % kBlock;
    char word[2];
    const float magnitude = 0.001f + 0.01f * static_cast<float>(between(0, 100)) / 100;
    double scale = put_plain(Format::kFloat16, is_q8 ? magnitude : 64 * magnitude, word), zero = 0;
    if (!is_q8) {  // the five last bits are the zero, the first the sign
      uint16_t bits;
      std::memcpy(&bits, word, 2);
      bits = static_cast<uint16_t>((bits & 0x7FE0) | between(0, 31) | between(0, 1) << 15);
      zero = bits & 31;
      std::memcpy(word, &bits, 2);
      bits &= 0xFFE0;
      scale = get_plain(Format::kFloat16, reinterpret_cast<const char*>(&bits)) / 64;
    }
    std::memcpy(scales.data() + ((block * groups + group) * kBlock + lane) * 2, word, 2);
    for (int64_t input = group * kGroup; input < (group + 1) * kGroup; ++input) {
      const int64_t code = is_q8 ? between(-127, 127) : between(0, 15);
      if (is_q8) {
        codes[((block * groups * 8 + input / 4) * kBlock + lane) * 4 + input % 4] = static_cast<char>(code);
      } else {
        char& both = codes[((block * groups * 4 + input / 8) * kBlock + lane) * 4 + input % 4];
        both = static_cast<char>(both | code << (input % 8 / 4 * 4));
      }
      if (output < outputs && input < inputs) {
        values[output * inputs + input] = scale * (is_q8 ? static_cast<double>(code) : kQ4Numbers[code] - zero);
      }
    }
  }

  Matrix described(const void* data, const void* scale) const {
    Matrix matrix{};
    matrix.format = format;
    matrix.is_transposed = is_transposed;
    matrix.outputs = outputs;
    matrix.inputs = inputs;
    matrix.data = data;
    matrix.scales = scale;
    return matrix;
  }
  Matrix matrix() const { return described(codes.data(), scales.empty() ? nullptr : scales.data()); }

  // The sum of an output for some numbers; `size` becomes that of the magnitudes.
  double sum(const double* x, int64_t output, double* size) const {
    double total = 0;
    *size = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      total += x[i] * values[output * inputs + i];
      *size += std::fabs(x[i] * values[output * inputs + i]);
    }
    return total;
  }

  Format format;
  bool is_transposed;
  int64_t outputs, inputs;
  std::vector<char> codes, scales;
  std::vector<double> values;
};

struct Kind {
  Format format = kFormats[between(0, 5)];
  bool is_transposed = format <= Format::kFloat16 && between(0, 1);
};

int64_t whole(Format format, int64_t inputs) { return format == Format::kMxfp4 ? round_up(inputs, kGroup) : inputs; }

void check(const char* what, const char* level, Format format, double found, double wanted, double most) {
  if (std::fabs(found - wanted) <= most) return;  // false for what is not a number, too
  if (++num_wrong <= 20) {
    std::printf("%s at %s, format %d: %g in place of %g\n", what, level, static_cast<int>(format), found, wanted);
  }
}

void run_linear(Handle* handle, const char* level) {
  const Kind kind;
  const Weights weights(kind.format, kind.is_transposed, between(1, 150), whole(kind.format, between(1, 200)));
  const int64_t rows = between(1, 70), x_gap = between(0, 3), y_gap = between(0, 3);
  const int64_t x_stride = weights.inputs + x_gap, y_stride = weights.outputs + y_gap;
  const Numbers x(plain_format(), rows * x_stride - x_gap), bias(plain_format(), weights.outputs);
  const Format y_format = plain_format();
  std::vector<char> y((rows * y_stride - y_gap) * bytes_of(y_format));
  LinearCall call{};
  call.matrix = weights.matrix();
  call.bias = between(0, 1) ? bias.bytes.get() : nullptr;
  call.x = x.bytes.get();
  call.y = y.data();
  call.rows = rows;
  call.x_stride = x_stride;
  call.y_stride = y_stride;
  call.bias_format = bias.format;
  call.x_format = x.format;
  call.y_format = y_format;
  call.is_exact = static_cast<int32_t>(between(0, 1));
  if (greenroom_linear(handle, &call)) std::abort();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t output = 0; output < weights.outputs; ++output) {
      double size, wanted = weights.sum(x.values.data() + row * x_stride, output, &size);
      if (call.bias) wanted += bias.values[output];
      const double found = get_plain(y_format, y.data() + (row * y_stride + output) * bytes_of(y_format));
      const double most = (call.is_exact ? kExact : kRounded) * size + 0.01 * std::fabs(wanted) + 1e-4;
      check("a product", level, kind.format, found, wanted, most);
    }
  }
}

double activated(const Gate& gate, double x, double up) {
  const auto sigmoid = [](double a) { return 1 / (1 + std::exp(-a)); };
  const double by = gate.has_gate ? up : 1;
  switch (gate.activation) {
    case Activation::kGelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))) * by;
    case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) * by;
    case Activation::kRelu: return std::fmax(x, 0) * by;
    case Activation::kReluSquared: return std::fmax(x, 0) * std::fmax(x, 0) * by;
    case Activation::kQuickGelu: return x * sigmoid(1.702 * x) * by;
    case Activation::kClampedSwish: {
      const double clamped = std::fmin(x, gate.limit);
      return clamped * sigmoid(gate.alpha * clamped) * (std::fmax(std::fmin(up, gate.limit), -gate.limit) + 1);
    }
    default: return x * sigmoid(x) * by;
  }
}

void run_experts(Handle* handle, const char* level) {
  const Kind kind;
  const int64_t num_experts = between(1, 4), tokens = between(1, 30), top_k = between(1, 3);
  const int64_t hidden = whole(kind.format, between(1, 80)), size = whole(kind.format, between(1, 60));
  Gate gate{};
  gate.activation = static_cast<Activation>(between(0, 6));
  gate.has_gate = gate.activation == Activation::kClampedSwish || between(0, 1);
  gate.is_interleaved = gate.has_gate && between(0, 1);
  gate.alpha = 1.5f;
  gate.limit = 2.5f;
  ExpertShape shape{};
  shape.gate = gate;
  shape.num_parts = gate.has_gate && !gate.is_interleaved && between(0, 1) ? 2 : 1;
  const int64_t width = size * (gate.has_gate ? 2 : 1);
  std::vector<Weights> parts, seconds;
  std::vector<Numbers> first_biases, second_biases;
  std::vector<std::vector<char>> slots(static_cast<size_t>(num_experts));
  const Format bias_format = plain_format();
  const bool has_bias = between(0, 1);
  for (std::vector<char>& slot : slots) {
    const auto put = [&slot](const char* bytes, size_t count) {
      const size_t offset = slot.size();
      slot.insert(slot.end(), bytes, bytes + count);
      slot.resize(static_cast<size_t>(round_up(static_cast<int64_t>(slot.size()), 64)));
      return offset;
    };
    const auto put_matrix = [&put](const Weights& weights) {
      const size_t data = put(weights.codes.data(), weights.codes.size());
      const size_t scale = put(weights.scales.data(), weights.scales.size());
      return weights.described(reinterpret_cast<void*>(data), reinterpret_cast<void*>(scale));
    };
    first_biases.emplace_back(bias_format, width);
    second_biases.emplace_back(bias_format, hidden);
    for (int part = 0; part < shape.num_parts; ++part) {
      parts.emplace_back(kind.format, kind.is_transposed, width / shape.num_parts, hidden);
      shape.first[part] = put_matrix(parts.back());
    }
    const auto bias_bytes = [&](int64_t count) { return static_cast<size_t>(count * bytes_of(bias_format)); };
    shape.first_bias = static_cast<int64_t>(put(first_biases.back().bytes.get(), bias_bytes(width)));
    shape.second_bias = static_cast<int64_t>(put(second_biases.back().bytes.get(), bias_bytes(hidden)));
    seconds.emplace_back(kind.format, kind.is_transposed, hidden, size);
    shape.second = put_matrix(seconds.back());
  }
  if (!has_bias) shape.first_bias = shape.second_bias = -1;
  shape.bias_format = bias_format;

  std::vector<uint64_t> addresses;
  for (const std::vector<char>& slot : slots) addresses.push_back(reinterpret_cast<uintptr_t>(slot.data()));
  std::vector<int32_t> starts{0}, choices, expert_of(static_cast<size_t>(tokens * top_k));
  for (int32_t& expert : expert_of) expert = static_cast<int32_t>(between(-1, num_experts - 1));
  for (int32_t expert = 0; expert < num_experts; ++expert) {
    for (size_t choice = 0; choice < expert_of.size(); ++choice) {
      if (expert_of[choice] == expert) choices.push_back(static_cast<int32_t>(choice));
    }
    starts.push_back(static_cast<int32_t>(choices.size()));
  }
  const Numbers x(plain_format(), tokens * hidden, 1 / std::sqrt(static_cast<float>(hidden)));
  std::vector<float> outputs(static_cast<size_t>(tokens * top_k * hidden), NAN);
  ExpertBatch batch{};
  batch.slots = addresses.data();
  batch.starts = starts.data();
  batch.choices = choices.data();
  batch.x = x.bytes.get();
  batch.outputs = outputs.data();
  batch.num_experts = num_experts;
  batch.top_k = top_k;
  batch.x_stride = hidden;
  batch.x_format = x.format;
  batch.is_exact = static_cast<int32_t>(between(0, 1));
  if (greenroom_experts(handle, &shape, &batch)) std::abort();

  std::vector<int32_t> absent;
  std::vector<double> middle(static_cast<size_t>(width)), inner(static_cast<size_t>(size));
  for (int64_t choice = 0; choice < tokens * top_k; ++choice) {
    const int32_t expert = expert_of[static_cast<size_t>(choice)];
    if (expert < 0) {
      absent.push_back(static_cast<int32_t>(choice));
      continue;
    }
    double sum_size, largest = 0;
    for (int64_t i = 0; i < width; ++i) {
      const Weights& part = parts[static_cast<size_t>(expert * shape.num_parts + i * shape.num_parts / width)];
      middle[i] = part.sum(x.values.data() + choice / top_k * hidden, i % part.outputs, &sum_size);
      if (has_bias) middle[i] += first_biases[expert].values[i];
    }
    for (int64_t i = 0; i < size; ++i) {
      inner[i] = gate.is_interleaved ? activated(gate, middle[2 * i], middle[2 * i + 1])
                                     : activated(gate, middle[i], gate.has_gate ? middle[size + i] : 0);
    }
    std::vector<double> wanted(static_cast<size_t>(hidden));
    for (int64_t i = 0; i < hidden; ++i) {
      wanted[i] = seconds[expert].sum(inner.data(), i, &sum_size) + (has_bias ? second_biases[expert].values[i] : 0);
      largest = std::fmax(largest, sum_size);
    }
    const double most = (batch.is_exact ? kExact : 2 * kRounded) * largest + (batch.is_exact ? 1e-4 : 1e-2);
    for (int64_t i = 0; i < hidden; ++i) {
      check("an expert", level, kind.format, outputs[choice * hidden + i], wanted[i], most);
    }
  }

  const Numbers weights(plain_format(), tokens * top_k);
  Combination call{};
  std::vector<float> y(static_cast<size_t>(tokens * hidden));
  call.outputs = outputs.data();
  call.weights = weights.bytes.get();
  call.absent = absent.data();
  call.y = y.data();
  call.tokens = tokens;
  call.top_k = top_k;
  call.hidden = hidden;
  call.y_stride = hidden;
  call.num_absent = static_cast<int64_t>(absent.size());
  call.weights_format = weights.format;
  call.y_format = Format::kFloat32;
  if (greenroom_combine(handle, &call)) std::abort();
  for (int64_t i = 0; i < tokens * hidden; ++i) {
    double wanted = 0, magnitude = 0;
    for (int64_t place = i / hidden * top_k; place < (i / hidden + 1) * top_k; ++place) {
      const double part = weights.values[place] * outputs[place * hidden + i % hidden];  // absent ones are zero by now
      wanted += part;
      magnitude += std::fabs(part);
    }
    check("a sum of choices", level, kind.format, y[i], wanted, 1e-5 * magnitude + 1e-6);
  }
}

// Small calls one after the other, some at once, some after pauses in which threads fall asleep.
void run_threads(const char* level, int num_calls) {
  Handle* handle = greenroom_open(5, level);
  const Weights weights(Format::kFloat32, false, 130, 8);
  const Numbers x(Format::kFloat32, 3 * 8);
  const auto call_often = [&] {
    std::vector<float> y(3 * 130);
    LinearCall call{};
    call.matrix = weights.matrix();
    call.x = x.bytes.get();
    call.y = y.data();
    call.rows = 3;
    call.x_stride = 8;
    call.y_stride = 130;
    call.is_exact = 1;
    for (int i = 0; i < num_calls; ++i) {
      if (i % 50 == 49) std::this_thread::sleep_for(std::chrono::microseconds(1500));
      std::memset(y.data(), 0, y.size() * sizeof(float));
      if (greenroom_linear(handle, &call)) std::abort();
      for (int64_t place = 0; place < 3 * 130; ++place) {
        double size;
        const double wanted = weights.sum(x.values.data() + place / 130 * 8, place % 130, &size);
        if (std::fabs(y[place] - wanted) > kExact * size) std::abort();
      }
    }
  };
  std::thread other(call_often);
  call_often();
  other.join();
  greenroom_close(handle);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  random_bits.seed(count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 0);
  for (const char* level : kLevels) {
    const char* found = greenroom_level(level);
    if (!found || std::strcmp(found, level)) continue;  // not of this build, or not of this processor
    Handle* handle = greenroom_open(3, level);
    if (!handle) return 1;
    for (int round = 0; round < rounds; ++round) {
      run_linear(handle, level);
      run_experts(handle, level);
    }
    greenroom_close(handle);
    run_threads(level, rounds);
    std::printf("%s: %d rounds\n", level, rounds);
  }
  return num_wrong ? 1 : 0;
}
