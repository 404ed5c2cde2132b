// What an MLP does with its hidden layer, 32 x 32 numbers at a time, in a core's cache.

#pragma once

#include "float_rows.h"
#include "factors.h"

namespace {

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

// 32 x 32 numbers that a product gave, and what has yet to be done with them, row by row.
struct Block {
  alignas(64) float part[DEPTH * DEPTH];
  long row = 0, column = 0, done = 0, count = 0;
};

template <class Finish>
INLINE void finish_rows(Block* block, long most, const Finish& finish) {
  for (long end = std::min(block->count, block->done + most); block->done < end; block->done++) finish(*block, block->done);
}

// C = A B, 32 x 32 numbers at a time; then finish(block, row) goes over the rows of each. Tile registers leave the others
// idle: while one block is multiplied, finish goes over the last, k in one sum.
template <class Finish>
INLINE void product_and_finish(const Factor* a, const Factor* b, long m, long n, long k, const Finish& finish) {
#if HAS_TILES
  Block blocks[2], *last = &blocks[0], *now = &blocks[1];
  long calls = 6 * k / DEPTH, at_once = (DEPTH + calls - 1) / calls;
  for (long j = 0; j < n; j += DEPTH)
    for (long i = 0; i < m; i += DEPTH) {
      auto meanwhile = [&] { finish_rows(last, at_once, finish); };
      now->row = i, now->column = j, now->done = 0, now->count = std::min(DEPTH, m - i);
      const Factor *rows = a + i * k * PARTS, *columns = b + j * k * PARTS;
      if (now->count > TILE) store_product<2, PARTS>(rows, columns, k * TILE * PARTS, k, now->part, DEPTH, meanwhile);
      else store_product<1, PARTS>(rows, columns, k * TILE * PARTS, k, now->part, DEPTH, meanwhile);
      std::swap(last, now);
    }
  finish_rows(last, DEPTH, finish);
#else
  Block block;
  for (long j = 0; j < n; j += DEPTH)
    for (long i = 0; i < m; i += DEPTH) {
      block.row = i, block.column = j, block.done = 0, block.count = std::min(DEPTH, m - i);
      float_product(a + i * k, b + j * k, block.part, DEPTH, block.count, DEPTH, k, false);
      finish_rows(&block, DEPTH, finish);
    }
#endif
}

}  // namespace
