#include "cuda/neighbors.hpp"

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/launch.hpp"

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

namespace mdtrajnet::cuda {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint8_t;
using Bits = unsigned long long;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 128;  // of a block
constexpr int kWarps = kThreads / 32;
constexpr int kScanThreads = 256, kScanItems = 4, kTile = kScanThreads * kScanItems;
constexpr int kShortRow = 128;   // rows up to this length are sorted in shared memory
constexpr int kLanesPerRow = 8;  // of edge_vectors
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

// Hands out aligned pieces of one allocation; from null it only measures.
class Pieces {
  public:
    explicit Pieces(void* start) : start_(static_cast<char*>(start)) {}
    template <class T>
    void take(T*& piece, int64_t count) {
        piece = start_ ? reinterpret_cast<T*>(start_ + used_) : nullptr;
        used_ += (size_t(count) * sizeof(T) + 255) / 256 * 256;
    }
    size_t used() const { return used_; }

  private:
    char* start_;
    size_t used_ = 0;
};

int64_t tiles_of(int64_t items) { return (items + kTile - 1) / kTile; }

size_t divide(void* memory, int64_t atoms, int64_t systems, Workspace& w) {
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

__device__ bool closed(const int32_t* gate) { return gate && !*gate; }
__device__ bool usable(const Status& status) { return !status.refused && !status.overflow; }

__device__ int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t warp_index() { return int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; }
__device__ int lane_index() { return threadIdx.x % 32; }

__device__ int32_t system_of(const Systems& systems, int64_t atom) {
    int64_t low = 0, high = systems.count;  // the last with ptr <= atom, which is not an empty one
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (systems.ptr[middle] <= atom ? low : high) = middle;
    }
    return static_cast<int32_t>(low);
}

__device__ double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

__device__ void cross(const double* a, const double* b, double* c) {
    c[0] = a[1] * b[2] - a[2] * b[1];
    c[1] = a[2] * b[0] - a[0] * b[2];
    c[2] = a[0] * b[1] - a[1] * b[0];
}

__device__ double largest(double a, double b, double c) { return fmax(a, fmax(b, c)); }

__device__ int32_t floor_div(int32_t a, int32_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Keys in the order of the numbers, so that atomicMax on keys is a maximum of numbers.
__device__ Bits key_of(double v) {
    const Bits bits = static_cast<Bits>(__double_as_longlong(v));
    return bits >> 63 ? ~bits : bits | Bits(1) << 63;
}
__device__ double number_of(Bits key) {
    return __longlong_as_double(static_cast<long long>(key >> 63 ? key & ~(Bits(1) << 63) : ~key));
}

// The two expressions that decide whether a pair is a neighbour: those of cpu/neighbors.cpp, to the last bit.
__device__ void translation(const double vector[3][3], const int32_t* shift, double* out) {
#pragma unroll
    for (int d = 0; d < 3; ++d)
        out[d] = __dadd_rn(__dadd_rn(__dmul_rn(shift[0], vector[0][d]), __dmul_rn(shift[1], vector[1][d])),
                           __dmul_rn(shift[2], vector[2][d]));
}

__device__ void difference(const double* ri, const double* rj, const double* t, double* r) {
#pragma unroll
    for (int d = 0; d < 3; ++d) r[d] = __dadd_rn(__dsub_rn(rj[d], ri[d]), t[d]);
}

__device__ double distance2(const double* ri, const double* rj, const double* t) {
    double r[3];
    difference(ri, rj, t, r);
    return __dadd_rn(__dadd_rn(__dmul_rn(r[0], r[0]), __dmul_rn(r[1], r[1])), __dmul_rn(r[2], r[2]));
}

// ---- Lattices and bins: as in cpu/neighbors.cpp.

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

// ---- Counting sort by bin.  The order within a bin is left to chance: rows are sorted in the end.

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

// ---- Exclusive sums of counts: of each tile, of the tiles, of all.

// The sum of the values of the threads before this one; `total` is the sum of all.
__device__ int64_t scan_block(int64_t value, int64_t& total) {
    __shared__ int64_t of_warp[kScanThreads / 32];
    const int lane = lane_index(), warp = threadIdx.x / 32;
    int64_t sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t before = __shfl_up_sync(kAll, sum, step);
        if (lane >= step) sum += before;
    }
    __syncthreads();  // whoever used of_warp before is done
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    int64_t earlier = 0;
    total = 0;
    for (int k = 0; k < kScanThreads / 32; ++k) {
        if (k < warp) earlier += of_warp[k];
        total += of_warp[k];
    }
    return earlier + sum - value;
}

__global__ void __launch_bounds__(kScanThreads)
    sum_tiles(const int32_t* count, int64_t items, int64_t* sums, const int32_t* gate) {
    if (closed(gate)) return;
    const int64_t from = int64_t(blockIdx.x) * kTile + threadIdx.x * kScanItems;
    int64_t sum = 0, total;
    for (int64_t k = from; k < min(from + kScanItems, items); ++k) sum += count[k];
    scan_block(sum, total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block.  The total goes behind the last sum and, where there is a status, into it.
__global__ void __launch_bounds__(kScanThreads)
    scan_tiles(int64_t tiles, int64_t* sums, int64_t capacity, Status* status, const int32_t* gate) {
    if (closed(gate)) return;
    int64_t carry = 0;
    for (int64_t from = 0; from < tiles; from += kScanThreads) {
        const int64_t k = from + threadIdx.x;
        int64_t total;
        const int64_t before = scan_block(k < tiles ? sums[k] : 0, total);
        if (k < tiles) sums[k] = carry + before;
        carry += total;
    }
    if (threadIdx.x) return;
    sums[tiles] = carry;
    if (!status) return;
    status->edges = status->refused ? 0 : carry;
    if (status->edges > capacity) status->overflow = 1;
}

// All zeros where the status is not good.
template <class T>
__global__ void __launch_bounds__(kScanThreads) scan_items(const int32_t* count, int64_t items, const int64_t* sums,
                                                           T* out, const Status* status, const int32_t* gate) {
    if (closed(gate)) return;
    const bool empty = status && !usable(*status);
    const int64_t from = int64_t(blockIdx.x) * kTile + threadIdx.x * kScanItems;
    int32_t mine[kScanItems];
    int64_t sum = 0, total;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
        mine[k] = from + k < items ? count[from + k] : 0;
        sum += mine[k];
    }
    int64_t at = sums[blockIdx.x] + scan_block(sum, total);
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
        if (from + k <= items) out[from + k] = empty ? 0 : T(at);
        at += mine[k];
    }
}

// ---- The search.

// The atoms and images that may be near the atom at a place, 32 at a time: all lanes of the warp call
// visit(near, d2, place, image) together.
template <class Visit>
__device__ void visit_around(const Systems& systems, const Workspace& w, int64_t place, double limit,
                             const Visit& visit) {
    const Grid& g = w.grid[w.system[place]];
    const int32_t first = static_cast<int32_t>(systems.ptr[w.system[place]]);
    const int4 own = w.place[place];
    const double ri[3] = {w.sorted[3 * place], w.sorted[3 * place + 1], w.sorted[3 * place + 2]};
    const int32_t bin = w.bin[own.w] - first;
    const int32_t at[3] = {bin / g.bins[2] / g.bins[1], bin / g.bins[2] % g.bins[1], bin % g.bins[2]};
    int32_t from[3], to[3], image[3] = {0, 0, 0};
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        from[k] = at[k] - g.reach[k], to[k] = at[k] + g.reach[k];
        if (!g.periodic[k]) from[k] = max(from[k], 0), to[k] = min(to[k], g.bins[k] - 1);
    }
    // The bins along the last direction are one run of places, repeated by each image of the system.
    const int32_t first_image = floor_div(from[2], g.bins[2]), first_bin = from[2] - first_image * g.bins[2];
    const int32_t last_image = floor_div(to[2], g.bins[2]), last_bin = to[2] - last_image * g.bins[2];
    for (int32_t a = from[0]; a <= to[0]; ++a) {
        image[0] = floor_div(a, g.bins[0]);
        for (int32_t b = from[1]; b <= to[1]; ++b) {
            image[1] = floor_div(b, g.bins[1]);
            const int32_t row = (a - image[0] * g.bins[0]) * g.bins[1] + b - image[1] * g.bins[1];
            const int32_t* starts = w.bin_start + first + row * g.bins[2];
            const int32_t start = starts[0], length = starts[g.bins[2]] - start;
            if (!length) continue;
            const int32_t end = last_image * length + starts[last_bin + 1] - start;
            for (int32_t chunk = first_image * length + starts[first_bin] - start; chunk < end; chunk += 32) {
                const int32_t step = chunk + lane_index();
                int64_t other = place;
                double d2 = kInfinity;
                if (step < end) {
                    image[2] = floor_div(step, length);
                    other = start + step - image[2] * length;
                    const int4 its = w.place[other];
                    const int32_t shift[3] = {image[0] + own.x - its.x, image[1] + own.y - its.y,
                                              image[2] + own.z - its.z};
                    double t[3] = {0, 0, 0};
                    const bool shifted = shift[0] | shift[1] | shift[2];
                    if (shifted) translation(g.vector, shift, t);
                    if (shifted || other != place) d2 = distance2(ri, w.sorted + 3 * other, t);
                }
                visit(d2 <= limit, d2, other, image);
            }
        }
    }
}

__global__ void __launch_bounds__(kThreads)
    count_rows(Systems systems, Workspace w, double limit, Status* status, const int32_t* gate) {
    const int64_t place = warp_index();
    // Another warp may be refusing right now: all lanes must see the same.
    if (closed(gate) || place >= systems.atoms || __any_sync(kAll, status->refused)) return;
    int32_t found = 0;
    bool coincide = false;
    visit_around(systems, w, place, limit, [&](bool near, double d2, int64_t, const int32_t*) {
        found += near;
        coincide = coincide || (near && d2 < kCoincident * kCoincident);
    });
    for (int step = 16; step; step /= 2) found += __shfl_xor_sync(kAll, found, step);
    if (coincide) status->refused = 1;
    if (lane_index() == 0) w.count[w.place[place].w] = found;
}

// One row while it is made: keys (atom, image), in shared memory where they fit, else where the edges go.
struct Row {
    Bits* held;
    int32_t *neighbor, *shift;

    __device__ Bits get(int32_t k) const {
        return held ? held[k] : Bits(neighbor[k]) << 32 | Bits(shift[3 * int64_t(k)]);
    }
    __device__ void set(int32_t k, Bits key) const {
        if (held) held[k] = key;
        else neighbor[k] = int32_t(key >> 32), shift[3 * int64_t(k)] = int32_t(key & 0xffffffffu);
    }
    __device__ void order(int32_t k, int32_t later) const {
        const Bits a = get(k), b = get(later);
        if (b < a) set(k, b), set(later, a);
    }
};

// A bitonic sort by one warp, whose comparators all point the same way: those past the end may be left out.
__device__ void sort_row(const Row& row, int32_t n) {
    const int32_t comparators = n > 1 ? 1 << (31 - __clz(n - 1)) : 0;  // half of n rounded up to a power of two
    for (int32_t size = 2; size / 2 < n; size *= 2) {
        for (int32_t stride = size / 2; stride; stride /= 2) {
            __syncwarp();
            for (int32_t c = lane_index(); c < comparators; c += 32) {
                const int32_t k = (c & ~(stride - 1)) * 2 + (c & (stride - 1));
                const int32_t later = stride == size / 2 ? k ^ (size - 1) : k + stride;
                if (later < n) row.order(k, later);
            }
        }
    }
    __syncwarp();
}

__global__ void __launch_bounds__(kThreads)
    fill_rows(Systems systems, Workspace w, double limit, const int64_t* row_ptr, int32_t* neighbor, int32_t* shift,
              const Status* status, const int32_t* gate) {
    __shared__ Bits held[kWarps][kShortRow];
    const int64_t place = warp_index();
    if (closed(gate) || place >= systems.atoms || !usable(*status)) return;
    const int4 own = w.place[place];
    const Grid& g = w.grid[w.system[place]];
    const int32_t count[3] = {2 * g.images[0] + 1, 2 * g.images[1] + 1, 2 * g.images[2] + 1};
    const int64_t begin = row_ptr[own.w];
    const int32_t n = int32_t(row_ptr[own.w + 1] - begin);
    const Row row{n <= kShortRow ? held[threadIdx.x / 32] : nullptr, neighbor + begin, shift + 3 * begin};

    int32_t found = 0;
    visit_around(systems, w, place, limit, [&](bool near, double, int64_t other, const int32_t* image) {
        const unsigned lanes = __ballot_sync(kAll, near);
        if (near) {
            const int32_t id =
                ((image[0] + g.images[0]) * count[1] + image[1] + g.images[1]) * count[2] + image[2] + g.images[2];
            row.set(found + __popc(lanes & ((1u << lane_index()) - 1)), Bits(w.place[other].w) << 32 | Bits(id));
        }
        found += __popc(lanes);
    });
    sort_row(row, n);
    for (int32_t k = lane_index(); k < n; k += 32) {
        const Bits key = row.get(k);
        const int32_t j = int32_t(key >> 32), id = int32_t(key & 0xffffffffu);
        const int4 its = w.wrap[j];
        row.neighbor[k] = j;
        row.shift[3 * int64_t(k)] = id / count[2] / count[1] - g.images[0] + own.x - its.x;
        row.shift[3 * int64_t(k) + 1] = id / count[2] % count[1] - g.images[1] + own.y - its.y;
        row.shift[3 * int64_t(k) + 2] = id % count[2] - g.images[2] + own.z - its.z;
    }
}

// ---- The skin.

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

__global__ void __launch_bounds__(kThreads)
    subtract(Systems systems, const double* velocities, const int64_t* row_ptr, const int32_t* neighbor,
             const int32_t* shift, float* r, float* w) {
    const int64_t i = thread_index() / kLanesPerRow;
    if (i >= systems.atoms) return;
    const double* cell = systems.cells ? systems.cells + 9 * int64_t(system_of(systems, i)) : nullptr;
    for (int64_t e = row_ptr[i] + threadIdx.x % kLanesPerRow; e < row_ptr[i + 1]; e += kLanesPerRow) {
        const int64_t j = neighbor[e];
        const int32_t* its = shift + 3 * e;
        double t[3] = {0, 0, 0}, difference_[3];
        if (its[0] | its[1] | its[2]) translation(reinterpret_cast<const double (*)[3]>(cell), its, t);
        difference(systems.positions + 3 * i, systems.positions + 3 * j, t, difference_);
        for (int d = 0; d < 3; ++d) {
            r[3 * e + d] = static_cast<float>(difference_[d]);
            w[3 * e + d] = static_cast<float>(velocities[3 * j + d] - velocities[3 * i + d]);
        }
    }
}

// ---- Connected components.  Labels only fall, whatever the order in which threads see them.

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

// ---- The host's side.

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

// Over as many threads as there are items; nothing is launched for none.
template <class... P, class... A>
void launch_over(int64_t threads, void (*kernel)(P...), Stream stream, const A&... arguments) {
    if (threads > 0) launch(kernel, dim3(blocks_for(threads)), dim3(kThreads), 0, stream, arguments...);
}

void clear(void* memory, size_t bytes, Stream stream) {
    if (bytes) check(cudaMemsetAsync(memory, 0, bytes, stream), "neighbour search");
}

template <class T>
void scan(const Workspace& w, int64_t items, T* out, int64_t capacity, Status* status, const int32_t* gate,
          Stream stream) {
    const int64_t tiles = tiles_of(items);
    const dim3 block(kScanThreads);
    if (tiles) launch(sum_tiles, dim3(unsigned(tiles)), block, 0, stream, w.count, items, w.sums, gate);
    launch(scan_tiles, dim3(1), block, 0, stream, tiles, w.sums, capacity, status, gate);
    // The item past the last, which takes the total, may open a tile of its own.
    launch(scan_items<T>, dim3(unsigned(tiles_of(items + 1))), block, 0, stream, w.count, items, w.sums, out, status,
           gate);
}

void require_size(const Systems& systems) {
    if (systems.atoms > kMaxAtoms || systems.count > kMaxAtoms)
        throw std::invalid_argument("a neighbour list on the GPU takes at most " + std::to_string(kMaxAtoms) +
                                    " atoms and as many systems, got " + std::to_string(systems.atoms) + " atoms in " +
                                    std::to_string(systems.count) + " systems; split them over calls");
}

// count_neighbors, once the status is clear.
void search(const Systems& systems, double cutoff, int64_t capacity, const Workspace& w, int64_t* row_ptr,
            Status* status, const int32_t* gate, Stream stream) {
    const int64_t atoms = systems.atoms;
    clear(w.count, atoms * sizeof(int32_t), stream);
    launch_over(systems.count, lattices, stream, systems, w.grid, status, gate);
    launch_over(atoms, measure, stream, systems, w, status, gate);
    launch_over(systems.count, bins, stream, systems, cutoff, w.grid, status, gate);
    launch_over(atoms, count_bins, stream, systems, w, status, gate);
    scan(w, atoms, w.bin_start, kUnlimited, static_cast<Status*>(nullptr), gate, stream);
    launch_over(atoms, scatter, stream, systems, w, status, gate);
    launch_over(32 * atoms, count_rows, stream, systems, w, cutoff * cutoff, status, gate);
    scan(w, atoms, row_ptr, capacity, status, gate, stream);
}

}  // namespace

std::size_t workspace_bytes(int64_t atoms, int64_t systems) {
    Workspace w;
    return divide(nullptr, atoms, systems, w);
}

void count_neighbors(const Systems& systems, double cutoff, int64_t capacity, void* workspace, int64_t* row_ptr,
                     Status* status, Stream stream) {
    require_size(systems);
    Workspace w;
    divide(workspace, systems.atoms, systems.count, w);
    clear(status, sizeof *status, stream);
    search(systems, cutoff, capacity, w, row_ptr, status, nullptr, stream);
    check(cudaGetLastError(), "neighbour search");
}

void fill_neighbors(const Systems& systems, double cutoff, void* workspace, const int64_t* row_ptr, int32_t* neighbor,
                    int32_t* shift, const Status* status, Stream stream) {
    Workspace w;
    divide(workspace, systems.atoms, systems.count, w);
    launch_over(32 * systems.atoms, fill_rows, stream, systems, w, cutoff * cutoff, row_ptr, neighbor, shift, status,
                static_cast<const int32_t*>(nullptr));
    check(cudaGetLastError(), "neighbour search");
}

std::size_t skin_bytes(int64_t atoms, int64_t systems) {
    Memory m;
    return divide(nullptr, atoms, systems, m);
}

void update_skin(const Systems& systems, double cutoff, double skin, const SkinList& list, void* workspace,
                 Stream stream) {
    require_size(systems);
    Workspace w;
    Memory m;
    divide(workspace, systems.atoms, systems.count, w);
    divide(list.state, systems.atoms, systems.count, m);
    const int64_t things = systems.atoms > systems.count ? systems.atoms : systems.count + 1;
    clear(m.drift, 3 * systems.count * sizeof(Bits), stream);
    clear(&m.state->rebuild, sizeof m.state->rebuild, stream);
    launch_over(systems.atoms, sum_drift, stream, systems, m);
    launch_over(things, check_skin, stream, systems, cutoff, skin, m);
    launch(open_status, dim3(1), dim3(1), 0, stream, m.state);

    const int32_t* gate = &m.state->rebuild;
    const double reach = cutoff + skin;
    search(systems, reach, list.capacity, w, list.row_ptr, &m.state->status, gate, stream);
    launch_over(32 * systems.atoms, fill_rows, stream, systems, w, reach * reach, list.row_ptr, list.neighbor,
                list.shift, &m.state->status, gate);
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

void edge_vectors(const Systems& systems, const double* velocities, const int64_t* row_ptr, const int32_t* neighbor,
                  const int32_t* shift, float* r, float* w, Stream stream) {
    launch_over(kLanesPerRow * systems.atoms, subtract, stream, systems, velocities, row_ptr, neighbor, shift, r, w);
    check(cudaGetLastError(), "edge vectors");
}

void connected_components(int64_t atoms, const int64_t* row_ptr, const int32_t* neighbor, int rounds, int64_t* label,
                          uint8_t* settled, Stream stream) {
    Label* const labels = reinterpret_cast<Label*>(label);
    launch_over(atoms, label_alone, stream, atoms, labels, settled);
    for (int k = 0; k < rounds; ++k) launch_over(atoms, lower_labels, stream, atoms, row_ptr, neighbor, labels);
    launch_over(atoms, check_labels, stream, atoms, row_ptr, neighbor, labels, settled);
    check(cudaGetLastError(), "connected components");
}

}  // namespace mdtrajnet::cuda
