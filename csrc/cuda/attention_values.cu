// Softmax over the edges of each centre, means of the hidden layer, and vector values, of a slice of centres.
//
// Means: a lane has two units and 12 factors, 24 multiply-adds a row for 3 loads of 16 bytes.  Vector values: a lane has the
// R rows of its group and the 4 heads of column j = [along u, times r, times w, times (w.u) u][position, velocity]; the
// sum over heads is weighted and put on its vector at once, so that chunks of hidden units, groups and kinds add up.
#include "cuda/attention_tile.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kMeans = 3 * kHeads;  // [plain, times d, times w.u][heads]

// What the tiles hold beyond Tile: [rows][kMeans] factors, [kChunk][kOwnValues] own columns.
template <int R, bool D>
struct ValueTile : Tile<R, D> {
    Both factors;
    float* own;

    __host__ __device__ static constexpr int floats(int B) {
        return Tile<R, D>::floats(B) + Tile<R, D>::parts * Tile<R, D>::rows * kMeans + kChunk * kOwnValues;
    }
    __device__ ValueTile(float* memory, int B) : Tile<R, D>(memory, B) {
        constexpr int count = Tile<R, D>::rows * kMeans;
        factors = {this->rest, this->rest + (D ? count : 0)};
        own = this->rest + Tile<R, D>::parts * count;
    }
};

// Turns the logits l of the centre's edges into weights f^2 exp(l) / sum f exp(l), f being the envelope or 1.
template <bool D>
__device__ void softmax(const EdgeCall& call, const Centre& centre, int heads, int head_blocks) {
    const auto place = [&](int e) { return logits_at(call, centre, e, heads, head_blocks); };
    float top[4] = {-1e30f, -1e30f, -1e30f, -1e30f};
    for (int e = lane_index(); e < centre.degree; e += 32) {
        const float4 l = load4(call.logits.v + place(e));
        top[0] = fmaxf(top[0], l.x), top[1] = fmaxf(top[1], l.y);
        top[2] = fmaxf(top[2], l.z), top[3] = fmaxf(top[3], l.w);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) top[k] = warp_max(top[k]);
    float sum[4] = {}, sum_t[4] = {};
    for (int e = lane_index(); e < centre.degree; e += 32) {
        Number<D> f = make<D>(1, 0);
        if (call.envelope) {
            Number<D> w[3];
            f = envelope_of<D>(call, edge_geometry<D>(call, centre, e, w).d);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Number<D> l = get<D>(call.logits, place(e) + k);
            const float a = __expf(::value(l) - top[k]);
            Number<D> x;
            if constexpr (D) x = Dual<float>{a, a * l.t} * f;
            else x = a * f;
            sum[k] += ::value(x);
            if constexpr (D) sum_t[k] += x.t;
            put<D>(call.logits, place(e) + k, call.envelope ? x * f : x);
        }
    }
    float inverse[4], change[4];  // of the sum; its derivative, times the inverse
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const float total = warp_sum(sum[k]);
        // without neighbours, or with all of them at the cutoff, 0 is divided by the floor
        inverse[k] = 1 / fmaxf(total, 1e-30f);
        change[k] = D && total > 1e-30f ? warp_sum(sum_t[k]) * inverse[k] : 0.0f;
    }
    // here, by the lanes that wrote them, and not tile by tile: inverse and change would take eight registers there
    for (int e = lane_index(); e < centre.degree; e += 32) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            Number<D> a = get<D>(call.logits, place(e) + k) * inverse[k];
            if constexpr (D) a.t -= a.v * change[k];
            put<D>(call.logits, place(e) + k, a);
        }
    }
}

// Weights of the tile's edges, plain, times d and times w.u; 0 in rows without an edge.  The barriers of hidden_layer
// come before they are read.
template <int R, bool D>
__device__ void weigh(const EdgeCall& call, const Centre& centre, int begin, int heads, int head_blocks,
                      const ValueTile<R, D>& tile) {
    const int row = lane_index();
    if (row < tile.rows) {
        const Number<D> d = tile.feature(kDistance, row), wu = tile.feature(kAlong, row);
        const int e = begin + row;
        const long from = logits_at(call, centre, e, heads, head_blocks);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Number<D> a = e < centre.degree ? get<D>(call.logits, from + k) : Number<D>{};
            put<D>(tile.factors, row * kMeans + k, a);
            put<D>(tile.factors, row * kMeans + 4 + k, a * d);
            put<D>(tile.factors, row * kMeans + 8 + k, a * wu);
        }
    }
}

__device__ inline void load_factors(const float* p, float (&f)[kMeans]) {
#pragma unroll
    for (int k = 0; k < kMeans; k += 4) {
        const float4 x = load4(p + k);
        f[k] = x.x, f[k + 1] = x.y, f[k + 2] = x.z, f[k + 3] = x.w;
    }
}

// Adds the tile's vector values, of a chunk of units in its memory, to `total` [3]: those of the lane's column.
template <int R, bool D>
__device__ void add_vectors(const Both& own, const float* own_constant, const float* own_constant_t,
                            const float* shared, const float* shared_constant, const ValueTile<R, D>& tile,
                            Number<D> (&total)[3]) {
    const int lane = lane_index(), j = lane % 8, group = lane / 8, kind = j / 2, z = j % 2;
    const float* columns = kind ? shared + 4 * (j - 2) : tile.own + 4 * z;
    const int stride = kind ? kSharedValues : kOwnValues;
    float y[R][4], yt[D ? R : 1][4], moved[D ? R : 1][4];
    float4 first = make_float4(0, 0, 0, 0), first_t = first;
    if (own_constant) {
        first = load4(kind ? shared_constant + 4 * (j - 2) : own_constant + 4 * z);
        if constexpr (D) first_t = kind ? first_t : load4(own_constant_t + 4 * z);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
        y[r][0] = first.x, y[r][1] = first.y, y[r][2] = first.z, y[r][3] = first.w;
        if constexpr (D) {
            yt[r][0] = first_t.x, yt[r][1] = first_t.y, yt[r][2] = first_t.z, yt[r][3] = first_t.w;
            moved[r][0] = moved[r][1] = moved[r][2] = moved[r][3] = 0;
        }
    }
#pragma unroll 4
    for (int k = 0; k < kChunk; ++k) {
        float h[R];
        const float4 c = load4(columns + k * stride);
        load_rows<R>(tile.hidden.v + k * tile.ld + R * group, h);
        multiply_add(y, 0, h, c);
        if constexpr (D) {
            load_rows<R>(tile.hidden.t + k * tile.ld + R * group, h);
            multiply_add(yt, 0, h, c);
        }
    }
    if constexpr (D) {  // the change of the own columns: a quarter of the units each, by the lanes of all kinds
#pragma unroll 4
        for (int k = kind; k < kChunk; k += 4) {
            float h[R];
            load_rows<R>(tile.hidden.v + k * tile.ld + R * group, h);
            multiply_add(moved, 0, h, load4(own.t + k * kOwnValues + 4 * z));
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const int row = R * group + r;
        Number<D> sum{}, plain{};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Number<D> a = get<D>(tile.factors, row * kMeans + k);
            sum += a * make<D>(y[r][k], yt[D ? r : 0][k]);
            if constexpr (D) plain += a * Dual<float>{0, moved[r][k]};
        }
        if (kind == 1) sum = sum * tile.feature(kDistance, row);
        if (kind == 3) sum = sum * tile.feature(kAlong, row);
        const int vector = kind == 2 ? kVelocity : kDirection;
#pragma unroll
        for (int x = 0; x < 3; ++x) {
            total[x] += sum * tile.feature(vector + x, row);
            if constexpr (D) total[x] += plain * tile.feature(kDirection + x, row);
        }
    }
}

template <bool D>
__device__ Number<D> sum_lanes(Number<D> x, int smallest) {
    for (int step = 16; step >= smallest; step /= 2) {
        if constexpr (D) {
            x.v += __shfl_xor_sync(kAll, x.v, step);
            x.t += __shfl_xor_sync(kAll, x.t, step);
        } else {
            x += __shfl_xor_sync(kAll, x, step);
        }
    }
    return x;
}

template <class Shape, int R, bool D>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks) values(EdgeCall call) {
    const Shape shape(call.layout);
    float* memory = dynamic_shared<float>();
    const float* const layers = Shape::kStaged ? memory : call.packed + call.layout.value_layer;
    const int layer_floats = shape.B * shape.M, block_floats = (shape.M + 1) * kSharedValues;
    const float* const columns = Shape::kStaged ? memory + layer_floats : call.packed + call.layout.value_shared;
    if constexpr (Shape::kStaged) {
        stage(memory, call.packed + call.layout.value_layer, layer_floats);
        stage(memory + layer_floats, call.packed + call.layout.value_shared, block_floats);
        memory += layer_floats + block_floats;
        __syncthreads();
    }
    const int lane = lane_index();
    const long local = long(blockIdx.x) * kWarps + warp_index();
    if (local >= call.count) return;
    const ValueTile<R, D> tile(memory + warp_index() * ValueTile<R, D>::floats(shape.B), shape.B);
    const Centre centre = centre_of(call, call.first + local);
    const Both atom{call.own.v + local * call.layout.own, D ? call.own.t + local * call.layout.own : nullptr};
    const Both offset{atom.v + call.layout.own_value_offset, D ? atom.t + call.layout.own_value_offset : nullptr};

    Number<D> total[3] = {};
    for (int heads = 0; heads < shape.head_blocks; ++heads) {
        softmax<D>(call, centre, heads, shape.head_blocks);
        const long of_block = call.layout.own_value + long(heads) * (shape.M + 1) * kOwnValues;
        const Both own{atom.v + of_block, D ? atom.t + of_block : nullptr};
        const float* const shared = columns + heads * block_floats;
        const auto place = [&](int mean) {  // in `means`, of a factor
            return ((local * call.layout.h + heads * kHeads + mean % 4) * 3 + mean / 4) * call.layout.ld_mean;
        };
#pragma unroll 1
        for (int unit = 0; unit < shape.M; unit += kChunk) {
            __syncwarp();  // softmax has written, and the columns of the chunk before are read
            for (int k = 4 * lane; k < kChunk * kOwnValues; k += 4 * 32)
                *reinterpret_cast<float4*>(tile.own + k) = load4(own.v + unit * kOwnValues + k);
            float mean[2][kMeans] = {}, mean_t[2][D ? kMeans : 1] = {};
            Number<D> constant{};  // the constant unit's mean, of factor `lane`
            for (int begin = 0; begin < centre.degree; begin += tile.rows) {
                prepare(call, centre, begin, shape.B, tile);
                weigh<R, D>(call, centre, begin, heads, shape.head_blocks, tile);
                float x[2][4 * R], xt[2][D ? 4 * R : 1];
                hidden_layer<R, D>(layers + shape.B * unit, {offset.v + unit, D ? offset.t + unit : nullptr}, shape.B,
                                   tile, x, xt);
                if (call.means.v) {
#pragma unroll
                    for (int row = 0; row < tile.rows; ++row) {
                        float f[kMeans], ft[kMeans];
                        load_factors(tile.factors.v + row * kMeans, f);
                        if constexpr (D) load_factors(tile.factors.t + row * kMeans, ft);
#pragma unroll
                        for (int k = 0; k < kMeans; ++k) {
#pragma unroll
                            for (int u = 0; u < 2; ++u) {
                                mean[u][k] += f[k] * x[u][row];
                                if constexpr (D) mean_t[u][k] += f[k] * xt[u][row] + ft[k] * x[u][row];
                            }
                        }
                    }
                    if (unit == 0 && lane < kMeans)
                        for (int row = 0; row < tile.rows; ++row) constant += get<D>(tile.factors, row * kMeans + lane);
                }
                const float* const last = unit ? nullptr : own.v + shape.M * kOwnValues;
                const float* const last_t = unit || !D ? nullptr : own.t + shape.M * kOwnValues;
                add_vectors<R, D>({nullptr, D ? own.t + unit * kOwnValues : nullptr}, last, last_t,
                                  shared + unit * kSharedValues, shared + shape.M * kSharedValues, tile, total);
            }
            if (call.means.v) {
#pragma unroll
                for (int k = 0; k < kMeans; ++k) {
                    if (heads * kHeads + k % 4 >= call.layout.h) continue;
#pragma unroll
                    for (int u = 0; u < 2; ++u)
                        put<D>(call.means, place(k) + unit + lane + 32 * u, make<D>(mean[u][k], mean_t[u][D ? k : 0]));
                }
                if (unit == 0 && lane < kMeans && heads * kHeads + lane % 4 < call.layout.h)
                    put<D>(call.means, place(lane) + shape.M, constant);
            }
        }
    }
#pragma unroll
    for (int x = 0; x < 3; ++x) {
        Number<D> sum = sum_lanes<D>(total[x], 2);
        if (lane < 2) {  // the first has what goes into the position, the second into the velocity
            const Both to = lane ? call.out_velocity : call.out_displacement;
            const Both base = lane ? call.base_velocity : call.base_displacement;
            if (base.v) sum += get<D>(base, 3 * long(centre.row) + x);
            put<D>(to, 3 * long(centre.row) + x, sum);
        }
    }
}

template <class Shape, int R, bool D>
void launch_as(const EdgeCall& call, cudaStream_t stream) {
    const Layout& l = call.layout;
    const int staged = Shape::kStaged ? l.B * l.M + (l.M + 1) * kSharedValues : 0;
    launch_centres(values<Shape, R, D>, call, staged + kWarps * ValueTile<R, D>::floats(l.B), stream);
}

template <class Shape>
void launch_rows(const EdgeCall& call, [[maybe_unused]] Rows rows, bool tangent, cudaStream_t stream) {
    if (tangent) return launch_as<Shape, 2, true>(call, stream);
    if constexpr (Shape::kStaged)
        if (rows == Rows::sixteen) return launch_as<Shape, 4, false>(call, stream);
    launch_as<Shape, 2, false>(call, stream);
}

}  // namespace

void launch_values(const EdgeCall& call, Rows rows, bool tangent, Stream stream) {
    with_shape(call.layout,
               [&](auto shape) { launch_rows<typename decltype(shape)::type>(call, rows, tangent, stream); });
}

}  // namespace mdtrajnet::cuda
