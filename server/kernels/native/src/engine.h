// What every call needs: threads, a level and working memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "level.h"
#include "matrix.h"
#include "threads.h"

namespace greenroom {

#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kIsTight = true;  // buffers have no spare bytes, so that a sanitizer detects overruns
#else
inline constexpr bool kIsTight = false;
#endif

// Memory that grows on demand and is kept between calls, so that a warm step allocates nothing.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Returns at least this many bytes, aligned to 64; the previous content is lost.
  template <typename Type = char>
  Type* reserve(int64_t bytes) {
    const int64_t least = round_up(bytes, 64);
    if (least > size_ || (kIsTight && least < size_)) {
      std::free(memory_);
      size_ = 0;
      const int64_t wanted = kIsTight ? least : round_up(bytes + bytes / 4, 4096);
      memory_ = std::aligned_alloc(64, static_cast<size_t>(wanted));
      if (!memory_) throw std::bad_alloc();
      size_ = wanted;
    }
    return static_cast<Type*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

struct Engine {
  Engine(int num_threads, const Level& level) : pool(num_threads), level(level) {}

  ThreadPool pool;
  const Level& level;
  Buffer rows;      // panels of the input rows
  Buffer middle;    // results of the experts' first matrix
  Buffer hidden;    // panels of the inputs of their second matrix
  Buffer tables;    // tables of tiles
  Buffer heads;     // queries, keys and values of a step
  Buffer attended;  // results of attention, and its scratch memory
  Buffer logits;    // logits of routers
  Buffer sorted;    // choices by expert
  Buffer results;   // results of experts
  Buffer shared;    // results of the dense expert
};

// Adds a bias of plain numbers to at most kOutputTile outputs of some rows; `y` is the first output of the first row.
void add_bias(const Level& level, const void* bias, Format format, int64_t rows, int64_t first_output,
              int64_t last_output, float* y, int64_t y_stride);

}  // namespace greenroom
