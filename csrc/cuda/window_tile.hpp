// What the kernels of window potentials share: a layer as they are given it, its edges, products of a tile's rows in shared
// memory with weights, the linear maps of densities and the invariants of these.
#pragma once

#include "cuda/launch.hpp"
#include "cuda/window_potentials.hpp"

// Rows are padded as the weights' are.  Sums over channels, features or hidden units are a thread's own, over the same
// numbers in the same order whatever the tile, so an atom gets the same result whatever else is in the graph.

namespace mdtrajnet::cuda {
namespace {

using std::int64_t;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kHarmonics = 10;              // of l = 0, 1, 2 as Cartesian tensors
constexpr int kMaps = 7;                    // linear maps of the density: two of each l, and one more of l = 1
constexpr int kMapped = 23;                 // the same where each harmonic counts
constexpr int kVectors = 2, kTensors = 11;  // the first mapped ones of l = 1 and 2
constexpr int kLanes = 16;                  // channels that half a warp has at a time; rows are multiples of it
constexpr float kApart = 0.70710678118654752440f;
constexpr int kThreads = 128, kWarps = kThreads / 32;  // of a block

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

}  // namespace
}  // namespace mdtrajnet::cuda
