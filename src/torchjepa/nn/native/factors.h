// Products of float numbers, and sums over rows of either dtype, by what the processor multiplies fastest with: tile
// registers, for which numbers are split (split.h), or vectors, for which they stay as they are.

#pragma once

#include "numbers.h"

#if HAS_TILES
#include "split.h"
#elif HAS_VECTORS
#include "vectors.h"

namespace {

template <class Number>
using Piece = Number;  // what numbers are packed into
template <class Number>
constexpr long PARTS_OF = 1;
typedef Piece<float> Factor;

constexpr long PARTS = 1, STRIP = 128;

// Where the numbers of row i from column j on are in A.
INLINE float* row_of(float* a, long i, long j, long k) { return a + i * k + j; }

INLINE void pack_32(__m512 first, __m512 second, float* to) {
  _mm512_storeu_ps(to, first), _mm512_storeu_ps(to + TILE, second);
}

// A is row after row.
INLINE const float* pack_rows(const float* rows, float*, long, long) { return rows; }

// A panel of B, columns [k, 16] of rows.
INLINE void pack_panel(const float* rows, long stride, float* b, long k) {
  for (long i = 0; i < k; i++) _mm512_storeu_ps(b + i * TILE, _mm512_loadu_ps(rows + i * stride));
}

// A panel of B, the transpose of rows[16, k], k a multiple of 16.
INLINE void pack_panel_transposed(const float* rows, long stride, float* b, long k) {
  for (long i = 0; i < k; i += TILE)
    transpose_square((const uint32_t*)(rows + i), stride, (uint32_t*)(b + i * TILE), TILE);
}

// Sixteen columns of two rows, of bfloat16 in pairs; of rows that are not there 0.
INLINE void two_rows_of(const float* even, const float* odd, float* to) {
  _mm512_storeu_ps(to, even ? _mm512_loadu_ps(even) : _mm512_setzero_ps());
  _mm512_storeu_ps(to + TILE, odd ? _mm512_loadu_ps(odd) : _mm512_setzero_ps());
}

INLINE void two_rows_of(const bfloat16* even, const bfloat16* odd, bfloat16* to) {
  _mm512_storeu_si512(to, known_pairs_of(even, odd));
}

// Of up to 32 rows and some columns the panels of B, or of a turned A, `apart` from each other.
template <class Number>
INLINE void pack_strip(const Number* rows, long stride, Number* panels, long apart, long count, long columns, bool) {
  for (long pair = 0; pair < TILE; pair++)  // along the rows: pages are looked up once
    for (long j = 0; j < columns; j += TILE) {
      const Number* even = rows + 2 * pair * stride + j;
      two_rows_of(2 * pair < count ? even : nullptr, 2 * pair + 1 < count ? even + stride : nullptr,
                  panels + j / TILE * apart + pair * DEPTH);
    }
}

// C[m, n] = A B, added to C if wanted; n a multiple of 32.
INLINE void float_product(const float* a, const float* b, float* c, long ldc, long m, long n, long k, bool add) {
  vector_product<false>(a, k, b, c, ldc, m, n, k, add);
}

// The same of a turned A, packed by strips.
INLINE void float_product_turned(const float* a, const float* b, float* c, long ldc, long m, long n, long k) {
  vector_product_turned<false>(a, b, c, ldc, m, n, k, false);
}

// 32 x 32 of them, of packed columns of either dtype.
template <class Number>
INLINE void product_of_columns(const Number* a, const Number* b, float* c, long ldc, long k, bool add) {
  constexpr long UNITS = 4 / sizeof(Number);
  vector_product_turned<UNITS == 2>((const Unit*)a, (const Unit*)b, c, ldc, 2 * TILE, 2 * TILE, k / UNITS, add);
}

}  // namespace
#else
typedef float Factor;
constexpr long PARTS = 1;
struct Tiles {
  explicit Tiles(bool) {}
};
#endif
