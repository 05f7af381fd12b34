// Working memory of kinds of blocks, which each kind declares for itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

namespace greenroom {

// Holds one object of each type that was asked for, and keeps it from call to call.
class Scratch {
 public:
  template <typename Type>
  Type& of() {
    const size_t number = number_of<Type>();
    if (number >= held_.size()) held_.resize(number + 1);
    if (!held_[number]) held_[number] = std::make_unique<Held<Type>>();
    return static_cast<Held<Type>&>(*held_[number]).value;
  }

 private:
  struct Base {
    virtual ~Base() = default;
  };

  template <typename Type>
  struct Held : Base {
    Type value;
  };

  template <typename Type>
  static size_t number_of() {
    static const size_t number = next_++;
    return number;
  }

  inline static std::atomic<size_t> next_{0};
  std::vector<std::unique_ptr<Base>> held_;
};

}  // namespace greenroom
