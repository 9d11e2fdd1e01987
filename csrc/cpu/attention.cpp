#include "attention.hpp"

#include <cstring>

namespace mdtrajnet {

const AttentionKernels* attention_kernels(const char* instruction_set) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    const bool avx2 = false, avx512 = false;
#endif
    const auto wanted = [&](const char* name) { return !instruction_set || !std::strcmp(instruction_set, name); };
#if defined(__x86_64__)
    if (avx512 && wanted("avx512")) return &attention_kernels_avx512();
    if (avx2 && wanted("avx2")) return &attention_kernels_avx2();
#endif
    return wanted("base") ? &attention_kernels_base() : nullptr;
}

}  // namespace mdtrajnet
