// Logits of all edges of a slice of centres.
//
// Per hidden unit and lane: R rows x 15 columns (own: 4 heads of a channel, and one of heads alone; shared: 8 and 2).  A
// quad of units takes 19 loads of 16 bytes for 60 R multiply-adds.
#include "cuda/attention_tile.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kColumns = 15;
enum Column { kPlain = 0, kOwnHeads = 4, kTimesR = 5, kTimesW = 9, kHeadsA = 13, kHeadsB = 14 };

// Starts the columns with the constant unit, the same in every row.
template <int R>
__device__ void start(float (&y)[R][kColumns], const float* own, const float* shared) {
    const int j = lane_index() % 8;
    const float4 s = load4(own + 4 * j), r = load4(shared + 4 * j), w = load4(shared + 32 + 4 * j);
    const float first[kColumns] = {s.x,
                                   s.y,
                                   s.z,
                                   s.w,
                                   own[32 + j],
                                   r.x,
                                   r.y,
                                   r.z,
                                   r.w,
                                   w.x,
                                   w.y,
                                   w.z,
                                   w.w,
                                   shared[64 + 2 * j],
                                   shared[64 + 2 * j + 1]};
#pragma unroll
    for (int k = 0; k < R; ++k) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) y[k][c] = first[c];
    }
}

// y += hidden . own, of a quad.
template <int R>
__device__ void add_own(float (&y)[R][kColumns], const float (&h)[4][R], const float4 (&own)[5]) {
    const float heads[4] = {own[4].x, own[4].y, own[4].z, own[4].w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        multiply_add(y, kPlain, h[k], own[k]);
#pragma unroll
        for (int r = 0; r < R; ++r) y[r][kOwnHeads] += h[k][r] * heads[k];
    }
}

// Columns of one chunk of hidden units, which lies in the tile's memory.
template <int R, bool D>
__device__ void add_columns(float (&y)[R][kColumns], float (&yt)[D ? R : 1][kColumns], const Both& own,
                            const float* shared, const Tile<R, D>& tile) {
    const int j = lane_index() % 8, group = lane_index() / 8;
#pragma unroll 1
    for (int quad = 0; quad < kChunk / 4; ++quad) {
        const int at = quad * kOwnQuad + 4 * j;
        float4 mine[5];
#pragma unroll
        for (int k = 0; k < 5; ++k) mine[k] = load4(own.v + at + 32 * k);
        float h[4][R], ht[4][R];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            load_rows<R>(tile.hidden.v + (4 * quad + k) * tile.ld + R * group, h[k]);
            if constexpr (D) load_rows<R>(tile.hidden.t + (4 * quad + k) * tile.ld + R * group, ht[k]);
        }
        const float* all = shared + quad * kSharedQuad;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float4 r = load4(all + 64 * k + 4 * j), w = load4(all + 64 * k + 32 + 4 * j);
            multiply_add(y, kTimesR, h[k], r);
            multiply_add(y, kTimesW, h[k], w);
            if constexpr (D) multiply_add(yt, kTimesR, ht[k], r), multiply_add(yt, kTimesW, ht[k], w);
        }
        const float4 a4 = load4(all + 256 + 8 * j), b4 = load4(all + 256 + 8 * j + 4);
        const float a[4] = {a4.x, a4.y, a4.z, a4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                y[r][kHeadsA] += h[k][r] * a[k], y[r][kHeadsB] += h[k][r] * b[k];
                if constexpr (D) yt[r][kHeadsA] += ht[k][r] * a[k], yt[r][kHeadsB] += ht[k][r] * b[k];
            }
        }
        add_own(y, h, mine);
        if constexpr (D) {
            add_own(yt, ht, mine);
            // not earlier, beside the others: there are not registers enough
#pragma unroll
            for (int k = 0; k < 5; ++k) mine[k] = load4(own.t + at + 32 * k);
            add_own(yt, h, mine);
        }
    }
}

// Sums over the 8 lanes of a group.  Lane j keeps 1/8 of the numbers, the first being j kCount / 8.
template <int kStep, int kCount>
__device__ void sum_group(float (&x)[kCount]) {
    constexpr int half = kCount / 8 * kStep;
    const bool upper = lane_index() & kStep;
#pragma unroll
    for (int k = 0; k < half; ++k) {
        const float keep = upper ? x[half + k] : x[k], give = upper ? x[k] : x[half + k];
        x[k] = keep + __shfl_xor_sync(kAll, give, kStep);
    }
    if constexpr (kStep > 1) sum_group<kStep / 2>(x);
}

// What the columns of one pass add to the logits: [row of the group][head] of the lane's channel.
template <int R, bool D>
__device__ void contract(const float (&y)[R][kColumns], const float (&yt)[D ? R : 1][kColumns], const EdgeCall& call,
                         int pass, const Tile<R, D>& tile, float (&sum)[4 * R], float (&sum_t)[D ? 4 * R : 1]) {
    const int j = lane_index() % 8, group = lane_index() / 8;
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const int row = R * group + r;
        const auto column = [&](int c) { return make<D>(y[r][c], yt[D ? r : 0][c]); };
        const Number<D> d = tile.feature(kDistance, row), wu = tile.feature(kAlong, row);
        const long query = long(tile.neighbor[row]) * call.layout.queries + pass * 32 + 4 * j;
        const float4 q = load4(call.queries.v + query), qt = D ? load4(call.queries.t + query) : q;
        const float of_head[4] = {q.x, q.y, q.z, q.w}, change[4] = {qt.x, qt.y, qt.z, qt.w};
        // lanes 0 to 3: d (own + d A) + |w|^2 B of heads 0 to 3; lanes 4 to 7: w.u (own + d A) + (w.u)^2 B
        const Number<D> first = j < 4 ? d : wu, second = j < 4 ? tile.feature(kSpeed, row) : wu * wu;
        const Number<D> alone = first * (column(kOwnHeads) + d * column(kHeadsA)) + second * column(kHeadsB);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            Number<D> x = column(kPlain + k) + d * column(kTimesR + k) + wu * column(kTimesW + k);
            x = make<D>(of_head[k], change[k]) * x;
            if (j % 4 == k) x += alone;
            sum[4 * r + k] += ::value(x);
            if constexpr (D) sum_t[4 * r + k] += x.t;
        }
    }
}

template <class Shape, int R, bool D>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks) logits(EdgeCall call) {
    const Shape shape(call.layout);
    float* memory = dynamic_shared<float>();
    const float* const layers = Shape::kStaged ? memory : call.packed + call.layout.key_layer;
    const int layer_floats = shape.B * shape.N, pass_floats = (shape.N + 1) * kSharedColumns;
    const float* const columns = Shape::kStaged ? memory + layer_floats : call.packed + call.layout.key_shared;
    if constexpr (Shape::kStaged) {
        stage(memory, call.packed + call.layout.key_layer, layer_floats);
        stage(memory + layer_floats, call.packed + call.layout.key_shared, pass_floats);
        memory += layer_floats + pass_floats;
        __syncthreads();
    }
    const long local = long(blockIdx.x) * kWarps + warp_index();
    if (local >= call.count) return;
    const Tile<R, D> tile(memory + warp_index() * Tile<R, D>::floats(shape.B), shape.B);
    const Centre centre = centre_of(call, call.first + local);
    const Both atom{call.own.v + local * call.layout.own, D ? call.own.t + local * call.layout.own : nullptr};
    const Both offset{atom.v + call.layout.own_key_offset, D ? atom.t + call.layout.own_key_offset : nullptr};

    for (int begin = 0; begin < centre.degree; begin += tile.rows) {
        prepare(call, centre, begin, shape.B, tile);
        for (int heads = 0; heads < shape.head_blocks; ++heads) {
            float sum[4 * R] = {}, sum_t[D ? 4 * R : 1] = {};
            for (int channels = 0; channels < shape.channel_blocks; ++channels) {
                const int pass = heads * shape.channel_blocks + channels, of_pass = pass * (shape.N + 1) * kOwnColumns;
                const Both own{atom.v + of_pass, D ? atom.t + of_pass : nullptr};
                const float* const shared = columns + pass * pass_floats;
                float y[R][kColumns], yt[D ? R : 1][kColumns];
                start(y, own.v + shape.N * kOwnColumns, shared + shape.N * kSharedColumns);
                if constexpr (D) {
                    start(yt, own.t + shape.N * kOwnColumns, shared + shape.N * kSharedColumns);
#pragma unroll
                    for (int r = 0; r < R; ++r) {  // what is shared does not change
#pragma unroll
                        for (int c = kTimesR; c < kColumns; ++c) yt[r][c] = 0;
                    }
                }
#pragma unroll 1
                for (int unit = 0; unit < shape.N; unit += kChunk) {
                    {
                        float x[2][4 * R], xt[2][D ? 4 * R : 1];
                        const Both its{offset.v + unit, D ? offset.t + unit : nullptr};
                        hidden_layer<R, D>(layers + shape.B * unit, its, shape.B, tile, x, xt);
                    }
                    const int skip = unit * kOwnColumns;
                    add_columns<R, D>(y, yt, {own.v + skip, D ? own.t + skip : nullptr}, shared + unit * kSharedColumns,
                                      tile);
                }
                contract<R, D>(y, yt, call, pass, tile, sum, sum_t);
            }
            sum_group<4>(sum);
            if constexpr (D) sum_group<4>(sum_t);
#pragma unroll
            for (int k = 0; k < R / 2; ++k) {
                const int index = lane_index() % 8 * (R / 2) + k;
                const int e = begin + lane_index() / 8 * R + index / 4;
                const long to = logits_at(call, centre, e, heads, shape.head_blocks) + index % 4;
                if (e < centre.degree) put<D>(call.logits, to, make<D>(sum[k], sum_t[D ? k : 0]));
            }
        }
    }
}

template <class Shape, int R, bool D>
void launch_as(const EdgeCall& call, cudaStream_t stream) {
    const Layout& l = call.layout;
    const int staged = Shape::kStaged ? l.B * l.N + (l.N + 1) * kSharedColumns : 0;
    launch_centres(logits<Shape, R, D>, call, staged + kWarps * Tile<R, D>::floats(l.B), stream);
}

template <class Shape>
void launch_rows(const EdgeCall& call, [[maybe_unused]] Rows rows, bool tangent, cudaStream_t stream) {
    if (tangent) return launch_as<Shape, 2, true>(call, stream);
    if constexpr (Shape::kStaged)
        if (rows == Rows::sixteen) return launch_as<Shape, 4, false>(call, stream);
    launch_as<Shape, 2, false>(call, stream);
}

}  // namespace

void launch_logits(const EdgeCall& call, Rows rows, bool tangent, Stream stream) {
    with_shape(call.layout,
               [&](auto shape) { launch_rows<typename decltype(shape)::type>(call, rows, tangent, stream); });
}

}  // namespace mdtrajnet::cuda
