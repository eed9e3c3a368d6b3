// Records what decode steps asked for and what they were given: for calibration, evaluation and tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv/store.h"

namespace fasa {

class Tap {
   public:
    struct Record {
        int32_t seq, n_pos;
        std::vector<float> q;                         // [n_head][head_dim], rotated, dims as in the file
        std::vector<std::vector<int32_t>> positions;  // [n_set]; empty: dense
    };

    Tap(int32_t n_layer, int32_t n_head, int32_t n_steps) : n_layer_(n_layer), n_head_(n_head), n_steps_(n_steps) {}

    // Called once a layer of a decode step, in order.
    // q [n_head][head_dim], in the order of the cache; positions [n_set], none: dense.
    void record(int32_t layer, Rows rows, std::span<const float> q, const KvStore& kv,
                std::vector<std::vector<int32_t>> positions);

    // Steps recorded in all layers.
    int32_t n_steps() const { return static_cast<int32_t>(records_.size()) / n_layer_; }
    const Record& at(int32_t step, int32_t layer) const { return records_[size_t{1} * step * n_layer_ + layer]; }

   private:
    int32_t n_layer_, n_head_, n_steps_;
    std::vector<Record> records_;  // [step][layer]
};

}  // namespace fasa
