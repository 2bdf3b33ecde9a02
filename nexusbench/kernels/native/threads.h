// How a call's work is shared among the threads of a team.

#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>

#include "numbers.h"

namespace {

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

// Runs f on a team, each thread with its own walk through `phases` phases.
template <class F> void on_team(i64 threads, i64 phases, F f) {
  Phases all(phase_buffer, phases, threads);
#pragma omp parallel num_threads(int(threads))
  {
    Walk walk(all);
    f(walk);
  }
}

}  // namespace
