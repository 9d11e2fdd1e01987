// Kernels that use CUDA's thread model rightly and wrongly, to test the emulation with.
#include "cuda/launch.hpp"

#include <exception>
#include <string>

namespace {

using namespace mdtrajnet::cuda;

// The sum over each block of 2-D blocks, through shared memory of both kinds and shuffles.
template <int kSlots>
__global__ void sum_blocks(const float* in, float* out) {
    __shared__ float of_warp[kSlots];
    float* all = dynamic_shared<float>();
    const int thread = threadIdx.x + blockDim.x * threadIdx.y, threads = blockDim.x * blockDim.y;
    const int lane = thread % 32, lanes = min(32, threads - thread / 32 * 32);
    const int block = blockIdx.x + gridDim.x * blockIdx.y;
    all[thread] = in[block * threads + thread];
    __syncthreads();
    float v = all[threads - 1 - thread];
    for (int step = 16; step; step /= 2) {
        const float other = __shfl_sync(0xffffffffu, v, min(lane + step, lanes - 1));
        if (lane + step < lanes) v += other;
    }
    if (lane == 0) of_warp[thread / 32] = v;
    __syncthreads();
    if (thread == 0) {
        float sum = 0;
        for (int w = 0; w * 32 < threads; ++w) sum += of_warp[w];
        out[block] = sum;
    }
}

// Votes, shuffles and atomics of parts of a warp, each on its own branch.
__global__ void parts(int* out) {
    const int lane = threadIdx.x;
    const unsigned mask = lane < 8 ? 0xffu : 0xffffff00u;
    int v = 0;
    if (lane < 8) {
        v = __shfl_sync(mask, lane, 3);                                   // 3
        for (int k = 0; k < 3; ++k) v += __shfl_xor_sync(mask, 1, 1, 8);  // 6
    } else {
        v = __popc(__ballot_sync(mask, lane % 2));  // 12
        v += __shfl_up_sync(mask, lane, 1, 8) * 0;
        __syncwarp(mask);
    }
    out[lane] = v + __syncthreads_count(lane < 5) + 10 * __syncthreads_or(lane == 40) + 100 * __syncthreads_and(1);
    atomicAdd(&out[32], lane);
    atomicMax(&out[33], lane);
    int seen = out[34], assumed;
    do assumed = seen, seen = atomicCAS(&out[34], assumed, assumed + 2);
    while (seen != assumed);
}

enum Fault {
    none,
    returns_early,
    other_barrier,
    lane_waits_alone,
    absent_lane,
    outside_mask,
    never_written,
    last_writer,
    past_dynamic,
    past_static,
    past_global
};

__global__ void faulty(int fault, float* out) {
    __shared__ float held[32];
    float* dynamic = dynamic_shared<float>();
    const int k = threadIdx.x, past = fault == none ? 0 : 32;
    if (fault == returns_early && k == 3) return;
    if (fault == other_barrier && k == 3) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    if (fault == lane_waits_alone && k == 3) __syncwarp();
    if (fault == absent_lane && k < 8) __shfl_sync(0xffu, k, 9);
    if (fault == outside_mask) __syncwarp(0xffu);
    if (fault == never_written) out[k] = held[k] + dynamic[k];
    if (fault == last_writer) out[0] = float(k);
    if (fault == past_dynamic) dynamic[k + 1] = 1;
    if (fault == past_static) held[(k + past) % 64] = 1;
    if (fault == past_global) out[k + 1] = 1;
    __syncthreads();
}

template <class Call>
const char* message_of(const Call& call) {
    static std::string message;
    try {
        call();
        check(cudaGetLastError(), "kernel");
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
    return nullptr;
}

}  // namespace

EMULATION_EXPORT const char* emulated_sum_blocks(const float* in, float* out, std::int64_t x, std::int64_t y) {
    return message_of([&] {
        launch(sum_blocks<32>, dim3(2, 3), dim3(unsigned(x), unsigned(y)), x * y * sizeof(float), nullptr, in, out);
    });
}

EMULATION_EXPORT const char* emulated_parts(int* out) {
    return message_of([&] { launch(parts, dim3(1), dim3(32), 0, nullptr, out); });
}

EMULATION_EXPORT const char* emulated_fault(std::int64_t fault, float* out) {
    return message_of([&] { launch(faulty, dim3(2), dim3(32), 32 * sizeof(float), nullptr, int(fault), out); });
}

EMULATION_EXPORT const char* emulated_much_shared(std::int64_t bytes, std::int64_t allow, float* out) {
    return message_of([&] {
        if (allow) check(cudaFuncSetAttribute(faulty, cudaFuncAttributeMaxDynamicSharedMemorySize, int(allow)), "set");
        launch(faulty, dim3(1), dim3(32), size_t(bytes), nullptr, int(none), out);
    });
}
