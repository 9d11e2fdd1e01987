// Gradients of one attention block.  A tile goes through its edges once more: hidden layers, columns and softmax are computed
// again, centre by centre, and nothing of the size of edges times hidden units is kept.
//
// What belongs to the neighbour (its query, its position) is written per edge and gathered afterwards over the edges sorted by
// neighbour.  Gradients of weights are summed by each thread over its own tiles, then over threads: deterministic
// for a given number of threads.
#pragma once

#include <omp.h>

#include "attention_forward.hpp"

namespace {

using mdtrajnet::AttentionEdgeGradients;

// Sums of one thread over its tiles, in the layouts of Packed.
template <class T>
struct WeightSums {
    explicit WeightSums(const Packed<T>& p) {
        for (int net = 0; net < 2; ++net)
            for (int k = 0; k < p.size.layers[net]; ++k) {
                const Layer<T>& layer = p.layers[net][k];
                weight[net][k].resize(layer.in * layer.ld);
                bias[net][k].resize(layer.ld);
                if (!k) time[net].resize(p.size.time_channels * layer.ld);
            }
        query.resize(p.S * p.ld_query);
        key_atom.resize(p.S * p.ld_key);
        key_edge.resize((p.n + 1) * p.ld_edge);
        value_atom.resize(p.S * p.ld_value_atom);
        value_edge.resize((p.m + 1) * p.ld_value);
        scalar_atom.resize(p.h * (p.m + 1) * p.ld_scalar_atom);
        scalar_edge.resize(p.h * 2 * (p.m + 1) * p.ld_scalar_edge);
        out.resize(p.h * p.v * p.ld_scalars);
    }

    Buffer<T> weight[2][kMaxLayers], bias[2][kMaxLayers], time[2];
    Buffer<T> query, key_atom, key_edge, value_atom, value_edge, scalar_atom, scalar_edge, out;
};

// to [columns] += the sum of the rows of a.
template <class T>
void add_rows(long rows, long columns, const T* a, long lda, T* to) {
    for (long i = 0; i < rows; ++i)
        for (long k = 0; k < columns; ++k) to[k] += a[i * lda + k];
}

// Per edge: what its neighbour is owed.
template <class T>
struct EdgeSums {
    T *query, *r, *w;  // [times x edges, ld_query], [., 3], [., 3]
};

template <class T>
class Backward : public Forward<T, false> {
    using Base = Forward<T, false>;

  public:
    static constexpr long W = kLanes<T>;
    static constexpr long kTile = Base::kTile;
    using F = Field<T, false>;

    Backward(const Packed<T>& p, const AttentionGraph<T>& graph, long max_rows)
        : Base(p, graph, max_rows, true), sums(p) {
        ld_values = padded<T>(p.h * p.v);
        for (int net = 0; net < 2; ++net) {
            hidden_gradient[net] = more.take(rows * widest(p, net));
            layer_gradient[net] = more.take(rows * widest(p, net));
            time_gradient[net] = more.take(kTile * p.layers[net][0].ld);
        }
        basis_gradient = more.take(rows * ld_basis);
        geometry_gradient = more.take(rows * 9);
        weight_gradient = more.take(p.h * ld_rows);
        ld_factors = padded<T>(3 * p.h);
        factor_gradient = more.take(rows * ld_factors);
        mean_columns = more.take((p.m + 1) * ld_factors);
        value_gradient = more.take(rows * p.ld_value);
        value_back = more.take(8 * p.h * ldm);
        memcpy(value_back + p.value_columns * ldm, p.value_edge_back.data(), 6 * p.h * ldm * sizeof(T));
        key_back = more.take(p.key_columns * ldn);
        key_sum = more.take((p.n + 1) * ld_own);
        key_own_gradient.resize(kTile * p.ld_key);
        value_own_gradient.resize(kTile * p.ld_value_atom);
        mean_gradient = more.take(kTile * 3 * p.h * ldm);
        value_sum = more.take(kTile * ld_values);
        scalar_gradient = more.take(p.h * kTile * p.ld_scalar_atom);
        upstream = more.take(kTile * p.ld_scalars);
        state_sum = more.take(kTile * p.ld_scalars);
        time_sum = more.take(kTile * padded<T>(p.size.time_channels));
        owed = more.take(kTile * p.ld_query);
        head_gradient = more.take(p.h);
    }

    void tile(long begin, long count, const AttentionState<T>& state, F query, const AttentionState<T>& increment,
              const AttentionState<T>& gradient, const EdgeSums<T>& edge_sums) {
        this->enter(begin, count, {state.scalars, nullptr}, {state.displacement, nullptr}, {state.velocity, nullptr},
                    query);
        const T* s = state.scalars + begin * p.S;
        wants_scalars = increment.scalars != nullptr;
        if (wants_scalars) enter_gradients(s, increment);
        for (Group group = this->next({0, 0, 0}); group.rows >= 0; group = this->next(group)) {
            this->edges(group);
            edge_gradients(group, increment, edge_sums, gradient);
        }
        leave_gradients(s, gradient);
    }

    // What the atoms [begin, end) are owed by the centres that they are neighbours of.
    void gather(long begin, long end, const int64_t* by_neighbor_ptr, const int64_t* by_neighbor, long edges,
                const AttentionState<T>& state, const AttentionState<T>& gradient, const EdgeSums<T>& edge_sums) {
        memset(owed, 0, kTile * p.ld_query * sizeof(T));
        for (long j = begin; j < end; ++j) {
            const long i = j % graph.atoms, offset = j / graph.atoms * edges;
            T* q = owed + (j - begin) * p.ld_query;
            for (long k = by_neighbor_ptr[i]; k < by_neighbor_ptr[i + 1]; ++k) {
                const long e = offset + by_neighbor[k];
                for (long x = 0; x < p.ld_query; x += W)
                    store(q + x, load(q + x) + load(edge_sums.query + e * p.ld_query + x));
                for (long x = 0; x < 3; ++x) {
                    gradient.displacement[3 * j + x] += edge_sums.r[3 * e + x];
                    gradient.velocity[3 * j + x] += edge_sums.w[3 * e + x];
                }
            }
        }
        multiply<T>(p.S, {end - begin, p.c, owed, p.ld_query, p.query_back.data(), p.ld_scalars, state_sum,
                          p.ld_scalars, nullptr, Start::kZero});
        for (long j = begin; j < end; ++j)
            for (long u = 0; u < p.S; ++u) gradient.scalars[j * p.S + u] += state_sum[(j - begin) * p.ld_scalars + u];
        multiply<T, true>(p.c, {p.S, end - begin, state.scalars + begin * p.S, p.S, owed, p.ld_query, sums.query.data(),
                                p.ld_query, nullptr, Start::kAdd});
    }

    WeightSums<T> sums;

  private:
    static long widest(const Packed<T>& p, int net) {
        long width = 0;
        for (int k = 0; k < p.size.layers[net]; ++k) width = p.layers[net][k].ld > width ? p.layers[net][k].ld : width;
        return width;
    }

    // ---- atoms, before the edges: gradients of the means
    void enter_gradients(const T* s, const AttentionState<T>& increment) {
        const long h = p.h, v = p.v, stride = 3 * h * ldm;
        copy_rows(tile_count, p.S, increment.scalars + tile_begin * p.S, p.S, upstream, p.ld_scalars);
        multiply<T>(h * v, {tile_count, p.S, upstream, p.ld_scalars, p.out_back.data(), ld_values, value_sum, ld_values,
                            nullptr, Start::kZero});
        for (long k = 0; k < h; ++k) {
            T* y = scalar_gradient + k * kTile * p.ld_scalar_atom;
            for (long i = 0; i < tile_count; ++i)
                for (long u = 0; u < p.S; ++u)
                    for (long x = 0; x < v; ++x)
                        y[i * p.ld_scalar_atom + u * v + x] = s[i * p.S + u] * value_sum[i * ld_values + k * v + x];
            multiply<T>(p.m + 1,
                        {tile_count, p.S * v, y, p.ld_scalar_atom, p.scalar_atom_back.data() + k * p.S * v * ldm, ldm,
                         mean_gradient + k * ldm, stride, nullptr, Start::kZero});
            for (long part = 0; part < 2; ++part)
                multiply<T>(p.m + 1, {tile_count, v, value_sum + k * v, ld_values,
                                      p.scalar_edge_back.data() + (2 * k + part) * v * ldm, ldm,
                                      mean_gradient + ((part + 1) * h + k) * ldm, stride, nullptr, Start::kZero});
        }
    }

    // ---- edges of a group
    void edge_gradients(Group group, const AttentionState<T>& increment, const EdgeSums<T>& edge_sums,
                        const AttentionState<T>& gradient) {
        p.h == kHeads ? value_gradients<kHeads>(group, increment) : value_gradients<0>(group, increment);
        softmax_gradients(group);
        p.h == kHeads ? logit_gradients<kHeads>(group, edge_sums) : logit_gradients<0>(group, edge_sums);
        memset(basis_gradient, 0, group.rows * ld_basis * sizeof(T));
        for (int net = 0; net < 2; ++net) radial_gradients(net, group);
        geometry_gradients(group, edge_sums, gradient);
    }

    // From the centre's vectors and means to weights, geometry, value columns and the value network's hidden layer.
    template <int H>
    void value_gradients(Group group, const AttentionState<T>& increment) {
        const long h = H ? H : p.h, columns = 2 * h;
        const T* x = this->last_hidden(1).v;
        const long ld = this->ld_hidden(1);
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = this->degree(c), i = tile_begin + c;
            // f = hidden . mean_gradient: gradients of the factors a, a d, a (w.u)
            const T* of_mean = mean_gradient + c * 3 * h * ldm;
            T* f = factor_gradient + row * ld_factors;
            if (wants_scalars) {
                transpose<T, true>(3 * h, p.m + 1, of_mean, ldm, mean_columns, ld_factors);
                multiply<T>(3 * h, {count, p.m, x + row * ld, ld, mean_columns, ld_factors, f, ld_factors,
                                    mean_columns + p.m * ld_factors, Start::kBias});
            } else {
                memset(f, 0, count * ld_factors * sizeof(T));
            }
            const T* up[2] = {increment.displacement + 3 * i, increment.velocity + 3 * i};
            for (long e = row; e < row + count; ++e) {
                const T *u = direction.v + 3 * e, *w = velocity.v + 3 * e, d = distance.v[e], wu = along.v[e];
                const T *y = value.v + e * p.ld_value, *fe = factor_gradient + e * ld_factors,
                        *a = factors.v + e * 3 * h;
                T *gy = value_gradient + e * p.ld_value, *g = geometry_gradient + 9 * e;
                T of_d = 0, of_wu = 0, of_u[3] = {}, of_w[3] = {};
                for (long k = 0; k < h; ++k) {
                    weight_gradient[k * ld_rows + e] = fe[k] + d * fe[h + k] + wu * fe[2 * h + k];
                    of_d += a[k] * fe[h + k];
                    of_wu += a[k] * fe[2 * h + k];
                }
                for (long z = 0; z < 2; ++z) {
                    const T gu = up[z][0] * u[0] + up[z][1] * u[1] + up[z][2] * u[2];
                    const T gw = up[z][0] * w[0] + up[z][1] * w[1] + up[z][2] * w[2];
                    T sum_u = 0, sum_w = 0, sum_d = 0, sum_wu = 0;
                    for (long k = 0; k < h; ++k) {
                        const long at = z * h + k;
                        const T in_u = y[at] + d * y[columns + at] + wu * y[3 * columns + at],
                                in_w = y[2 * columns + at];
                        weight_gradient[k * ld_rows + e] += gu * in_u + gw * in_w;
                        sum_u += a[k] * in_u;
                        sum_w += a[k] * in_w;
                        sum_d += a[k] * y[columns + at];
                        sum_wu += a[k] * y[3 * columns + at];
                        gy[at] = a[k] * gu;
                        gy[columns + at] = a[k] * d * gu;
                        gy[2 * columns + at] = a[k] * gw;
                        gy[3 * columns + at] = a[k] * wu * gu;
                    }
                    of_d += sum_d * gu;
                    of_wu += sum_wu * gu;
                    for (long k = 0; k < 3; ++k) {
                        of_u[k] += up[z][k] * sum_u;
                        of_w[k] += up[z][k] * sum_w;
                    }
                }
                g[0] = of_d;
                g[1] = of_wu;
                g[2] = 0;
                for (long k = 0; k < 3; ++k) {
                    g[3 + k] = of_u[k];
                    g[6 + k] = of_w[k];
                }
            }
            // hidden layer and columns
            const T* own_columns = value_own.v + c * p.ld_value_atom;
            transpose<T, true>(p.m + 1, columns, own_columns, columns, value_back, ldm);
            T* of_hidden = hidden_gradient[1] + row * ld;
            const T* gy = value_gradient + row * p.ld_value;
            multiply<T>(p.m, {count, 8 * h, gy, p.ld_value, value_back, ldm, of_hidden, ld, nullptr, Start::kZero});
            if (wants_scalars)
                multiply<T>(p.m, {count, 3 * h, factors.v + row * 3 * h, 3 * h, of_mean, ldm, of_hidden, ld, nullptr,
                                  Start::kAdd});
            T* total = sums.value_edge.data();
            multiply<T, true>(8 * h,
                              {p.m, count, x + row * ld, ld, gy, p.ld_value, total, p.ld_value, nullptr, Start::kAdd});
            add_rows(count, 8 * h, gy, p.ld_value, total + p.m * p.ld_value);
            // the first columns are the centre's own: take them out of the sum
            T* own_gradient = value_own_gradient.data() + c * p.ld_value_atom;
            for (long k = 0; k <= p.m; ++k)
                for (long j = 0; j < columns; ++j) {
                    own_gradient[k * columns + j] = total[k * p.ld_value + j];
                    total[k * p.ld_value + j] = 0;
                }
            row += count;
        }
    }

    // Gradients of weights to those of logits, in place; of the envelope to those of distances.
    void softmax_gradients(Group group) {
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = this->degree(c);
            for (long k = 0; k < p.h; ++k) {
                const T* a = weight.v + k * ld_rows + row;
                T* g = weight_gradient + k * ld_rows + row;
                if (!p.size.envelope) {
                    T mean_of = 0;
                    for (long e = 0; e < count; ++e) mean_of += a[e] * g[e];
                    for (long e = 0; e < count; ++e) g[e] = a[e] * (g[e] - mean_of);
                    continue;
                }
                // a = f b with b = f exp(l) / sum f exp(l)
                T mean_of = 0;
                for (long e = 0; e < count; ++e) mean_of += a[e] * g[e];
                for (long e = 0; e < count; ++e) {
                    const T f = cut.v[row + e];
                    const T b = f > 0 ? a[e] / f : T(0);
                    const T of_logit = b * (f * g[e] - mean_of);
                    const T of_cut = f > 0 ? b * g[e] + of_logit / f : T(0);
                    geometry_gradient[9 * (row + e)] += of_cut * envelope_slope(distance.v[row + e], T(p.size.cutoff));
                    g[e] = of_logit;
                }
            }
            row += count;
        }
    }

    // From logits to queries, geometry, columns (in place) and the key network's hidden layer.
    template <int H>
    void logit_gradients(Group group, const EdgeSums<T>& edge_sums) {
        const long c0 = p.c, h = H ? H : p.h;
        const T* x = this->last_hidden(0).v;
        const long ld = this->ld_hidden(0);
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = this->degree(c), edge_row = first_edge(c) - row;
            for (long e = row; e < row + count; ++e) {
                T *a = own.v + e * ld_own, *b = edge.v + e * p.ld_edge, *g = geometry_gradient + 9 * e;
                const T* q = queried.v + neighbor[e] * p.ld_query;
                T* of_q = edge_sums.query + (edge_row + e) * p.ld_query;
                const T d = distance.v[e], wu = along.v[e], ww = speed.v[e];
                T of_d = 0, of_wu = 0, of_ww = 0;
                for (long k = 0; k < h; ++k) {
                    const T l = weight_gradient[k * ld_rows + e];
                    T *dd = b + 2 * c0 + k, *dw = dd + h, *w2 = dw + h, *wuwu = w2 + h;
                    of_d += l * (a[c0 + k] + 2 * d * *dd + wu * *dw);
                    of_wu += l * (d * *dw + a[c0 + h + k] + 2 * wu * *wuwu);
                    of_ww += l * *w2;
                    a[c0 + k] = l * d;
                    a[c0 + h + k] = l * wu;
                    *dd = l * d * d;
                    *dw = l * d * wu;
                    *w2 = l * ww;
                    *wuwu = l * wu * wu;
                    head_gradient[k] = l;
                }
                for (long j = 0; j < c0; j += h)
                    for (long k = 0; k < h; ++k) {
                        const T l = head_gradient[k], lq = l * q[j + k];
                        of_q[j + k] = l * (a[j + k] + d * b[j + k] + wu * b[c0 + j + k]);
                        of_d += lq * b[j + k];
                        of_wu += lq * b[c0 + j + k];
                        a[j + k] = lq;
                        b[j + k] = d * lq;
                        b[c0 + j + k] = wu * lq;
                    }
                for (long j = c0; j < p.ld_query; ++j) of_q[j] = 0;
                g[0] += of_d;
                g[1] += of_wu;
                g[2] += of_ww;
            }
            const T* columns = key_own.v + c * p.ld_key;
            transpose<T, true>(p.n, p.key_columns, columns, p.key_columns, key_back, ldn);
            const T* a = own.v + row * ld_own;
            multiply<T>(p.n, {count, p.key_columns, a, ld_own, key_back, ldn, hidden_gradient[0] + row * ld, ld,
                              nullptr, Start::kZero});
            memset(key_sum + p.n * ld_own, 0, ld_own * sizeof(T));
            multiply<T, true>(p.key_columns,
                              {p.n, count, x + row * ld, ld, a, ld_own, key_sum, ld_own, nullptr, Start::kZero});
            add_rows(count, p.key_columns, a, ld_own, key_sum + p.n * ld_own);
            copy_rows(p.n + 1, p.key_columns, key_sum, ld_own, key_own_gradient.data() + c * p.ld_key, p.key_columns);
            row += count;
        }
        multiply<T>(p.n, {group.rows, p.edge_columns, edge.v, p.ld_edge, p.key_edge_back.data(), ldn,
                          hidden_gradient[0], ld, nullptr, Start::kAdd});
        T* total = sums.key_edge.data();
        multiply<T, true>(p.edge_columns,
                          {p.n, group.rows, x, ld, edge.v, p.ld_edge, total, p.ld_edge, nullptr, Start::kAdd});
        add_rows(group.rows, p.edge_columns, edge.v, p.ld_edge, total + p.n * p.ld_edge);
    }

    // From the last hidden layer of a network to its weights, the time channels' part and the Gaussians.
    void radial_gradients(int net, Group group) {
        T *of_hidden = hidden_gradient[net], *of_input = layer_gradient[net];
        for (int k = p.size.layers[net] - 1; k >= 0; --k) {
            const Layer<T>& layer = p.layers[net][k];
            for (long i = 0; i < group.rows * layer.ld; i += W)
                store(of_hidden + i, load(of_hidden + i) * load(slope[net][k] + i));
            if (k) {
                const Layer<T>& below = p.layers[net][k - 1];
                multiply<T, true>(layer.out, {layer.in, group.rows, hidden[net][k - 1].v, below.ld, of_hidden, layer.ld,
                                              sums.weight[net][k].data(), layer.ld, nullptr, Start::kAdd});
                add_rows(group.rows, layer.out, of_hidden, layer.ld, sums.bias[net][k].data());
                multiply<T>(layer.in, {group.rows, layer.out, of_hidden, layer.ld, layer.back.data(), layer.ld_back,
                                       of_input, below.ld, nullptr, Start::kZero});
                T* other = of_hidden;
                of_hidden = of_input;
                of_input = other;
            } else {
                multiply<T, true>(layer.out, {layer.in, group.rows, basis.v, ld_basis, of_hidden, layer.ld,
                                              sums.weight[net][0].data(), layer.ld, nullptr, Start::kAdd});
                multiply<T>(layer.in, {group.rows, layer.out, of_hidden, layer.ld, layer.back.data(), layer.ld_back,
                                       basis_gradient, ld_basis, nullptr, Start::kAdd});
                long row = 0;
                for (long c = group.first; c < group.last; row += this->degree(c), ++c) {
                    T* of_time = time_gradient[net] + c * layer.ld;
                    memset(of_time, 0, layer.ld * sizeof(T));
                    add_rows(this->degree(c), layer.out, of_hidden + row * layer.ld, layer.ld, of_time);
                }
            }
        }
    }

    void geometry_gradients(Group group, const EdgeSums<T>& edge_sums, const AttentionState<T>& gradient) {
        long row = 0;
        for (long c = group.first; c < group.last; ++c) {
            const long count = this->degree(c), edge_row = first_edge(c) - row, i = tile_begin + c;
            T owed[6] = {};
            for (long e = row; e < row + count; ++e) {
                const T *g = geometry_gradient + 9 * e, *u = direction.v + 3 * e, *w = velocity.v + 3 * e;
                const T d = distance.v[e], of_wu = g[1], of_ww = g[2];
                Vec<T> sum{};
                for (long k = 0; k < ld_basis; k += W) {
                    const Vec<T> x = (broadcast(d) - load(centre + k)) * inverse_step;
                    Vec<T> part = load(basis_gradient + e * ld_basis + k) * load(basis.v + e * ld_basis + k) * x;
                    for (long j = p.size.centres - k; j < W; ++j) part[j] = 0;
                    sum += part;
                }
                T of_d = g[0] - 2 * inverse_step * lane_sum<T>(sum);
                T of_u[3], radial = 0;
                for (long k = 0; k < 3; ++k) {
                    of_u[k] = g[3 + k] + of_wu * w[k];
                    radial += of_u[k] * u[k];
                }
                if (d <= T(1e-10)) of_d = radial = 0;  // the floor of the distance is a constant
                for (long k = 0; k < 3; ++k) {
                    const T of_r = (of_u[k] - radial * u[k]) / d + of_d * u[k];
                    const T of_w = g[6 + k] + of_wu * u[k] + 2 * of_ww * w[k];
                    edge_sums.r[3 * (edge_row + e) + k] = of_r;
                    edge_sums.w[3 * (edge_row + e) + k] = of_w;
                    owed[k] -= of_r;
                    owed[3 + k] -= of_w;
                }
            }
            for (long k = 0; k < 3; ++k) {
                gradient.displacement[3 * i + k] = owed[k];
                gradient.velocity[3 * i + k] = owed[3 + k];
            }
            row += count;
        }
    }

    // Index of a centre's first edge among those of all copies of the graph.
    long first_edge(long c) const {
        return (tile_begin + c) / graph.atoms * graph.row_ptr[graph.atoms] + this->edge_begin(c);
    }

    // ---- atoms, after the edges: weights and scalars
    void leave_gradients(const T* s, const AttentionState<T>& gradient) {
        const long h = p.h, v = p.v, stride = 3 * h * ldm, count = tile_count;
        memset(state_sum, 0, count * p.ld_scalars * sizeof(T));
        for (long k = 0; wants_scalars && k < h; ++k) {
            this->contract(k, {const_cast<T*>(s), nullptr});
            for (long i = 0; i < count; ++i)
                for (long u = 0; u < p.S; ++u) {
                    T sum = 0;
                    for (long x = 0; x < v; ++x)
                        sum += value_sum[i * ld_values + k * v + x] * scalar.v[i * p.ld_scalar_atom + u * v + x];
                    state_sum[i * p.ld_scalars + u] += sum;
                }
            multiply<T, true>(p.S * v,
                              {p.m + 1, count, mean.v + k * ldm, stride, scalar_gradient + k * kTile * p.ld_scalar_atom,
                               p.ld_scalar_atom, sums.scalar_atom.data() + k * (p.m + 1) * p.ld_scalar_atom,
                               p.ld_scalar_atom, nullptr, Start::kAdd});
            for (long part = 0; part < 2; ++part)
                multiply<T, true>(
                    v, {p.m + 1, count, mean.v + ((part + 1) * h + k) * ldm, stride, value_sum + k * v, ld_values,
                        sums.scalar_edge.data() + (2 * k + part) * (p.m + 1) * p.ld_scalar_edge, p.ld_scalar_edge,
                        nullptr, Start::kAdd});
        }
        if (wants_scalars)
            multiply<T, true>(p.S, {h * v, count, values.v, ld_values, upstream, p.ld_scalars, sums.out.data(),
                                    p.ld_scalars, nullptr, Start::kAdd});

        const T *key = key_own_gradient.data(), *val = value_own_gradient.data();
        multiply_rows<T>(count, p.S, p.ld_key, key, p.ld_key, p.key_atom_rows.data(), p.ld_key, state_sum,
                         p.ld_scalars);
        multiply_rows<T>(count, p.S, p.ld_value_atom, val, p.ld_value_atom, p.value_atom_rows.data(), p.ld_value_atom,
                         state_sum, p.ld_scalars);
        multiply<T, true>((p.n + 1) * p.key_columns,
                          {p.S, count, s, p.S, key, p.ld_key, sums.key_atom.data(), p.ld_key, nullptr, Start::kAdd});
        multiply<T, true>((p.m + 1) * p.value_columns, {p.S, count, s, p.S, val, p.ld_value_atom,
                                                        sums.value_atom.data(), p.ld_value_atom, nullptr, Start::kAdd});
        const long t = p.size.time_channels;
        for (int net = 0; net < 2; ++net) {
            const Layer<T>& layer = p.layers[net][0];
            const long ld_time = padded<T>(t);
            multiply<T>(t, {count, layer.out, time_gradient[net], layer.ld, layer.back.data() + layer.in, layer.ld_back,
                            time_sum, ld_time, nullptr, Start::kZero});
            for (long i = 0; i < count; ++i)
                for (long k = 0; k < t; ++k) state_sum[i * p.ld_scalars + p.S - t + k] += time_sum[i * ld_time + k];
            multiply<T, true>(layer.out, {t, count, s + p.S - t, p.S, time_gradient[net], layer.ld,
                                          sums.time[net].data(), layer.ld, nullptr, Start::kAdd});
            add_rows(count, layer.out, time_gradient[net], layer.ld, sums.bias[net][0].data());
        }
        copy_rows(count, p.S, state_sum, p.ld_scalars, gradient.scalars + tile_begin * p.S, p.S);
    }

    using Base::along, Base::basis, Base::centre, Base::cut, Base::direction, Base::distance, Base::edge, Base::factors,
        Base::graph, Base::hidden, Base::inverse_step, Base::key_own, Base::ld_basis, Base::ld_own, Base::ld_rows,
        Base::ldm, Base::ldn, Base::mean, Base::neighbor, Base::own, Base::p, Base::queried, Base::rows, Base::scalar,
        Base::slope, Base::speed, Base::tile_begin, Base::tile_count, Base::value, Base::value_own, Base::values,
        Base::velocity, Base::wants_scalars, Base::weight;

    Scratch<T> more;
    long ld_values, ld_factors;
    // edges of the group
    T *hidden_gradient[2], *layer_gradient[2], *basis_gradient, *weight_gradient, *factor_gradient, *value_gradient;
    T* geometry_gradient;                            // d, w.u, w.w, u, w
    T* mean_columns;                                 // a centre's mean_gradient, transposed
    T *value_back, *key_back, *key_sum;              // columns of one centre: transposed, and their gradient
    Buffer<T> key_own_gradient, value_own_gradient;  // zero beyond the columns
    // atoms of the tile
    T *time_gradient[2], *mean_gradient, *value_sum, *scalar_gradient, *upstream, *state_sum, *time_sum;
    T *owed, *head_gradient;
};

// out [rows, columns] = the sum over threads of row-padded sums.
template <class T, class Get>
void collect(long rows, long columns, long ld, const std::unique_ptr<Backward<T>>* workers, int threads, T* out,
             Get sums) {
    for (int t = 0; t < threads; ++t) {
        const T* from = sums(workers[t]->sums);
        for (long i = 0; i < rows; ++i)
            for (long k = 0; k < columns; ++k) {
                T& to = out[i * columns + k];
                to = t ? to + from[i * ld + k] : from[i * ld + k];
            }
    }
}

template <class T>
void collect_all(const Packed<T>& p, const std::unique_ptr<Backward<T>>* workers, int threads,
                 const AttentionWeights<T>& out) {
    using Sums = WeightSums<T>;
    const auto rows = [&](long count, long columns, long ld, T* to, auto get) {
        collect(count, columns, ld, workers, threads, to, get);
    };
    for (int net = 0; net < 2; ++net)
        for (int k = 0; k < p.size.layers[net]; ++k) {
            const Layer<T>& layer = p.layers[net][k];
            const long time = k ? 0 : p.size.time_channels, stride = layer.in + time;
            // [in, out] as summed, [out, in] as given
            for (int t = 0; t < threads; ++t) {
                const Sums& sums = workers[t]->sums;
                for (long i = 0; i < layer.out; ++i)
                    for (long j = 0; j < stride; ++j) {
                        const T x = j < layer.in ? sums.weight[net][k].data()[j * layer.ld + i]
                                                 : sums.time[net].data()[(j - layer.in) * layer.ld + i];
                        T& to = out.layer_weight[net][k][i * stride + j];
                        to = t ? to + x : x;
                    }
            }
            rows(1, layer.out, layer.ld, out.layer_bias[net][k], [=](const Sums& s) { return s.bias[net][k].data(); });
        }
    const long key = (p.n + 1) * p.key_columns, value = (p.m + 1) * p.value_columns;
    rows(p.S, p.c, p.ld_query, out.query, [](const Sums& s) { return s.query.data(); });
    rows(p.S, key, p.ld_key, out.key_atom, [](const Sums& s) { return s.key_atom.data(); });
    rows(p.n + 1, p.edge_columns, p.ld_edge, out.key_edge, [](const Sums& s) { return s.key_edge.data(); });
    rows(p.S, value, p.ld_value_atom, out.value_atom, [](const Sums& s) { return s.value_atom.data(); });
    rows(p.m + 1, 6 * p.h, p.ld_value, out.value_edge,
         [&](const Sums& s) { return s.value_edge.data() + p.value_columns; });
    rows(p.h * (p.m + 1), p.S * p.v, p.ld_scalar_atom, out.scalar_atom,
         [](const Sums& s) { return s.scalar_atom.data(); });
    rows(p.h * 2 * (p.m + 1), p.v, p.ld_scalar_edge, out.scalar_edge,
         [](const Sums& s) { return s.scalar_edge.data(); });
    rows(p.h * p.v, p.S, p.ld_scalars, out.out, [](const Sums& s) { return s.out.data(); });
}

// The edges by their neighbours, in order: ptr [atoms + 2] (zeroed, and one longer than what it becomes), edge [edges].
template <class T>
void sort_by_neighbor(const AttentionGraph<T>& graph, int64_t* ptr, int64_t* edge) {
    const long edges = graph.row_ptr[graph.atoms];
    for (long e = 0; e < edges; ++e) ++ptr[graph.neighbor[e] + 2];
    for (long i = 0; i < graph.atoms; ++i) ptr[i + 2] += ptr[i + 1];
    for (long e = 0; e < edges; ++e) edge[ptr[graph.neighbor[e] + 1]++] = e;
}

template <class T>
void backward(const void* packed, const AttentionGraph<T>& graph, int64_t times, const AttentionState<T>& state,
              const AttentionState<T>& increment_gradient, const AttentionState<T>& state_gradient,
              const AttentionWeights<T>& weight_gradient, const AttentionEdgeGradients<T>& edge_gradient, int threads) {
    const Packed<T>& p = *static_cast<const Packed<T>*>(packed);
    constexpr long kTile = Backward<T>::kTile;
    const long atoms = graph.atoms * times, edges = graph.row_ptr[graph.atoms], tiles = (atoms + kTile - 1) / kTile;
    const long rows = largest_group(graph);
    if (threads > tiles) threads = tiles > 1 ? static_cast<int>(tiles) : 1;
    Buffer<T> memory[2];
    const Field<T, false> query{memory[0].resize(atoms * p.ld_query, false), nullptr};
    T* edge_memory = memory[1].resize(edges * times * (p.ld_query + 6), false);
    EdgeSums<T> edge_sums{edge_memory, edge_memory + edges * times * p.ld_query, nullptr};
    edge_sums.w = edge_sums.r + 3 * edges * times;
    Buffer<int64_t> pointers, sorted;
    const int64_t* by_neighbor_ptr = pointers.resize(graph.atoms + 2);
    const int64_t* by_neighbor = sorted.resize(edges);
    sort_by_neighbor(graph, pointers.data(), sorted.data());
    const auto workers = std::make_unique<std::unique_ptr<Backward<T>>[]>(threads);
    int team = 1;  // the threads that there really are
    parallel(threads, [&](auto& guard) {
        std::unique_ptr<Backward<T>>& worker = workers[omp_get_thread_num()];
        guard([&] { worker = std::make_unique<Backward<T>>(p, graph, rows); });
#pragma omp single
        team = omp_get_num_threads();
#pragma omp for schedule(static)
        for (long k = 0; k < tiles; ++k) {
            const long begin = k * kTile, end = begin + kTile < atoms ? begin + kTile : atoms;
            guard([&] { worker->queries(begin, end, {state.scalars, nullptr}, query); });
        }
#pragma omp for schedule(static)
        for (long k = 0; k < tiles; ++k) {
            const long begin = k * kTile, count = begin + kTile < atoms ? kTile : atoms - begin;
            guard([&] { worker->tile(begin, count, state, query, increment_gradient, state_gradient, edge_sums); });
        }
#pragma omp for schedule(static)
        for (long k = 0; k < tiles; ++k) {
            const long begin = k * kTile, end = begin + kTile < atoms ? begin + kTile : atoms;
            guard([&] {
                worker->gather(begin, end, by_neighbor_ptr, by_neighbor, edges, state, state_gradient, edge_sums);
            });
        }
    });
    collect_all(p, workers.get(), team, weight_gradient);
    T *const to[2] = {edge_gradient.r, edge_gradient.w}, *const from[2] = {edge_sums.r, edge_sums.w};
    for (int part = 0; part < 2; ++part)
        for (long k = 0; to[part] && k < 3 * edges; ++k) {
            T sum = 0;
            for (long t = 0; t < times; ++t) sum += from[part][3 * edges * t + k];
            to[part][k] = sum;
        }
}

}  // namespace
