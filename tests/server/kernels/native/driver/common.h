// Random numbers, plain numbers in memory, the kernels' C interface, and checks of results.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "layers/head.h"
#include "layers/linear.h"
#include "layers/mixture.h"
#include "model/blocks/grouped_attention/grouped_attention.h"

struct Handle;
extern "C" {
const char* greenroom_level(const char* most);
Handle* greenroom_open(int num_threads, const char* most);
void greenroom_close(Handle* handle);
int greenroom_linear(Handle* handle, const greenroom::LinearCall* call);
int greenroom_experts(Handle* handle, const greenroom::ExpertShape* shape, const greenroom::ExpertBatch* batch);
int greenroom_combine(Handle* handle, const greenroom::Combination* call);
int greenroom_begin_layer(Handle* handle, const greenroom::LayerSpec* layer, const greenroom::StepCall* step,
                          int64_t place);
int greenroom_finish_layer(Handle* handle, const greenroom::LayerSpec* layer, const greenroom::StepCall* step,
                           int64_t place, const float* outputs);
int greenroom_chosen_experts(Handle* handle, const greenroom::LayerSpec* layer, const greenroom::StepCall* step,
                             int64_t place, const int32_t* experts, const uint64_t* slots, int64_t count, int are_last);
int greenroom_norm_input(Handle* handle, const greenroom::LayerSpec* layer, const greenroom::StepCall* step);
int greenroom_layers(Handle* handle, const greenroom::LayerSpec* layers, int64_t num_layers,
                     const greenroom::StepCall* step, int64_t place, int64_t* num_run);
int greenroom_head(Handle* handle, const greenroom::HeadCall* call);
void greenroom_start_layers(Handle* handle, const greenroom::LayerSpec* layers, int64_t num_layers,
                            const greenroom::StepCall* step, int64_t place, int64_t* num_run);
void greenroom_start_head(Handle* handle, const greenroom::HeadCall* call);
int greenroom_join(Handle* handle);
const char* greenroom_check_matrix(const greenroom::Matrix* matrix);
const char* greenroom_check_experts(const greenroom::ExpertShape* shape, int64_t hidden_size, int64_t slot_bytes);
const char* greenroom_check_layer(const greenroom::LayerSpec* layer, int64_t hidden_size, int64_t slot_bytes);
}

namespace driver {

using namespace greenroom;

constexpr double kExact = 1e-4;  // tolerance, as a part of the sum of magnitudes

extern std::mt19937 random_bits;
extern int num_wrong;

int64_t between(int64_t low, int64_t high);  // both included
bool one_in(int64_t count);
float normal();
std::vector<float> normals(int64_t count, float scale = 1.0f, float mean = 0.0f);
Format plain_format();

// Writes a plain number that takes part in sums, truncated to the format; returns the truncated number.
double put_plain(Format format, float number, char* target);
double get_plain(Format format, const char* source);

// Writes a scale in any of the formats for scales.
double get_scale(Format format, const char* source);
int64_t scale_bytes(Format format);

// Numbers of a plain format, with their own memory.
struct Numbers {
  Numbers(Format format, int64_t count, float scale = 1.0f);

  Format format;
  std::unique_ptr<char[]> bytes;
  std::vector<double> values;
};

// Counts and prints a result that is more than `most` off.
void check(const char* what, const char* level, Format format, double found, double wanted, double most);

// The same for results that must be equal.
void check_same(const char* what, const char* level, const void* found, const void* wanted, int64_t bytes);

void run_linear(Handle* handle, const char* level);
void run_experts(Handle* handle, const char* level);
void run_threads(const char* level, int num_calls);
void run_layers(Handle* handle, const char* level);
void run_latents(Handle* handle, const char* level);
void run_head(Handle* handle, const char* level);
void run_sampling(Handle* handle, const char* level);
void run_decodes(Handle* handle, const char* level);
void run_hostile(Handle* handle, int num_rounds);

}  // namespace driver
