// Neighbour lists on the GPU: the lists of cpu/neighbors.hpp, equal to them in every entry.
//
// All pointers, those in Systems too, are device memory; everything runs on the stream given and nothing waits for
// the host, so every call can be captured in a CUDA graph.  A list takes two calls, because the edges are allocated
// once their number is known, or once and for all with room for a number that the caller chooses:
//
//     count_neighbors(systems, cutoff, capacity, workspace, row_ptr, status, stream);
//     (read status->edges and allocate, or go on with what was allocated for `capacity`)
//     fill_neighbors(systems, cutoff, workspace, row_ptr, neighbor, shift, status, stream);
//
// When the input is refused, or has more edges than `capacity`, the status says so, row_ptr is all zeros (what follows
// in a graph sees no edges) and nothing is written to the edges.  The reason of a refusal is the CPU search's to say:
// it refuses the same input.  A failed launch throws std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/neighbors.hpp"  // Systems, kCoincident

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace mdtrajnet::cuda {

using Stream = CUstream_st*;

// More atoms (or systems) than this in one call throw std::invalid_argument: places are counted in 32 bits.  So are
// they through periodic images: a system with more than 2^31 places along its third lattice vector is refused.
constexpr std::int64_t kMaxAtoms = std::int64_t(1) << 29;
constexpr std::int64_t kUnlimited = INT64_MAX;

// What became of a list; device memory that count_neighbors and count_within write.
struct Status {
    std::int32_t refused;   // 1: positions or cells are not what they must be, or atoms coincide
    std::int32_t overflow;  // 1: there are more edges than the capacity
    std::int64_t edges;     // how many there are, also where they are too many; 0 if refused
};

// Bytes of the workspace, which may serve any number of calls one after another.
std::size_t workspace_bytes(std::int64_t atoms, std::int64_t systems);

// Writes row_ptr [atoms + 1] and status.
void count_neighbors(const Systems& systems, double cutoff, std::int64_t capacity, void* workspace,
                     std::int64_t* row_ptr, Status* status, Stream stream);

// Writes neighbor [edges] and shift [edges][3], from what count_neighbors left in the same workspace.
void fill_neighbors(const Systems& systems, double cutoff, void* workspace, const std::int64_t* row_ptr,
                    std::int32_t* neighbor, std::int32_t* shift, const Status* status, Stream stream);

// A list within cutoff + skin, which serves for as long as no atom has moved more than skin / 2 (less the drift that
// its system's atoms share) and cells, pbc and ptr stay as they were.
struct SkinList {
    void* state;             // skin_bytes(atoms, systems); zeros before its first use.  It starts with a SkinState
    std::int64_t* row_ptr;   // [atoms + 1]
    std::int32_t* neighbor;  // [capacity]
    std::int32_t* shift;     // [capacity][3]
    std::int64_t capacity;
};

struct SkinState {
    std::int32_t rebuild;  // 1: the last update_skin searched anew
    std::int32_t unused;
    std::int64_t builds;  // how often it did, and found a list
    Status status;        // of the last search; an overflow is one of SkinList::capacity
};

std::size_t skin_bytes(std::int64_t atoms, std::int64_t systems);

// Searches anew if it must, which the device decides.  The numbers of atoms and systems belong to the state; zero it
// when they, the cutoff or the skin change.  After an overflow give more room (in new row_ptr, neighbor and shift, or
// the old ones) and call again.
void update_skin(const Systems& systems, double cutoff, double skin, const SkinList& list, void* workspace,
                 Stream stream);

// As count_neighbors and fill_neighbors, out of the list that update_skin left.  Where that has none, refused and
// overflow are those of its status, and edges is 0.
void count_within(const Systems& systems, double cutoff, const SkinList& list, std::int64_t capacity, void* workspace,
                  std::int64_t* row_ptr, Status* status, Stream stream);
void fill_within(const Systems& systems, double cutoff, const SkinList& list, const std::int64_t* row_ptr,
                 std::int32_t* neighbor, std::int32_t* shift, const Status* status, Stream stream);

// r [edges][3] = positions[j] + shift . cell - positions[i] and w [edges][3] = velocities[j] - velocities[i], for the
// edges i -> j of a list; taken in double precision, as the list is, and rounded once.
void edge_vectors(const Systems& systems, const double* velocities, const std::int64_t* row_ptr,
                  const std::int32_t* neighbor, const std::int32_t* shift, float* r, float* w, Stream stream);

// The first atom of each atom's connected component, label [atoms], by so many rounds of the search that `components` in
// mdtrajnet_fast/md/device_graph.py describes, and whether it is over (else labels mean nothing).
void connected_components(std::int64_t atoms, const std::int64_t* row_ptr, const std::int32_t* neighbor, int rounds,
                          std::int64_t* label, std::uint8_t* settled, Stream stream);

}  // namespace mdtrajnet::cuda
