// Atomic energies and slopes for one instruction set: the arithmetic of DensityNetwork in
// mdtrajnet_fast/model/density_network.py, which says what it computes.  A dipole's charges are such "energies".
//
// Atoms are worked on in groups, so that their rows make matrices; no row depends on another.  Nothing is scattered:
// where an atom sees another, this one sees it too, along -r.  So an atom gathers from its own edges what the densities
// at both ends say of its place, and no result depends on the number of threads or on what else is in the graph.
//
// Gradients of the weights, of a function of the energies e and of the slopes g of their sum E with d/de = a, d/dg = b, are
// those of sum a e + (b . d/dx) E: what goes from the energies back to the weights, with 1 for each energy, once more in dual
// numbers, whose second part is the derivative along b, and a for the energies (B. A. Pearlmutter, Neural Comput. 6, 147 (1994)).
#pragma once

#include "cpu/domain.hpp"
#include "field.hpp"
#include "potential_forward.hpp"

namespace {

using mdtrajnet::kRadialPowers;
using mdtrajnet::kRoles;
using mdtrajnet::kWindowWeights;
using mdtrajnet::WindowPotentialGradients;
using mdtrajnet::WindowPotentialSizes;
using mdtrajnet::WindowPotentialWeights;
using mdtrajnet::WindowRoles;

constexpr long kEdges = 64;                      // whose radial functions are in memory at a time
constexpr long kMaps[] = {2, 3, 2};              // linear maps of the density of each l
constexpr long kFirstMap[] = {0, 2, 5, 7};       // of each l, and the end
constexpr long kFirstMapped[] = {0, 2, 11, 23};  // the same where each harmonic counts

// Lengths of rows in whole vectors.
template <class T>
struct WindowRows {
    long channels, products, hidden;
    long features;  // isotropic density, then four kinds of products
    long entry;     // what a layer begins with: channels that neighbours see, then the bias of its first hidden layer

    explicit WindowRows(const WindowPotentialSizes& z)
        : channels(row_length<T>(z.channels)), products(row_length<T>(z.products)), hidden(row_length<T>(z.hidden)),
          features(channels + 4 * products), entry(channels + hidden) {}
};

// What threads share: of each layer and each atom what its gradient needs.  D: with derivatives, for gradients of weights.
template <class T, bool D>
struct WindowMemory {
    using F = Field<T, D>;

    const WindowRows<T> row;
    const long channels, atoms, groups;
    F density;       // [layers][groups][harmonics][atoms of the group][channels]; at last its gradient
    F entry;         // [layers][atoms][entry]; the bias is followed by silu's slope there, and that by the gradient
    F slope;         // [layers - 1][atoms][hidden]: silu's in the second hidden layer; nobody comes back to the last
    F inner, known;  // [layers][atoms][hidden], with D: the first hidden layer, and what the layer knows in the end

    WindowMemory(const WindowPotentialSizes& z, long count)
        : row(z), channels(z.channels), atoms(count), groups((count + kAtoms - 1) / kAtoms) {
        const long hidden = z.layers * atoms * row.hidden;
        density = take(z.layers * groups * kAtoms * kHarmonics * row.channels);
        entry = take(z.layers * atoms * row.entry);
        slope = take(hidden - atoms * row.hidden);
        if (D) inner = take(hidden), known = take(hidden);
    }

    long count(long group) const { return atoms - group * kAtoms < kAtoms ? atoms - group * kAtoms : kAtoms; }
    F density_of(long layer, long group) const {
        return density + (layer * groups + group) * kAtoms * kHarmonics * row.channels;
    }
    F entry_of(long layer, long atom) const { return entry + (layer * atoms + atom) * row.entry; }
    long hidden_of(long layer, long atom) const { return (layer * atoms + atom) * row.hidden; }

  private:
    F take(long size) {
        T* v = memory_[taken_++].resize(D ? 2 * size : size, false);
        return {v, D ? v + size : nullptr};
    }

    Buffer<T> memory_[5];
    int taken_ = 0;
};

// Rows [channels] that ghosts need of their owners; what pads them is not sent.
template <class T>
class WindowNews {
  public:
    // What neighbours see in a layer.
    static WindowNews seen(const WindowMemory<T, false>& memory, long layer) {
        return {memory, layer, 1, [](void* context, int64_t atom, int) -> void* {
                    const auto& of = *static_cast<WindowNews*>(context);
                    return of.m.entry_of(of.layer, atom).v;
                }};
    }
    // The gradients of a layer's densities.
    static WindowNews densities(const WindowMemory<T, false>& memory, long layer) {
        return {memory, layer, kHarmonics, [](void* context, int64_t atom, int harmonic) -> void* {
                    const auto& of = *static_cast<WindowNews*>(context);
                    const long group = atom / kAtoms, place = harmonic * of.m.count(group) + atom - group * kAtoms;
                    return of.m.density_of(of.layer, group).v + place * of.m.row.channels;
                }};
    }

    void tell(mdtrajnet::Domain& domain) { domain.tell(rows, bytes, at, this); }
    void hear(mdtrajnet::Domain& domain) {
        domain.hear(rows, bytes, at, this);
        for (long ghost = m.atoms - domain.ghosts(); ghost < m.atoms; ++ghost)
            for (int k = 0; k < rows; ++k)
                memset(static_cast<T*>(at(this, ghost, k)) + m.channels, 0, (m.row.channels - m.channels) * sizeof(T));
    }

  private:
    WindowNews(const WindowMemory<T, false>& m, long layer, int rows, mdtrajnet::Domain::At at)
        : m(m), layer(layer), rows(rows), at(at) {
        for (int64_t& each : bytes) each = m.channels * sizeof(T);
    }

    const WindowMemory<T, false>& m;
    const long layer;
    const int rows;
    const mdtrajnet::Domain::At at;
    int64_t bytes[kHarmonics];
};

// A direction and what densities have of it.
template <class N>
struct Direction {
    N u[3], over_d;
    N harmonic[kHarmonics];
    N twice[3], mixed[3];  // of the harmonics' slopes: 2 u and sqrt(2) u
};

template <class T, class N>
Direction<N> direction(const N (&r)[3], N d) {
    const N one = chain(d, T(1), T(0)), third = chain(d, T(1.0 / 3), T(0));
    const T mixed = T(1.41421356237309504880);
    const N over_d = one / d, x = r[0] * over_d, y = r[1] * over_d, z = r[2] * over_d;
    const N of_x = x * mixed, of_y = y * mixed, of_z = z * mixed;
    return {{x, y, z},
            over_d,
            {one, x, y, z, x * x - third, y * y - third, z * z - third, of_x * y, of_x * z, of_y * z},
            {x * T(2), y * T(2), z * T(2)},
            {of_x, of_y, of_z}};
}

// Where a distance is among the intervals of the radial functions, and what their powers there are, with derivatives.
template <class T>
struct Place {
    long interval;
    T power[kRadialPowers], change[kRadialPowers];
};

// Value of silu, and its slope.
template <class T>
Vec<T> silu(Vec<T> x, Vec<T>& slope) {
    const Vec<T> s = T(1) / (exponential(-x) + T(1));
    slope = s * (x * (T(1) - s) + T(1));
    return x * s;
}
template <class T>
Dual<Vec<T>> silu(Dual<Vec<T>> x, Dual<Vec<T>>& slope) {
    const Vec<T> s = T(1) / (exponential(-x.v) + T(1)), rest = T(1) - s;
    slope.v = s * (x.v * rest + T(1));
    slope.t = x.t * s * rest * (x.v * (rest - s) + T(2));
    return {x.v * s, x.t * slope.v};
}

// c += the derivative of a^T b.
template <class T>
void add_derivative(long columns, long rows, long depth, Field<T, true> a, long lda, Field<T, true> b, long ldb, T* c,
                    long ldc) {
    multiply<T, true>(columns, {rows, depth, a.v, lda, b.t, ldb, c, ldc, nullptr, Start::kAdd});
    multiply<T, true>(columns, {rows, depth, a.t, lda, b.v, ldb, c, ldc, nullptr, Start::kAdd});
}

// Elements of each of the weights that have gradients, in the order of WindowPotentialGradients.
template <class T>
void count_weights(const WindowPotentialSizes& z, long (&counts)[kWindowWeights]) {
    const WindowRows<T> row(z);
    const long each[kWindowWeights] = {z.intervals * kRadialPowers * row.channels,
                                       kRoles * z.species * row.entry,
                                       z.hidden * row.entry,
                                       z.channels * kFirstMap[3] * row.products,
                                       z.species * row.features,
                                       row.features * row.hidden,
                                       z.hidden * row.hidden,
                                       row.hidden,
                                       kRoles * row.hidden};
    for (int k = 0; k < kWindowWeights; ++k) counts[k] = each[k] * (k == 2 ? z.layers - 1 : z.layers);
}

// Gradients of one thread's atoms.
template <class T>
struct WindowSums {
    explicit WindowSums(const WindowPotentialSizes& z) {
        long counts[kWindowWeights];
        count_weights<T>(z, counts);
        for (int k = 0; k < kWindowWeights; ++k) of.weights[k] = memory_[k].resize(counts[k]);
    }

    WindowPotentialGradients<T> of;

  private:
    Buffer<T> memory_[kWindowWeights];
};

// What gradients of weights are asked of.
template <class T>
struct WindowLoss {
    const T *energy, *slope;  // its gradients with respect to energies [atoms] and slopes [atoms, 3]
};

// A thread's way through the layers, group by group.
template <class T, bool D>
class WindowLayers {
  public:
    using F = Field<T, D>;
    using N = typename Number<T, D>::Scalar;
    using NV = typename Number<T, D>::Vector;

    // loss, sums: with D, and what the thread finds is added to sums
    WindowLayers(const WindowPotentialSizes& z, const WindowPotentialWeights<T>& weights,
                 const AttentionGraph<T>& graph, const int64_t* species, const WindowRoles& roles,
                 const WindowMemory<T, D>& memory, const WindowLoss<T>& loss = {}, WindowSums<T>* sums = nullptr)
        : z(z), w(weights), graph(graph), species(species), roles(roles), m(memory), loss(loss), row(memory.row) {
        if constexpr (D) gradient = sums->of;
        radial = scratch.template field<D>(kEdges * row.channels);
        if constexpr (!D) change = scratch.take(kEdges * row.channels);
        mapped = scratch.template field<D>(kAtoms * kFirstMapped[3] * row.products);
        feature = scratch.template field<D>(kAtoms * row.features);
        if constexpr (D) scaled = scratch.template field<D>(kAtoms * row.features);
        known = scratch.template field<D>(kAtoms * row.hidden);
        other = scratch.template field<D>(kAtoms * row.hidden);
        last_slope = scratch.template field<D>(kAtoms * row.hidden);
        seen = scratch.template field<D>(kAtoms * row.channels);
    }

    // What the first layer begins with.
    void enter(long group) {
        take(group);
        for (long i = 0; i < count; ++i) copy_element(0, i);
    }

    // Through a layer, whose energies are added; they may be null.
    void forward(long layer, long group, T* energy) {
        take(group);
        for (long i = 0; i < count; ++i) sum_density(layer, i);
        map(layer);
        for (long i = 0; i < count; ++i) invariants(layer, i);
        scale(layer, feature, feature);
        const F to = m.entry_of(layer, begin) + row.channels, inner = inner_of(layer), both = known_of(layer);
        product(row.hidden, count, row.features, feature, row.features,
                constant<T, D>(w.first + layer * row.features * row.hidden), row.hidden, to, row.entry, Start::kAdd);
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < row.hidden; n += W) {
                NV slope;
                put_vector(inner, i * row.hidden + n, silu<T>(get_vector(to, i * row.entry + n), slope));
                put_vector(to, i * row.entry + n, slope);
            }
        product(row.hidden, count, z.hidden, inner, row.hidden,
                constant<T, D>(w.second + layer * z.hidden * row.hidden), row.hidden, other, row.hidden, Start::kBias,
                constant<T, D>(w.second_bias + layer * row.hidden));
        const F slopes = slopes_of(layer);
        for (long i = 0; i < count; ++i) {
            const T* last = last_of(layer, i);
            Vec<T> total{};
            for (long n = 0; n < row.hidden; n += W) {
                const long at = i * row.hidden + n;
                NV slope;
                const NV sum = get_vector(inner, at) + silu<T>(get_vector(other, at), slope);
                total += ::value(sum) * load<T>(last + n);
                put_vector(both, at, sum);
                put_vector(slopes, at, slope);
            }
            if (energy) energy[begin + i] = (layer ? energy[begin + i] : T(0)) + lane_sum<T>(total);
        }
        if (layer + 1 == z.layers) return;
        for (long i = 0; i < count; ++i) copy_element(layer + 1, i);
        product(row.entry, count, z.hidden, both, row.hidden, constant<T, D>(w.onward + layer * z.hidden * row.entry),
                row.entry, m.entry_of(layer + 1, begin), row.entry, Start::kAdd);
    }

    // From the energy back to the density of a layer: of the last one right after `forward`, of others after `edges` of
    // the next.
    void backward(long layer, long group) {
        take(group);
        const bool is_last = layer + 1 == z.layers;
        for (long i = 0; i < count; ++i) leave(layer, i);
        if (!is_last) {
            const T* onward = w.onward_back + layer * row.entry * row.hidden;
            const F bias = m.entry_of(layer + 1, begin) + row.channels;
            product(row.hidden, count, z.channels, seen, row.channels, constant<T, D>(onward), row.hidden, known,
                    row.hidden, Start::kAdd);
            product(row.hidden, count, z.hidden, bias, row.entry, constant<T, D>(onward + row.channels * row.hidden),
                    row.hidden, known, row.hidden, Start::kAdd);
            if constexpr (D) {
                T* to = gradient.onward() + layer * z.hidden * row.entry;
                const F both = known_of(layer);
                add_derivative(row.channels, z.hidden, count, both, row.hidden, seen, row.channels, to, row.entry);
                add_derivative(row.hidden, z.hidden, count, both, row.hidden, bias, row.entry, to + row.channels,
                               row.entry);
            }
        }
        const F slopes = slopes_of(layer);
        for (long n = 0; n < count * row.hidden; n += W)
            put_vector(other, n, get_vector(known, n) * get_vector(slopes, n));
        if constexpr (D) {
            add_derivative(row.hidden, z.hidden, count, inner_of(layer), row.hidden, other, row.hidden,
                           gradient.second() + layer * z.hidden * row.hidden, row.hidden);
            for (long i = 0; i < count; ++i)
                add_row(row.hidden, other.t + i * row.hidden, gradient.second_bias() + layer * row.hidden);
        }
        product(row.hidden, count, z.hidden, other, row.hidden,
                constant<T, D>(w.second_back + layer * z.hidden * row.hidden), row.hidden, known, row.hidden,
                Start::kAdd);
        const F to = m.entry_of(layer, begin) + row.channels;
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < row.hidden; n += W)
                put_vector(to, i * row.entry + n,
                           get_vector(to, i * row.entry + n) * get_vector(known, i * row.hidden + n));
        const T* first = w.first_back + layer * z.hidden * row.features;
        if (!is_last) map(layer);  // once more: kept for all atoms, it would be the most of the memory
        if constexpr (D) {
            for (long i = 0; i < count; ++i) invariants(layer, i);
            scale(layer, feature, scaled);
            add_derivative(row.hidden, row.features, count, scaled, row.features, to, row.entry,
                           gradient.first() + layer * row.features * row.hidden, row.hidden);
            product(row.features, count, z.hidden, to, row.entry, constant<T, D>(first), row.features, scaled,
                    row.features);
            scale_gradients(layer);
            scale(layer, scaled, feature);
        } else {
            product(row.features, count, z.hidden, to, row.entry, constant<T, D>(first), row.features, feature,
                    row.features);
            scale(layer, feature, feature);
        }
        for (long i = 0; i < count; ++i) invariants_back(i);
        map_back(layer);
    }

    // What the densities of a layer add to the slopes, and if there is one before, the gradient of what neighbours see.
    void edges(long layer, long group, double* slope) {
        take(group);
        for (long i = 0; i < count; ++i) {
            double* to = slope + 3 * (begin + i);
            layer ? edges_of<true>(layer, i, to) : edges_of<false>(layer, i, to);
        }
    }

    // With D: the gradients of a layer's radial functions, of what neighbours see, and of the elements' part in it.
    void edge_gradients(long layer, long group) {
        take(group);
        for (long i = 0; i < count; ++i) {
            radial_gradients(layer, i);
            T* to = gradient.element() + element_row(layer, i);
            add_row(row.channels, seen.t + i * row.channels, to);
            add_row(row.hidden, m.entry_of(layer, begin + i).t + row.channels, to + row.channels);
        }
    }

  private:
    static constexpr long W = kLanes<T>;

    void take(long group) {
        begin = group * kAtoms;
        count = m.count(group);
    }

    F density(long layer) const { return m.density_of(layer, begin / kAtoms); }
    F inner_of(long layer) const { return D ? m.inner + m.hidden_of(layer, begin) : known; }
    F known_of(long layer) const { return D ? m.known + m.hidden_of(layer, begin) : known; }
    F slopes_of(long layer) const { return layer + 1 < z.layers ? m.slope + m.hidden_of(layer, begin) : last_slope; }
    long last_row(long layer, long i) const { return (roles.of(begin + i) * z.layers + layer) * row.hidden; }
    const T* last_of(long layer, long i) const { return w.last + last_row(layer, i); }
    long element_row(long layer, long i) const {
        return ((roles.of(begin + i) * z.layers + layer) * z.species + species[begin + i]) * row.entry;
    }

    void copy_element(long layer, long i) {
        const F to = m.entry_of(layer, begin + i);
        memcpy(to.v, w.element + element_row(layer, i), row.entry * sizeof(T));
        if constexpr (D) memset(to.t, 0, row.entry * sizeof(T));
    }

    static void add_row(long columns, const T* from, T* to) {
        for (long n = 0; n < columns; n += W) store<T>(to + n, load<T>(to + n) + load<T>(from + n));
    }

    // The gradient of what a layer knows of an atom, from its own energy; with D also that of the map to the energy.
    void leave(long layer, long i) {
        const T* last = last_of(layer, i);
        memcpy(known.v + i * row.hidden, last, row.hidden * sizeof(T));
        if constexpr (D) {
            const Vec<T> factor = broadcast(loss.energy[begin + i]);
            const F both = known_of(layer) + i * row.hidden;
            T* to = gradient.last() + last_row(layer, i);
            for (long n = 0; n < row.hidden; n += W) {
                store<T>(known.t + i * row.hidden + n, factor * load<T>(last + n));
                store<T>(to + n, load<T>(to + n) + load<T>(both.t + n) + factor * load<T>(both.v + n));
            }
        }
    }

    // A component of the vector of an edge of the atom i.
    N component(long i, int64_t e, int q) const {
        if constexpr (D)
            return {graph.r[3 * e + q], loss.slope[3 * graph.neighbor[e] + q] - loss.slope[3 * (begin + i) + q]};
        else return graph.r[3 * e + q];
    }

    // Directions of n edges of the atom i from e on, and their radial functions: n rows of values. back: also what it takes
    // to go back from them, slopes or, with D, places.
    void look(long layer, long i, int64_t e, long n, bool back) {
        const long interval_length = kRadialPowers * row.channels;
        const T per = T(z.intervals / z.cutoff), most = T(z.intervals);
        const T* table = w.radial + layer * z.intervals * interval_length;
        for (long k = 0; k < n; ++k) {
            const N r[3] = {component(i, e + k, 0), component(i, e + k, 1), component(i, e + k, 2)};
            const N d = square_root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
            directions[k] = direction<T>(r, d);
            const T far = ::value(d) * per, at = far < most ? far : most;  // at the cutoff and beyond: zero
            const long interval = at < most ? static_cast<long>(at) : z.intervals - 1;
            const T s = at - T(interval), *from = table + interval * interval_length;
            T forth = 0;  // how s changes
            if constexpr (D) forth = at < most ? per * d.t : T(0);
            if (D && back) {
                places[k].interval = interval;
                T power = 1;
                for (long p = 0; p < kRadialPowers; ++p) {
                    places[k].change[p] = p ? T(p) * forth * places[k].power[p - 1] : T(0);
                    places[k].power[p] = power;
                    power *= s;
                }
            }
            for (long c = 0; c < row.channels; c += W) {
                Vec<T> a[kRadialPowers];
                for (long p = 0; p < kRadialPowers; ++p) a[p] = load<T>(from + p * row.channels + c);
                store<T>(radial.v + k * row.channels + c,
                         a[0] + s * (a[1] + s * (a[2] + s * (a[3] + s * (a[4] + s * a[5])))));
                if (!D && !back) continue;
                const Vec<T> slope = a[1] + s * (2 * a[2] + s * (3 * a[3] + s * (4 * a[4] + s * (5 * a[5]))));
                if constexpr (D) store<T>(radial.t + k * row.channels + c, forth * slope);
                else store<T>(change + k * row.channels + c, per * slope);
            }
        }
    }

    // Calls of(first edge, how many) for the edges of an atom.
    template <class F>
    void for_each_edges(long i, const F& of) const {
        const int64_t end = graph.row_ptr[begin + i + 1];
        for (int64_t e = graph.row_ptr[begin + i]; e < end; e += kEdges) of(e, end - e < kEdges ? end - e : kEdges);
    }

    void clear(F to, long size) const {
        memset(to.v, 0, size * sizeof(T));
        if constexpr (D) memset(to.t, 0, size * sizeof(T));
    }

    void sum_density(long layer, long i) {
        const F to = density(layer) + i * row.channels;
        const long stride = count * row.channels;
        for (long h = 0; h < kHarmonics; ++h) clear(to + h * stride, row.channels);
        for_each_edges(i, [&](int64_t e, long n) {
            look(layer, i, e, n, false);
            for (long c = 0; c < row.channels; c += W) {
                NV sum[kHarmonics];
                for (long h = 0; h < kHarmonics; ++h) sum[h] = get_vector(to, h * stride + c);
                for (long k = 0; k < n; ++k) {
                    const NV size = get_vector(radial, k * row.channels + c) *
                                    get_vector(m.entry_of(layer, graph.neighbor[e + k]), c);
                    for (long h = 0; h < kHarmonics; ++h) sum[h] += spread(directions[k].harmonic[h]) * size;
                }
                for (long h = 0; h < kHarmonics; ++h) put_vector(to, h * stride + c, sum[h]);
            }
        });
    }

    static bool odd(long h) { return h >= kFirst[1] && h < kFirst[2]; }

    // What the gradients of the densities at both ends of edges say of their radial functions, and of what neighbours see.
    void radial_gradients(long layer, long i) {
        const F own = density(layer) + i * row.channels, to = seen + i * row.channels;
        const long stride = count * row.channels, interval_length = kRadialPowers * row.channels;
        T* table = gradient.radial() + layer * z.intervals * interval_length;
        clear(to, row.channels);
        for_each_edges(i, [&](int64_t e, long n) {
            look(layer, i, e, n, true);
            for (long c = 0; c < row.channels; c += W) {
                NV mine_seen = get_vector(to, c);
                for (long k = 0; k < n; ++k) {
                    const long j = graph.neighbor[e + k], group = j / kAtoms;
                    const F theirs = m.density_of(layer, group) + (j - group * kAtoms) * row.channels;
                    const long step = m.count(group) * row.channels;
                    NV here{}, there{};
                    for (long h = 0; h < kHarmonics; ++h) {
                        const NV y = spread(directions[k].harmonic[h]), x = y * get_vector(theirs, h * step + c);
                        here += y * get_vector(own, h * stride + c);
                        there = odd(h) ? there - x : there + x;
                    }
                    mine_seen += get_vector(radial, k * row.channels + c) * there;
                    const NV of_radial = get_vector(m.entry_of(layer, j), c) * here;
                    T* at = table + places[k].interval * interval_length + c;
                    for (long p = 0; p < kRadialPowers; ++p, at += row.channels)
                        store<T>(at,
                                 load<T>(at) + places[k].change[p] * of_radial.v + places[k].power[p] * of_radial.t);
                }
                put_vector(to, c, mine_seen);
            }
        });
    }

    // An edge is in the densities of both its ends.  With their gradients D it is worth R(d) Y(u) . (f_j D_i +- f_i D_j),
    // minus for the odd l, which is differentiated along r and across.
    template <bool Seen>
    void edges_of(long layer, long i, double* slope) {
        const T *own = density(layer).v + i * row.channels, *mine = m.entry_of(layer, begin + i).v;
        const long stride = count * row.channels;
        T* to = seen.v + i * row.channels;
        if (Seen) memset(to, 0, row.channels * sizeof(T));
        Vec<T> total[3] = {};
        for_each_edges(i, [&](int64_t e, long n) {
            look(layer, i, e, n, true);
            for (long c = 0; c < row.channels; c += W) {
                const Vec<T> f = load<T>(mine + c);
                Vec<T> mine_seen = Seen ? load<T>(to + c) : Vec<T>{};
                for (long k = 0; k < n; ++k) {
                    const Direction<N>& at = directions[k];
                    const long j = graph.neighbor[e + k], group = j / kAtoms;
                    const T* theirs = m.density_of(layer, group).v + (j - group * kAtoms) * row.channels + c;
                    const long step = m.count(group) * row.channels;
                    const Vec<T> g = load<T>(m.entry_of(layer, j).v + c);
                    const Vec<T> value = load<T>(radial.v + k * row.channels + c);
                    Vec<T> both[kHarmonics], back{};
                    for (long h = 0; h < kHarmonics; ++h) {
                        const Vec<T> x = load<T>(theirs + h * step), y = g * load<T>(own + h * stride + c);
                        both[h] = odd(h) ? y - f * x : y + f * x;
                        if (Seen) back = odd(h) ? back - at.harmonic[h] * x : back + at.harmonic[h] * x;
                    }
                    if (Seen) mine_seen += value * back;
                    Vec<T> sum{};
                    for (long h = 0; h < kHarmonics; ++h) sum += at.harmonic[h] * both[h];
                    const auto& [scalar, x, y, w, xx, yy, ww, xy, xw, yw] = both;
                    const Vec<T> side[3] = {x + at.twice[0] * xx + at.mixed[1] * xy + at.mixed[2] * xw,
                                            y + at.twice[1] * yy + at.mixed[0] * xy + at.mixed[2] * yw,
                                            w + at.twice[2] * ww + at.mixed[0] * xw + at.mixed[1] * yw};
                    const Vec<T> across = at.over_d * value;
                    const Vec<T> along = load<T>(change + k * row.channels + c) * sum -
                                         across * (at.u[0] * side[0] + at.u[1] * side[1] + at.u[2] * side[2]);
                    for (long q = 0; q < 3; ++q) total[q] += at.u[q] * along + across * side[q];
                }
                if (Seen) store<T>(to + c, mine_seen);
            }
        });
        for (long q = 0; q < 3; ++q)
            for (long k = 0; k < W; ++k) slope[q] -= total[q][k];
    }

    // Linear maps of the density, [harmonics of l][atoms][maps of l][products] for each l.
    F mapped_of(int l) const { return mapped + kFirstMapped[l] * count * row.products; }

    void map(long layer) {
        const long all = kFirstMap[3] * row.products;
        const T* maps = w.maps + layer * z.channels * all;
        for (int l = 0; l < 3; ++l) {
            const long width = kMaps[l] * row.products, each = kFirst[l + 1] - kFirst[l];
            product(width, each * count, z.channels, density(layer) + kFirst[l] * count * row.channels, row.channels,
                    constant<T, D>(maps + kFirstMap[l] * row.products), all, mapped_of(l), width);
        }
    }

    // The gradient of the density in its place; with D also that of the maps.
    void map_back(long layer) {
        const F to = density(layer);
        const long all = kFirstMap[3] * row.products;
        const T* maps = w.maps_back + layer * all * row.channels;
        for (int l = 0; l < 3; ++l) {
            const long width = kMaps[l] * row.products, each = kFirst[l + 1] - kFirst[l];
            const F at = to + kFirst[l] * count * row.channels;
            if constexpr (D)
                add_derivative(width, z.channels, each * count, at, row.channels, mapped_of(l), width,
                               gradient.maps() + layer * z.channels * all + kFirstMap[l] * row.products, all);
            for (long i = 0; l == 0 && i < count; ++i)
                for (long n = 0; n < row.channels; n += W)
                    put_vector(at, i * row.channels + n, get_vector(feature, i * row.features + n));
            product(row.channels, each * count, width, mapped_of(l), width,
                    constant<T, D>(maps + kFirstMap[l] * row.products * row.channels), row.channels, at, row.channels,
                    l ? Start::kZero : Start::kAdd);
        }
    }

    F mapped_at(int l, long i, long harmonic, long map) const {
        return mapped_of(l) + ((harmonic * count + i) * kMaps[l] + map) * row.products;
    }

    // W products of each map of an atom's density: two of each l, and one vector more.
    struct Mapped {
        NV left, right, a[3], b[3], q[6], p[6], c[3];
    };

    Mapped mapped_from(long i, long n) const {
        const auto at = [&](int l, long harmonic, long map) { return get_vector(mapped_at(l, i, harmonic, map), n); };
        Mapped x;
        x.left = at(0, 0, 0), x.right = at(0, 0, 1);
        for (long h = 0; h < 3; ++h) x.a[h] = at(1, h, 0), x.b[h] = at(1, h, 1), x.c[h] = at(1, h, 2);
        for (long h = 0; h < 6; ++h) x.q[h] = at(2, h, 0), x.p[h] = at(2, h, 1);
        return x;
    }

    // For components such as xy: each is in the matrix twice.
    static NV apart(const NV& x) { return x * broadcast(T(0.70710678118654752440)); }

    // The tensor q, a symmetric matrix, times v.
    static void turn(const NV (&q)[6], const NV (&v)[3], NV (&out)[3]) {
        out[0] = q[0] * v[0] + apart(q[3] * v[1] + q[4] * v[2]);
        out[1] = q[1] * v[1] + apart(q[3] * v[0] + q[5] * v[2]);
        out[2] = q[2] * v[2] + apart(q[4] * v[0] + q[5] * v[1]);
    }

    // Features of an atom, not yet scaled: the isotropic density, the products of each l, and a . q c.
    void invariants(long layer, long i) {
        F to = feature + i * row.features;
        for (long n = 0; n < row.channels; n += W) put_vector(to, n, get_vector(density(layer), i * row.channels + n));
        to = to + row.channels;
        for (long n = 0; n < row.products; n += W) {
            const Mapped x = mapped_from(i, n);
            NV turned[3], vectors{}, tensors{}, bent{};
            turn(x.q, x.c, turned);
            for (long h = 0; h < 3; ++h) vectors += x.a[h] * x.b[h], bent += x.a[h] * turned[h];
            for (long h = 0; h < 6; ++h) tensors += x.q[h] * x.p[h];
            put_vector(to, n, x.left * x.right);
            put_vector(to, row.products + n, vectors);
            put_vector(to, 2 * row.products + n, tensors);
            put_vector(to, 3 * row.products + n, bent);
        }
    }

    // What was mapped becomes its gradient, from that of the features.
    void invariants_back(long i) {
        const F from = feature + (i * row.features + row.channels);
        for (long n = 0; n < row.products; n += W) {
            const Mapped x = mapped_from(i, n);
            NV g[4], forth[3], back[3];
            for (long k = 0; k < 4; ++k) g[k] = get_vector(from, k * row.products + n);
            turn(x.q, x.c, forth);
            turn(x.q, x.a, back);
            const auto put = [&](int l, long harmonic, long map, NV y) {
                put_vector(mapped_at(l, i, harmonic, map), n, y);
            };
            put(0, 0, 0, g[0] * x.right);
            put(0, 0, 1, g[0] * x.left);
            for (long h = 0; h < 3; ++h) {
                put(1, h, 0, g[1] * x.b[h] + g[3] * forth[h]);
                put(1, h, 1, g[1] * x.a[h]);
                put(1, h, 2, g[3] * back[h]);
            }
            const NV(&a)[3] = x.a, (&c)[3] = x.c;
            const NV bent[6] = {a[0] * c[0],
                                a[1] * c[1],
                                a[2] * c[2],
                                apart(a[0] * c[1] + a[1] * c[0]),
                                apart(a[0] * c[2] + a[2] * c[0]),
                                apart(a[1] * c[2] + a[2] * c[1])};
            for (long h = 0; h < 6; ++h) {
                put(2, h, 0, g[2] * x.p[h] + g[3] * bent[h]);
                put(2, h, 1, g[2] * x.q[h]);
            }
        }
    }

    long scale_row(long layer, long i) const { return (layer * z.species + species[begin + i]) * row.features; }

    // By the elements' scales, forth and back.
    void scale(long layer, F from, F to) {
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < row.features; n += W)
                put_vector(to, i * row.features + n,
                           get_vector(from, i * row.features + n) * load<T>(w.scale + scale_row(layer, i) + n));
    }

    // Those of the scales, from features and the gradients of the scaled ones.
    void scale_gradients(long layer) {
        for (long i = 0; i < count; ++i) {
            T* to = gradient.scale() + scale_row(layer, i);
            for (long n = 0; n < row.features; n += W) {
                const NV both = get_vector(feature, i * row.features + n) * get_vector(scaled, i * row.features + n);
                store<T>(to + n, load<T>(to + n) + both.t);
            }
        }
    }

    const WindowPotentialSizes& z;
    const WindowPotentialWeights<T>& w;
    const AttentionGraph<T>& graph;
    const int64_t* species;
    const WindowRoles roles;
    const WindowMemory<T, D>& m;
    const WindowLoss<T> loss;
    const WindowRows<T> row;
    WindowPotentialGradients<T> gradient;  // of the thread, with D
    long begin = 0, count = 0;             // of the group
    Direction<N> directions[kEdges];
    Place<T> places[D ? kEdges : 1];
    Scratch<T> scratch;
    F radial;           // [edges][channels]
    T* change;          // their slopes
    F mapped, feature;  // [atoms of the group][.], or their gradients
    F scaled;           // features times scales, or the gradient of that
    F known, other;     // hidden layers, or their gradients
    F last_slope;       // of the last layer, as WindowMemory has those of the others
    F seen;             // the gradient of what neighbours see
};

template <class T>
void window_potential(const WindowPotentialSizes& z, const WindowPotentialWeights<T>& weights,
                      const SharedGraph<T>& graph, const int64_t* species, const WindowRoles& roles, T* energy,
                      double* slope, int threads) {
    const WindowMemory<T, false> memory(z, graph.atoms);
    if (slope) memset(slope, 0, 3 * graph.atoms * sizeof(double));
    const long groups = (graph.own() + kAtoms - 1) / kAtoms;  // the last may have ghosts, for nothing
    const int64_t* order = nullptr;
    long outer = groups;
    if (graph.domain) outer = graph.domain->outer_first(graph.row_ptr, graph.neighbor, kAtoms, order);
    parallel(threads, [&](auto& guard) {
        std::optional<WindowLayers<T, false>> layers;
        guard([&] { layers.emplace(z, weights, graph, species, roles, memory); });
        const auto each = [&](long from, long to, const auto& work) {
#pragma omp for
            for (long g = from; g < to; ++g) guard([&] { work(order ? order[g] : g); });
        };
        // On all groups. What others wait for comes first, and is under way while the rest is worked on. The thread that
        // was there before the team speaks with other processes.
        const auto pass = [&](const auto& work, std::optional<WindowNews<T>> news) {
            each(0, outer, work);
            if (!graph.domain) return;
#pragma omp master
            if (news) guard([&] { news->tell(*graph.domain); });
            each(outer, groups, work);
#pragma omp master
            if (news) guard([&] { news->hear(*graph.domain); });
#pragma omp barrier
        };
#pragma omp for
        for (long g = 0; g < memory.groups; ++g) guard([&] { layers->enter(g); });
        const long last = z.layers - 1;
        for (long k = 0; k < last; ++k)
            pass([&](long g) { layers->forward(k, g, energy); }, WindowNews<T>::seen(memory, k + 1));
        if (!slope) {
            pass([&](long g) { layers->forward(last, g, energy); }, {});
            return;
        }
        pass([&](long g) { layers->forward(last, g, energy), layers->backward(last, g); },
             WindowNews<T>::densities(memory, last));
        for (long k = last; k > 0; --k)
            pass([&](long g) { layers->edges(k, g, slope), layers->backward(k - 1, g); },
                 WindowNews<T>::densities(memory, k - 1));
        pass([&](long g) { layers->edges(0, g, slope); }, {});
    });
}

template <class T>
void window_gradients(const WindowPotentialSizes& z, const WindowPotentialWeights<T>& weights,
                      const AttentionGraph<T>& graph, const int64_t* species, const WindowRoles& roles,
                      const T* energy_gradient, const T* slope_gradient, const WindowPotentialGradients<T>& gradient,
                      int threads) {
    const WindowMemory<T, true> memory(z, graph.atoms);
    if (threads > memory.groups) threads = memory.groups > 1 ? static_cast<int>(memory.groups) : 1;
    const auto sums = std::make_unique<std::unique_ptr<WindowSums<T>>[]>(threads);
    int team = 1;  // the threads that there really are
    parallel(threads, [&](auto& guard) {
        std::optional<WindowLayers<T, true>> layers;
        guard([&] {
            auto& own = sums[omp_get_thread_num()];
            own = std::make_unique<WindowSums<T>>(z);
            layers.emplace(z, weights, graph, species, roles, memory, WindowLoss<T>{energy_gradient, slope_gradient},
                           own.get());
        });
#pragma omp single
        team = omp_get_num_threads();
        // which thread has which groups, and so the order of sums, depends on the number of threads alone
        const auto pass = [&](const auto& work) {
#pragma omp for schedule(static)
            for (long g = 0; g < memory.groups; ++g) guard([&] { work(g); });
        };
        pass([&](long g) { layers->enter(g); });
        const long last = z.layers - 1;
        for (long k = 0; k < last; ++k) pass([&](long g) { layers->forward(k, g, nullptr); });
        pass([&](long g) { layers->forward(last, g, nullptr), layers->backward(last, g); });
        for (long k = last; k > 0; --k) pass([&](long g) { layers->edge_gradients(k, g), layers->backward(k - 1, g); });
        pass([&](long g) { layers->edge_gradients(0, g); });
    });
    long counts[kWindowWeights];
    count_weights<T>(z, counts);
    for (int k = 0; k < kWindowWeights; ++k)
        for (long n = 0; n < counts[k]; ++n) {
            T total = 0;
            for (int t = 0; t < team; ++t) total += sums[t]->of.weights[k][n];
            gradient.weights[k][n] = total;
        }
}

}  // namespace
