#include "block.h"

#include <elf.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>

#include "queue.h"

namespace on_cpu {

Thread* running = nullptr;
Block block;

namespace {

constexpr size_t MAX_THREADS = 1024, MAX_SHARED = 227 << 10, GUARD = 64 << 10, ROOM = 256 << 10;
constexpr unsigned MAX_CLUSTER = 16;

const Kernel* kernel = nullptr;
std::vector<std::unique_ptr<Thread>> threads;  // made when a block first needs them, then kept
size_t n_threads = 0;                          // of a block; those of the cluster's blocks follow one another
size_t n_at_barrier[MAX_CLUSTER];              // by block
uint3 index_of_block[MAX_CLUSTER];
unsigned cluster_phase = 0;  // of the cluster's barrier
size_t n_arrived = 0;
uint8_t* shared_end[MAX_CLUSTER];  // of the blocks' dynamic shared memory: nobody may touch what follows

size_t n_running[MAX_CLUSTER];  // threads of the blocks that have not ended

struct Mail {
    unsigned rank;  // of the block it is for
    std::function<void()> arrive;
};
std::vector<Mail> under_way;

// The threads of the running block.
std::unique_ptr<Thread>* own_threads() { return threads.data() + running->rank * n_threads; }
std::string fault_text;

std::string format_text(const char* format, va_list args) {
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, args);
    return text;
}

std::string text_of(const Thread& thread) {
    std::string text = "thread (" + std::to_string(thread.index.x) + ", " + std::to_string(thread.index.y) + ", " +
                       std::to_string(thread.index.z) + ") ";
    if (thread.state == Thread::State::ended) return text + "has ended";
    const char* file = std::strrchr(thread.site.file, '/');
    return text + "waits in " + thread.site.what + " at " + (file ? file + 1 : thread.site.file) + ":" +
           std::to_string(thread.site.line);
}

std::string place() {
    std::string text = "kernel " + kernel->name + ", block (" + std::to_string(block.index.x) + ", " +
                       std::to_string(block.index.y) + ", " + std::to_string(block.index.z) + ")";
    if (running) {
        text += ", thread (" + std::to_string(running->index.x) + ", " + std::to_string(running->index.y) + ", " +
                std::to_string(running->index.z) + ")";
    }
    return text;
}

void body_of_thread(void*) {
    kernel->body();
    running->state = Thread::State::ended;
}

// By the seed in the environment; null without one.
std::mt19937* randomness() {
    static const char* seed = std::getenv("FASA_ON_CPU_SEED");
    static std::mt19937 rng(seed ? static_cast<uint32_t>(std::strtoul(seed, nullptr, 10)) : 0);
    return seed ? &rng : nullptr;
}

// Orders come from the seed, so that a missing barrier shows up; without one they ascend.
void permute(std::vector<size_t>& order) {
    std::iota(order.begin(), order.end(), size_t{0});
    if (std::mt19937* rng = randomness()) std::shuffle(order.begin(), order.end(), *rng);
}

// Nobody can go on: say which different places the threads wait at.
[[noreturn]] void report_deadlock() {
    std::string text = place() + ": deadlock";
    std::vector<std::string> seen;
    for (size_t i = 0; i < n_threads * kernel->cluster; ++i) {
        const Thread& t = *threads[i];
        const std::string key = t.state == Thread::State::ended
                                    ? "ended"
                                    : std::string(t.site.what) + t.site.file + std::to_string(t.site.line);
        if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
        seen.push_back(key);
        text += std::string(seen.size() == 1 ? ": " : "; ") + text_of(t);
    }
    throw Fault(text);
}

void start_threads() {
    const dim3 dim = block.dim;
    n_threads = size_t{dim.x} * dim.y * dim.z;
    const size_t n_all = n_threads * kernel->cluster;
    std::fill_n(n_at_barrier, kernel->cluster, size_t{0});
    cluster_phase = 0;
    n_arrived = 0;
    while (threads.size() < n_all) threads.push_back(std::make_unique<Thread>());
    for (size_t i = 0; i < n_all; ++i) {
        Thread& t = *threads[i];
        const unsigned number = static_cast<unsigned>(i % n_threads);
        t.index = {number % dim.x, number / dim.x % dim.y, number / dim.x / dim.y};
        t.number = static_cast<int>(number);
        t.rank = static_cast<unsigned>(i / n_threads);
        t.phase = ~1u;
        t.state = Thread::State::ready;
        t.copies.assign(1, {});
        t.fiber.start(body_of_thread, nullptr);
    }
}

uint8_t* shared_of(unsigned rank) { return shared_end[rank] - (kernel->shared_bytes + 127) / 128 * 128; }

void poison_shared(unsigned rank) {
    std::memset(shared_of(rank), 0xff, static_cast<size_t>(shared_end[rank] - shared_of(rank)));
}

// Some of the mail arrives, by the seed; without one all of it, in the order in which it was sent.
void hand_over_mail() {
    std::vector<Mail> mail = std::exchange(under_way, {});
    std::mt19937* rng = randomness();
    if (rng) std::shuffle(mail.begin(), mail.end(), *rng);
    for (Mail& m : mail) {
        if (n_running[m.rank] == 0) {
            throw Fault("kernel " + kernel->name + ": mail arrives at block " + std::to_string(m.rank) +
                        " of its cluster, which has ended");
        }
        if (rng && (*rng)() % 2) {
            under_way.push_back(std::move(m));
        } else {
            m.arrive();
        }
    }
}

void run_cluster() {
    start_threads();
    under_way.clear();
    std::fill_n(n_running, kernel->cluster, n_threads);
    for (unsigned rank = 0; rank < kernel->cluster; ++rank) poison_shared(rank);
    std::vector<size_t> order(n_threads * kernel->cluster);
    permute(order);
    for (size_t n_left = order.size(); n_left > 0 || !under_way.empty(); hand_over_mail()) {
        bool progress = false;
        for (const size_t i : order) {
            Thread& t = *threads[i];
            if (t.state != Thread::State::ready) continue;
            progress = true;
            running = &t;
            block.index = index_of_block[t.rank];
            t.fiber.resume();
            running = nullptr;
            if (!fault_text.empty()) throw Fault(std::exchange(fault_text, {}));
            if (t.state != Thread::State::ended) continue;
            --n_left;
            // A block that has ended has no shared memory any more that others could read.
            if (--n_running[t.rank] == 0) poison_shared(t.rank);
        }
        if (!progress && n_left > 0) report_deadlock();
    }
}

// Static shared memory: thread_local variables of the functions in fasa::cuda, found in the program's symbol table.
using Ranges = std::vector<std::pair<size_t, size_t>>;  // offset in the program's thread-local memory, bytes

Ranges find_static_shared() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const char* at = image.data();
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(at);
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(at + header->e_shoff);
    Ranges found;
    for (int s = 0; s < header->e_shnum; ++s) {
        if (sections[s].sh_type != SHT_SYMTAB) continue;
        const char* names = at + sections[sections[s].sh_link].sh_offset;
        const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(at + sections[s].sh_offset);
        for (size_t i = 0; i < sections[s].sh_size / sizeof(*symbols); ++i) {
            const bool is_local = std::strncmp(names + symbols[i].st_name, "_ZZN4fasa4cuda", 14) == 0;
            if (ELF64_ST_TYPE(symbols[i].st_info) == STT_TLS && is_local) {
                found.push_back({symbols[i].st_value, symbols[i].st_size});
            }
        }
    }
    return found;
}

uint8_t* program_thread_local_memory() {
    void* at = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* result) {
            *static_cast<void**>(result) = info->dlpi_tls_data;
            return 1;  // the program comes first
        },
        &at);
    return static_cast<uint8_t*>(at);
}

void poison_static_shared() {
    static const Ranges ranges = find_static_shared();
    uint8_t* base = program_thread_local_memory();
    if (!base) return;
    for (const auto& [offset, n_bytes] : ranges) std::memset(base + offset, 0xff, n_bytes);
}

// A thread that touches memory out of bounds becomes a fault of its kernel.
[[noreturn]] void bad_access() {
    fault("touches memory that is not there, or a vector at an address that is not aligned");
}

void on_signal(int number, siginfo_t* info, void* context) {
#if defined(__x86_64__)
    if (running) {
        auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
        registers[REG_RIP] = reinterpret_cast<greg_t>(&bad_access);
        registers[REG_RSP] = (registers[REG_RSP] - 256) / 16 * 16 - 8;  // below the red zone, aligned as after a call
        return;
    }
#endif
    (void)context;
    if (!running && is_device_memory(info->si_addr, 1)) std::fputs("the host touches device memory\n", stderr);
    signal(number, SIG_DFL);
}

void prepare() {
    if (shared_end[0]) return;
    for (uint8_t*& end : shared_end) {
        void* p = mmap(nullptr, 2 * GUARD + ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(static_cast<uint8_t*>(p) + GUARD, ROOM, PROT_READ | PROT_WRITE) != 0) {
            throw Fault("no memory for the emulation");
        }
        end = static_cast<uint8_t*>(p) + GUARD + ROOM;
    }
    static char signal_stack[64 << 10];
    stack_t stack = {};
    stack.ss_size = sizeof(signal_stack);
    stack.ss_sp = signal_stack;
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGSEGV, SIGBUS}) sigaction(number, &action, nullptr);
}

}  // namespace

bool has_valid_shape(const Kernel& k) {
    const dim3 g = k.grid, b = k.block;
    const size_t n = size_t{b.x} * b.y * b.z;
    return n > 0 && n <= MAX_THREADS && b.z <= 64 && g.x > 0 && g.y > 0 && g.z > 0 && g.x <= 0x7fffffff &&
           g.y <= 65535 && g.z <= 65535 && k.shared_bytes <= MAX_SHARED && k.cluster >= 1 && k.cluster <= MAX_CLUSTER &&
           g.x % k.cluster == 0;
}

void run(const Kernel& k) {
    const char* faulty = std::getenv("FASA_ON_CPU_FAULT");
    if (faulty && k.name == faulty) throw Fault("kernel " + k.name + ": a fault was asked for");
    prepare();
    kernel = &k;
    running = nullptr;
    block.dim = k.block;
    block.grid_dim = k.grid;
    block.waited_for_previous = false;
    poison_static_shared();
    std::vector<size_t> order(size_t{k.grid.x} * k.grid.y * k.grid.z / k.cluster);
    permute(order);
    for (const size_t i : order) {
        for (unsigned rank = 0; rank < k.cluster; ++rank) {
            const unsigned number = static_cast<unsigned>(i) * k.cluster + rank;
            index_of_block[rank] = {number % k.grid.x, number / k.grid.x % k.grid.y, number / k.grid.x / k.grid.y};
        }
        block.index = index_of_block[0];
        run_cluster();
    }
    // Else it could end before the one before it, and the one after it would then start too early.
    if (k.overlap && !block.waited_for_previous) throw Fault("kernel " + k.name + " overlaps, but never waits");
}

void fault(const char* format, ...) {
    va_list args;
    va_start(args, format);
    fault_text = place() + ": " + format_text(format, args);
    va_end(args);
    if (!running) throw Fault(std::exchange(fault_text, {}));
    for (;;) Fiber::pause();
}

int barrier(Site site, int vote) {
    Thread& me = *running;
    me.state = Thread::State::at_barrier;
    me.site = site;
    me.vote = vote;
    if (++n_at_barrier[me.rank] < n_threads) {
        Fiber::pause();
        return me.vote;
    }
    n_at_barrier[me.rank] = 0;
    int sum = 0;
    std::unique_ptr<Thread>* const all = own_threads();
    for (size_t i = 0; i < n_threads; ++i) {
        const Site& other = all[i]->site;
        if (other.line != site.line || std::strcmp(other.what, site.what) != 0) {
            fault("%s in line %d is not %s in line %d, where thread %zu waits", site.what, site.line, other.what,
                  other.line, i);
        }
        sum += all[i]->vote;
    }
    for (size_t i = 0; i < n_threads; ++i) {
        all[i]->vote = sum;
        all[i]->state = Thread::State::ready;
    }
    return sum;
}

void cluster_arrive(Site site) {
    Thread& me = *running;
    me.site = site;
    if (me.phase == cluster_phase) fault("%s in line %d: it arrives twice without waiting", site.what, site.line);
    me.phase = cluster_phase;
    if (++n_arrived < n_threads * kernel->cluster) return;
    n_arrived = 0;
    ++cluster_phase;
    for (size_t i = 0; i < n_threads * kernel->cluster; ++i) {
        if (threads[i]->state == Thread::State::at_cluster) threads[i]->state = Thread::State::ready;
    }
}

void cluster_wait(Site site) {
    Thread& me = *running;
    me.site = site;
    if (me.phase != cluster_phase && me.phase + 1 != cluster_phase) {
        fault("%s in line %d: it waits without having arrived", site.what, site.line);
    }
    if (me.phase != cluster_phase) return;
    me.state = Thread::State::at_cluster;
    Fiber::pause();
}

void meet(Site site, unsigned mask, void* slot, Exchange exchange) {
    Thread& me = *running;
    if (!(mask >> me.lane() & 1)) fault("%s in line %d: its own lane is not in the mask", site.what, site.line);
    me.state = Thread::State::at_meeting;
    me.site = site;
    me.mask = mask;
    me.slot = slot;
    me.exchange = exchange;
    const size_t first = static_cast<size_t>(me.number - me.lane());
    const size_t n_lanes = std::min<size_t>(WARP, n_threads - first);  // the last warp may be short
    Slots slots = {};
    bool all_here = true;
    for (size_t lane = 0; lane < n_lanes; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const Thread& t = *own_threads()[first + lane];
        if (t.state != Thread::State::at_meeting) {
            all_here = false;
        } else if (t.exchange != exchange || t.mask != mask || std::strcmp(t.site.what, site.what) != 0) {
            fault("%s in line %d with mask %08x, while thread %d waits in %s in line %d with mask %08x", site.what,
                  site.line, mask, t.number, t.site.what, t.site.line, t.mask);
        }
        slots[lane] = t.slot;
    }
    if (!all_here) return Fiber::pause();
    exchange(slots);
    for (size_t lane = 0; lane < n_lanes; ++lane) {
        if (slots[lane]) own_threads()[first + lane]->state = Thread::State::ready;
    }
}

void wait_until(const char* what, const std::function<bool()>& holds) {
    constexpr int many = 10000;  // turns of all threads
    for (int i = 0; !holds(); ++i) {
        if (i == many) fault("%s: what it waits for does not come", what);
        Fiber::pause();
    }
}

void send(unsigned rank, std::function<void()> arrive) {
    if (kernel->cluster < 2) fault("mail in a block that is launched without a cluster");
    under_way.push_back({rank, std::move(arrive)});
}

uint8_t* dynamic_shared() { return shared_of(running->rank); }

void* in_shared_of(const void* shared, unsigned rank) {
    const ptrdiff_t offset = static_cast<const uint8_t*>(shared) - dynamic_shared();
    if (offset < 0 || offset >= shared_end[running->rank] - dynamic_shared()) {
        fault("an address of another block must come from dynamic shared memory");
    }
    if (rank >= kernel->cluster) fault("block %u of a cluster of %u", rank, kernel->cluster);
    return shared_of(rank) + offset;
}

}  // namespace on_cpu
