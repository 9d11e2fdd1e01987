// Workspaces: one allocation, of which kernels have pieces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdtrajnet::cuda {

// Hands out aligned pieces of one allocation; from null it only measures.
class Pieces {
  public:
    explicit Pieces(void* start) : start_(static_cast<char*>(start)) {}
    template <class T>
    void take(T*& piece, std::int64_t count) {
        piece = start_ ? reinterpret_cast<T*>(start_ + used_) : nullptr;
        used_ += (std::size_t(count) * sizeof(T) + 255) / 256 * 256;
    }
    std::size_t used() const { return used_; }

  private:
    char* start_;
    std::size_t used_ = 0;
};

}  // namespace mdtrajnet::cuda
