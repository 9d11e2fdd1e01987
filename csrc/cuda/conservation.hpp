// Velocities without rigid motion on the GPU, in double precision: internal_velocities of mdtrajnet_fast/md/conservation.py.
//
// All pointers are device memory; everything runs on the stream given and nothing waits for the host, so every call can be
// captured in a CUDA graph.  Sums over the atoms of a component are in no fixed order: results repeat to rounding.  A failed
// launch throws std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace mdtrajnet::cuda {

using Stream = CUstream_st*;

// Motion of the same atoms at several times.
struct Moving {
    std::int64_t times, atoms;
    const double* positions;        // [times][atoms][3], Å
    const double* velocities;       // [times][atoms][3], Å/fs
    const double* masses;           // [atoms], amu
    const std::int64_t* component;  // [atoms], labels from 0 to atoms - 1
    const bool* isolated;           // [atoms], the same for all atoms of a component; null: none is
};

std::size_t internal_velocities_bytes(std::int64_t times, std::int64_t atoms);

// Writes out [times][atoms][3] (Å/fs): velocities without what moves and, where it is isolated, turns each component.
void internal_velocities(const Moving& moving, void* workspace, double* out, Stream stream);

}  // namespace mdtrajnet::cuda
