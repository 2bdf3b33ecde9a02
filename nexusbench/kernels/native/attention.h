// What stands between the linear layers: norms, rotary embedding, paged decode attention.

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
  i64 query, kv, dim, block_size;
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
    if (is_query || is_key) rotate(v, heads, cos_sin + positions[m] * D, is_query ? q_norm : k_norm, eps);
    if (is_query || slots[m] < 0) continue;
    T* cache = is_key ? k_cache : v_cache;
    i64 kv_head = head - heads.query - (is_key ? 0 : heads.kv);
    std::memcpy(cache + heads.cached(slots[m], kv_head), v, D * sizeof(T));
  }
  });
}

struct Paged {  // what decode attention reads besides the queries
  const int32_t* tables;   // [M, max_blocks]
  i64 max_blocks;
  const int32_t* lengths;  // [M], the token itself included
};

// q . k over dim elements in 16 lanes. D: the dimension if it is known and whole, else 0.
template <int D> inline __m512 dot16(const float* q, const float* k, i64 dim) {
  __m512 acc = _mm512_setzero_ps();
  if constexpr (D > 0) {
    for (int i = 0; i < D; i += 16) acc = _mm512_fmadd_ps(load16(q + i), load16(k + i), acc);
    return acc;
  }
  for (i64 i = 0; i < dim; i += 16) {
    __mmask16 mask = tail_mask(dim - i);
    acc = _mm512_fmadd_ps(load16(q + i, mask), load16(k + i, mask), acc);
  }
  return acc;
}
template <int D> inline __m512 dot16(const bf16* q, const bf16* k, i64 dim) {
  __m512 acc = _mm512_setzero_ps();
  if constexpr (D > 0) {
    for (int i = 0; i < D; i += 32)
      acc = dot_pairs(acc, _mm512_loadu_si512(q + i), _mm512_loadu_si512(k + i));
    return acc;
  }
  for (i64 i = 0; i < dim; i += 32) {
    __mmask32 mask = dim - i >= 32 ? 0xffffffffu : (1u << (dim - i)) - 1;
    acc = dot_pairs(acc, _mm512_maskz_loadu_epi16(mask, q + i),
                    _mm512_maskz_loadu_epi16(mask, k + i));
  }
  return acc;
}

// scores[g][t] = q_g . k_t for the queries of one KV head and `count` <= 16 rows of a block.
template <int D, class T>
void score_rows(const T* q, i64 G, const T* k, const Heads& heads, i64 count, float* scores,
                i64 lds) {
  const i64 dim = D ? D : heads.dim, row = heads.row_stride;
  for (i64 g = 0; g < G; g++) {
    __m512 sums[16];
    if (count == 16) {
      for (int t = 0; t < 16; t++) sums[t] = dot16<D>(q + g * dim, k + t * row, dim);
    } else {
      for (i64 t = 0; t < 16; t++)
        sums[t] = t < count ? dot16<D>(q + g * dim, k + t * row, dim) : _mm512_setzero_ps();
    }
    store16(scores + g * lds, sum_rows(sums), tail_mask(count));
  }
}

// In place: exp(scale * (s - max)); returns the sum.
inline float exponentials(float* s, i64 n, float scale) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    most = _mm512_mask_max_ps(most, mask, most, load16(s + i, mask));
  }
  __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale), sum = _mm512_setzero_ps();
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    __m512 e = exp16(_mm512_fmsub_ps(load16(s + i, mask), _mm512_set1_ps(scale), peak));
    sum = _mm512_mask_add_ps(sum, mask, sum, e);
    store16(s + i, e, mask);
  }
  return _mm512_reduce_add_ps(sum);
}

// out[g][d..d+64) for G <= 4 queries: sums of weights times values, over all blocks.
template <int G, bool WHOLE, class T>
void weigh(const float* scores, i64 lds, const float* totals, const Heads& heads, const T* v_cache,
           const int32_t* table, i64 kv_head, i64 length, i64 d, T* out) {
  const i64 D = heads.dim, width = std::min<i64>(64, D - d);
  __m512 acc[G][4];
  __mmask16 mask[4];
  for (int j = 0; j < 4; j++) {
    mask[j] = width > 16 * j ? tail_mask(width - 16 * j) : __mmask16(0);
    for (int g = 0; g < G; g++) acc[g][j] = _mm512_setzero_ps();
  }
  for (i64 t0 = 0; t0 < length; t0 += heads.block_size) {
    const T* v = v_cache + heads.run(*table++, kv_head) + d;
    i64 end = std::min(length, t0 + heads.block_size);
    for (i64 t = t0; t < end; t++, v += heads.row_stride) {
      __m512 value[4];
      for (int j = 0; j < 4; j++)
        value[j] = WHOLE ? load16(v + 16 * j) : load16(v + 16 * j, mask[j]);
      for (int g = 0; g < G; g++) {
        __m512 s = _mm512_set1_ps(scores[g * lds + t]);
        for (int j = 0; j < 4; j++) acc[g][j] = _mm512_fmadd_ps(s, value[j], acc[g][j]);
      }
    }
  }
  for (int g = 0; g < G; g++) {
    __m512 scale = _mm512_set1_ps(1.0f / totals[g]);
    for (int j = 0; j < 4; j++)
      store16(out + g * D + d + 16 * j, _mm512_mul_ps(acc[g][j], scale), mask[j]);
  }
}

// Calls f with 1..4 as a constant.
template <class F> void by_count(i64 count, F f) {
  if (count == 1) f(std::integral_constant<int, 1>());
  else if (count == 2) f(std::integral_constant<int, 2>());
  else if (count == 3) f(std::integral_constant<int, 3>());
  else f(std::integral_constant<int, 4>());
}

template <class T> void prefetch_run(const Heads& heads, const T* rows) {
  const i64 bytes = heads.dim * i64(sizeof(T));
  for (i64 t = 0; t < heads.block_size; t++, rows += heads.row_stride)
    for (i64 i = 0; i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(rows) + i, _MM_HINT_T1);
}

// All queries of one token and KV head. q: [G, dim] contiguous; out likewise.
template <class T>
void attend(const Heads& heads, const T* q, const T* k_cache, const T* v_cache,
            const int32_t* table, i64 kv_head, i64 length, float scale, T* out) {
  const i64 G = heads.query / heads.kv, D = heads.dim, lds = round_up(length, 16);
  float* scores = score_buffer.get<float>(G * (lds + 1));
  float* totals = scores + G * lds;
  const int32_t *block = table, *last = table + (length - 1) / heads.block_size;
  for (i64 t0 = 0; t0 < length; t0 += heads.block_size, block++) {
    const T* k = k_cache + heads.run(*block, kv_head);
    i64 end = std::min(length, t0 + heads.block_size);
    // The hardware does not foresee where the next block lies; values are needed after all keys.
    prefetch_run(heads, k_cache + heads.run(*std::min(block + 2, last), kv_head));
    prefetch_run(heads, v_cache + heads.run(*block, kv_head));
    for (i64 t = t0; t < end; t += 16) {
      const T* rows = k + (t - t0) * heads.row_stride;
      const i64 count = std::min<i64>(16, end - t);
      if (D == 64) score_rows<64, T>(q, G, rows, heads, count, scores + t, lds);
      else if (D == 128) score_rows<128, T>(q, G, rows, heads, count, scores + t, lds);
      else score_rows<0, T>(q, G, rows, heads, count, scores + t, lds);
    }
  }
  for (i64 g = 0; g < G; g++) totals[g] = exponentials(scores + g * lds, length, scale);
  for (i64 g = 0; g < G; g += 4)
    for (i64 d = 0; d < D; d += 64) {
      const float* s = scores + g * lds;
      T* o = out + g * D;
      by_count(std::min<i64>(4, G - g), [&](auto some) {
        constexpr int N = decltype(some)::value;
        if (D % 64 == 0)
          weigh<N, true, T>(s, lds, totals + g, heads, v_cache, table, kv_head, length, d, o);
        else
          weigh<N, false, T>(s, lds, totals + g, heads, v_cache, table, kv_head, length, d, o);
      });
    }
}

template <class T>
void decode_attention(Walk& walk, const Heads& heads, const T* q, i64 ldq, const T* k_cache,
                      const T* v_cache, const Paged& paged, i64 M, float scale, T* out) {
  const i64 width = heads.query / heads.kv * heads.dim;  // columns of one KV head
  walk.phase(M * heads.kv, [=](i64 begin, i64 end) {
    for (i64 unit = begin; unit < end; unit++) {
      i64 m = unit / heads.kv, h = unit % heads.kv, length = paged.lengths[m];
      T* o = out + unit * width;
      if (length > 0)
        attend<T>(heads, q + m * ldq + h * width, k_cache, v_cache,
                  paged.tables + m * paged.max_blocks, h, length, scale, o);
      else
        std::memset(o, 0, width * sizeof(T));
    }
  });
}

}  // namespace
