// Numbers in memory and in registers, shared by the kernels.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// What the processor has: vectors of 512 bits, dot products of bfloat16 pairs, tile registers. NO_TILES does without the last.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HAS_VECTORS 1
#else
#define HAS_VECTORS 0
#endif
#if HAS_VECTORS && defined(__AVX512BF16__)
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
#if HAS_PAIRS && defined(__AMX_BF16__) && !defined(NO_TILES)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

namespace {

typedef uint16_t bfloat16;

constexpr long RUNS = 64;  // of rows with sums of their own; the Python side takes scratch space for as many

INLINE long filled(long n, long unit) { return (n + unit - 1) / unit * unit; }

// Scratch memory of a thread, kept for its next call.
class Workspace {
 public:
  explicit Workspace(long bytes) {
    if (bytes > size_) {
      free(start_);
      start_ = (char*)aligned_alloc(64, filled(bytes, 64)), size_ = bytes;
    }
    next_ = start_;
  }
  template <class T>
  T* take(long count) {
    T* found = (T*)next_;
    next_ += filled(count * (long)sizeof(T), 64);
    return found;
  }

 private:
  static thread_local char* start_;
  static thread_local long size_;
  char* next_;
};

thread_local char* Workspace::start_ = nullptr;
thread_local long Workspace::size_ = 0;

}  // namespace
