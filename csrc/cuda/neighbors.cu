// The search, among atoms that neighbors_bins.cu has sorted, and the vectors along the edges of a list.
#include "cuda/neighbors_parts.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kShortRow = 128;   // rows up to this length are sorted in shared memory
constexpr int kLanesPerRow = 8;  // of edge_vectors

__device__ int32_t floor_div(int32_t a, int32_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

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

}  // namespace

void count_gated(const Systems& systems, double cutoff, int64_t capacity, void* workspace, int64_t* row_ptr,
                 Status* status, const int32_t* gate, Stream stream) {
    Workspace w;
    divide(workspace, systems.atoms, systems.count, w);
    sort_into_bins(systems, cutoff, w, status, gate, stream);
    launch_over(32 * systems.atoms, count_rows, stream, systems, w, cutoff * cutoff, status, gate);
    scan(w, systems.atoms, row_ptr, capacity, status, gate, stream);
}

void fill_gated(const Systems& systems, double cutoff, void* workspace, const int64_t* row_ptr, int32_t* neighbor,
                int32_t* shift, const Status* status, const int32_t* gate, Stream stream) {
    Workspace w;
    divide(workspace, systems.atoms, systems.count, w);
    launch_over(32 * systems.atoms, fill_rows, stream, systems, w, cutoff * cutoff, row_ptr, neighbor, shift, status,
                gate);
}

std::size_t workspace_bytes(int64_t atoms, int64_t systems) {
    Workspace w;
    return divide(nullptr, atoms, systems, w);
}

void count_neighbors(const Systems& systems, double cutoff, int64_t capacity, void* workspace, int64_t* row_ptr,
                     Status* status, Stream stream) {
    require_size(systems);
    clear(status, sizeof *status, stream);
    count_gated(systems, cutoff, capacity, workspace, row_ptr, status, nullptr, stream);
    check(cudaGetLastError(), "neighbour search");
}

void fill_neighbors(const Systems& systems, double cutoff, void* workspace, const int64_t* row_ptr, int32_t* neighbor,
                    int32_t* shift, const Status* status, Stream stream) {
    fill_gated(systems, cutoff, workspace, row_ptr, neighbor, shift, status, nullptr, stream);
    check(cudaGetLastError(), "neighbour search");
}

void edge_vectors(const Systems& systems, const double* velocities, const int64_t* row_ptr, const int32_t* neighbor,
                  const int32_t* shift, float* r, float* w, Stream stream) {
    launch_over(kLanesPerRow * systems.atoms, subtract, stream, systems, velocities, row_ptr, neighbor, shift, r, w);
    check(cudaGetLastError(), "edge vectors");
}

}  // namespace mdtrajnet::cuda
