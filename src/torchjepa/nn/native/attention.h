// Attention, as the kernels are given it: queries, keys and values and what comes out are [batch, heads, tokens, channels]
// with strides of their own, the channels one after the other.

#pragma once

template <class Number>
struct Heads {
  Number* start;
  long batch, head, token;

  Number* of(long item, long heads) const { return start + item / heads * batch + item % heads * head; }
};

template <class Number>
struct Attention {
  Heads<Number> q, k, v, out;
  float* log_sums;  // [batch, heads, queries], base 2, of the scaled scores; absent if no gradient is wanted
  long batch, heads, queries, keys, channels;
  float scale;
};

template <class Number>
struct AttentionGradients {
  Heads<Number> of_out, of_q, of_k, of_v;
};
