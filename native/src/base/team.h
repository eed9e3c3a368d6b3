// Threads that share one loop at a time. OpenMP's barriers spin for milliseconds: as soon as another program wants a
// core, the spinning thread keeps the one it waits for from running, and decoding, which has a hundred loops a token,
// falls a hundredfold. Here waiting spins for a few microseconds and then sleeps, and a loop ends when its tasks are
// done, whether or not every thread woke up in time to help.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace fasa {

class Team {
   public:
    // n_threads counts the calling one; n_threads - 1 are started and sleep until there is work. They do not survive a
    // fork: in the child, the caller does all tasks.
    explicit Team(int n_threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int n_threads() const { return n_threads_; }

    // f(task, thread) for every task in [0, n), handed out one by one, thread in [0, n_threads). Returns when all are
    // done. f must not throw. Called by one thread at a time.
    template <class F>
    void run(int64_t n, F&& f) {
        if (n_threads_ == 1 || n <= 1) {
            for (int64_t task = 0; task < n; ++task) f(task, 0);
            return;
        }
        run_tasks(
            n,
            [](void* body, int64_t task, int thread) {
                (*static_cast<std::remove_reference_t<F>*>(body))(task, thread);
            },
            const_cast<void*>(static_cast<const void*>(&f)));
    }

   private:
    using Invoke = void (*)(void* body, int64_t task, int thread);

    void run_tasks(int64_t n, Invoke invoke, void* body);
    void help(int thread);  // takes tasks of the loop in progress until none is left
    void work(int thread);  // a started thread's life
    void dismiss();

    int n_threads_;
    int pid_;  // of the process that has the threads
    Invoke invoke_ = nullptr;
    void* body_ = nullptr;
    int64_t n_tasks_ = 0;

    // Loop number in the upper half, tasks not yet taken in the lower: a thread that wakes up late cannot take a task
    // of a loop that it did not mean, and what a task needs cannot change before that task is done.
    alignas(64) std::atomic<uint64_t> ticket_ = 0;
    alignas(64) std::atomic<uint32_t> done_ = 0;
    alignas(64) std::atomic<uint32_t> loop_ = 0;  // what sleeping threads wait on
    std::atomic<bool> stop_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace fasa
