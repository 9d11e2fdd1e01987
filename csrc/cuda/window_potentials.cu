#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/pieces.hpp"
#include "cuda/window_tile.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kBlocks = 2 * 132;                // that should be at work: two a multiprocessor, of 132
constexpr std::size_t kMaxShared = 99 * 1024;   // bytes of a block that every device since sm_80 has
constexpr std::size_t kGoodShared = 76 * 1024;  // of which two or three blocks fit on one multiprocessor
constexpr int kFewest = 2, kFewestHidden = 4;   // atoms of a tile: of densities, of hidden layers

// Floats of shared memory for an atom of a tile, of each kernel.
long densities_row(const Layer& l) { return kHarmonics * l.channels; }
long densities_back_row(const Layer& l) { return kHarmonics * l.channels + kMapped * l.products; }
long forward_row(const Layer& l) { return l.features + 2 * l.hidden; }
long backward_row(const Layer& l) { return l.entry + 2 * l.hidden; }

// Products or channels that a thread has at a time, of one atom: larger tiles have threads enough.
template <int A>
constexpr int kColumns = A < 4   ? 1
                         : A < 8 ? 2
                                 : 4;
template <int A>
constexpr int kResident = A < 8 ? 4 : 3;  // blocks on a multiprocessor

// Densities and what comes of them: features of a layer.
template <int A>
__global__ void __launch_bounds__(kThreads, kResident<A>) densities(Layer l) {
    const Tile<A> tile(l);
    float* const density = dynamic_shared<float>();  // [A][harmonics][channels]
    constexpr int N = kColumns<A>;

    for_columns<A, 1, 1>(l.channels, [&](int c, int i) {
        float sum[kHarmonics] = {};
        const long atom = tile.atom(i), end = l.graph.row_ptr[atom + 1];
#pragma unroll 2
        for (long e = l.graph.row_ptr[atom]; e < end; ++e) {
            const Edge edge(l, e);
            const float size = Powers(l, edge, c).value(edge.s) * l.seen_of(l.graph.neighbor[e])[c];
#pragma unroll
            for (int h = 0; h < kHarmonics; ++h) sum[h] += edge.harmonic[h] * size;
        }
#pragma unroll
        for (int h = 0; h < kHarmonics; ++h) density[(i * kHarmonics + h) * l.channels + c] = sum[h];
        if (!tile.has(i)) return;
        l.feature[atom * l.features + c] = sum[0] * l.scale[l.species[atom] * l.features + c];
        if (!l.density) return;
#pragma unroll
        for (int h = 0; h < kHarmonics; ++h) l.density[(atom * kHarmonics + h) * l.channels + c] = sum[h];
    });
    __syncthreads();

    for_columns<A, 1, N>(l.products, [&](int n, int i) {
        float y[N][kMapped], f[N][4];
        map_density(l, y, density + i * kHarmonics * l.channels, n);
#pragma unroll
        for (int q = 0; q < N; ++q) Mapped(y[q]).invariants(f[q]);
        if (!tile.has(i)) return;
        const long atom = tile.atom(i);
        const float* scale = l.scale + l.species[atom] * l.features + l.channels + n;
        float* to = l.feature + atom * l.features + l.channels + n;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float x[N];
            load(scale + k * l.products, x);
#pragma unroll
            for (int q = 0; q < N; ++q) x[q] *= f[q][k];
            store(to + k * l.products, x);
        }
    });
}

// From the gradients of a layer's features, not yet scaled, to those of its densities.
template <int A>
__global__ void __launch_bounds__(kThreads, kResident<A>) densities_back(Layer l) {
    const Tile<A> tile(l);
    float* const density = dynamic_shared<float>();               // [A][harmonics][channels]
    float* const mapped = density + A * kHarmonics * l.channels;  // [A][mapped][products]: gradients
    constexpr int N = kColumns<A>;

    for_columns<A, 1, 4>(kHarmonics * l.channels, [&](int k, int i) {
        float x[4];
        load(l.density + tile.atom(i) * kHarmonics * l.channels + k, x);
        store(density + i * kHarmonics * l.channels + k, x);
    });
    __syncthreads();

    // maps once more: kept for all atoms, they would be the most of the memory
    for_columns<A, 1, N>(l.products, [&](int n, int i) {
        float y[N][kMapped], of[N][4];
        map_density(l, y, density + i * kHarmonics * l.channels, n);
        const long atom = tile.atom(i);
        const float* scale = l.scale + l.species[atom] * l.features + l.channels + n;
        const float* from = l.feature + atom * l.features + l.channels + n;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float x[N], factor[N];
            load(from + k * l.products, x);
            load(scale + k * l.products, factor);
#pragma unroll
            for (int q = 0; q < N; ++q) of[q][k] = x[q] * factor[q];
        }
#pragma unroll
        for (int q = 0; q < N; ++q) Mapped(y[q]).back(of[q], y[q]);
#pragma unroll
        for (int k = 0; k < kMapped; ++k) {
            float x[N];
#pragma unroll
            for (int q = 0; q < N; ++q) x[q] = y[q][k];
            store(mapped + (i * kMapped + k) * l.products + n, x);
        }
    });
    __syncthreads();

    for_columns<A, 1, N>(l.channels, [&](int c, int i) {
        constexpr int kWide = kWideMaps<N>;
        const long atom = tile.atom(i);
        float y[kHarmonics][N] = {}, factor[N];
        load(l.feature + atom * l.features + c, y[0]);
        load(l.scale + l.species[atom] * l.features + c, factor);
#pragma unroll
        for (int q = 0; q < N; ++q) y[0][q] *= factor[q];
        const float* w = l.maps_back + c;
#pragma unroll 1
        for (int n = 0; n < l.depth_products; n += kWide, w += kWide * l.channels) {
            float own[kMaps][kWide][N];
#pragma unroll
            for (int m = 0; m < kMaps; ++m)
#pragma unroll
                for (int k = 0; k < kWide; ++k) load(w + (m * l.products + k) * l.channels, own[m][k]);
#pragma unroll
            for (int h = 0; h < kHarmonics; ++h) {
                float x[kMaps][kWide];
#pragma unroll
                for (int m = 0; m < maps_of(h); ++m)
                    load(mapped + (i * kMapped + first_mapped(h) + m) * l.products + n, x[m]);
                // product by product, however many there are at a time
#pragma unroll
                for (int k = 0; k < kWide; ++k)
#pragma unroll
                    for (int m = 0; m < maps_of(h); ++m)
#pragma unroll
                        for (int q = 0; q < N; ++q) y[h][q] += x[m][k] * own[first_map(h) + m][k][q];
            }
        }
        if (!tile.has(i)) return;
#pragma unroll
        for (int h = 0; h < kHarmonics; ++h) store(l.density + (atom * kHarmonics + h) * l.channels + c, y[h]);
    });
}

// Atoms and columns of hidden layers that a thread has at a time: what it loads serves for G N sums.
template <int A>
constexpr int kG = A < 32 ? 4 : 8;
template <int A>
constexpr int kN = A < 8    ? 1
                   : A < 32 ? 2
                            : 4;

// From features to the energy, and to what the next layer begins with.
template <int A>
__global__ void __launch_bounds__(kThreads, 4) forward(Layer l) {
    const Tile<A> tile(l);
    float* const feature = dynamic_shared<float>();  // [A][features]
    float* const inner = feature + A * l.features;   // [A][hidden]
    float* const known = inner + A * l.hidden;       // [A][hidden]
    constexpr int G = kG<A>, N = kN<A>;

    for_columns<A, 1, 4>(l.features, [&](int k, int i) {
        float x[4];
        load(l.feature + tile.atom(i) * l.features + k, x);
        store(feature + i * l.features + k, x);
    });
    __syncthreads();

    for_columns<A, G, N>(l.hidden, [&](int n, int i) {
        float y[G][N];
#pragma unroll
        for (int g = 0; g < G; ++g) {
            const long atom = tile.atom(i + g);
            load(l.seen ? l.inner + atom * l.hidden + n : l.element_of(atom) + l.channels + n, y[g]);
        }
        multiply(y, feature + i * l.features, l.features, l.first + n, l.hidden, l.features);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float slope[N];
#pragma unroll
            for (int q = 0; q < N; ++q) y[g][q] = silu(y[g][q], slope[q]);
            store(inner + (i + g) * l.hidden + n, y[g]);
            if (l.density && tile.has(i + g)) store(l.inner + tile.atom(i + g) * l.hidden + n, slope);
        }
    });
    __syncthreads();

    for_columns<A, G, N>(l.hidden, [&](int n, int i) {
        float y[G][N];
#pragma unroll
        for (int g = 0; g < G; ++g) load(l.second_bias + n, y[g]);
        multiply(y, inner + i * l.hidden, l.hidden, l.second + n, l.hidden, l.depth_hidden);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float slope[N], before[N];
            load(inner + (i + g) * l.hidden + n, before);
#pragma unroll
            for (int q = 0; q < N; ++q) y[g][q] = before[q] + silu(y[g][q], slope[q]);
            store(known + (i + g) * l.hidden + n, y[g]);
            if (l.density && tile.has(i + g)) store(l.outer + tile.atom(i + g) * l.hidden + n, slope);
        }
    });
    __syncthreads();

    for (int i = threadIdx.x / 32; i < tile.count; i += kWarps) {
        float sum = 0;
        for (int n = threadIdx.x % 32; n < l.hidden; n += 32) sum += known[i * l.hidden + n] * l.last[n];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
        float* to = l.energy + tile.atom(i);
        if (threadIdx.x % 32 == 0) *to = l.adds ? *to + sum : sum;
    }
    if (!l.onward) return;
    for_columns<A, G, N>(l.entry, [&](int n, int i) {
        float y[G][N];
#pragma unroll
        for (int g = 0; g < G; ++g) load(l.next_element + l.species[tile.atom(i + g)] * l.entry + n, y[g]);
        multiply(y, known + i * l.hidden, l.hidden, l.onward + n, l.entry, l.depth_hidden);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            if (!tile.has(i + g)) continue;
            const long atom = tile.atom(i + g);
            store(
                n < l.channels ? l.next_seen + atom * l.channels + n : l.next_inner + atom * l.hidden + n - l.channels,
                y[g]);
        }
    });
}

// From the energy, and from what the next layer begins with, to the features.
template <int A>
__global__ void __launch_bounds__(kThreads, 4) backward(Layer l) {
    const Tile<A> tile(l);
    float* const entry = dynamic_shared<float>();  // [A][entry]
    float* const known = entry + A * l.entry;      // [A][hidden], and then of the first hidden layer
    float* const outer = known + A * l.hidden;     // [A][hidden]
    constexpr int G = kG<A>, N = kN<A>;

    if (l.onward)
        for_columns<A, 1, 4>(l.entry, [&](int n, int i) {
            const long atom = tile.atom(i);
            float x[4];
            load(n < l.channels ? l.next_seen_gradient + atom * l.channels + n
                                : l.next_inner + atom * l.hidden + n - l.channels,
                 x);
            store(entry + i * l.entry + n, x);
        });
    __syncthreads();

    for_columns<A, G, N>(l.hidden, [&](int n, int i) {
        float y[G][N];
#pragma unroll
        for (int g = 0; g < G; ++g) load(l.last + n, y[g]);
        if (l.onward) multiply(y, entry + i * l.entry, l.entry, l.onward_back + n, l.hidden, l.entry);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float slope[N];
            load(l.outer + tile.atom(i + g) * l.hidden + n, slope);
            store(known + (i + g) * l.hidden + n, y[g]);
#pragma unroll
            for (int q = 0; q < N; ++q) y[g][q] *= slope[q];
            store(outer + (i + g) * l.hidden + n, y[g]);
        }
    });
    __syncthreads();

    for_columns<A, G, N>(l.hidden, [&](int n, int i) {
        float y[G][N];
#pragma unroll
        for (int g = 0; g < G; ++g) load(known + (i + g) * l.hidden + n, y[g]);
        multiply(y, outer + i * l.hidden, l.hidden, l.second_back + n, l.hidden, l.depth_hidden);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float* const at = l.inner + tile.atom(i + g) * l.hidden + n;
            float slope[N];
            load(at, slope);
#pragma unroll
            for (int q = 0; q < N; ++q) y[g][q] *= slope[q];
            store(known + (i + g) * l.hidden + n, y[g]);
            if (tile.has(i + g)) store(at, y[g]);
        }
    });
    __syncthreads();

    for_columns<A, G, N>(l.features, [&](int n, int i) {
        float y[G][N] = {};
        multiply(y, known + i * l.hidden, l.hidden, l.first_back + n, l.features, l.depth_hidden);
#pragma unroll
        for (int g = 0; g < G; ++g)
            if (tile.has(i + g)) store(l.feature + tile.atom(i + g) * l.features + n, y[g]);
    });
}

// An edge is in the densities of both its ends.  With their gradients D it is worth R(d) Y(u) . (f_j D_i +- f_i D_j), minus
// for the odd l, which is differentiated along r and across.  Each half of a warp has every second edge of an atom.
__global__ void __launch_bounds__(kThreads) edges(Layer l) {
    const long atom = long(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (atom >= l.graph.atoms) return;
    const int lane = threadIdx.x % kLanes, half = threadIdx.x % 32 / kLanes;
    const long begin = l.graph.row_ptr[atom] + half, end = l.graph.row_ptr[atom + 1];
    float total[3] = {};
    for (int c = lane; c < l.channels; c += kLanes) {
        float own[kHarmonics];
#pragma unroll
        for (int h = 0; h < kHarmonics; ++h) own[h] = l.density[(atom * kHarmonics + h) * l.channels + c];
        const float mine = l.seen_of(atom)[c];
        float mine_seen = 0;
        for (long e = begin; e < end; e += 2) {
            const Edge edge(l, e);
            const Powers powers(l, edge, c);
            const long j = l.graph.neighbor[e];
            const float theirs = l.seen_of(j)[c];
            const float* from = l.density + j * kHarmonics * l.channels + c;
            float both[kHarmonics], sum = 0, back = 0;
#pragma unroll
            for (int h = 0; h < kHarmonics; ++h) {
                const float x = h >= 1 && h < 4 ? -from[h * l.channels] : from[h * l.channels];
                both[h] = theirs * own[h] + mine * x;
                back += edge.harmonic[h] * x;
                sum += edge.harmonic[h] * both[h];
            }
            const float value = powers.value(edge.s), across = edge.over_d * value;
            mine_seen += value * back;
            constexpr float mixed = 1.41421356237309504880f;
            const float x = edge.u[0], y = edge.u[1], z = edge.u[2];
            const float side[3] = {both[1] + 2 * x * both[4] + mixed * (y * both[7] + z * both[8]),
                                   both[2] + 2 * y * both[5] + mixed * (x * both[7] + z * both[9]),
                                   both[3] + 2 * z * both[6] + mixed * (x * both[8] + y * both[9])};
            const float along = l.per * powers.slope(edge.s) * sum - across * (x * side[0] + y * side[1] + z * side[2]);
#pragma unroll
            for (int q = 0; q < 3; ++q) total[q] += edge.u[q] * along + across * side[q];
        }
        mine_seen += __shfl_xor_sync(kAll, mine_seen, kLanes);
        if (l.seen_gradient && half == 0) l.seen_gradient[atom * l.channels + c] = mine_seen;
    }
#pragma unroll
    for (int q = 0; q < 3; ++q) {
        double sum = total[q];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
        double* to = l.slope + 3 * atom + q;
        if (threadIdx.x % 32 == 0) *to = l.adds ? *to - sum : -sum;
    }
}

// ---- The host's part.

// Of each layer; with slopes all of it is kept until the way back.
struct Memory {
    float *density, *inner, *outer, *seen;
    float *feature, *seen_gradient;  // of one layer at a time
    size_t bytes;

    Memory(const WindowPotentialSizes& z, const Layer& l, int64_t atoms, bool slopes, void* start) {
        Pieces pieces(start);
        const int64_t rows = z.layers * atoms;
        density = outer = seen_gradient = nullptr;
        pieces.take(inner, rows * l.hidden);
        pieces.take(seen, rows * l.channels);
        pieces.take(feature, atoms * l.features);
        if (slopes) {
            pieces.take(density, rows * kHarmonics * l.channels);
            pieces.take(outer, rows * l.hidden);
            pieces.take(seen_gradient, atoms * l.channels);
        }
        bytes = pieces.used();
    }
};

int padded(long x) { return int((x + kLanes - 1) / kLanes * kLanes); }

// What all layers have in common.  Throws for sizes beyond the limits.
Layer sizes_of(const WindowPotentialSizes& z, int64_t atoms) {
    if (atoms > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("window potentials on a GPU take at most 2147483647 atoms, got " +
                                    std::to_string(atoms) + "; split the systems over calls");
    const double most = 1 << 20;  // of each, so that rows are counted in 32 bits
    const bool countable = z.channels < most && z.products < most && z.hidden < most && z.intervals < most;
    Layer l{};
    if (countable) {
        l.channels = padded(z.channels), l.products = padded(z.products), l.hidden = padded(z.hidden);
        l.features = l.channels + 4 * l.products, l.entry = l.channels + l.hidden;
        l.depth_channels = int(z.channels), l.depth_products = int((z.products + 3) / 4 * 4);
        l.depth_hidden = int(z.hidden), l.intervals = int(z.intervals), l.per = float(z.intervals / z.cutoff);
    }
    const long least =
        std::max(kFewest * densities_back_row(l), kFewestHidden * std::max(forward_row(l), backward_row(l)));
    if (!countable || least * sizeof(float) > kMaxShared)
        throw std::invalid_argument("window potentials of " + std::to_string(z.channels) + " channels, " +
                                    std::to_string(z.products) + " products and " + std::to_string(z.hidden) +
                                    " hidden units are too large for the CUDA kernels; use backend=\"reference\"");
    return l;
}

// A tile's kernel on all atoms.
template <int A>
void launch_tiles(void (*kernel)(Layer), const Layer& l, long row, cudaStream_t stream) {
    const size_t bytes = A * row * sizeof(float);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "window potentials");
    launch(kernel, dim3(unsigned((l.graph.atoms + A - 1) / A)), dim3(kThreads), bytes, stream, l);
}

template <int A>
using Size = std::integral_constant<int, A>;

// The first of some tiles, the largest first, that leaves blocks enough, and room for another one beside it; or the last.
template <int A, int... kSmaller, class Run>
void with_tile(const Layer& l, long row, const Run& run) {
    if constexpr (sizeof...(kSmaller) == 0) run(Size<A>{});
    else if (A * row * sizeof(float) <= kGoodShared && l.graph.atoms >= int64_t(A) * kBlocks) run(Size<A>{});
    else with_tile<kSmaller...>(l, row, run);
}

}  // namespace

std::size_t window_potential_bytes(const WindowPotentialSizes& sizes, std::int64_t atoms, bool slopes) {
    return Memory(sizes, sizes_of(sizes, atoms), atoms, slopes, nullptr).bytes;
}

void window_potential(const WindowPotentialSizes& z, const WindowPotentialWeights<float>& w,
                      const AttentionGraph<float>& graph, const std::int64_t* species, std::int64_t role, float* energy,
                      double* slope, void* workspace, Stream stream) {
    Layer all = sizes_of(z, graph.atoms);
    if (graph.atoms == 0) return;
    const Memory memory(z, all, graph.atoms, slope, workspace);
    all.graph = graph, all.species = species, all.energy = energy, all.slope = slope;
    const auto layer = [&](long k) {
        Layer l = all;
        const long maps = kMaps * l.products, elements = z.species * l.entry;
        const int64_t rows = k * graph.atoms, next = rows + graph.atoms;
        l.radial = w.radial + k * z.intervals * kRadialPowers * l.channels;
        l.element = w.element + (role * z.layers + k) * elements;
        l.maps = w.maps + k * z.channels * maps;
        l.maps_back = w.maps_back + k * maps * l.channels;
        l.scale = w.scale + k * z.species * l.features;
        l.first = w.first + k * l.features * l.hidden;
        l.first_back = w.first_back + k * z.hidden * l.features;
        l.second = w.second + k * z.hidden * l.hidden;
        l.second_back = w.second_back + k * z.hidden * l.hidden;
        l.second_bias = w.second_bias + k * l.hidden;
        l.last = w.last + (role * z.layers + k) * l.hidden;
        l.seen = k ? memory.seen + rows * l.channels : nullptr;
        l.seen_gradient = k ? memory.seen_gradient : nullptr;
        l.density = slope ? memory.density + rows * kHarmonics * l.channels : nullptr;
        l.feature = memory.feature;
        l.inner = memory.inner + rows * l.hidden;
        l.outer = slope ? memory.outer + rows * l.hidden : nullptr;
        if (k + 1 < z.layers) {
            l.next_element = l.element + elements;
            l.onward = w.onward + k * z.hidden * l.entry;
            l.onward_back = w.onward_back + k * l.entry * l.hidden;
            l.next_seen = memory.seen + next * l.channels;
            l.next_inner = memory.inner + next * l.hidden;
            l.next_seen_gradient = memory.seen_gradient;
        }
        return l;
    };
    for (long k = 0; k < z.layers; ++k) {
        Layer l = layer(k);
        l.adds = k > 0;
        with_tile<8, 4, kFewest>(l, densities_row(l),
                                 [&](auto a) { launch_tiles<a()>(densities<a()>, l, densities_row(l), stream); });
        with_tile<32, 8, kFewestHidden>(l, forward_row(l),
                                        [&](auto a) { launch_tiles<a()>(forward<a()>, l, forward_row(l), stream); });
    }
    for (long k = z.layers - 1; slope && k >= 0; --k) {
        Layer l = layer(k);
        l.adds = k + 1 < z.layers;
        with_tile<32, 8, kFewestHidden>(l, backward_row(l),
                                        [&](auto a) { launch_tiles<a()>(backward<a()>, l, backward_row(l), stream); });
        with_tile<8, 4, kFewest>(l, densities_back_row(l), [&](auto a) {
            launch_tiles<a()>(densities_back<a()>, l, densities_back_row(l), stream);
        });
        launch(edges, dim3(unsigned((graph.atoms + kWarps - 1) / kWarps)), dim3(kThreads), 0, stream, l);
    }
    check(cudaGetLastError(), "window potentials");
}

}  // namespace mdtrajnet::cuda
