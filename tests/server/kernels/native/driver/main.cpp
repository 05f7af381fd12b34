// Calls the C interface of the native kernels at every level of this processor with random shapes, and checks results
// against plain loops. It is linked with the kernels' objects, so that sanitizers cover both; memory has no spare
// bytes. `driver ROUNDS [SEED [LEVEL [FORMAT]]]` exits with 0, or with 1 and a line for each wrong result. It takes all
// levels and formats unless they are given, a format by its number. `driver hostile ROUNDS [SEED]` runs hostile
// descriptions alone.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "formats/checks.h"
#include "slots.h"

namespace driver {
namespace {

constexpr const char* kLevels[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr double kRounded = 0.12;  // tolerance of an expert's result, as a part of the sum of magnitudes
constexpr int kLayerShare = 3;     // rounds per round with decoder layers, which take longer
constexpr int kHostileShare = 10;  // hostile descriptions per round; most are refused

void run_combine(Handle* handle, const char* level, Format format, std::vector<float>& outputs,
                 const std::vector<int32_t>& absent, int64_t tokens, int64_t top_k, int64_t hidden) {
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
      const double part = weights.values[place] * outputs[place * hidden + i % hidden];  // those of absent choices are zero by now
      wanted += part;
      magnitude += std::fabs(part);
    }
    check("a sum of choices", level, format, y[i], wanted, 1e-5 * magnitude + 1e-6);
  }
}

}  // namespace

void run_linear(Handle* handle, const char* level) {
  const Format format = any_format();
  const bool is_long = one_in(12);  // long enough that inputs are taken in stretches
  const int64_t inputs = supported(format, is_long ? between(500, 2200) : between(1, 200));
  const bool is_large = is_long && one_in(4);
  const int64_t wanted_outputs = is_long && !is_large ? between(1, 10) : between(1, 150);
  const Weights weights(Layout(format, one_in(3) ? round_up(wanted_outputs, kBlock) : wanted_outputs, inputs));
  const int64_t outputs = weights.layout.outputs;
  const int64_t rows = is_large || (!is_long && one_in(2)) ? between(1, 70) : between(1, 7);
  const int64_t x_gap = between(0, 3), y_gap = between(0, 3);
  const int64_t x_stride = inputs + x_gap, y_stride = outputs + y_gap;
  const Numbers x(plain_format(), rows * x_stride - x_gap), bias(plain_format(), outputs);
  const Format y_format = plain_format();
  std::vector<char> y(static_cast<size_t>((rows * y_stride - y_gap) * bytes_of(y_format)));
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
  // Both factors fit bfloat16, so that rows are not rounded.
  const bool is_exact = call.is_exact || (format == Format::kBFloat16 && x.format == Format::kBFloat16);
  for (int64_t row = 0; row < rows; ++row) {
    const double* numbers = x.values.data() + row * x_stride;
    for (int64_t output = 0; output < outputs; ++output) {
      double size, wanted = weights.sum(numbers, output, &size);
      if (call.bias) wanted += bias.values[output];
      const double found = get_plain(y_format, y.data() + (row * y_stride + output) * bytes_of(y_format));
      const double most = is_exact ? kExact * size : weights.rounding(numbers, output);
      const double slack = is_exact && y_format == Format::kFloat32 ? 0 : 0.01 * std::fabs(wanted);
      check("a product", level, format, found, wanted, most + slack + 1e-5);
    }
  }
  const int64_t row = between(0, rows - 1), bytes = outputs * bytes_of(y_format);
  std::vector<char> alone(static_cast<size_t>(bytes));
  call.x = x.bytes.get() + row * x_stride * bytes_of(x.format);
  call.y = alone.data();
  call.rows = 1;
  if (greenroom_linear(handle, &call)) std::abort();
  check_same("a product of one row", level, alone.data(), y.data() + row * y_stride * bytes_of(y_format), bytes);
}

// Repacks rows of a file, whatever is in them, in memory without a byte too many.
void run_repack(const char* level) {
  const Format format = static_cast<Format>(between(0, kNumFormats - 1));
  Matrix matrix{};
  matrix.format = format;
  matrix.outputs = between(1, 40);
  matrix.inputs = kSuperblock * between(1, 2);
  matrix.row_block = 1;
  matrix.column_block = kGroup / 2;
  matrix.scale_format = Format::kFp8;
  if (check_matrix(matrix)) return;
  const Extents extents = extents_of(matrix);
  // Only IQ4_XS has more bytes in a slot, two in 138; formats with complete blocks have padding after the last output.
  const int64_t padded = round_up(matrix.outputs, kBlock), bytes = (extents.data + extents.scales) / padded;
  const bool is_padded = format != Format::kMxfp4 && format != Format::kFp4;
  const int64_t row = is_padded ? bytes - (format == Format::kIq4Xs ? matrix.inputs / kSuperblock * 2 : 0)
                                : (extents.data + extents.scales) / matrix.outputs;
  std::vector<uint8_t> raw(static_cast<size_t>(row * matrix.outputs));
  for (uint8_t& byte : raw) byte = static_cast<uint8_t>(between(0, 255));
  const auto repack = [&](const Level& by, std::vector<uint8_t>& codes, std::vector<uint8_t>& scales) {
    codes.resize(static_cast<size_t>(extents.data));
    scales.resize(static_cast<size_t>(extents.scales));
    return by.repack({format, raw.data(), matrix.outputs, matrix.inputs, codes.data(), scales.data()});
  };
  std::vector<uint8_t> codes, scales, other_codes, other_scales;
  if (!repack(*find_level(level), codes, scales)) return;
  repack(*find_level("portable"), other_codes, other_scales);
  check_same("repacked codes", level, codes.data(), other_codes.data(), extents.data);
  check_same("repacked scales", level, scales.data(), other_scales.data(), extents.scales);
}

// Quantises numbers of any size to int8 or int4, in memory without a byte too many.
void run_quantise(const char* level) {
  const Format to = one_in(2) ? Format::kQ8 : Format::kQ4;
  const int64_t outputs = between(1, 40), inputs = between(1, 100);
  const Numbers numbers(plain_format(), outputs * inputs, std::ldexp(1.0f, static_cast<int>(between(-30, 10))));
  const int64_t groups = round_up(inputs, kGroup) / kGroup * round_up(outputs, kBlock);
  std::vector<uint8_t> codes(static_cast<size_t>(groups * kGroup / (to == Format::kQ4 ? 2 : 1))), other_codes(codes.size());
  std::vector<uint16_t> scales(static_cast<size_t>(groups)), other_scales(scales.size());
  const auto quantise = [&](const char* by, std::vector<uint8_t>& c, std::vector<uint16_t>& s) {
    const Quantising call{to, numbers.bytes.get(), numbers.format, outputs, inputs, c.data(), s.data()};
    if (!find_level(by)->quantise(call)) std::abort();
  };
  quantise(level, codes, scales);
  quantise("portable", other_codes, other_scales);
  check_same("quantised codes", level, codes.data(), other_codes.data(), static_cast<int64_t>(codes.size()));
  check_same("quantised scales", level, scales.data(), other_scales.data(), groups * static_cast<int64_t>(sizeof(uint16_t)));
}

void run_experts(Handle* handle, const char* level) {
  const Format format = any_format();
  const int64_t num_experts = between(1, 4), tokens = between(1, 30), top_k = between(1, 3);
  const int64_t hidden = supported(format, between(1, 80)), size = supported(format, between(1, 60));
  const Experts experts(format, num_experts, hidden, size, one_in(2));
  const std::vector<uint64_t> addresses = experts.addresses();
  std::vector<int32_t> expert_of(static_cast<size_t>(tokens * top_k)), absent;
  for (int32_t& expert : expert_of) expert = static_cast<int32_t>(between(-1, num_experts - 1));
  const Sorted sorted(expert_of, num_experts);
  const Numbers x(plain_format(), tokens * hidden, 1 / std::sqrt(static_cast<float>(hidden)));
  std::vector<float> outputs(static_cast<size_t>(tokens * top_k * hidden), NAN);
  ExpertBatch batch{};
  batch.slots = addresses.data();
  batch.starts = sorted.starts.data();
  batch.choices = sorted.choices.data();
  batch.x = x.bytes.get();
  batch.outputs = outputs.data();
  batch.num_experts = num_experts;
  batch.top_k = top_k;
  batch.x_stride = hidden;
  batch.x_format = x.format;
  batch.is_exact = static_cast<int32_t>(between(0, 1));
  if (greenroom_experts(handle, &experts.shape, &batch)) std::abort();
  for (int64_t choice = 0; choice < tokens * top_k; ++choice) {
    const int32_t expert = expert_of[static_cast<size_t>(choice)];
    if (expert < 0) {
      absent.push_back(static_cast<int32_t>(choice));
      continue;
    }
    double largest;
    const std::vector<double> wanted = experts.run(expert, x.values.data() + choice / top_k * hidden, &largest);
    const double most = (batch.is_exact ? kExact : kRounded) * largest + (batch.is_exact ? 1e-4 : 1e-2);
    for (int64_t i = 0; i < hidden; ++i) {
      check("an expert", level, format, outputs[choice * hidden + i], wanted[i], most);
    }
  }
  absent.shrink_to_fit();
  run_combine(handle, level, format, outputs, absent, tokens, top_k, hidden);
}

// Runs small calls in sequence, some without pauses, some after pauses in which threads fall asleep.
void run_threads(const char* level, int num_calls) {
  Handle* handle = greenroom_open(5, level);
  Layout layout(Format::kFloat32, 130, 8);
  layout.is_transposed = false;
  const Weights weights(layout);
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

}  // namespace driver

int main(int count, char** arguments) {
  using namespace driver;
  const bool is_hostile = count > 1 && !std::strcmp(arguments[1], "hostile");
  if (is_hostile) {
    --count;
    ++arguments;
  }
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  random_bits.seed(count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 0);
  const char* only_level = count > 3 ? arguments[3] : nullptr;
  if (count > 4) only_format = static_cast<Format>(std::atoi(arguments[4]));
  for (const char* level : kLevels) {
    if (only_level && std::strcmp(level, only_level)) continue;
    const char* found = greenroom_level(level);
    if (!found || std::strcmp(found, level)) continue;  // missing from this build, or unsupported by this processor
    Handle* handle = greenroom_open(3, level);
    if (!handle) return 1;
    for (int round = 0; round < rounds && !is_hostile; ++round) {
      for (int i = 0; i < 3; ++i) run_linear(handle, level);
      for (int i = 0; i < 10; ++i) run_repack(level);
      for (int i = 0; i < 3; ++i) run_quantise(level);
      run_experts(handle, level);
      run_head(handle, level);
      for (int i = 0; i < 3; ++i) run_sampling(handle, level);
      run_decodes(handle, level);
      if (round % kLayerShare == 0) run_layers(handle, level);
      if (round % kLayerShare == 1) run_latents(handle, level);
    }
    run_hostile(handle, is_hostile ? rounds : kHostileShare * rounds);
    greenroom_close(handle);
    if (!is_hostile) run_threads(level, rounds);
    std::printf("%s: %d rounds\n", level, rounds);
  }
  return num_wrong ? 1 : 0;
}
