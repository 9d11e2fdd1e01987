// What CUDA devices this machine has, asked without torch.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace mdtrajnet {

struct CudaDevice {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    std::size_t memory = 0;  // bytes
};

struct CudaDevices {
    std::string error;  // empty, or why the list is empty or cut short
    std::vector<CudaDevice> devices;
};

// Never throws: a machine without a driver gives an empty list and the reason.
CudaDevices cuda_devices();

// The compiler that built the CUDA part ("13.0.88") and the architectures it built for ("80,90").
std::string nvcc_version();
std::string cuda_archs();

}  // namespace mdtrajnet
