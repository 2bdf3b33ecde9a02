// Linear layers in fp32 by AMX tiles: a number is the exact sum of three bf16, its upper, middle
// and lower eight bits, and a product is the six of nine partial products that matter in fp32.
//
// The three that are left out are below 2^-22 of a product, and every partial product is exact; so
// against float64 the sums are closer than those of fp32 multiply-adds, which round after each of
// them. Tile instructions take subnormal numbers for 0: parts below 2^-126 are lost. An infinite
// number becomes NaN in its sums. The idea is Henry, Tang and Heinecke, "Leveraging the bfloat16
// artificial intelligence datatype for higher-precision computations" (arXiv 1904.06376).

#pragma once

#include "tiles.h"

namespace {

#ifdef __AMX_BF16__

constexpr i64 PARTS = 3;                   // upper, middle, lower
constexpr i64 SPLIT_STEP = PARTS * 2 * TILE;  // 32 inputs of 32 rows or outputs: [part][half][tile]
constexpr i64 SPLIT_PIECE = 64;           // inputs whose split weights stay near while rows pass by

inline __m512 upper_half(__m512 value) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0xffff0000)));
}

// The upper halves of two inputs of sixteen outputs, in pairs.
inline __m512i pair_up(__m512 first, __m512 second) {
  const int low_or_high = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(_mm512_castps_si512(first), 16),
                                   _mm512_castps_si512(second), _mm512_set1_epi32(0xffff0000),
                                   low_or_high);
}

// Two inputs of sixteen outputs -> a row of each part's tile.
inline void split_pair(__m512 a, __m512 b, bf16* to) {
  _mm512_store_si512(to, pair_up(a, b));
  a = _mm512_sub_ps(a, upper_half(a));
  b = _mm512_sub_ps(b, upper_half(b));
  _mm512_store_si512(to + 2 * TILE, pair_up(a, b));
  a = _mm512_sub_ps(a, upper_half(a));
  b = _mm512_sub_ps(b, upper_half(b));
  _mm512_store_si512(to + 4 * TILE, pair_up(a, b));
}

// 32 inputs of a group (`there` of them exist, the rest are 0) -> [part][half][tile]; on the way
// half of the lots is fetched.
template <bool FETCH> void split_weights(const float* w, i64 there, bf16* to, Ahead& ahead) {
  alignas(64) float padded[32 * GROUP];
  if (there < 32) {
    std::memcpy(padded, w, there * GROUP * sizeof(float));
    std::memset(padded + there * GROUP, 0, (32 - there) * GROUP * sizeof(float));
    w = padded;
  }
  for (i64 pair = 0; pair < 16; pair += 2, w += 4 * GROUP, to += 64) {
    split_pair(load16(w), load16(w + GROUP), to);
    split_pair(load16(w + 16), load16(w + GROUP + 16), to + TILE);
    if (FETCH) ahead.fetch(1);
    split_pair(load16(w + 2 * GROUP), load16(w + 3 * GROUP), to + 32);
    split_pair(load16(w + 2 * GROUP + 16), load16(w + 3 * GROUP + 16), to + TILE + 32);
  }
}

// `rows` <= 32 rows -> [K / 32][part][half][16 rows][32 inputs]; missing rows are not written.
inline void split_rows(const float* x, i64 ldx, i64 K, i64 rows, bf16* to) {
  for (i64 k = 0; k < K; k += 32, to += SPLIT_STEP)
    for (i64 r = 0; r < rows; r++)
      for (i64 i = 0; i < 32; i += 16) {
        const i64 left = K - k - i;
        const __mmask16 mask = left > 0 ? tail_mask(left) : __mmask16(0);
        __m512 value = load16(x + r * ldx + k + i, mask);
        for (i64 part = 0; part < PARTS; part++) {
          __m512i half = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + part * 2 * TILE + r * 32 + i),
                             _mm512_cvtepi32_epi16(half));
          value = _mm512_sub_ps(value, upper_half(value));
        }
      }
}

// Tiles 0..3 += x w of one step, the smallest products first; between them the other half of the
// lots is fetched.
template <bool TWO, bool FETCH>
inline void split_products(const bf16* x, const bf16* w, Ahead& ahead) {
  auto inputs = [&](i64 part) __attribute__((always_inline)) {
    _tile_loadd(4, x + part * 2 * TILE, 64);
    if (TWO) _tile_loadd(5, x + part * 2 * TILE + TILE, 64);
  };
  auto weights = [&](i64 part) __attribute__((always_inline)) {
    _tile_loadd(6, w + part * 2 * TILE, 64);
    _tile_loadd(7, w + part * 2 * TILE + TILE, 64);
  };
  auto multiply = [&](i64 lots) __attribute__((always_inline)) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (TWO) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (FETCH) ahead.fetch(lots);
  };
  weights(0), inputs(2), multiply(1);
  inputs(1), multiply(1);
  weights(1), multiply(2);
  inputs(0), multiply(1);
  weights(2), multiply(1);
  weights(0), multiply(2);
}

// Up to 32 rows: every weight is read and split once.
template <bool TWO>
void split_few(const Product& p, const bf16* x, i64 M, i64 begin, i64 end) {
  const i64 steps = (p.K + 31) / 32;
  const float* weight = static_cast<const float*>(p.weight);
  alignas(64) float sums[32 * GROUP];
  alignas(64) bf16 parts[2][SPLIT_STEP];
  Ahead ahead(weight + begin * p.K * GROUP, weight + end * p.K * GROUP);
  auto split = [&](i64 group, i64 step, i64 turn) {
    split_weights<true>(weight + (group * p.K + step * 32) * GROUP,
                        std::min<i64>(32, p.K - step * 32), parts[turn % 2], ahead);
  };
  configure_tiles(std::min<i64>(M, 16), M - 16);
  split(begin, 0, 0);
  i64 turn = 0;
  for (i64 group = begin; group < end; group++) {
    zero_tiles<TWO>();
    for (i64 step = 0; step < steps; step++, turn++) {
      split_products<TWO, true>(x + step * SPLIT_STEP, parts[turn % 2], ahead);
      if (step + 1 < steps) split(group, step + 1, turn + 1);
      else if (group + 1 < end) split(group + 1, 0, turn + 1);
    }
    store_tiles<TWO>(sums);
    finish<float>(p, sums, 0, M, group);
  }
  _tile_release();
}

// Many rows: blocks of rows that stay in L2, weights split in pieces while the last piece is used.
void split_many(const Product& p, const bf16* x, i64 M, i64 begin, i64 end) {
  const i64 steps = (p.K + 31) / 32, row = steps * PARTS * 32;  // parts of a row
  const i64 most = std::max<i64>(64, (i64(3) << 19) / (row * 2) / 32 * 32);
  float* sums = partial_buffer.get<float>(most * GROUP);
  alignas(64) bf16 parts[SPLIT_PIECE / 32 * SPLIT_STEP];
  configure_tiles(16, 16);
  for (i64 first = 0; first < M; first += most) {
    const i64 rows = std::min(most, M - first), tiles = (rows + 31) / 32;
    const float* w = static_cast<const float*>(p.weight) + begin * p.K * GROUP;
    Ahead ahead(w, w + (end - begin) * p.K * GROUP);
    for (i64 group = begin; group < end; group++, w += p.K * GROUP) {
      for (i64 s0 = 0; s0 < steps; s0 += SPLIT_PIECE / 32) {
        const i64 s1 = std::min(steps, s0 + SPLIT_PIECE / 32);
        for (i64 s = s0; s < s1; s++)
          split_weights<false>(w + s * 32 * GROUP, std::min<i64>(32, p.K - s * 32),
                               parts + (s - s0) * SPLIT_STEP, ahead);
        for (i64 tile = 0; tile < tiles; tile++) {
          float* at = sums + tile * 32 * GROUP;
          if (s0) load_tiles<true>(at);
          else zero_tiles<true>();
          const bf16* in = x + (first + tile * 32) * row;
          for (i64 s = s0; s < s1; s++) {
            const bf16* w_parts = parts + (s - s0) * SPLIT_STEP;
            // Half a step's lots each by the first two.
            if (tile < 2) split_products<true, true>(in + s * SPLIT_STEP, w_parts, ahead);
            else split_products<true, false>(in + s * SPLIT_STEP, w_parts, ahead);
          }
          store_tiles<true>(at);
        }
      }
      finish<float>(p, sums, first, rows, group);
    }
  }
  _tile_release();
}

void split_linear(Walk& walk, const Product& p, const float* x, i64 ldx, i64 M, void* staged) {
  const i64 row = (p.K + 31) / 32 * PARTS * 32;
  bf16* parts = static_cast<bf16*>(staged);
  walk.phase((M + 31) / 32, [&](i64 begin, i64 end) {
    for (i64 b = begin; b < end; b++)
      split_rows(x + b * 32 * ldx, ldx, p.K, std::min<i64>(32, M - b * 32), parts + b * 32 * row);
  });
  walk.phase(round_up(p.N, GROUP) / GROUP, [&](i64 begin, i64 end) {
    if (M <= 16) split_few<false>(p, parts, M, begin, end);
    else if (M <= 32) split_few<true>(p, parts, M, begin, end);
    else split_many(p, parts, M, begin, end);
  });
}

#endif

}  // namespace
