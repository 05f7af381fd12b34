#include "matrices.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>

namespace driver {
namespace {

constexpr Format kFormats[] = {Format::kFloat32, Format::kBFloat16, Format::kFloat16, Format::kQ8,   Format::kQ4,
                               Format::kMxfp4,   Format::kFp8,      Format::kInt8,    Format::kFp4,  Format::kInt4,
                               Format::kQ4_0,    Format::kQ4_1,     Format::kQ5_0,    Format::kQ5_1, Format::kIq4Nl,
                               Format::kQ2K,     Format::kQ3K,      Format::kQ4K,     Format::kQ5K,  Format::kQ6K,
                               Format::kIq4Xs,   Format::kBlockMxfp4, Format::kCodedBFloat16};
constexpr Format kScaleFormats[] = {Format::kFloat32, Format::kBFloat16, Format::kFloat16, Format::kE8m0, Format::kFp8};
constexpr double kQ4Numbers[16] = {-51, -37, -26, -17, -9, -2, 5, 11, 17, 23, 29, 36, 43, 51, 60, 74};
constexpr double kFp4Numbers[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
constexpr double kIq4Numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int64_t kDecoded = 16;  // codes decoded at a time, which share a scale

bool has_records(Format format) { return format >= Format::kQ4_0 && format <= Format::kIq4Xs; }
bool has_superblocks(Format format) { return format >= Format::kQ2K && format <= Format::kIq4Xs; }

int64_t divisor_of(int64_t number) {
  int64_t found = between(1, number);
  while (number % found) --found;
  return found;
}

// Numbers of inputs that can share a scale.
int64_t column_block_of(int64_t inputs) {
  std::vector<int64_t> sizes{inputs};
  for (int64_t size = kDecoded; size < inputs; size += kDecoded) {
    if (inputs % size == 0) sizes.push_back(size);
  }
  return sizes[static_cast<size_t>(between(0, static_cast<int64_t>(sizes.size()) - 1))];
}

bool supports(Format format, int64_t inputs) {
  if (has_records(format)) return inputs % (has_superblocks(format) ? kSuperblock : kGroup) == 0;
  if (format == Format::kCodedBFloat16) return inputs % kCodedInputs == 0;
  return format == Format::kMxfp4 ? inputs % kGroup == 0 : format != Format::kFp4 || inputs % 2 == 0;
}

}  // namespace

std::optional<Format> only_format;

Format any_format() { return only_format ? *only_format : kFormats[between(0, std::size(kFormats) - 1)]; }
Format format_for(int64_t inputs) {
  if (only_format && supports(*only_format, inputs)) return *only_format;
  for (;;) {
    const Format format = kFormats[between(0, std::size(kFormats) - 1)];
    if (supports(format, inputs)) return format;
  }
}
Format trunk_format() { return kFormats[between(0, 4)]; }

int64_t supported(Format format, int64_t inputs) {
  if (has_records(format)) return round_up(inputs, has_superblocks(format) ? kSuperblock : kGroup);
  switch (format) {
    case Format::kMxfp4: return round_up(inputs, kGroup);
    case Format::kCodedBFloat16: return round_up(inputs, kCodedInputs);
    case Format::kFp4: return round_up(inputs, one_in(4) ? 2 : kDecoded);
    case Format::kFp8:
    case Format::kInt8: return one_in(2) ? inputs : round_up(inputs, kDecoded);
    default: return inputs;
  }
}

Layout::Layout(Format format, int64_t outputs, int64_t inputs) : format(format), outputs(outputs), inputs(inputs) {
  switch (format) {
    case Format::kFloat32:
    case Format::kBFloat16:
    case Format::kFloat16:
      is_transposed = one_in(2);
      break;
    case Format::kMxfp4:
      row_block = 1;
      column_block = kGroup;
      scale_format = Format::kE8m0;
      break;
    case Format::kFp8:
    case Format::kInt8:
    case Format::kFp4:
      row_block = format == Format::kFp4 ? 1 : divisor_of(outputs);
      column_block = column_block_of(inputs);
      scale_format = kScaleFormats[between(0, 4)];
      has_zeros = format == Format::kInt8 && one_in(2);
      has_order = format == Format::kInt8 && one_in(3);
      has_divisor = format == Format::kFp4 && one_in(2);
      if (format == Format::kFp4 && inputs % kDecoded == 0 && !one_in(4)) {  // NVFP4, which has its own products
        column_block = kDecoded;
        scale_format = Format::kFp8;
        has_divisor = !one_in(4);
      }
      break;
    case Format::kInt4:
      row_block = 1;
      column_block = 8 << between(0, 4);
      block = one_in(2) ? 32 : 64;
      scale_format = one_in(2) ? Format::kFloat32 : Format::kBFloat16;
      has_rest = scale_format == Format::kBFloat16 && one_in(2);
      has_order = one_in(3);
      break;
    case Format::kCodedBFloat16:
      row_block = outputs * (inputs / kCodedInputs);  // all blocks may be plain
      has_rest = true;
      break;
    default:
      break;
  }
}

Weights::Weights(const Layout& layout) : layout(layout), values(static_cast<size_t>(layout.outputs * layout.inputs)) {
  if (layout.has_order) {
    std::vector<int32_t> places(static_cast<size_t>(layout.inputs));
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random_bits);
    order.resize(places.size() * sizeof(int32_t));
    std::memcpy(order.data(), places.data(), order.size());
  }
  if (layout.has_divisor) {
    const float number = 0.5f + 0.01f * static_cast<float>(between(0, 100));
    divisor.resize(sizeof number);
    std::memcpy(divisor.data(), &number, sizeof number);
  }
  switch (layout.format) {
    case Format::kQ8:
    case Format::kQ4: fill_pack(layout.format == Format::kQ8); break;
    case Format::kMxfp4:
    case Format::kFp8:
    case Format::kInt8:
    case Format::kFp4: fill_codes(); break;
    case Format::kInt4: fill_int4(); break;
    case Format::kCodedBFloat16: fill_coded(); break;
    default: has_records(layout.format) ? fill_records() : fill_plain();
  }
}

double& Weights::value(int64_t output, int64_t column) {
  int32_t input = static_cast<int32_t>(column);
  if (layout.has_order) std::memcpy(&input, order.data() + column * 4, 4);
  return values[static_cast<size_t>(output * layout.inputs + input)];
}

void Weights::fill_plain() {
  const int64_t outputs = layout.outputs, inputs = layout.inputs, bytes = bytes_of(layout.format);
  codes.resize(static_cast<size_t>(outputs * inputs * bytes));
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t input = 0; input < inputs; ++input) {
      const int64_t place = layout.is_transposed ? input * outputs + output : output * inputs + input;
      value(output, input) = put_plain(layout.format, normal(), codes.data() + place * bytes);
    }
  }
}

void Weights::fill_coded() {
  const int64_t blocks = layout.outputs * (layout.inputs / kCodedInputs);
  codes.resize(static_cast<size_t>(blocks * kCodedBytes));
  scales.resize(static_cast<size_t>(blocks));
  rest.resize(static_cast<size_t>(blocks * kCodedInputs * 2));
  for (int64_t block = 0; block < blocks; ++block) {
    char *code = codes.data() + block * kCodedBytes, *plain = rest.data() + block * kCodedInputs * 2;
    const bool is_plain = one_in(8);
    const int64_t base = between(56, 60);  // numbers from 2 ** -15 to 4
    scales[static_cast<size_t>(block)] = static_cast<char>(is_plain ? kPlainBlock : base);
    const auto place = static_cast<int32_t>(block);
    if (is_plain) std::memcpy(code, &place, sizeof place);
    for (int64_t input = 0; input < kCodedInputs; ++input) {
      uint16_t bits = 0;
      if (is_plain) {
        put_plain(Format::kBFloat16, normal(), plain + 2 * input);
        std::memcpy(&bits, plain + 2 * input, 2);
      } else {
        const int64_t at = input % 32 / 8 * 16 + input / 32 * 8 + input % 8, low = between(0, 255), high = between(0, 15);
        code[at] = static_cast<char>(low);
        char& both = code[kCodedInputs + at % 32];
        both = static_cast<char>(both | high << (at / 32 * 4));
        bits = static_cast<uint16_t>((high & 8) << 12 | (base + (high & 7)) << 8 | low);
      }
      const int64_t number = block * kCodedInputs + input;
      value(number / layout.inputs, number % layout.inputs) = get_plain(Format::kBFloat16, reinterpret_cast<char*>(&bits));
    }
  }
}

void Weights::fill_pack(bool is_q8) {
  const int64_t wide = round_up(layout.outputs, kBlock), deep = round_up(layout.inputs, kGroup), groups = deep / kGroup;
  codes.resize(static_cast<size_t>(wide * deep / (is_q8 ? 1 : 2)));
  scales.resize(static_cast<size_t>(wide * groups * 2));
  for (int64_t output = 0; output < wide; ++output) {
    for (int64_t group = 0; group < groups; ++group) fill_pack_group(is_q8, output, group, groups);
  }
}

void Weights::fill_pack_group(bool is_q8, int64_t output, int64_t group, int64_t groups) {
  const int64_t block = output / kBlock, lane = output % kBlock;
  char word[2];
  const float magnitude = 0.001f + 0.01f * static_cast<float>(between(0, 100)) / 100;
  double scale = put_plain(Format::kFloat16, is_q8 ? magnitude : 64 * magnitude, word), zero = 0;
  if (!is_q8) {  // the last five bits are the zero, the first is the sign
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
    if (output < layout.outputs && input < layout.inputs) {
      value(output, input) = scale * (is_q8 ? static_cast<double>(code) : kQ4Numbers[code] - zero);
    }
  }
}

namespace {

// Reads the codes and integers of superblocks as server/kernels/formats/superblocks/ describes them.
struct Superblocks {
  Format format;
  int bits = 4, halves = 1, integers = 0;

  explicit Superblocks(Format format) : format(format) {
    if (format == Format::kQ5_0 || format == Format::kQ5_1 || format == Format::kQ5K) bits = 5;
    if (format == Format::kQ2K) bits = 2;
    if (format == Format::kQ3K) bits = 3;
    if (format == Format::kQ6K) bits = 6;
    if (format == Format::kQ4K || format == Format::kQ5K || format == Format::kQ3K) integers = 12;
    if (format == Format::kQ2K || format == Format::kQ6K) integers = 16;
    if (format == Format::kIq4Xs) integers = 8;
    if (format == Format::kQ4_1 || format == Format::kQ5_1 || format == Format::kQ2K || integers == 12) halves = 2;
    if (format == Format::kQ3K) halves = 1;
    if (format == Format::kBlockMxfp4) halves = 0, integers = 1;
  }
  int record_bytes() const { return static_cast<int>(kBlock) * (2 * halves + integers); }

  // The number of an input of a group, with the vectors of the group and the byte's place in each.
  double number(const char* group, int64_t input, int64_t lane) const {
    const int quad = static_cast<int>(input / 4);
    const auto byte = [&](int vector) { return static_cast<uint8_t>(group[64 * vector + lane * 4 + input % 4]); };
    int code = bits >= 4 ? byte(quad / 2) >> (quad % 2 * 4) & 15 : byte(quad / 4) >> (quad % 4 * 2) & 3;
    if (bits % 2) code |= (byte(bits - 1) >> quad & 1) << (bits - 1);
    if (bits == 6) code |= (byte(4 + quad / 4) >> (quad % 4 * 2) & 3) << 4;
    switch (format) {
      case Format::kIq4Nl:
      case Format::kIq4Xs: return kIq4Numbers[code];
      case Format::kBlockMxfp4: return kFp4Numbers[code];
      case Format::kQ3K: return code - 4;
      case Format::kQ4_0: return code - 8;
      case Format::kQ5_0: return code - 16;
      case Format::kQ6K: return code - 32;
      default: return code;
    }
  }

  // The scale of an input of a record, and what is added to its weight.
  void scale(const char* record, int64_t input, int64_t lane, double* factor, double* low) const {
    const auto half = [&](int64_t place) { return get_plain(Format::kFloat16, record + (place * kBlock + lane) * 2); };
    const auto byte = [&](int64_t place) {  // bytes of four outputs' neighbours, in the file's order
      return static_cast<int>(static_cast<uint8_t>(record[kBlock * 2 * halves + place * kBlock + lane]));
    };
    const int64_t g = input / (format == Format::kQ2K || format == Format::kQ3K || format == Format::kQ6K ? 16 : 32);
    *factor = halves ? half(0) : std::ldexp(1.0, byte(0) - 127);
    *low = halves == 2 ? half(1) : 0;
    switch (format) {
      case Format::kQ2K: *low *= -(byte(g) >> 4), *factor *= byte(g) & 15; break;
      case Format::kQ3K:
        *factor *= (byte(g % 8) >> (g / 8 * 4) & 15) + ((byte(8 + g % 4) >> (g / 4 * 2) & 3) << 4) - 32;
        break;
      case Format::kQ4K:
      case Format::kQ5K:
        *factor *= g < 4 ? byte(g) & 63 : (byte(g + 4) & 15) | (byte(g - 4) >> 6) << 4;
        *low *= -(g < 4 ? byte(g + 4) & 63 : (byte(g + 4) >> 4) | (byte(g) >> 6) << 4);
        break;
      case Format::kQ6K:
      case Format::kIq4Xs: *factor *= static_cast<int8_t>(byte(g)); break;
      default: break;
    }
  }
};

}  // namespace

void Weights::fill_records() {
  const Superblocks type(layout.format);
  const int64_t wide = round_up(layout.outputs, kBlock), inputs = layout.inputs;
  const int64_t in_record = has_superblocks(layout.format) ? kSuperblock : kGroup, records = inputs / in_record;
  codes.resize(static_cast<size_t>(wide * inputs / 8 * type.bits));
  scales.resize(static_cast<size_t>(wide / kBlock * records * type.record_bytes()));
  for (std::vector<char>* bytes : {&codes, &scales}) {
    for (char& byte : *bytes) byte = static_cast<char>(between(0, 255));
  }
  if (!type.halves) {
    for (char& exponent : scales) exponent = static_cast<char>(between(118, 124));
  }
  for (int64_t record = 0; record < wide / kBlock * records; ++record) {
    for (int64_t i = 0; i < kBlock * type.halves; ++i) {
      put_plain(Format::kFloat16, 0.001f * normal(), scales.data() + record * type.record_bytes() + 2 * i);
    }
  }
  for (int64_t output = 0; output < layout.outputs; ++output) {
    const int64_t block = output / kBlock, lane = output % kBlock;
    for (int64_t input = 0; input < inputs; ++input) {
      const char* group = codes.data() + (block * (inputs / kGroup) + input / kGroup) * 64 * type.bits;
      const char* record = scales.data() + (block * records + input / in_record) * type.record_bytes();
      double factor, low;
      type.scale(record, input % in_record, lane, &factor, &low);
      value(output, input) = factor * type.number(group, input % kGroup, lane) + low;
    }
  }
}

void Weights::fill_scales(int64_t count) {
  const int64_t bytes = scale_bytes(layout.scale_format);
  scales.resize(static_cast<size_t>(count * bytes));
  for (int64_t i = 0; i < count; ++i) {
    char* scale = scales.data() + i * bytes;
    if (layout.scale_format == Format::kE8m0) {
      *scale = static_cast<char>(between(118, 124));
    } else if (layout.scale_format == Format::kFp8) {
      *scale = static_cast<char>(between(1, 48));  // up to 0.5, the first seven subnormal
    } else {
      put_plain(layout.scale_format, 0.01f + 0.001f * static_cast<float>(between(0, 100)), scale);
    }
  }
}

// Writes a random code and returns the number that it means.
double Weights::code(int64_t output, int64_t column, double zero) {
  const int64_t place = output * layout.inputs + column;
  switch (layout.format) {
    case Format::kFp8:
      codes[place] = static_cast<char>(between(0, 126) | between(0, 1) << 7);  // 127 is NaN
      return get_scale(Format::kFp8, &codes[place]);
    case Format::kInt8: {
      const int64_t number = between(-128, 127);
      codes[place] = static_cast<char>(number);
      return static_cast<double>(number) - zero;
    }
    default: {
      const int64_t number = between(0, 15);
      codes[place / 2] = static_cast<char>(codes[place / 2] | number << (place % 2 * 4));
      return kFp4Numbers[number];
    }
  }
}

void Weights::fill_codes() {
  const int64_t outputs = layout.outputs, inputs = layout.inputs, groups = divide_up(inputs, layout.column_block);
  const bool is_fp4 = layout.format == Format::kFp4 || layout.format == Format::kMxfp4;
  const int64_t num_scales = outputs / layout.row_block * groups;
  codes.resize(static_cast<size_t>(is_fp4 ? outputs * inputs / 2 : outputs * inputs));
  fill_scales(num_scales);
  std::vector<int16_t> numbers(static_cast<size_t>(num_scales));
  if (layout.has_zeros) {
    for (int16_t& number : numbers) number = static_cast<int16_t>(between(-128, 127));
    zeros.resize(numbers.size() * sizeof numbers[0]);
    std::memcpy(zeros.data(), numbers.data(), zeros.size());
  }
  float by = 1.0f;
  if (layout.has_divisor) std::memcpy(&by, divisor.data(), sizeof by);
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t column = 0; column < inputs; ++column) {
      const int64_t place = output / layout.row_block * groups + column / layout.column_block;
      const double scale =
          get_scale(layout.scale_format, scales.data() + place * scale_bytes(layout.scale_format)) / by;
      value(output, column) = scale * code(output, column, numbers[static_cast<size_t>(place)]);
    }
  }
}

void Weights::fill_int4() {
  const int64_t outputs = layout.outputs, inputs = layout.inputs, half = layout.block / 2;
  const int64_t groups = divide_up(inputs, layout.column_block), bytes = bytes_of(layout.scale_format);
  codes.resize(static_cast<size_t>(divide_up(outputs, layout.block) * inputs * half));
  for (char& both : codes) both = static_cast<char>(between(0, 255));
  std::vector<double> pairs(static_cast<size_t>(groups * outputs * 2));  // scale and centre
  scales.resize(pairs.size() * static_cast<size_t>(bytes));
  if (layout.has_rest) rest.resize(pairs.size() * 2);
  for (size_t i = 0; i < pairs.size(); ++i) {
    pairs[i] = put_plain(layout.scale_format, 0.1f * normal(), scales.data() + i * static_cast<size_t>(bytes));
    if (layout.has_rest) pairs[i] += put_plain(Format::kBFloat16, 0.001f * normal(), rest.data() + i * 2);
  }
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t column = 0; column < inputs; ++column) {
      const int64_t lane = output % layout.block;
      const int both = static_cast<uint8_t>(codes[(output / layout.block * inputs + column) * half + lane % half]);
      const int code = lane < half ? both & 15 : both >> 4;
      const double* pair = pairs.data() + (column / layout.column_block * outputs + output) * 2;
      value(output, column) = (code - 8) * pair[0] + pair[1];
    }
  }
}

Matrix Weights::matrix() const {
  const auto address = [](const std::vector<char>& bytes) { return bytes.empty() ? nullptr : bytes.data(); };
  Matrix matrix{};
  matrix.format = layout.format;
  matrix.is_transposed = layout.is_transposed;
  matrix.outputs = layout.outputs;
  matrix.inputs = layout.inputs;
  matrix.data = codes.data();
  matrix.scales = address(scales);
  matrix.zeros = address(zeros);
  matrix.rest = address(rest);
  matrix.divisor = address(divisor);
  matrix.order = address(order);
  matrix.row_block = layout.row_block;
  matrix.column_block = layout.column_block;
  matrix.scale_format = layout.scale_format;
  matrix.block = layout.block;
  return matrix;
}

double Weights::sum(const double* x, int64_t output, double* size) const {
  const double* weights = values.data() + output * layout.inputs;
  double total = 0;
  *size = 0;
  for (int64_t i = 0; i < layout.inputs; ++i) {
    total += x[i] * weights[i];
    *size += std::fabs(x[i] * weights[i]);
  }
  return total;
}

double Weights::rounding(const double* x, int64_t output) const {
  const double* weights = values.data() + output * layout.inputs;
  double size = 0, most = 0, total = 0;
  for (int64_t i = 0; i < layout.inputs; ++i) {
    size += std::fabs(x[i] * weights[i]);
    most = std::fmax(most, std::fabs(x[i]));
    total += std::fabs(weights[i]);
  }
  return (size + most * total) / 250;
}

}  // namespace driver
