// What the parts of the neighbour search share: bins, workspace, the arithmetic of a pair, what one does for another.
//
// A cell list.  The bins of a system are at most as many as its atoms and start at its first atom, so that one
// counting sort and one array serve all systems of a call, and the atoms of a system keep their range:
//
//     lattices  one thread per system    its lattice, checked
//     measure   one thread per atom      extent of each system, along the directions of its lattice
//     bins      one thread per system    how many bins, and how far the cutoff reaches in bins and images
//     sort      count_bins, scan, scatter
//     search    one warp per atom        counts the neighbours; after a scan again, to write and sort each row
//
// Which pairs belong to the list is decided by `distance2` on the positions as given, the very operations of the CPU
// (none fused), so both lists are the same; bins need only be wide enough, by a margin for rounding.
// A kernel with a gate does nothing where the gate points at 0.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/launch.hpp"
#include "cuda/neighbors.hpp"
#include "cuda/pieces.hpp"

namespace mdtrajnet::cuda {

using std::int32_t;
using std::int64_t;
using std::uint8_t;
using Bits = unsigned long long;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 128, kWarps = kThreads / 32;  // of a block
constexpr int kTile = 1024;                            // items of a block of the scan
constexpr int kMeasures = 8;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One system.  A direction k that is not periodic has a unit vector perpendicular to the periodic ones.
struct Grid {
    double vector[3][3];
    double inverse[3][3];  // fractional[k] = inverse[k] . position
    double height[3];      // between opposite faces
    int32_t periodic[3];
    Bits measured[kMeasures];    // keys of the largest -fractional[3], fractional[3], |coordinate| and wrap, Å
    double origin[3], scale[3];  // bin[k] = (fractional[k] - origin[k]) * scale[k]
    int32_t bins[3], reach[3], images[3];
};

struct Workspace {
    Grid* grid;          // [systems]
    int32_t* system;     // [atoms] and [places], which is the same
    int32_t* bin;        // [atoms]
    int4* wrap;          // [atoms] position = wrapped position + wrap . cell; w: the place within the bin
    int32_t* bin_start;  // [atoms + 1]
    double* sorted;      // [places][3] the positions as given, in order of the bins
    int4* place;         // [places] wrap; w: the atom
    int32_t* count;      // [atoms] atoms of each bin, then neighbours of each atom
    int64_t* sums;       // [tiles + 1]
};

inline int64_t tiles_of(int64_t items) { return (items + kTile - 1) / kTile; }

inline size_t divide(void* memory, int64_t atoms, int64_t systems, Workspace& w) {
    Pieces pieces(memory);
    pieces.take(w.grid, systems);
    pieces.take(w.system, atoms);
    pieces.take(w.bin, atoms);
    pieces.take(w.wrap, atoms);
    pieces.take(w.bin_start, atoms + 1);
    pieces.take(w.sorted, 3 * atoms);
    pieces.take(w.place, atoms);
    pieces.take(w.count, atoms);
    pieces.take(w.sums, tiles_of(atoms) + 1);
    return pieces.used();
}

__device__ inline bool closed(const int32_t* gate) { return gate && !*gate; }
__device__ inline bool usable(const Status& status) { return !status.refused && !status.overflow; }

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t warp_index() { return int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; }
__device__ inline int lane_index() { return threadIdx.x % 32; }

__device__ inline int32_t system_of(const Systems& systems, int64_t atom) {
    int64_t low = 0, high = systems.count;  // the last with ptr <= atom, which is not an empty one
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (systems.ptr[middle] <= atom ? low : high) = middle;
    }
    return static_cast<int32_t>(low);
}

__device__ inline double largest(double a, double b, double c) { return fmax(a, fmax(b, c)); }

// The two expressions that decide whether a pair is a neighbour: those of cpu/neighbors.cpp, to the last bit.
__device__ inline void translation(const double vector[3][3], const int32_t* shift, double* out) {
#pragma unroll
    for (int d = 0; d < 3; ++d)
        out[d] = __dadd_rn(__dadd_rn(__dmul_rn(shift[0], vector[0][d]), __dmul_rn(shift[1], vector[1][d])),
                           __dmul_rn(shift[2], vector[2][d]));
}

__device__ inline void difference(const double* ri, const double* rj, const double* t, double* r) {
#pragma unroll
    for (int d = 0; d < 3; ++d) r[d] = __dadd_rn(__dsub_rn(rj[d], ri[d]), t[d]);
}

__device__ inline double distance2(const double* ri, const double* rj, const double* t) {
    double r[3];
    difference(ri, rj, t, r);
    return __dadd_rn(__dadd_rn(__dmul_rn(r[0], r[0]), __dmul_rn(r[1], r[1])), __dmul_rn(r[2], r[2]));
}

inline void require_size(const Systems& systems) {
    if (systems.atoms > kMaxAtoms || systems.count > kMaxAtoms)
        throw std::invalid_argument("a neighbour list on the GPU takes at most " + std::to_string(kMaxAtoms) +
                                    " atoms and as many systems, got " + std::to_string(systems.atoms) + " atoms in " +
                                    std::to_string(systems.count) + " systems; split them over calls");
}

// Over as many threads as there are items; nothing is launched for none.
template <class... P, class... A>
void launch_over(int64_t threads, void (*kernel)(P...), Stream stream, const A&... arguments) {
    const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    if (threads > 0) launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, arguments...);
}

inline void clear(void* memory, size_t bytes, Stream stream) {
    if (bytes) check(cudaMemsetAsync(memory, 0, bytes, stream), "neighbour search");
}

// neighbors_bins.cu: all that comes before the search.
void sort_into_bins(const Systems& systems, double cutoff, const Workspace& w, Status* status, const int32_t* gate,
                    Stream stream);

// neighbors_scan.cu: out [items + 1], the sums of the counts before each; T is int32_t or int64_t.
template <class T>
void scan(const Workspace& w, int64_t items, T* out, int64_t capacity, Status* status, const int32_t* gate,
          Stream stream);

// neighbors.cu: count_neighbors, once the status is clear, and fill_neighbors, both with a gate.
void count_gated(const Systems& systems, double cutoff, int64_t capacity, void* workspace, int64_t* row_ptr,
                 Status* status, const int32_t* gate, Stream stream);
void fill_gated(const Systems& systems, double cutoff, void* workspace, const int64_t* row_ptr, int32_t* neighbor,
                int32_t* shift, const Status* status, const int32_t* gate, Stream stream);

}  // namespace mdtrajnet::cuda
