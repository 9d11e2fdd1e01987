// One attention block, centre by centre: values and, with `Tangent`, their derivative with respect to time.
//
// Atoms are taken in tiles.  A tile contracts the scalars of its atoms with the weights in one product, then goes through its
// edges in groups of whole centres that stay in cache, averages, and contracts the averages again in one product.  A
// result does not depend on how atoms fall into tiles and groups, so not on the number of threads.
#pragma once

#include <optional>

#include "attention_pack.hpp"
#include "field.hpp"
#include "functions.hpp"
#include "math/edge.hpp"
#include "team.hpp"

namespace {

using mdtrajnet::AttentionGraph;
using mdtrajnet::AttentionState;
using mdtrajnet::SharedGraph;

constexpr long kGroupRows = 64;  // edges of a group, unless one centre has more

// Sizes of the published model, for which short loops are compiled by themselves.
constexpr int kHeads = 4;
constexpr int kValueChannels = 8;

// Memory of a thread that outlives what it is handed out for: the next call finds it in place and warm.  For pieces whose
// sizes models and tiles set, not systems: nothing of it is ever given back.
template <class T>
class Arena {
  public:
    struct Mark {
        int chunk;
        long used;
    };

    static Arena& own() {
        static thread_local Arena arena;
        return arena;
    }
    Mark mark() const { return here_; }
    void release(Mark mark) { here_ = mark; }

    T* take(long size) {
        constexpr long kAligned = 64 / sizeof(T);
        size = (size + kAligned - 1) / kAligned * kAligned + kLanes<T>;  // room at the end, as a Buffer has
        size = (size + kAligned - 1) / kAligned * kAligned;
        while (here_.chunk < kChunks && sizes_[here_.chunk] && here_.used + size > sizes_[here_.chunk])
            ++here_.chunk, here_.used = 0;
        if (here_.chunk == kChunks) abort();
        long& room = sizes_[here_.chunk];
        if (!room) {
            const long wanted = size > kChunk ? size : kChunk;
            chunks_[here_.chunk].resize(wanted, false);
            room = wanted;
        }
        T* piece = chunks_[here_.chunk].data() + here_.used;
        here_.used += size;
        return piece;
    }

  private:
    static constexpr int kChunks = 128;
    static constexpr long kChunk = 1 << 16;
    Buffer<T> chunks_[kChunks];
    long sizes_[kChunks] = {};
    Mark here_{0, 0};
};

// Pieces of its thread's memory, given back together; scopes that hold some are nested.
template <class T>
class Scratch {
  public:
    Scratch() : arena_(Arena<T>::own()), mark_(arena_.mark()) {}
    ~Scratch() { arena_.release(mark_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* take(long size) { return arena_.take(size); }
    template <bool D>
    Field<T, D> field(long size) {
        T* v = take(size);
        return {v, D ? take(size) : nullptr};
    }

  private:
    Arena<T>& arena_;
    const typename Arena<T>::Mark mark_;
};

// The edges of some consecutive centres of a tile.
struct Group {
    long first, last;  // centres, counted from the tile's first
    long rows;
};

template <class T, bool D>
class Forward {
  public:
    using N = typename Number<T, D>::Scalar;
    using NV = typename Number<T, D>::Vector;
    using F = Field<T, D>;
    static constexpr long W = kLanes<T>;
    static constexpr long kTile = D ? 8 : 16;

    // slopes: keep those of the hidden layers, for gradients
    Forward(const Packed<T>& p, const AttentionGraph<T>& graph, long max_rows, bool slopes) : p(p), graph(graph) {
        rows = max_rows;
        ld_basis = padded<T>(p.size.centres);
        inverse_step = T((p.size.centres - 1) / p.size.cutoff);
        T* centres = centre.resize(ld_basis);
        for (long k = 0; k < p.size.centres; ++k) centres[k] = T(k * p.size.cutoff / (p.size.centres - 1));
        ldn = padded<T>(p.n + 1);
        ldm = padded<T>(p.m + 1);
        key_own = memory.template field<D>(kTile * p.ld_key);
        value_own = memory.template field<D>(kTile * p.ld_value_atom);
        for (int net = 0; net < 2; ++net) {
            time[net] = memory.template field<D>(kTile * p.layers[net][0].ld);
            for (int k = 0; k < p.size.layers[net]; ++k) {
                hidden[net][k] = memory.template field<D>(rows * p.layers[net][k].ld);
                slope[net][k] = slopes ? memory.take(rows * p.layers[net][k].ld) : nullptr;
            }
        }
        basis = memory.template field<D>(rows * ld_basis);
        distance = memory.template field<D>(rows);
        along = memory.template field<D>(rows);
        speed = memory.template field<D>(rows);
        direction = memory.template field<D>(3 * rows);
        velocity = memory.template field<D>(3 * rows);
        cut = memory.template field<D>(rows);
        neighbor = static_cast<int64_t*>(index.resize(rows));
        ld_own = padded<T>(p.key_columns);
        own = memory.template field<D>(rows * ld_own);
        edge = memory.template field<D>(rows * p.ld_edge);
        ld_rows = rows + W;
        weight = memory.template field<D>(p.h * ld_rows);
        value_weights = memory.template field<D>((p.m + 1) * p.ld_value);
        memcpy(value_weights.v, p.value_edge.data(), (p.m + 1) * p.ld_value * sizeof(T));
        value = memory.template field<D>(rows * p.ld_value);
        value_change = D ? memory.take(rows * padded<T>(p.value_columns)) : nullptr;
        factors = memory.template field<D>(rows * 3 * p.h);
        mean = memory.template field<D>(kTile * 3 * p.h * ldm);
        vectors = memory.template field<D>(kTile * 6);
        scalar = memory.template field<D>(kTile * padded<T>(p.S * p.v));
        scalar_edge = memory.template field<D>(kTile * p.ld_scalar_edge);
        values = memory.template field<D>(kTile * padded<T>(p.h * p.v));
        result = memory.template field<D>(kTile * p.ld_scalars);
    }

    // Queries of the atoms [begin, end).
    void queries(long begin, long end, F scalars, F query) const {
        product(p.c, end - begin, p.S, scalars + begin * p.S, p.S, constant<T, D>(p.query), p.ld_query,
                query + begin * p.ld_query, p.ld_query);
    }

    // Increments of the atoms [begin, begin + count), at most kTile; those of scalars only where there is room for them.
    void tile(long begin, long count, F scalars, F displacement, F change, F query, F out_scalars, F out_displacement,
              F out_velocity) {
        wants_scalars = out_scalars.v != nullptr;
        enter(begin, count, scalars, displacement, change, query);
        for (Group group = next({0, 0, 0}); group.rows >= 0; group = next(group)) edges(group);
        leave(scalars + begin * p.S, out_scalars, out_displacement, out_velocity);
    }

  protected:
    // ---- atoms, before the edges: columns that belong to the centre
    void enter(long begin, long count, F scalars, F displacement, F change, F query) {
        tile_begin = begin;
        tile_count = count;
        positions = displacement;
        velocities = change;
        queried = query;
        const F s = scalars + begin * p.S;
        product_panels<T, D>((p.n + 1) * p.key_columns, count, p.S, s, p.S, p.key_atom, key_own, p.ld_key);
        product_panels<T, D>((p.m + 1) * p.value_columns, count, p.S, s, p.S, p.value_atom, value_own, p.ld_value_atom);
        for (int net = 0; net < 2; ++net) {
            const Layer<T>& layer = p.layers[net][0];
            product(layer.out, count, p.size.time_channels, s + (p.S - p.size.time_channels), p.S,
                    constant<T, D>(layer.time), layer.ld, time[net], layer.ld, Start::kBias,
                    constant<T, D>(layer.bias));
        }
    }

    long edge_begin(long centre) const { return graph.row_ptr[(tile_begin + centre) % graph.atoms]; }
    long degree(long centre) const {
        const long i = (tile_begin + centre) % graph.atoms;
        return graph.row_ptr[i + 1] - graph.row_ptr[i];
    }

    // The group after `previous`; rows < 0 after the last.
    Group next(Group previous) const {
        Group group{previous.last, previous.last, 0};
        if (group.first == tile_count) return {0, 0, -1};
        while (group.last < tile_count) {
            const long more = degree(group.last);
            if (group.last > group.first && group.rows + more > kGroupRows) break;
            group.rows += more;
            ++group.last;
        }
        return group;
    }

    // ---- edges of a group
    void edges(Group group) {
        geometries(group);
        radial(0, group);
        key_columns(group);
        p.h == kHeads ? logits<kHeads>(group) : logits<0>(group);
        softmax(group);
        radial(1, group);
        p.h == kHeads ? value_columns<kHeads>(group) : value_columns<0>(group);
        scale_weights(group);
        if (wants_scalars) averages(group);
        p.h == kHeads ? sum_vectors<kHeads>(group) : sum_vectors<0>(group);
    }

    void geometries(Group group) {
        const T cutoff = T(p.size.cutoff);
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long i = tile_begin + c, copy = i - i % graph.atoms, begin = edge_begin(c), count = degree(c);
            for (long e = begin; e < begin + count; ++e, ++row) {
                const long j = copy + graph.neighbor[e];
                N r[3], w[3];
                for (long x = 0; x < 3; ++x) {
                    r[x] = get(positions, 3 * j + x) - get(positions, 3 * i + x);
                    w[x] = get(velocities, 3 * j + x) - get(velocities, 3 * i + x);
                    r[x] += chain(r[x], graph.r[3 * e + x], T(0));
                    w[x] += chain(w[x], graph.w[3 * e + x], T(0));
                }
                const Geometry<N> g = geometry<T>(r, w);
                neighbor[row] = j;
                put(distance, row, g.d);
                put(along, row, g.wu);
                put(speed, row, g.ww);
                for (long x = 0; x < 3; ++x) {
                    put(direction, 3 * row + x, g.u[x]);
                    put(velocity, 3 * row + x, w[x]);
                }
                if (p.size.envelope) {
                    const T d = ::value(g.d);
                    put(cut, row, chain(g.d, envelope(d, cutoff), envelope_slope(d, cutoff)));
                }
            }
        }
        for (long e = 0; e < group.rows; ++e)
            for (long k = 0; k < ld_basis; k += W) {
                const Vec<T> x = (broadcast(distance.v[e]) - load(centre + k)) * inverse_step;
                const Vec<T> g = exponential(-x * x) * T(1 / 1.12);
                store(basis.v + e * ld_basis + k, g);
                if constexpr (D) store(basis.t + e * ld_basis + k, g * x * (T(-2) * inverse_step * distance.t[e]));
            }
    }

    // The hidden layers of the key (0) or value (1) network.
    void radial(int net, Group group) {
        for (int k = 0; k < p.size.layers[net]; ++k) {
            const Layer<T>& layer = p.layers[net][k];
            const F x = hidden[net][k];
            if (k) {
                product(layer.out, group.rows, layer.in, hidden[net][k - 1], p.layers[net][k - 1].ld,
                        constant<T, D>(layer.weight), layer.ld, x, layer.ld, Start::kBias, constant<T, D>(layer.bias));
            } else {
                long row = 0;
                for (long c = group.first; c < group.last; row += degree(c), ++c)
                    product(layer.out, degree(c), layer.in, basis + row * ld_basis, ld_basis,
                            constant<T, D>(layer.weight), layer.ld, x + row * layer.ld, layer.ld, Start::kBias,
                            time[net] + c * layer.ld);
            }
            T* slopes = slope[net][k];
            for (long i = 0; i < group.rows * layer.ld; i += W) {
                Vec<T> g, s;
                gelu(load(x.v + i), g, D || slopes ? &s : nullptr);
                store(x.v + i, g);
                if constexpr (D) store(x.t + i, s * load(x.t + i));
                if (slopes) store(slopes + i, s);
            }
        }
    }

    F last_hidden(int net) const { return hidden[net][p.size.layers[net] - 1]; }
    long ld_hidden(int net) const { return p.layers[net][p.size.layers[net] - 1].ld; }

    void key_columns(Group group) {
        const F x = last_hidden(0);
        const long ld = ld_hidden(0);
        product(p.edge_columns, group.rows, p.n, x, ld, constant<T, D>(p.key_edge), p.ld_edge, edge, p.ld_edge,
                Start::kBias, constant<T, D>(p.key_edge.data() + p.n * p.ld_edge));
        long row = 0;
        for (long c = group.first; c < group.last; row += degree(c), ++c) {
            const F b = key_own + c * p.ld_key;
            product(p.key_columns, degree(c), p.n, x + row * ld, ld, b, p.key_columns, own + row * ld_own, ld_own,
                    Start::kBias, b + p.n * p.key_columns);
        }
    }

    template <int H>
    void logits(Group group) {
        const long c = p.c, h = H ? H : p.h;
        const bool whole = W % h == 0;  // then head = lane mod h
        for (long e = 0; e < group.rows; ++e) {
            const N d = get(distance, e), wu = get(along, e), ww = get(speed, e);
            const F a = own + e * ld_own, b = edge + e * p.ld_edge, q = queried + neighbor[e] * p.ld_query;
            for (long k = 0; k < h; ++k) {
                const N first = get(a, c + k) + d * get(b, 2 * c + k) + wu * get(b, 2 * c + h + k);
                const N second = get(a, c + h + k) + wu * get(b, 2 * c + 3 * h + k);
                put(weight, k * ld_rows + e, d * first + wu * second + ww * get(b, 2 * c + 2 * h + k));
            }
            long x = 0;
            if (whole && c >= W) {
                const NV dv = spread<T>(d), wv = spread<T>(wu);
                NV sum{};
                for (; x + W <= c; x += W)
                    sum += get_vector(q, x) * (get_vector(a, x) + dv * get_vector(b, x) + wv * get_vector(b, c + x));
                constexpr long together = H && W % H == 0 ? H : W;
                sum = fold_all<T, together>(sum);
                for (long l = 0; l < together; l += h)
                    for (long k = 0; k < h; ++k) {
                        const long at = k * ld_rows + e;
                        put(weight, at, get(weight, at) + lane<T>(sum, l + k));
                    }
            }
            for (; x < c; ++x) {
                const long at = x % h * ld_rows + e;
                put(weight, at, get(weight, at) + get(q, x) * (get(a, x) + d * get(b, x) + wu * get(b, c + x)));
            }
        }
    }

    // Logits to weights, in place: f exp(l) / sum f exp(l), times f once more, f being the envelope or 1.
    void softmax(Group group) {
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = degree(c);
            for (long k = 0; k < p.h; ++k) {
                const F l = weight + (k * ld_rows + row);
                T top = l.v[0];
                for (long e = 1; e < count; ++e) top = l.v[e] > top ? l.v[e] : top;
                for (long e = 0; e < count; e += W) {
                    const Vec<T> x = exponential(load(l.v + e) - top);
                    for (long j = 0; j < W && e + j < count; ++j) l.v[e + j] = x[j];
                }
                if (p.size.envelope)
                    for (long e = 0; e < count; ++e) l.v[e] *= cut.v[row + e];
                T sum = 0;
                for (long e = 0; e < count; ++e) sum += l.v[e];
                const T scale = 1 / (sum > T(1e-30) ? sum : T(1e-30));
                for (long e = 0; e < count; ++e) l.v[e] *= scale;
                if constexpr (D) {
                    // a' = a (l' + f'/f - their mean); the envelope's part without dividing by f
                    T change = 0;
                    for (long e = 0; e < count; ++e) {
                        l.t[e] *= l.v[e];
                        if (p.size.envelope && cut.v[row + e] > 0) l.t[e] += l.v[e] / cut.v[row + e] * cut.t[row + e];
                        change += l.t[e];
                    }
                    for (long e = 0; e < count; ++e) l.t[e] -= l.v[e] * change;
                }
                if (p.size.envelope)
                    for (long e = 0; e < count; ++e) put(l, e, get(l, e) * get(cut, row + e));
            }
            row += count;
        }
    }

    // The columns of the vector values, own and shared: [own, times r, times w, times (w.u) u] x [position, velocity] x heads.
    template <int H>
    void value_columns(Group group) {
        const F x = last_hidden(1);
        const long ld = ld_hidden(1), columns = 2 * (H ? H : p.h);
        long row = 0;
        for (long c = group.first; c < group.last; row += degree(c), ++c) {
            const F mine = value_own + c * p.ld_value_atom;
            copy_rows(p.m + 1, columns, mine.v, columns, value_weights.v, p.ld_value);
            const F b{value_weights.v, nullptr}, y = value + row * p.ld_value;
            product(8 * p.h, degree(c), p.m, x + row * ld, ld, b, p.ld_value, y, p.ld_value, Start::kBias,
                    b + p.m * p.ld_value);
            if constexpr (D) {
                const long ld_change = padded<T>(columns);
                multiply<T>(columns, {degree(c), p.m, x.v + row * ld, ld, mine.t, columns, value_change, ld_change,
                                      mine.t + p.m * columns, Start::kBias});
                for (long e = 0; e < degree(c); ++e)
                    for (long k = 0; k < columns; ++k) y.t[e * p.ld_value + k] += value_change[e * ld_change + k];
            }
        }
    }

    // The weights times the factors that scalar values have: 1, d, w.u.
    void scale_weights(Group group) {
        const long h = p.h;
        for (long e = 0; e < group.rows; ++e) {
            const N d = get(distance, e), wu = get(along, e);
            for (long k = 0; k < h; ++k) {
                const N a = get(weight, k * ld_rows + e);
                put(factors, e * 3 * h + k, a);
                put(factors, e * 3 * h + h + k, a * d);
                put(factors, e * 3 * h + 2 * h + k, a * wu);
            }
        }
    }

    // The hidden layer averaged with each factor.
    void averages(Group group) {
        const long h = p.h;
        const F x = last_hidden(1);
        const long ld = ld_hidden(1);
        long row = 0;
        for (long c = group.first; c < group.last; row += degree(c), ++c) {
            const F to = mean + c * 3 * h * ldm, f = factors + row * 3 * h;
            product<true>(p.m, 3 * h, degree(c), f, 3 * h, x + row * ld, ld, to, ldm);
            for (long k = 0; k < 3 * h; ++k) {  // the constant unit's mean
                N sum{};
                for (long e = 0; e < degree(c); ++e) sum += get(f, e * 3 * h + k);
                put(to, k * ldm + p.m, sum);
            }
        }
    }

    // The vectors that position and velocity get.
    template <int H>
    void sum_vectors(Group group) {
        const long h = H ? H : p.h, columns = 2 * h;
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = degree(c);
            N total[6] = {};
            for (long e = row; e < row + count; ++e) {
                const F y = value + e * p.ld_value, a = factors + e * 3 * h;
                for (long z = 0; z < 2; ++z) {
                    N u{}, w{};
                    for (long k = 0; k < h; ++k) {
                        const long at = z * h + k;
                        u += get(a, k) * get(y, at) + get(a, h + k) * get(y, columns + at) +
                             get(a, 2 * h + k) * get(y, 3 * columns + at);
                        w += get(a, k) * get(y, 2 * columns + at);
                    }
                    for (long k = 0; k < 3; ++k)
                        total[3 * z + k] += u * get(direction, 3 * e + k) + w * get(velocity, 3 * e + k);
                }
            }
            for (long k = 0; k < 6; ++k) put(vectors, 6 * c + k, total[k]);
            row += count;
        }
    }

    // ---- atoms, after the edges
    // Scalar values of one head from the means, [count, h v0] in `values`; `scalar` keeps them per scalar of the atom.
    void contract(long head, F s) {
        const long h = p.h, v = p.v, stride = 3 * h * ldm;
        product_panels<T, D>(p.S * v, tile_count, p.m + 1, mean + head * ldm, stride,
                             p.scalar_atom.data() + head * (p.m + 1) * p.ld_scalar_atom, scalar, p.ld_scalar_atom);
        for (long part = 0; part < 2; ++part)
            product(v, tile_count, p.m + 1, mean + ((part + 1) * h + head) * ldm, stride,
                    constant<T, D>(p.scalar_edge.data() + (2 * head + part) * (p.m + 1) * p.ld_scalar_edge),
                    p.ld_scalar_edge, scalar_edge, p.ld_scalar_edge, part ? Start::kAdd : Start::kZero);
        v == kValueChannels ? sum_scalars<kValueChannels>(head, s) : sum_scalars<0>(head, s);
    }

    template <int V>
    void sum_scalars(long head, F s) {
        const long v = V ? V : p.v, ld_values = padded<T>(p.h * p.v);
        for (long i = 0; i < tile_count; ++i) {
            const F to = values + (i * ld_values + head * v), from = scalar + i * p.ld_scalar_atom;
            for (long x = 0; x < v; ++x) put(to, x, get(scalar_edge, i * p.ld_scalar_edge + x));
            if constexpr (V != 0) {
                N sum[V];
                for (long x = 0; x < V; ++x) sum[x] = get(to, x);
                for (long u = 0; u < p.S; ++u) {
                    const N factor = get(s, i * p.S + u);
                    for (long x = 0; x < V; ++x) sum[x] += factor * get(from, u * V + x);
                }
                for (long x = 0; x < V; ++x) put(to, x, sum[x]);
            } else {
                for (long u = 0; u < p.S; ++u)
                    for (long x = 0; x < v; ++x) put(to, x, get(to, x) + get(s, i * p.S + u) * get(from, u * v + x));
            }
        }
    }

    void leave(F s, F out_scalars, F out_displacement, F out_velocity) {
        if (wants_scalars) {
            for (long k = 0; k < p.h; ++k) contract(k, s);
            product(p.S, tile_count, p.h * p.v, values, padded<T>(p.h * p.v), constant<T, D>(p.out), p.ld_scalars,
                    result, p.ld_scalars);
            for (long i = 0; i < tile_count; ++i)
                for (long u = 0; u < p.S; ++u)
                    put(out_scalars, (tile_begin + i) * p.S + u, get(result, i * p.ld_scalars + u));
        }
        for (long i = 0; i < tile_count; ++i) {
            const long to = tile_begin + i;
            for (long k = 0; k < 3; ++k) {
                put(out_displacement, 3 * to + k, get(vectors, 6 * i + k));
                put(out_velocity, 3 * to + k, get(vectors, 6 * i + 3 + k));
            }
        }
    }

    const Packed<T>& p;
    const AttentionGraph<T>& graph;
    long rows, ld_rows, ld_basis, ldn, ldm, ld_own;
    T inverse_step;
    long tile_begin = 0, tile_count = 0;
    bool wants_scalars = true;
    F positions, velocities, queried;  // of all atoms
    Scratch<T> memory;
    Buffer<T> centre;
    Buffer<int64_t> index;
    int64_t* neighbor;
    F key_own, value_own, time[2];                              // atoms of the tile
    F basis, distance, along, speed, direction, velocity, cut;  // edges of the group
    F hidden[2][kMaxLayers];
    T* slope[2][kMaxLayers];
    F own, edge, weight, value, factors;
    F value_weights;  // the value columns' weights for one centre
    T* value_change;
    F mean, vectors, scalar, scalar_edge, values, result;  // atoms of the tile
};

template <class T>
long largest_group(const AttentionGraph<T>& graph) {
    long most = kGroupRows;
    for (long i = 0; i < graph.atoms; ++i) {
        const long degree = graph.row_ptr[i + 1] - graph.row_ptr[i];
        most = degree > most ? degree : most;
    }
    return most;
}

template <class T, bool D>
void forward_all(const Packed<T>& p, const AttentionGraph<T>& graph, long atoms, const AttentionState<T>& state,
                 const AttentionState<T>& state_tangent, const AttentionState<T>& out,
                 const AttentionState<T>& out_tangent, int threads) {
    using F = Field<T, D>;
    constexpr long kTile = Forward<T, D>::kTile;
    const F scalars{state.scalars, state_tangent.scalars}, displacement{state.displacement, state_tangent.displacement},
        velocity{state.velocity, state_tangent.velocity};
    const F out_scalars{out.scalars, out_tangent.scalars}, out_displacement{out.displacement, out_tangent.displacement},
        out_velocity{out.velocity, out_tangent.velocity};
    Buffer<T> queries[2];
    const F query{queries[0].resize(atoms * p.ld_query, false),
                  D ? queries[1].resize(atoms * p.ld_query, false) : nullptr};
    const long tiles = (atoms + kTile - 1) / kTile, rows = largest_group(graph);
    if (threads > tiles) threads = static_cast<int>(tiles);
    parallel(threads, [&](auto& guard) {
        std::optional<Forward<T, D>> worker;
        guard([&] { worker.emplace(p, graph, rows, false); });
#pragma omp for schedule(static)
        for (long k = 0; k < tiles; ++k) {
            const long begin = k * kTile, end = begin + kTile < atoms ? begin + kTile : atoms;
            guard([&] { worker->queries(begin, end, scalars, query); });
        }
#pragma omp for schedule(dynamic, 4)
        for (long k = 0; k < tiles; ++k) {
            const long begin = k * kTile, count = begin + kTile < atoms ? kTile : atoms - begin;
            guard([&] {
                worker->tile(begin, count, scalars, displacement, velocity, query, out_scalars, out_displacement,
                             out_velocity);
            });
        }
    });
}

template <class T>
void forward(const void* packed, const AttentionGraph<T>& graph, int64_t times, const AttentionState<T>& state,
             const AttentionState<T>* tangent, const AttentionState<T>& increment,
             const AttentionState<T>* increment_tangent, int threads) {
    const Packed<T>& p = *static_cast<const Packed<T>*>(packed);
    const long atoms = graph.atoms * times;
    if (tangent) forward_all<T, true>(p, graph, atoms, state, *tangent, increment, *increment_tangent, threads);
    else forward_all<T, false>(p, graph, atoms, state, {}, increment, {}, threads);
}

}  // namespace
