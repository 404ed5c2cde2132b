// Matrix products of bfloat16, of pairs of neighbours along k, by tile registers or by vector instructions.
//
// A is row after row. B, [k, n], is packed: for every 16 columns a panel, in it for every two rows of B 16 pairs. C is
// float, n a multiple of 32; what is filled up is filled with 0.

#pragma once

#include "numbers.h"

#if HAS_TILES
#include "tiles.h"
#else
#include "vectors.h"
#endif

namespace {

// Of what numbers of rows of A and of k are multiples: tiles are whole.
#if HAS_TILES
constexpr long ROW_UNIT = TILE, DEPTH_UNIT = DEPTH;

// The same of an A that `turn` made of rows[k, m].
INLINE void product_turned(const bfloat16* a, const bfloat16* b, float* c, long ldc, long m, long n, long k) {
  product(a, k, b, c, ldc, m, n, k);
}
#else
constexpr long ROW_UNIT = 1, DEPTH_UNIT = 2;

// C[m, n] = A[m, k] B[k, n], added to C if wanted.
INLINE void product(const bfloat16* a, long lda, const bfloat16* b, float* c, long ldc, long m, long n, long k,
                    bool add = false) {
  vector_product<true>((const Unit*)a, lda / 2, (const Unit*)b, c, ldc, m, n, k / 2, add);
}

// The same of an A that `turn` made of rows[k, m].
INLINE void product_turned(const bfloat16* a, const bfloat16* b, float* c, long ldc, long m, long n, long k) {
  vector_product_turned<true>((const Unit*)a, (const Unit*)b, c, ldc, m, n, k / 2, false);
}
#endif

// A = the transpose of rows[k, m], which stay in pairs along k; m a multiple of 32.
INLINE void turn(const bfloat16* rows, long m, bfloat16* a, long k) {
#if HAS_TILES
  for (long row = 0; row < k; row += DEPTH)
    for (long j = 0; j < m; j += TILE) {
      alignas(64) uint32_t pairs[TILE * TILE];
      for (long i = 0; i < TILE; i++) {
        const bfloat16* even = rows + (row + 2 * i) * m + j;
        _mm512_store_si512(pairs + TILE * i, pairs_of(even, even + m));
      }
      transpose_square(pairs, TILE, (uint32_t*)(a + j * k + row), k / 2);
    }
#else
  for (long row = 0; row < k; row += 2)
    for (long j = 0; j < m; j += TILE) {
      const bfloat16* even = rows + row * m + j;
      _mm512_storeu_si512(a + j * k + row * TILE, pairs_of(even, even + m));
    }
#endif
}

// B = the transpose of rows[n, k], packed; n a multiple of 16, k of 32.
INLINE void pack_transposed(const bfloat16* rows, long stride, bfloat16* b, long n, long k) {
  for (long j = 0; j < n; j += TILE)
    for (long i = 0; i < k; i += DEPTH)
      transpose_square((const uint32_t*)(rows + j * stride + i), stride / 2, (uint32_t*)(b + j * k + i * TILE), TILE);
}

// B = rows[k, n], packed; n a multiple of 16, k of 2.
INLINE void pack(const bfloat16* rows, long stride, bfloat16* b, long k, long n) {
  for (long j = 0; j < n; j += TILE)
    for (long i = 0; i < k; i += 2) {
      const bfloat16* even = rows + i * stride + j;
      _mm512_storeu_si512(b + j * k + i * TILE, pairs_of(even, even + stride));
    }
}

// The same from float, rounded.
INLINE void pack_transposed(const float* rows, long stride, bfloat16* b, long n, long k) {
  for (long j = 0; j < n; j += TILE)
    for (long i = 0; i < k; i += DEPTH) {
      alignas(64) bfloat16 square[TILE * DEPTH];
      for (long row = 0; row < TILE; row++) {
        const float* here = rows + (j + row) * stride + i;
        store16(square + row * DEPTH, _mm512_loadu_ps(here));
        store16(square + row * DEPTH + 16, _mm512_loadu_ps(here + 16));
      }
      transpose_square((const uint32_t*)square, TILE, (uint32_t*)(b + j * k + i * TILE), TILE);
    }
}

INLINE void pack(const float* rows, long stride, bfloat16* b, long k, long n) {
  for (long j = 0; j < n; j += TILE)
    for (long i = 0; i < k; i += 2) {
      const float* even = rows + i * stride + j;
      __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even)));
      __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even + stride)));
      _mm512_storeu_si512(b + j * k + i * TILE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

}  // namespace
