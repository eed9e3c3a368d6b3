// A block of threads on one core: every thread is a fiber, and runs until it has to wait for others.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "vector_types.h"

namespace on_cpu {

inline constexpr int WARP = 32;

// What a kernel did wrong; the text names the kernel, the block and the thread.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Kernel {
    std::string name;
    dim3 grid, block;
    size_t shared_bytes = 0;
    bool overlap = false;
    unsigned cluster = 1;        // blocks, neighbours in x
    std::function<void()> body;  // of one thread
    bool takes_host_address = false;
};

// Whether any GPU has such a grid, such blocks and so much shared memory.
bool has_valid_shape(const Kernel& kernel);

// Runs all clusters of blocks, one after the other. Throws Fault.
void run(const Kernel& kernel);

// Where in the source a thread waits, and for what.
struct Site {
    const char* what = nullptr;
    const char* file = nullptr;
    int line = 0;
};

// What the lanes of a warp brought to a meeting: null where a lane takes no part.
using Slots = void* [WARP];
using Exchange = void (*)(Slots& slots);

struct AsyncCopy {
    void* to;
    const void* from;  // nullptr: zeros
    size_t n_bytes;
};

struct Thread {
    enum class State { ready, at_barrier, at_meeting, at_cluster, ended };

    Fiber fiber;
    uint3 index = {};
    int number = 0;      // in the block
    unsigned rank = 0;   // of the block in its cluster
    unsigned phase = 0;  // of the cluster's barrier, at which it arrived last
    State state = State::ready;
    Site site;
    int vote = 0;  // before a barrier its own, after it the sum
    unsigned mask = 0;
    void* slot = nullptr;
    Exchange exchange = nullptr;
    // Asynchronous copies that were not waited for: groups, the last one still open.
    std::vector<std::vector<AsyncCopy>> copies;

    int lane() const { return number % WARP; }
};

struct Block {
    uint3 index = {};
    dim3 dim, grid_dim;
    bool waited_for_previous = false;
};

extern Thread* running;
extern Block block;

// Ends the kernel.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits for all threads of the block; the sum of their votes.
int barrier(Site site, int vote);

// Waits for the lanes of the mask. The last one calls exchange on what all have brought, which may change it.
void meet(Site site, unsigned mask, void* slot, Exchange exchange);

// Arrives at the barrier of the cluster, and waits for what all threads of its blocks arrived at.
void cluster_arrive(Site site);
void cluster_wait(Site site);

// Lets other threads run until it holds; a fault if it never does.
void wait_until(const char* what, const std::function<bool()>& holds);

// Something that comes to another block of the cluster later, at any time and in any order; by then the block must not
// have ended.
void send(unsigned rank, std::function<void()> arrive);

uint8_t* dynamic_shared();
// The same place in the dynamic shared memory of another block of the cluster. Static shared memory is one for all.
void* in_shared_of(const void* shared, unsigned rank);

}  // namespace on_cpu
