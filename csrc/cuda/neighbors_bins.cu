// Lattices and bins, as in cpu/neighbors.cpp, and the counting sort of atoms by bin.
#include "cuda/neighbors_parts.hpp"

namespace mdtrajnet::cuda {
namespace {

__device__ double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

__device__ void cross(const double* a, const double* b, double* c) {
    c[0] = a[1] * b[2] - a[2] * b[1];
    c[1] = a[2] * b[0] - a[0] * b[2];
    c[2] = a[0] * b[1] - a[1] * b[0];
}

// Keys in the order of the numbers, so that atomicMax on keys is a maximum of numbers.
__device__ Bits key_of(double v) {
    const Bits bits = static_cast<Bits>(__double_as_longlong(v));
    return bits >> 63 ? ~bits : bits | Bits(1) << 63;
}
__device__ double number_of(Bits key) {
    return __longlong_as_double(static_cast<long long>(key >> 63 ? key & ~(Bits(1) << 63) : ~key));
}

__device__ void complete(Grid& g) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        if (g.periodic[k]) continue;
        const double *a = g.vector[(k + 1) % 3], *b = g.vector[(k + 2) % 3];
        double* v = g.vector[k];
        const bool has_a = g.periodic[(k + 1) % 3] || k == 2;  // vectors before k are settled already
        const bool has_b = g.periodic[(k + 2) % 3] || k >= 1;
        if (has_a && has_b) {
            cross(a, b, v);
        } else if (has_a || has_b) {
            const double* c = has_a ? a : b;  // and the axis that it is least along
            const double x = fabs(c[0]), y = fabs(c[1]), z = fabs(c[2]);
            const int least = y < x ? (z < y ? 2 : 1) : (z < x ? 2 : 0);
            const double axis[3] = {least == 0 ? 1. : 0., least == 1 ? 1. : 0., least == 2 ? 1. : 0.};
            cross(c, axis, v);
        } else {
            for (int d = 0; d < 3; ++d) v[d] = d == k;
        }
        const double length = sqrt(dot(v, v));
        for (int d = 0; d < 3; ++d) v[d] /= length;
    }
}

// False if the cell is refused.
__device__ bool make_lattice(const Systems& systems, int64_t s, Grid& g) {
    bool any = false, sound = true;
    for (int k = 0; k < 3; ++k) {
        g.periodic[k] = systems.cells && systems.pbc && systems.pbc[3 * s + k];
        any = any || g.periodic[k];
        for (int d = 0; d < 3; ++d) g.vector[k][d] = g.inverse[k][d] = k == d;
        g.height[k] = 1;
    }
    if (!systems.cells || !systems.pbc) return true;
    const double* cell = systems.cells + 9 * s;
    for (int k = 0; k < 9; ++k) sound = sound && fabs(cell[k]) < kInfinity;
    if (!any || !sound) return sound;

    for (int k = 0; k < 3; ++k) {
        for (int d = 0; d < 3; ++d) g.vector[k][d] = cell[3 * k + d];
        sound = sound && !(g.periodic[k] && dot(g.vector[k], g.vector[k]) < kCoincident * kCoincident);
    }
    if (!sound) return false;
    complete(g);
    double lengths = 1;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        cross(g.vector[(k + 1) % 3], g.vector[(k + 2) % 3], g.inverse[k]);
        lengths *= sqrt(dot(g.vector[k], g.vector[k]));
    }
    const double volume = dot(g.vector[0], g.inverse[0]);
    if (!(fabs(volume) > 1e-9 * lengths)) return false;
    for (int k = 0; k < 3; ++k) {
        for (int d = 0; d < 3; ++d) g.inverse[k][d] /= volume;
        g.height[k] = 1 / sqrt(dot(g.inverse[k], g.inverse[k]));
    }
    return true;
}

__global__ void __launch_bounds__(kThreads) lattices(Systems systems, Grid* grid, Status* status, const int32_t* gate) {
    const int64_t s = thread_index();
    if (closed(gate) || s >= systems.count) return;
    if (!make_lattice(systems, s, grid[s])) status->refused = 1;
    for (int k = 0; k < kMeasures; ++k) grid[s].measured[k] = k < 6 ? key_of(-kInfinity) : key_of(0);
}

// Fractional coordinates and how many cells away they are.
__device__ void fraction(const Grid& g, const double* r, double* f, double* n) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        f[k] = dot(g.inverse[k], r);
        n[k] = g.periodic[k] ? floor(f[k]) : 0;
        f[k] -= n[k];
    }
}

// Whole warps take part: those past the end repeat the last atom.
__global__ void __launch_bounds__(kThreads) measure(Systems systems, Workspace w, Status* status, const int32_t* gate) {
    if (closed(gate)) return;
    const int64_t i = min(thread_index(), systems.atoms - 1);
    const int32_t s = system_of(systems, i);
    Grid& g = w.grid[s];
    const double* r = systems.positions + 3 * i;
    double f[3], n[3], moved = 0;
    fraction(g, r, f, n);
    bool sound = true;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        sound = sound && fabs(r[k]) < 1e15 && fabs(n[k]) < 1e9;
        moved += fabs(n[k]) * sqrt(dot(g.vector[k], g.vector[k]));
    }
    w.system[i] = s;
    if (!sound) status->refused = 1;

    const bool together = __all_sync(kAll, s == __shfl_sync(kAll, s, 0));
    const double values[kMeasures] = {
        -f[0], -f[1], -f[2], f[0], f[1], f[2], largest(fabs(r[0]), fabs(r[1]), fabs(r[2])), moved};
#pragma unroll
    for (int k = 0; k < kMeasures; ++k) {
        double v = values[k];
        if (together)
            for (int step = 16; step; step /= 2) v = fmax(v, __shfl_xor_sync(kAll, v, step));
        if (!together || lane_index() == 0) atomicMax(&g.measured[k], key_of(v));
    }
}

__global__ void __launch_bounds__(kThreads)
    bins(Systems systems, double cutoff, Grid* grid, Status* status, const int32_t* gate) {
    const int64_t s = thread_index();
    if (closed(gate) || s >= systems.count || status->refused) return;
    const double atoms = static_cast<double>(systems.ptr[s + 1] - systems.ptr[s]);
    if (atoms == 0) return;
    Grid& g = grid[s];
    double reachable = cutoff, extent[3], number[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        const double low = -number_of(g.measured[k]), high = number_of(g.measured[3 + k]);
        extent[k] = g.periodic[k] ? g.height[k] : high - low;
        g.origin[k] = g.periodic[k] ? 0 : low;
        if (g.periodic[k]) reachable += sqrt(dot(g.vector[k], g.vector[k])) * (1 + cutoff / g.height[k]);
    }
    // A bound on the error of a distance between wrapped atoms.
    const double rounding = 1e-14 * (number_of(g.measured[6]) + number_of(g.measured[7]) + reachable);
    const double range = cutoff * (1 + 1e-12) + 4 * rounding;
    // Atoms are sorted with the last direction fastest: a run along it is contiguous, so finer bins there cost
    // nothing and trim what must be searched.
#pragma unroll
    for (int k = 0; k < 3; ++k)
        number[k] = fmin(fmax(1.0, floor(extent[k] * (k == 2 ? 3 : 1) / range)), static_cast<double>(kMaxAtoms));
    // No more bins than atoms.
    for (double total; (total = number[0] * number[1] * number[2]) > atoms;) {
        const double most = largest(number[0], number[1], number[2]);
        const double fewer = fmax(1.0, floor(most * fmax(0.5, atoms / total)));
        if (number[0] == most) number[0] = fewer;
        else if (number[1] == most) number[1] = fewer;
        else number[2] = fewer;
    }
    double all_images = 1;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        const double width = extent[k] / number[k], wanted = width > 0 ? ceil(range / width) : 0;
        const double reach = fmin(wanted, g.periodic[k] ? 1e9 : number[k] - 1);
        const double images = g.periodic[k] ? ceil(reach / number[k]) : 0;
        g.bins[k] = static_cast<int32_t>(number[k]);
        g.reach[k] = static_cast<int32_t>(reach);
        g.images[k] = static_cast<int32_t>(images);
        g.scale[k] = g.periodic[k] ? number[k] : (extent[k] > 0 ? number[k] / extent[k] : 0);
        all_images *= 2 * images + 1;
        if (k == 2 && (2 * images + 1) * atoms > INT32_MAX) status->refused = 1;  // places are counted in 32 bits
    }
    if (all_images > INT32_MAX) status->refused = 1;
}

// The order within a bin is left to chance: rows are sorted in the end.
__global__ void __launch_bounds__(kThreads)
    count_bins(Systems systems, Workspace w, const Status* status, const int32_t* gate) {
    const int64_t i = thread_index();
    if (closed(gate) || i >= systems.atoms || status->refused) return;
    const Grid& g = w.grid[w.system[i]];
    double f[3], n[3];
    fraction(g, systems.positions + 3 * i, f, n);
    int32_t bin = 0;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        const int32_t at = static_cast<int32_t>((f[k] - g.origin[k]) * g.scale[k]);
        bin = bin * g.bins[k] + min(max(at, 0), g.bins[k] - 1);
    }
    bin += static_cast<int32_t>(systems.ptr[w.system[i]]);
    w.bin[i] = bin;
    w.wrap[i] = make_int4(int32_t(n[0]), int32_t(n[1]), int32_t(n[2]), atomicAdd(&w.count[bin], 1));
}

__global__ void __launch_bounds__(kThreads)
    scatter(Systems systems, Workspace w, const Status* status, const int32_t* gate) {
    const int64_t i = thread_index();
    if (closed(gate) || i >= systems.atoms || status->refused) return;
    const int4 wrap = w.wrap[i];
    const int64_t place = w.bin_start[w.bin[i]] + wrap.w;
    w.place[place] = make_int4(wrap.x, wrap.y, wrap.z, int32_t(i));
    for (int d = 0; d < 3; ++d) w.sorted[3 * place + d] = systems.positions[3 * i + d];
}

}  // namespace

void sort_into_bins(const Systems& systems, double cutoff, const Workspace& w, Status* status, const int32_t* gate,
                    Stream stream) {
    const int64_t atoms = systems.atoms;
    clear(w.count, atoms * sizeof(int32_t), stream);
    launch_over(systems.count, lattices, stream, systems, w.grid, status, gate);
    launch_over(atoms, measure, stream, systems, w, status, gate);
    launch_over(systems.count, bins, stream, systems, cutoff, w.grid, status, gate);
    launch_over(atoms, count_bins, stream, systems, w, status, gate);
    scan(w, atoms, w.bin_start, kUnlimited, nullptr, gate, stream);
    launch_over(atoms, scatter, stream, systems, w, status, gate);
}

}  // namespace mdtrajnet::cuda
