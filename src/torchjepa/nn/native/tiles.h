// Matrix products of bfloat16 by the processor's tile registers (AMX), one thread's share at a time.
//
// A is row after row. B, [k, n], is packed: for every 16 columns a panel, in it for every two rows of B 16 pairs, so that
// a tile is one kilobyte in a row. C is float. m and n are multiples of 16, k of 32; what is filled up is filled with 0.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "lanes.h"

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

}  // namespace
