// y = x W^T and so on, by the best that the CPU has.

#pragma once

#include "split.h"
#include "tiles.h"
#include "vectors.h"

namespace {

// y = x W^T and so on: two phases at most. `staged`: room for staged_bytes, shared by the team.
void linear(Walk& walk, const Product& p, const float* x, i64 ldx, i64 M, void* staged) {
#ifdef __AMX_BF16__
  split_linear(walk, p, x, ldx, M, staged);
#else
  vector_linear<float>(walk, p, x, ldx, M, staged);
#endif
}

void linear(Walk& walk, const Product& p, const bf16* x, i64 ldx, i64 M, void* staged) {
#ifdef __AMX_BF16__
  tile_linear(walk, p, x, ldx, M, staged);
#else
  vector_linear<bf16>(walk, p, x, ldx, M, staged);
#endif
}

}  // namespace
