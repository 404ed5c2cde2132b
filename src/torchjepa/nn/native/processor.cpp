// What this processor's own products are: for Python, which leaves the others to torch.

#include "numbers.h"

#if HAS_TILES
#include "tiles.h"
#endif

extern "C" {

// Bytes that a number takes in a packed weight of float; 0 where torch's own products are as fast.
long float_bytes() {
#if HAS_TILES
  return tiles_are_lent() ? 6 : 0;
#elif defined(NO_TILES)
  return HAS_VECTORS ? 4 : 0;
#elif HAS_VECTORS
  // The BLAS of torch's wheels takes generic kernels, slower by half, on processors that are not Intel's.
  return __builtin_cpu_is("intel") ? 0 : 4;
#else
  return 0;
#endif
}

// The same of bfloat16.
long bfloat16_bytes() {
#if HAS_TILES
  return tiles_are_lent() ? 2 : 0;
#else
  return HAS_PAIRS ? 2 : 0;
#endif
}
}
