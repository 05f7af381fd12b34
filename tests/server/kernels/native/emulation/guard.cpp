// Puts each block of memory from `new` at the end of a page, followed by a page without access: touching what lies
// behind it is a fault. Sanitizers do not see what the instructions for tiles read.

#include <cstddef>
#include <cstdlib>
#include <new>

#include <sys/mman.h>

namespace {

constexpr size_t kPage = 4096, kAlignment = 4;

size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

}  // namespace

// The first page has only the number of bytes mapped; the block begins in the second.
void* operator new(size_t size) {
  const size_t block = round_up(size ? size : 1, kAlignment), total = round_up(block, kPage) + 2 * kPage;
  void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* last_page = static_cast<char*>(memory) + total - kPage;
  if (mprotect(last_page, kPage, PROT_NONE)) throw std::bad_alloc();
  *static_cast<size_t*>(memory) = total;
  return last_page - block;
}

void operator delete(void* block) noexcept {
  if (!block) return;
  char* memory = reinterpret_cast<char*>(reinterpret_cast<size_t>(block) / kPage * kPage - kPage);
  munmap(memory, *reinterpret_cast<size_t*>(memory));
}

void operator delete(void* block, size_t) noexcept { operator delete(block); }
