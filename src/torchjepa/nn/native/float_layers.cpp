// A transformer block in float: the layer norm, and the MLP half some rows at a time, so that the hidden layer is in the
// cache when the next step wants it. Products are those of the BLAS that torch brings, called by each thread for rows of
// its own.
//
// Rows are tokens, contiguous. Sums over rows are added up over runs of rows and then run by run, the same for up to four
// threads. Plain loops that a compiler turns into vector instructions.

#include <omp.h>

#include "numbers.h"

typedef void (*Sgemm)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                      const int*, const float*, const int*, const float*, float*, const int*);

struct FloatMLP {  // out = x + gelu(norm(x) W1^T + bias1) W2^T + bias2
  Sgemm sgemm;
  const float *x, *scale, *shift;
  float eps;
  const float *weight1, *bias1, *weight2, *bias2;
  float *out, *hidden, *means, *rstds;  // hidden, without its bias, and what follows: for the gradient, or absent
  long rows, width, inner;
};

struct FloatMLPBackward {
  Sgemm sgemm;
  const float *grad, *x, *scale, *shift, *means, *rstds, *weight1, *bias1, *weight2, *hidden;
  float *of_hidden, *active, *normed;  // for the gradients of weights, which the caller computes
  float *of_x, *sums, *scratch;        // sums: of scale, shift, bias2, bias1
  long rows, width, inner;
};

struct FloatNormLinear {  // out = norm(x) W^T + bias
  Sgemm sgemm;
  const float *x, *scale, *shift;
  float eps;
  const float *weight, *bias;
  float *out, *normed, *means, *rstds;  // what follows out: for the gradient, or absent
  long rows, width, outs;
};

struct FloatNormLinearBackward {  // where queries, keys and values came out
  Sgemm sgemm;
  const float *of_q, *of_k, *of_v;  // [batch, heads, tokens, channels] of strides of their own, the channels dense
  const long* strides;              // of batch, heads and tokens for each of them
  const float *x, *scale, *means, *rstds, *residual, *weight;  // residual: what comes past the norm
  float *joined, *of_x, *sums, *scratch;                       // joined: the three; sums: of scale, shift, bias
  long rows, width, tokens, heads, channels;
};

struct FloatLinearAdd {  // out = residual + x W^T + bias
  Sgemm sgemm;
  const float *x, *weight, *bias, *residual;
  float* out;
  long rows, width, outs;
};

struct FloatLinearAddBackward {
  Sgemm sgemm;
  const float *grad, *weight;
  float *of_x, *sums, *scratch;  // sums: of bias
  long rows, width, outs;
};

namespace {

constexpr long MOST_ROWS = 256, LEAST_ROWS = 16;

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
INLINE float normal_cdf(float x, float bell) {
  float t = 1.0f / (1.0f + 0.4f * fabsf(x));
  float tail = -0.03922267008082851f;
  tail = tail * t + 0.1989667333807541f;
  tail = tail * t - 0.37071771889853067f;
  tail = tail * t + 0.24803396400555242f;
  tail = tail * t - 0.010651834692078553f;
  tail = tail * t + 0.15779566438328696f;
  tail = tail * t + 0.1559179803211066f;
  tail = tail * t + 0.15988920549542182f;
  tail = tail * t - 1.1283341637671095e-05f;
  tail *= bell;
  return x > 0 ? 1.0f - tail : tail;
}

INLINE float gelu_slope(float x, float cdf, float bell) { return cdf + x * 0.3989422804014327f * bell; }

INLINE void scale_and_shift(const float* x, float mean, float rstd, const float* scale, const float* shift, float* out,
                            long width) {
  SIMD
  for (long j = 0; j < width; j++) out[j] = (x[j] - mean) * rstd * scale[j] + shift[j];
}

INLINE void normalize_row(const float* x, const float* scale, const float* shift, float eps, float* out, float* mean_place,
                          float* rstd_place, long width) {
  float mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
  for (long j = 0; j < width; j++) mean += x[j];
  mean /= width;
#pragma omp simd reduction(+ : square)
  for (long j = 0; j < width; j++) square += (x[j] - mean) * (x[j] - mean);
  float rstd = 1.0f / sqrtf(square / width + eps);
  *mean_place = mean, *rstd_place = rstd;
  scale_and_shift(x, mean, rstd, scale, shift, out, width);
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

// C[m, n] = A[m, k] W^T + add C, with W [n, k]; and the same with W [k, n] as it is.
INLINE void product_transposed(Sgemm sgemm, const float* a, const float* weight, float* c, int m, int n, int k, float add) {
  float one = 1;
  sgemm("T", "N", &n, &m, &k, &one, weight, &k, a, &k, &add, c, &n);
}

INLINE void product(Sgemm sgemm, const float* a, const float* weight, float* c, int m, int n, int k) {
  float one = 1, zero = 0;
  sgemm("N", "N", &n, &m, &k, &one, weight, &n, a, &k, &zero, c, &n);
}

void forward_rows(const FloatMLP& a, long row, long count) {
  Workspace space(count * (a.width + 2 * a.inner) * 4 + 256);
  auto *normed = space.take<float>(count * a.width), *active = space.take<float>(count * a.inner);
  float* hidden = a.hidden ? a.hidden + row * a.inner : space.take<float>(count * a.inner);
  float mean, rstd;
  for (long i = 0; i < count; i++) {
    const float* x = a.x + (row + i) * a.width;
    normalize_row(x, a.scale, a.shift, a.eps, normed + i * a.width, a.means ? a.means + row + i : &mean,
                  a.rstds ? a.rstds + row + i : &rstd, a.width);
    float* out = a.out + (row + i) * a.width;
    SIMD
    for (long j = 0; j < a.width; j++) out[j] = x[j] + a.bias2[j];
  }
  product_transposed(a.sgemm, normed, a.weight1, hidden, count, a.inner, a.width, 0);
  for (long i = 0; i < count; i++) {
    const float* here = hidden + i * a.inner;
    float* there = active + i * a.inner;
    SIMD
    for (long j = 0; j < a.inner; j++) {
      float x = here[j] + a.bias1[j];
      there[j] = x * normal_cdf(x, exp_minus_half_square(x));
    }
  }
  product_transposed(a.sgemm, active, a.weight2, a.out + row * a.width, count, a.width, a.inner, 1);
}

void backward_rows(const FloatMLPBackward& a, long row, long count, float* sums) {
  float *of_bias2 = sums + 2 * a.width, *of_bias1 = sums + 3 * a.width;
  const float* grad = a.grad + row * a.width;
  float* of_hidden = a.of_hidden + row * a.inner;
  product(a.sgemm, grad, a.weight2, of_hidden, count, a.inner, a.width);
  for (long i = 0; i < count; i++) {
    const float* hidden = a.hidden + (row + i) * a.inner;
    float *here = of_hidden + i * a.inner, *active = a.active + (row + i) * a.inner;
    SIMD
    for (long j = 0; j < a.inner; j++) {
      float x = hidden[j] + a.bias1[j], bell = exp_minus_half_square(x), cdf = normal_cdf(x, bell);
      active[j] = x * cdf;
      here[j] *= gelu_slope(x, cdf, bell);
      of_bias1[j] += here[j];
    }
  }
  Workspace space(count * a.width * 4 + 64);
  auto* of_normed = space.take<float>(count * a.width);
  product(a.sgemm, of_hidden, a.weight1, of_normed, count, a.width, a.inner);
  for (long i = 0; i < count; i++) {
    long place = (row + i) * a.width;
    SIMD
    for (long j = 0; j < a.width; j++) of_bias2[j] += a.grad[place + j];
    scale_and_shift(a.x + place, a.means[row + i], a.rstds[row + i], a.scale, a.shift, a.normed + place, a.width);
    normalize_row_backward(of_normed + i * a.width, a.x + place, a.scale, a.means[row + i], a.rstds[row + i],
                           a.grad + place, a.of_x + place, sums, a.width);
  }
}

void norm_linear_rows(const FloatNormLinear& a, long row, long count) {
  Workspace space(count * a.width * 4 + 64);
  float* normed = a.normed ? a.normed + row * a.width : space.take<float>(count * a.width);
  float mean, rstd;
  for (long i = row; i < row + count; i++) {
    normalize_row(a.x + i * a.width, a.scale, a.shift, a.eps, normed + (i - row) * a.width,
                  a.means ? a.means + i : &mean, a.rstds ? a.rstds + i : &rstd, a.width);
    memcpy(a.out + i * a.outs, a.bias, a.outs * sizeof(float));
  }
  product_transposed(a.sgemm, normed, a.weight, a.out + row * a.outs, count, a.outs, a.width, 1);
}

void norm_linear_rows_backward(const FloatNormLinearBackward& a, long row, long count, float* sums) {
  Workspace space(count * a.width * 4 + 64);
  auto* of_normed = space.take<float>(count * a.width);
  long outs = 3 * a.heads * a.channels;
  const float* parts[] = {a.of_q, a.of_k, a.of_v};
  for (long i = row; i < row + count; i++) {
    float *joined = a.joined + i * outs, *of_bias = sums + 2 * a.width;
    for (long part = 0; part < 3; part++) {
      const long* strides = a.strides + 3 * part;
      const float* here = parts[part] + i / a.tokens * strides[0] + i % a.tokens * strides[2];
      for (long head = 0; head < a.heads; head++, here += strides[1], joined += a.channels, of_bias += a.channels) {
        SIMD
        for (long j = 0; j < a.channels; j++) joined[j] = here[j], of_bias[j] += here[j];
      }
    }
  }
  product(a.sgemm, a.joined + row * outs, a.weight, of_normed, count, a.width, outs);
  for (long i = row; i < row + count; i++)
    normalize_row_backward(of_normed + (i - row) * a.width, a.x + i * a.width, a.scale, a.means[i], a.rstds[i],
                           a.residual + i * a.width, a.of_x + i * a.width, sums, a.width);
}

void linear_add_rows(const FloatLinearAdd& a, long row, long count) {
  for (long i = row; i < row + count; i++) {
    const float* residual = a.residual + i * a.outs;
    float* out = a.out + i * a.outs;
    SIMD
    for (long j = 0; j < a.outs; j++) out[j] = residual[j] + a.bias[j];
  }
  product_transposed(a.sgemm, a.x + row * a.width, a.weight, a.out + row * a.outs, count, a.outs, a.width, 1);
}

void linear_add_rows_backward(const FloatLinearAddBackward& a, long row, long count, float* sums) {
  const float* grad = a.grad + row * a.outs;
  for (long i = 0; i < count; i++) {
    SIMD
    for (long j = 0; j < a.outs; j++) sums[j] += grad[i * a.outs + j];
  }
  product(a.sgemm, grad, a.weight, a.of_x + row * a.width, count, a.width, a.outs);
}

// How many rows a thread takes at once: fewer than the cache holds, and every thread as many times as the others.
INLINE long rows_at_once(long rows) {
  long round = std::max(4, omp_get_max_threads()) * MOST_ROWS, rounds = (rows + round - 1) / round;
  return std::max(LEAST_ROWS, (rows * MOST_ROWS + rounds * round - 1) / (rounds * round));
}

// body(first row, number of rows) some rows at a time.
template <class Body>
INLINE void for_rows(long rows, const Body& body) {
  long step = rows_at_once(rows);
#pragma omp parallel for schedule(dynamic)
  for (long row = 0; row < rows; row += step) body(row, std::min(step, rows - row));
}

// body(first row, number of rows, sums) some rows at a time, every run with sums of its own, then those added up.
template <class Body>
INLINE void for_runs(long rows, long num_sums, float* scratch, float* sums, const Body& body) {
  long step = rows_at_once(rows), runs = std::min(RUNS, (rows + step - 1) / step);
  long length = (rows + runs - 1) / runs, pieces = (length + MOST_ROWS - 1) / MOST_ROWS;
  step = (length + pieces - 1) / pieces;
#pragma omp parallel for schedule(dynamic)
  for (long run = 0; run < runs; run++) {
    float* here = scratch + run * num_sums;
    std::fill(here, here + num_sums, 0.0f);
    long end = std::min(rows, (run + 1) * length);
    for (long row = run * length; row < end; row += step) body(row, std::min(step, end - row), here);
  }
  std::copy(scratch, scratch + num_sums, sums);
  for (long run = 1; run < runs; run++) {
    const float* here = scratch + run * num_sums;
    SIMD
    for (long j = 0; j < num_sums; j++) sums[j] += here[j];
  }
}

}  // namespace

extern "C" {

void float_norm_linear(const FloatNormLinear* a) {
  for_rows(a->rows, [=](long row, long count) { norm_linear_rows(*a, row, count); });
}

void float_norm_linear_backward(const FloatNormLinearBackward* a) {
  for_runs(a->rows, 2 * a->width + 3 * a->heads * a->channels, a->scratch, a->sums,
           [=](long row, long count, float* sums) { norm_linear_rows_backward(*a, row, count, sums); });
}

void float_linear_add(const FloatLinearAdd* a) {
  for_rows(a->rows, [=](long row, long count) { linear_add_rows(*a, row, count); });
}

void float_linear_add_backward(const FloatLinearAddBackward* a) {
  for_runs(a->rows, a->outs, a->scratch, a->sums,
           [=](long row, long count, float* sums) { linear_add_rows_backward(*a, row, count, sums); });
}

void float_mlp(const FloatMLP* a) {
  for_rows(a->rows, [=](long row, long count) { forward_rows(*a, row, count); });
}

void float_mlp_backward(const FloatMLPBackward* a) {
  for_runs(a->rows, 3 * a->width + a->inner, a->scratch, a->sums,
           [=](long row, long count, float* sums) { backward_rows(*a, row, count, sums); });
}
}
