// The MLP half of a transformer block by tile registers, the hidden layer some columns at a time: what a product gives goes
// through the GELU and is split for the next one while it is in registers.

#pragma once

#include "float_rows.h"
#include "split.h"

namespace {

constexpr long COLUMNS = 128;

// exp(-x^2 / 2) and the normal distribution function of x, as `normal_cdf` has it.
INLINE void normal16(__m512 x, __m512* bell, __m512* cdf) {
  __m512 square = _mm512_min_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(1e6f)), one = _mm512_set1_ps(1.0f);
  *bell = exp2_exact(_mm512_mul_ps(square, _mm512_set1_ps(-0.7213475204444817f)));
  __m512 base = _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.4f), one), t = _mm512_rcp14_ps(base);
  t = _mm512_fmadd_ps(t, _mm512_fnmadd_ps(base, t, one), t);  // Newton's method
  __m512 tail = _mm512_set1_ps(TAIL[0]);
  for (int i = 1; i < 9; i++) tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(TAIL[i]));
  tail = _mm512_mul_ps(tail, *bell);
  *cdf = _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one, tail);
}

INLINE __m512 gelu16(__m512 x) {
  __m512 bell, cdf;
  normal16(x, &bell, &cdf);
  return _mm512_mul_ps(x, cdf);
}

// Kept is `part`, without the bias.
INLINE void gelu_columns(const float* part, const float* bias, float* kept, long stride, bfloat16* active, long first,
                         long inner, long count, long columns) {
  for (long i = 0; i < count; i++)
    for (long c = 0; c < columns; c += DEPTH) {
      __m512 low = _mm512_loadu_ps(part + i * COLUMNS + c), high = _mm512_loadu_ps(part + i * COLUMNS + c + 16);
      if (kept) _mm512_storeu_ps(kept + i * stride + c, low), _mm512_storeu_ps(kept + i * stride + c + 16, high);
      low = gelu16(_mm512_add_ps(low, _mm512_loadu_ps(bias + c)));
      high = gelu16(_mm512_add_ps(high, _mm512_loadu_ps(bias + c + 16)));
      split_32(low, high, row_of(active, i, first + c, inner));
    }
}

// 16 columns: of_active times the GELU's derivative; the hidden layer after the GELU; the sums grow.
INLINE __m512 gelu16_backward(__m512 x, __m512 of_active, float* active, float* of_hidden, float* of_bias) {
  __m512 bell, cdf;
  normal16(x, &bell, &cdf);
  _mm512_storeu_ps(active, _mm512_mul_ps(x, cdf));
  __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.3989422804014327f)), bell, cdf);
  __m512 found = _mm512_mul_ps(of_active, slope);
  _mm512_storeu_ps(of_hidden, found);
  _mm512_storeu_ps(of_bias, _mm512_add_ps(_mm512_loadu_ps(of_bias), found));
  return found;
}

INLINE void gelu_columns_backward(const float* part, const float* hidden, const float* bias, float* active, float* of_hidden,
                                  float* of_bias, bfloat16* tiles, long first, long inner, long count, long columns) {
  for (long i = 0; i < count; i++)
    for (long c = 0; c < columns; c += DEPTH) {
      __m512 found[2];
      for (long half = 0; half < 2; half++) {
        long j = c + half * 16, place = i * inner + j;
        __m512 x = _mm512_add_ps(_mm512_loadu_ps(hidden + place), _mm512_loadu_ps(bias + j));
        found[half] = gelu16_backward(x, _mm512_loadu_ps(part + i * COLUMNS + j), active + place, of_hidden + place,
                                      of_bias + j);
      }
      split_32(found[0], found[1], row_of(tiles, i, first + c, inner));
    }
}

}  // namespace
