// Matrix products of float numbers by tile registers, as exact as those of float arithmetic.
//
// A float of 24 binary digits is the sum of three bfloat16 of 8, x = x1 + x2 + x3. Of the nine products of parts the six
// that count are added up, x1 y1 + x1 y2 + x2 y1 + x2 y2 + x1 y3 + x3 y1; what is left out is at most 2^-23 |x y|, and
// 32 of k are added up before they meet a larger sum (Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial
// Intelligence Datatype For Higher-Precision Computations, 2019). A factor that is infinite or above 3.39e38, which rounds
// up, gives NaN, and of numbers below 1e-30 digits may be lost.
//
// Both factors are packed: for every 16 rows of A or columns of B a panel, in it for every 32 of k the tiles of the three
// parts. What fills up the last of them is 0.

#pragma once

#include "tiles.h"

namespace {

template <class Number>
using Piece = bfloat16;  // what numbers are packed into
template <class Number>
constexpr long PARTS_OF = 1;
template <>
constexpr long PARTS_OF<float> = 3;
typedef Piece<float> Factor;

constexpr long PARTS = PARTS_OF<float>, SQUARE = TILE * DEPTH, TRIPLE = PARTS * SQUARE, STRIP = 128;
constexpr long LONGEST = 768;  // of k, in one sum
constexpr long AHEAD = 8;      // rows that are asked for before they are needed

// The upper halves of each are the parts of x, which is 0 in the end.
INLINE void split(__m512 x, __m512i* parts) {
  for (long part = 0; part < PARTS - 1; part++) {  // rounded to nearest; the last one has no more digits than fit
    __m512i raised = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    parts[part] = _mm512_and_si512(raised, _mm512_set1_epi32(0xffff0000));
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(parts[part]));
  }
  parts[PARTS - 1] = _mm512_castps_si512(x);
}

// 32 numbers of a row into a row of each of three tiles.
INLINE void pack_32(__m512 first, __m512 second, bfloat16* tiles) {
  alignas(64) static constexpr uint16_t UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  __m512i low[PARTS], high[PARTS];
  split(first, low), split(second, high);
  for (long part = 0; part < PARTS; part++)
    _mm512_storeu_si512(tiles + part * SQUARE,
                        _mm512_permutex2var_epi16(low[part], _mm512_load_si512(UPPER), high[part]));
}

INLINE void pack_32(const float* x, bfloat16* tiles) { pack_32(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), tiles); }

// 16 numbers of each of two rows, in pairs, into a row of each of three tiles.
INLINE void split_pairs(__m512 even, __m512 odd, bfloat16* tiles) {
  __m512i low[PARTS], high[PARTS];
  split(even, low), split(odd, high);
  for (long part = 0; part < PARTS; part++)
    _mm512_storeu_si512(tiles + part * SQUARE,
                        _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low[part], 16), high[part]));
}

// Where the numbers of row i from column j on are in A.
INLINE bfloat16* row_of(bfloat16* a, long i, long j, long k) {
  return a + (i / TILE * k + j) * TILE * PARTS + i % TILE * DEPTH;
}

// A = rows[m, k], k a multiple of 32.
INLINE const Factor* pack_rows(const float* rows, Factor* a, long m, long k) {
  for (long i = 0; i < filled(m, TILE); i++)
    for (long j = 0; j < k; j += DEPTH) {
      bfloat16* to = row_of(a, i, j, k);
      if (i < m) pack_32(rows + i * k + j, to);
      else
        for (long part = 0; part < PARTS; part++) _mm512_storeu_si512(to + part * SQUARE, _mm512_setzero_si512());
    }
  return a;
}

// A panel of B, the transpose of rows[16, k], k a multiple of 32.
INLINE void pack_panel_transposed(const float* rows, long stride, bfloat16* b, long k) {
  for (long i = 0; i < k; i += DEPTH, b += TRIPLE) {
    alignas(64) bfloat16 squares[TRIPLE];
    for (long row = 0; row < TILE; row++) pack_32(rows + row * stride + i, squares + row * DEPTH);
    for (long part = 0; part < PARTS; part++)
      transpose_square((const uint32_t*)(squares + part * SQUARE), TILE, (uint32_t*)(b + part * SQUARE), TILE);
  }
}

// A panel of B, columns [k, 16] of rows, k a multiple of 32.
INLINE void pack_panel(const float* rows, long stride, bfloat16* b, long k) {
  for (long i = 0; i < k; i += DEPTH, b += TRIPLE)
    for (long pair = 0; pair < TILE; pair++) {
      const float* even = rows + (i + 2 * pair) * stride;
      split_pairs(_mm512_loadu_ps(even), _mm512_loadu_ps(even + stride), b + pair * DEPTH);
    }
}

// Sixteen columns of two rows, in pairs; of rows that are not there 0.
INLINE void pairs_of(const float* even, const float* odd, bfloat16* tiles) {
  split_pairs(even ? _mm512_loadu_ps(even) : _mm512_setzero_ps(), odd ? _mm512_loadu_ps(odd) : _mm512_setzero_ps(), tiles);
}

INLINE void pairs_of(const bfloat16* even, const bfloat16* odd, bfloat16* tiles) {
  _mm512_storeu_si512(tiles, known_pairs_of(even, odd));
}

// Of up to 32 rows and some columns the tiles of B, or of a turned A, which are those transposed; panels are `apart`.
template <class Number>
INLINE void pack_strip(const Number* rows, long stride, bfloat16* tiles, long apart, long count, long columns, bool as_rows) {
  constexpr long P = PARTS_OF<Number>;
  alignas(64) bfloat16 squares[STRIP / TILE * P * SQUARE];
  for (long pair = 0; pair < TILE; pair++) {  // along the rows: pages are looked up once
    const Number* even = rows + 2 * pair * stride;
    bfloat16* to = as_rows ? squares : tiles;
    for (long j = 0; j < columns; j += TILE, to += as_rows ? P * SQUARE : apart) {
      _mm_prefetch((const char*)(even + AHEAD * stride + j), _MM_HINT_T0);
      _mm_prefetch((const char*)(even + (AHEAD + 1) * stride + j), _MM_HINT_T0);
      pairs_of(2 * pair < count ? even + j : nullptr, 2 * pair + 1 < count ? even + stride + j : nullptr, to + pair * DEPTH);
    }
  }
  if (!as_rows) return;
  for (long j = 0; j < columns / TILE; j++)
    for (long part = 0; part < P; part++)
      transpose_square((const uint32_t*)(squares + (j * P + part) * SQUARE), TILE,
                       (uint32_t*)(tiles + j * apart + part * SQUARE), TILE);
}

// The sum of four tiles of C in registers 0 to 3 (of two, 0 and 1, for M = 1) grows by a product over k; `a` and `b` are
// two panels each, the second one `apart` after the first; P is the number of parts. The tiles leave the processor's other
// units to `meanwhile`, which is called after every four multiplications.
template <int M, int P, class Meanwhile>
INLINE void add_products(const bfloat16* a, const bfloat16* b, long apart, long k, const Meanwhile& meanwhile) {
#define LOAD_A(part)                     \
  _tile_loadd(4, a + part * SQUARE, 64); \
  if (M > 1) _tile_loadd(5, a + apart + part * SQUARE, 64);
#define LOAD_B(part)                     \
  _tile_loadd(6, b + part * SQUARE, 64); \
  _tile_loadd(7, b + apart + part * SQUARE, 64);
#define MULTIPLY                      \
  _tile_dpbf16ps(0, 4, 6);            \
  _tile_dpbf16ps(1, 4, 7);            \
  if (M > 1) _tile_dpbf16ps(2, 5, 6); \
  if (M > 1) _tile_dpbf16ps(3, 5, 7); \
  meanwhile();
  alignas(64) bfloat16 vain[SQUARE];
  for (long i = 0; i < k; i += DEPTH, a += P * SQUARE, b += P * SQUARE) {
    if (i && i % (P == 1 ? IDLE_DEPTH : IDLE_DEPTH / 8) == 0) _tile_stored(7, vain, 64);
    if (P == 1) {
      LOAD_B(0) LOAD_A(0) MULTIPLY
      continue;
    }
    // Every product changes one of the factors.
    LOAD_B(0) LOAD_A(2) MULTIPLY
    LOAD_A(1) MULTIPLY
    LOAD_B(1) MULTIPLY
    LOAD_A(0) MULTIPLY
    LOAD_B(0) MULTIPLY
    LOAD_B(2) MULTIPLY
  }
#undef LOAD_A
#undef LOAD_B
#undef MULTIPLY
}

struct Nothing {
  void operator()() const {}
};

template <int M, int P, class Meanwhile = Nothing>
INLINE void store_product(const bfloat16* a, const bfloat16* b, long apart, long k, float* c, long ldc,
                          const Meanwhile& meanwhile = {}) {
  order_memory();
  _tile_zero(0);
  _tile_zero(1);
  if (M > 1) _tile_zero(2);
  if (M > 1) _tile_zero(3);
  add_products<M, P>(a, b, apart, k, meanwhile);
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + TILE, ldc * 4);
  if (M > 1) _tile_stored(2, c + TILE * ldc, ldc * 4);
  if (M > 1) _tile_stored(3, c + TILE * ldc + TILE, ldc * 4);
  order_memory();
}

// Up to 32 rows of two panels of C, their product of k, or that added to them. Long sums are made of shorter ones, and a
// sum is complete before it is added to C: every addition to what is larger costs digits.
template <int P>
INLINE void product_32(const bfloat16* a, const bfloat16* b, float* c, long ldc, long count, long k, bool add) {
  long apart = k * TILE * P;
  if (count == 2 * TILE && k <= LONGEST && !add) return store_product<2, P>(a, b, apart, k, c, ldc);
  alignas(64) float part[4 * TILE * TILE];
  for (long start = 0; start < k; start += LONGEST, add = true) {
    const bfloat16 *rows = a + start * TILE * P, *columns = b + start * TILE * P;
    if (count > TILE) store_product<2, P>(rows, columns, apart, std::min(LONGEST, k - start), part, 2 * TILE);
    else store_product<1, P>(rows, columns, apart, std::min(LONGEST, k - start), part, 2 * TILE);
    for (long i = 0; i < count; i++)
      for (long j = 0; j < 2 * TILE; j += TILE) {
        __m512 known = add ? _mm512_loadu_ps(c + i * ldc + j) : _mm512_setzero_ps();
        _mm512_storeu_ps(c + i * ldc + j, _mm512_add_ps(known, _mm512_load_ps(part + i * 2 * TILE + j)));
      }
  }
}

// C[m, n] = A B, added to C if wanted; n and k multiples of 32. Rows of C beyond m are not touched.
INLINE void float_product(const bfloat16* a, const bfloat16* b, float* c, long ldc, long m, long n, long k, bool add) {
  for (long j = 0; j < n; j += 2 * TILE)
    for (long i = 0; i < m; i += 2 * TILE)
      product_32<PARTS>(a + i * k * PARTS, b + j * k * PARTS, c + i * ldc + j, ldc, std::min(2 * TILE, m - i), k, add);
}

// The same of a turned A, packed by strips.
INLINE void float_product_turned(const Factor* a, const Factor* b, float* c, long ldc, long m, long n, long k) {
  float_product(a, b, c, ldc, m, n, k, false);
}

// 32 x 32 of them, of packed columns of either dtype.
template <class Number>
INLINE void product_of_columns(const bfloat16* a, const bfloat16* b, float* c, long ldc, long k, bool add) {
  product_32<PARTS_OF<Number>>(a, b, c, ldc, 2 * TILE, k, add);
}

}  // namespace
