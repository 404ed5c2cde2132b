// A transformer block in float: the layer norm, and the MLP half some rows at a time, so that the hidden layer is in the
// cache when the next step wants it.
//
// Rows are tokens, contiguous. Sums over rows are added up over runs of rows and then run by run, the same for up to four
// threads, by our own products for any number.

#include "float_rows.h"
#include "products.h"
#if HAS_VECTORS
#include "hidden.h"
#endif

struct FloatMLP {  // out = x + gelu(norm(x) W1^T + bias1) W2^T + bias2
  Sgemm sgemm;
  const float* x;
  Norm norm;
  const float *weight1, *bias1, *weight2, *bias2;
  float *out, *hidden, *means, *rstds;  // hidden, without its bias, and what follows: for the gradient, or absent
  Factor* packed;                       // room for both weights, or absent: then by sgemm
  long rows, width, inner;

  Weight first() const { return {sgemm, weight1, packed, inner, width}; }
  Weight second() const { return {sgemm, weight2, packed ? packed + PARTS * inner * width : nullptr, width, inner}; }
};

struct FloatMLPBackward {
  Sgemm sgemm;
  const float* grad;
  const float* x;
  const float *scale, *shift, *means, *rstds, *weight1, *bias1, *weight2, *hidden;
  float *of_hidden, *active, *normed;  // for the gradients of weights
  float *of_x, *sums, *scratch;        // sums: of scale, shift, bias2, bias1
  Factor* packed;
  long rows, width, inner;

  Weight first() const { return {sgemm, weight1, packed, inner, width}; }
  Weight second() const { return {sgemm, weight2, packed ? packed + PARTS * inner * width : nullptr, width, inner}; }
};

struct FloatNormLinear {  // out = norm(x) W^T + bias
  Sgemm sgemm;
  const float* x;
  Norm norm;
  const float *weight, *bias;
  float *out, *normed, *means, *rstds;  // what follows out: for the gradient, or absent
  Factor* packed;
  long rows, width, outs;

  Weight linear() const { return {sgemm, weight, packed, outs, width}; }
};

struct FloatNormLinearBackward {  // where queries, keys and values came out
  Sgemm sgemm;
  const float *of_q, *of_k, *of_v;  // [batch, heads, tokens, channels] of strides of their own, the channels dense
  const long* strides;              // of batch, heads and tokens for each of them
  const float *x, *scale, *means, *rstds, *residual, *weight;  // residual: what comes past the norm
  float *joined, *of_x, *sums, *scratch;                       // joined: the three; sums: of scale, shift, bias
  Factor* packed;
  long rows, width, tokens, heads, channels;

  Weight linear() const { return {sgemm, weight, packed, 3 * heads * channels, width}; }
};

struct FloatLinearAdd {  // out = residual + x W^T + bias
  Sgemm sgemm;
  const float *x, *weight, *bias, *residual;
  float* out;
  Factor* packed;
  long rows, width, outs;

  Weight linear() const { return {sgemm, weight, packed, outs, width}; }
};

struct FloatLinearAddBackward {
  Sgemm sgemm;
  const float *grad, *weight;
  float *of_x, *sums, *scratch;  // sums: of bias
  Factor* packed;
  long rows, width, outs;

  Weight linear() const { return {sgemm, weight, packed, outs, width}; }
};

namespace {

void forward_rows(const FloatMLP& a, long row, long count) {
  Workspace space(count * (a.width + 2 * a.inner) * 4 + 256);
  auto *normed = space.take<float>(count * a.width), *active = space.take<float>(count * a.inner);
  float* hidden = a.hidden ? a.hidden + row * a.inner : space.take<float>(count * a.inner);
  float mean, rstd;
  for (long i = 0; i < count; i++) {
    const float* x = a.x + (row + i) * a.width;
    normalize_row(x, a.norm, normed + i * a.width, a.means ? a.means + row + i : &mean,
                  a.rstds ? a.rstds + row + i : &rstd, a.width);
    float* out = a.out + (row + i) * a.width;
    SIMD
    for (long j = 0; j < a.width; j++) out[j] = x[j] + a.bias2[j];
  }
  multiply_transposed(a.first(), normed, nullptr, hidden, count, false);
  for (long i = 0; i < count; i++) {
    const float* here = hidden + i * a.inner;
    float* there = active + i * a.inner;
    SIMD
    for (long j = 0; j < a.inner; j++) {
      float x = here[j] + a.bias1[j];
      there[j] = x * normal_cdf(x, exp_minus_half_square(x));
    }
  }
  multiply_transposed(a.second(), active, nullptr, a.out + row * a.width, count, true);
}

// Through the norm into the residual stream; the norm's output once more, for the gradient of the first weight.
INLINE void stream_backward(const FloatMLPBackward& a, const float* of_normed, long row, long count, float* sums) {
  float* of_bias2 = sums + 2 * a.width;
  for (long i = 0; i < count; i++) {
    long place = (row + i) * a.width;
    SIMD
    for (long j = 0; j < a.width; j++) of_bias2[j] += a.grad[place + j];
    scale_and_shift(a.x + place, a.means[row + i], a.rstds[row + i], a.scale, a.shift, a.normed + place, a.width);
    normalize_row_backward(of_normed + i * a.width, a.x + place, a.scale, a.means[row + i], a.rstds[row + i],
                           a.grad + place, a.of_x + place, sums, a.width);
  }
}

void backward_rows(const FloatMLPBackward& a, long row, long count, float* sums) {
  float* of_bias1 = sums + 3 * a.width;
  const float* grad = a.grad + row * a.width;
  float* of_hidden = a.of_hidden + row * a.inner;
  Workspace space(count * a.width * 4 + 64);
  auto* of_normed = space.take<float>(count * a.width);
  multiply(a.second(), grad, nullptr, of_hidden, count);
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
  multiply(a.first(), of_hidden, nullptr, of_normed, count);
  stream_backward(a, of_normed, row, count, sums);
}

#if HAS_VECTORS

void forward_packed(const FloatMLP& a, long row, long count) {
  Weight first = a.first(), second = a.second();
  long rows = filled(count, TILE), room = sizeof(Factor) * PARTS * rows;
  Workspace space(count * a.width * 4 + room * (a.width + a.inner) + 512);
  auto* normed = space.take<float>(count * a.width);
  auto* place = space.take<Factor>(rows * a.width * PARTS);
  auto* active = space.take<Factor>(rows * a.inner * PARTS);
  float mean, rstd, *out = a.out + row * a.width;
  for (long i = 0; i < count; i++) {
    const float* x = a.x + (row + i) * a.width;
    normalize_row(x, a.norm, normed + i * a.width, a.means ? a.means + row + i : &mean,
                  a.rstds ? a.rstds + row + i : &rstd, a.width);
    SIMD
    for (long j = 0; j < a.width; j++) out[i * a.width + j] = x[j] + a.bias2[j];
  }
  const Factor* factor = pack_rows(normed, place, count, a.width);
  product_and_finish(factor, first.packed, count, a.inner, a.width, [&](const Block& block, long i) {
    const float *part = block.part + i * DEPTH, *bias = a.bias1 + block.column;
    __m512 low = _mm512_load_ps(part), high = _mm512_load_ps(part + 16);
    if (a.hidden) {
      float* kept = a.hidden + (row + block.row + i) * a.inner + block.column;
      _mm512_storeu_ps(kept, low), _mm512_storeu_ps(kept + 16, high);
    }
    low = gelu16(_mm512_add_ps(low, _mm512_loadu_ps(bias))), high = gelu16(_mm512_add_ps(high, _mm512_loadu_ps(bias + 16)));
    pack_32(low, high, row_of(active, block.row + i, block.column, a.inner));
  });
  float_product(active, second.packed, out, a.width, count, a.width, a.inner, true);
}

// 16 columns: of_active times the GELU's derivative; the hidden layer after the GELU; the sum grows.
INLINE __m512 gelu16_backward(__m512 x, __m512 of_active, float* active, float* of_hidden, float* of_bias) {
  __m512 bell, cdf;
  normal16(x, &bell, &cdf);
  _mm512_storeu_ps(active, _mm512_mul_ps(x, cdf));
  __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.3989422804014327f)), bell, cdf);
  __m512 found = _mm512_mul_ps(of_active, slope);
  _mm512_storeu_ps(of_hidden, found);
  _mm512_storeu_ps(of_bias, _mm512_add_ps(_mm512_loadu_ps(of_bias), found));
  return found;
}

void backward_packed(const FloatMLPBackward& a, long row, long count, float* sums) {
  Weight first = a.first(), second = a.second();
  long rows = filled(count, TILE), room = sizeof(Factor) * PARTS * rows;
  Workspace space(count * a.width * 4 + room * (a.width + a.inner) + 512);
  auto* of_normed = space.take<float>(count * a.width);
  auto* place = space.take<Factor>(rows * a.width * PARTS);
  auto* of_hidden = space.take<Factor>(rows * a.inner * PARTS);
  const Factor* factor = pack_rows(a.grad + row * a.width, place, count, a.width);
  product_and_finish(factor, second.packed, count, a.inner, a.width, [&](const Block& block, long i) {
    __m512 found[2];
    for (long half = 0; half < 2; half++) {
      long j = block.column + 16 * half, place = (row + block.row + i) * a.inner + j;
      __m512 x = _mm512_add_ps(_mm512_loadu_ps(a.hidden + place), _mm512_loadu_ps(a.bias1 + j));
      found[half] = gelu16_backward(x, _mm512_load_ps(block.part + i * DEPTH + 16 * half), a.active + place,
                                    a.of_hidden + place, sums + 3 * a.width + j);
    }
    pack_32(found[0], found[1], row_of(of_hidden, block.row + i, block.column, a.inner));
  });
  float_product(of_hidden, first.packed, of_normed, a.width, count, a.width, a.inner, false);
  stream_backward(a, of_normed, row, count, sums);
}

#endif

void norm_linear_rows(const FloatNormLinear& a, long row, long count) {
  Workspace space(count * a.width * 4 + room_for(a.linear(), count, a.width) + 256);
  float* normed = a.normed ? a.normed + row * a.width : space.take<float>(count * a.width);
  char* room = space.take<char>(0);
  float mean, rstd;
  for (long i = row; i < row + count; i++) {
    normalize_row(a.x + i * a.width, a.norm, normed + (i - row) * a.width, a.means ? a.means + i : &mean,
                  a.rstds ? a.rstds + i : &rstd, a.width);
    memcpy(a.out + i * a.outs, a.bias, a.outs * sizeof(float));
  }
  multiply_transposed(a.linear(), normed, room, a.out + row * a.outs, count, true);
}

void norm_linear_rows_backward(const FloatNormLinearBackward& a, long row, long count, float* sums) {
  long outs = 3 * a.heads * a.channels;
  Workspace space(count * a.width * 4 + room_for(a.linear(), count, outs) + 256);
  auto* of_normed = space.take<float>(count * a.width);
  char* room = space.take<char>(0);
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
  multiply(a.linear(), a.joined + row * outs, room, of_normed, count);
  for (long i = row; i < row + count; i++)
    normalize_row_backward(of_normed + (i - row) * a.width, a.x + i * a.width, a.scale, a.means[i], a.rstds[i],
                           a.residual + i * a.width, a.of_x + i * a.width, sums, a.width);
}

void linear_add_rows(const FloatLinearAdd& a, long row, long count) {
  Workspace space(room_for(a.linear(), count, a.width) + 256);
  for (long i = row; i < row + count; i++) {
    const float* residual = a.residual + i * a.outs;
    float* out = a.out + i * a.outs;
    SIMD
    for (long j = 0; j < a.outs; j++) out[j] = residual[j] + a.bias[j];
  }
  multiply_transposed(a.linear(), a.x + row * a.width, space.take<char>(0), a.out + row * a.outs, count, true);
}

void linear_add_rows_backward(const FloatLinearAddBackward& a, long row, long count, float* sums) {
  Workspace space(room_for(a.linear(), count, a.outs) + 256);
  const float* grad = a.grad + row * a.outs;
  for (long i = 0; i < count; i++) {
    SIMD
    for (long j = 0; j < a.outs; j++) sums[j] += grad[i * a.outs + j];
  }
  multiply(a.linear(), grad, space.take<char>(0), a.of_x + row * a.width, count);
}

}  // namespace

extern "C" {

#define SHARED             \
  bool packed = a->packed; \
  _Pragma("omp parallel") if (Tiles tiles(packed); true)

void float_norm_linear(const FloatNormLinear* a) {
  SHARED {
    pack_transposed(a->linear());
    for_rows(a->rows, packed, [=](long row, long count) { norm_linear_rows(*a, row, count); });
  }
}

void float_norm_linear_backward(const FloatNormLinearBackward* a) {
  SHARED {
    pack(a->linear());
    for_runs(a->rows, packed, 2 * a->width + 3 * a->heads * a->channels, a->scratch, a->sums,
             [=](long row, long count, float* sums) { norm_linear_rows_backward(*a, row, count, sums); });
  }
}

void float_linear_add(const FloatLinearAdd* a) {
  SHARED {
    pack_transposed(a->linear());
    for_rows(a->rows, packed, [=](long row, long count) { linear_add_rows(*a, row, count); });
  }
}

void float_linear_add_backward(const FloatLinearAddBackward* a) {
  SHARED {
    pack(a->linear());
    for_runs(a->rows, packed, a->outs, a->scratch, a->sums,
             [=](long row, long count, float* sums) { linear_add_rows_backward(*a, row, count, sums); });
  }
}

void float_mlp(const FloatMLP* a) {
  SHARED {
    pack_transposed(a->first());
    pack_transposed(a->second());
    for_rows(a->rows, packed, [=](long row, long count) {
#if HAS_VECTORS
      if (packed) return forward_packed(*a, row, count);
#endif
      forward_rows(*a, row, count);
    });
  }
}

void float_mlp_backward(const FloatMLPBackward* a) {
  SHARED {
    pack(a->second());
    pack(a->first());
    for_runs(a->rows, packed, 3 * a->width + a->inner, a->scratch, a->sums,
             [=](long row, long count, float* sums) {
#if HAS_VECTORS
               if (packed) return backward_packed(*a, row, count, sums);
#endif
               backward_rows(*a, row, count, sums);
             });
  }
}
}
