// What stands between the linear layers: norms, rotary embedding, the write into the KV cache; and
// whether a batch stays within that cache.

#pragma once

#include "threads.h"

namespace {

// 1 / rms of n values.
template <class T> float inverse_rms(const T* v, i64 n, float eps) {
  __m512 sum = _mm512_setzero_ps();
  for (i64 i = 0; i < n; i += 16) {
    __m512 value = load16(v + i, tail_mask(n - i));
    sum = _mm512_fmadd_ps(value, value, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / float(n) + eps);
}

// y = x / rms(x) * weight
template <class X, class Y>
void norm_row(const X* x, const float* weight, float eps, i64 n, Y* y) {
  __m512 scale = _mm512_set1_ps(inverse_rms(x, n, eps));
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    __m512 value = _mm512_mul_ps(load16(x + i, mask), scale);
    store16(y + i, _mm512_mul_ps(value, load16(weight + i, mask)), mask);
  }
}

template <class X, class Y>
void rms_norm(Walk& walk, const X* x, const float* weight, float eps, i64 M, i64 n, Y* y) {
  walk.phase(M, [=](i64 begin, i64 end) {
    for (i64 m = begin; m < end; m++) norm_row(x + m * n, weight, eps, n, y + m * n);
  });
}

struct Heads {
  i64 query, kv, dim, block_size, num_blocks;
  i64 block_stride, head_stride, row_stride;  // of K and V caches, in elements; dims touch
  i64 neighbours;  // 1: rope turns values 2i and 2i + 1; 0: i and i + dim / 2, as HF models do
  i64 row() const { return (query + 2 * kv) * dim; }  // of the joint projection: q, k, v
  i64 run(i64 block, i64 head) const { return block * block_stride + head * head_stride; }
  i64 cached(i64 slot, i64 head) const {
    return run(slot / block_size, head) + slot % block_size * row_stride;
  }
};

// Rotates one head in place, normalised first if asked. `turn` holds dim / 2 cosines and as many
// sines: alternating for neighbours, else first the cosines, then the sines.
template <class T>
void rotate(T* v, const Heads& heads, const float* turn, const float* weight, float eps) {
  const i64 dim = heads.dim, half = dim / 2;
  __m512 scale = _mm512_set1_ps(weight ? inverse_rms(v, dim, eps) : 1.0f);
  auto load = [&](i64 i, __mmask16 mask) {
    __m512 value = load16(v + i, mask);
    return weight ? _mm512_mul_ps(_mm512_mul_ps(value, scale), load16(weight + i, mask)) : value;
  };
  if (heads.neighbours) {
    for (i64 i = 0; i < dim; i += 16) {
      __mmask16 mask = tail_mask(dim - i);
      __m512 a = load(i, mask), t = load16(turn + i, mask);
      __m512 turned = _mm512_mul_ps(_mm512_permute_ps(a, 0xb1), _mm512_movehdup_ps(t));
      store16(v + i, _mm512_fmaddsub_ps(a, _mm512_moveldup_ps(t), turned), mask);
    }
    return;
  }
  for (i64 i = 0; i < half; i += 16) {
    __mmask16 mask = tail_mask(half - i);
    __m512 a = load(i, mask), b = load(half + i, mask);
    __m512 c = load16(turn + i, mask), s = load16(turn + half + i, mask);
    store16(v + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), mask);
    store16(v + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)), mask);
  }
}

// Rotates queries and keys of the joint projection in place; keys and values go to their slots.
template <class T>
void rope(Walk& walk, const Heads& heads, T* qkv, i64 M, const i64* positions, const i64* slots,
                const float* cos_sin, const float* q_norm, const float* k_norm, float eps,
                T* k_cache, T* v_cache) {
  const i64 per_token = heads.query + 2 * heads.kv, D = heads.dim;
  walk.phase(M * per_token, [=](i64 begin, i64 end) {
  for (i64 unit = begin; unit < end; unit++) {
    i64 m = unit / per_token, head = unit % per_token;
    T* v = qkv + m * heads.row() + head * D;
    bool is_query = head < heads.query, is_key = !is_query && head < heads.query + heads.kv;
    const float* turn = cos_sin + positions[m] * D;
    if (is_query || is_key) rotate(v, heads, turn, is_query ? q_norm : k_norm, eps);
    if (is_query || slots[m] < 0) continue;
    T* cache = is_key ? k_cache : v_cache;
    i64 kv_head = head - heads.query - (is_key ? 0 : heads.kv);
    std::memcpy(cache + heads.cached(slots[m], kv_head), v, D * sizeof(T));
  }
  });
}

struct Paged {  // what attention reads besides the queries
  const int32_t* tables;   // [sequences, max_blocks]
  i64 max_blocks;
  const int32_t* lengths;  // [sequences], the tokens themselves included
};

// What a wrong table, slot or position would read or overwrite is somebody else's memory.
constexpr i64 ALL_FIT = -1;

// The first of `count` sequences whose blocks are not all in the cache.
inline i64 first_unfit(const Heads& heads, const Paged& paged, i64 count) {
  for (i64 m = 0; m < count; m++) {
    const i64 length = paged.lengths[m], used = (length + heads.block_size - 1) / heads.block_size;
    if (length < 0 || used > paged.max_blocks) return m;
    const int32_t* table = paged.tables + m * paged.max_blocks;
    uint32_t largest = 0;  // of negative numbers too
    for (i64 i = 0; i < used; i++) largest = std::max(largest, uint32_t(table[i]));
    if (used && largest >= heads.num_blocks) return m;
  }
  return ALL_FIT;
}

// The first of M tokens whose slot or position does not exist; a slot below 0 is not written.
inline i64 first_unfit(const Heads& heads, const i64* slots, const i64* positions,
                       i64 num_positions, i64 M) {
  const i64 num_slots = heads.num_blocks * heads.block_size;
  for (i64 m = 0; m < M; m++)
    if (slots[m] >= num_slots || positions[m] < 0 || positions[m] >= num_positions) return m;
  return ALL_FIT;
}

}  // namespace
