// The gradient of a layer's weight, left^T right summed over rows, the operands float or bfloat16.
//
// Every thread has a block of out and packs the columns it needs, some rows at a time: the same bits for any number of
// threads, which do not wait for each other.

#include <omp.h>

#include "numbers.h"

struct WeightGradient {
  const void *left, *right;  // [rows, m] and [rows, n], float or bfloat16
  float* out;                // [m, n]
  long rows, m, n;
};

#if HAS_VECTORS

#include "factors.h"

namespace {

// The share of one of so many threads.
INLINE void share_of(long n, long threads, long thread, long* start, long* end) {
  long units = n / TILE / 2;
  *start = units * thread / threads * TILE * 2, *end = units * (thread + 1) / threads * TILE * 2;
}

// Some columns of both operands' rows, a strip after the other.
template <class Number>
INLINE void pack_columns(const Number* rows, long stride, Piece<Number>* packed, long count, long k, long columns, bool as_rows) {
  constexpr long P = PARTS_OF<Number>;
  for (long j = 0; j < columns; j += STRIP)
    for (long i = 0; i < k; i += DEPTH)
      pack_strip(rows + i * stride + j, stride, packed + (j * k + i * TILE) * P, k * TILE * P,
                            std::min(DEPTH, count - i), std::min(STRIP, columns - j), as_rows);
}

// Into how many shares the rows of out are cut, that all threads together pack the least.
INLINE long row_shares(long m, long n, long threads) {
  long best = 1;
  for (long shares = 1; shares <= threads; shares++)
    if (threads % shares == 0 && m / shares + n * shares / threads < m / best + n * best / threads) best = shares;
  return best;
}

template <class Number>
void weight_gradient(const WeightGradient& g) {
  constexpr long P = PARTS_OF<Number>;
  constexpr long CHUNK = sizeof(Number) == 4 ? 256 : 1024;  // rows of both operands that a core's cache holds
  const Number *a = (const Number*)g.left, *b = (const Number*)g.right;
#pragma omp parallel
  {
    Tiles tiles;
    long threads = omp_get_num_threads(), thread = omp_get_thread_num(), shares = row_shares(g.m, g.n, threads);
    long top, bottom, left, right;
    share_of(g.m, shares, thread % shares, &top, &bottom), share_of(g.n, threads / shares, thread / shares, &left, &right);
    long rows = bottom - top, columns = right - left;
    Workspace space((long)sizeof(Piece<Number>) * CHUNK * (rows + columns) * P + 128);
    auto *packed_a = space.take<Piece<Number>>(CHUNK * rows * P), *packed_b = space.take<Piece<Number>>(CHUNK * columns * P);
    for (long start = 0; start < g.rows && rows && columns; start += CHUNK) {
      long count = std::min(CHUNK, g.rows - start), k = filled(count, DEPTH);
      pack_columns(a + start * g.m + top, g.m, packed_a, count, k, rows, true);
      pack_columns(b + start * g.n + left, g.n, packed_b, count, k, columns, false);
      auto add = [&](long i, long j) {
        float* place = g.out + (top + i) * g.n + left + j;
        product_of_columns<Number>(packed_a + i * k * P, packed_b + j * k * P, place, g.n, k, start > 0);
      };
      // What the inner loop goes over stays in the cache: by a third faster than the other way round.
      for (long outer = 0; outer < std::max(rows, columns); outer += 2 * TILE)
        for (long inner = 0; inner < std::min(rows, columns); inner += 2 * TILE)
          rows < columns ? add(inner, outer) : add(outer, inner);
    }
  }
}

}  // namespace

extern "C" {
void float_weight_gradient(const WeightGradient* g) { weight_gradient<float>(*g); }
#if HAS_PAIRS
void bf16_weight_gradient(const WeightGradient* g) { weight_gradient<bfloat16>(*g); }
#else
void bf16_weight_gradient(const WeightGradient*) {}
#endif
}

#else

extern "C" {
void float_weight_gradient(const WeightGradient*) {}
void bf16_weight_gradient(const WeightGradient*) {}
}

#endif
