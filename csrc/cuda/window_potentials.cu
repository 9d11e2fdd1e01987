#include "cuda/window_potentials.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/launch.hpp"

// Rows are padded as the weights' are.  Sums over channels, features or hidden units are a thread's own, over the same
// numbers in the same order whatever the tile, so an atom gets the same result whatever else is in the graph.

namespace mdtrajnet::cuda {
namespace {

using std::int64_t;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kHarmonics = 10;                  // of l = 0, 1, 2 as Cartesian tensors
constexpr int kMaps = 7;                        // linear maps of the density: two of each l, and one more of l = 1
constexpr int kMapped = 23;                     // the same where each harmonic counts
constexpr int kVectors = 2, kTensors = 11;      // the first mapped ones of l = 1 and 2
constexpr int kLanes = 16;                      // channels that half a warp has at a time; rows are multiples of it
constexpr int kBlocks = 2 * 132;                // that should be at work: two a multiprocessor, of 132
constexpr std::size_t kMaxShared = 99 * 1024;   // bytes of a block that every device since sm_80 has
constexpr std::size_t kGoodShared = 76 * 1024;  // of which two or three blocks fit on one multiprocessor
constexpr float kApart = 0.70710678118654752440f;

constexpr int kThreads = 128, kWarps = kThreads / 32;  // of a block
constexpr int kFewest = 2, kFewestHidden = 4;          // atoms of a tile: of densities, of hidden layers

// A layer, as kernels are given it.
struct Layer {
    // lengths of rows; features: channels, then four times products. entry: channels, then hidden
    int channels, products, hidden, features, entry;
    int depth_channels, depth_products, depth_hidden;  // how much of them there is, of products in fours
    int intervals;
    float per;  // intervals an Å
    // weights, as WindowPotentialWeights has them, of this layer and the role
    const float *radial, *element, *maps, *maps_back, *scale, *first, *first_back, *second, *second_back, *second_bias;
    const float* last;
    // those into the next one; null in the last layer
    const float *next_element, *onward, *onward_back;
    AttentionGraph<float> graph;
    const int64_t* species;
    // memory: rows of all atoms
    const float* seen;     // [channels], what neighbours see; null in the first layer: their element's
    float* density;        // [harmonics][channels]; `densities_back` makes its gradient of it. Null: energies alone
    float* feature;        // [features], scaled; `backward` makes its gradient of it. Of one layer at a time
    float* inner;          // [hidden]: a bias (not in the first layer), then silu's slope there, then the gradient
    float* outer;          // [hidden]: silu's slope in the second hidden layer
    float* next_seen;      // [channels], the next layer's
    float* next_inner;     // [hidden], the next layer's
    float* seen_gradient;  // [channels], of the layer whose edges were last: null in the first layer
    const float* next_seen_gradient;
    float* energy;
    double* slope;
    bool adds;  // this layer's energies or slopes to those that are there

    __device__ const float* element_of(long atom) const { return element + species[atom] * entry; }
    // What an atom shows its neighbours.
    __device__ const float* seen_of(long atom) const { return seen ? seen + atom * channels : element_of(atom); }
};

// ---- Edges.

// The direction of an edge, what densities have of it, and where its distance is among the intervals.
struct Edge {
    float u[3], over_d;
    float harmonic[kHarmonics];
    const float* radial;  // [powers][channels] of the interval
    float s;              // the place in it

    __device__ Edge(const Layer& l, long edge) {
        constexpr float mixed = 1.41421356237309504880f, third = 1.0f / 3;
        const float* r = l.graph.r + 3 * edge;
        const float square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
        over_d = rsqrtf(square);
        const float x = r[0] * over_d, y = r[1] * over_d, z = r[2] * over_d;
        u[0] = x, u[1] = y, u[2] = z;
        harmonic[0] = 1;
        harmonic[1] = x, harmonic[2] = y, harmonic[3] = z;
        harmonic[4] = x * x - third, harmonic[5] = y * y - third, harmonic[6] = z * z - third;
        harmonic[7] = mixed * x * y, harmonic[8] = mixed * x * z, harmonic[9] = mixed * y * z;
        // at the cutoff and beyond: zero
        const float most = float(l.intervals), far = square * over_d * l.per, at = far < most ? far : most;
        const int interval = at < most ? int(at) : l.intervals - 1;
        radial = l.radial + long(interval) * kRadialPowers * l.channels;
        s = at - float(interval);
    }
};

struct Powers {
    float a[kRadialPowers];

    __device__ Powers(const Layer& l, const Edge& edge, int channel) {
#pragma unroll
        for (int p = 0; p < kRadialPowers; ++p) a[p] = edge.radial[p * l.channels + channel];
    }
    __device__ float value(float s) const {
        return a[0] + s * (a[1] + s * (a[2] + s * (a[3] + s * (a[4] + s * a[5]))));
    }
    __device__ float slope(float s) const {
        return a[1] + s * (2 * a[2] + s * (3 * a[3] + s * (4 * a[4] + s * (5 * a[5]))));
    }
};

// ---- Products of a tile's rows, in shared memory, with weights.

// N numbers side by side; four of them lie at a multiple of 16 bytes.
template <int N>
__device__ void load(const float* p, float (&x)[N]) {
    if constexpr (N == 4) {
        const float4 v = *reinterpret_cast<const float4*>(p);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else if constexpr (N == 2) {
        const float2 v = *reinterpret_cast<const float2*>(p);
        x[0] = v.x, x[1] = v.y;
    } else {
#pragma unroll
        for (int k = 0; k < N; ++k) x[k] = p[k];
    }
}
template <int N>
__device__ void store(float* p, const float (&x)[N]) {
    if constexpr (N == 4) *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
    else if constexpr (N == 2) *reinterpret_cast<float2*>(p) = make_float2(x[0], x[1]);
    else
#pragma unroll
        for (int k = 0; k < N; ++k) p[k] = x[k];
}

// y[g][n] += sum over k of x[g][k] w[k][n], kWide rows of w at a time.
template <int kWide, int G, int N>
__device__ void multiply_some(float (&y)[G][N], const float* x, int ldx, const float* w, int ldw) {
    float own[kWide][N];
#pragma unroll
    for (int k = 0; k < kWide; ++k) load(w + k * ldw, own[k]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
        float v[kWide];
        load(x + g * ldx, v);
#pragma unroll
        for (int k = 0; k < kWide; ++k)
#pragma unroll
            for (int n = 0; n < N; ++n) y[g][n] += v[k] * own[k][n];
    }
}

template <int G, int N>
__device__ void multiply(float (&y)[G][N], const float* x, int ldx, const float* w, int ldw, int depth) {
    [[maybe_unused]] constexpr int kAhead = N > 1 ? 2 : 4;
    int k = 0;
#pragma unroll kAhead
    for (; k + 4 <= depth; k += 4, w += 4 * ldw) multiply_some<4>(y, x + k, ldx, w, ldw);
#pragma unroll 1
    for (; k < depth; ++k, w += ldw) multiply_some<1>(y, x + k, ldx, w, ldw);
}

// Calls work(first column of N, first atom of G) for a tile of A atoms, every thread for its own.
template <int A, int G, int N, class Work>
__device__ void for_columns(int columns, const Work& work) {
    const int each = columns / N;
    for (int item = threadIdx.x; item < each * (A / G); item += kThreads) work(item % each * N, item / each * G);
}

// Where harmonics and their linear maps are: the first map, how many, and the first that was mapped.
__device__ constexpr int first_map(int h) { return h < 1 ? 0 : h < 4 ? 2 : 5; }
__device__ constexpr int maps_of(int h) { return h >= 1 && h < 4 ? 3 : 2; }
__device__ constexpr int first_mapped(int h) {
    return h < 1 ? 0 : h < 4 ? kVectors + 3 * (h - 1) : kTensors + 2 * (h - 4);
}

// y[n] += linear maps of a density [harmonics][channels], kWide channels from there on, to N products; w: their columns,
// `apart` from map to map.
template <int kWide, int N>
__device__ void map_some(float (&y)[N][kMapped], const float* density, int channels, const float* w, int ldw,
                         int apart) {
    float own[kWide][kMaps][N];
#pragma unroll
    for (int k = 0; k < kWide; ++k)
#pragma unroll
        for (int m = 0; m < kMaps; ++m) load(w + k * ldw + m * apart, own[k][m]);
#pragma unroll
    for (int h = 0; h < kHarmonics; ++h) {
        float x[kWide];
        load(density + h * channels, x);
#pragma unroll
        for (int m = 0; m < maps_of(h); ++m)
#pragma unroll
            for (int k = 0; k < kWide; ++k)
#pragma unroll
                for (int n = 0; n < N; ++n) y[n][first_mapped(h) + m] += x[k] * own[k][first_map(h) + m][n];
    }
}

// Rows of weights at a time, for so many columns: what registers hold.
template <int N>
constexpr int kWideMaps = N < 4 ? 4 : 2;

// A density's maps to N products.
template <int N>
__device__ void map_density(const Layer& l, float (&y)[N][kMapped], const float* density, int product) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int k = 0; k < kMapped; ++k) y[n][k] = 0;
    constexpr int kWide = kWideMaps<N>;
    const int ldw = kMaps * l.products;
    const float* w = l.maps + product;
    int c = 0;
#pragma unroll 1
    for (; c + kWide <= l.depth_channels; c += kWide, w += kWide * ldw)
        map_some<kWide>(y, density + c, l.channels, w, ldw, l.products);
#pragma unroll 1
    for (; c < l.depth_channels; ++c, w += ldw) map_some<1>(y, density + c, l.channels, w, ldw, l.products);
}

// The tensor q, a symmetric matrix, times v. Components such as xy are in the matrix twice.
__device__ void turn(const float (&q)[6], const float (&v)[3], float (&out)[3]) {
    out[0] = q[0] * v[0] + kApart * (q[3] * v[1] + q[4] * v[2]);
    out[1] = q[1] * v[1] + kApart * (q[3] * v[0] + q[5] * v[2]);
    out[2] = q[2] * v[2] + kApart * (q[4] * v[0] + q[5] * v[1]);
}

// What was mapped, by name.
struct Mapped {
    float left, right, a[3], b[3], c[3], q[6], p[6];

    __device__ explicit Mapped(const float (&y)[kMapped]) : left(y[0]), right(y[1]) {
#pragma unroll
        for (int h = 0; h < 3; ++h)
            a[h] = y[kVectors + 3 * h], b[h] = y[kVectors + 3 * h + 1], c[h] = y[kVectors + 3 * h + 2];
#pragma unroll
        for (int h = 0; h < 6; ++h) q[h] = y[kTensors + 2 * h], p[h] = y[kTensors + 2 * h + 1];
    }

    // The four features of the product.
    __device__ void invariants(float (&f)[4]) const {
        float turned[3];
        turn(q, c, turned);
        f[0] = left * right, f[1] = f[2] = f[3] = 0;
#pragma unroll
        for (int h = 0; h < 3; ++h) f[1] += a[h] * b[h], f[3] += a[h] * turned[h];
#pragma unroll
        for (int h = 0; h < 6; ++h) f[2] += q[h] * p[h];
    }

    // Gradients of all that was mapped, from those of the features.
    __device__ void back(const float (&g)[4], float (&y)[kMapped]) const {
        float forth[3], back[3];
        turn(q, c, forth);
        turn(q, a, back);
        y[0] = g[0] * right, y[1] = g[0] * left;
#pragma unroll
        for (int h = 0; h < 3; ++h) {
            y[kVectors + 3 * h] = g[1] * b[h] + g[3] * forth[h];
            y[kVectors + 3 * h + 1] = g[1] * a[h];
            y[kVectors + 3 * h + 2] = g[3] * back[h];
        }
        const float bent[6] = {a[0] * c[0],
                               a[1] * c[1],
                               a[2] * c[2],
                               kApart * (a[0] * c[1] + a[1] * c[0]),
                               kApart * (a[0] * c[2] + a[2] * c[0]),
                               kApart * (a[1] * c[2] + a[2] * c[1])};
#pragma unroll
        for (int h = 0; h < 6; ++h)
            y[kTensors + 2 * h] = g[2] * p[h] + g[3] * bent[h], y[kTensors + 2 * h + 1] = g[2] * q[h];
    }
};

// Value of silu, and its slope.
__device__ float silu(float x, float& slope) {
    const float s = 1 / (1 + expf(-x));
    slope = s * (x * (1 - s) + 1);
    return x * s;
}

// ---- Tiles.

// The atoms of a block: rows past the last atom are computed like others, from another one's numbers, and not written.
template <int A>
struct Tile {
    long first;
    int count;

    __device__ explicit Tile(const Layer& l) : first(long(blockIdx.x) * A) {
        count = l.graph.atoms - first < A ? int(l.graph.atoms - first) : A;
    }
    __device__ bool has(int row) const { return row < count; }
    __device__ long atom(int row) const { return first + (row < count ? row : 0); }
};

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

// Hands out aligned pieces of one allocation; from null it only measures.
class Pieces {
  public:
    explicit Pieces(void* start) : start_(static_cast<char*>(start)) {}
    float* take(int64_t floats) {
        float* piece = start_ ? reinterpret_cast<float*>(start_ + used_) : nullptr;
        used_ += (size_t(floats) * sizeof(float) + 255) / 256 * 256;
        return piece;
    }
    size_t used() const { return used_; }

  private:
    char* start_;
    size_t used_ = 0;
};

// Of each layer; with slopes all of it is kept until the way back.
struct Memory {
    float *density, *inner, *outer, *seen;
    float *feature, *seen_gradient;  // of one layer at a time
    size_t bytes;

    Memory(const WindowPotentialSizes& z, const Layer& l, int64_t atoms, bool slopes, void* start) {
        Pieces pieces(start);
        const int64_t rows = z.layers * atoms;
        density = outer = seen_gradient = nullptr;
        inner = pieces.take(rows * l.hidden);
        seen = pieces.take(rows * l.channels);
        feature = pieces.take(atoms * l.features);
        if (slopes) {
            density = pieces.take(rows * kHarmonics * l.channels);
            outer = pieces.take(rows * l.hidden);
            seen_gradient = pieces.take(atoms * l.channels);
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
