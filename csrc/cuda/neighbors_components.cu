#include "cuda/neighbors_parts.hpp"

// Connected components of the neighbour graph.  Labels only fall, whatever the order in which threads see them.

namespace mdtrajnet::cuda {
namespace {

using Label = long long;  // for atomicMin

__global__ void __launch_bounds__(kThreads) label_alone(int64_t atoms, Label* label, uint8_t* settled) {
    const int64_t i = thread_index();
    if (i < atoms) label[i] = i;
    if (i == 0) *settled = 1;
}

// The lowest target of the neighbours' targets, for an atom and for its own target.
__global__ void __launch_bounds__(kThreads)
    lower_labels(int64_t atoms, const int64_t* row_ptr, const int32_t* neighbor, Label* label) {
    const int64_t i = thread_index();
    if (i >= atoms) return;
    const Label own = label[i];
    Label least = label[own];
    for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) least = min(least, label[label[neighbor[e]]]);
    if (least >= own) return;
    atomicMin(label + own, least);
    atomicMin(label + i, least);
}

__global__ void __launch_bounds__(kThreads)
    check_labels(int64_t atoms, const int64_t* row_ptr, const int32_t* neighbor, const Label* label, uint8_t* settled) {
    const int64_t i = thread_index();
    if (i >= atoms) return;
    const Label own = label[i];
    bool same = label[own] == own;
    for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) same = same && label[neighbor[e]] == own;
    if (!same) *settled = 0;
}

}  // namespace

void connected_components(int64_t atoms, const int64_t* row_ptr, const int32_t* neighbor, int rounds, int64_t* label,
                          uint8_t* settled, Stream stream) {
    Label* const labels = reinterpret_cast<Label*>(label);
    launch_over(atoms, label_alone, stream, atoms, labels, settled);
    for (int k = 0; k < rounds; ++k) launch_over(atoms, lower_labels, stream, atoms, row_ptr, neighbor, labels);
    launch_over(atoms, check_labels, stream, atoms, row_ptr, neighbor, labels, settled);
    check(cudaGetLastError(), "connected components");
}

}  // namespace mdtrajnet::cuda
