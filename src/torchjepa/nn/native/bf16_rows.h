// Rows of tokens beside products of bfloat16: norms, GELU, rounding, sums, sixteen numbers at a time.

#pragma once

#include "norm.h"
#include "pairs.h"

namespace {

constexpr long ROWS = 64, COLUMNS = HAS_TILES ? 128 : 64;  // a core's fastest cache holds part of a product

// exp(-x^2 / 2) and the normal distribution function of x, to 2e-5: less than bfloat16 resolves.
INLINE void normal16(__m512 x, __m512* bell, __m512* cdf) {
  __m512 square = _mm512_min_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(1e6f));
  *bell = exp2_16(_mm512_mul_ps(square, _mm512_set1_ps(-0.7213475204444817f)));
  __m512 one = _mm512_set1_ps(1.0f);
  __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.3652173913043478f), one));
  __m512 tail = _mm512_set1_ps(-0.0967040602120246f);
  for (float coefficient : {0.2369999096197564f, 0.0513852979299118f, 0.1649302821242925f, 0.14326078795571695f,
                            0.00012010581440000984f})
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(coefficient));
  tail = _mm512_mul_ps(tail, *bell);
  *cdf = _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one, tail);
}

INLINE float* add_to(float* sum, __m512 x) {
  _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), x));
  return sum;
}

// Rows of out, which has room for a multiple of 16 of them; those beyond count become 0.
INLINE void normalize_rows(const float* x, const Norm& norm, bfloat16* out, float* means, float* rstds, long count,
                           long width) {
  for (long i = 0; i < count; i++) {
    const float* here = x + i * width;
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (long j = 0; j < width; j += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(here + j));
    float mean = _mm512_reduce_add_ps(sum) / width;
    for (long j = 0; j < width; j += 16) {
      __m512 off = _mm512_sub_ps(_mm512_loadu_ps(here + j), _mm512_set1_ps(mean));
      square = _mm512_fmadd_ps(off, off, square);
    }
    float rstd = 1.0f / sqrtf(_mm512_reduce_add_ps(square) / width + norm.eps);
    if (means) means[i] = mean, rstds[i] = rstd;
    for (long j = 0; j < width; j += 16) {
      __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(here + j), _mm512_set1_ps(mean)), _mm512_set1_ps(rstd));
      store16(out + i * width + j,
              _mm512_fmadd_ps(unit, _mm512_loadu_ps(norm.scale + j), _mm512_loadu_ps(norm.shift + j)));
    }
  }
  std::fill(out + count * width, out + filled(count, TILE) * width, (bfloat16)0);
}

// of_x = residual + the gradient through the norm; sums[2 width] grow by those of scale and shift.
INLINE void normalize_rows_backward(const float* grad, const float* x, const float* means, const float* rstds,
                                    const float* scale, const float* residual, float* of_x, float* sums, long count,
                                    long width) {
  for (long i = 0; i < count; i++) {
    const float *g = grad + i * width, *here = x + i * width;
    __m512 mean = _mm512_set1_ps(means[i]), rstd = _mm512_set1_ps(rstds[i]);
    __m512 along = _mm512_setzero_ps(), all = along;
    for (long j = 0; j < width; j += 16) {
      __m512 value = _mm512_loadu_ps(g + j);
      __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(here + j), mean), rstd);
      __m512 weighted = _mm512_mul_ps(value, _mm512_loadu_ps(scale + j));
      add_to(sums + j, _mm512_mul_ps(value, unit)), add_to(sums + width + j, value);
      along = _mm512_fmadd_ps(weighted, unit, along), all = _mm512_add_ps(all, weighted);
    }
    along = _mm512_set1_ps(_mm512_reduce_add_ps(along) / width), all = _mm512_set1_ps(_mm512_reduce_add_ps(all) / width);
    for (long j = 0; j < width; j += 16) {
      __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(here + j), mean), rstd);
      __m512 inner = _mm512_fmsub_ps(_mm512_loadu_ps(g + j), _mm512_loadu_ps(scale + j), all);
      inner = _mm512_fnmadd_ps(unit, along, inner);
      _mm512_storeu_ps(of_x + i * width + j, _mm512_fmadd_ps(inner, rstd, _mm512_loadu_ps(residual + i * width + j)));
    }
  }
}

// rounded = x, those beyond count 0; sum grows by the sum over rows.
INLINE void round_and_add(const float* x, bfloat16* rounded, float* sum, long count, long width) {
  for (long i = 0; i < count; i++)
    for (long j = 0; j < width; j += 16) {
      __m512 value = _mm512_loadu_ps(x + i * width + j);
      add_to(sum + j, value), store16(rounded + i * width + j, value);
    }
  std::fill(rounded + count * width, rounded + filled(count, TILE) * width, (bfloat16)0);
}

INLINE void add_rows(const bfloat16* x, float* sum, long count, long width) {
  for (long i = 0; i < count; i++)
    for (long j = 0; j < width; j += 16) add_to(sum + j, load16(x + i * width + j));
}

// Rows to work with: those in memory where all are there, or a copy filled up with 0.
INLINE const bfloat16* whole_rows(const bfloat16* rows, bfloat16* room, long count, long width) {
  if (count % TILE == 0) return rows;
  memcpy(room, rows, count * width * sizeof(bfloat16));
  std::fill(room + count * width, room + filled(count, TILE) * width, (bfloat16)0);
  return room;
}

// Where a kernel writes rows that are wanted afterwards: there, or in the room if there would be too many.
INLINE bfloat16* place_of(bfloat16* wanted, bfloat16* room, long count) {
  return wanted && count % TILE == 0 ? wanted : room;
}

INLINE void deliver(const bfloat16* made, bfloat16* wanted, long count, long width) {
  if (wanted && made != wanted) memcpy(wanted, made, count * width * sizeof(bfloat16));
}

// Both shared among the threads; a barrier follows.
INLINE void pack_weight_transposed(const float* weight, bfloat16* packed, long outs, long in) {
#pragma omp for schedule(static)
  for (long j = 0; j < outs; j += TILE) pack_transposed(weight + j * in, in, packed + j * in, TILE, in);
}

INLINE void pack_weight(const float* weight, bfloat16* packed, long outs, long in) {
#pragma omp for schedule(static)
  for (long start = 0; start < in; start += COLUMNS)  // rows of many columns: pages are looked up once
    for (long i = 0; i < outs; i += 2)
      for (long j = start; j < std::min(in, start + COLUMNS); j += TILE)
        pack(weight + i * in + j, in, packed + j * outs + i * TILE, 2, TILE);
}

INLINE long run_length(long rows) { return filled((rows + RUNS - 1) / RUNS, ROWS); }

// body(first row, number of rows, sums) some rows at a time, every run with sums of its own, then those added up.
template <class Body>
INLINE void for_runs(long rows, long num_sums, float* scratch, float* sums, const Body& body) {
  long length = run_length(rows);
#pragma omp for schedule(dynamic)
  for (long run = 0; run < RUNS; run++) {
    float* here = scratch + run * num_sums;
    std::fill(here, here + num_sums, 0.0f);
    long end = std::min(rows, (run + 1) * length);
    for (long row = run * length; row < end; row += ROWS) body(row, std::min(ROWS, end - row), here);
  }
#pragma omp for schedule(static)
  for (long j = 0; j < num_sums; j += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (long run = 0; run < RUNS; run++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(scratch + run * num_sums + j));
    _mm512_storeu_ps(sums + j, sum);
  }
}

}  // namespace
