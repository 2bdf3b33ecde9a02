// Decoder kernels for x86 CPUs with AVX-512 (and AMX where there is one), called through ctypes.
//
// Everything that a decoder layer does between two token ids, for bf16 and fp32, in one file:
// linear layers on packed weights, RMSNorm, SiLU x gate, rotary embedding with the write into the
// paged KV cache, paged decode attention, and whole layers built from these.
//
// Numerics. All sums are accumulated in fp32. Every output element is one chain of additions
// along K whose order depends neither on the number of rows nor on the number of threads, so a
// row's result is the same bits alone and in any batch (invariant I8).
//
// Layouts.
//   packed weight, fp32   [N/32][K][32]            padded with zeros to whole groups of 32 outputs
//   packed weight, bf16   [N/32][K/32][2][16][16][2]: an AMX tile holds 16 outputs x 32 inputs as
//                         16 rows of input pairs; AVX-512 reads the same rows with vdpbf16ps
//   KV cache, K and V     [num_blocks, kv_heads, block_size, head_dim] of any strides, the same for
//                         both; the last dimension touches
//
// Threads. Each function takes their number; a caller's OpenMP team is its own, and its threads
// inherit the caller's affinity when the team is made.

#include <immintrin.h>
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace {

using bf16 = uint16_t;
using i64 = int64_t;

constexpr i64 GROUP = 32;         // outputs per group of a packed weight
constexpr i64 TILE = 512;         // bf16 elements of one AMX tile (1 KB)

constexpr i64 round_up(i64 value, i64 step) { return (value + step - 1) / step * step; }

struct Buffer {  // grows, never shrinks; one per thread and purpose
  char* data = nullptr;
  size_t size = 0;
  template <class T> T* get(size_t count) {
    size_t bytes = round_up(count * sizeof(T), 4096);
    if (bytes > size) {
      std::free(data);
      data = static_cast<char*>(std::aligned_alloc(4096, bytes));
      if (!data) std::abort();
      size = bytes;
    }
    return reinterpret_cast<T*>(data);
  }
  ~Buffer() { std::free(data); }
};

thread_local Buffer partial_buffer, staged_buffer, score_buffer, phase_buffer,
    chunk_buffer;

// ---- threads ------------------------------------------------------------------------------------

// A call is a sequence of phases; every thread walks through all of them. The units of a phase are
// claimed in chunks, each thread's own contiguous run first, then the others': a phase ends when
// its units are done, not when every thread has come by. So a thread that the system has taken off
// its core delays the others by one chunk at most, and finds nothing left to do when it is back.
class Phases {
 public:
  // To be made by the calling thread, before the team.
  Phases(Buffer& buffer, i64 count, i64 threads) : stride_(threads + 1) {
    cells_ = buffer.get<Cell>(count * stride_);
    std::memset(static_cast<void*>(cells_), 0, count * stride_ * sizeof(Cell));
  }

  struct alignas(64) Cell {
    std::atomic<i64> value;
  };

  Cell* cells_;
  i64 stride_;
};

class Walk {  // one thread's way through the phases
 public:
  explicit Walk(const Phases& phases)
      : at_(phases.cells_), stride_(phases.stride_), threads_(omp_get_num_threads()),
        me_(omp_get_thread_num()) {}

  // Calls f(begin, end) until all units are claimed; returns when they are done, by whomever.
  // A claim takes a quarter of what is left of a run, so the last ones are small.
  template <class F> void phase(i64 units, F f) {
    Phases::Cell* next = at_;
    std::atomic<i64>& done = at_[stride_ - 1].value;
    at_ += stride_;
    for (i64 i = 0; i < threads_; i++) {
      i64 whose = (me_ + i) % threads_;
      i64 begin = units * whose / threads_, end = units * (whose + 1) / threads_;
      i64 taken = next[whose].value.load(std::memory_order_relaxed);
      while (taken < end - begin) {
        i64 chunk = threads_ == 1 ? units : (end - begin - taken + 3) / 4;
        if (!next[whose].value.compare_exchange_weak(taken, taken + chunk,
                                                     std::memory_order_relaxed))
          continue;  // another thread was faster: `taken` is what it left
        f(begin + taken, begin + taken + chunk);
        done.fetch_add(chunk, std::memory_order_release);
        taken = next[whose].value.load(std::memory_order_relaxed);
      }
    }
    for (int spins = 0; done.load(std::memory_order_acquire) < units;) {
      if (++spins < 4096) _mm_pause();
      else sched_yield();
    }
  }

 private:
  Phases::Cell* at_;
  i64 stride_, threads_, me_;
};

// ---- numbers ------------------------------------------------------------------------------------

inline float to_float(float value) { return value; }
inline float to_float(bf16 value) {
  uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load16(const bf16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline __m512 load16(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load16(const bf16* p, __mmask16 mask) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline __m256i round16(__m512 value) {  // to bf16, nearest even, NaN stays NaN
  __m512i bits = _mm512_castps_si512(value);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  up = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}
inline void store16(float* p, __m512 value, __mmask16 mask = 0xffff) {
  _mm512_mask_storeu_ps(p, mask, value);
}
inline void store16(bf16* p, __m512 value, __mmask16 mask = 0xffff) {
  _mm256_mask_storeu_epi16(p, mask, round16(value));
}

inline __mmask16 tail_mask(i64 left) {
  return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

inline __m512 exp16(__m512 x) {  // within 2 ulp; below -87.3 the result is 0 or tiny
  x = _mm512_min_ps(x, _mm512_set1_ps(88.72283f));
  x = _mm512_max_ps(x, _mm512_set1_ps(-110.0f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline __m512 silu16(__m512 x) {
  __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// Sixteen sums of sixteen lanes each.
inline __m512 sum_rows(const __m512* a) {
  __m512 t[8], u[4];
  for (int i = 0; i < 8; i++)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                         _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  for (int i = 0; i < 4; i++) {
    __m512d lo = _mm512_castps_pd(t[2 * i]), hi = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi)));
  }
  __m512 v0 = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88),
                            _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  __m512 v1 = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88),
                            _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(v0, v1, 0x88), _mm512_shuffle_f32x4(v0, v1, 0xdd));
}

// acc + the products of sixteen bf16 pairs.
inline __m512 dot_pairs(__m512 acc, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
  __m512i high = _mm512_set1_epi32(0xffff0000);
  acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                        _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                         _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
#endif
}

// ---- linear -------------------------------------------------------------------------------------

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

template <class T> size_t staged_bytes(i64 M, i64 K) {
  return round_up(M, 32) * units_of<T>(K) * 4;
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
  _tile_loadconfig(&config);
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
  const i64 row = GROUP * 4;
  if (k0) {
    _tile_loadd(0, sums, row);
    _tile_loadd(1, sums + 16, row);
    if (TWO) {
      _tile_loadd(2, sums + 16 * GROUP, row);
      _tile_loadd(3, sums + 16 * GROUP + 16, row);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
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
  _tile_stored(0, sums, row);
  _tile_stored(1, sums + 16, row);
  if (TWO) {
    _tile_stored(2, sums + 16 * GROUP, row);
    _tile_stored(3, sums + 16 * GROUP + 16, row);
  }
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

// y = x W^T and so on: two phases at most. `staged`: room for staged_bytes, shared by the team.
void linear(Walk& walk, const Product& p, const float* x, i64 ldx, i64 M, void* staged) {
  vector_linear<float>(walk, p, x, ldx, M, staged);
}

void linear(Walk& walk, const Product& p, const bf16* x, i64 ldx, i64 M, void* staged) {
#ifdef __AMX_BF16__
  tile_linear(walk, p, x, ldx, M, staged);
#else
  vector_linear<bf16>(walk, p, x, ldx, M, staged);
#endif
}

// ---- what stands between the linear layers ------------------------------------------------------

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
    const char* none = reinterpret_cast<const char*>(rows);
    for (i64 k = 0; k < most; k += 32)
      tile_block<true>({rows, D, 32, 16 * D, 0}, packed_k + k * D, 0, D, scores + k * GROUP, none,
                       0, 0);
    for (i64 r = 0; r < some; r++)
      totals[r] = weights_of_row(scores + r * GROUP, context + token(r) + 1, most, scale,
                                 weights + r * keys);
    for (i64 d = 0; d < D; d += 32) {
      tile_block<true>({weights, keys, 32, 16 * keys, 0}, packed_v + d * keys, 0, most, sums, none,
                       0, 0);
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

inline i64 largest(const float* v, i64 n) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    most = _mm512_mask_max_ps(most, mask, load16(v + i, mask), most);
  }
  __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (i64 i = 0; i < n; i += 16) {
    __mmask16 mask = tail_mask(n - i);
    __mmask16 equal = _mm512_mask_cmp_ps_mask(mask, load16(v + i, mask), peak, _CMP_EQ_OQ);
    if (equal) return i + __builtin_ctz(equal);
  }
  return 0;
}

// ---- whole layers -------------------------------------------------------------------------------

struct Layer {  // addresses; null where a model has no such weight
  const float* input_norm;
  const void* qkv;
  const float* qkv_bias;
  const float* q_norm;
  const float* k_norm;
  const void* output;
  const float* output_bias;
  const float* mlp_norm;
  const void* gate_up;  // gated, see nexusbench_linear
  const float* gate_up_bias;
  const void* down;
  const float* down_bias;
  void* k_cache;
  void* v_cache;
};

enum Stage : i64 { PROJECT = 1, ATTEND = 2, FINISH = 4 };

struct Step {
  Heads heads;
  i64 size, hidden, inner, stages, M;
  double eps, scale;
  float* x;                // [M, hidden], the residual stream, updated in place
  const i64* positions;    // [M]
  const i64* slots;        // [M]
  const float* cos_sin;    // [positions, dim]
  const int32_t* tables;   // [M, max_blocks]
  i64 max_blocks;
  const int32_t* lengths;  // [M]
  void* qkv;               // [M, (query + 2 kv) dim]
  void* attended;          // [M, query dim]
  void* normed;            // [M, hidden]
  void* activated;         // [M, inner]
};

// Many rows pass through a layer in blocks whose activations stay in L2.
constexpr i64 LAYER_ROWS = 256;
constexpr i64 PHASES_PER_BLOCK = 12;

inline i64 layer_blocks(i64 M) { return std::max<i64>(1, (M + LAYER_ROWS / 2) / LAYER_ROWS); }
inline i64 block_begin(i64 M, i64 block) {  // equal blocks, but in whole tiles of 32 rows
  const i64 tiles = (M + 31) / 32;
  return std::min(M, tiles * block / layer_blocks(M) * 32);
}

// One layer by one thread of a team.
template <class T> void layer(Walk& walk, const Layer& w, const Step& s, void* staged) {
  const i64 M = s.M, H = s.hidden, I = s.inner, row = s.heads.row();
  const i64 Q = s.heads.query * s.heads.dim;
  float* x = s.x;
  T *qkv = static_cast<T*>(s.qkv), *normed = static_cast<T*>(s.normed);
  T *attended = static_cast<T*>(s.attended), *activated = static_cast<T*>(s.activated);
  T *k_cache = static_cast<T*>(w.k_cache), *v_cache = static_cast<T*>(w.v_cache);
  const float eps = float(s.eps);
  const i64 blocks = layer_blocks(M);
  if (s.stages & PROJECT)
    for (i64 b = 0; b < blocks; b++) {
      const i64 m = block_begin(M, b), rows = block_begin(M, b + 1) - m;
      rms_norm(walk, x + m * H, w.input_norm, eps, rows, H, normed);
      linear(walk, {w.qkv, w.qkv_bias, nullptr, qkv + m * row, row, H, row, 0, 0}, normed, H, rows,
             staged);
      rope<T>(walk, s.heads, qkv + m * row, rows, s.positions + m, s.slots + m, s.cos_sin,
              w.q_norm, w.k_norm, eps, k_cache, v_cache);
    }
  if (s.stages & ATTEND)
    decode_attention<T>(walk, s.heads, qkv, row, k_cache, v_cache,
                        {s.tables, s.max_blocks, s.lengths}, M, float(s.scale), attended);
  if (s.stages & FINISH)
    for (i64 b = 0; b < blocks; b++) {
      const i64 m = block_begin(M, b), rows = block_begin(M, b + 1) - m;
      float* at = x + m * H;
      linear(walk, {w.output, w.output_bias, at, at, H, Q, H, 0, 1}, attended + m * Q, Q, rows,
             staged);
      rms_norm(walk, at, w.mlp_norm, eps, rows, H, normed);
      const i64 paired = 2 * round_up(I, 16);
      linear(walk, {w.gate_up, w.gate_up_bias, nullptr, activated, paired, H, I, I, 0}, normed, H,
             rows, staged);
      linear(walk, {w.down, w.down_bias, at, at, H, I, H, 0, 1}, activated, I, rows, staged);
    }
}

// Runs f on a team, each thread with its own walk through `phases` phases.
template <class F> void on_team(i64 threads, i64 phases, F f) {
  Phases all(phase_buffer, phases, threads);
#pragma omp parallel num_threads(int(threads))
  {
    Walk walk(all);
    f(walk);
  }
}

// Calls f with a null pointer of the element type, to choose a template by size.
template <class F> void by_size(i64 size, F f) {
  if (size == 2) f(static_cast<bf16*>(nullptr));
  else f(static_cast<float*>(nullptr));
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// 2 where AMX is used, 1 for AVX-512 with bf16 products, 0 for plain AVX-512; -1: refused.
EXPORT i64 nexusbench_level() {
#ifdef __AMX_BF16__
  const int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 2 : -1;
#elif defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// w: [N, K] of rows ldw apart -> packed (see Layouts); `size` is 2 for bf16, 4 for fp32.
EXPORT void nexusbench_pack(i64 size, const void* w, i64 ldw, i64 N, i64 K, void* packed,
                            i64 threads) {
  const i64 groups = round_up(N, GROUP) / GROUP, K_padded = size == 2 ? round_up(K, 32) : K;
#pragma omp parallel for num_threads(int(threads))
  for (i64 g = 0; g < groups; g++) {
    for (i64 k = 0; k < K_padded; k++)
      for (i64 n = 0; n < GROUP; n++) {
        i64 from = (g * GROUP + n) * ldw + k;
        bool inside = g * GROUP + n < N && k < K;
        if (size == 2) {
          i64 to = ((((g * (K_padded / 32) + k / 32) * 2 + n / 16) * 16 + k % 32 / 2) * 16 + n % 16)
                   * 2 + k % 2;
          static_cast<bf16*>(packed)[to] = inside ? static_cast<const bf16*>(w)[from] : bf16(0);
        } else {
          i64 to = (g * K + k) * GROUP + n;
          static_cast<float*>(packed)[to] = inside ? static_cast<const float*>(w)[from] : 0.0f;
        }
      }
  }
}

// y[M, N] = x W^T (+ bias) (+ residual); with `gated` columns, y[M, gated] = silu(gate) * up, where
// `packed` holds gate and up rows in alternating runs of 16 (N = 2 * gated, rounded up to 32).
EXPORT void nexusbench_linear(i64 size, const void* x, i64 ldx, i64 M, const void* packed, i64 N,
                              i64 K, const float* bias, const void* residual, void* y, i64 ldy,
                              i64 gated, i64 y_is_float, i64 threads) {
  Product product{packed, bias, residual, y, N, K, ldy, gated, y_is_float};
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    void* staged = staged_buffer.get<char>(staged_bytes<T>(M, K));
    on_team(threads, 2, [&](Walk& walk) {
      linear(walk, product, static_cast<const T*>(x), ldx, M, staged);
    });
  });
}

EXPORT void nexusbench_rms_norm(i64 x_size, i64 y_size, const void* x, const float* weight,
                                double eps, i64 M, i64 N, void* y, i64 threads) {
  by_size(x_size, [&](auto* from) {
    by_size(y_size, [&](auto* to) {
      using X = std::remove_pointer_t<decltype(from)>;
      using Y = std::remove_pointer_t<decltype(to)>;
      on_team(threads, 1, [&](Walk& walk) {
        rms_norm(walk, static_cast<const X*>(x), weight, float(eps), M, N, static_cast<Y*>(y));
      });
    });
  });
}

// x: [M, 2 N] = gate, up -> y: [M, N] = silu(gate) * up.
EXPORT void nexusbench_silu_mul(i64 size, const void* x, i64 M, i64 N, void* y, i64 threads) {
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    on_team(threads, 1, [&](Walk& walk) {
      walk.phase(M, [&](i64 begin, i64 end) {
        for (i64 m = begin; m < end; m++) {
          const T* in = static_cast<const T*>(x) + m * 2 * N;
          T* out = static_cast<T*>(y) + m * N;
          for (i64 i = 0; i < N; i += 16) {
            __mmask16 mask = tail_mask(N - i);
            __m512 gate = load16(in + i, mask), up = load16(in + N + i, mask);
            store16(out + i, _mm512_mul_ps(silu16(gate), up), mask);
          }
        }
      });
    });
  });
}

EXPORT void nexusbench_rope(i64 size, const Heads* heads, void* qkv, i64 M, const i64* positions,
                            const i64* slots, const float* cos_sin, const float* q_norm,
                            const float* k_norm, double eps, void* k_cache, void* v_cache,
                            i64 threads) {
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    on_team(threads, 1, [&](Walk& walk) {
      rope(walk, *heads, static_cast<T*>(qkv), M, positions, slots, cos_sin, q_norm, k_norm,
           float(eps), static_cast<T*>(k_cache), static_cast<T*>(v_cache));
    });
  });
}

EXPORT void nexusbench_decode_attention(i64 size, const Heads* heads, const void* q, i64 ldq,
                                        const void* k_cache, const void* v_cache,
                                        const int32_t* tables, i64 max_blocks,
                                        const int32_t* lengths, i64 M, double scale, void* out,
                                        i64 threads) {
  Paged paged{tables, max_blocks, lengths};
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    on_team(threads, 1, [&](Walk& walk) {
      decode_attention(walk, *heads, static_cast<const T*>(q), ldq, static_cast<const T*>(k_cache),
                       static_cast<const T*>(v_cache), paged, M, float(scale),
                       static_cast<T*>(out));
    });
  });
}

// bf16 with AMX only. `units` pairs of (sequence, first token) cover all tokens of the chunks; out is
// [rows, query dim].
EXPORT void nexusbench_chunk_attention(const Heads* heads, const void* q, i64 ldq,
                                       const void* k_cache, const void* v_cache, const i64* starts,
                                       const int32_t* tables, i64 max_blocks,
                                       const int32_t* lengths, const i64* sequence,
                                       const i64* first, i64 tokens, i64 units, double scale,
                                       void* out, i64 threads) {
#ifdef __AMX_BF16__
  Chunks chunks{starts, tables, max_blocks, lengths, sequence, first, tokens};
  on_team(threads, 1, [&](Walk& walk) {
    chunk_attention(walk, *heads, static_cast<const bf16*>(q), ldq,
                    static_cast<const bf16*>(k_cache), static_cast<const bf16*>(v_cache), chunks,
                    units, float(scale), static_cast<bf16*>(out));
  });
#endif
}

// Index of the first largest value of each fp32 row; NaN never wins.
EXPORT void nexusbench_argmax(const float* x, i64 M, i64 N, i64* out, i64 threads) {
  on_team(threads, 1, [&](Walk& walk) {
    walk.phase(M, [&](i64 begin, i64 end) {
      for (i64 m = begin; m < end; m++) out[m] = largest(x + m * N, N);
    });
  });
}

// `count` layers on the same tokens; stages may be asked for one by one.
EXPORT void nexusbench_layers(const Layer* layers, i64 count, const Step* step, i64 threads) {
  by_size(step->size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    i64 widest = std::max({step->hidden, step->inner, step->heads.query * step->heads.dim});
    void* staged = staged_buffer.get<char>(staged_bytes<T>(step->M, widest));
    on_team(threads, count * layer_blocks(step->M) * PHASES_PER_BLOCK, [&](Walk& walk) {
      for (i64 i = 0; i < count; i++) layer<T>(walk, layers[i], *step, staged);
    });
  });
}

// Reads `bytes` (a multiple of 256) from memory and nothing else; the sum keeps it honest.
EXPORT i64 nexusbench_read(const void* data, i64 bytes, i64 threads) {
  std::atomic<i64> total{0};
  on_team(threads, 1, [&](Walk& walk) {
    walk.phase(bytes / 256, [&](i64 begin, i64 end) {
      const __m512i *at = static_cast<const __m512i*>(data) + begin * 4, *last = at + (end - begin) * 4;
      __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
      for (; at < last; at += 4) {
        a = _mm512_add_epi64(a, _mm512_loadu_si512(at));
        b = _mm512_add_epi64(b, _mm512_loadu_si512(at + 1));
        c = _mm512_add_epi64(c, _mm512_loadu_si512(at + 2));
        d = _mm512_add_epi64(d, _mm512_loadu_si512(at + 3));
      }
      a = _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d));
      total += _mm512_reduce_add_epi64(a);
    });
  });
  return total;
}
