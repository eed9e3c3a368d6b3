// Device memory of a test.
#pragma once

#include <cstring>
#include <vector>

#include "backend/cuda/runtime.h"

namespace fasa::test {

template <class T>
class DeviceArray {
   public:
    explicit DeviceArray(size_t n) : n_(n) {
        cuda::check(cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T) + 1), "allocating for a test");
    }
    explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { set(host); }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() const { return data_; }
    size_t size() const { return n_; }
    void set(const std::vector<T>& host) {
        cuda::check(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), "copying for a test");
    }
    // Waits for everything launched so far.
    std::vector<T> host() const {
        std::vector<T> result(n_);
        cuda::check(cudaDeviceSynchronize(), "waiting for a test");
        cuda::check(cudaMemcpy(result.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "copying for a test");
        return result;
    }

   private:
    T* data_ = nullptr;
    size_t n_ = 0;
};

}  // namespace fasa::test
