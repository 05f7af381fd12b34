// The functions of the C interface, which `library.py` loads. Nothing here throws: a call returns 0, or 1 if memory runs out.

#include <functional>
#include <mutex>

#include "formats/checks.h"
#include "kernels/formats/file_blocks/grids.h"
#include "layers/decode_run.h"
#include "layers/experts.h"
#include "layers/head.h"
#include "layers/layer.h"
#include "layers/linear.h"
#include "layers/router.h"
#include "sampling/sampling.h"

#define GREENROOM_API extern "C" __attribute__((visibility("default")))

namespace greenroom {
namespace {

struct Handle {
  Handle(int num_threads, const Level& level) : context(num_threads, level) {}

  Context context;
  std::mutex is_busy;  // the context serves one call at a time

  std::function<void(Context&)> started;
  DecodeProgress progress;  // of a run of steps
  int status;
};

template <typename Function>
int unlocked(Handle* handle, Function function) {
  try {
    function(handle->context);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

template <typename Function>
int guarded(Handle* handle, Function function) {
  const std::lock_guard<std::mutex> lock(handle->is_busy);
  return unlocked(handle, function);
}

// Lets the other threads begin a call. The same thread must call `greenroom_join` next.
template <typename Function>
void start(Handle* handle, Function function) {
  handle->is_busy.lock();
  handle->started = function;
  handle->context.pool.start(
      [](void* started) {
        auto* own = static_cast<Handle*>(started);
        own->status = unlocked(own, own->started);
      },
      handle);
}

}  // namespace
}  // namespace greenroom

using greenroom::Handle;

// The digest of the interface that the library was compiled with (`interface.py`).
GREENROOM_API const char* greenroom_interface() { return GREENROOM_INTERFACE; }

// Returns the highest level of this processor up to `most` (null: any); null if there is no such level.
GREENROOM_API const char* greenroom_level(const char* most) {
  const greenroom::Level* level = greenroom::find_level(most);
  return level ? level->name : nullptr;
}

// Stores rows of a GGUF file's blocks as codes and scales of a format, either of which may be null; returns 1 if no type of
// a file is stored in the format. Any number of threads may call it at a time.
GREENROOM_API int greenroom_repack(int format, const uint8_t* raw, int64_t outputs, int64_t inputs, uint8_t* codes,
                                   uint8_t* scales) {
  const greenroom::Level* level = greenroom::find_level(nullptr);
  return level->repack({static_cast<greenroom::Format>(format), raw, outputs, inputs, codes, scales}) ? 0 : 1;
}

// Stores a matrix of bfloat16 numbers as kCodedBFloat16; returns the number of plain blocks. Any number of threads may call
// it at a time.
GREENROOM_API int64_t greenroom_code_bfloat16(const uint16_t* weights, int is_transposed, int64_t outputs, int64_t inputs,
                                              uint8_t* codes, uint8_t* bases, uint16_t* rest, int64_t most) {
  const greenroom::Level* level = greenroom::find_level(nullptr);
  return level->code_blocks({weights, is_transposed != 0, outputs, inputs, codes, bases, rest, most});
}

// Stores a matrix of plain numbers as kQ8 or kQ4; returns 1 for other formats. Any number of threads may call it at a time.
GREENROOM_API int greenroom_quantise(int to, const void* weights, int from, int64_t outputs, int64_t inputs, uint8_t* codes,
                                     uint16_t* scales) {
  const greenroom::Level* level = greenroom::find_level(nullptr);
  const auto format = [](int number) { return static_cast<greenroom::Format>(number); };
  return level->quantise({format(to), weights, format(from), outputs, inputs, codes, scales}) ? 0 : 1;
}

// Sets the table of numbers of a format (formats/grids.h), before any product with it; returns 1 if it has another size.
GREENROOM_API int greenroom_set_grid(int format, const void* numbers, int64_t bytes) {
  return greenroom::set_grid(static_cast<greenroom::Format>(format), numbers, bytes) ? 0 : 1;
}

GREENROOM_API Handle* greenroom_open(int num_threads, const char* most) {
  const greenroom::Level* level = greenroom::find_level(most);
  if (!level) return nullptr;
  try {
    return new Handle(num_threads, *level);
  } catch (...) {  // out of memory or threads
    return nullptr;
  }
}

GREENROOM_API void greenroom_close(Handle* handle) { delete handle; }

GREENROOM_API int greenroom_linear(Handle* handle, const greenroom::LinearCall* call) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { run_linear(context, *call); });
}

GREENROOM_API int greenroom_experts(Handle* handle, const greenroom::ExpertShape* shape,
                                    const greenroom::ExpertBatch* batch) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { run_experts(context, *shape, *batch); });
}

GREENROOM_API int greenroom_combine(Handle* handle, const greenroom::Combination* call) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { combine(context, *call); });
}

GREENROOM_API int greenroom_begin_layer(Handle* handle, const greenroom::LayerSpec* layer,
                                        const greenroom::StepCall* step, int64_t place) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { begin_layer(context, *layer, *step, place); });
}

GREENROOM_API int greenroom_finish_layer(Handle* handle, const greenroom::LayerSpec* layer,
                                         const greenroom::StepCall* step, int64_t place, const float* outputs) {
  return greenroom::guarded(
      handle, [&](greenroom::Context& context) { finish_layer(context, *layer, *step, place, outputs); });
}

GREENROOM_API int greenroom_chosen_experts(Handle* handle, const greenroom::LayerSpec* layer,
                                           const greenroom::StepCall* step, int64_t place, const int32_t* experts,
                                           const uint64_t* slots, int64_t count, int are_last) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) {
    run_chosen_experts(context, *layer, *step, place, {experts, slots, count}, are_last != 0);
  });
}

GREENROOM_API int greenroom_norm_input(Handle* handle, const greenroom::LayerSpec* layer,
                                       const greenroom::StepCall* step) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { norm_input(context, *layer, *step); });
}

GREENROOM_API int greenroom_layers(Handle* handle, const greenroom::LayerSpec* layers, int64_t num_layers,
                                   const greenroom::StepCall* step, int64_t place, int64_t* num_run) {
  return greenroom::guarded(
      handle, [&](greenroom::Context& context) { *num_run = run_layers(context, layers, num_layers, *step, place); });
}

GREENROOM_API int greenroom_head(Handle* handle, const greenroom::HeadCall* call) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { run_head(context, *call); });
}

// As the calls of these names, on the other threads while the caller's goes on. Arguments must live until `greenroom_join`,
// which the same thread calls next: it helps until the end, and returns the status.
GREENROOM_API void greenroom_start_layers(Handle* handle, const greenroom::LayerSpec* layers, int64_t num_layers,
                                          const greenroom::StepCall* step, int64_t place, int64_t* num_run) {
  greenroom::start(handle, [=](greenroom::Context& context) {
    *num_run = run_layers(context, layers, num_layers, *step, place);
  });
}

GREENROOM_API void greenroom_start_head(Handle* handle, const greenroom::HeadCall* call) {
  greenroom::start(handle, [=](greenroom::Context& context) { run_head(context, *call); });
}

GREENROOM_API int greenroom_join(Handle* handle) {
  handle->context.pool.join();
  const int status = handle->status;
  handle->is_busy.unlock();
  return status;
}

// Lets the other threads begin a run of steps, of which `num_allowed` may run. Until `greenroom_end_decodes` the same thread
// may call the next two functions alone.
GREENROOM_API void greenroom_start_decodes(Handle* handle, const greenroom::DecodeRun* run, int64_t num_allowed) {
  handle->progress.begin(num_allowed);
  greenroom::start(handle, [=](greenroom::Context& context) { run_decodes(context, *run, handle->progress); });
}

// Lets a run go on to so many steps; returns 1 if it has ended before.
GREENROOM_API int greenroom_allow_decodes(Handle* handle, int64_t num_steps) {
  return handle->progress.allow(num_steps) ? 0 : 1;
}

// Helps until so many steps have finished; returns 1 if the run ends before, as memory runs out.
GREENROOM_API int greenroom_await_decodes(Handle* handle, int64_t num_steps) {
  handle->context.pool.help_until(handle->progress.num_finished, num_steps);
  return handle->progress.num_finished.load(std::memory_order_acquire) >= num_steps ? 0 : 1;
}

// Ends a run before its next layer; returns the status of its calls.
GREENROOM_API int greenroom_end_decodes(Handle* handle) {
  handle->context.is_stopped.store(true, std::memory_order_relaxed);
  handle->context.pool.join();
  handle->context.is_stopped.store(false, std::memory_order_relaxed);
  const int status = handle->status;
  handle->is_busy.unlock();
  return status;
}

// Writes rows of a matrix, float32 (count, inputs); returns 1 if rows of its format can't be read, and 2 if there is no such
// row.
GREENROOM_API int greenroom_read_rows(Handle* handle, const greenroom::Matrix* matrix, const int32_t* rows, int64_t count,
                                      float* target) {
  const greenroom::Level& level = handle->context.level;
  if (!read_row(level, *matrix, 0, nullptr)) return 1;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= matrix->outputs) return 2;
    read_row(level, *matrix, rows[i], target + i * matrix->inputs);
  }
  return 0;
}

GREENROOM_API int greenroom_sample(Handle* handle, const greenroom::SamplingCall* call) {
  return greenroom::guarded(handle, [&](greenroom::Context& context) { run_sampling(context, *call); });
}

// Checks of counts and offsets that come from files (formats/checks.h).
GREENROOM_API const char* greenroom_check_matrix(const greenroom::Matrix* matrix) {
  return greenroom::check_matrix(*matrix);
}

GREENROOM_API const char* greenroom_check_router(const greenroom::Router* router, int64_t hidden_size) {
  return greenroom::check_router(*router, hidden_size);
}

GREENROOM_API const char* greenroom_check_experts(const greenroom::ExpertShape* shape, int64_t hidden_size,
                                                  int64_t slot_bytes) {
  return greenroom::check_experts(*shape, hidden_size, slot_bytes);
}

GREENROOM_API const char* greenroom_check_layer(const greenroom::LayerSpec* layer, int64_t hidden_size,
                                                int64_t slot_bytes) {
  return greenroom::check_layer(*layer, hidden_size, slot_bytes);
}
