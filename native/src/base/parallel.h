// Threads: one parallel loop over independent tasks.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fasa {

// f(task, thread) for every task in [0, n), on up to n_threads threads, in chunks handed out as threads become free.
// f must not throw.
template <class F>
void parallel_for(int n_threads, int64_t n, F&& f) {
    if (n_threads <= 1 || n <= 1) {
        for (int64_t task = 0; task < n; ++task) f(task, 0);
        return;
    }
#ifdef _OPENMP
    const int team = static_cast<int>(n < n_threads ? n : n_threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (int64_t task = 0; task < n; ++task) f(task, omp_get_thread_num());
#else
    for (int64_t task = 0; task < n; ++task) f(task, 0);
#endif
}

}  // namespace fasa
