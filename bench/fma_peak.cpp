// The most multiply-adds a second that this processor's cores can do: independent accumulators in registers, nothing
// else.  Prints one line per instruction set and type:  <set> <type> <GFLOP/s>, a multiply-add counting two.
//
//     fma_peak <threads> <repeats>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// Two units with a latency of four cycles need eight; twelve and two constants still fit 16 registers.
constexpr int kAccumulators = 12;

// GCC and Clang contract a * b + c to one instruction where the set has it (-ffp-contract=fast); the baseline of x86-64
// has none and takes two.
#define KERNEL(name, type, bytes, ...)                                                                        \
    __VA_ARGS__ double name(long rounds) {                                                                    \
        typedef type Vector __attribute__((vector_size(bytes)));                                              \
        Vector sum[kAccumulators];                                                                            \
        Vector factor, term;                                                                                  \
        for (int lane = 0; lane < int(bytes / sizeof(type)); ++lane) {                                        \
            factor[lane] = type(0.999);                                                                       \
            term[lane] = type(0.001);                                                                         \
        }                                                                                                     \
        for (int k = 0; k < kAccumulators; ++k) sum[k] = term * type(k);                                      \
        for (long round = 0; round < rounds; ++round) {                                                       \
            _Pragma("GCC unroll 16") for (int k = 0; k < kAccumulators; ++k) sum[k] = sum[k] * factor + term; \
        }                                                                                                     \
        double total = 0;                                                                                     \
        for (int k = 0; k < kAccumulators; ++k) total += double(sum[k][0]);                                   \
        return total;                                                                                         \
    }

KERNEL(base_f32, float, 16, )
KERNEL(base_f64, double, 16, )
#if defined(__x86_64__)
KERNEL(avx2_f32, float, 32, __attribute__((target("avx2,fma"))))
KERNEL(avx2_f64, double, 32, __attribute__((target("avx2,fma"))))
KERNEL(avx512_f32, float, 64, __attribute__((target("avx512f,fma"))))
KERNEL(avx512_f64, double, 64, __attribute__((target("avx512f,fma"))))
#endif

volatile double sink;

void measure(const char* set, const char* type, double (*kernel)(long), int lanes, int threads, int repeats) {
    const long rounds = 1'000'000;  // some 3 ms: short enough to find a quiet moment
    double best = 0;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        std::vector<std::thread> others;
        const auto begun = std::chrono::steady_clock::now();
        for (int k = 1; k < threads; ++k) others.emplace_back([&] { sink = kernel(rounds); });
        sink = kernel(rounds);
        for (auto& other : others) other.join();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begun;
        best = std::max(best, 2e-9 * lanes * kAccumulators * double(rounds) * threads / taken.count());
    }
    std::printf("%s %s %.1f\n", set, type, best);
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    const int repeats = argc > 2 ? std::atoi(argv[2]) : 200;
    measure("base", "f32", base_f32, 4, threads, repeats);
    measure("base", "f64", base_f64, 2, threads, repeats);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        measure("avx2", "f32", avx2_f32, 8, threads, repeats);
        measure("avx2", "f64", avx2_f64, 4, threads, repeats);
    }
    if (__builtin_cpu_supports("avx512f")) {
        measure("avx512", "f32", avx512_f32, 16, threads, repeats);
        measure("avx512", "f64", avx512_f64, 8, threads, repeats);
    }
#endif
    return 0;
}
