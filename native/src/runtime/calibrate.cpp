#include "runtime/calibrate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>

#include "backend/cpu/rank_kernels.h"
#include "base/error.h"
#include "base/team.h"

namespace fasa {
namespace {

constexpr int32_t read_rows = 8192;  // keys copied from the device at once
constexpr int32_t turn_rows = 256;   // and of them, converted at once
constexpr int64_t vector_floats = 16;
constexpr float largest_q = 1e30f;  // its products with half-precision keys, summed, stay finite

int64_t padded(int64_t n) { return (n + vector_floats - 1) / vector_floats * vector_floats; }

// A recorded step: which one, and its number of positions.
struct Query {
    int32_t step, n_pos;
    const float* keys;  // of its sequence: [head_dim][stride]
    int64_t stride;
};

// A ranking of the positions of every query: raw query vectors and the attention they are judged by.
struct Judged {
    std::vector<float> q;             // [n_query][head_dim]
    std::vector<float*> probability;  // [n_query], each [n_pos]
    int64_t every = 1;                // only every so many of the queries are used to choose a set
};

class Calibrator {
   public:
    Calibrator(const Calibration& out, Context& context, const CalibrateConfig& config,
               const Context::Progress& progress)
        : out_(out),
          context_(context),
          config_(config),
          progress_(progress),
          h_(context.model().h),
          layout_(chunk_layout(h_)),
          n_chunk_(layout_.n_chunk()),
          group_(h_.n_head / h_.n_head_kv),
          kernels_(cpu::rank_kernels(cpu_info().isa)),
          team_(context.model().device->n_threads()) {
        for (int32_t i = 0; i < n_chunk_; ++i) dims_.push_back(layout_.dims(i));
        head_.every = group_;  // so that a group's heads cost as much together as their KV head
        find_queries();
        take_memory();
    }

    int32_t run() {
        const int32_t n_sets = h_.n_layer * h_.n_head_kv;
        for (int32_t set = 0; set < n_sets; ++set) {
            done_ = static_cast<float>(set) / static_cast<float>(n_sets);
            share_ = 1.0f / static_cast<float>(n_sets);
            calibrate_group(set / h_.n_head_kv, set % h_.n_head_kv);
        }
        done_ = 1;
        tick(0);
        return static_cast<int32_t>(queries_.size());
    }

   private:
    // Steps with more than K and more than n_fac positions: all others agree, or hold everything, whatever is chosen.
    void find_queries() {
        const Tap* tap = context_.tap();
        const int32_t shortest = std::max(config_.k, config_.n_fac) + 1;
        for (int32_t step = 0; tap && step < tap->n_steps(); ++step) {
            const Tap::Record& record = tap->at(step, 0);
            if (config_.seq >= 0 && record.seq != config_.seq) continue;
            const int32_t length = static_cast<int32_t>(context_.tokens(record.seq).size());
            if (record.n_pos > length) {
                fail(FASA_ERROR_ARGUMENT,
                     "recorded step %d had %d positions, but sequence %d now holds %d: calibrate before truncating it",
                     step, record.n_pos, record.seq, length);
            }
            if (record.n_pos < shortest) continue;
            queries_.push_back({step, record.n_pos, nullptr, 0});
        }
        if (queries_.empty()) {
            fail(FASA_ERROR_ARGUMENT,
                 "none of the %d recorded decode steps has %d cached positions or more: calibrate with a longer text, "
                 "or a smaller k",
                 tap ? tap->n_steps() : 0, shortest);
        }
        const size_t n = queries_.size(), most = static_cast<size_t>(config_.max_steps);
        if (most > 0 && n > most) {
            for (size_t i = 0; i < most; ++i) queries_[i] = queries_[i * n / most];
            queries_.resize(most);
        }
        for (const Query& query : queries_) {
            int32_t& longest = longest_[tap->at(query.step, 0).seq];
            longest = std::max(longest, query.n_pos);
        }
    }

    // One buffer, laid out twice: measured, then handed out.
    void take_memory() {
        for (const bool real : {false, true}) {
            Arena arena(real ? memory_.data() : nullptr);
            int64_t most = 0;
            for (const auto& [seq, n] : longest_) {
                keys_[seq] = arena.take<float>(static_cast<size_t>(h_.head_dim * padded(n)));
                most = std::max<int64_t>(most, padded(n));
            }
            const auto rows = [&](std::vector<float*>& to) {
                to.clear();
                for (const Query& query : queries_) to.push_back(arena.take<float>(static_cast<size_t>(query.n_pos)));
            };
            rows(base_);
            rows(head_.probability);
            rows(whole_.probability);
            threads_.clear();
            for (int i = 0; i < team_.n_threads(); ++i) {
                const size_t n = static_cast<size_t>(most);
                threads_.push_back({arena.take<float>(n), arena.take<float>(n), arena.take<cpu::Candidate>(n),
                                    arena.take<float>(static_cast<size_t>(turn_rows) * h_.head_dim)});
            }
            if (!real) reserve(arena.used());
        }
        for (Query& query : queries_) {
            const int32_t seq = context_.tap()->at(query.step, 0).seq;
            query.keys = keys_[seq];
            query.stride = padded(longest_[seq]);
        }
    }

    void reserve(size_t n_bytes) {
        if (n_bytes > memory_available()) {
            fail(FASA_ERROR_MEMORY,
                 "out of memory: calibrating %zu steps needs %.0f MiB, %.0f are available: take fewer steps or samples",
                 queries_.size(), static_cast<double>(n_bytes) / 0x1p20,
                 static_cast<double>(memory_available()) / 0x1p20);
        }
        memory_ = Buffer(n_bytes, "calibration");
    }

    void tick(float part) {
        if (!progress_(done_ + part * share_)) fail(FASA_ERROR_CANCELLED, "the calibration was cancelled");
    }

    void calibrate_group(int32_t layer, int32_t head_kv) {
        read_keys(layer, head_kv);
        const int64_t n_query = static_cast<int64_t>(queries_.size());
        const size_t q_size = static_cast<size_t>(n_query * h_.head_dim);
        whole_.q.assign(q_size, 0.0f);
        for (size_t i = 0; i < queries_.size(); ++i) std::fill_n(whole_.probability[i], queries_[i].n_pos, 0.0f);
        std::vector<double> ca_group(static_cast<size_t>(n_chunk_));
        const bool per_head = out_.order_head != nullptr;
        const float n_parts = static_cast<float>(group_ * (per_head ? 2 : 1) + 1);
        float part = 0;
        for (int32_t head = head_kv * group_; head < (head_kv + 1) * group_; ++head) {
            const int64_t row = int64_t{layer} * h_.n_head + head;
            read_queries(layer, head);
            const std::vector<double> ca = agreement();
            for (int32_t i = 0; i < n_chunk_; ++i) {
                ca_group[i] += ca[i] / group_;
                if (out_.ca) out_.ca[row * n_chunk_ + i] = static_cast<float>(ca[i]);
            }
            tick(++part / n_parts);
            if (per_head) write_order(head_, ca, out_.order_head + row * n_chunk_, part++ / n_parts, n_parts);
        }
        const int64_t row = int64_t{layer} * h_.n_head_kv + head_kv;
        if (out_.order) write_order(whole_, ca_group, out_.order + row * n_chunk_, part / n_parts, n_parts);
    }

    // Keys of a KV head, one row a dim, so that a chunk's scores are sums of whole rows.
    void read_keys(int32_t layer, int32_t head_kv) {
        bool finite = true;
        for (const auto& [seq, n] : longest_) {
            for (int32_t first = 0; first < n; first += read_rows) {
                const int32_t count = std::min(read_rows, n - first);
                if (!turn_keys(context_.kv().read(seq, layer, head_kv, first, count), count, keys_[seq] + first,
                               padded(n))) {
                    finite = false;
                }
            }
        }
        if (!finite)
            fail(FASA_ERROR, "layer %d, KV head %d: a key is not finite: the model cannot be calibrated", layer,
                 head_kv);
    }

    // Keys of n rows, one row a dim, stride apart. Returns whether all are finite.
    bool turn_keys(const KvRows& rows, int32_t n, float* keys, int64_t stride) {
        std::atomic<bool> finite = true;
        team_.run((n + turn_rows - 1) / turn_rows, [&](int64_t block, int thread) {
            const int32_t first = static_cast<int32_t>(block) * turn_rows, count = std::min(turn_rows, n - first);
            float* mine = threads_[thread].rows;
            for (int32_t j = 0; j < count; ++j) rows.key(first + j, mine + int64_t{j} * h_.head_dim);
            for (int32_t d = 0; d < h_.head_dim; ++d) {
                float* to = keys + d * stride + first;
                for (int32_t j = 0; j < count; ++j) {
                    to[j] = mine[int64_t{j} * h_.head_dim + d];
                    if (!std::isfinite(to[j])) finite = false;
                }
            }
        });
        return finite;
    }

    // A query head's vectors and attention; both are added to those of its group.
    void read_queries(int32_t layer, int32_t head) {
        const int32_t head_dim = h_.head_dim;
        head_.q.clear();
        for (const Query& query : queries_) {
            const float* q = context_.tap()->at(query.step, layer).q.data() + int64_t{head} * head_dim;
            head_.q.insert(head_.q.end(), q, q + head_dim);
        }
        for (size_t i = 0; i < head_.q.size(); ++i) {
            if (!(std::fabs(head_.q[i]) <= largest_q)) {
                fail(FASA_ERROR, "layer %d, head %d: a query of %g: the model cannot be calibrated", layer, head,
                     static_cast<double>(head_.q[i]));
            }
            whole_.q[i] += head_.q[i];
        }
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        team_.run(static_cast<int64_t>(queries_.size()), [&](int64_t i, int) {
            const int32_t n = queries_[i].n_pos;
            float* p = head_.probability[i];
            full_scores(i, p);
            const float top = *std::max_element(p, p + n);
            double sum = 0;
            for (int32_t j = 0; j < n; ++j) sum += static_cast<double>(p[j] = std::exp((p[j] - top) * scale));
            for (int32_t j = 0; j < n; ++j) {
                p[j] = static_cast<float>(static_cast<double>(p[j]) / sum);
                whole_.probability[i][j] += p[j] / static_cast<float>(group_);
            }
        });
    }

    cpu::ScoreRange add_chunk(float* to, const float* base, const Query& query, const float* q, int32_t chunk) const {
        const std::vector<int16_t>& dims = dims_[chunk];
        const float pair[2] = {q[dims[0]], dims.size() > 1 ? q[dims[1]] : 0.0f};
        return kernels_.add_scores(to, base, pair, query.keys + dims[0] * query.stride,
                                   dims.size() > 1 ? query.keys + dims[1] * query.stride : nullptr, query.n_pos);
    }

    void full_scores(int64_t i, float* scores) const {
        const float* q = head_.q.data() + i * h_.head_dim;
        for (int32_t chunk = 0; chunk < n_chunk_; ++chunk) {
            add_chunk(scores, chunk > 0 ? scores : nullptr, queries_[i], q, chunk);
        }
    }

    // CA of every chunk of head_, mean over queries.
    std::vector<double> agreement() {
        const int64_t n_query = static_cast<int64_t>(queries_.size());
        std::vector<double> of_query(static_cast<size_t>(n_query * n_chunk_));
        team_.run(n_query, [&](int64_t i, int thread) {
            const Query& query = queries_[i];
            const Thread& mine = threads_[thread];
            full_scores(i, mine.scores);
            mark_best(mine.scores, query.n_pos, mine);
            for (int32_t chunk = 0; chunk < n_chunk_; ++chunk) {
                const auto range = add_chunk(mine.scores, nullptr, query, head_.q.data() + i * h_.head_dim, chunk);
                of_query[i * n_chunk_ + chunk] = cpu::top_weight(kernels_, mine.scores, mine.weights, query.n_pos,
                                                                 config_.k, range, mine.candidates) /
                                                 config_.k;
            }
        });
        return mean(of_query, n_query);
    }

    struct Thread {
        float *scores, *weights;     // [longest]
        cpu::Candidate* candidates;  // [longest]
        float* rows;                 // [turn_rows][head_dim]
    };

    // weights[j] = 1 for the K best positions, else 0.
    void mark_best(const float* scores, int32_t n, const Thread& thread) const {
        for (int32_t j = 0; j < n; ++j) thread.candidates[j] = {scores[j], j};
        std::nth_element(thread.candidates, thread.candidates + config_.k, thread.candidates + n, cpu::better);
        std::fill_n(thread.weights, n, 0.0f);
        for (int32_t j = 0; j < config_.k; ++j) thread.weights[thread.candidates[j].pos] = 1.0f;
    }

    // of_query [n][n_chunk]
    std::vector<double> mean(const std::vector<double>& of_query, int64_t n) const {
        std::vector<double> total(static_cast<size_t>(n_chunk_));
        for (size_t i = 0; i < of_query.size(); ++i) total[i % static_cast<size_t>(n_chunk_)] += of_query[i];
        for (double& value : total) value /= static_cast<double>(n);
        return total;
    }

    // Greedy forward selection by the mass of `judged`, then the other chunks by CA.
    void write_order(const Judged& judged, const std::vector<double>& ca, uint16_t* order, float part, float n_parts) {
        const int32_t n_joint = std::min(config_.n_joint, n_chunk_);
        std::vector<uint16_t> left(static_cast<size_t>(n_chunk_));
        std::iota(left.begin(), left.end(), uint16_t{0});
        for (size_t i = 0; i < queries_.size(); ++i) std::fill_n(base_[i], queries_[i].n_pos, 0.0f);
        for (int32_t round = 0; round < n_joint; ++round) {
            const std::vector<double> held = mass_with(judged, left);
            const auto best =
                std::max_element(left.begin(), left.end(), [&](uint16_t a, uint16_t b) { return held[a] < held[b]; });
            add_to_base(judged, *best);
            *order++ = *best;
            left.erase(best);
            tick(part + static_cast<float>(round + 1) / (static_cast<float>(n_joint) * n_parts));
        }
        std::stable_sort(left.begin(), left.end(), [&](uint16_t a, uint16_t b) { return ca[a] > ca[b]; });
        std::copy(left.begin(), left.end(), order);
    }

    // Mass held with each of the chunks that are left added to the set, mean over queries: [n_chunk].
    std::vector<double> mass_with(const Judged& judged, const std::vector<uint16_t>& left) {
        const int64_t n_used = n_used_by(judged);
        const int32_t n_free = config_.n_fac - config_.n_sink - config_.n_recent;
        std::vector<double> of_query(static_cast<size_t>(n_used * n_chunk_));
        team_.run(n_used, [&](int64_t used, int thread) {
            const int64_t i = used * judged.every;
            const Query& query = queries_[i];
            const Thread& mine = threads_[thread];
            // Forced positions are in whatever the chunk: only those between them are ranked.
            const Query middle{query.step, query.n_pos - config_.n_sink - config_.n_recent, query.keys + config_.n_sink,
                               query.stride};
            for (const uint16_t chunk : left) {
                const auto range =
                    add_chunk(mine.scores, base_[i] + config_.n_sink, middle, judged.q.data() + i * h_.head_dim, chunk);
                of_query[used * n_chunk_ + chunk] =
                    cpu::top_weight(kernels_, mine.scores, judged.probability[i] + config_.n_sink, middle.n_pos, n_free,
                                    range, mine.candidates);
            }
        });
        return mean(of_query, n_used);
    }

    void add_to_base(const Judged& judged, uint16_t chunk) {
        team_.run(n_used_by(judged), [&](int64_t used, int) {
            const int64_t i = used * judged.every;
            add_chunk(base_[i], base_[i], queries_[i], judged.q.data() + i * h_.head_dim, chunk);
        });
    }

    int64_t n_used_by(const Judged& judged) const {
        return (static_cast<int64_t>(queries_.size()) + judged.every - 1) / judged.every;
    }

    const Calibration& out_;
    Context& context_;
    const CalibrateConfig& config_;
    const Context::Progress& progress_;
    const Hparams& h_;
    const ChunkLayout layout_;
    const int32_t n_chunk_, group_;
    const cpu::RankKernels& kernels_;
    Team team_;
    std::vector<std::vector<int16_t>> dims_;  // [n_chunk]
    std::vector<Query> queries_;
    std::map<int32_t, int32_t> longest_;  // sequence -> positions
    std::map<int32_t, float*> keys_;      // sequence -> [head_dim][padded(positions)]
    std::vector<float*> base_;            // [n_query]: scores of the set so far, [n_pos]
    Judged head_, whole_;                 // of one query head; of its group: summed queries, mean attention
    std::vector<Thread> threads_;
    Buffer memory_;
    float done_ = 0, share_ = 0;  // progress at the start of a group, and what a group adds
};

void check(const CalibrateConfig& c) {
    const auto require = [](bool ok, const char* name, int32_t value, const char* expected) {
        if (!ok) fail(FASA_ERROR_ARGUMENT, "%s is %d, expected %s", name, value, expected);
    };
    require(c.k >= 1, "k", c.k, "1 or more");
    require(c.n_sink >= 0, "n_sink", c.n_sink, "0 or more");
    require(c.n_recent >= 0, "n_recent", c.n_recent, "0 or more");
    require(c.n_fac > int64_t{c.n_sink} + c.n_recent, "n_fac", c.n_fac, "more than n_sink + n_recent");
    require(c.max_steps >= 0, "max_steps", c.max_steps, "0 or more");
    require(c.n_joint >= 0, "n_joint", c.n_joint, "0 or more");
}

}  // namespace

int32_t calibrate(const Calibration& out, Context& context, const CalibrateConfig& config,
                  const Context::Progress& progress) {
    check(config);
    return Calibrator(out, context, config, progress).run();
}

}  // namespace fasa
