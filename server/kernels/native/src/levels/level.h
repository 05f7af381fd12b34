// The interface of an instruction-set level. One source, `kernels.inc`, is compiled once per level.
//
// Products are batch-invariant: a result depends only on one row of the matrix and one row of the panel. The number of
// rows, their places and their distribution among threads change no bit.
#pragma once

#include "formats/matrix.h"
#include "levels/index_scores.h"
#include "model/blocks/grouped_attention/attention.h"
#include "model/blocks/latent_attention/latents.h"
#include "model/blocks/mamba1/selective_scan.h"
#include "model/blocks/recurrent/recurrence.h"

namespace greenroom {

inline constexpr int64_t kLogitBlock = 128;  // tokens; most vocabularies are a multiple of it

extern "C" {  // structures/experts.py
// The activation between the two matrices of an expert.
enum class Activation : int32_t {
  kSilu = 0,
  kGelu = 1,         // with the error function
  kGeluTanh = 2,
  kRelu = 3,
  kReluSquared = 4,
  kClampedSwish = 5,  // gpt-oss: gate * sigmoid(alpha * gate) * (up + 1)
  kQuickGelu = 6,     // x * sigmoid(1.702 * x)
  kSoftCapped = 7,    // Inkling 2: cap(gate, alpha) * sigmoid(gate) * cap(up, limit), where cap(x, c) is c * tanh(x / c)
  kLimitedSilu = 8,   // Step-3.7: min(silu(gate), limit) * up
};

struct Gate {
  Activation activation;
  int32_t has_gate;        // there are a gate and an up projection, the gate first
  int32_t is_interleaved;  // outputs of gate and up alternate
  float alpha;
  float limit;             // of the gate and of the magnitude of up, which are clamped to it but for kSoftCapped; or 0.
                           // kLimitedSilu clamps the activated gate
};
}  // extern "C"

// Rows of blocks of a GGUF file, in the order of the outputs, to be stored as a matrix of a format.
struct Repacking {
  Format format;  // kMxfp4 and kBlockMxfp4 are MXFP4 in the file, kFp4 is NVFP4, and kQ8 is Q8_0
  const uint8_t* raw;
  int64_t outputs;
  int64_t inputs;
  uint8_t* codes;  // null: not wanted
  uint8_t* scales;
};

// A matrix of bfloat16 numbers, to be stored as kCodedBFloat16.
struct Coding {
  const uint16_t* weights;
  bool is_transposed;  // (inputs, outputs)
  int64_t outputs;
  int64_t inputs;
  uint8_t* codes;
  uint8_t* bases;
  uint16_t* rest;  // blocks that are stored plain
  int64_t most;    // of those that there is memory for
};

// A matrix of plain numbers, to be stored as kQ8 or kQ4, which can represent the largest of them.
struct Quantising {
  Format to;
  const void* weights;
  Format from;
  int64_t outputs;
  int64_t inputs;
  uint8_t* codes;
  uint16_t* scales;
};

struct Level {
  const char* name;

  // The panel kind for products of rows with a matrix; exact rows are never rounded.
  PanelKind (*panel_kind)(const Matrix& matrix, bool is_exact);

  // Fills rows `first` to `last` of a panel from plain numbers. `rows[i]`, or i if null, is the source of row i.
  void (*prepare)(Panel& panel, const void* source, Format format, int64_t source_stride, const int32_t* rows,
                  int64_t first, int64_t last);

  // Computes some outputs of some rows, the first at `y`. `first_output` is a multiple of kBlock.
  void (*multiply)(const Matrix& matrix, const Panel& panel, int64_t first_row, int64_t last_row,
                   int64_t first_output, int64_t last_output, float* y, int64_t y_stride);

  // Computes hidden (size) from gate_up (2 * size, or size without a gate).
  void (*activate)(const Gate& gate, const float* gate_up, int64_t size, float* hidden);

  // y[i] += factor * x[i]
  void (*add_scaled)(float* y, const float* x, float factor, int64_t size);

  // Returns the sum of x[i] * y[i].
  float (*dot)(const float* x, const float* y, int64_t size);

  // y = x * weight / sqrt(mean(x * x) + epsilon)
  void (*normalise)(const float* x, const float* weight, float epsilon, int64_t size, float* y);

  // y = x - mean(x)
  void (*centre)(const float* x, int64_t size, float* y);

  // Rotary embedding of the first `size` numbers of x. Pair i consists of i and i + size / 2 or, interleaved, of 2 * i
  // and 2 * i + 1.
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t size, bool is_interleaved);

  // Fill the sums of the part with this number; of all parts, from the first that a row sees to the last.
  void (*attend)(const Attention& attention, int64_t number, const PartSums& part);
  void (*attend_latents)(const LatentAttend& attend, int64_t number, const PartSums& part);

  // Adds the sums of the part that follows, and computes results from those of all.
  void (*add_part)(const PartSums& all, const PartSums& part);
  void (*finish_parts)(const Attended& target, const PartSums& all);

  void (*score_keys)(const IndexScores& scores);

  void (*recur)(const Recurrence& recurrence);
  void (*scan)(const SelectiveScan& scan);

  // y[i] = bias[i] + the sum of rows[tap][i] * weight[tap][i], perhaps times its own sigmoid. A row of null is zero, and
  // so is a bias of null.
  void (*convolve)(const float* const* rows, const float* weight, const float* bias, int64_t width, int64_t size,
                   bool has_silu, float* y);

  // y[i] *= sigmoid(gates[i]), times gates[i] if `is_silu`.
  void (*apply_gates)(float* y, const float* gates, int64_t size, bool is_silu);

  // Replaces x by its softmax, or its sigmoid.
  void (*soft_max)(float* x, int64_t size);
  void (*sigmoid)(float* x, int64_t size);

  // Finds the largest of each `kLogitBlock` numbers. Returns whether all are finite.
  bool (*find_maxima)(const float* x, int64_t size, float* maxima);

  // weights[i] = e ** (x[i] / temperature - most), 0 where that is below e ** -87; `sums` are those of each block.
  void (*weigh)(const float* x, int64_t size, float temperature, float most, float* weights, float* sums);

  // Converts plain numbers to float and back, rounding to nearest even.
  void (*widen)(const void* source, Format format, float* target, int64_t size);
  void (*narrow)(const float* source, Format format, void* target, int64_t size);

  // Returns false if no type of a file is stored in the format.
  bool (*repack)(const Repacking& call);

  // Codes blocks; returns the number of plain ones, of which up to `most` are written.
  int64_t (*code_blocks)(const Coding& call);

  // Returns false if matrices can't be quantised to the format.
  bool (*quantise)(const Quantising& call);

  // Writes a row of a matrix in float32; returns false if rows of the format can't be read. `target` may be null.
  bool (*read_row)(const Matrix& matrix, int64_t row, float* target);
};

extern const Level kPortable;
#ifdef GREENROOM_X86
extern const Level kAvx2;
extern const Level kAvx512;
extern const Level kAvx512Bf16;
extern const Level kAmx;
#endif

// Returns the highest level up to `most` that this processor can run; null if `most` is unknown. If `most` is null, that
// is the highest whose speed has been measured: AMX runs only if it is named. A level whose flags the compiler does not
// support is unknown; setup.py defines GREENROOM_NO_ and its name then.
const Level* find_level(const char* most);

}  // namespace greenroom
