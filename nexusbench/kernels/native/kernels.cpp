// Decoder kernels for x86 CPUs with AVX-512 (and AMX where there is one), called through ctypes.
//
// Everything that a decoder layer does between two token ids, for bf16 and fp32: linear layers on
// packed weights (vectors.h; tiles.h and split.h with AMX), RMSNorm and rotary embedding with the
// write into the paged KV cache (rope.h), paged attention (attention.h, chunks.h), and here whole
// layers built from these, and the functions that Python calls.
//
// Numerics. All sums are accumulated in fp32; fp32 products by tiles are as close to float64 as
// fp32 multiply-adds (split.h). Every output element is one chain of additions
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

#include <sys/syscall.h>
#include <unistd.h>

#include "attention.h"
#include "chunks.h"
#include "linear.h"

namespace {

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
  const float* cos_sin;    // [num_positions, dim]
  i64 num_positions;
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

// Returns the first token whose position or slot does not exist, or -1; so do the next two with
// blocks.
EXPORT i64 nexusbench_rope(i64 size, const Heads* heads, void* qkv, i64 M, const i64* positions,
                           const i64* slots, const float* cos_sin, i64 num_positions,
                           const float* q_norm, const float* k_norm, double eps, void* k_cache,
                           void* v_cache, i64 threads) {
  const i64 unfit = first_unfit(*heads, slots, positions, num_positions, M);
  if (unfit != ALL_FIT) return unfit;
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    on_team(threads, 1, [&](Walk& walk) {
      rope(walk, *heads, static_cast<T*>(qkv), M, positions, slots, cos_sin, q_norm, k_norm,
           float(eps), static_cast<T*>(k_cache), static_cast<T*>(v_cache));
    });
  });
  return ALL_FIT;
}

EXPORT i64 nexusbench_decode_attention(i64 size, const Heads* heads, const void* q, i64 ldq,
                                       const void* k_cache, const void* v_cache,
                                       const int32_t* tables, i64 max_blocks,
                                       const int32_t* lengths, i64 M, double scale, void* out,
                                       i64 threads) {
  Paged paged{tables, max_blocks, lengths};
  const i64 unfit = first_unfit(*heads, paged, M);
  if (unfit != ALL_FIT) return unfit;
  by_size(size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    on_team(threads, 1, [&](Walk& walk) {
      decode_attention(walk, *heads, static_cast<const T*>(q), ldq, static_cast<const T*>(k_cache),
                       static_cast<const T*>(v_cache), paged, M, float(scale),
                       static_cast<T*>(out));
    });
  });
  return ALL_FIT;
}

// bf16 with AMX only. `units` pairs of (sequence, first token) cover all tokens of the chunks of
// `sequences`; out is [rows, query dim].
EXPORT i64 nexusbench_chunk_attention(const Heads* heads, const void* q, i64 ldq,
                                      const void* k_cache, const void* v_cache, i64 sequences,
                                      const i64* starts, const int32_t* tables, i64 max_blocks,
                                      const int32_t* lengths, const i64* sequence,
                                      const i64* first, i64 tokens, i64 units, double scale,
                                      void* out, i64 threads) {
  const i64 unfit = first_unfit(*heads, {tables, max_blocks, lengths}, sequences);
  if (unfit != ALL_FIT) return unfit;
#ifdef __AMX_BF16__
  Chunks chunks{starts, tables, max_blocks, lengths, sequence, first, tokens};
  on_team(threads, 1, [&](Walk& walk) {
    chunk_attention(walk, *heads, static_cast<const bf16*>(q), ldq,
                    static_cast<const bf16*>(k_cache), static_cast<const bf16*>(v_cache), chunks,
                    units, float(scale), static_cast<bf16*>(out));
  });
#endif
  return ALL_FIT;
}

// Index of the first largest value of each fp32 row; NaN never wins.
EXPORT void nexusbench_argmax(const float* x, i64 M, i64 N, i64* out, i64 threads) {
  on_team(threads, 1, [&](Walk& walk) {
    walk.phase(M, [&](i64 begin, i64 end) {
      for (i64 m = begin; m < end; m++) out[m] = largest(x + m * N, N);
    });
  });
}

// `count` layers on the same tokens; stages may be asked for one by one. Returns the first token
// whose position, slot or blocks do not exist, having computed nothing, or -1.
EXPORT i64 nexusbench_layers(const Layer* layers, i64 count, const Step* step, i64 threads) {
  const Step& s = *step;
  i64 unfit = ALL_FIT;
  if (s.stages & PROJECT)
    unfit = first_unfit(s.heads, s.slots, s.positions, s.num_positions, s.M);
  if (unfit == ALL_FIT && (s.stages & ATTEND))
    unfit = first_unfit(s.heads, {s.tables, s.max_blocks, s.lengths}, s.M);
  if (unfit != ALL_FIT) return unfit;
  by_size(step->size, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    i64 widest = std::max({step->hidden, step->inner, step->heads.query * step->heads.dim});
    void* staged = staged_buffer.get<char>(staged_bytes<T>(step->M, widest));
    on_team(threads, count * layer_blocks(step->M) * PHASES_PER_BLOCK, [&](Walk& walk) {
      for (i64 i = 0; i < count; i++) layer<T>(walk, layers[i], s, staged);
    });
  });
  return ALL_FIT;
}

// Reads `bytes` (a multiple of 256) from memory and nothing else; the sum keeps it honest.
EXPORT i64 nexusbench_read(const void* data, i64 bytes, i64 threads) {
  std::atomic<i64> total{0};
  on_team(threads, 1, [&](Walk& walk) {
    walk.phase(bytes / 256, [&](i64 begin, i64 end) {
      const __m512i* at = static_cast<const __m512i*>(data) + begin * 4;
      const __m512i* last = at + (end - begin) * 4;
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
