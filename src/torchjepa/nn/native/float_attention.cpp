// softmax(scale Q K^T) V and its gradients in float, head by head, scores never leaving a core's cache.
//
// Products are those of factors.h. A head belongs to one thread: any number gives the same bits.

#include "attention.h"
#include "numbers.h"

typedef Attention<float> FloatAttention;
typedef AttentionGradients<float> FloatGradients;

#if HAS_VECTORS

#include "factors.h"

namespace {

constexpr long ROWS = 32, CHUNK = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float FAR = 1e8f;  // 2^-FAR is 0, and finite, which -infinity is not

// rows[filled_rows, filled_channels], what is beyond count and channels 0.
INLINE void copy_rows(const float* from, long stride, float* rows, long count, long channels, long filled_rows,
                      long filled_channels) {
  for (long i = 0; i < filled_rows; i++)
    for (long j = 0; j < filled_channels; j += 16) {
      __mmask16 known = i < count ? lanes(channels - j) : 0;
      _mm512_storeu_ps(rows + i * filled_channels + j, _mm512_maskz_loadu_ps(known, from + (known ? i * stride + j : 0)));
    }
}

INLINE void write_rows(const float* from, long from_stride, float* to, long stride, long count, long channels) {
  for (long i = 0; i < count; i++)
    for (long j = 0; j < channels; j += 16)
      _mm512_mask_storeu_ps(to + i * stride + j, lanes(channels - j), _mm512_loadu_ps(from + i * from_stride + j));
}

INLINE void pack_columns(const float* rows, Factor* b, long k, long n) {
  for (long j = 0; j < n; j += TILE) pack_panel(rows + j, n, b + j * k * PARTS, k);
}

INLINE void pack_columns_transposed(const float* rows, Factor* b, long n, long k) {
  for (long j = 0; j < n; j += TILE) pack_panel_transposed(rows + j * k, k, b + j * k * PARTS, k);
}

// Row i of weights, not yet divided by their sum, which is returned with its logarithm; filled up with 0.
INLINE float soften(const float* scores, Factor* weights, long i, long keys, long filled_keys, float scale,
                    float* log_sum) {
  __m512 least = _mm512_set1_ps(-INFINITY), most = least, sum = _mm512_setzero_ps(), scales = _mm512_set1_ps(scale);
  for (long j = 0; j < keys; j += 16)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, lanes(keys - j), scores + j));
  float highest = _mm512_reduce_max_ps(most);
  for (long j = 0; j < filled_keys; j += DEPTH) {
    __m512 powers[2];
    for (long half = 0; half < 2; half++) {
      // Less the highest before it is scaled: of large scores a product's rounding would be more than 1.
      long place = j + 16 * half;
      __m512 score = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + place), _mm512_set1_ps(highest)), scales);
      powers[half] = _mm512_maskz_mov_ps(lanes(keys - place), exp2_exact(score));
      sum = _mm512_add_ps(sum, powers[half]);
    }
    pack_32(powers[0], powers[1], row_of(weights, i, j, filled_keys));
  }
  float total = _mm512_reduce_add_ps(sum);
  *log_sum = highest * scale + log2f(total);
  return total;
}

void attend_head(const FloatAttention& a, long item) {
  long keys = filled(a.keys, DEPTH), channels = filled(a.channels, DEPTH);
  Workspace space(4 * keys * channels + 12 * keys * channels + 4 * ROWS * (2 * channels + keys) +
                  6 * ROWS * (channels + keys) + 1024);
  auto* rows = space.take<float>(keys * channels);
  auto *keys_t = space.take<Factor>(PARTS * keys * channels), *values = space.take<Factor>(PARTS * keys * channels);
  auto *asking = space.take<float>(ROWS * channels), *scores = space.take<float>(ROWS * keys);
  auto* sums = space.take<float>(ROWS * channels);
  auto *packed_q = space.take<Factor>(PARTS * ROWS * channels), *weights = space.take<Factor>(PARTS * ROWS * keys);

  copy_rows(a.k.of(item, a.heads), a.k.token, rows, a.keys, a.channels, keys, channels);
  pack_columns_transposed(rows, keys_t, keys, channels);
  copy_rows(a.v.of(item, a.heads), a.v.token, rows, a.keys, a.channels, keys, channels);
  pack_columns(rows, values, keys, channels);
  float scale = a.scale * LOG2_E;
  for (long start = 0; start < a.queries; start += ROWS) {
    long count = std::min(ROWS, a.queries - start), m = filled(count, TILE);
    copy_rows(a.q.of(item, a.heads) + start * a.q.token, a.q.token, asking, count, a.channels, m, channels);
    float_product(pack_rows(asking, packed_q, m, channels), keys_t, scores, keys, m, keys, channels, false);
    float shares[ROWS], log_sum;
    for (long i = 0; i < count; i++) {
      shares[i] = 1.0f / soften(scores + i * keys, weights, i, a.keys, keys, scale, &log_sum);
      if (a.log_sums) a.log_sums[item * a.queries + start + i] = log_sum;
    }
    float_product(weights, values, sums, channels, m, channels, keys, false);
    for (long i = 0; i < count; i++)
      for (long j = 0; j < channels; j += 16) {
        float* place = sums + i * channels + j;
        _mm512_storeu_ps(place, _mm512_mul_ps(_mm512_loadu_ps(place), _mm512_set1_ps(shares[i])));
      }
    write_rows(sums, channels, a.out.of(item, a.heads) + start * a.out.token, a.out.token, count, a.channels);
  }
}

// Row i, of one key, of weights and of the gradients of scores; these in the place of the gradients of weights, too.
INLINE void soften_backward(const float* scores, float* of_weights, const float* log_sums, const float* deltas,
                            Factor* weights, Factor* of_scores, long i, long width, float scale, bool known) {
  __m512 scales = _mm512_set1_ps(scale * LOG2_E);
  for (long j = 0; j < width; j += DEPTH) {
    __m512 powers[2], slopes[2];
    for (long half = 0; half < 2; half++) {
      long place = j + 16 * half;
      __m512 power = _mm512_fmsub_ps(_mm512_loadu_ps(scores + place), scales, _mm512_loadu_ps(log_sums + place));
      powers[half] = known ? exp2_exact(power) : _mm512_setzero_ps();
      __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(of_weights + place), _mm512_loadu_ps(deltas + place));
      slopes[half] = _mm512_mul_ps(_mm512_mul_ps(powers[half], _mm512_set1_ps(scale)), slope);
      _mm512_storeu_ps(of_weights + place, slopes[half]);
    }
    pack_32(powers[0], powers[1], row_of(weights, i, j, width));
    pack_32(slopes[0], slopes[1], row_of(of_scores, i, j, width));
  }
}

void attend_head_backward(const FloatAttention& a, const FloatGradients& g, long item) {
  long keys = filled(a.keys, DEPTH), channels = filled(a.channels, DEPTH);
  long chunk = std::min(CHUNK, filled(a.queries, DEPTH)), head = keys * channels, part = chunk * channels;
  Workspace space(4 * 4 * head + 6 * 3 * head + 4 * 3 * part + 6 * 4 * part + 2 * 4 * ROWS * chunk + 3 * 6 * keys * chunk +
                  2 * 4 * chunk + 4096);
  auto *key_rows = space.take<float>(head), *value_rows = space.take<float>(head);
  auto *key_room = space.take<Factor>(PARTS * head), *value_room = space.take<Factor>(PARTS * head);
  auto* keys_packed = space.take<Factor>(PARTS * head);
  auto *of_k = space.take<float>(head), *of_v = space.take<float>(head);
  auto *q = space.take<float>(part), *d = space.take<float>(part), *of_q = space.take<float>(part);
  auto *q_t = space.take<Factor>(PARTS * part), *d_t = space.take<Factor>(PARTS * part);
  auto *packed_q = space.take<Factor>(PARTS * part), *packed_d = space.take<Factor>(PARTS * part);
  auto *scores = space.take<float>(ROWS * chunk), *of_weights = space.take<float>(ROWS * chunk);
  auto *weights = space.take<Factor>(PARTS * keys * chunk), *of_scores = space.take<Factor>(PARTS * keys * chunk);
  auto* of_scores_t = space.take<Factor>(PARTS * keys * chunk);
  auto *log_sums = space.take<float>(chunk), *deltas = space.take<float>(chunk);

  copy_rows(a.v.of(item, a.heads), a.v.token, value_rows, a.keys, a.channels, keys, channels);
  copy_rows(a.k.of(item, a.heads), a.k.token, key_rows, a.keys, a.channels, keys, channels);
  const Factor *v = pack_rows(value_rows, value_room, keys, channels), *k = pack_rows(key_rows, key_room, keys, channels);
  pack_columns(key_rows, keys_packed, keys, channels);
  for (long start = 0; start < a.queries; start += chunk) {
    long count = std::min(chunk, a.queries - start), width = filled(count, DEPTH);
    const float* out = a.out.of(item, a.heads) + start * a.out.token;
    copy_rows(a.q.of(item, a.heads) + start * a.q.token, a.q.token, q, count, a.channels, width, channels);
    copy_rows(g.of_out.of(item, a.heads) + start * g.of_out.token, g.of_out.token, d, count, a.channels, width, channels);
    for (long i = 0; i < width; i++) {
      __m512 delta = _mm512_setzero_ps();
      for (long j = 0; i < count && j < a.channels; j += 16) {
        __m512 left = _mm512_maskz_loadu_ps(lanes(a.channels - j), out + i * a.out.token + j);
        delta = _mm512_fmadd_ps(left, _mm512_loadu_ps(d + i * channels + j), delta);
      }
      // Where nobody asks, weights are 0.
      log_sums[i] = i < count ? a.log_sums[item * a.queries + start + i] : FAR;
      deltas[i] = _mm512_reduce_add_ps(delta);
    }
    pack_columns_transposed(q, q_t, width, channels);
    pack_columns_transposed(d, d_t, width, channels);
    for (long row = 0; row < keys; row += ROWS) {
      float_product(k + row * channels * PARTS, q_t, scores, width, ROWS, width, channels, false);
      float_product(v + row * channels * PARTS, d_t, of_weights, width, ROWS, width, channels, false);
      for (long i = 0; i < ROWS; i++)
        soften_backward(scores + i * width, of_weights + i * width, log_sums, deltas, weights, of_scores, row + i, width,
                        a.scale, row + i < a.keys);
      // The same with queries as rows, in pairs of keys that stay together.
      for (long j = 0; j < width; j += STRIP)
        pack_strip(of_weights + j, width, of_scores_t + (j * keys + row * TILE) * PARTS, keys * TILE * PARTS,
                                 DEPTH, std::min(STRIP, width - j), true);
    }
    pack_columns(d, packed_d, width, channels);
    float_product(weights, packed_d, of_v, channels, keys, channels, width, start > 0);
    pack_columns(q, packed_q, width, channels);
    float_product(of_scores, packed_q, of_k, channels, keys, channels, width, start > 0);
    float_product_turned(of_scores_t, keys_packed, of_q, channels, width, channels, keys);
    write_rows(of_q, channels, g.of_q.of(item, a.heads) + start * g.of_q.token, g.of_q.token, count, a.channels);
  }
  write_rows(of_k, channels, g.of_k.of(item, a.heads), g.of_k.token, a.keys, a.channels);
  write_rows(of_v, channels, g.of_v.of(item, a.heads), g.of_v.token, a.keys, a.channels);
}

}  // namespace

extern "C" {

void float_attend(const FloatAttention* a) {
#pragma omp parallel
  {
    Tiles tiles;
#pragma omp for schedule(dynamic)
    for (long item = 0; item < a->batch * a->heads; item++) attend_head(*a, item);
  }
}

void float_attend_backward(const FloatAttention* a, const FloatGradients* g) {
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
void float_attend(const FloatAttention*) {}
void float_attend_backward(const FloatAttention*, const FloatGradients*) {}
}

#endif
