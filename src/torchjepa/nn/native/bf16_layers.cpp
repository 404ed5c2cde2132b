// The linear layers of a transformer block in bfloat16 with all that stands around them, some rows at a time, so that what
// one product gives is in the cache when the next wants it.
//
// x and everything of the residual stream are float; rows [rows, width] contiguous, widths multiples of 32. Weights are
// float [out, in] as torch has them, rounded and packed at each call. Sums over rows are added up run by run of rows,
// the same for any number of threads.

#include "norm.h"
#include "numbers.h"

struct NormLinear {  // out = norm(x) W^T + bias
  const float* x;
  Norm norm;
  const float *weight, *bias;
  bfloat16 *out, *normed;  // normed, means, rstds: for the gradient, or absent
  float *means, *rstds;
  bfloat16* packed;  // room for the weight
  long rows, in, outs;
};

struct NormLinearBackward {
  const bfloat16* grad;  // of out
  const float *x, *residual, *means, *rstds, *scale, *weight;  // residual: what comes past the norm
  float *of_x, *sums;                                          // sums: of scale, shift, bias
  float* scratch;                                              // sums of every run
  bfloat16* packed;
  long rows, in, outs;
};

struct LinearAdd {  // out = residual + x W^T + bias
  const bfloat16* x;
  const float *weight, *bias, *residual;
  float* out;
  bfloat16* packed;
  long rows, in, outs;
};

struct LinearAddBackward {
  const float *grad, *weight;
  bfloat16 *rounded, *of_x;  // rounded: grad
  float *sums, *scratch;     // of bias
  bfloat16* packed;
  long rows, in, outs;
};

struct MLP {  // out = x + gelu(norm(x) W1^T + bias1) W2^T + bias2
  const float* x;
  Norm norm;
  const float *weight1, *bias1, *weight2, *bias2;
  float* out;                        // absent where only what a gradient needs is wanted once more
  bfloat16 *normed, *active, *slope;  // for the gradient, or absent
  float *means, *rstds;
  bfloat16* packed;  // room for both weights
  long rows, width, hidden;
};

struct MLPBackward {
  const float *grad, *x, *means, *rstds, *scale, *weight1, *weight2;
  const bfloat16* slope;
  bfloat16 *rounded, *of_hidden;  // rounded: grad
  float *of_x, *sums, *scratch;   // sums: of scale, shift, bias2, bias1
  bfloat16* packed;
  long rows, width, hidden;
};

#if HAS_PAIRS

#include "bf16_rows.h"

namespace {

void norm_linear_rows(const NormLinear& a, long row, long count) {
  Workspace space(ROWS * a.in * 2 + ROWS * COLUMNS * 4 + 256);
  auto* room = space.take<bfloat16>(ROWS * a.in);
  auto* part = space.take<float>(ROWS * COLUMNS);
  bfloat16 *wanted = a.normed ? a.normed + row * a.in : nullptr, *normed = place_of(wanted, room, count);
  normalize_rows(a.x + row * a.in, a.norm, normed, a.means ? a.means + row : nullptr, a.rstds ? a.rstds + row : nullptr,
                 count, a.in);
  deliver(normed, wanted, count, a.in);
  if (!a.out) return;
  for (long j = 0; j < a.outs; j += COLUMNS) {
    long columns = std::min(COLUMNS, a.outs - j);
    product(normed, a.in, a.packed + j * a.in, part, COLUMNS, filled(count, TILE), columns, a.in);
    for (long i = 0; i < count; i++)
      for (long c = 0; c < columns; c += 16)
        store16(a.out + (row + i) * a.outs + j + c,
                _mm512_add_ps(_mm512_loadu_ps(part + i * COLUMNS + c), _mm512_loadu_ps(a.bias + j + c)));
  }
}

void norm_linear_rows_backward(const NormLinearBackward& a, long row, long count, float* sums) {
  Workspace space(ROWS * a.outs * 2 + ROWS * a.in * 4 + 256);
  auto* room = space.take<bfloat16>(ROWS * a.outs);
  auto* of_normed = space.take<float>(ROWS * a.in);
  const bfloat16* grad = whole_rows(a.grad + row * a.outs, room, count, a.outs);
  add_rows(grad, sums + 2 * a.in, count, a.outs);
  product(grad, a.outs, a.packed, of_normed, a.in, filled(count, TILE), a.in, a.outs);
  normalize_rows_backward(of_normed, a.x + row * a.in, a.means + row, a.rstds + row, a.scale, a.residual + row * a.in,
                          a.of_x + row * a.in, sums, count, a.in);
}

void linear_add_rows(const LinearAdd& a, long row, long count) {
  Workspace space(ROWS * a.in * 2 + ROWS * COLUMNS * 4 + 256);
  auto* room = space.take<bfloat16>(ROWS * a.in);
  auto* part = space.take<float>(ROWS * COLUMNS);
  const bfloat16* x = whole_rows(a.x + row * a.in, room, count, a.in);
  for (long j = 0; j < a.outs; j += COLUMNS) {
    long columns = std::min(COLUMNS, a.outs - j);
    product(x, a.in, a.packed + j * a.in, part, COLUMNS, filled(count, TILE), columns, a.in);
    for (long i = 0; i < count; i++)
      for (long c = 0; c < columns; c += 16) {
        long place = (row + i) * a.outs + j + c;
        __m512 sum = _mm512_add_ps(_mm512_loadu_ps(part + i * COLUMNS + c), _mm512_loadu_ps(a.bias + j + c));
        _mm512_storeu_ps(a.out + place, _mm512_add_ps(_mm512_loadu_ps(a.residual + place), sum));
      }
  }
}

void linear_add_rows_backward(const LinearAddBackward& a, long row, long count, float* sums) {
  Workspace space(ROWS * a.outs * 2 + ROWS * COLUMNS * 4 + 256);
  auto* room = space.take<bfloat16>(ROWS * a.outs);
  auto* part = space.take<float>(ROWS * COLUMNS);
  bfloat16 *wanted = a.rounded + row * a.outs, *rounded = place_of(wanted, room, count);
  round_and_add(a.grad + row * a.outs, rounded, sums, count, a.outs);
  deliver(rounded, wanted, count, a.outs);
  for (long j = 0; j < a.in; j += COLUMNS) {
    long columns = std::min(COLUMNS, a.in - j);
    product(rounded, a.outs, a.packed + j * a.outs, part, COLUMNS, filled(count, TILE), columns, a.outs);
    for (long i = 0; i < count; i++)
      for (long c = 0; c < columns; c += 16)
        store16(a.of_x + (row + i) * a.in + j + c, _mm512_loadu_ps(part + i * COLUMNS + c));
  }
}

INLINE void gelu_rows(const float* part, const float* bias, bfloat16* active, bfloat16* slope, long stride, long count,
                      long columns) {
  for (long i = 0; i < count; i++)
    for (long c = 0; c < columns; c += 16) {
      __m512 x = _mm512_add_ps(_mm512_loadu_ps(part + i * COLUMNS + c), _mm512_loadu_ps(bias + c)), bell, cdf;
      normal16(x, &bell, &cdf);
      store16(active + i * stride + c, _mm512_mul_ps(x, cdf));
      if (!slope) continue;
      __m512 density = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.3989422804014327f)), bell);
      store16(slope + i * stride + c, _mm512_add_ps(cdf, density));
    }
}

void mlp_rows(const MLP& a, long row, long count) {
  Workspace space(ROWS * (a.width + a.hidden) * 2 + ROWS * (COLUMNS + a.width) * 4 + 1024);
  auto *room = space.take<bfloat16>(ROWS * a.width), *hidden_room = space.take<bfloat16>(ROWS * a.hidden);
  auto *part = space.take<float>(ROWS * COLUMNS), *sum = space.take<float>(ROWS * a.width);
  long m = filled(count, TILE);
  bfloat16 *wanted = a.normed ? a.normed + row * a.width : nullptr, *normed = place_of(wanted, room, count);
  normalize_rows(a.x + row * a.width, a.norm, normed, a.means ? a.means + row : nullptr,
                 a.rstds ? a.rstds + row : nullptr, count, a.width);
  deliver(normed, wanted, count, a.width);
  bfloat16 *kept = a.active ? a.active + row * a.hidden : nullptr, *active = place_of(kept, hidden_room, count);
  for (long j = 0; j < a.hidden; j += COLUMNS) {
    long columns = std::min(COLUMNS, a.hidden - j);
    product(normed, a.width, a.packed + j * a.width, part, COLUMNS, m, columns, a.width);
    gelu_rows(part, a.bias1 + j, active + j, a.slope ? a.slope + row * a.hidden + j : nullptr, a.hidden, count, columns);
  }
  deliver(active, kept, count, a.hidden);
  if (!a.out) return;
  product(active, a.hidden, a.packed + a.hidden * a.width, sum, a.width, m, a.width, a.hidden);
  for (long i = 0; i < count; i++)
    for (long c = 0; c < a.width; c += 16) {
      long place = (row + i) * a.width + c;
      __m512 added = _mm512_add_ps(_mm512_loadu_ps(sum + i * a.width + c), _mm512_loadu_ps(a.bias2 + c));
      _mm512_storeu_ps(a.out + place, _mm512_add_ps(_mm512_loadu_ps(a.x + place), added));
    }
}

void mlp_rows_backward(const MLPBackward& a, long row, long count, float* sums) {
  Workspace space(ROWS * (a.width + a.hidden) * 2 + ROWS * (COLUMNS + a.width) * 4 + 1024);
  auto *room = space.take<bfloat16>(ROWS * a.width), *hidden_room = space.take<bfloat16>(ROWS * a.hidden);
  auto *part = space.take<float>(ROWS * COLUMNS), *of_normed = space.take<float>(ROWS * a.width);
  long m = filled(count, TILE);
  float *of_bias2 = sums + 2 * a.width, *of_bias1 = sums + 3 * a.width;
  bfloat16 *wanted = a.rounded + row * a.width, *rounded = place_of(wanted, room, count);
  round_and_add(a.grad + row * a.width, rounded, of_bias2, count, a.width);
  deliver(rounded, wanted, count, a.width);
  bfloat16 *kept = a.of_hidden + row * a.hidden, *of_hidden = place_of(kept, hidden_room, count);
  for (long j = 0; j < a.hidden; j += COLUMNS) {
    long columns = std::min(COLUMNS, a.hidden - j);
    product(rounded, a.width, a.packed + j * a.width, part, COLUMNS, m, columns, a.width);
    for (long i = 0; i < count; i++)
      for (long c = 0; c < columns; c += 16) {
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(part + i * COLUMNS + c),
                                     load16(a.slope + (row + i) * a.hidden + j + c));
        add_to(of_bias1 + j + c, value), store16(of_hidden + i * a.hidden + j + c, value);
      }
  }
  if (of_hidden != kept) std::fill(of_hidden + count * a.hidden, of_hidden + m * a.hidden, (bfloat16)0);
  deliver(of_hidden, kept, count, a.hidden);
  product(of_hidden, a.hidden, a.packed + a.hidden * a.width, of_normed, a.width, m, a.width, a.hidden);
  normalize_rows_backward(of_normed, a.x + row * a.width, a.means + row, a.rstds + row, a.scale, a.grad + row * a.width,
                          a.of_x + row * a.width, sums, count, a.width);
}

}  // namespace

extern "C" {

#define BLOCKS(rows) \
  _Pragma("omp for schedule(dynamic)") for (long row = 0; row < rows; row += ROWS)

void bf16_norm_linear(const NormLinear* a) {
#pragma omp parallel
  {
    Tiles tiles;
    if (a->out) pack_weight_transposed(a->weight, a->packed, a->outs, a->in);
    BLOCKS(a->rows) norm_linear_rows(*a, row, std::min(ROWS, a->rows - row));
  }
}

void bf16_norm_linear_backward(const NormLinearBackward* a) {
#pragma omp parallel
  {
    Tiles tiles;
    pack_weight(a->weight, a->packed, a->outs, a->in);
    for_runs(a->rows, 2 * a->in + a->outs, a->scratch, a->sums,
             [=](long row, long count, float* sums) { norm_linear_rows_backward(*a, row, count, sums); });
  }
}

void bf16_linear_add(const LinearAdd* a) {
#pragma omp parallel
  {
    Tiles tiles;
    pack_weight_transposed(a->weight, a->packed, a->outs, a->in);
    BLOCKS(a->rows) linear_add_rows(*a, row, std::min(ROWS, a->rows - row));
  }
}

void bf16_linear_add_backward(const LinearAddBackward* a) {
#pragma omp parallel
  {
    Tiles tiles;
    pack_weight(a->weight, a->packed, a->outs, a->in);
    for_runs(a->rows, a->outs, a->scratch, a->sums,
             [=](long row, long count, float* sums) { linear_add_rows_backward(*a, row, count, sums); });
  }
}

void bf16_mlp(const MLP* a) {
#pragma omp parallel
  {
    Tiles tiles;
    pack_weight_transposed(a->weight1, a->packed, a->hidden, a->width);
    if (a->out) pack_weight_transposed(a->weight2, a->packed + a->hidden * a->width, a->width, a->hidden);
    BLOCKS(a->rows) mlp_rows(*a, row, std::min(ROWS, a->rows - row));
  }
}

void bf16_mlp_backward(const MLPBackward* a) {
#pragma omp parallel
  {
    Tiles tiles;
    pack_weight(a->weight2, a->packed, a->width, a->hidden);
    pack_weight(a->weight1, a->packed + a->hidden * a->width, a->hidden, a->width);
    for_runs(a->rows, 3 * a->width + a->hidden, a->scratch, a->sums,
             [=](long row, long count, float* sums) { mlp_rows_backward(*a, row, count, sums); });
  }
}
}

#else

extern "C" {
void bf16_norm_linear(const NormLinear*) {}
void bf16_norm_linear_backward(const NormLinearBackward*) {}
void bf16_linear_add(const LinearAdd*) {}
void bf16_linear_add_backward(const LinearAddBackward*) {}
void bf16_mlp(const MLP*) {}
void bf16_mlp_backward(const MLPBackward*) {}
}

#endif
