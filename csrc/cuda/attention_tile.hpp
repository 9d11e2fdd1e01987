// What the two edge kernels share: a warp's tile of edges of one centre, from their geometry to the hidden layer.
//
// The rows of a tile (edges) fall into four groups of R.  Geometry: a lane has a row.  Hidden layer: a lane has two units of
// a chunk, all rows.  Products with columns: lane = 8 group + j has the rows of a group and the columns of channel (or
// kind) j, 4 heads wide; the hidden layer changes hands through shared memory, [unit][row].  Tangents (D) go along.
#pragma once

#include <type_traits>

#include "cuda/attention_layout.hpp"
#include "cuda/launch.hpp"
#include "math/dual.hpp"
#include "math/edge.hpp"
#include "math/gelu.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kThreads = 192, kWarps = kThreads / 32;  // of the edge kernels
constexpr unsigned kAll = 0xffffffffu;

// Sizes known when the kernel is compiled; its weights fit into shared memory.
template <int kB, int kHidden>
struct Known {
    static constexpr bool kStaged = true;
    static constexpr int kBlocks = 2;  // of a multiprocessor
    static constexpr int B = kB, N = kHidden, M = kHidden, head_blocks = 1, channel_blocks = 1;
    __device__ explicit Known(const Layout&) {}
};

// Any sizes; weights are read through the cache.
struct Any {
    static constexpr bool kStaged = false;
    static constexpr int kBlocks = 1;
    int B, N, M, head_blocks, channel_blocks;
    __device__ explicit Any(const Layout& l)
        : B(l.B), N(l.N), M(l.M), head_blocks(l.head_blocks), channel_blocks(l.channel_blocks) {}
};

template <class Shape>
struct Type {
    using type = Shape;
};

// Calls run(Type<Shape>{}) for the sizes of a layout.
template <std::size_t k = 0, class Run>
void with_shape(const Layout& l, const Run& run) {
    if constexpr (k == std::size(kKnownSizes)) run(Type<Any>{});
    else if (fits(kKnownSizes[k], l)) run(Type<Known<kKnownSizes[k].centres, kKnownSizes[k].hidden>>{});
    else with_shape<k + 1>(l, run);
}

template <bool D>
using Number = std::conditional_t<D, Dual<float>, float>;

template <bool D>
__device__ Number<D> make(float v, [[maybe_unused]] float t) {
    if constexpr (D) return Dual<float>{v, t};
    else return v;
}
template <bool D>
__device__ Number<D> get(const Both& x, long k) {
    if constexpr (D) return Dual<float>{x.v[k], x.t[k]};
    else return x.v[k];
}
template <bool D>
__device__ void put(const Both& to, long k, Number<D> x) {
    if constexpr (D) to.v[k] = x.v, to.t[k] = x.t;
    else to.v[k] = x;
}

__device__ inline int lane_index() { return threadIdx.x % 32; }
__device__ inline int warp_index() { return threadIdx.x / 32; }
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline void store4(float* p, float a, float b, float c, float d) {
    *reinterpret_cast<float4*>(p) = make_float4(a, b, c, d);
}

// The rows of a group.
template <int R>
__device__ void load_rows(const float* p, float (&x)[R]) {
    if constexpr (R == 2) {
        const float2 v = *reinterpret_cast<const float2*>(p);
        x[0] = v.x, x[1] = v.y;
    } else {
        const float4 v = load4(p);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    }
}

// y[row][at .. at + 3] += h[row] c
template <int R, int kColumns>
__device__ void multiply_add(float (&y)[R][kColumns], int at, const float (&h)[R], float4 c) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
        y[r][at] += h[r] * c.x;
        y[r][at + 1] += h[r] * c.y;
        y[r][at + 2] += h[r] * c.z;
        y[r][at + 3] += h[r] * c.w;
    }
}

// Sum over all lanes.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
    return x;
}

// Weights into shared memory, by the whole block; counts are multiples of 4.
__device__ inline void stage(float* to, const float* from, int count) {
    for (int k = 4 * threadIdx.x; k < count; k += 4 * kThreads) *reinterpret_cast<float4*>(to + k) = load4(from + k);
}

// A centre and its edges.  Unsigned: made 64 bits wide, nothing of it takes a second register.
struct Centre {
    long begin;  // first edge in the graph
    int degree;
    unsigned row, time, copy;  // of the state; which copy of the graph, and the row of that copy's first atom
};

__device__ inline Centre centre_of(const EdgeCall& call, long row) {
    const unsigned atoms = unsigned(call.graph.atoms), time = unsigned(row) / atoms, copy = time * atoms;
    const long begin = call.graph.row_ptr[row - copy];
    return {begin, int(call.graph.row_ptr[row - copy + 1] - begin), unsigned(row), time, copy};
}

// Where in `logits` those of a centre's edge begin, for a block of heads.
__device__ inline long logits_at(const EdgeCall& call, const Centre& centre, int edge, int heads, int head_blocks) {
    return ((centre.begin + centre.time * call.edges + edge) * head_blocks + heads) * kHeads;
}

enum Feature { kDistance, kAlong, kSpeed, kDirection, kVelocity = kDirection + 3, kFeatures = kVelocity + 3 };

// Shared memory of a warp.
template <int R, bool D>
struct Tile {
    static constexpr int rows = 4 * R;
    static constexpr int ld = rows + 4;  // so that lanes with neighbouring units write to different banks
    static constexpr int parts = D ? 2 : 1;

    Both hidden;    // [kChunk][ld]
    Both basis;     // [B][rows]
    Both features;  // [kFeatures][rows]
    int* neighbor;  // [rows] of the state
    float* rest;    // the caller's

    __host__ __device__ static constexpr int floats(int B) {
        return parts * (kChunk * ld + (B + kFeatures) * rows) + rows;
    }

    __device__ Tile(float* memory, int B) {
        const auto take = [&memory](int count) {
            Both piece{memory, memory + (D ? count : 0)};
            memory += parts * count;
            return piece;
        };
        hidden = take(kChunk * ld);
        basis = take(B * rows);
        features = take(kFeatures * rows);
        neighbor = reinterpret_cast<int*>(memory);
        rest = memory + rows;
    }

    __device__ Number<D> feature(int k, int row) const { return get<D>(features, k * rows + row); }
};

// Edge `number` of a centre.  w: velocity of the neighbour relative to the centre.
template <bool D>
__device__ Geometry<Number<D>> edge_geometry(const EdgeCall& call, const Centre& centre, int number,
                                             Number<D> (&w)[3]) {
    const long e = centre.begin + number, i = centre.row, j = centre.copy + call.graph.neighbor[e];
    Number<D> r[3];
#pragma unroll
    for (int x = 0; x < 3; ++x) {
        r[x] = get<D>(call.displacement, 3 * j + x) - get<D>(call.displacement, 3 * i + x);
        w[x] = get<D>(call.velocity, 3 * j + x) - get<D>(call.velocity, 3 * i + x);
        r[x] += chain(r[x], call.graph.r[3 * e + x], 0.0f);
        w[x] += chain(w[x], call.graph.w[3 * e + x], 0.0f);
    }
    return geometry<float>(r, w);
}

template <bool D>
__device__ Number<D> envelope_of(const EdgeCall& call, Number<D> d) {
    const float distance = ::value(d);
    return chain(d, envelope(distance, call.cutoff), envelope_slope(distance, call.cutoff));
}

// Features and Gaussians of the edges from `begin` on; rows past the centre's last edge hold some finite numbers.
template <int R, bool D>
__device__ void prepare(const EdgeCall& call, const Centre& centre, int begin, int B, const Tile<R, D>& tile) {
    constexpr int rows = Tile<R, D>::rows;
    const int lane = lane_index();
    __syncwarp();
    if (lane < rows) {
        const int e = begin + lane;
        Geometry<Number<D>> g{};
        Number<D> w[3]{};
        if (e < centre.degree) g = edge_geometry<D>(call, centre, e, w);
        put<D>(tile.features, kDistance * rows + lane, g.d);
        put<D>(tile.features, kAlong * rows + lane, g.wu);
        put<D>(tile.features, kSpeed * rows + lane, g.ww);
#pragma unroll
        for (int x = 0; x < 3; ++x) {
            put<D>(tile.features, (kDirection + x) * rows + lane, g.u[x]);
            put<D>(tile.features, (kVelocity + x) * rows + lane, w[x]);
        }
        tile.neighbor[lane] = e < centre.degree ? centre.copy + int(call.graph.neighbor[centre.begin + e]) : centre.row;
    }
    __syncwarp();
    const float step = call.cutoff / (B - 1), inverse_step = (B - 1) / call.cutoff;
    for (int k = lane; k < B * rows; k += 32) {
        const int b = k / rows, row = k % rows;
        const float x = (tile.features.v[kDistance * rows + row] - b * step) * inverse_step;
        const float g = __expf(-x * x) * (1 / 1.12f);
        tile.basis.v[k] = g;
        if constexpr (D) tile.basis.t[k] = g * x * (-2 * inverse_step) * tile.features.t[kDistance * rows + row];
    }
    __syncwarp();
}

// The hidden layer of a chunk: x[u][row] of the units lane + 32 u, and in the tile's memory.  layer [B][lane][u] and
// offset [lane][u] are those of the chunk.
template <int R, bool D>
__device__ void hidden_layer(const float* layer, const Both& offset, int B, const Tile<R, D>& tile,
                             float (&x)[2][4 * R], float (&xt)[2][D ? 4 * R : 1]) {
    constexpr int rows = Tile<R, D>::rows;
    const int lane = lane_index();
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            x[u][r] = offset.v[2 * lane + u];
            if constexpr (D) xt[u][r] = offset.t[2 * lane + u];
        }
    }
#pragma unroll 2
    for (int b = 0; b < B; ++b) {
        const float2 w = *reinterpret_cast<const float2*>(layer + b * kChunk + 2 * lane);
#pragma unroll
        for (int r = 0; r < rows; r += 4) {
            const float4 g = load4(tile.basis.v + b * rows + r);
            const float of_row[4] = {g.x, g.y, g.z, g.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) x[0][r + k] += w.x * of_row[k], x[1][r + k] += w.y * of_row[k];
            if constexpr (D) {
                const float4 s = load4(tile.basis.t + b * rows + r);
                const float change[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
                for (int k = 0; k < 4; ++k) xt[0][r + k] += w.x * change[k], xt[1][r + k] += w.y * change[k];
            }
        }
    }
    __syncwarp();  // what was read of the chunk before
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            const float cut = fminf(fmaxf(x[u][r], -kGeluEnd), kGeluEnd), s = gelu_argument(cut);
            x[u][r] *= cut * gelu_series<GeluValue>(s) + 0.5f;
            if constexpr (D) xt[u][r] *= cut * gelu_series<GeluSlope>(s) + 0.5f;
        }
        const int at = (lane + 32 * u) * Tile<R, D>::ld;
#pragma unroll
        for (int r = 0; r < rows; r += 4) {
            store4(tile.hidden.v + at + r, x[u][r], x[u][r + 1], x[u][r + 2], x[u][r + 3]);
            if constexpr (D) store4(tile.hidden.t + at + r, xt[u][r], xt[u][r + 1], xt[u][r + 2], xt[u][r + 3]);
        }
    }
    __syncwarp();
}

// Launches kernel(call), one warp a centre.
inline void launch_centres(void (*kernel)(EdgeCall), const EdgeCall& call, int shared_floats, cudaStream_t stream) {
    const std::size_t bytes = sizeof(float) * std::size_t(shared_floats);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "attention");
    launch(kernel, dim3(unsigned((call.count + kWarps - 1) / kWarps)), dim3(kThreads), bytes, stream, call);
}

}  // namespace
}  // namespace mdtrajnet::cuda
