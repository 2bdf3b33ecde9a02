// Linear layers by vector registers: the product of every CPU with AVX-512.

#pragma once

#include "threads.h"

namespace {

struct Product {  // y = x W^T (+ bias) (+ residual), or silu(gate) * up
  const void* weight;     // packed
  const float* bias;      // [round_up(N, 32)] or null
  const void* residual;   // of y's type, rows ldy apart, or null; may be y
  void* y;
  i64 N, K, ldy;
  i64 gated;       // columns of y; gate and up rows alternate in runs of 16. 0: not gated
  i64 y_is_float;
};

// Sums of one group (rows x 32, rows 32 apart) into y.
template <class Y>
void finish_as(const Product& p, const float* sums, i64 first, i64 rows, i64 group) {
  const Y* residual = static_cast<const Y*>(p.residual);
  Y* y = static_cast<Y*>(p.y);
  i64 column = group * GROUP;
  __m512 b0 = _mm512_setzero_ps(), b1 = b0;
  if (p.bias) b0 = load16(p.bias + column), b1 = load16(p.bias + column + 16);
  for (i64 i = 0; i < rows; i++, sums += GROUP) {
    __m512 s0 = _mm512_add_ps(load16(sums), b0), s1 = _mm512_add_ps(load16(sums + 16), b1);
    i64 row = (first + i) * p.ldy;
    if (p.gated) {
      __m512 value = _mm512_mul_ps(silu16(s0), s1);
      store16(y + row + column / 2, value, tail_mask(p.gated - column / 2));
      continue;
    }
    for (int half = 0; half < 2; half++) {
      i64 at = row + column + 16 * half, left = p.N - column - 16 * half;
      if (left <= 0) break;
      __m512 value = half ? s1 : s0;
      if (residual) value = _mm512_add_ps(value, load16(residual + at, tail_mask(left)));
      store16(y + at, value, tail_mask(left));
    }
  }
}

template <class T>
void finish(const Product& p, const float* sums, i64 first, i64 rows, i64 group) {
  if (p.y_is_float) finish_as<float>(p, sums, first, rows, group);
  else finish_as<T>(p, sums, first, rows, group);
}

// Line `i` of a piece in the order of prefetching: page by page in turn, because the hardware runs
// ahead in several pages at once but only a little way in each.
inline const char* line_of_piece(const char* piece, i64 i) {
  return piece + i % 8 * 4096 + i / 8 * 64;
}

// Weights on their way to L2 for tile products: four pages ahead of where they are used, in lots of
// one line from each of four pages, for the reason above. Lots are to be fetched evenly between the
// products. A burst fills the queue to memory, and then all the rest waits: reading and computing
// would take turns.
class Ahead {
 public:
  Ahead(const void* begin, const void* end, i64 distance = PIECE_PAGES * 4096)
      : at_(static_cast<const char*>(begin) + distance), end_(static_cast<const char*>(end)) {}

  void fetch(i64 lots) {
    for (; lots > 0; lots--, at_ += 64) {
      if (at_ >= end_) return;
      for (i64 page = 0; page < PIECE_PAGES; page++)
        _mm_prefetch(at_ + page * 4096, _MM_HINT_T1);
      if (++line_ % 64 == 0) at_ += (PIECE_PAGES - 1) * 4096;
    }
  }

 private:
  static constexpr i64 PIECE_PAGES = 4;
  const char *at_, *end_;
  i64 line_ = 0;
};

// Inputs are used in units of 4 bytes, one fp32 or a pair of bf16, which stand opposite 32 weights
// (or pairs of them), 128 bytes. A block of rows is staged as [units][rows], so that a broadcast
// finds its neighbours in the same cache line.
constexpr i64 MOST_ROWS = 12;  // 24 accumulators, two weights and one input in 32 registers
constexpr i64 UNIT_BYTES = 128;
constexpr i64 UNITS_PER_PIECE = 256;  // 32 KB of weights stay in L1 while rows pass by
constexpr i64 PIECE_LINES = UNITS_PER_PIECE * UNIT_BYTES / 64;

template <class T> constexpr i64 per_unit() { return 4 / sizeof(T); }
template <class T> i64 units_of(i64 K) { return sizeof(T) == 2 ? round_up(K, 32) / 2 : K; }

inline const float* weights_of(const float* w, i64 unit) { return w + unit * 32; }
inline const bf16* weights_of(const bf16* w, i64 unit) {
  return w + unit / 16 * 2 * TILE + unit % 16 * 32;
}
inline void multiply(__m512& sum, uint32_t x, const float* w) {
  sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(int(x))), load16(w), sum);
}
inline void multiply(__m512& sum, uint32_t x, const bf16* w) {
  sum = dot_pairs(sum, _mm512_set1_epi32(int(x)), _mm512_loadu_si512(w));
}

// sums[R][32] (+)= x W^T over units u0..u1 of one group; lines `from`..`to` of the piece of weights
// at `next` are prefetched.
template <int R, class T>
void rows_times_group(const uint32_t* x, const T* w, i64 u0, i64 u1, float* sums, const char* next,
                      i64 from, i64 to) {
  constexpr i64 second = sizeof(T) == 2 ? TILE : 16;
  __m512 acc[R][2];
  for (int r = 0; r < R; r++)
    for (int h = 0; h < 2; h++)
      acc[r][h] = u0 ? load16(sums + r * GROUP + 16 * h) : _mm512_setzero_ps();
  for (i64 u = u0; u < u1; u++) {
    if (from < to) {
      _mm_prefetch(line_of_piece(next, from), _MM_HINT_T1);
      _mm_prefetch(line_of_piece(next, from + 1), _MM_HINT_T1);
      from += 2;
    }
    const T* at = weights_of(w, u);
    for (int r = 0; r < R; r++) {
      multiply(acc[r][0], x[u * R + r], at);
      multiply(acc[r][1], x[u * R + r], at + second);
    }
  }
  for (int r = 0; r < R; r++)
    for (int h = 0; h < 2; h++) store16(sums + r * GROUP + 16 * h, acc[r][h]);
}

template <class T>
void some_rows(i64 rows, const uint32_t* x, const T* w, i64 u0, i64 u1, float* sums,
               const char* next, i64 from, i64 to) {
  switch (rows) {
#define ROWS(R) case R: return rows_times_group<R, T>(x, w, u0, u1, sums, next, from, to)
    ROWS(1); ROWS(2); ROWS(3); ROWS(4); ROWS(5); ROWS(6);
    ROWS(7); ROWS(8); ROWS(9); ROWS(10); ROWS(11); ROWS(12);
#undef ROWS
  }
}

struct RowBlocks {  // M rows in equal blocks: no small leftover
  i64 M, count;
  explicit RowBlocks(i64 rows) : M(rows), count((rows + MOST_ROWS - 1) / MOST_ROWS) {}
  i64 first(i64 block) const { return M * block / count; }
};

template <class T> void stage_block(const T* x, i64 ldx, i64 K, i64 rows, uint32_t* staged) {
  const i64 units = units_of<T>(K), whole = K / per_unit<T>();
  for (i64 r = 0; r < rows; r++)
    for (i64 u = 0; u < units; u++) {
      uint32_t unit = 0;
      if (u < whole) std::memcpy(&unit, x + r * ldx + u * per_unit<T>(), 4);
      else if (u * per_unit<T>() < K) std::memcpy(&unit, x + r * ldx + K - 1, sizeof(T));
      staged[u * rows + r] = unit;
    }
}

// Groups begin..end by vector registers; x is staged.
template <class T>
void vector_groups(const Product& p, const uint32_t* x, const RowBlocks& all, i64 begin, i64 end) {
  const i64 units = units_of<T>(p.K);
  // Blocks whose inputs stay in L2 while the groups pass by.
  const i64 some = std::max<i64>(8, (i64(1) << 20) / (units * 4 * MOST_ROWS));
  for (i64 b0 = 0; b0 < all.count; b0 += some) {
    const i64 b1 = std::min(all.count, b0 + some), first = all.first(b0);
    const i64 rows = all.first(b1) - first, blocks = b1 - b0;
    float* sums = partial_buffer.get<float>(rows * GROUP);
    for (i64 group = begin; group < end; group++) {
      const T* w = static_cast<const T*>(p.weight) + group * units * per_unit<T>() * GROUP;
      for (i64 u = 0; u < units; u += UNITS_PER_PIECE) {
        const i64 u_end = std::min(units, u + UNITS_PER_PIECE);
        // The blocks share the fetching of the next piece among them; it follows this one.
        const char* next = reinterpret_cast<const char*>(w) + u_end * UNIT_BYTES;
        for (i64 b = b0; b < b1; b++)
          some_rows<T>(all.first(b + 1) - all.first(b), x + all.first(b) * units, w, u, u_end,
                       sums + (all.first(b) - first) * GROUP, next,
                       PIECE_LINES * (b - b0) / blocks / 2 * 2,
                       PIECE_LINES * (b - b0 + 1) / blocks / 2 * 2);
      }
      finish<T>(p, sums, first, rows, group);
    }
  }
}

template <class T> size_t staged_bytes(i64 M, i64 K) {  // fp32 may be staged in three parts
  return round_up(M, 32) * (sizeof(T) == 2 ? round_up(K, 32) * 2 : round_up(K, 32) * 6);
}

template <class T>
void vector_linear(Walk& walk, const Product& p, const T* x, i64 ldx, i64 M, void* staged) {
  const RowBlocks blocks(M);
  const uint32_t* in = static_cast<const uint32_t*>(staged);
  const i64 units = units_of<T>(p.K);
  if (M == 1 && p.K % per_unit<T>() == 0 && units * per_unit<T>() == p.K) {
    in = reinterpret_cast<const uint32_t*>(x);  // one row is its own stage
  } else {
    walk.phase(blocks.count, [&](i64 begin, i64 end) {
      for (i64 b = begin; b < end; b++)
        stage_block(x + blocks.first(b) * ldx, ldx, p.K, blocks.first(b + 1) - blocks.first(b),
                    static_cast<uint32_t*>(staged) + blocks.first(b) * units);
    });
  }
  walk.phase(round_up(p.N, GROUP) / GROUP, [&](i64 begin, i64 end) {
    vector_groups<T>(p, in, blocks, begin, end);
  });
}

}  // namespace
