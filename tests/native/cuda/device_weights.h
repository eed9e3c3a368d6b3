// A weight matrix of a test on the device.
#pragma once

#include "backend/cuda/weights.h"
#include "device_array.h"

namespace fasa::test {

class DeviceWeights {
   public:
    // Through staging memory of this size.
    explicit DeviceWeights(const WeightView& w, size_t staging_bytes = 1 << 16)
        : data_(static_cast<size_t>(w.n_out) * cuda::device_row_bytes(w.dtype, w.n_in)) {
        const DeviceArray<uint8_t> staging(staging_bytes);
        std::vector<uint8_t> host(staging_bytes);
        view_ = cuda::upload(data_.data(), w, {host.data(), staging.data(), staging_bytes}, nullptr,
                             [this](size_t n_bytes) { n_uploaded_ += n_bytes; });
    }
    const WeightView& view() const { return view_; }
    size_t n_uploaded() const { return n_uploaded_; }  // as told to the progress callback

   private:
    DeviceArray<uint8_t> data_;
    WeightView view_;
    size_t n_uploaded_ = 0;
};

}  // namespace fasa::test
