// Working memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "formats/matrix.h"

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

// Offsets of pieces of one memory, each aligned to 64 bytes.
struct Pieces {
  int64_t add(int64_t size) {
    const int64_t offset = bytes;
    bytes += round_up(size, 64);
    return offset;
  }
  int64_t bytes = 0;
};

}  // namespace greenroom
