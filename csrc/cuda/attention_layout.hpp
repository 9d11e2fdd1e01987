// How the attention kernels of the GPU lay out weights and columns.
//
// A pass of the edge kernels takes 4 heads, and the keys' also 8 channels; what a model has less of is zeros.  Hidden units
// are padded to whole chunks; the constant unit comes after them.  Four units make a quad.  Columns of a key, of a centre's
// own and of all edges, for pass = block of heads x block of channels:
//
//     own      quads x ([4 units][8 channels][4 heads], [8][4 units]), then the constant unit's [8][4], [8]
//     shared   quads x ([4 units][r, w][8 channels][4 heads], [8][A, B][4 units]), constant [r, w][8][4], [8][A, B]
//
// The [8] are columns of heads alone: d, w.u (own); A: d^2, d (w.u); B: |w|^2, (w.u)^2; each for 4 heads.  Those of values,
// for a block of heads, z being (position, velocity), are
//
//     own      units x [z][4 heads]              (along u), the constant unit last
//     shared   units x [r, w, (w.u) u][z][4 heads], the constant unit last
#pragma once

#include <algorithm>
#include <iterator>

#include "cuda/attention.hpp"

namespace mdtrajnet::cuda {

constexpr int kChunk = 64;    // hidden units that a warp has at a time, two a lane
constexpr int kHeads = 4;     // of a pass
constexpr int kChannels = 8;  // of a pass
constexpr int kOwnColumns = kChannels * kHeads + 8, kSharedColumns = 2 * kOwnColumns;
constexpr int kOwnQuad = 4 * kOwnColumns, kSharedQuad = 4 * kSharedColumns;
constexpr int kOwnValues = 2 * kHeads, kSharedValues = 3 * kOwnValues;

constexpr int round_up(long x, int to) { return int((x + to - 1) / to * to); }

// Sizes, and offsets in floats.
struct Layout {
    int S, T, B, h, c, v;  // as AttentionSizes has them; c, v: channels of a head
    int n, m;              // hidden units of key and value
    int N, M;              // the same in whole chunks
    int head_blocks, channel_blocks, passes;
    // rows of an atom: queries [passes][8 channels][4 heads]; own columns
    int queries, own, own_value, own_key_offset, own_value_offset;
    int ld_mean;    // row of one mean: M, the constant unit, zeros
    int V, groups;  // v in eights; groups of 8 columns of `combine`: (S + 2) x V / 8
    // packed weights
    long query, columns, key_layer, key_shared, value_layer, value_shared, combine, out, size;
};

inline Layout layout_of(const AttentionSizes& size) {
    Layout l{};
    l.S = int(size.scalars), l.T = int(size.time_channels), l.B = int(size.centres), l.h = int(size.heads);
    l.c = int(size.key_channels), l.v = int(size.value_channels);
    l.n = int(size.hidden[0][0]), l.m = int(size.hidden[1][0]);
    l.N = round_up(l.n, kChunk), l.M = round_up(l.m, kChunk);
    l.head_blocks = round_up(l.h, kHeads) / kHeads, l.channel_blocks = round_up(l.c, kChannels) / kChannels;
    l.passes = l.head_blocks * l.channel_blocks;
    l.queries = l.passes * kChannels * kHeads;
    l.own_value = l.passes * (l.N + 1) * kOwnColumns;
    l.own_key_offset = l.own_value + l.head_blocks * (l.M + 1) * kOwnValues;
    l.own_value_offset = l.own_key_offset + l.N;
    l.own = l.own_value_offset + l.M;
    l.ld_mean = l.M + 4;
    l.V = round_up(l.v, 8);
    l.groups = (l.S + 2) * (l.V / 8);
    l.query = 0;
    l.columns = l.query + long(l.S + 1) * l.queries;
    l.key_layer = l.columns + long(l.S + 1) * l.own;
    l.key_shared = l.key_layer + long(l.B) * l.N;
    l.value_layer = l.key_shared + long(l.passes) * (l.N + 1) * kSharedColumns;
    l.value_shared = l.value_layer + long(l.B) * l.M;
    l.combine = l.value_shared + long(l.head_blocks) * (l.M + 1) * kSharedValues;
    l.out = l.combine + long(l.h) * (l.M + 1) * l.groups * 8;
    l.size = l.out + long(l.h) * l.V * l.S;
    return l;
}

// The sizes that the edge kernels are compiled for by themselves: the published model's, and those of the models that
// come with the package.  Others run in the slower kernels for any sizes.
struct KnownSizes {
    int centres, hidden;  // hidden: units of key and value, in whole chunks
};
constexpr KnownSizes kKnownSizes[] = {{16, 128}, {20, 64}};

inline bool fits(const KnownSizes& known, const Layout& l) {
    return l.B == known.centres && l.N == known.hidden && l.M == known.hidden && l.passes == 1;
}

inline bool specialised(const AttentionSizes& size) {
    if (size.layers[0] != 1 || size.layers[1] != 1) return false;
    const Layout l = layout_of(size);
    return std::any_of(std::begin(kKnownSizes), std::end(kKnownSizes), [&](auto known) { return fits(known, l); });
}

// Numbers in memory, and their tangents.
struct Both {
    float *v, *t;
};

// What the edge kernels are given: the rows first .. first + count of all copies of the graph's atoms.
struct EdgeCall {
    AttentionGraph<float> graph;
    long edges;
    Both displacement, velocity;  // of the state, all rows
    long first, count;
    Both own;      // [count][ld_own]
    Both queries;  // [rows][passes][8][4]
    Both logits;   // [times][edges][head blocks][4]; `values` makes weights of them
    Both means;    // [count][h][3][ld_mean]: of the hidden layer, plain, times d, times w.u; null: not wanted
    Both base_displacement, base_velocity;  // what the increments are added to, or null
    Both out_displacement, out_velocity;    // [rows][3]
    const float* packed;
    Layout layout;
    float cutoff;
    int envelope;
};

// Rows of a tile, a multiple of the four that share a warp's lanes.
enum class Rows { eight, sixteen };

void launch_logits(const EdgeCall& call, Rows rows, bool tangent, Stream stream);
void launch_values(const EdgeCall& call, Rows rows, bool tangent, Stream stream);

}  // namespace mdtrajnet::cuda
