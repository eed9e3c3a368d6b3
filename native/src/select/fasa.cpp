// FASA's token importance prediction: positions are ranked by the scores of the dominant chunks alone [FASA §4].
#include "base/error.h"
#include "select/methods.h"
#include "select/scored.h"

namespace fasa {
namespace {

class Fasa final : public ScoredSelector {
   public:
    explicit Fasa(const SelectorSetup& setup) : ScoredSelector(setup) {
        const SelectShape& s = setup.shape;
        counts_.resize(fasa_bytes(setup.config, s));
        dominant_first_.assign(static_cast<size_t>(s.n_layer), true);
        for (int32_t layer = 0; layer < s.n_layer; ++layer) {
            for (int32_t head = 0; head < s.n_head; ++head) mark_dominant(setup, layer, head);
        }
        mask_ = setup.device.buffer(counts_.size(), "masks of dominant dims");
        setup.device.copy(mask_.data(), counts_.data(), counts_.size());
    }

   protected:
    SetQueries queries(const Step& step) override {
        const int64_t of_layer = int64_t{step.layer} * shape_.n_head * step.kv.head_dim;
        const uint8_t* mask = reads_dominant_only(step) ? nullptr : static_cast<uint8_t*>(mask_.data()) + of_layer;
        return {step.q, mask, shape_.n_head, n_set_};
    }

    // Not so when the store was laid out for other sets than this method's.
    bool reads_dominant_only(const Step& step) const override {
        return step.kv.n_dominant() == 2 * config_.n_tip && dominant_first_[step.layer];
    }

   private:
    const uint8_t* counts_of(int32_t layer, int32_t head) const {
        return counts_.data() + (size_t{1} * layer * shape_.n_head + head) * shape_.layout.head_dim;
    }

    void mark_dominant(const SelectorSetup& setup, int32_t layer, int32_t head) {
        const int32_t head_dim = shape_.layout.head_dim, head_kv = head / shape_.group();
        const auto ranking = config_.chunks_per_head ? setup.table->ranking_of_head(layer, head, config_.criterion)
                                                     : setup.table->ranking(layer, head_kv, config_.criterion);
        std::vector<uint8_t> dominant(static_cast<size_t>(head_dim));
        for (const uint16_t chunk : fill_dims(shape_.layout, ranking, 2 * config_.n_tip)) {
            for (const int16_t dim : shape_.layout.dims(chunk)) dominant[dim] = 1;
        }
        const int16_t* order = setup.order.empty()
                                   ? nullptr
                                   : setup.order.data() + (size_t{1} * layer * shape_.n_head_kv + head_kv) * head_dim;
        uint8_t* counts = const_cast<uint8_t*>(counts_of(layer, head));
        for (int32_t d = 0; d < head_dim; ++d) {
            counts[d] = dominant[order ? order[d] : d];
            if (counts[d] != (d < 2 * config_.n_tip)) dominant_first_[layer] = false;
        }
    }

    std::vector<uint8_t> counts_;       // [n_layer][n_head][head_dim], in the order of the cache
    Buffer mask_;                       // the same, on the device
    std::vector<bool> dominant_first_;  // [n_layer]: the cache was laid out by these sets
};

}  // namespace

size_t fasa_bytes(const SelectConfig&, const SelectShape& shape) {
    return size_t{1} * shape.n_layer * shape.n_head * shape.layout.head_dim;
}

std::unique_ptr<Selector> make_fasa(const SelectorSetup& setup) {
    if (!setup.table) {
        fail(FASA_ERROR_ARGUMENT,
             "method fasa needs a calibrated model: this file carries no FASA table "
             "(python tools/calibrate_to_gguf.py MODEL.gguf -o OUT.gguf makes one)");
    }
    return std::make_unique<Fasa>(setup);
}

}  // namespace fasa
