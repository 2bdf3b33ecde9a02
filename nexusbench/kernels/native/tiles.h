// Linear layers in bf16 by AMX tiles.

#pragma once

#include "vectors.h"

namespace {

#ifdef __AMX_BF16__

constexpr i64 K_PIECE = 512;  // inputs whose 32 KB of weights stay in L1 while rows pass by

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0..3 are sums (row half, column half), 4 and 5 inputs, 6 and 7 weights.
void configure_tiles(i64 upper, i64 lower) {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.colsb[i] = 64;
    config.rows[i] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = uint8_t(upper);
  config.rows[2] = config.rows[3] = config.rows[5] = uint8_t(std::max<i64>(lower, 1));
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic does not say that it reads all
  _tile_loadconfig(&config);
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
  i64 block;  // between blocks of 32 rows
};

// sums (+)= x[.., k0..k1) W^T; at every step `lines` lines of the piece `next` are prefetched, the
// first of all being line `from`.
template <bool TWO>
inline void tile_block(const TileRows& in, const bf16* w, i64 k0, i64 k1, float* sums,
                       const char* next, i64 from, i64 lines) {
  if (k0) load_tiles<TWO>(sums);
  else zero_tiles<TWO>();
  const bf16 *at = w + k0 * GROUP, *x = in.x + k0 / 32 * in.step;
  for (i64 k = k0; k < k1; k += 32, at += 2 * TILE, x += in.step) {
    for (i64 i = 0; i < lines; i++) _mm_prefetch(line_of_piece(next, from++), _MM_HINT_T1);
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

// Up to 32 rows: every weight is read once, fetched a piece ahead.
void tile_few(const Product& p, const TileRows& in, i64 M, i64 begin, i64 end) {
  const i64 K = round_up(p.K, 32);
  alignas(64) float sums[32 * GROUP];
  configure_tiles(std::min<i64>(M, 16), M - 16);
  for (i64 group = begin; group < end; group++) {
    const bf16* w = static_cast<const bf16*>(p.weight) + group * K * GROUP;
    for (i64 k = 0; k < K; k += K_PIECE) {
      const i64 k_end = std::min(K, k + K_PIECE);
      const char* next = reinterpret_cast<const char*>(w + k_end * GROUP);
      if (M > 16) tile_block<true>(in, w, k, k_end, sums, next, 0, 32);
      else tile_block<false>(in, w, k, k_end, sums, next, 0, 32);
    }
    finish<bf16>(p, sums, 0, M, group);
  }
  _tile_release();
}

// Many rows: blocks of rows that stay in L2, weights in pieces that stay in L1. The last rows, if
// fewer than 32, are staged, so that one tile configuration serves all.
void tile_many(const Product& p, const TileRows& rows_in, const TileRows& last, i64 M, i64 begin,
               i64 end) {
  const i64 K = round_up(p.K, 32), most = std::max<i64>(64, (i64(1) << 20) / (K * 2) / 32 * 32);
  float* sums = partial_buffer.get<float>(most * GROUP);
  configure_tiles(16, 16);
  for (i64 first = 0; first < M; first += most) {
    i64 rows = std::min(most, M - first);
    for (i64 group = begin; group < end; group++) {
      const bf16* w = static_cast<const bf16*>(p.weight) + group * K * GROUP;
      for (i64 k = 0; k < K; k += K_PIECE) {
        i64 k_end = std::min(K, k + K_PIECE), steps = (k_end - k) / 32;
        // Fetch the next piece of weights (it follows this one) while the rows pass by.
        i64 lines = (K_PIECE + (rows + 31) / 32 * steps - 1) / ((rows + 31) / 32 * steps);
        const char* next = reinterpret_cast<const char*>(w + k_end * GROUP);
        for (i64 r = 0; r < rows; r += 32) {
          const bool whole = first + r + 32 <= M;
          TileRows in = whole ? rows_in : last;
          if (whole) in.x += (first + r) / 32 * rows_in.block;
          tile_block<true>(in, w, k, k_end, sums + r * GROUP, next, r / 32 * steps * lines, lines);
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

void tile_linear(Walk& walk, const Product& p, const bf16* x, i64 ldx, i64 M, void* staged) {
  const i64 K = round_up(p.K, 32), blocks = (M + 31) / 32;
  bf16* tiles = static_cast<bf16*>(staged);
  const TileRows direct{x, ldx, 32, 16 * ldx, 32 * ldx}, tiled{tiles, 32, 2 * TILE, TILE, 32 * K};
  const bool all = K != p.K, some = M > 32 && M % 32;
  const i64 first = all ? 0 : blocks - 1;  // block to stage from
  if (all || some)
    walk.phase(blocks - first, [&](i64 begin, i64 end) {
      for (i64 b = begin; b < end; b++) {
        const i64 row = (first + b) * 32;
        stage_tiles(x + row * ldx, ldx, p.K, std::min<i64>(32, M - row), tiles + b * 32 * K);
      }
    });
  TileRows last = tiled;
  last.x += (blocks - 1 - first) * tiled.block;
  walk.phase(round_up(p.N, GROUP) / GROUP, [&](i64 begin, i64 end) {
    if (M <= 32) tile_few(p, all ? tiled : direct, M, begin, end);
    else tile_many(p, all ? tiled : direct, last, M, begin, end);
  });
}

#endif

}  // namespace
