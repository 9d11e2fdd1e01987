// The attention block on the GPU, in single precision: values and, where asked for, their derivative with respect to time.
//
// All pointers are device memory; everything runs on the stream given and nothing waits for the host, so every call can be
// captured in a CUDA graph.  The caller allocates: weights once per block, workspace per call, which
// may serve any number of calls one after another.  Results do not depend on how often a call is repeated, on how many
// times it holds or on how its atoms fall into slices; there are no atomics.
//
// Limits, refused with std::invalid_argument: one hidden layer per radial network, at most kMaxCentres Gaussians, and
// 2^31 - 1 atoms, all times counted.  Any numbers of heads, channels and hidden units; for kKnownSizes
// (attention_layout.hpp), with 1 to 4 heads and 1 to 8 scalar key channels, there are edge kernels of their own.  A
// failed launch throws std::runtime_error.
//
// Where the work is done, for the published sizes (S = 20 scalars, 4 heads of 8 channels, n = 128 hidden units), counting
// multiply-adds and a GELU as 20:
//
//     columns   per atom   135 k   s_i into an atom's own columns of keys and values, and offsets of the hidden layers
//     logits    per edge    20 k   first layer, GELU, 120 columns
//     values    per edge    10 k   first layer, GELU, means of the hidden layer, 32 columns
//     combine   per atom    91 k   the means with s_i into scalar values
//
// The columns of an atom (26 kB) are too many for shared memory once more than a few atoms are at work, and the fewer
// atoms share a tile the more often the weights (1 MB a block) are read: eight atoms a tile would read 110 kB an atom.
// So they go through global memory: 26 kB written, 26 kB read (logits: once from L2 or memory, then from L1 and L2), and
// 6 kB of means the same way, in slices of kSlice atoms.  At 4 TB/s these 64 kB are 16 ns an atom, beside 57 ns of arithmetic
// at the peak of 132 multiprocessors for 46 neighbours; tiles of 64 and 32 atoms read the weights, 20 kB an atom, from L2.
// Beyond a slice's 155 MB (twice that with tangents) an atom costs 128 bytes of queries, 16 an edge of logits, and in a stack
// two states.
//
// An edge kernel gives a centre to a warp, which takes its edges 16 (few neighbours, tangents, other sizes: 8) at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/attention.hpp"  // AttentionSizes, AttentionWeights, AttentionGraph, AttentionState

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace mdtrajnet::cuda {

using Stream = CUstream_st*;

constexpr int kMaxCentres = 112;  // Gaussians: what fits into the 99 kB of a block that every device since sm_80 has
constexpr std::int64_t kSlice = 4752;  // atoms: three waves of 2 x 6 warps on each of 132 multiprocessors

// Neighbours, for `times` copies of the atoms, one after another.
struct AttentionRows {
    AttentionGraph<float> graph;
    std::int64_t edges;  // that fit into neighbor, r and w; the logits get as much room
    std::int64_t times;
};

// A block's weights in the layout of the kernels.
struct AttentionBlock {
    AttentionSizes size;
    const float* packed;
};

// Bytes of the packed weights.  Throws for sizes beyond the limits.
std::size_t packed_attention_bytes(const AttentionSizes& size);

// Packs weights (device memory, as FoldedWeights has them), which may be freed once the stream has come this far.
void pack_attention(const AttentionSizes& size, const AttentionWeights<float>& weights, float* packed, Stream stream);

// Bytes of the workspace of `attention`, or of `attention_stack`, for one block's sizes.
std::size_t attention_bytes(const AttentionSizes& size, const AttentionRows& rows, bool tangent, bool stack);

// Increments of the state; with `tangent` also theirs.
void attention(const AttentionBlock& block, const AttentionRows& rows, const AttentionState<float>& state,
               const AttentionState<float>* tangent, const AttentionState<float>& increment,
               const AttentionState<float>* increment_tangent, void* workspace, Stream stream);

// All blocks, from the first scalars to the last displacement and velocity change (the outputs' `scalars` are not
// used); with `scalars_tangent` also their tangents.  running: increments add up, rather than each to the first state.
// All blocks have the same numbers of scalars, and may differ in the rest; the workspace is the largest that any of them needs.
void attention_stack(const std::vector<AttentionBlock>& blocks, bool running, const AttentionRows& rows,
                     const float* scalars, const float* scalars_tangent, const AttentionState<float>& out,
                     const AttentionState<float>* out_tangent, void* workspace, Stream stream);

}  // namespace mdtrajnet::cuda
