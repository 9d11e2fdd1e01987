// A list with a skin: whether to search anew, and what of the list is within the cutoff.
#include "cuda/neighbors_parts.hpp"

namespace mdtrajnet::cuda {
namespace {

// What a skin list remembers of its last build.
struct Memory {
    SkinState* state;
    double* positions;  // [atoms][3]
    double* cells;      // [systems][9]
    uint8_t* pbc;       // [systems][3]
    int64_t* ptr;       // [systems + 1]
    Bits* drift;        // [systems][3] sum of displacements since then, in 1 / kDriftScale Å
};

constexpr double kDriftScale = 1 << 20;

size_t divide(void* memory, int64_t atoms, int64_t systems, Memory& m) {
    Pieces pieces(memory);
    pieces.take(m.state, 1);
    pieces.take(m.positions, 3 * atoms);
    pieces.take(m.cells, 9 * systems);
    pieces.take(m.pbc, 3 * systems);
    pieces.take(m.ptr, systems + 1);
    pieces.take(m.drift, 3 * systems);
    return pieces.used();
}

__device__ double cell_at(const Systems& systems, int64_t k) { return systems.cells ? systems.cells[k] : 0; }
__device__ uint8_t pbc_at(const Systems& systems, int64_t k) { return systems.pbc && systems.pbc[k]; }

// Sums in whole units, whose order does not matter.
__global__ void __launch_bounds__(kThreads) sum_drift(Systems systems, Memory m) {
    const int64_t i = min(thread_index(), systems.atoms - 1);
    const bool counts = thread_index() < systems.atoms;
    const int32_t s = system_of(systems, i);
    const bool together = __all_sync(kAll, s == __shfl_sync(kAll, s, 0));
#pragma unroll
    for (int d = 0; d < 3; ++d) {
        // The bounds are for what is not a number; any drift is as good, if not as useful, as the right one.
        const double moved = fmin(fmax(systems.positions[3 * i + d] - m.positions[3 * i + d], -1e6), 1e6);
        Bits units = counts ? Bits(static_cast<long long>(moved * kDriftScale)) : 0;
        if (together)
            for (int step = 16; step; step /= 2) units += __shfl_xor_sync(kAll, units, step);
        if (!together || lane_index() == 0) atomicAdd(&m.drift[3 * int64_t(s) + d], units);
    }
}

// One thread per atom and per system (and the end of ptr).  All that ask for a new search write the same.
__global__ void __launch_bounds__(kThreads) check_skin(Systems systems, double cutoff, double skin, Memory m) {
    const int64_t i = thread_index();
    bool stale = i == 0 && (m.state->builds == 0 || !usable(m.state->status));
    if (i < systems.atoms) {
        const int32_t s = system_of(systems, i);
        const double atoms = static_cast<double>(systems.ptr[s + 1] - systems.ptr[s]);
        double moved2 = 0, farthest = 0;
        for (int d = 0; d < 3; ++d) {
            const double now = systems.positions[3 * i + d], then = m.positions[3 * i + d];
            const double drift = static_cast<double>(static_cast<long long>(m.drift[3 * int64_t(s) + d]));
            const double moved = now - then - drift / kDriftScale / atoms;
            moved2 += moved * moved;
            farthest = largest(farthest, fabs(now), fabs(then));
        }
        const double allowed = 0.5 * skin - 1e-14 * (farthest + cutoff);  // less what rounding may hide
        if (!(allowed > 0 && moved2 <= allowed * allowed)) stale = true;  // also where it is not finite
    }
    if (i < systems.count) {
        for (int k = 0; k < 9; ++k) stale = stale || cell_at(systems, 9 * i + k) != m.cells[9 * i + k];
        for (int k = 0; k < 3; ++k) stale = stale || pbc_at(systems, 3 * i + k) != m.pbc[3 * i + k];
    }
    if (i <= systems.count) stale = stale || systems.ptr[i] != m.ptr[i];
    if (stale) m.state->rebuild = 1;
}

__global__ void open_status(SkinState* state) {
    if (state->rebuild) state->status = {0, 0, 0};
}

__global__ void __launch_bounds__(kThreads) remember(Systems systems, Memory m) {
    const int64_t i = thread_index();
    if (!m.state->rebuild) return;
    if (i == 0 && usable(m.state->status)) ++m.state->builds;
    if (i < systems.atoms)
        for (int d = 0; d < 3; ++d) m.positions[3 * i + d] = systems.positions[3 * i + d];
    if (i < systems.count) {
        for (int k = 0; k < 9; ++k) m.cells[9 * i + k] = cell_at(systems, 9 * i + k);
        for (int k = 0; k < 3; ++k) m.pbc[3 * i + k] = pbc_at(systems, 3 * i + k);
    }
    if (i <= systems.count) m.ptr[i] = systems.ptr[i];
}

// Is an edge i -> j of the skin list within the limit?
__device__ bool within(const Systems& systems, const double* cell, const double* ri, const SkinList& list, int64_t e,
                       double limit, double& d2) {
    const int32_t* shift = list.shift + 3 * e;
    double t[3] = {0, 0, 0};
    if (shift[0] | shift[1] | shift[2]) translation(reinterpret_cast<const double (*)[3]>(cell), shift, t);
    d2 = distance2(ri, systems.positions + 3 * int64_t(list.neighbor[e]), t);
    return d2 <= limit;
}

__global__ void __launch_bounds__(kThreads)
    count_within_rows(Systems systems, double limit, SkinList list, int32_t* count, Status* status) {
    const int64_t i = warp_index();
    const Status skin = static_cast<const SkinState*>(list.state)->status;
    if (!usable(skin) && thread_index() == 0) status->refused = skin.refused, status->overflow = skin.overflow;
    if (i >= systems.atoms) return;
    const double* ri = systems.positions + 3 * i;
    const double* cell = systems.cells ? systems.cells + 9 * int64_t(system_of(systems, i)) : nullptr;
    int32_t found = 0;
    if (usable(skin)) {
        for (int64_t e = list.row_ptr[i] + lane_index(); e < list.row_ptr[i + 1]; e += 32) {
            double d2;
            if (!within(systems, cell, ri, list, e, limit, d2)) continue;
            ++found;
            if (d2 < kCoincident * kCoincident) status->refused = 1;
        }
    }
    for (int step = 16; step; step /= 2) found += __shfl_xor_sync(kAll, found, step);
    if (lane_index() == 0) count[i] = found;
}

__global__ void __launch_bounds__(kThreads)
    fill_within_rows(Systems systems, double limit, SkinList list, const int64_t* row_ptr, int32_t* neighbor,
                     int32_t* shift, const Status* status) {
    const int64_t i = warp_index();
    if (i >= systems.atoms || !usable(*status)) return;
    const double* ri = systems.positions + 3 * i;
    const double* cell = systems.cells ? systems.cells + 9 * int64_t(system_of(systems, i)) : nullptr;
    int64_t at = row_ptr[i];
    for (int64_t chunk = list.row_ptr[i]; chunk < list.row_ptr[i + 1]; chunk += 32) {
        const int64_t e = chunk + lane_index();
        double d2;
        const bool near = e < list.row_ptr[i + 1] && within(systems, cell, ri, list, e, limit, d2);
        const unsigned lanes = __ballot_sync(kAll, near);
        if (near) {
            const int64_t to = at + __popc(lanes & ((1u << lane_index()) - 1));
            neighbor[to] = list.neighbor[e];
            for (int d = 0; d < 3; ++d) shift[3 * to + d] = list.shift[3 * e + d];
        }
        at += __popc(lanes);
    }
}

}  // namespace

std::size_t skin_bytes(int64_t atoms, int64_t systems) {
    Memory m;
    return divide(nullptr, atoms, systems, m);
}

void update_skin(const Systems& systems, double cutoff, double skin, const SkinList& list, void* workspace,
                 Stream stream) {
    require_size(systems);
    Memory m;
    divide(list.state, systems.atoms, systems.count, m);
    const int64_t things = systems.atoms > systems.count ? systems.atoms : systems.count + 1;
    clear(m.drift, 3 * systems.count * sizeof(Bits), stream);
    clear(&m.state->rebuild, sizeof m.state->rebuild, stream);
    launch_over(systems.atoms, sum_drift, stream, systems, m);
    launch_over(things, check_skin, stream, systems, cutoff, skin, m);
    launch(open_status, dim3(1), dim3(1), 0, stream, m.state);

    const int32_t* gate = &m.state->rebuild;
    const double reach = cutoff + skin;
    count_gated(systems, reach, list.capacity, workspace, list.row_ptr, &m.state->status, gate, stream);
    fill_gated(systems, reach, workspace, list.row_ptr, list.neighbor, list.shift, &m.state->status, gate, stream);
    launch_over(things, remember, stream, systems, m);
    check(cudaGetLastError(), "neighbour skin");
}

void count_within(const Systems& systems, double cutoff, const SkinList& list, int64_t capacity, void* workspace,
                  int64_t* row_ptr, Status* status, Stream stream) {
    Workspace w;
    divide(workspace, systems.atoms, systems.count, w);
    clear(status, sizeof *status, stream);
    launch_over(32 * systems.atoms, count_within_rows, stream, systems, cutoff * cutoff, list, w.count, status);
    scan(w, systems.atoms, row_ptr, capacity, status, nullptr, stream);
    check(cudaGetLastError(), "neighbour skin");
}

void fill_within(const Systems& systems, double cutoff, const SkinList& list, const int64_t* row_ptr, int32_t* neighbor,
                 int32_t* shift, const Status* status, Stream stream) {
    launch_over(32 * systems.atoms, fill_within_rows, stream, systems, cutoff * cutoff, list, row_ptr, neighbor, shift,
                status);
    check(cudaGetLastError(), "neighbour skin");
}

}  // namespace mdtrajnet::cuda
