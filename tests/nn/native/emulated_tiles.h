// Tile registers (AMX) in software, so that the kernels for them are tested on processors without: given to the compiler
// by -include, they take the place of the intrinsics.

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define __AMX_BF16__ 1

namespace emulated {

struct Tile {
  uint8_t bytes[16][64];
};

inline thread_local Tile tiles[8];

inline float number(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float found;
  memcpy(&found, &wide, 4);
  return found;
}

__attribute__((noinline)) inline void load(int to, const void* from, long stride) {
  for (int i = 0; i < 16; i++) memcpy(tiles[to].bytes[i], (const char*)from + i * stride, 64);
}

__attribute__((noinline)) inline void store(int from, void* to, long stride) {
  for (int i = 0; i < 16; i++) memcpy((char*)to + i * stride, tiles[from].bytes[i], 64);
}

__attribute__((noinline)) inline void zero(int to) { memset(&tiles[to], 0, sizeof(Tile)); }

__attribute__((noinline)) inline void multiply(int to, int left, int right) {
  uint16_t a[16][32], b[16][32];
  float c[16][16];
  memcpy(a, &tiles[left], sizeof a), memcpy(b, &tiles[right], sizeof b), memcpy(c, &tiles[to], sizeof c);
  for (int i = 0; i < 16; i++) {
    float even[16] = {}, odd[16] = {};  // the processor adds up products before it adds them to C
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 16; j++) {
        even[j] += number(a[i][2 * k]) * number(b[k][2 * j]);
        odd[j] += number(a[i][2 * k + 1]) * number(b[k][2 * j + 1]);
      }
    for (int j = 0; j < 16; j++) c[i][j] += even[j] + odd[j];
  }
  memcpy(&tiles[to], c, sizeof c);
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd(to, from, stride) emulated::load(to, from, stride)
#define _tile_stored(from, to, stride) emulated::store(from, to, stride)
#define _tile_zero(to) emulated::zero(to)
#define _tile_dpbf16ps(to, left, right) emulated::multiply(to, left, right)
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define syscall(...) 0L  // the system lends the registers
