// Linear layers in bf16 by AMX tiles.

#pragma once

#include "vectors.h"

namespace {

#ifdef __AMX_BF16__

constexpr i64 K_PIECE = 256;  // inputs: 16 KB of weights and as much of 32 rows fit into L1

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

inline void load_config(const TileConfig& config) {
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic does not say that it reads all
  _tile_loadconfig(&config);
}

// Tiles 0..3 are sums (row half, column half), 4 and 5 inputs, 6 and 7 weights.
void configure_tiles(i64 upper, i64 lower) {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.colsb[i] = 64;
    config.rows[i] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = uint8_t(upper);
  config.rows[2] = config.rows[3] = config.rows[5] = uint8_t(std::max<i64>(lower, 1));
  load_config(config);
}

template <bool TWO> inline void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  if (TWO) {
    _tile_zero(2);
    _tile_zero(3);
  }
}
// Sums of 16 rows, or of 32, x 32 outputs.
template <bool TWO> inline void load_tiles(const float* sums) {
  _tile_loadd(0, sums, GROUP * 4);
  _tile_loadd(1, sums + 16, GROUP * 4);
  if (TWO) {
    _tile_loadd(2, sums + 16 * GROUP, GROUP * 4);
    _tile_loadd(3, sums + 16 * GROUP + 16, GROUP * 4);
  }
}
template <bool TWO> inline void store_tiles(float* sums) {
  _tile_stored(0, sums, GROUP * 4);
  _tile_stored(1, sums + 16, GROUP * 4);
  if (TWO) {
    _tile_stored(2, sums + 16 * GROUP, GROUP * 4);
    _tile_stored(3, sums + 16 * GROUP + 16, GROUP * 4);
  }
}

struct TileRows {  // up to 32 rows of inputs: where tiles lie, in elements
  const bf16* x;
  i64 row;    // between rows
  i64 step;   // between tiles of 32 inputs
  i64 lower;  // from rows 0..15 to rows 16..31
};

// sums (+)= x[.., k0..k1) W^T; with FETCH, `lots` of the lines ahead are fetched at every step.
template <bool TWO, bool FETCH>
inline void tile_block(const TileRows& in, const bf16* w, i64 k0, i64 k1, float* sums, Ahead& ahead,
                       i64 lots) {
  if (k0) load_tiles<TWO>(sums);
  else zero_tiles<TWO>();
  const bf16 *at = w + k0 * GROUP, *x = in.x + k0 / 32 * in.step;
  for (i64 k = k0; k < k1; k += 32, at += 2 * TILE, x += in.step) {
    if (FETCH) ahead.fetch(lots);
    _tile_loadd(4, x, in.row * 2);
    _tile_loadd(6, at, 64);
    _tile_loadd(7, at + TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (TWO) {
      _tile_loadd(5, x + in.lower, in.row * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tiles<TWO>(sums);
}

constexpr i64 STEP_LOTS = 2 * TILE * 2 / 256;  // of lines in one step's weights

// Up to 32 rows: every weight is read once, fetched ahead.
template <bool TWO>
void tile_few(const Product& p, const TileRows& in, i64 M, i64 begin, i64 end) {
  const i64 K = round_up(p.K, 32);
  const bf16* w = static_cast<const bf16*>(p.weight) + begin * K * GROUP;
  alignas(64) float sums[32 * GROUP];
  Ahead ahead(w, w + (end - begin) * K * GROUP);
  configure_tiles(std::min<i64>(M, 16), M - 16);
  for (i64 group = begin; group < end; group++, w += K * GROUP) {
    tile_block<TWO, true>(in, w, 0, K, sums, ahead, STEP_LOTS);
    finish<bf16>(p, sums, 0, M, group);
  }
  _tile_release();
}

// Many rows: blocks of rows that stay in L2, weights in pieces that stay in L1.
void tile_many(const Product& p, const TileRows& staged, i64 M, i64 begin, i64 end) {
  const i64 K = round_up(p.K, 32), most = std::max<i64>(64, (i64(1) << 20) / (K * 2) / 32 * 32);
  float* sums = partial_buffer.get<float>(most * GROUP);
  configure_tiles(16, 16);
  for (i64 first = 0; first < M; first += most) {
    const i64 rows = std::min(most, M - first), tiles = (rows + 31) / 32;
    const i64 lots = (STEP_LOTS + tiles - 1) / tiles;  // by the first tiles, until all are fetched
    const bf16* w = static_cast<const bf16*>(p.weight) + begin * K * GROUP;
    Ahead ahead(w, w + (end - begin) * K * GROUP);
    for (i64 group = begin; group < end; group++, w += K * GROUP) {
      for (i64 k = 0; k < K; k += K_PIECE) {
        const i64 k_end = std::min(K, k + K_PIECE);
        TileRows in = staged;
        in.x += first * K;
        for (i64 tile = 0; tile < tiles; tile++, in.x += 32 * K) {
          float* at = sums + tile * 32 * GROUP;
          if (tile * lots < STEP_LOTS) tile_block<true, true>(in, w, k, k_end, at, ahead, lots);
          else tile_block<true, false>(in, w, k, k_end, at, ahead, 0);
        }
      }
      finish<bf16>(p, sums, first, rows, group);
    }
  }
  _tile_release();
}

// 32 rows (fewer at the end: zeros) as [K / 32][2 halves][16 rows][32 inputs].
void stage_tiles(const bf16* x, i64 ldx, i64 K, i64 rows, bf16* staged) {
  for (i64 k = 0; k < K; k += 32)
    for (i64 r = 0; r < 32; r++, staged += 32) {
      i64 inside = r < rows ? std::min<i64>(32, K - k) : 0;
      std::memcpy(staged, x + r * ldx + k, inside * 2);
      std::memset(staged + inside, 0, (32 - inside) * 2);
    }
}

// Few rows are read where they are. Many are staged: rows of a tile that lie a power of two apart
// would push each other out of L1.
void tile_linear(Walk& walk, const Product& p, const bf16* x, i64 ldx, i64 M, void* staged) {
  const i64 K = round_up(p.K, 32);
  TileRows in{x, ldx, 32, 16 * ldx};
  if (M > 32 || K != p.K) {
    bf16* tiles = static_cast<bf16*>(staged);
    in = {tiles, 32, 2 * TILE, TILE};
    walk.phase((M + 31) / 32, [&](i64 begin, i64 end) {
      for (i64 b = begin; b < end; b++)
        stage_tiles(x + b * 32 * ldx, ldx, p.K, std::min<i64>(32, M - b * 32), tiles + b * 32 * K);
    });
  }
  walk.phase(round_up(p.N, GROUP) / GROUP, [&](i64 begin, i64 end) {
    if (M <= 16) tile_few<false>(p, in, M, begin, end);
    else if (M <= 32) tile_few<true>(p, in, M, begin, end);
    else tile_many(p, in, M, begin, end);
  });
}

#endif

}  // namespace
