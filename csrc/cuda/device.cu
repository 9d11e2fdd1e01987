#include "cuda/device.hpp"

#include <cuda_runtime.h>

#define MDTRAJNET_STRING_(...) #__VA_ARGS__
#define MDTRAJNET_STRING(...) MDTRAJNET_STRING_(__VA_ARGS__)

namespace mdtrajnet {

CudaDevices cuda_devices() {
    CudaDevices result;
    int driver = 0, count = 0;
    // Without a driver cudaGetDeviceCount blames its version; the version 0 tells that there is none.
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
        result.error = "no NVIDIA driver is installed";
        return result;
    }
    cudaError_t status = cudaGetDeviceCount(&count);
    for (int i = 0; status == cudaSuccess && i < count; ++i) {
        cudaDeviceProp properties;
        status = cudaGetDeviceProperties(&properties, i);
        if (status == cudaSuccess)
            result.devices.push_back({properties.name, properties.major, properties.minor,
                                      properties.multiProcessorCount, properties.totalGlobalMem});
    }
    if (status != cudaSuccess) {
        result.error = cudaGetErrorString(status);
        cudaGetLastError();  // leave no error behind for the next caller
    }
    return result;
}

std::string nvcc_version() {
    return MDTRAJNET_STRING(__CUDACC_VER_MAJOR__) "." MDTRAJNET_STRING(__CUDACC_VER_MINOR__) "." MDTRAJNET_STRING(
        __CUDACC_VER_BUILD__);
}

std::string cuda_archs() { return MDTRAJNET_STRING(__CUDA_ARCH_LIST__); }

}  // namespace mdtrajnet
