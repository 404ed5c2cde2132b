// softmax(scale Q K^T) V and its gradients in bfloat16, head by head, scores never leaving a core's cache.
//
// Scores, softmax and sums are float. A head belongs to one thread: any number gives the same bits.

#include "attention.h"
#include "numbers.h"

typedef Attention<bfloat16> BFloat16Attention;
typedef AttentionGradients<bfloat16> BFloat16Gradients;

#if HAS_PAIRS

#include "pairs.h"

namespace {

constexpr long ROWS = 32, CHUNK = 256;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float FAR = 1e8f;  // 2^-FAR is 0, and finite, which -infinity is not

// rows[filled_rows, filled_channels], what is beyond count and channels 0.
INLINE void copy_rows(const bfloat16* from, long stride, bfloat16* rows, long count, long channels, long filled_rows,
                      long filled_channels) {
  for (long i = 0; i < filled_rows; i++)
    for (long j = 0; j < filled_channels; j += DEPTH) {
      long left = i < count ? channels - j : 0;
      __mmask32 known = left >= DEPTH ? ~0u : (1u << left) - 1;
      __m512i part = _mm512_maskz_loadu_epi16(known, from + (known ? i * stride + j : 0));
      _mm512_storeu_si512(rows + i * filled_channels + j, part);
    }
}

// Rows that are soon read, each in another place of memory, are asked for all at once.
INLINE void ask_for(const Heads<bfloat16>& heads, long item, long num_heads, long count, long channels) {
  const bfloat16* start = heads.of(item, num_heads);
  for (long i = 0; i < count; i++)
    for (long j = 0; j < channels; j += 32) _mm_prefetch((const char*)(start + i * heads.token + j), _MM_HINT_T0);
}

INLINE void round_rows(const float* from, long from_stride, bfloat16* to, long stride, float factor, long count,
                       long channels) {
  __m512 factors = _mm512_set1_ps(factor);
  for (long i = 0; i < count; i++)
    for (long j = 0; j < channels; j += 16) {
      __m512 value = _mm512_mul_ps(_mm512_loadu_ps(from + i * from_stride + j), factors);
      store16(to + i * stride + j, value, lanes(channels - j));
    }
}

// Weights, not yet divided by their sum, which is returned, with its logarithm where that is wanted; scores and weights are
// filled up.
INLINE float soften(const float* scores, bfloat16* weights, long keys, long filled_keys, float scale, float* log_sum) {
  __m512 least = _mm512_set1_ps(-INFINITY), most = least, sum = _mm512_setzero_ps(), scales = _mm512_set1_ps(scale);
  for (long j = 0; j < keys; j += 16)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, lanes(keys - j), scores + j));
  float highest = _mm512_reduce_max_ps(most);
  for (long j = 0; j < filled_keys; j += 16) {
    // Less the highest before it is scaled: of large scores a product's rounding would be more than 1.
    __m512 score = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(highest)), scales);
    __m512 power = exp2_16(_mm512_mask_mov_ps(_mm512_set1_ps(-FAR), lanes(keys - j), score));
    sum = _mm512_add_ps(sum, power);
    store16(weights + j, power);
  }
  float total = _mm512_reduce_add_ps(sum);
  if (log_sum) *log_sum = highest * scale + log2f(total);
  return total;
}

void attend_head(const BFloat16Attention& a, long item) {
  long keys = filled(a.keys, DEPTH), channels = filled(a.channels, DEPTH), inner = filled(a.keys, DEPTH_UNIT);
  Workspace space(2 * (3 * keys + ROWS) * channels + 4 * ROWS * (keys + channels) + 2 * ROWS * keys + 1024);
  auto *rows = space.take<bfloat16>(keys * channels), *keys_t = space.take<bfloat16>(keys * channels);
  auto *values = space.take<bfloat16>(keys * channels), *asking = space.take<bfloat16>(ROWS * channels);
  auto *scores = space.take<float>(ROWS * keys), *sums = space.take<float>(ROWS * channels);
  auto* weights = space.take<bfloat16>(ROWS * keys);

  copy_rows(a.k.of(item, a.heads), a.k.token, rows, a.keys, a.channels, keys, channels);
  pack_transposed(rows, channels, keys_t, keys, channels);
  copy_rows(a.v.of(item, a.heads), a.v.token, rows, a.keys, a.channels, keys, channels);
  pack(rows, channels, values, inner, channels);
  float scale = a.scale * LOG2_E;
  for (long start = 0; start < a.queries; start += ROWS) {
    long count = std::min(ROWS, a.queries - start), m = filled(count, ROW_UNIT);
    copy_rows(a.q.of(item, a.heads) + start * a.q.token, a.q.token, asking, count, a.channels, m, channels);
    product(asking, channels, keys_t, scores, keys, m, keys, channels);
    float shares[ROWS], *log_sums = a.log_sums ? a.log_sums + item * a.queries + start : nullptr;
    for (long i = 0; i < count; i++) {
      float* log_sum = log_sums ? log_sums + i : nullptr;
      shares[i] = 1.0f / soften(scores + i * keys, weights + i * keys, a.keys, keys, scale, log_sum);
    }
    product(weights, keys, values, sums, channels, m, channels, inner);
    bfloat16* out = a.out.of(item, a.heads) + start * a.out.token;
    for (long i = 0; i < count; i++)
      round_rows(sums + i * channels, channels, out + i * a.out.token, 0, shares[i], 1, a.channels);
  }
}

void attend_head_backward(const BFloat16Attention& a, const BFloat16Gradients& g, long item) {
  long keys = filled(a.keys, DEPTH), channels = filled(a.channels, DEPTH), height = filled(a.keys, DEPTH_UNIT);
  long chunk = std::min(CHUNK, filled(a.queries, DEPTH));
  Workspace space(2 * (3 * keys + 5 * chunk) * channels + 2 * keys * channels * 4 + 4 * chunk * channels +
                  2 * 4 * ROWS * chunk + 3 * 2 * keys * chunk + 2 * 4 * chunk + 4096);
  auto *k = space.take<bfloat16>(keys * channels), *v = space.take<bfloat16>(keys * channels);
  auto* keys_packed = space.take<bfloat16>(keys * channels);
  auto *q = space.take<bfloat16>(chunk * channels), *d = space.take<bfloat16>(chunk * channels);
  auto *packed_q = space.take<bfloat16>(chunk * channels), *packed_d = space.take<bfloat16>(chunk * channels);
  auto *of_k = space.take<float>(keys * channels), *of_v = space.take<float>(keys * channels);
  auto* of_q = space.take<float>(chunk * channels);
  auto *scores = space.take<float>(ROWS * chunk), *of_weights = space.take<float>(ROWS * chunk);
  auto *weights = space.take<bfloat16>(keys * chunk), *of_scores = space.take<bfloat16>(keys * chunk);
  auto* of_scores_t = space.take<bfloat16>(keys * chunk);
  auto *log_sums = space.take<float>(chunk), *deltas = space.take<float>(chunk);

  ask_for(a.k, item, a.heads, a.keys, a.channels), ask_for(a.v, item, a.heads, a.keys, a.channels);
  ask_for(a.q, item, a.heads, a.queries, a.channels), ask_for(g.of_out, item, a.heads, a.queries, a.channels);
  ask_for(a.out, item, a.heads, a.queries, a.channels);
  copy_rows(a.k.of(item, a.heads), a.k.token, k, a.keys, a.channels, keys, channels);
  copy_rows(a.v.of(item, a.heads), a.v.token, v, a.keys, a.channels, keys, channels);
  pack(k, channels, keys_packed, height, channels);
  __m512 scales = _mm512_set1_ps(a.scale * LOG2_E);
  for (long start = 0; start < a.queries; start += chunk) {
    long count = std::min(chunk, a.queries - start), width = filled(count, DEPTH), inner = filled(count, DEPTH_UNIT);
    const bfloat16* out = a.out.of(item, a.heads) + start * a.out.token;
    copy_rows(a.q.of(item, a.heads) + start * a.q.token, a.q.token, q, count, a.channels, width, channels);
    copy_rows(g.of_out.of(item, a.heads) + start * g.of_out.token, g.of_out.token, d, count, a.channels, width, channels);
    for (long i = 0; i < width; i++) {
      const bfloat16 *left = out + std::min(i, count - 1) * a.out.token, *right = d + i * channels;
      __m512 delta = _mm512_setzero_ps();
      for (long j = 0; j < a.channels; j += 16)
        delta = _mm512_fmadd_ps(load16(left + j, lanes(a.channels - j)), load16(right + j), delta);
      // Where nobody asks, weights are 0.
      log_sums[i] = i < count ? a.log_sums[item * a.queries + start + i] : FAR;
      deltas[i] = i < count ? _mm512_reduce_add_ps(delta) : 0;
    }
    pack_transposed(q, channels, packed_q, width, channels);
    pack_transposed(d, channels, packed_d, width, channels);
    for (long row = 0; row < height; row += ROWS) {
      long rows = std::min(ROWS, height - row);
      product(k + row * channels, channels, packed_q, scores, width, rows, width, channels);
      product(v + row * channels, channels, packed_d, of_weights, width, rows, width, channels);
      for (long i = 0; i < rows; i++) {
        const float *score = scores + i * width, *of_weight = of_weights + i * width;
        bfloat16 *weight = weights + (row + i) * width, *of_score = of_scores + (row + i) * width;
        if (row + i >= a.keys) {
          std::fill(weight, weight + width, (bfloat16)0), std::fill(of_score, of_score + width, (bfloat16)0);
          continue;
        }
        for (long j = 0; j < width; j += 16) {
          __m512 power = _mm512_fmsub_ps(_mm512_loadu_ps(score + j), scales, _mm512_loadu_ps(log_sums + j));
          power = exp2_16(power);
          __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(of_weight + j), _mm512_loadu_ps(deltas + j));
          store16(weight + j, power);
          store16(of_score + j, _mm512_mul_ps(_mm512_mul_ps(power, _mm512_set1_ps(a.scale)), slope));
        }
      }
    }
    // Gradients of values and keys: weights and gradients of scores stand with their keys as rows.
    pack(d, channels, packed_d, inner, channels);
    product(weights, width, packed_d, of_v, channels, height, channels, inner, start > 0);
    pack(q, channels, packed_q, inner, channels);
    product(of_scores, width, packed_q, of_k, channels, height, channels, inner, start > 0);
    // Of queries: the queries as rows.
    turn(of_scores, width, of_scores_t, height);
    product_turned(of_scores_t, keys_packed, of_q, channels, width, channels, height);
    round_rows(of_q, channels, g.of_q.of(item, a.heads) + start * g.of_q.token, g.of_q.token, 1.0f, count, a.channels);
  }
  round_rows(of_k, channels, g.of_k.of(item, a.heads), g.of_k.token, 1.0f, a.keys, a.channels);
  round_rows(of_v, channels, g.of_v.of(item, a.heads), g.of_v.token, 1.0f, a.keys, a.channels);
}

}  // namespace

extern "C" {

void bf16_attend(const BFloat16Attention* a) {
#pragma omp parallel
  {
    Tiles tiles;
#pragma omp for schedule(dynamic)
    for (long item = 0; item < a->batch * a->heads; item++) attend_head(*a, item);
  }
}

void bf16_attend_backward(const BFloat16Attention* a, const BFloat16Gradients* g) {
#pragma omp parallel
  {
    Tiles tiles;
#pragma omp for schedule(dynamic)
    for (long item = 0; item < a->batch * a->heads; item++) attend_head_backward(*a, *g, item);
  }
}
}

#else

extern "C" {
void bf16_attend(const BFloat16Attention*) {}
void bf16_attend_backward(const BFloat16Attention*, const BFloat16Gradients*) {}
}

#endif
