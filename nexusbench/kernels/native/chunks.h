// Attention of chunks by AMX tiles.

#pragma once

#include "attention.h"
#include "tiles.h"

namespace {

#ifdef __AMX_BF16__

// Attention of chunks: several tokens of a sequence, each to its keys up to itself. Keys and values
// of one KV head are packed like weights, one output per key and one per value dimension, and the
// same tile products give scores and sums of values. Rows of a product are (token, query head of
// the group) pairs. Whole rows of scores are kept, so a softmax is as in `attend`; weights are
// rounded to bf16. A row's additions run over the keys from the first in steps of 32 whatever the
// chunk's limits, so its bits depend neither on them nor on the batch.
struct Chunks {
  const i64* starts;       // [sequences + 1], rows of the batch
  const int32_t* tables;   // [sequences, max_blocks]
  i64 max_blocks;
  const int32_t* lengths;  // [sequences], the chunk itself included
  const i64* sequence;     // [units]: which sequence,
  const i64* first;        // and from which of its tokens on; `tokens` of them at most
  i64 tokens;
};

// Sixteen keys (rows at offsets `rows`; `mask`: those that exist), `dim` values -> tiles.
inline void pack_keys(const bf16* k_cache, const i64* rows, __mmask16 mask, i64 dim, bf16* to) {
  const __m512i low = _mm512_loadu_si512(rows), high = _mm512_loadu_si512(rows + 8);
  for (i64 d = 0; d < dim; d += 32, to += 2 * TILE)
    for (i64 pair = 0; pair < 16; pair++) {
      const bf16* at = k_cache + d + 2 * pair;
      const __m256i zero = _mm256_setzero_si256();
      __m256i a = _mm512_mask_i64gather_epi32(zero, __mmask8(mask), low, at, 2);
      __m256i b = _mm512_mask_i64gather_epi32(zero, __mmask8(mask >> 8), high, at, 2);
      _mm512_storeu_si512(to + pair * 32, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
    }
}

// Two values (the second may be missing), `dim` values each -> rows of tiles, `group` apart.
inline void pack_values(const bf16* one, const bf16* two, i64 dim, bf16* to, i64 group) {
  for (i64 d = 0; d < dim; d += 16) {
    auto load = [&](const bf16* v) {
      return v ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + d)))
               : _mm512_setzero_si512();
    };
    __m512i both = _mm512_or_si512(load(one), _mm512_slli_epi32(load(two), 16));
    _mm512_storeu_si512(to + d / 32 * group + d % 32 / 16 * TILE, both);
  }
}

// exp(scale * (s - max)) of the first n of `keys` scores, rounded; the rest is 0. Returns the sum.
// Scores stand in blocks of 32 keys, 32 rows apart from each other.
inline float weights_of_row(const float* s, i64 n, i64 keys, float scale, bf16* to) {
  auto at = [&](i64 i) { return s + i / 32 * 32 * GROUP + i % 32; };
  __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    most = _mm512_mask_max_ps(most, mask, most, load16(at(i)));
  }
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale);
  for (i64 i = 0; i < keys; i += 16) {
    __mmask16 mask = i < n ? tail_mask(n - i) : __mmask16(0);
    __m512 e = exp16(_mm512_fmsub_ps(load16(at(i)), _mm512_set1_ps(scale), peak));
    e = _mm512_maskz_mov_ps(mask, e);
    sum = _mm512_add_ps(sum, e);
    store16(to + i, e);
  }
  return _mm512_reduce_add_ps(sum);
}

// One unit: tokens first..last of a sequence, the queries of one KV head.
void attend_chunk(const Heads& heads, const bf16* q, i64 ldq, const bf16* k_cache,
                  const bf16* v_cache, const int32_t* table, i64 kv_head, i64 context, i64 first,
                  i64 last, float scale, bf16* out) {
  const i64 G = heads.query / heads.kv, D = heads.dim, keys = round_up(context + last, 32);
  bf16* packed_k = chunk_buffer.get<bf16>(keys * (2 * D + 32 + 64) + 32 * D);
  bf16 *packed_v = packed_k + keys * D, *weights = packed_v + keys * D, *rows = weights + keys * 32;
  float *scores = reinterpret_cast<float*>(rows + 32 * D), totals[32];
  alignas(64) float sums[32 * GROUP];
  for (i64 t = 0; t < keys; t += 16) {
    i64 at[16], there = std::min<i64>(16, std::max<i64>(0, context + last - t));
    for (i64 i = 0; i < 16; i++) {
      i64 key = i < there ? t + i : t;
      at[i] = there ? heads.run(table[key / heads.block_size], kv_head) +
                          key % heads.block_size * heads.row_stride
                    : 0;
    }
    pack_keys(k_cache, at, there ? tail_mask(there) : __mmask16(0), D,
              packed_k + t / 32 * 32 * D + t % 32 / 16 * TILE);
    for (i64 i = 0; i < 16; i += 2)
      pack_values(i < there ? v_cache + at[i] : nullptr,
                  i + 1 < there ? v_cache + at[i + 1] : nullptr, D,
                  packed_v + t / 32 * 2 * TILE + (t + i) % 32 / 2 * 32, keys * 32);
  }
  const i64 count = (last - first) * G;  // rows: pairs of a token and a query head
  for (i64 r0 = 0; r0 < count; r0 += 32) {
    const i64 some = std::min<i64>(32, count - r0);
    const i64 most = round_up(context + first + (r0 + some - 1) / G + 1, 32);
    auto token = [&](i64 r) { return first + (r0 + r) / G; };
    auto column = [&](i64 r) { return (kv_head * G + (r0 + r) % G) * D; };
    for (i64 r = 0; r < some; r++)
      std::memcpy(rows + r * D, q + token(r) * ldq + column(r), D * sizeof(bf16));
    std::memset(rows + some * D, 0, (32 - some) * D * sizeof(bf16));
    Ahead none(rows, rows);
    for (i64 k = 0; k < most; k += 32)
      tile_block<true, false>({rows, D, 32, 16 * D}, packed_k + k * D, 0, D, scores + k * GROUP,
                              none, 0);
    for (i64 r = 0; r < some; r++)
      totals[r] = weights_of_row(scores + r * GROUP, context + token(r) + 1, most, scale,
                                 weights + r * keys);
    for (i64 d = 0; d < D; d += 32) {
      tile_block<true, false>({weights, keys, 32, 16 * keys}, packed_v + d * keys, 0, most, sums,
                              none, 0);
      for (i64 r = 0; r < some; r++) {
        __m512 part = _mm512_set1_ps(1.0f / totals[r]);
        bf16* to = out + token(r) * heads.query * D + column(r) + d;
        store16(to, _mm512_mul_ps(load16(sums + r * GROUP), part));
        store16(to + 16, _mm512_mul_ps(load16(sums + r * GROUP + 16), part));
      }
    }
  }
}

void chunk_attention(Walk& walk, const Heads& heads, const bf16* q, i64 ldq, const bf16* k_cache,
                     const bf16* v_cache, const Chunks& chunks, i64 units, float scale, bf16* out) {
  walk.phase(units * heads.kv, [=](i64 begin, i64 end) {
    configure_tiles(16, 16);
    for (i64 unit = begin; unit < end; unit++) {
      const i64 s = chunks.sequence[unit / heads.kv], first = chunks.first[unit / heads.kv];
      const i64 row = chunks.starts[s], size = chunks.starts[s + 1] - row;
      attend_chunk(heads, q + row * ldq, ldq, k_cache, v_cache,
                   chunks.tables + s * chunks.max_blocks, unit % heads.kv,
                   chunks.lengths[s] - size, first, std::min(size, first + chunks.tokens), scale,
                   out + row * heads.query * heads.dim);
    }
    _tile_release();
  });
}

#endif

}  // namespace
