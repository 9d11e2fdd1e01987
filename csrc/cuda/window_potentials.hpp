// Energies and slopes of window potentials on the GPU, in single precision: what DensityNetwork in
// mdtrajnet_fast/model/density_network.py computes, as csrc/cpu/window_potentials.hpp does on the CPU. A dipole's charges are
// such "energies".
//
// All pointers are device memory; everything runs on the stream given and nothing waits for the host, so every call can be
// captured in a CUDA graph.  The caller allocates the workspace, which may serve any number of calls one after another.
// There are no atomics: where an atom sees another, this one sees it too, along -r, and each gathers from its own edges.
// Results do not depend on how often a call is repeated, nor on edges beyond the last row.
//
// A layer is five launches:
//
//     densities        a block per tile of atoms: densities, their linear maps, and invariants of these, the features
//     forward          a block per tile: hidden layers, energy, and what the next layer begins with
//     backward         a block per tile: from the energy back to the features
//     densities_back   a block per tile: from there to the densities; the maps are computed once more
//     edges            a warp per atom: slopes, and the gradient of what neighbours see
//
// Between them an atom has in memory, of each layer, its density or the gradient of that (10 rows of channels), what
// neighbours see (1), and the slopes of both hidden layers; and features of one layer: 8 kB in all for 2 layers of 48
// channels and products and 128 units.  All else is in registers and shared memory.
//
// What limits them is how many numbers shared memory hands to the threads: an atom's rows are read by a thread for each
// column, so that each thread has several atoms and, in large tiles, four columns.  Small systems get small tiles, for all
// multiprocessors to have one.
//
// Limits, refused with std::invalid_argument: 2^31 - 1 atoms, and the smallest tiles must fit into shared memory (some 500
// products; 2,000 hidden units).  A failed launch throws std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/attention.hpp"  // WindowPotentialSizes, WindowPotentialWeights, AttentionGraph

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace mdtrajnet::cuda {

using Stream = CUstream_st*;

// Bytes of the workspace for graphs of so many atoms; slopes: whether they are wanted, beside energies.
std::size_t window_potential_bytes(const WindowPotentialSizes& sizes, std::int64_t atoms, bool slopes);

// Atomic energies [atoms] (eV), all in one role, and the slopes of their sum [atoms, 3] (eV/Å), which may be null.  Every edge
// of the graph must be there from its other end, too; reads no w.
void window_potential(const WindowPotentialSizes& sizes, const WindowPotentialWeights<float>& weights,
                      const AttentionGraph<float>& graph, const std::int64_t* species, std::int64_t role, float* energy,
                      double* slope, void* workspace, Stream stream);

}  // namespace mdtrajnet::cuda
