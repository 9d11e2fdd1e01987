#include "cuda/attention.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/attention_layout.hpp"
#include "cuda/launch.hpp"
#include "cuda/pieces.hpp"

// Per block of the network: queries of all atoms, then slice by slice columns, logits, values (the edge kernels, in files of
// their own), combine and finish.

namespace mdtrajnet::cuda {
namespace {

constexpr int kThreads = 256;  // of a block

// ---- Packing: a thread has some numbers, and asks an entry where each comes from.

constexpr int kNumbers = 16;

template <class Entry>
__global__ void __launch_bounds__(kThreads) fill(float* to, long count, Entry entry) {
    const long first = long(blockIdx.x) * kThreads * kNumbers + threadIdx.x;
#pragma unroll 1
    for (int i = 0; i < kNumbers; ++i)
        if (const long k = first + i * kThreads; k < count) to[k] = entry(k);
}

// A row of the hidden layer in the source, the constant unit last: -1 for padding.
__device__ int source_unit(int unit, int units, int padded) {
    return unit < units ? unit : unit == padded ? units : -1;
}

struct QueryEntry {  // [S + 1][passes][8][4]; the last row, of the constant 1, is zero
    Layout l;
    const float* from;  // [S][c h]
    __device__ float operator()(long k) const {
        const int u = int(k / l.queries), x = int(k % l.queries), pass = x / 32;
        const int channel = pass % l.channel_blocks * kChannels + x % 32 / kHeads;
        const int head = pass / l.channel_blocks * kHeads + x % kHeads;
        return u < l.S && channel < l.c && head < l.h ? from[(long(u) * l.c + channel) * l.h + head] : 0.0f;
    }
};

// Where a column of a quad (or of the constant unit, quad = N / 4) is found: `paths` columns a channel, and as many of heads
// alone, which go two by two into the places A, B, ... of eight.
struct KeyColumn {
    int unit, head, channel, path;  // channel -1: of heads alone, path counting them
    __device__ KeyColumn(const Layout& l, int pass, int x, int paths) {
        const int per_unit = paths * kOwnColumns, wide = paths * 32;
        const int quad = x / (4 * per_unit), constant = quad == l.N / 4;
        const int y = x - quad * 4 * per_unit, units = constant ? 1 : 4;
        head = pass / l.channel_blocks * kHeads;
        const int block = pass % l.channel_blocks;
        if (y < units * wide) {
            unit = 4 * quad + y / wide;
            path = y % wide / 32;
            channel = block * kChannels + y % 32 / kHeads;
            head += y % kHeads;
            if (channel >= l.c) unit = -1;
        } else {
            const int z = y - units * wide, j = z / (paths * units), place = z / units % paths;
            unit = block ? -1 : 4 * quad + z % units;  // once, with the first channels
            path = 2 * place + j / kHeads;
            channel = -1;
            head += j % kHeads;
        }
        if (unit >= 0) unit = source_unit(unit, l.n, l.N);
        if (head >= l.h) unit = -1;
    }
};

struct ColumnsEntry {  // [S + 1][own]
    Layout l;
    AttentionWeights<float> w;
    __device__ float operator()(long k) const {
        const int u = int(k / l.own);
        int x = int(k % l.own);
        if (x >= l.own_key_offset) {  // offsets of the hidden layers: time channels and bias
            const int net = x >= l.own_value_offset, y = x - (net ? l.own_value_offset : l.own_key_offset);
            const int unit = y / kChunk * kChunk + y % kChunk / 2 + y % 2 * 32, channel = u - (l.S - l.T);
            if (unit >= (net ? l.m : l.n) || channel < 0) return 0;
            return u == l.S ? w.layer_bias[net][0][unit]
                            : w.layer_weight[net][0][long(unit) * (l.B + l.T) + l.B + channel];
        }
        if (u == l.S) return 0;
        if (x >= l.own_value) {
            x -= l.own_value;
            const int block = x / ((l.M + 1) * kOwnValues), y = x % ((l.M + 1) * kOwnValues);
            const int unit = source_unit(y / kOwnValues, l.m, l.M), head = block * kHeads + y % kHeads;
            if (unit < 0 || head >= l.h) return 0;
            return w.value_atom[((long(u) * (l.m + 1) + unit) * 2 + y % kOwnValues / kHeads) * l.h + head];
        }
        const int per_pass = (l.N + 1) * kOwnColumns;
        const KeyColumn c(l, x / per_pass, x % per_pass, 1);
        if (c.unit < 0) return 0;
        const long row = (long(u) * (l.n + 1) + c.unit) * (l.c + 2) * l.h;
        return w.key_atom[row + (c.channel < 0 ? l.c + c.path : c.channel) * l.h + c.head];
    }
};

struct SharedKeyEntry {
    Layout l;
    const float* from;  // [n + 1][2 c h + 4 h]
    __device__ float operator()(long k) const {
        const int per_pass = (l.N + 1) * kSharedColumns;
        const KeyColumn c(l, int(k / per_pass), int(k % per_pass), 2);
        if (c.unit < 0) return 0;
        const long row = long(c.unit) * (2 * l.c + 4) * l.h;
        return from[row + (c.channel < 0 ? 2 * l.c + c.path : c.path * l.c + c.channel) * l.h + c.head];
    }
};

struct LayerEntry {  // [chunks][B][32 lanes][2]
    int B, T, units;
    const float* from;  // [units][B + T]
    __device__ float operator()(long k) const {
        const int b = int(k / kChunk % B), y = int(k % kChunk);
        const int unit = int(k / (kChunk * B)) * kChunk + y / 2 + y % 2 * 32;
        return unit < units ? from[long(unit) * (B + T) + b] : 0.0f;
    }
};

struct SharedValueEntry {  // [head blocks][M + 1][path][z][4]
    Layout l;
    const float* from;  // [m + 1][path, z, h]
    __device__ float operator()(long k) const {
        const int y = int(k % kSharedValues), unit = source_unit(int(k / kSharedValues % (l.M + 1)), l.m, l.M);
        const int head = int(k / ((l.M + 1) * kSharedValues)) * kHeads + y % kHeads;
        // the source has r, w, (w.u) u as well
        return unit < 0 || head >= l.h ? 0.0f : from[(long(unit) * 6 + y / kHeads) * l.h + head];
    }
};

struct CombineEntry {  // [h][M + 1][V / 8][S + 2][8]
    Layout l;
    const float *atom, *edge;  // [h][m + 1][S v], [h][2][m + 1][v]
    __device__ float operator()(long k) const {
        const int width = l.groups * 8, x = int(k % width), group = x / 8, u = group % (l.S + 2);
        const int channel = group / (l.S + 2) * 8 + x % 8;
        const int unit = source_unit(int(k / width % (l.M + 1)), l.m, l.M), head = int(k / (long(width) * (l.M + 1)));
        if (unit < 0 || channel >= l.v) return 0;
        return u < l.S ? atom[((long(head) * (l.m + 1) + unit) * l.S + u) * l.v + channel]
                       : edge[((long(head) * 2 + u - l.S) * (l.m + 1) + unit) * l.v + channel];
    }
};

struct OutEntry {  // [h][V][S]
    Layout l;
    const float* from;  // [h][v][S]
    __device__ float operator()(long k) const {
        const int channel = int(k / l.S % l.V);
        return channel < l.v ? from[(k / (long(l.S) * l.V) * l.v + channel) * l.S + k % l.S] : 0.0f;
    }
};

// ---- Columns: y [rows][N] = [x, constant] weight, weight [S + 1][N], N a multiple of 4.
// A block has 64 rows and takes 128 columns at a time, up to kStrips times; a thread has 8 rows and 4 columns.

constexpr int kRows = 64, kWide = 128, kDepth = 32, kStrips = 8;

__global__ void __launch_bounds__(kThreads, 2)
    columns(const float* x, long rows, int S, float constant, const float* weight, int N, float* y) {
    __shared__ __align__(16) float xs[kDepth][kRows + 4];
    __shared__ __align__(16) float ws[kDepth][kWide];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 8;
    const long first_row = long(blockIdx.x) * kRows;
    for (int strip = 0; strip < kStrips; ++strip) {
        const int column = (blockIdx.y * kStrips + strip) * kWide + lane * 4;
        if (column - lane * 4 >= N) return;
        float sum[8][4] = {};
        for (int from = 0; from <= S; from += kDepth) {
            const int depth = min(kDepth, S + 1 - from);
            __syncthreads();
            if (strip == 0 || S >= kDepth) {  // what fits at once stays for all strips
                const int u = from + lane;
                for (int i = warp; i < kRows && lane < depth; i += kThreads / 32) {
                    const long at = first_row + i;
                    xs[lane][i] = at >= rows ? 0.0f : u < S ? x[at * S + u] : constant;
                }
            }
            for (int u = warp; u < depth; u += kThreads / 32) {
                float4 w = make_float4(0, 0, 0, 0);
                if (column < N) w = *reinterpret_cast<const float4*>(weight + long(from + u) * N + column);
                *reinterpret_cast<float4*>(&ws[u][lane * 4]) = w;
            }
            __syncthreads();
#pragma unroll 4
            for (int u = 0; u < depth; ++u) {
                const float4 w = *reinterpret_cast<const float4*>(&ws[u][lane * 4]);
                const float4 a = *reinterpret_cast<const float4*>(&xs[u][row]);
                const float4 b = *reinterpret_cast<const float4*>(&xs[u][row + 4]);
                const float s[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    sum[i][0] += s[i] * w.x, sum[i][1] += s[i] * w.y, sum[i][2] += s[i] * w.z, sum[i][3] += s[i] * w.w;
            }
        }
        float* to = y + (first_row + row) * N + column;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (column < N && first_row + row + i < rows)
                *reinterpret_cast<float4*>(to + long(i) * N) = make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
}

// ---- Combine: scalar values [rows][h][V] of one head from the means; value = sum_g s_g mean . weight_g over S + 2 groups of
// channels, where s_g is a scalar of the atom and the mean the plain one, or s_g is 1 and the mean that times d or w.u.
// A block has 32 atoms and 32 groups of 8 channels at a time; a thread 4 atoms and a group.

constexpr int kAtoms = 32, kGroups = 32, kUnits = 16;
static_assert(kThreads == kAtoms / 2 * kUnits, "a thread loads one unit of two atoms");

template <bool D>
__global__ void __launch_bounds__(kThreads, 2)
    combine(Both means, Both scalars, const float* packed, long count, Layout l, Both values) {
    constexpr int parts = D ? 2 : 1;
    __shared__ __align__(16) float xs[parts][3][kUnits][kAtoms + 4];
    __shared__ __align__(16) float ws[kUnits][kGroups * 8];
    __shared__ float partial[parts][kThreads / 32][kAtoms * 8];
    const int quad = threadIdx.x % 8, slot = threadIdx.x / 8, head = blockIdx.y, warp = threadIdx.x / 32;
    const long first = long(blockIdx.x) * kAtoms;
    const int per_block = l.S + 2, width = l.groups * 8;
    const float* weight = packed + long(head) * (l.M + 1) * width;
    const long mean_stride = long(l.h) * 3 * l.ld_mean;  // from atom to atom
    const long loaded = (first + threadIdx.x / kUnits) * mean_stride + head * 3 * l.ld_mean + threadIdx.x % kUnits;
    for (int block = 0; block < l.V / 8; ++block) {
        float total = 0, total_t = 0;  // of atom threadIdx.x / 8, channel threadIdx.x % 8
        for (int from = 0; from < per_block; from += kGroups) {
            const int group = from + slot, groups = min(kGroups, per_block - from);
            const bool active = slot < groups;
            const int part = group < l.S ? 0 : group - l.S + 1;
            float y[4][8] = {}, yt[D ? 4 : 1][8] = {};
            for (int unit = 0; unit <= l.M; unit += kUnits) {
                const int units = min(kUnits, l.M + 1 - unit);
                __syncthreads();
#pragma unroll
                for (int k = 0; k < 6; ++k) {  // means 0 to 2 of atoms 0 to 15, then 16 to 31
                    const int i = threadIdx.x / kUnits + k / 3 * (kAtoms / 2), u = threadIdx.x % kUnits;
                    const bool there = first + i < count && u < units;
                    const long at = loaded + k / 3 * (kAtoms / 2) * mean_stride + k % 3 * l.ld_mean + unit;
                    xs[0][k % 3][u][i] = there ? means.v[at] : 0.0f;
                    if constexpr (D) xs[1][k % 3][u][i] = there ? means.t[at] : 0.0f;
                }
                for (int u = warp; u < units; u += kThreads / 32) {
                    const float* from_row = weight + long(unit + u) * width + (block * per_block + from) * 8;
                    for (int c = threadIdx.x % 32 * 4; c < groups * 8; c += 32 * 4)
                        *reinterpret_cast<float4*>(&ws[u][c]) = *reinterpret_cast<const float4*>(from_row + c);
                }
                __syncthreads();
                if (!active) continue;
                for (int u = 0; u < units; ++u) {
                    const float4 a = *reinterpret_cast<const float4*>(&ws[u][slot * 8]);
                    const float4 b = *reinterpret_cast<const float4*>(&ws[u][slot * 8 + 4]);
                    const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
                    const float4 x = *reinterpret_cast<const float4*>(&xs[0][part][u][quad * 4]);
                    const float of_atom[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
#pragma unroll
                        for (int c = 0; c < 8; ++c) y[i][c] += of_atom[i] * w[c];
                    }
                    if constexpr (D) {
                        const float4 z = *reinterpret_cast<const float4*>(&xs[1][part][u][quad * 4]);
                        const float change[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
#pragma unroll
                            for (int c = 0; c < 8; ++c) yt[i][c] += change[i] * w[c];
                        }
                    }
                }
            }
            // times the atom's scalar, and summed over the four groups of a warp, then over warps
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const long atom = first + quad * 4 + i;
                const bool scaled = active && atom < count && group < l.S;
                const float s = scaled ? scalars.v[atom * l.S + group] : active ? 1.0f : 0.0f;
                const float st = D && scaled ? scalars.t[atom * l.S + group] : 0.0f;
#pragma unroll
                for (int c = 0; c < 8; ++c) {
                    const float sum = s * y[i][c];
                    float both[2] = {sum, D ? s * yt[D ? i : 0][c] + st * y[i][c] : 0.0f};
#pragma unroll
                    for (int p = 0; p < parts; ++p) {
                        both[p] += __shfl_xor_sync(0xffffffffu, both[p], 8);
                        both[p] += __shfl_xor_sync(0xffffffffu, both[p], 16);
                        if (threadIdx.x % 32 < 8) partial[p][warp][(quad * 4 + i) * 8 + c] = both[p];
                    }
                }
            }
            __syncthreads();
            for (int w = 0; w < kThreads / 32; ++w) {
                total += partial[0][w][threadIdx.x];
                if constexpr (D) total_t += partial[parts - 1][w][threadIdx.x];
            }
        }
        const long atom = first + threadIdx.x / 8, to = (atom * l.h + head) * l.V + block * 8 + threadIdx.x % 8;
        if (atom < count) {
            values.v[to] = total;
            if constexpr (D) values.t[to] = total_t;
        }
    }
}

// out = base + values . weight, [rows][S], a thread each.
template <bool D>
__global__ void __launch_bounds__(kThreads)
    finish(Both values, const float* weight, long count, Layout l, Both base, Both out) {
    const long k = long(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= count * l.S) return;
    const int u = int(k % l.S), depth = l.h * l.V;
    const long row = k / l.S * depth;
    float sum = 0, sum_t = 0;
    for (int x = 0; x < depth; ++x) {
        const float w = weight[x * l.S + u];
        sum += values.v[row + x] * w;
        if constexpr (D) sum_t += values.t[row + x] * w;
    }
    out.v[k] = base.v ? base.v[k] + sum : sum;
    if constexpr (D) out.t[k] = base.t ? base.t[k] + sum_t : sum_t;
}

// ---- The host's side.

unsigned blocks_of(long items, int per_block) { return unsigned((items + per_block - 1) / per_block); }

struct State {
    Both scalars, displacement, velocity;
};

struct Workspace {
    Both queries, logits;     // of all rows and edges
    Both own, means, values;  // of a slice
    State states[2];          // of a stack
};

size_t divide(void* memory, const Layout& l, const AttentionRows& rows, bool tangent, bool stack, Workspace& w) {
    Pieces pieces(memory);
    const auto take = [&](long floats) {
        Both piece{};
        pieces.take(piece.v, floats);
        if (tangent) pieces.take(piece.t, floats);
        return piece;
    };
    const long all = rows.graph.atoms * rows.times, slice = std::min<long>(all, kSlice);
    // first, for they pass from block to block, whatever the sizes of the rest
    for (int k = 0; k < 2 && stack; ++k) w.states[k] = {take(all * l.S), take(all * 3), take(all * 3)};
    w.queries = take(all * l.queries);
    w.logits = take(rows.edges * rows.times * l.head_blocks * kHeads);
    w.own = take(slice * l.own);
    w.means = take(slice * l.h * 3 * l.ld_mean);
    w.values = take(slice * l.h * l.V);
    return pieces.used();
}

Layout checked_layout(const AttentionSizes& size) {
    const char* names[2] = {"key", "value"};
    for (int net = 0; net < 2; ++net)
        if (size.layers[net] != 1)
            throw std::invalid_argument(std::string("the ") + names[net] + " network has " +
                                        std::to_string(size.layers[net]) +
                                        " hidden layers, but the CUDA kernels take one; use backend=\"reference\"");
    if (size.centres < 2 || size.centres > kMaxCentres)
        throw std::invalid_argument("the distance basis has " + std::to_string(size.centres) +
                                    " Gaussians, but the CUDA kernels take 2 to " + std::to_string(kMaxCentres) +
                                    "; use backend=\"reference\"");
    // columns are counted in 32 bits
    const double columns = (double(size.key_channels) + 16) * (double(size.heads) + 4) *
                           (double(size.hidden[0][0]) + size.hidden[1][0] + 2 * kChunk);
    const double groups = (double(size.scalars) + 2) * (double(size.value_channels) + 8) * 8;
    if (std::max(columns * kSharedColumns, groups) > std::numeric_limits<int>::max())
        throw std::invalid_argument("the model's weights are too many for the CUDA kernels; use backend=\"reference\"");
    return layout_of(size);
}

Both both(float* v, float* t) { return {v, t}; }

Both offset(Both x, long k) { return {x.v ? x.v + k : nullptr, x.t ? x.t + k : nullptr}; }

State state_of(const AttentionState<float>& v, const AttentionState<float>* t) {
    return {both(v.scalars, t ? t->scalars : nullptr), both(v.displacement, t ? t->displacement : nullptr),
            both(v.velocity, t ? t->velocity : nullptr)};
}

// Tiles of 8 rows where these leave fewer rows empty, for a mean number of neighbours.
Rows choose_rows(const AttentionRows& rows) {
    const long eights = (rows.edges + 8 * rows.graph.atoms - 1) / (8 * rows.graph.atoms);
    return eights == 1 || eights == 3 ? Rows::eight : Rows::sixteen;
}

void project(Both x, long rows, int S, const float* weight, int N, Both y, cudaStream_t stream) {
    const dim3 grid(blocks_of(rows, kRows), blocks_of(N, kWide * kStrips));
    launch(columns, grid, dim3(kThreads), 0, stream, x.v, rows, S, 1.0f, weight, N, y.v);
    if (y.t) launch(columns, grid, dim3(kThreads), 0, stream, x.t, rows, S, 0.0f, weight, N, y.t);
}

// out = base + increments, where base has null for 0; no scalars where out has none.
void run_block(const AttentionBlock& block, const AttentionRows& rows, const State& state, const State& base,
               const State& out, const Workspace& w, cudaStream_t stream) {
    const Layout l = checked_layout(block.size);
    const bool tangent = state.scalars.t;
    const long all = rows.graph.atoms * rows.times;
    EdgeCall call{};
    call.graph = rows.graph;
    call.edges = rows.edges;
    call.displacement = state.displacement, call.velocity = state.velocity;
    call.own = w.own, call.queries = w.queries, call.logits = w.logits;
    call.means = out.scalars.v ? w.means : Both{};
    call.base_displacement = base.displacement, call.base_velocity = base.velocity;
    call.out_displacement = out.displacement, call.out_velocity = out.velocity;
    call.packed = block.packed;
    call.layout = l;
    call.cutoff = float(block.size.cutoff), call.envelope = block.size.envelope;

    project(state.scalars, all, l.S, block.packed + l.query, l.queries, w.queries, stream);
    const Rows tile = choose_rows(rows);
    for (long first = 0; first < all; first += kSlice) {
        const long count = std::min<long>(kSlice, all - first);
        const Both scalars = offset(state.scalars, first * l.S);
        call.first = first, call.count = count;
        project(scalars, count, l.S, block.packed + l.columns, l.own, w.own, stream);
        launch_logits(call, tile, tangent, stream);
        launch_values(call, tile, tangent, stream);
        if (!out.scalars.v) continue;
        launch(tangent ? combine<true> : combine<false>, dim3(blocks_of(count, kAtoms), unsigned(l.h)), dim3(kThreads),
               0, stream, w.means, scalars, block.packed + l.combine, count, l, w.values);
        launch(tangent ? finish<true> : finish<false>, dim3(blocks_of(count * l.S, kThreads)), dim3(kThreads), 0,
               stream, w.values, block.packed + l.out, count, l, offset(base.scalars, first * l.S),
               offset(out.scalars, first * l.S));
    }
}

// The rows of the state, atoms of all times.
long checked_rows(const AttentionRows& rows) {
    const double all = double(rows.graph.atoms) * double(rows.times);
    if (all > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("the attention on a GPU takes at most 2147483647 atoms, all times counted, got " +
                                    std::to_string(rows.graph.atoms) + " atoms at " + std::to_string(rows.times) +
                                    " times; split them over calls");
    return rows.graph.atoms * rows.times;
}

template <class Entry>
void fill_with(float* packed, long begin, long end, const Entry& entry, cudaStream_t stream) {
    const long count = end - begin;
    launch(fill<Entry>, dim3(blocks_of(count, kThreads * kNumbers)), dim3(kThreads), 0, stream, packed + begin, count,
           entry);
}

void clear(Both x, long floats, cudaStream_t stream) {
    for (float* part : {x.v, x.t})
        if (part) check(cudaMemsetAsync(part, 0, size_t(floats) * sizeof(float), stream), "attention");
}

}  // namespace

std::size_t packed_attention_bytes(const AttentionSizes& size) {
    return size_t(checked_layout(size).size) * sizeof(float);
}

void pack_attention(const AttentionSizes& size, const AttentionWeights<float>& w, float* packed, Stream stream) {
    const Layout l = checked_layout(size);
    fill_with(packed, l.query, l.columns, QueryEntry{l, w.query}, stream);
    fill_with(packed, l.columns, l.key_layer, ColumnsEntry{l, w}, stream);
    fill_with(packed, l.key_layer, l.key_shared, LayerEntry{l.B, l.T, l.n, w.layer_weight[0][0]}, stream);
    fill_with(packed, l.key_shared, l.value_layer, SharedKeyEntry{l, w.key_edge}, stream);
    fill_with(packed, l.value_layer, l.value_shared, LayerEntry{l.B, l.T, l.m, w.layer_weight[1][0]}, stream);
    fill_with(packed, l.value_shared, l.combine, SharedValueEntry{l, w.value_edge}, stream);
    fill_with(packed, l.combine, l.out, CombineEntry{l, w.scalar_atom, w.scalar_edge}, stream);
    fill_with(packed, l.out, l.size, OutEntry{l, w.out}, stream);
    check(cudaGetLastError(), "attention weights");
}

std::size_t attention_bytes(const AttentionSizes& size, const AttentionRows& rows, bool tangent, bool stack) {
    Workspace w;
    checked_rows(rows);
    return divide(nullptr, checked_layout(size), rows, tangent, stack, w);
}

void attention(const AttentionBlock& block, const AttentionRows& rows, const AttentionState<float>& state,
               const AttentionState<float>* tangent, const AttentionState<float>& increment,
               const AttentionState<float>* increment_tangent, void* workspace, Stream stream) {
    if (checked_rows(rows) == 0) return;
    Workspace w;
    divide(workspace, checked_layout(block.size), rows, tangent, false, w);
    run_block(block, rows, state_of(state, tangent), State{}, state_of(increment, increment_tangent), w, stream);
    check(cudaGetLastError(), "attention");
}

void attention_stack(const std::vector<AttentionBlock>& blocks, bool running, const AttentionRows& rows,
                     const float* scalars, const float* scalars_tangent, const AttentionState<float>& out,
                     const AttentionState<float>* out_tangent, void* workspace, Stream stream) {
    const long all = checked_rows(rows);
    if (all == 0) return;
    const Both first = both(const_cast<float*>(scalars), const_cast<float*>(scalars_tangent));
    State state{};
    for (size_t k = 0; k < blocks.size(); ++k) {
        Workspace w;
        divide(workspace, checked_layout(blocks[k].size), rows, scalars_tangent, true, w);
        if (k == 0) {
            state = w.states[1];
            state.scalars = first;
            clear(state.displacement, 3 * all, stream);
            clear(state.velocity, 3 * all, stream);
        }
        State to = w.states[k % 2], base{};
        if (k + 1 == blocks.size()) {
            to = state_of(out, out_tangent);
            to.scalars = {};  // nobody reads the last ones
        }
        if (running) base = state;
        else base.scalars = first;
        run_block(blocks[k], rows, state, base, to, w, stream);
        state = to;
    }
    check(cudaGetLastError(), "attention");
}

}  // namespace mdtrajnet::cuda
