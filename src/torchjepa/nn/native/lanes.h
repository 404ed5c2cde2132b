// Sixteen numbers at a time, by vector instructions of 512 bits (AVX-512).

#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace {

// 16 numbers at a time; `lanes` says which are in memory, the others are 0.
INLINE __mmask16 lanes(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1; }

INLINE __m512 load16(const bfloat16* from, __mmask16 known = 0xffff) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(known, from)), 16));
}

#if HAS_PAIRS
INLINE void store16(bfloat16* to, __m512 x, __mmask16 known = 0xffff) {
  _mm256_mask_storeu_epi16(to, known, (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

// Of two rows 16 numbers each, in pairs.
INLINE __m512i pairs_of(const bfloat16* even, const bfloat16* odd) {
  __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)even));
  __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// The same of rows of which either may not be there, and is 0.
INLINE __m512i known_pairs_of(const bfloat16* even, const bfloat16* odd) {
  static const bfloat16 ZEROS[16] = {};
  return pairs_of(even ? even : ZEROS, odd ? odd : ZEROS);
}

// 2^t for t > -1e9, to 3e-6 of it, less than what rounding to bfloat16 takes away.
INLINE __m512 exp2_16(__m512 t) {
  __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 part = _mm512_sub_ps(t, whole), power = _mm512_set1_ps(1.339887440266574e-3f);  // Taylor's series
  for (float coefficient : {9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f,
                            6.931472028550421e-1f, 1.0f})
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(power, whole);
}

// 2^t for t > -1e9, to 2e-7 of it.
INLINE __m512 exp2_exact(__m512 t) {
  __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 part = _mm512_sub_ps(t, whole), power = _mm512_set1_ps(1.535336188319500e-4f);  // Taylor's series
  for (float coefficient : {1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f,
                            6.931472028550421e-1f, 1.0f})
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(power, whole);
}

// 16 x 16 numbers of 32 bits, transposed.
INLINE void transpose_square(const uint32_t* from, long from_stride, uint32_t* to, long to_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    _mm512_storeu_si512(to + i * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_si512(to + (i + 8) * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
  }
}

}  // namespace
