// Matrix products by vector instructions, for processors without tile registers.
//
// What is multiplied are units of 32 bits: floats, or pairs of bfloat16, neighbours along k, k being the number of units. B is
// packed: for every 16 columns a panel [k, 16]. A is row after row, or turned: packed as B is, for every 16 rows a panel.
// C is float, n a multiple of 32.

#pragma once

#include <utility>

#include "lanes.h"

namespace {

constexpr long TILE = 16, DEPTH = 32;
constexpr long MOST = 14;  // rows at once: two registers for each, and some for what is multiplied
// Of k, in one sum; less where k are rows, whose sums grow.
constexpr long LONGEST = 256, LONGEST_TURNED = 64;

typedef float __attribute__((may_alias)) Unit;

struct Tiles {  // what other processors must switch on
  explicit Tiles(bool = true) {}
};

template <bool PAIRS>
INLINE __m512 multiply_add(__m512 a, __m512 b, __m512 sum) {
#if HAS_PAIRS
  if (PAIRS) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
  return _mm512_fmadd_ps(a, b, sum);
}

// M rows of two panels, one `apart` after the other; neighbours in A are `row` apart down and `step` apart along k.
template <bool PAIRS, int M>
__attribute__((noinline)) void vector_block(const Unit* a, long row, long step, const Unit* b, long apart, long k, float* c,
                                            long ldc, bool add) {
  __m512 sums[M][2];  // in registers only where no loop over them is left
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
  for (long p = 0; p < k; p++) {
    __m512 left = _mm512_loadu_ps(b + p * TILE), right = _mm512_loadu_ps(b + apart + p * TILE);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      __m512 factor = _mm512_set1_ps(a[i * row + p * step]);
      sums[i][0] = multiply_add<PAIRS>(factor, left, sums[i][0]);
      sums[i][1] = multiply_add<PAIRS>(factor, right, sums[i][1]);
    }
  }
  if (add) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      sums[i][0] = _mm512_add_ps(_mm512_loadu_ps(c + i * ldc), sums[i][0]);
      sums[i][1] = _mm512_add_ps(_mm512_loadu_ps(c + i * ldc + TILE), sums[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    _mm512_storeu_ps(c + i * ldc, sums[i][0]);
    _mm512_storeu_ps(c + i * ldc + TILE, sums[i][1]);
  }
}

typedef void (*VectorBlock)(const Unit*, long, long, const Unit*, long, long, float*, long, bool);

template <bool PAIRS, int... M>
INLINE VectorBlock block_of(long rows, std::integer_sequence<int, M...>) {
  static constexpr VectorBlock BLOCKS[] = {vector_block<PAIRS, M + 1>...};
  return BLOCKS[rows - 1];
}

// Of two panels m rows of C; a sum is complete before it is added to C: every addition to what is larger costs digits.
template <bool PAIRS>
INLINE void product_rows(const Unit* a, long row, long step, const Unit* b, long apart, float* c, long ldc, long m, long k,
                         bool add) {
  // Rows whole pages apart share the few places of a page in the cache.
  long most = row % 1024 ? MOST : MOST / 2, pieces = (m + most - 1) / most, longest = step == 1 ? LONGEST : LONGEST_TURNED;
  for (long start = 0; start < k; start += longest, add = true)
    for (long piece = 0; piece < pieces; piece++) {
      long first = m * piece / pieces, count = m * (piece + 1) / pieces - first;
      block_of<PAIRS>(count, std::make_integer_sequence<int, MOST>())(
          a + first * row + start * step, row, step, b + start * TILE, apart, std::min(longest, k - start), c + first * ldc,
          ldc, add);
    }
}

// C = A B, added to C if wanted; the rows of A are `row` apart.
template <bool PAIRS>
INLINE void vector_product(const Unit* a, long row, const Unit* b, float* c, long ldc, long m, long n, long k, bool add) {
  for (long j = 0; j < n; j += 2 * TILE) product_rows<PAIRS>(a, row, 1, b + j * k, k * TILE, c + j, ldc, m, k, add);
}

// The same of a turned A; m is a multiple of 16.
template <bool PAIRS>
INLINE void vector_product_turned(const Unit* a, const Unit* b, float* c, long ldc, long m, long n, long k, bool add) {
  for (long j = 0; j < n; j += 2 * TILE)
    for (long i = 0; i < m; i += TILE)
      product_rows<PAIRS>(a + i * k, 1, TILE, b + j * k, k * TILE, c + i * ldc + j, ldc, TILE, k, add);
}

}  // namespace
