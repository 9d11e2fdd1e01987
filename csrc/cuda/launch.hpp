// How kernels are launched.  testing/cuda_on_cpu.hpp gives launch and dynamic_shared another meaning: kernels that are
// launched through these run on the CPU as well, in tests.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace mdtrajnet::cuda {

#ifdef __CUDACC__
// Blocks of threads over a stream; an empty grid is the caller's to avoid.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            A&&... arguments) {
    kernel<<<grid, block, shared_bytes, stream>>>(std::forward<A>(arguments)...);
}

// The shared memory whose bytes the launch gives.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return reinterpret_cast<T*>(bytes);
}
#endif

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace mdtrajnet::cuda
