// Atomic energies and slopes for one instruction set: the arithmetic of DensityNetwork in
// mdtrajnet_fast/model/density_network.py, which says what it computes.  A dipole's charges are such "energies".
//
// Atoms are worked on in groups, so that their rows make matrices; no row depends on another.  Nothing is scattered:
// where an atom sees another, this one sees it too, along -r.  So an atom gathers from its own edges what the densities
// at both ends say of its place, and no result depends on the number of threads or on what else is in the graph.
#pragma once

#include "cpu/domain.hpp"
#include "potential_forward.hpp"

namespace {

using mdtrajnet::kRadialPowers;
using mdtrajnet::WindowPotentialSizes;
using mdtrajnet::WindowPotentialWeights;

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

// What threads share: of each layer and each atom what its gradient needs.
template <class T>
struct WindowMemory {
    const WindowRows<T> row;
    const long channels, atoms, groups;
    Buffer<T> density;  // [layers][groups][harmonics][atoms of the group][channels]; at last its gradient
    Buffer<T> entry;    // [layers][atoms][entry]; the bias is followed by silu's slope there, and that by the gradient
    Buffer<T> slope;    // [layers - 1][atoms][hidden]: silu's in the second hidden layer; nobody comes back to the last

    WindowMemory(const WindowPotentialSizes& z, long count)
        : row(z), channels(z.channels), atoms(count), groups((count + kAtoms - 1) / kAtoms) {
        density.resize(z.layers * groups * kAtoms * kHarmonics * row.channels, false);
        entry.resize(z.layers * atoms * row.entry, false);
        slope.resize((z.layers - 1) * atoms * row.hidden, false);
    }

    long count(long group) const { return atoms - group * kAtoms < kAtoms ? atoms - group * kAtoms : kAtoms; }
    T* density_of(long layer, long group) const {
        return density.data() + (layer * groups + group) * kAtoms * kHarmonics * row.channels;
    }
    T* entry_of(long layer, long atom) const { return entry.data() + (layer * atoms + atom) * row.entry; }
    T* slope_of(long layer, long atom) const { return slope.data() + (layer * atoms + atom) * row.hidden; }
};

// Rows [channels] that ghosts need of their owners; what pads them is not sent.
template <class T>
class WindowNews {
  public:
    // What neighbours see in a layer.
    static WindowNews seen(const WindowMemory<T>& memory, long layer) {
        return {memory, layer, 1, [](void* context, int64_t atom, int) -> void* {
                    const auto& of = *static_cast<WindowNews*>(context);
                    return of.m.entry_of(of.layer, atom);
                }};
    }
    // The gradients of a layer's densities.
    static WindowNews densities(const WindowMemory<T>& memory, long layer) {
        return {memory, layer, kHarmonics, [](void* context, int64_t atom, int harmonic) -> void* {
                    const auto& of = *static_cast<WindowNews*>(context);
                    const long group = atom / kAtoms, place = harmonic * of.m.count(group) + atom - group * kAtoms;
                    return of.m.density_of(of.layer, group) + place * of.m.row.channels;
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
    WindowNews(const WindowMemory<T>& m, long layer, int rows, mdtrajnet::Domain::At at)
        : m(m), layer(layer), rows(rows), at(at) {
        for (int64_t& each : bytes) each = m.channels * sizeof(T);
    }

    const WindowMemory<T>& m;
    const long layer;
    const int rows;
    const mdtrajnet::Domain::At at;
    int64_t bytes[kHarmonics];
};

// A direction and what densities have of it.
template <class T>
struct Direction {
    T u[3], over_d;
    T harmonic[kHarmonics];
    T twice[3], mixed[3];  // of the harmonics' slopes: 2 u and sqrt(2) u
};

template <class T>
Direction<T> direction(const T* r, T d) {
    const T third = T(1.0 / 3), mixed = T(1.41421356237309504880);
    const T over_d = 1 / d, x = r[0] * over_d, y = r[1] * over_d, z = r[2] * over_d;
    return {{x, y, z},
            over_d,
            {T(1), x, y, z, x * x - third, y * y - third, z * z - third, mixed * x * y, mixed * x * z, mixed * y * z},
            {2 * x, 2 * y, 2 * z},
            {mixed * x, mixed * y, mixed * z}};
}

// Value of silu, and its slope.
template <class T>
Vec<T> silu(Vec<T> x, Vec<T>& slope) {
    const Vec<T> s = T(1) / (exponential(-x) + T(1));
    slope = s * (x * (T(1) - s) + T(1));
    return x * s;
}

// A thread's way through the layers, group by group.
template <class T>
class WindowLayers {
  public:
    WindowLayers(const WindowPotentialSizes& z, const WindowPotentialWeights<T>& weights,
                 const AttentionGraph<T>& graph, const int64_t* species, int role, const WindowMemory<T>& memory)
        : z(z), w(weights), graph(graph), species(species), role(role), m(memory), row(memory.row) {
        radial.resize(2 * kEdges * row.channels, false);
        mapped.resize(kAtoms * kFirstMapped[3] * row.products, false);
        feature.resize(kAtoms * row.features, false);
        known.resize(kAtoms * row.hidden, false);
        other.resize(kAtoms * row.hidden, false);
        last_slope.resize(kAtoms * row.hidden, false);
        seen.resize(kAtoms * row.channels, false);
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
        scale(layer);
        T* to = m.entry_of(layer, begin) + row.channels;
        const T* first = w.first + layer * row.features * row.hidden;
        multiply<T>(row.hidden, {count, row.features, feature.data(), row.features, first, row.hidden, to, row.entry,
                                 nullptr, Start::kAdd});
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < row.hidden; n += W) {
                Vec<T> slope;
                store<T>(known.data() + i * row.hidden + n, silu<T>(load<T>(to + i * row.entry + n), slope));
                store<T>(to + i * row.entry + n, slope);
            }
        const T *second = w.second + layer * z.hidden * row.hidden, *bias = w.second_bias + layer * row.hidden;
        multiply<T>(row.hidden, {count, z.hidden, known.data(), row.hidden, second, row.hidden, other.data(),
                                 row.hidden, bias, Start::kBias});
        const T* last = last_of(layer);
        T* slopes = slopes_of(layer);
        for (long i = 0; i < count; ++i) {
            Vec<T> sum{};
            for (long n = 0; n < row.hidden; n += W) {
                const long at = i * row.hidden + n;
                Vec<T> slope;
                const Vec<T> both = load<T>(known.data() + at) + silu<T>(load<T>(other.data() + at), slope);
                sum += both * load<T>(last + n);
                store<T>(known.data() + at, both);
                store<T>(slopes + at, slope);
            }
            if (energy) energy[begin + i] = (layer ? energy[begin + i] : T(0)) + lane_sum<T>(sum);
        }
        if (layer + 1 == z.layers) return;
        for (long i = 0; i < count; ++i) copy_element(layer + 1, i);
        const T* onward = w.onward + layer * z.hidden * row.entry;
        multiply<T>(row.entry, {count, z.hidden, known.data(), row.hidden, onward, row.entry,
                                m.entry_of(layer + 1, begin), row.entry, nullptr, Start::kAdd});
    }

    // From the energy back to the density of a layer: of the last one right after `forward`, of others after `edges` of
    // the next.
    void backward(long layer, long group) {
        take(group);
        const bool is_last = layer + 1 == z.layers;
        for (long i = 0; i < count; ++i) memcpy(known.data() + i * row.hidden, last_of(layer), row.hidden * sizeof(T));
        if (!is_last) {
            const T* onward = w.onward_back + layer * row.entry * row.hidden;
            multiply<T>(row.hidden, {count, z.channels, seen.data(), row.channels, onward, row.hidden, known.data(),
                                     row.hidden, nullptr, Start::kAdd});
            onward += row.channels * row.hidden;
            const T* bias = m.entry_of(layer + 1, begin) + row.channels;
            multiply<T>(row.hidden, {count, z.hidden, bias, row.entry, onward, row.hidden, known.data(), row.hidden,
                                     nullptr, Start::kAdd});
        }
        const T* slopes = slopes_of(layer);
        for (long n = 0; n < count * row.hidden; n += W)
            store<T>(other.data() + n, load<T>(known.data() + n) * load<T>(slopes + n));
        const T* second = w.second_back + layer * z.hidden * row.hidden;
        multiply<T>(row.hidden, {count, z.hidden, other.data(), row.hidden, second, row.hidden, known.data(),
                                 row.hidden, nullptr, Start::kAdd});
        T* to = m.entry_of(layer, begin) + row.channels;
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < row.hidden; n += W) {
                T* at = to + i * row.entry + n;
                store<T>(at, load<T>(at) * load<T>(known.data() + i * row.hidden + n));
            }
        const T* first = w.first_back + layer * z.hidden * row.features;
        multiply<T>(row.features, {count, z.hidden, to, row.entry, first, row.features, feature.data(), row.features,
                                   nullptr, Start::kZero});
        scale(layer);
        if (!is_last) map(layer);  // once more: kept for all atoms, it would be the most of the memory
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

  private:
    static constexpr long W = kLanes<T>;

    void take(long group) {
        begin = group * kAtoms;
        count = m.count(group);
    }

    T* density(long layer) const { return m.density_of(layer, begin / kAtoms); }
    T* slopes_of(long layer) { return layer + 1 == z.layers ? last_slope.data() : m.slope_of(layer, begin); }
    const T* last_of(long layer) const { return w.last + (role * z.layers + layer) * row.hidden; }

    void copy_element(long layer, long i) {
        const T* from = w.element + ((role * z.layers + layer) * z.species + species[begin + i]) * row.entry;
        memcpy(m.entry_of(layer, begin + i), from, row.entry * sizeof(T));
    }

    // Directions of n edges from e on, and their radial functions: n rows of values, then of slopes if they are wanted.
    void look(long layer, int64_t e, long n, bool slopes) {
        const long interval_length = kRadialPowers * row.channels;
        const T per = T(z.intervals / z.cutoff), most = T(z.intervals);
        const T* table = w.radial + layer * z.intervals * interval_length;
        for (long k = 0; k < n; ++k) {
            const T* r = graph.r + 3 * (e + k);
            const T d = square_root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
            directions[k] = direction(r, d);
            const T at = d * per < most ? d * per : most;  // at the cutoff and beyond: zero
            const long interval = at < most ? static_cast<long>(at) : z.intervals - 1;
            const T s = at - T(interval), *from = table + interval * interval_length;
            T *value = radial.data() + k * row.channels, *slope = radial.data() + (n + k) * row.channels;
            for (long c = 0; c < row.channels; c += W) {
                Vec<T> a[kRadialPowers];
                for (long p = 0; p < kRadialPowers; ++p) a[p] = load<T>(from + p * row.channels + c);
                store<T>(value + c, a[0] + s * (a[1] + s * (a[2] + s * (a[3] + s * (a[4] + s * a[5])))));
                if (slopes)
                    store<T>(slope + c,
                             per * (a[1] + s * (2 * a[2] + s * (3 * a[3] + s * (4 * a[4] + s * (5 * a[5]))))));
            }
        }
    }

    // Calls of(first edge, how many) for the edges of an atom.
    template <class F>
    void for_each_edges(long i, const F& of) const {
        const int64_t end = graph.row_ptr[begin + i + 1];
        for (int64_t e = graph.row_ptr[begin + i]; e < end; e += kEdges) of(e, end - e < kEdges ? end - e : kEdges);
    }

    void sum_density(long layer, long i) {
        T* to = density(layer) + i * row.channels;
        const long stride = count * row.channels;
        for (long h = 0; h < kHarmonics; ++h) memset(to + h * stride, 0, row.channels * sizeof(T));
        for_each_edges(i, [&](int64_t e, long n) {
            look(layer, e, n, false);
            for (long c = 0; c < row.channels; c += W) {
                Vec<T> sum[kHarmonics];
                for (long h = 0; h < kHarmonics; ++h) sum[h] = load<T>(to + h * stride + c);
                for (long k = 0; k < n; ++k) {
                    const Vec<T> size = load<T>(radial.data() + k * row.channels + c) *
                                        load<T>(m.entry_of(layer, graph.neighbor[e + k]) + c);
                    for (long h = 0; h < kHarmonics; ++h) sum[h] += directions[k].harmonic[h] * size;
                }
                for (long h = 0; h < kHarmonics; ++h) store<T>(to + h * stride + c, sum[h]);
            }
        });
    }

    // An edge is in the densities of both its ends.  With their gradients D it is worth R(d) Y(u) . (f_j D_i +- f_i D_j),
    // minus for the odd l, which is differentiated along r and across.
    template <bool Seen>
    void edges_of(long layer, long i, double* slope) {
        const T *own = density(layer) + i * row.channels, *mine = m.entry_of(layer, begin + i);
        const long stride = count * row.channels;
        T* to = seen.data() + i * row.channels;
        if (Seen) memset(to, 0, row.channels * sizeof(T));
        Vec<T> total[3] = {};
        for_each_edges(i, [&](int64_t e, long n) {
            look(layer, e, n, true);
            for (long c = 0; c < row.channels; c += W) {
                const Vec<T> f = load<T>(mine + c);
                Vec<T> mine_seen = Seen ? load<T>(to + c) : Vec<T>{};
                for (long k = 0; k < n; ++k) {
                    const Direction<T>& at = directions[k];
                    const long j = graph.neighbor[e + k], group = j / kAtoms;
                    const T* theirs = m.density_of(layer, group) + (j - group * kAtoms) * row.channels + c;
                    const long step = m.count(group) * row.channels;
                    const Vec<T> g = load<T>(m.entry_of(layer, j) + c);
                    const Vec<T> value = load<T>(radial.data() + k * row.channels + c),
                                 change = load<T>(radial.data() + (n + k) * row.channels + c);
                    Vec<T> both[kHarmonics], back{};
                    for (long h = 0; h < kHarmonics; ++h) {
                        const Vec<T> x = load<T>(theirs + h * step), y = g * load<T>(own + h * stride + c);
                        const bool odd = h >= kFirst[1] && h < kFirst[2];
                        both[h] = odd ? y - f * x : y + f * x;
                        if (Seen) back = odd ? back - at.harmonic[h] * x : back + at.harmonic[h] * x;
                    }
                    if (Seen) mine_seen += value * back;
                    Vec<T> sum{};
                    for (long h = 0; h < kHarmonics; ++h) sum += at.harmonic[h] * both[h];
                    const auto& [scalar, x, y, w, xx, yy, ww, xy, xw, yw] = both;
                    const Vec<T> side[3] = {x + at.twice[0] * xx + at.mixed[1] * xy + at.mixed[2] * xw,
                                            y + at.twice[1] * yy + at.mixed[0] * xy + at.mixed[2] * yw,
                                            w + at.twice[2] * ww + at.mixed[0] * xw + at.mixed[1] * yw};
                    const Vec<T> across = at.over_d * value;
                    const Vec<T> along =
                        change * sum - across * (at.u[0] * side[0] + at.u[1] * side[1] + at.u[2] * side[2]);
                    for (long q = 0; q < 3; ++q) total[q] += at.u[q] * along + across * side[q];
                }
                if (Seen) store<T>(to + c, mine_seen);
            }
        });
        for (long q = 0; q < 3; ++q)
            for (long k = 0; k < W; ++k) slope[q] -= total[q][k];
    }

    // Linear maps of the density, [harmonics of l][atoms][maps of l][products] for each l.
    T* mapped_of(int l) const { return mapped.data() + kFirstMapped[l] * count * row.products; }

    void map(long layer) {
        const long all = kFirstMap[3] * row.products;
        const T *from = density(layer), *maps = w.maps + layer * z.channels * all;
        for (int l = 0; l < 3; ++l) {
            const long width = kMaps[l] * row.products, each = kFirst[l + 1] - kFirst[l];
            multiply<T>(width, {each * count, z.channels, from + kFirst[l] * count * row.channels, row.channels,
                                maps + kFirstMap[l] * row.products, all, mapped_of(l), width, nullptr, Start::kZero});
        }
    }

    // The gradient of the density in its place.
    void map_back(long layer) {
        T* to = density(layer);
        const T* maps = w.maps_back + layer * kFirstMap[3] * row.products * row.channels;
        for (long i = 0; i < count; ++i)
            memcpy(to + i * row.channels, feature.data() + i * row.features, row.channels * sizeof(T));
        for (int l = 0; l < 3; ++l) {
            const long width = kMaps[l] * row.products, each = kFirst[l + 1] - kFirst[l];
            multiply<T>(row.channels,
                        {each * count, width, mapped_of(l), width, maps + kFirstMap[l] * row.products * row.channels,
                         row.channels, to + kFirst[l] * count * row.channels, row.channels, nullptr,
                         l ? Start::kZero : Start::kAdd});
        }
    }

    T* mapped_at(int l, long i, long harmonic, long map) const {
        return mapped_of(l) + ((harmonic * count + i) * kMaps[l] + map) * row.products;
    }

    // W products of each map of an atom's density: two of each l, and one vector more.
    struct Mapped {
        Vec<T> left, right, a[3], b[3], q[6], p[6], c[3];
    };

    Mapped mapped_from(long i, long n) const {
        const auto at = [&](int l, long harmonic, long map) { return load<T>(mapped_at(l, i, harmonic, map) + n); };
        Mapped x;
        x.left = at(0, 0, 0), x.right = at(0, 0, 1);
        for (long h = 0; h < 3; ++h) x.a[h] = at(1, h, 0), x.b[h] = at(1, h, 1), x.c[h] = at(1, h, 2);
        for (long h = 0; h < 6; ++h) x.q[h] = at(2, h, 0), x.p[h] = at(2, h, 1);
        return x;
    }

    static constexpr T kApart = T(0.70710678118654752440);  // for components such as xy: each is in the matrix twice

    // The tensor q, a symmetric matrix, times v.
    static void turn(const Vec<T> (&q)[6], const Vec<T> (&v)[3], Vec<T> (&out)[3]) {
        out[0] = q[0] * v[0] + kApart * (q[3] * v[1] + q[4] * v[2]);
        out[1] = q[1] * v[1] + kApart * (q[3] * v[0] + q[5] * v[2]);
        out[2] = q[2] * v[2] + kApart * (q[4] * v[0] + q[5] * v[1]);
    }

    // Features of an atom: the isotropic density, the products of each l, and a . q c.
    void invariants(long layer, long i) {
        T* to = feature.data() + i * row.features;
        memcpy(to, density(layer) + i * row.channels, row.channels * sizeof(T));
        to += row.channels;
        for (long n = 0; n < row.products; n += W) {
            const Mapped x = mapped_from(i, n);
            Vec<T> turned[3], vectors{}, tensors{}, bent{};
            turn(x.q, x.c, turned);
            for (long h = 0; h < 3; ++h) vectors += x.a[h] * x.b[h], bent += x.a[h] * turned[h];
            for (long h = 0; h < 6; ++h) tensors += x.q[h] * x.p[h];
            store<T>(to + n, x.left * x.right);
            store<T>(to + row.products + n, vectors);
            store<T>(to + 2 * row.products + n, tensors);
            store<T>(to + 3 * row.products + n, bent);
        }
    }

    // What was mapped becomes its gradient, from that of the features.
    void invariants_back(long i) {
        const T* from = feature.data() + i * row.features + row.channels;
        for (long n = 0; n < row.products; n += W) {
            const Mapped x = mapped_from(i, n);
            Vec<T> g[4], forth[3], back[3];
            for (long k = 0; k < 4; ++k) g[k] = load<T>(from + k * row.products + n);
            turn(x.q, x.c, forth);
            turn(x.q, x.a, back);
            const auto put = [&](int l, long harmonic, long map, Vec<T> y) {
                store<T>(mapped_at(l, i, harmonic, map) + n, y);
            };
            put(0, 0, 0, g[0] * x.right);
            put(0, 0, 1, g[0] * x.left);
            for (long h = 0; h < 3; ++h) {
                put(1, h, 0, g[1] * x.b[h] + g[3] * forth[h]);
                put(1, h, 1, g[1] * x.a[h]);
                put(1, h, 2, g[3] * back[h]);
            }
            const Vec<T>(&a)[3] = x.a, (&c)[3] = x.c;
            const Vec<T> bent[6] = {a[0] * c[0],
                                    a[1] * c[1],
                                    a[2] * c[2],
                                    kApart * (a[0] * c[1] + a[1] * c[0]),
                                    kApart * (a[0] * c[2] + a[2] * c[0]),
                                    kApart * (a[1] * c[2] + a[2] * c[1])};
            for (long h = 0; h < 6; ++h) {
                put(2, h, 0, g[2] * x.p[h] + g[3] * bent[h]);
                put(2, h, 1, g[2] * x.q[h]);
            }
        }
    }

    // By the elements' scales, forth and back.
    void scale(long layer) {
        for (long i = 0; i < count; ++i) {
            const T* factor = w.scale + (layer * z.species + species[begin + i]) * row.features;
            T* to = feature.data() + i * row.features;
            for (long n = 0; n < row.features; n += W) store<T>(to + n, load<T>(to + n) * load<T>(factor + n));
        }
    }

    const WindowPotentialSizes& z;
    const WindowPotentialWeights<T>& w;
    const AttentionGraph<T>& graph;
    const int64_t* species;
    const int role;
    const WindowMemory<T>& m;
    const WindowRows<T> row;
    long begin = 0, count = 0;  // of the group
    Direction<T> directions[kEdges];
    Buffer<T> radial;           // [edges][channels]: values, then slopes
    Buffer<T> mapped, feature;  // [atoms of the group][.], or their gradients
    Buffer<T> known, other;     // hidden layers, or their gradients
    Buffer<T> last_slope;       // of the last layer, as WindowMemory has those of the others
    Buffer<T> seen;             // the gradient of what neighbours see
};

template <class T>
void window_potential(const WindowPotentialSizes& z, const WindowPotentialWeights<T>& weights,
                      const SharedGraph<T>& graph, const int64_t* species, int role, T* energy, double* slope,
                      int threads) {
    const WindowMemory<T> memory(z, graph.atoms);
    if (slope) memset(slope, 0, 3 * graph.atoms * sizeof(double));
    const long groups = (graph.own() + kAtoms - 1) / kAtoms;  // the last may have ghosts, for nothing
    const int64_t* order = nullptr;
    long outer = groups;
    if (graph.domain) outer = graph.domain->outer_first(graph.row_ptr, graph.neighbor, kAtoms, order);
    parallel(threads, [&](auto& guard) {
        std::optional<WindowLayers<T>> layers;
        guard([&] { layers.emplace(z, weights, graph, species, role, memory); });
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

}  // namespace
