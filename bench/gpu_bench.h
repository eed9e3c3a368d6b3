// How bench/gpu_ops.cu measures, and what it prints: times of calls on a GPU against what its memory and its tensor
// cores were seen to do in the same run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/runtime.h"
#include "base/error.h"

namespace fasa::bench {

// What a call must move (each input read once, each output written once) and compute. Of the two, the one that bounds
// it is given.
struct Cost {
    double bytes = 0, flop = 0;
};

struct Result {
    std::string op, what;
    double seconds;  // of a call
    Cost cost;
    bool finite;

    double gb_s() const { return cost.bytes / seconds * 1e-9; }
    double tflop_s() const { return cost.flop / seconds * 1e-12; }
};

class Bench {
   public:
    explicit Bench(bool smoke) : window_ms_(smoke ? 0.0f : 2.0f), n_windows_(smoke ? 1 : 9) {}

    cudaStream_t stream() const { return stream_.get(); }

    // Median time of one of n_calls that run one after the other as a graph: they are decode's conditions, and the host
    // is left out. A window holds as many replays as make the gap before the first one small.
    double seconds(int n_calls, const std::function<void(int)>& call) const {
        cuda::check(cudaDeviceSynchronize(), "waiting for what is measured with");
        call(0);  // loads what is loaded on first use
        stream_.wait();
        const cuda::Graph graph(stream_, [&] {
            for (int i = 0; i < n_calls; ++i) call(i);
        });
        replay(graph, 1);
        const float once = std::max(replay(graph, 1), 1e-3f);
        const int n_replays = std::clamp(static_cast<int>(window_ms_ / once), 1, 1000);
        std::vector<float> windows;
        for (int i = 0; i < n_windows_; ++i) windows.push_back(replay(graph, n_replays));
        std::nth_element(windows.begin(), windows.begin() + n_windows_ / 2, windows.end());
        return windows[static_cast<size_t>(n_windows_ / 2)] * 1e-3 / n_replays / n_calls;
    }

    // Times calls, and looks whether the n values of y that they wrote (as many as fit on the host easily) are finite.
    void measure(const std::string& op, const std::string& what, const Cost& cost, int n_calls, const float* y,
                 int64_t n, const std::function<void(int)>& call) {
        const double t = seconds(n_calls, call);
        add({op, what, t, cost, all_finite(y, n)});
    }
    void add(const Result& result) {
        print(result);
        results_.push_back(result);
    }

    // What shares are of.
    void set_copy(double bytes_per_s) { copy_ = bytes_per_s; }
    void set_tensor(double flop_per_s) { tensor_ = flop_per_s; }

    bool finite() const {
        return std::all_of(results_.begin(), results_.end(), [](const Result& r) { return r.finite; });
    }
    void write_json(const char* path, const std::string& gpu) const {
        std::FILE* file = std::fopen(path, "w");
        if (!file) fail(FASA_ERROR_IO, "cannot write %s", path);
        std::fprintf(file, "{\"gpu\": \"%s\", \"copy_gb_s\": %.6g, \"tensor_tflop_s\": %.6g, \"ops\": [", gpu.c_str(),
                     copy_ * 1e-9, tensor_ * 1e-12);
        const char* separator = "\n";
        for (const Result& r : results_) {
            std::fprintf(file, "%s {\"op\": \"%s\", \"what\": \"%s\", \"us\": %.6g", separator, r.op.c_str(),
                         r.what.c_str(), r.seconds * 1e6);
            if (r.cost.bytes > 0) std::fprintf(file, ", \"gb_s\": %.6g", r.gb_s());
            if (r.cost.flop > 0) std::fprintf(file, ", \"tflop_s\": %.6g", r.tflop_s());
            if (share(r) > 0) std::fprintf(file, ", \"share\": %.4g", share(r));
            std::fprintf(file, ", \"finite\": %s}", r.finite ? "true" : "false");
            separator = ",\n";
        }
        std::fprintf(file, "\n]}\n");
        std::fclose(file);
    }

   private:
    float replay(const cuda::Graph& graph, int n) const {
        cuda::Event begin(true), end(true);
        begin.record(stream_.get());
        for (int i = 0; i < n; ++i) graph.launch(stream_.get());
        end.record(stream_.get());
        end.wait();
        return end.milliseconds_since(begin);
    }
    bool all_finite(const float* y, int64_t n) const {
        std::vector<float> host(static_cast<size_t>(std::min<int64_t>(n, 1 << 20)));
        if (host.empty()) return true;
        stream_.wait();
        cuda::check(cudaMemcpy(host.data(), y, host.size() * sizeof(float), cudaMemcpyDeviceToHost), "reading results");
        return std::all_of(host.begin(), host.end(), [](float v) { return std::isfinite(v); });
    }
    double share(const Result& r) const {
        if (r.cost.flop > 0) return tensor_ > 0 ? r.cost.flop / r.seconds / tensor_ : 0;
        return copy_ > 0 ? r.cost.bytes / r.seconds / copy_ : 0;
    }
    void print(const Result& r) const {
        std::printf("%-16s %-44s %10.2f us", r.op.c_str(), r.what.c_str(), r.seconds * 1e6);
        if (r.cost.flop > 0) std::printf(" %9.1f TFLOP/s", r.tflop_s());
        if (r.cost.flop <= 0 && r.cost.bytes > 0) std::printf(" %9.1f GB/s   ", r.gb_s());
        if (share(r) > 0) std::printf(" %5.1f %%", 100 * share(r));
        std::printf("%s\n", r.finite ? "" : "  NOT FINITE");
        std::fflush(stdout);
    }

    cuda::Stream stream_;
    float window_ms_;
    int n_windows_;
    double copy_ = 0, tensor_ = 0;
    std::vector<Result> results_;
};

// Device memory with data, laid out anew for every op that is measured.
class Pool {
   public:
    Pool(size_t n_bytes, cudaStream_t stream) : buffer_(n_bytes, "data to measure with"), stream_(stream) {}

    uint8_t* data() const { return static_cast<uint8_t*>(buffer_.data()); }
    size_t n_bytes() const { return buffer_.n_bytes(); }
    // Repeats its first n bytes until n_total.
    void repeat(size_t n, size_t n_total) const {
        for (size_t have = n; have < n_total; have *= 2) {
            cuda::check(cudaMemcpyAsync(data() + have, data(), std::min(have, n_total - have), cudaMemcpyDeviceToDevice,
                                        stream_),
                        "repeating data");
        }
    }

   private:
    cuda::DeviceBuffer buffer_;
    cudaStream_t stream_;
};

// A device array of a fixed size.
template <class T>
class Array {
   public:
    explicit Array(size_t n, const char* what = "an array") : buffer_(n * sizeof(T), what) {
        cuda::check(cudaMemset(buffer_.data(), 0, n * sizeof(T)), what);
    }
    explicit Array(const std::vector<T>& host) : Array(host.size()) {
        cuda::check(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "an array");
    }
    T* data() const { return static_cast<T*>(buffer_.data()); }

   private:
    cuda::DeviceBuffer buffer_;
};

}  // namespace fasa::bench
