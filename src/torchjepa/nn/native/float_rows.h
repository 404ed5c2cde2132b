// Rows of float numbers: norms, GELU, sums. Plain loops that a compiler turns into vector instructions.

#pragma once

#include "norm.h"
#include "numbers.h"

namespace {

// 2^t for t <= 0, to 2e-7 of it; 0 where that is no normal number.
INLINE float exp2_of(float t) {
  t = t < -127.0f ? -127.0f : t;
  float whole = nearbyintf(t), part = t - whole;
  float power = 1.535336188319500e-4f;  // Taylor's series; |part| <= 1/2
  power = power * part + 1.339887440266574e-3f;
  power = power * part + 9.618437357674640e-3f;
  power = power * part + 5.550332471162809e-2f;
  power = power * part + 2.402264791363012e-1f;
  power = power * part + 6.931472028550421e-1f;
  power = power * part + 1.0f;
  int32_t bits = ((int32_t)whole + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return power * scale;
}

INLINE float exp_minus_half_square(float x) { return exp2_of(x * x * -0.7213475204444817f); }

// The normal distribution function at x, given exp(-x^2 / 2): its tail is that times a polynomial in 1 / (1 + 0.4 |x|),
// fitted for the smallest relative error (4e-7), so that GELU keeps its digits far out on the negative side.
constexpr float TAIL[] = {-0.03922267008082851f, 0.1989667333807541f,  -0.37071771889853067f,
                          0.24803396400555242f,  -0.010651834692078553f, 0.15779566438328696f,
                          0.1559179803211066f,   0.15988920549542182f,  -1.1283341637671095e-05f};

INLINE float normal_cdf(float x, float bell) {
  float t = 1.0f / (1.0f + 0.4f * fabsf(x)), tail = TAIL[0];
  for (int i = 1; i < 9; i++) tail = tail * t + TAIL[i];
  tail *= bell;
  return x > 0 ? 1.0f - tail : tail;
}

INLINE float gelu_slope(float x, float cdf, float bell) { return cdf + x * 0.3989422804014327f * bell; }

INLINE void scale_and_shift(const float* x, float mean, float rstd, const float* scale, const float* shift, float* out,
                            long width) {
  SIMD
  for (long j = 0; j < width; j++) out[j] = (x[j] - mean) * rstd * scale[j] + shift[j];
}

INLINE void normalize_row(const float* x, const Norm& norm, float* out, float* mean_place, float* rstd_place, long width) {
  float mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
  for (long j = 0; j < width; j++) mean += x[j];
  mean /= width;
#pragma omp simd reduction(+ : square)
  for (long j = 0; j < width; j++) square += (x[j] - mean) * (x[j] - mean);
  float rstd = 1.0f / sqrtf(square / width + norm.eps);
  *mean_place = mean, *rstd_place = rstd;
  scale_and_shift(x, mean, rstd, norm.scale, norm.shift, out, width);
}

// of_x = residual + the gradient through the norm; sums[2 width] grow by those of scale and shift.
INLINE void normalize_row_backward(const float* grad, const float* x, const float* scale, float mean, float rstd,
                                   const float* residual, float* of_x, float* sums, long width) {
  float *of_shift = sums + width, along = 0, all = 0;
#pragma omp simd reduction(+ : along, all)
  for (long j = 0; j < width; j++) {
    float value = grad[j], unit = (x[j] - mean) * rstd, weighted = value * scale[j];
    sums[j] += value * unit;
    of_shift[j] += value;
    along += weighted * unit;
    all += weighted;
  }
  along /= width, all /= width;
  SIMD
  for (long j = 0; j < width; j++)
    of_x[j] = residual[j] + rstd * (grad[j] * scale[j] - all - (x[j] - mean) * rstd * along);
}

}  // namespace
