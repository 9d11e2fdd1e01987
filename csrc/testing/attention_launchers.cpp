// The launchers of cuda/attention.hpp for ctypes.  Each returns null, or the message of the exception.
#include "cuda/attention.hpp"

using namespace mdtrajnet;

EMULATION_EXPORT std::int64_t emulated_slice() { return cuda::kSlice; }

EMULATION_EXPORT const char* emulated_packed_bytes(const AttentionSizes* size, std::int64_t* bytes) {
    return message_of([&] { *bytes = std::int64_t(cuda::packed_attention_bytes(*size)); });
}

EMULATION_EXPORT const char* emulated_pack(const AttentionSizes* size, const AttentionWeights<float>* weights,
                                           float* packed) {
    return message_of([&] { cuda::pack_attention(*size, *weights, packed, nullptr); });
}

EMULATION_EXPORT const char* emulated_attention_bytes(const AttentionSizes* size, const cuda::AttentionRows* rows,
                                                      std::int64_t tangent, std::int64_t stack, std::int64_t* bytes) {
    return message_of([&] { *bytes = std::int64_t(cuda::attention_bytes(*size, *rows, tangent, stack)); });
}

EMULATION_EXPORT const char* emulated_attention(const AttentionSizes* size, const float* packed,
                                                const cuda::AttentionRows* rows, const AttentionState<float>* state,
                                                const AttentionState<float>* tangent, const AttentionState<float>* out,
                                                const AttentionState<float>* out_tangent, void* workspace) {
    return message_of(
        [&] { cuda::attention({*size, packed}, *rows, *state, tangent, *out, out_tangent, workspace, nullptr); });
}

// sizes, packed: one pointer a block.
EMULATION_EXPORT const char* emulated_attention_stack(const AttentionSizes* const* sizes, const float* const* packed,
                                                      std::int64_t blocks, std::int64_t running,
                                                      const cuda::AttentionRows* rows, const float* scalars,
                                                      const float* scalars_tangent, const AttentionState<float>* out,
                                                      const AttentionState<float>* out_tangent, void* workspace) {
    return message_of([&] {
        std::vector<cuda::AttentionBlock> all;
        for (std::int64_t k = 0; k < blocks; ++k) all.push_back({*sizes[k], packed[k]});
        cuda::attention_stack(all, running, *rows, scalars, scalars_tangent, *out, out_tangent, workspace, nullptr);
    });
}
