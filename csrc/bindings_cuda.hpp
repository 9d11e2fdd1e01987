// What bindings of CUDA code share: device addresses and streams come as integers.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace {

using Address = std::uintptr_t;

// 0 is null.
template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

#ifdef MDTRAJNET_CUDA
#define ON_CUDA(...) __VA_ARGS__
#else
#define ON_CUDA(...) \
    throw std::runtime_error("mdtrajnet_fast was built without CUDA: nvcc was not found, or MDTRAJNET_CUDA=0")
#endif

}  // namespace
