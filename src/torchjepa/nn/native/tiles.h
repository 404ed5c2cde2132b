// Matrix products of bfloat16 by the processor's tile registers (AMX), one thread's share at a time.
//
// A is row after row. B, [k, n], is packed: for every 16 columns a panel, in it for every two rows of B 16 pairs, so that
// a tile is one kilobyte in a row. C is float. m and n are multiples of 16, k of 32; what is filled up is filled with 0.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"

namespace {

constexpr long TILE = 16, DEPTH = 32;

// Compilers are not told which memory instructions on tiles read and write: they must not move others past these.
INLINE void order_memory() { asm volatile("" ::: "memory"); }

class Tiles {  // a thread's tile registers, all 16 rows of 64 bytes
 public:
  explicit Tiles(bool used = true) : used_(used) {
    if (!used) return;
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    order_memory();
    _tile_loadconfig(config);
  }
  ~Tiles() {
    if (used_) _tile_release();
  }

 private:
  bool used_;
};

// The kernel of the system lends the tile registers on request.
INLINE bool tiles_are_lent() {
  static const bool lent = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return lent;
}

// A store of a tile with more than 120 multiplications since the last one holds up the core for some 900 cycles (measured
// on a Xeon with AMX-FP16, whatever is stored and wherever it is): so every so far in k a tile is stored in vain.
constexpr long IDLE_DEPTH = 16 * DEPTH;

template <int M, int N>
INLINE void product_block(const bfloat16* a, long lda, const bfloat16* b, long k, float* c, long ldc, bool add) {
  const bfloat16* b1 = b + k * TILE;
  if (add) {
    _tile_loadd(0, c, ldc * 4);
    if (N > 1) _tile_loadd(1, c + TILE, ldc * 4);
    if (M > 1) _tile_loadd(2, c + TILE * ldc, ldc * 4);
    if (M > 1 && N > 1) _tile_loadd(3, c + TILE * ldc + TILE, ldc * 4);
  } else {
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (M > 1) _tile_zero(2);
    if (M > 1 && N > 1) _tile_zero(3);
  }
  alignas(64) bfloat16 vain[TILE * DEPTH];
  for (long i = 0; i < k; i += DEPTH) {
    if (i && i % IDLE_DEPTH == 0) _tile_stored(7, vain, 64);
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b + i * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (N > 1) {
      _tile_loadd(7, b1 + i * TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (M > 1) {
      _tile_loadd(5, a + TILE * lda + i, lda * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, ldc * 4);
  if (N > 1) _tile_stored(1, c + TILE, ldc * 4);
  if (M > 1) _tile_stored(2, c + TILE * ldc, ldc * 4);
  if (M > 1 && N > 1) _tile_stored(3, c + TILE * ldc + TILE, ldc * 4);
}

// C[m, n] = A[m, k] B[k, n], added to C if wanted.
INLINE void product(const bfloat16* a, long lda, const bfloat16* b, float* c, long ldc, long m, long n, long k,
                    bool add = false) {
  order_memory();
  for (long j = 0; j < n; j += 2 * TILE) {
    const bfloat16* panel = b + j * k;
    bool wide = j + TILE < n;
    for (long i = 0; i < m; i += 2 * TILE) {
      bool tall = i + TILE < m;
      float* here = c + i * ldc + j;
      const bfloat16* rows = a + i * lda;
      if (tall && wide) product_block<2, 2>(rows, lda, panel, k, here, ldc, add);
      else if (tall) product_block<2, 1>(rows, lda, panel, k, here, ldc, add);
      else if (wide) product_block<1, 2>(rows, lda, panel, k, here, ldc, add);
      else product_block<1, 1>(rows, lda, panel, k, here, ldc, add);
    }
  }
  order_memory();
}

// 16 numbers at a time; `lanes` says which are in memory, the others are 0.
INLINE __mmask16 lanes(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1; }

INLINE __m512 load16(const bfloat16* from, __mmask16 known = 0xffff) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(known, from)), 16));
}

INLINE void store16(bfloat16* to, __m512 x, __mmask16 known = 0xffff) {
  _mm256_mask_storeu_epi16(to, known, (__m256i)_mm512_cvtneps_pbh(x));
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
      const bfloat16 *even = rows + i * stride + j, *odd = even + stride;
      __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)even));
      __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)odd));
      _mm512_storeu_si512(b + j * k + i * TILE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
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
