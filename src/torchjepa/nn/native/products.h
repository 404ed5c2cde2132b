// Products of rows of float numbers with the weight of a layer: our own where the caller has room for the packed weight,
// elsewhere by the BLAS that torch brings, called by each thread for rows of its own.

#pragma once

#include <omp.h>

#include "factors.h"

typedef void (*Sgemm)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                      const int*, const float*, const int*, const float*, float*, const int*);

namespace {

constexpr long TILE_ROWS = 112, MOST_ROWS = 256, LEAST_ROWS = 16;

struct Weight {  // [outs, in]
  Sgemm sgemm;
  const float* numbers;
  Factor* packed;  // room for it, or absent: then by sgemm
  long outs, in;
};

// Both shared among the threads; a barrier follows.
INLINE void pack_transposed(const Weight& w) {
#if HAS_VECTORS
  if (!w.packed) return;
#pragma omp for schedule(static)
  for (long j = 0; j < w.outs; j += TILE) pack_panel_transposed(w.numbers + j * w.in, w.in, w.packed + j * w.in * PARTS, w.in);
#endif
}

INLINE void pack(const Weight& w) {
#if HAS_VECTORS
  if (!w.packed) return;
#pragma omp for schedule(static)
  for (long j = 0; j < w.in; j += TILE) pack_panel(w.numbers + j, w.in, w.packed + j * w.outs * PARTS, w.outs);
#endif
}

// Bytes of room that a product of so many rows of so many numbers needs.
INLINE long room_for(const Weight& w, long count, long width) {
  return HAS_TILES && w.packed ? filled(count, 16) * width * 6 + 64 : 0;
}

// out[count, outs] = x[count, in] W^T, or that added to out; W packed by `pack_transposed`.
INLINE void multiply_transposed(const Weight& w, const float* x, char* room, float* out, int count, bool add) {
#if HAS_VECTORS
  if (w.packed) {
    return float_product(pack_rows(x, (Factor*)room, count, w.in), w.packed, out, w.outs, count, w.outs, w.in, add);
  }
#endif
  int n = w.outs, k = w.in;
  float one = 1, keep = add;
  w.sgemm("T", "N", &n, &count, &k, &one, w.numbers, &k, x, &k, &keep, out, &n);
}

// out[count, in] = x[count, outs] W; W packed by `pack`.
INLINE void multiply(const Weight& w, const float* x, char* room, float* out, int count) {
#if HAS_VECTORS
  if (w.packed) {
    return float_product(pack_rows(x, (Factor*)room, count, w.outs), w.packed, out, w.in, count, w.in, w.outs, false);
  }
#endif
  int n = w.in, k = w.outs;
  float one = 1, zero = 0;
  w.sgemm("N", "N", &n, &count, &k, &one, w.numbers, &n, x, &k, &zero, out, &n);
}

// How many rows a thread takes at once: fewer than the cache holds, and every thread as many times as the others. By our
// own products it does not depend on the number of threads, so that sums are the same.
INLINE long rows_at_once(long rows, bool packed) {
  if (packed) {
    // Of four threads the busiest; to fetch all weights anew takes as long as some rows.
    auto time = [rows](long step) { return filled(filled(rows, step) / step, 4) / 4 * (step + 16); };
    long best = TILE_ROWS;
    for (long step = TILE_ROWS; step >= LEAST_ROWS; step -= 16)
      if (time(step) < time(best)) best = step;
    return best;
  }
  long round = std::max(4, omp_get_max_threads()) * MOST_ROWS, rounds = (rows + round - 1) / round;
  return std::max(LEAST_ROWS, (rows * MOST_ROWS + rounds * round - 1) / (rounds * round));
}

// body(first row, number of rows) some rows at a time.
template <class Body>
INLINE void for_rows(long rows, bool packed, const Body& body) {
  long step = rows_at_once(rows, packed);
#pragma omp for schedule(dynamic)
  for (long row = 0; row < rows; row += step) body(row, std::min(step, rows - row));
}

// body(first row, number of rows, sums) some rows at a time, every run with sums of its own, then those added up.
template <class Body>
INLINE void for_runs(long rows, bool packed, long num_sums, float* scratch, float* sums, const Body& body) {
  long step = rows_at_once(rows, packed), runs = std::min(RUNS, (rows + step - 1) / step);
  long length = (rows + runs - 1) / runs, most = packed ? TILE_ROWS : MOST_ROWS;
  if (packed) length = filled(length, step);
  step = (length + most - 1) / most;
  step = (length + step - 1) / step;
#pragma omp for schedule(dynamic)
  for (long run = 0; run < runs; run++) {
    float* here = scratch + run * num_sums;
    std::fill(here, here + num_sums, 0.0f);
    long end = std::min(rows, (run + 1) * length);
    for (long row = run * length; row < end; row += step) body(row, std::min(step, end - row), here);
  }
  constexpr long COLUMNS = 256;
#pragma omp for schedule(static)
  for (long start = 0; start < num_sums; start += COLUMNS) {
    long end = std::min(num_sums, start + COLUMNS);
    std::copy(scratch + start, scratch + end, sums + start);
    for (long run = 1; run < runs; run++) {
      const float* here = scratch + run * num_sums;
      SIMD
      for (long j = start; j < end; j++) sums[j] += here[j];
    }
  }
}

}  // namespace
