// Paged decode attention: one query token per sequence.

#pragma once

#include "rope.h"
#include "tiles.h"

namespace {

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

// Calls f with 1..4 as a constant.
template <class F> void by_count(i64 count, F f) {
  if (count == 1) f(std::integral_constant<int, 1>());
  else if (count == 2) f(std::integral_constant<int, 2>());
  else if (count == 3) f(std::integral_constant<int, 3>());
  else f(std::integral_constant<int, 4>());
}

// What a token and KV head reads, in order: the keys of its blocks, their values, the next head's
// keys. The hardware does not foresee where a block lies, so it is fetched AWAY blocks ahead.
template <class T> struct Reading {
  static constexpr i64 AWAY = 2, DIMS = 64;  // dimensions of values that are read in one pass
  const Heads& heads;
  const T *k_cache, *v_cache;
  const int32_t* table;
  i64 kv_head, length;

  // Inlined by force: a function that only prefetches has no effect in a compiler's eyes.
#define INLINED __attribute__((always_inline))
  i64 blocks() const { return (length + heads.block_size - 1) / heads.block_size; }
  INLINED void at_keys(i64 block) const {
    const i64 next = block + AWAY, over = next - blocks();
    if (over < 0) fetch(k_cache + heads.run(table[next], kv_head), heads.dim);
    else if (over < blocks()) fetch(v_cache + heads.run(table[over], kv_head), DIMS);
  }
  INLINED void at_values(i64 block, i64 d) const {
    const i64 next = block + AWAY, over = next - blocks();
    if (over < 0) fetch(v_cache + heads.run(table[next], kv_head) + d, DIMS);
    else if (d == 0 && over < blocks() && kv_head + 1 < heads.kv)
      fetch(k_cache + heads.run(table[over], kv_head + 1), heads.dim);
  }
  INLINED void fetch(const T* rows, i64 dims) const {
    const i64 bytes = std::min(dims, heads.dim) * i64(sizeof(T));
    for (i64 t = 0; t < heads.block_size; t++, rows += heads.row_stride)
      for (i64 i = 0; i < bytes; i += 64)
        _mm_prefetch(reinterpret_cast<const char*>(rows) + i, _MM_HINT_T1);
  }
#undef INLINED
};

// Room for the scores of a token and KV head, and in bf16 for weights rounded to it.
struct Scores {
  float *values, *totals;  // [G][lds], [G]
  bf16* weights;           // [G][lds]
  i64 lds;                 // whole tiles of 32 tokens
  Scores(i64 G, i64 length) : lds(round_up(length, 32)) {
    values = score_buffer.get<float>(G * (lds + 1 + lds / 2));
    totals = values + G * lds;
    weights = reinterpret_cast<bf16*>(totals + G);
  }
};

// Calls f(keys of up to 16 tokens of one block, first token, their number).
template <class T, class F> void each_sixteen(const Reading<T>& from, F f) {
  const Heads& heads = from.heads;
  for (i64 block = 0, t0 = 0; t0 < from.length; t0 += heads.block_size, block++) {
    const T* k = from.k_cache + heads.run(from.table[block], from.kv_head);
    const i64 end = std::min(from.length, t0 + heads.block_size);
    from.at_keys(block);
    for (i64 t = t0; t < end; t += 16)
      f(k + (t - t0) * heads.row_stride, t, std::min<i64>(16, end - t));
  }
}

// Scores by tiles: sixteen keys are a tile as they lie in the cache, the queries of a KV head are
// packed once as the other factor. False where shapes do not fit.
template <class T> bool tile_scores(const Reading<T>&, const T*, const Scores&) { return false; }

#ifdef __AMX_BF16__

// scores[16 tokens][16 queries] = keys . queries, in C tiles of up to 32 dimensions.
template <int C> inline void score_tile(const bf16* rows, i64 bytes, i64 step, float* scores) {
  _tile_zero(0);
  _tile_loadd(1, rows, bytes);
  _tile_dpbf16ps(0, 1, 4);
  if constexpr (C > 1) {
    _tile_loadd(2, rows + step, bytes);
    _tile_dpbf16ps(0, 2, 5);
  }
  if constexpr (C > 2) {
    _tile_loadd(3, rows + 2 * step, bytes);
    _tile_dpbf16ps(0, 3, 6);
  }
  if constexpr (C > 3) {
    _tile_loadd(1, rows + 3 * step, bytes);
    _tile_dpbf16ps(0, 1, 7);
  }
  _tile_stored(0, scores, 64);
}

inline bool tiles_score(const Heads& heads) {
  const bool whole = heads.dim == 16 || (heads.dim % 32 == 0 && heads.dim <= 128);
  return whole && heads.query / heads.kv <= 16 && heads.block_size % 16 == 0;
}

// For tile_scores, by the thread: 0 sums, 1 to 3 keys, 4 to 7 queries.
inline void configure_scores(const Heads& heads) {
  const i64 step = std::min<i64>(32, heads.dim);
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.colsb[i] = uint16_t(i >= 1 && i <= 3 ? step * 2 : 64);
    config.rows[i] = uint8_t(i >= 4 ? step / 2 : 16);
  }
  load_config(config);
}

inline bool tile_scores(const Reading<bf16>& from, const bf16* q, const Scores& scores) {
  const Heads& heads = from.heads;
  if (!tiles_score(heads)) return false;
  const i64 G = heads.query / heads.kv, D = heads.dim, step = std::min<i64>(32, D);
  alignas(64) uint32_t queries[4][16][16];  // [tile][pair of dimensions][query]
  alignas(64) float found[16][16];          // [token][query]
  for (i64 g = 0; g < G; g++)
    for (i64 pair = 0; pair < D / 2; pair++)
      std::memcpy(&queries[pair / 16][pair % 16][g], q + g * D + 2 * pair, 4);
  _tile_loadd(4, queries[0], 64);
  if (D > 32) _tile_loadd(5, queries[1], 64);
  if (D > 64) _tile_loadd(6, queries[2], 64);
  if (D > 96) _tile_loadd(7, queries[3], 64);
  const __m512i tokens = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192,
                                           208, 224, 240);
  each_sixteen(from, [&](const bf16* rows, i64 t, i64 count) {
    const i64 bytes = heads.row_stride * 2;
    if (D <= 32) score_tile<1>(rows, bytes, step, found[0]);
    else if (D == 64) score_tile<2>(rows, bytes, step, found[0]);
    else if (D == 96) score_tile<3>(rows, bytes, step, found[0]);
    else score_tile<4>(rows, bytes, step, found[0]);
    for (i64 g = 0; g < G; g++)
      store16(scores.values + g * scores.lds + t, _mm512_i32gather_ps(tokens, found[0] + g, 4),
              tail_mask(count));
  });
  return true;
}

#endif

// out[g..g+G)[d..d+W) for G <= 4 queries: sums of weights times values, over all blocks. WHOLE: all
// of these dimensions exist.
template <int G, int W, bool WHOLE>
void weigh(const Scores& scores, i64 g0, const Reading<float>& from, i64 d, float* out) {
  const Heads& heads = from.heads;
  constexpr int J = W / 16;
  const i64 D = heads.dim, width = D - d;
  const float* s = scores.values + g0 * scores.lds;
  __m512 acc[G][J];
  __mmask16 mask[J];
  for (int j = 0; j < J; j++) {
    mask[j] = WHOLE || width > 16 * j ? tail_mask(width - 16 * j) : __mmask16(0);
    for (int g = 0; g < G; g++) acc[g][j] = _mm512_setzero_ps();
  }
  for (i64 block = 0, t0 = 0; t0 < from.length; t0 += heads.block_size, block++) {
    const float* v = from.v_cache + heads.run(from.table[block], from.kv_head) + d;
    if (g0 == 0) from.at_values(block, d);
    i64 end = std::min(from.length, t0 + heads.block_size);
    for (i64 t = t0; t < end; t++, v += heads.row_stride) {
      __m512 value[J];
      for (int j = 0; j < J; j++)
        value[j] = WHOLE ? load16(v + 16 * j) : load16(v + 16 * j, mask[j]);
      for (int g = 0; g < G; g++) {
        __m512 weight = _mm512_set1_ps(s[g * scores.lds + t]);
        for (int j = 0; j < J; j++) acc[g][j] = _mm512_fmadd_ps(weight, value[j], acc[g][j]);
      }
    }
  }
  for (int g = 0; g < G; g++) {
    __m512 part = _mm512_set1_ps(1.0f / scores.totals[g0 + g]);
    for (int j = 0; j < J; j++)
      store16(out + (g0 + g) * D + d + 16 * j, _mm512_mul_ps(acc[g][j], part), mask[j]);
  }
}

// The same in bf16, two tokens of a block at a time: their values stand beside each other like
// their weights, which are rounded to bf16.
template <int G, int W, bool WHOLE>
void weigh(const Scores& scores, i64 g0, const Reading<bf16>& from, i64 d, bf16* out) {
  const Heads& heads = from.heads;
  constexpr int J = W / 32;
  const i64 D = heads.dim, width = D - d;
  const bf16* s = scores.weights + g0 * scores.lds;
  __m512 acc[G][J][2];
  __mmask32 mask[J];
  for (int j = 0; j < J; j++) {
    const i64 left = width - 32 * j;
    mask[j] = WHOLE || left >= 32 ? ~__mmask32(0) : left > 0 ? (__mmask32(1) << left) - 1 : 0;
    for (int g = 0; g < G; g++) acc[g][j][0] = acc[g][j][1] = _mm512_setzero_ps();
  }
  auto load = [&](const bf16* v, int j) {
    return WHOLE ? _mm512_loadu_si512(v + 32 * j) : _mm512_maskz_loadu_epi16(mask[j], v + 32 * j);
  };
  for (i64 block = 0, t0 = 0; t0 < from.length; t0 += heads.block_size, block++) {
    const bf16* v = from.v_cache + heads.run(from.table[block], from.kv_head) + d;
    if (g0 == 0) from.at_values(block, d);
    const i64 end = std::min(from.length, t0 + heads.block_size);
    for (i64 t = t0; t < end; t += 2, v += 2 * heads.row_stride) {
      __m512i low[J], high[J];
      for (int j = 0; j < J; j++) {
        const __m512i one = load(v, j);
        const __m512i two = t + 1 < end ? load(v + heads.row_stride, j) : _mm512_setzero_si512();
        low[j] = _mm512_unpacklo_epi16(one, two);
        high[j] = _mm512_unpackhi_epi16(one, two);
      }
      for (int g = 0; g < G; g++) {
        int pair;
        std::memcpy(&pair, s + g * scores.lds + t, 4);
        const __m512i weights = _mm512_set1_epi32(pair);
        for (int j = 0; j < J; j++) {
          acc[g][j][0] = dot_pairs(acc[g][j][0], weights, low[j]);
          acc[g][j][1] = dot_pairs(acc[g][j][1], weights, high[j]);
        }
      }
    }
  }
  // Unpacking works on four dimensions in turns.
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int g = 0; g < G; g++) {
    const __m512 part = _mm512_set1_ps(1.0f / scores.totals[g0 + g]);
    bf16* to = out + (g0 + g) * D + d;
    for (int j = 0; j < J; j++, to += 32) {
      __m512 a = _mm512_permutex2var_ps(acc[g][j][0], first, acc[g][j][1]);
      __m512 b = _mm512_permutex2var_ps(acc[g][j][0], second, acc[g][j][1]);
      store16(to, _mm512_mul_ps(a, part), __mmask16(mask[j]));
      store16(to + 16, _mm512_mul_ps(b, part), __mmask16(mask[j] >> 16));
    }
  }
}

// All queries of one token and KV head. q: [G, dim] contiguous; out likewise.
template <class T> void attend(const Reading<T>& from, const T* q, float scale, T* out) {
  const Heads& heads = from.heads;
  const i64 G = heads.query / heads.kv, D = heads.dim, length = from.length;
  const Scores scores(G, length);
  if (!tile_scores(from, q, scores))
    each_sixteen(from, [&](const T* rows, i64 t, i64 count) {
      float* to = scores.values + t;
      if (D == 64) score_rows<64, T>(q, G, rows, heads, count, to, scores.lds);
      else if (D == 128) score_rows<128, T>(q, G, rows, heads, count, to, scores.lds);
      else score_rows<0, T>(q, G, rows, heads, count, to, scores.lds);
    });
  for (i64 g = 0; g < G; g++) {
    float* values = scores.values + g * scores.lds;
    scores.totals[g] = exponentials(values, length, scale);
    if (sizeof(T) == 2)
      for (i64 t = 0; t < scores.lds; t += 16)
        store16(scores.weights + g * scores.lds + t,
                load16(values + t, t < length ? tail_mask(length - t) : __mmask16(0)));
  }
  for (i64 g = 0; g < G; g += 4)
    for (i64 d = 0; d < D; d += 64)
      by_count(std::min<i64>(4, G - g), [&](auto some) {
        constexpr int N = decltype(some)::value;
        if (D - d >= 64) weigh<N, 64, true>(scores, g, from, d, out);
        else if (D - d > 32) weigh<N, 64, false>(scores, g, from, d, out);
        else if (D - d == 32) weigh<N, 32, true>(scores, g, from, d, out);
        else weigh<N, 32, false>(scores, g, from, d, out);
      });
}

template <class T>
void decode_attention(Walk& walk, const Heads& heads, const T* q, i64 ldq, const T* k_cache,
                      const T* v_cache, const Paged& paged, i64 M, float scale, T* out) {
  const i64 width = heads.query / heads.kv * heads.dim;  // columns of one KV head
  walk.phase(M * heads.kv, [=](i64 begin, i64 end) {
#ifdef __AMX_BF16__
    const bool tiles = sizeof(T) == 2 && tiles_score(heads);
    if (tiles) configure_scores(heads);
#endif
    for (i64 unit = begin; unit < end; unit++) {
      i64 m = unit / heads.kv, h = unit % heads.kv, length = paged.lengths[m];
      T* o = out + unit * width;
      if (length > 0)
        attend<T>({heads, k_cache, v_cache, paged.tables + m * paged.max_blocks, h, length},
                  q + m * ldq + h * width, scale, o);
      else
        std::memset(o, 0, width * sizeof(T));
    }
#ifdef __AMX_BF16__
    if (tiles) _tile_release();
#endif
  });
}

}  // namespace
