// Threads, a level and memory to work in: what every call needs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "level.h"
#include "matrix.h"
#include "threads.h"

namespace greenroom {

#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kIsTight = true;  // a buffer is no larger than a call wants it, so that what is beyond it is seen
#else
inline constexpr bool kIsTight = false;
#endif

// Memory that grows when it has to and is kept from call to call, so that a step allocates nothing once it is warm.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least so many bytes, aligned to 64; what was there before is lost.
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
  Buffer rows;      // panels of a call's rows
  Buffer middle;    // what the first matrix of experts gives
  Buffer hidden;    // panels of what the second is given
  Buffer tables;    // of tiles
  Buffer heads;     // queries, keys and values of a step
  Buffer attended;  // what attention gives, and memory for it to work in
  Buffer logits;    // of routers
  Buffer sorted;    // choices by expert
  Buffer results;   // of experts
  Buffer shared;    // of the dense expert
};

// Adds a bias of plain numbers to some outputs, at most kOutputTile, of some rows; `y` is the first of both.
void add_bias(const Level& level, const void* bias, Format format, int64_t rows, int64_t first_output,
              int64_t last_output, float* y, int64_t y_stride);

}  // namespace greenroom
