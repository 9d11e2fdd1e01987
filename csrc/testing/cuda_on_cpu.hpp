// CUDA's thread model on the CPU, so that kernels can be tested where there is no GPU.  Compile a .cu file with
//
//     g++ -std=c++17 -ffp-contract=off -fvisibility=hidden -include testing/cuda_on_cpu.hpp -x c++ file.cu
//
// Each CUDA thread is a fiber, blocks run one after another.  It finds what is wrong in one order of execution or
// differs in another: wrong indices (with -fsanitize=address,undefined), shared memory read before it is written
// (every block starts with 0xFF bytes in it, which are NaN), barriers that not all threads reach, shuffles from lanes
// that take no part, missing __syncthreads (a warp runs as far as it can before the next), and orders that matter
// (emulation_order permutes blocks, warps and lanes by a seed).  It cannot find races that no such order shows.
//
// A kernel is launched with launch(kernel, grid, block, shared_bytes, stream, arguments...), and takes its dynamic
// shared memory from dynamic_shared<T>(); cuda/launch.hpp has the same two for nvcc.  A failed launch leaves its
// message for cudaGetLastError and cudaGetErrorString.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
// Thread-local memory of this library is one contiguous piece, which poison_shared() below can find.
#define __shared__ static thread_local

// What a test calls through ctypes.
#define EMULATION_EXPORT extern "C" __attribute__((visibility("default"), used))

#define EMULATION_VECTOR(T, name, align)                               \
    struct name##2 {                                                   \
        alignas(align * 2) T x;                                        \
        T y;                                                           \
    };                                                                 \
    struct name##3 { T x, y, z; };                                     \
    struct alignas(16) name##4 { T x, y, z, w; };                      \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTOR(int, int, 4)
EMULATION_VECTOR(unsigned, uint, 4)
EMULATION_VECTOR(float, float, 4)
EMULATION_VECTOR(double, double, 8)
#undef EMULATION_VECTOR

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    size_t size() const { return size_t(x) * y * z; }
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
using cudaStream_t = struct CUstream_st*;

namespace emulation {

// Stacks and how to change from one to another: by hand where that is known, else through the C library, which
// makes a system call each time.
#ifdef __x86_64__
using Context = void*;
__attribute__((naked, noinline)) inline void swap_contexts(Context*, Context) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
inline void change(Context& from, Context& to) { swap_contexts(&from, to); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
    std::fill(top - 8, top, nullptr);  // six registers, the entry, and no return from it
    top[-2] = reinterpret_cast<void*>(entry);
    context = top - 8;
}
#else
using Context = ucontext_t;
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    makecontext(&context, entry, 0);
}
#endif

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
// Bytes of a block: what sm_86, 89 and 120 have, the least since sm_80 (an H200 has 227 kB).
constexpr size_t kMaxShared = 99 * 1024, kMaxSharedByDefault = 48 * 1024;
constexpr unsigned kCanary = 0x57ac0f10;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Site {  // where in the source a thread waits
    const char* file;
    int line;
    bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
};

struct Fiber {
    State state;
    uint3 thread;
    unsigned warp, lane;
    Site site;            // of the barrier it waits at
    unsigned mask;        // lanes that the barrier names, and after it those that took part
    std::uint64_t value;  // what it offers to the others there
    Context context;
    std::unique_ptr<char[]> stack;
    void* fake_stack;  // AddressSanitizer's
};

struct Machine {
    unsigned seed = 0;
    std::string error, last_error;
    std::map<const void*, size_t> max_shared;            // what cudaFuncSetAttribute allowed
    std::vector<Fiber> fibers;                           // of the block that runs; stacks are kept for the next
    std::vector<std::array<std::uint64_t, 32>> offered;  // by each lane of each warp at its last barrier
    std::uint64_t votes = 0;                             // threads with a true value at the last block barrier
    std::unique_ptr<char[]> dynamic;
    Fiber* running = nullptr;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    Context scheduler{};
    void* fake_stack = nullptr;
    const void* stack = nullptr;  // the scheduler's
    size_t stack_bytes = 0;
};
inline Machine machine;
inline thread_local char shared_memory_anchor;

inline void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack,
                         [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}
inline void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack,
                          [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, stack, bytes);
#endif
}

// From a fiber to the scheduler, and back when the barrier is complete.
inline void wait(State state, unsigned mask, std::uint64_t value, Site site) {
    Fiber& self = *machine.running;
    self.state = state, self.mask = mask, self.value = value, self.site = site;
    start_switch(state == State::done ? nullptr : &self.fake_stack, machine.stack, machine.stack_bytes);
    change(self.context, machine.scheduler);
    finish_switch(self.fake_stack, nullptr, nullptr);
}

inline void run_fiber() {
    finish_switch(nullptr, &machine.stack, &machine.stack_bytes);
    machine.body(machine.argument);
    wait(State::done, 0, 0, {"", 0});
}

inline void resume(Fiber& fiber) {
    machine.running = &fiber;
    threadIdx = fiber.thread;
    start_switch(&machine.fake_stack, fiber.stack.get(), kStack);
    change(machine.scheduler, fiber.context);
    finish_switch(machine.fake_stack, nullptr, nullptr);
}

inline std::string text(const uint3& v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
inline std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

// Ends the launch from within a kernel.
inline void fault(const std::string& what, Site site) {
    machine.error = what + " at " + text(site) + ", block " + text(blockIdx) + ", thread " + text(threadIdx);
    wait(State::done, 0, 0, site);
}

// Once no lane of a warp can go on: completes the barriers that all their lanes have reached; false if none is.
inline bool release_warp(Fiber* warp, unsigned lanes) {
    bool released = false;
    for (unsigned first = 0; first < lanes; ++first) {
        if (warp[first].state != State::at_warp_barrier) continue;
        const unsigned mask = warp[first].mask;
        const Site site = warp[first].site;
        unsigned present = 0;  // those who have returned from the kernel need not come
        bool complete = true;
        for (unsigned lane = 0; lane < lanes; ++lane) {
            const Fiber& fiber = warp[lane];
            if (!(mask >> lane & 1) || fiber.state == State::done) continue;
            present |= 1u << lane;
            complete = complete && fiber.state == State::at_warp_barrier && fiber.mask == mask && fiber.site == site;
        }
        if (!complete) continue;
        for (unsigned lane = 0; lane < lanes; ++lane) {
            if (!(present >> lane & 1)) continue;
            machine.offered[warp[lane].warp][lane] = warp[lane].value;
            warp[lane].mask = present;
            warp[lane].state = State::ready;
        }
        released = true;
    }
    return released;
}

// Once no warp can go on: completes the block's barrier if all threads wait at the same one.
inline bool release_block(size_t threads) {
    Fiber* const fibers = machine.fibers.data();
    machine.votes = 0;
    for (size_t k = 0; k < threads; ++k) {
        if (fibers[k].state != State::at_block_barrier || !(fibers[k].site == fibers[0].site)) return false;
        machine.votes += fibers[k].value;
    }
    for (size_t k = 0; k < threads; ++k) fibers[k].state = State::ready;
    return true;
}

// "divergent barrier in block (0, 0, 0): 31 threads wait at f.cu:12 (first (1, 0, 0)); 1 has returned (first ...)"
inline std::string describe_divergence(size_t threads) {
    std::map<std::string, std::pair<int, uint3>> groups;
    for (size_t k = 0; k < threads; ++k) {
        const Fiber& fiber = machine.fibers[k];
        const bool warp = fiber.state == State::at_warp_barrier;
        const char* waits = warp ? "wait for lanes of their warp at " : "wait for their block at ";
        const std::string what = fiber.state == State::done ? "returned" : waits + text(fiber.site);
        ++groups.insert({what, {0, fiber.thread}}).first->second.first;
    }
    std::string result = "divergent barrier in block " + text(blockIdx);
    for (const auto& [what, group] : groups)
        result += "; " + std::to_string(group.first) + " threads " + what + " (first " + text(group.second) + ")";
    return result;
}

// 0xFF into the static shared memory: the thread-local block of this library, whose place the loader knows.
__attribute__((no_sanitize("address"))) inline void poison_shared() {
    const auto visit = [](dl_phdr_info* info, size_t, void*) {
        for (int k = 0; k < info->dlpi_phnum; ++k) {
            auto* begin = static_cast<volatile char*>(info->dlpi_tls_data);
            const size_t bytes = info->dlpi_phdr[k].p_memsz;
            if (info->dlpi_phdr[k].p_type != PT_TLS || !begin || &shared_memory_anchor < begin ||
                &shared_memory_anchor >= begin + bytes)
                continue;
            for (size_t at = 0; at < bytes; ++at) begin[at] = char(0xFF);
            return 1;
        }
        return 0;
    };
    shared_memory_anchor = 0;  // the loader makes the block at its first use
    dl_iterate_phdr(visit, nullptr);
}

// 0 .. size - 1, permuted where a seed asks for it.
inline std::vector<unsigned> some_order(size_t size, std::mt19937& random) {
    std::vector<unsigned> order(size);
    std::iota(order.begin(), order.end(), 0u);
    if (machine.seed) std::shuffle(order.begin(), order.end(), random);
    return order;
}

// Each warp runs as far as it can before the next one does: what one writes too early, others see.
inline void run_block(const dim3& block, size_t shared, std::mt19937& random) {
    const unsigned threads = unsigned(block.size());
    poison_shared();
    std::memset(machine.dynamic.get(), 0xFF, shared);
    for (unsigned k = 0; k < threads; ++k) {
        Fiber& fiber = machine.fibers[k];
        fiber.state = State::ready;
        fiber.thread = {k % block.x, k / block.x % block.y, k / block.x / block.y};
        fiber.warp = k / warpSize, fiber.lane = k % warpSize;
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(fiber.stack.get(), kStack);
#endif
        std::memcpy(fiber.stack.get(), &kCanary, sizeof kCanary);
        prepare(fiber.context, fiber.stack.get(), kStack, run_fiber);
    }
    const std::vector<unsigned> warps = some_order((threads + warpSize - 1) / warpSize, random);
    const std::vector<unsigned> lanes = some_order(warpSize, random);
    do {
        for (const unsigned w : warps) {
            Fiber* const warp = machine.fibers.data() + warpSize * w;
            const unsigned size = std::min<unsigned>(warpSize, threads - warpSize * w);
            do {
                for (const unsigned lane : lanes) {
                    if (lane < size && warp[lane].state == State::ready) resume(warp[lane]);
                    if (!machine.error.empty()) return;
                }
            } while (release_warp(warp, size));
        }
    } while (release_block(threads));
    for (size_t k = 0; k < threads; ++k) {
        if (machine.fibers[k].state != State::done) machine.error = describe_divergence(threads);
        if (std::memcmp(machine.fibers[k].stack.get(), &kCanary, sizeof kCanary))
            machine.error = "a thread's stack overflowed; raise emulation::kStack";
        if (!machine.error.empty()) return;
    }
}

inline void run(const void* kernel, const dim3& grid, const dim3& block, size_t shared, void (*body)(void*),
                void* argument) {
    if (!machine.error.empty()) return;  // as after a failed launch on a device
    const auto allowed = machine.max_shared.find(kernel);
    const size_t limit = allowed == machine.max_shared.end() ? kMaxSharedByDefault : allowed->second;
    if (!grid.size() || !block.size() || block.size() > 1024 || shared > limit) {
        machine.error = "invalid launch: " + std::to_string(grid.size()) + " blocks of " +
                        std::to_string(block.size()) + " threads with " + std::to_string(shared) +
                        " bytes of dynamic shared memory, of which " + std::to_string(limit) + " are allowed";
        return;
    }
    gridDim = grid, blockDim = block;
    machine.body = body, machine.argument = argument;
    machine.offered.resize((block.size() + warpSize - 1) / warpSize);
    machine.dynamic.reset(new char[shared]);  // to the byte, for AddressSanitizer
    while (machine.fibers.size() < block.size()) {
        machine.fibers.emplace_back();
        machine.fibers.back().stack.reset(new char[kStack]);
    }
    std::mt19937 random(machine.seed);
    for (const unsigned b : some_order(grid.size(), random)) {
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block(block, shared, random);
        if (!machine.error.empty()) return;
    }
}

// A warp barrier at which every lane offers a value; returns what they offered.
template <class T>
const std::uint64_t* exchange(unsigned mask, T value, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a lane offers at most 8 bytes");
    Fiber& self = *machine.running;
    if (!(mask >> self.lane & 1)) fault("a lane calls a warp function whose mask leaves it out", site);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    wait(State::at_warp_barrier, mask, bits, site);
    return machine.offered[self.warp].data();
}

template <class T>
T from_lane(const std::uint64_t* offered, unsigned lane, Site site) {
    if (!(machine.running->mask >> lane & 1)) fault("a shuffle reads a lane that takes no part", site);
    T value;
    std::memcpy(&value, offered + lane, sizeof value);
    return value;
}

inline unsigned count_if_true(unsigned mask, bool value, Site site) {
    const std::uint64_t* offered = exchange(mask, value, site);
    unsigned result = 0;
    for (unsigned lane = 0; lane < unsigned(warpSize); ++lane)
        if (machine.running->mask >> lane & 1 && offered[lane]) result |= 1u << lane;
    return result;
}

}  // namespace emulation

// 0: blocks, warps and lanes as numbered; else in an order drawn with this seed.
EMULATION_EXPORT inline void emulation_order(unsigned seed) { emulation::machine.seed = seed; }

// Barriers and warp functions.  HERE gives the caller's line.
#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(HERE) { emulation::wait(emulation::State::at_block_barrier, 0, 0, {file, line}); }
inline int __syncthreads_count(int value, HERE) {
    emulation::wait(emulation::State::at_block_barrier, 0, value != 0, {file, line});
    return int(emulation::machine.votes);
}
inline int __syncthreads_or(int value, HERE) { return __syncthreads_count(value, file, line) > 0; }
inline int __syncthreads_and(int value, HERE) { return !__syncthreads_count(!value, file, line); }
inline void __syncwarp(unsigned mask = ~0u, HERE) { emulation::exchange(mask, 0, {file, line}); }
inline unsigned __ballot_sync(unsigned mask, int value, HERE) {
    return emulation::count_if_true(mask, value != 0, {file, line});
}
inline int __any_sync(unsigned mask, int value, HERE) { return __ballot_sync(mask, value, file, line) != 0; }
inline int __all_sync(unsigned mask, int value, HERE) { return __ballot_sync(mask, !value, file, line) == 0; }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, HERE) {
    const unsigned self = emulation::machine.running->lane, base = self & ~unsigned(width - 1);
    return emulation::from_lane<T>(emulation::exchange(mask, value, {file, line}), base + (lane & (width - 1)),
                                   {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, HERE) {
    const unsigned self = emulation::machine.running->lane, lane = self ^ unsigned(bits);
    const bool later = lane >= (self & ~unsigned(width - 1)) + width;
    return emulation::from_lane<T>(emulation::exchange(mask, value, {file, line}), later ? self : lane, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize, HERE) {
    const unsigned self = emulation::machine.running->lane, within = self & unsigned(width - 1);
    return emulation::from_lane<T>(emulation::exchange(mask, value, {file, line}), within < by ? self : self - by,
                                   {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize, HERE) {
    const unsigned self = emulation::machine.running->lane, within = self & unsigned(width - 1);
    return emulation::from_lane<T>(emulation::exchange(mask, value, {file, line}),
                                   within + by >= unsigned(width) ? self : self + by, {file, line});
}
#undef HERE
inline void __threadfence() {}
inline void __threadfence_block() {}

#define EMULATION_ATOMIC(name, result)              \
    template <class T, class U>                     \
    T name(T* address, U operand) {                 \
        const T old = *address, value = T(operand); \
        *address = T(result);                       \
        return old;                                 \
    }
EMULATION_ATOMIC(atomicAdd, old + value)
EMULATION_ATOMIC(atomicSub, old - value)
EMULATION_ATOMIC(atomicMin, value < old ? value : old)
EMULATION_ATOMIC(atomicMax, old < value ? value : old)
EMULATION_ATOMIC(atomicOr, old | value)
EMULATION_ATOMIC(atomicAnd, old& value)
EMULATION_ATOMIC(atomicExch, value)
#undef EMULATION_ATOMIC
template <class T, class U, class V>
T atomicCAS(T* address, U expected, V desired) {
    const T old = *address;
    if (old == T(expected)) *address = T(desired);
    return old;
}

// Arithmetic that CUDA knows and C++ does not.  The fast versions are the exact ones here.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class To, class From>
To emulation_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float v) { return emulation_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return emulation_bits<unsigned>(v); }
inline float __int_as_float(int v) { return emulation_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return emulation_bits<float>(v); }
inline long long __double_as_longlong(double v) { return emulation_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emulation_bits<double>(v); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float __frcp_rn(float v) { return 1 / v; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }

// The runtime.
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    if (bytes) std::memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    if (bytes) std::memcpy(to, from, bytes);
    return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
    if (bytes < 0 || size_t(bytes) > emulation::kMaxShared) return cudaErrorInvalidValue;
    emulation::machine.max_shared[reinterpret_cast<const void*>(kernel)] = size_t(bytes);
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    emulation::machine.last_error = std::exchange(emulation::machine.error, {});
    return emulation::machine.last_error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline const char* cudaGetErrorString(cudaError_t) { return emulation::machine.last_error.c_str(); }

namespace mdtrajnet::cuda {

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A&&... arguments) {
    std::tuple<void (*)(P...), std::tuple<P...>> call(kernel, std::tuple<P...>(std::forward<A>(arguments)...));
    const auto body = [](void* argument) {
        auto& [function, values] = *static_cast<decltype(call)*>(argument);
        std::apply(function, values);
    };
    emulation::run(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, body, &call);
}

template <class T>
T* dynamic_shared() {
    return reinterpret_cast<T*>(emulation::machine.dynamic.get());
}

}  // namespace mdtrajnet::cuda

namespace mdtrajnet {

// What a launcher returns to ctypes: null, or the message of the exception.
template <class Call>
const char* message_of(const Call& call) {
    static std::string message;
    try {
        call();
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
    return nullptr;
}

}  // namespace mdtrajnet
