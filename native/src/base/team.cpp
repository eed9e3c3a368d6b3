#include "base/team.h"

#include <unistd.h>

#include <exception>

#include "base/error.h"

#if FASA_X86
#include <immintrin.h>
#endif

namespace fasa {
namespace {

constexpr int n_spins = 1500;  // of about 40 ns each: longer than the gaps between the loops of a token
constexpr uint64_t loop_unit = uint64_t{1} << 32, left_mask = loop_unit - 1;

void relax() {
#if FASA_X86
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Waits until the value is not `old`.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < n_spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads), pid_(getpid()) {
    try {
        for (int thread = 1; thread < n_threads_; ++thread) threads_.emplace_back([this, thread] { work(thread); });
    } catch (const std::exception& error) {
        dismiss();
        fail(FASA_ERROR, "cannot start %d threads: %s; ask for fewer (n_threads)", n_threads_, error.what());
    }
}

Team::~Team() {
    if (getpid() == pid_) {
        dismiss();
    } else {  // never freed: a std::thread that cannot be joined must not be destroyed either
        [[maybe_unused]] const auto* lost = new std::vector<std::thread>(std::move(threads_));
    }
}

void Team::dismiss() {
    stop_ = true;
    loop_.fetch_add(1, std::memory_order_release);
    loop_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::run_tasks(int64_t n, Invoke invoke, void* body) {
    if (getpid() != pid_) {
        for (int64_t task = 0; task < n; ++task) invoke(body, task, 0);
        return;
    }
    invoke_ = invoke;
    body_ = body;
    n_tasks_ = n;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load(std::memory_order_relaxed) & ~left_mask) + loop_unit;
    ticket_.store(loop | static_cast<uint64_t>(n), std::memory_order_release);
    loop_.fetch_add(1, std::memory_order_release);
    loop_.notify_all();

    help(0);
    const auto all = static_cast<uint32_t>(n);
    for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != all;) wait_while(done_, done);
}

void Team::help(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while ((ticket & left_mask) != 0) {
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        const int64_t n = n_tasks_;  // cannot change before this task is done
        invoke_(body_, n - static_cast<int64_t>(ticket & left_mask), thread);
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(n)) done_.notify_one();
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Team::work(int thread) {
    uint32_t seen = 0;
    for (;;) {
        wait_while(loop_, seen);
        seen = loop_.load(std::memory_order_acquire);
        if (stop_) return;
        help(thread);
    }
}

}  // namespace fasa
