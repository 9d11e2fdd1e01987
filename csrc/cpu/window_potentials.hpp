// Window potentials on the CPU: the arithmetic of mdtrajnet_fast/model/window_potentials.py, which says what it does, and
// their slopes.
//
// Neighbour lists are symmetric: what the density around a neighbour says of an edge is found from the edge the other way
// round, with the harmonics' parity, so that every atom sums up its own slope and no result depends on the others' order.
// Layers go through the atoms in groups, whose rows make matrices; no row depends on another.
#pragma once

#include "potential_forward.hpp"

namespace {

using mdtrajnet::WindowPotentialLayer;
using mdtrajnet::WindowPotentialSizes;

constexpr long kMapsOf[] = {2, 3, 2};  // of each l; the last of l = 1 is the second vector of the triple product
constexpr long kMaps = 7;
constexpr long kMapped = 1 * 2 + 3 * 3 + 6 * 2;  // rows of products for an atom

// Lengths of rows in whole vectors.
template <class T>
struct RowLengths {
    long channels, products, hidden, features;

    explicit RowLengths(const WindowPotentialSizes& z)
        : channels(row_length<T>(z.channels)), products(row_length<T>(z.products)), hidden(row_length<T>(z.hidden)),
          features(channels + 4 * products) {}
};

// What a layer leaves for the way back; of all atoms, in groups.
template <class T>
struct LayerTrace {
    Buffer<T> mapped;                  // [groups][harmonics of l x atoms][maps of l x products], l by l
    Buffer<T> seen;                    // [atoms][channels], what the neighbours of an atom see of it
    Buffer<T> first_slope, last_slope; // [atoms][hidden], of the two silu
};

// The edge to a neighbour.
template <class T>
struct Edge {
    T d, x, y, z;

    explicit Edge(const T* r)
        : d(square_root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2])), x(r[0] / d), y(r[1] / d), z(r[2] / d) {}

    void harmonics(T (&to)[kHarmonics]) const {
        const T third = T(1.0 / 3), mixed = T(1.41421356237309504880);
        const T all[kHarmonics] = {T(1),          x,         y,         z,         x * x - third, y * y - third,
                                   z * z - third, mixed * x * y, mixed * x * z, mixed * y * z};
        for (long k = 0; k < kHarmonics; ++k) to[k] = all[k];
    }
};

// Gaussians of a distance times the envelope, and their slopes; in whole vectors.
template <class T>
void radial_basis(const WindowPotentialSizes& z, T d, T* value, T* slope) {
    constexpr long W = kLanes<T>;
    const T cutoff = T(z.cutoff), step = cutoff / T(z.radial - 1);
    const T size = envelope(d, cutoff) / T(1.12), change = envelope_slope(d, cutoff) / T(1.12);
    for (long n = 0; n < z.radial; n += W) {
        Vec<T> away;
        for (long k = 0; k < W; ++k) away[k] = d / step - T(n + k);
        const Vec<T> gaussian = exponential(-away * away);
        store<T>(value + n, size * gaussian);
        if (slope) store<T>(slope + n, (change - size * T(2) / step * away) * gaussian);
    }
}

// Memory of one thread.
template <class T>
struct WindowScratch {
    Buffer<T> basis, radial, density, mapped, features, rows, other;

    WindowScratch(const WindowPotentialSizes& z, const RowLengths<T>& n) {
        basis.resize(2 * row_length<T>(z.radial));
        radial.resize(2 * n.channels);
        density.resize(kAtoms * kHarmonics * n.channels);
        features.resize(kAtoms * n.features);
        rows.resize(kAtoms * n.hidden);
        mapped.resize(kAtoms * kMapped * n.products);
        other.resize(kAtoms * n.hidden);
    }
};

template <class T>
class WindowPotential {
  public:
    WindowPotential(const WindowPotentialSizes& z, const WindowPotentialLayer<T>* layers, const AttentionGraph<T>& graph,
                    const int64_t* species, int role)
        : z_(z), layers_(layers), graph_(graph), species_(species), role_(role), n_(z),
          groups_((graph.atoms + kAtoms - 1) / kAtoms), traces_(new LayerTrace<T>[z.layers]) {
        known_.resize(groups_ * kAtoms * n_.hidden, false);
        for (long k = 0; k < z.layers; ++k) traces_[k].seen.resize(groups_ * kAtoms * n_.channels, false);
    }
    ~WindowPotential() { delete[] traces_; }
    WindowPotential(const WindowPotential&) = delete;

    // energy: [atoms] eV, or null. slope: [atoms][3] eV/Å, or null.
    void run(T* energy, double* slope, int threads) {
        const bool back = slope != nullptr;
        for (long k = 0; back && k < z_.layers; ++k) {
            LayerTrace<T>& trace = traces_[k];
            trace.mapped.resize(groups_ * kAtoms * kMapped * n_.products, false);
            trace.first_slope.resize(groups_ * kAtoms * n_.hidden, false);
            trace.last_slope.resize(groups_ * kAtoms * n_.hidden, false);
        }
        if (back) {
            density_slope_.resize(groups_ * kAtoms * kHarmonics * n_.channels, false);
            known_slope_.resize(groups_ * kAtoms * n_.hidden, false);
        }
        parallel(threads, [&] {
            const WindowScratch<T> m(z_, n_);
            for (long k = 0; k < z_.layers; ++k) {
                each_group([&](int64_t begin, long count) { look(k, begin, count); });
                each_group([&](int64_t begin, long count) { forward(k, begin, count, back, energy, m); });
            }
            for (long k = z_.layers - 1; back && k >= 0; --k) {
                each_group([&](int64_t begin, long count) { backward(k, begin, count, m); });
                each_group([&](int64_t begin, long count) { edges(k, begin, count, slope, m); });
            }
        });
    }

  private:
    // Calls work(first atom, atoms) for the groups, shared by the threads of a team; then they wait for each other.
    template <class Work>
    void each_group(const Work& work) const {
#pragma omp for
        for (int64_t g = 0; g < groups_; ++g) {
            const int64_t begin = g * kAtoms;
            work(begin, graph_.atoms - begin < kAtoms ? static_cast<long>(graph_.atoms - begin) : kAtoms);
        }
    }

    // Where the part of l begins, in densities [harmonics][channels] and what they are mapped to, of a group.
    long density_at(int l) const { return kAtoms * kFirst[l] * n_.channels; }
    long mapped_at(int l) const {
        constexpr long kBefore[] = {0, 2, 11};
        return kAtoms * kBefore[l] * n_.products;
    }
    T* known(int64_t atom) { return known_.data() + atom * n_.hidden; }
    T* known_slope(int64_t atom) { return known_slope_.data() + atom * n_.hidden; }
    const T* seen(long k, int64_t atom) const { return traces_[k].seen.data() + atom * n_.channels; }
    T* mapped(long k, int64_t begin) const { return traces_[k].mapped.data() + begin * kMapped * n_.products; }

    // The slopes of the density around an atom, a row for each harmonic.
    struct Rows {
        const T* of[kHarmonics];
    };
    Rows density_slopes(int64_t atom) const {
        const T* group = density_slope_.data() + atom / kAtoms * kAtoms * kHarmonics * n_.channels;
        const long i = static_cast<long>(atom % kAtoms);
        Rows rows;
        for (int l = 0; l < 3; ++l) {
            const long each = kFirst[l + 1] - kFirst[l];
            for (long h = 0; h < each; ++h)
                rows.of[kFirst[l] + h] = group + density_at(l) + (i * each + h) * n_.channels;
        }
        return rows;
    }

    // What neighbours see of the atoms: their element and what the layer before knows of them.
    void look(long k, int64_t begin, long count) {
        const WindowPotentialLayer<T>& w = layers_[k];
        T* to = traces_[k].seen.data() + begin * n_.channels;
        for (long i = 0; i < count; ++i)
            memcpy(to + i * n_.channels, w.neighbor_element + species_[begin + i] * n_.channels, n_.channels * sizeof(T));
        if (k)
            multiply<T>(n_.channels, {count, z_.hidden, known(begin), n_.hidden, w.neighbor, n_.channels, to, n_.channels,
                                      nullptr, Start::kAdd});
    }

    // R_c(d), and its slope where there is room for it.
    void radial(const WindowPotentialLayer<T>& w, T d, bool slope, const WindowScratch<T>& m) const {
        constexpr long W = kLanes<T>;
        T* basis = m.basis.data();
        const long width = row_length<T>(z_.radial), C = n_.channels;
        radial_basis(z_, d, basis, slope ? basis + width : nullptr);
        for (long c = 0; c < C; c += W) {
            Vec<T> value{}, change{};
            for (long n = 0; n < z_.radial; ++n) {
                const Vec<T> weight = load<T>(w.radial + n * C + c);
                value += basis[n] * weight;
                if (slope) change += basis[width + n] * weight;
            }
            store<T>(m.radial.data() + c, value);
            if (slope) store<T>(m.radial.data() + C + c, change);
        }
    }

    void densities(long k, int64_t begin, long count, const WindowScratch<T>& m) const {
        constexpr long W = kLanes<T>;
        const long C = n_.channels;
        memset(m.density.data(), 0, kAtoms * kHarmonics * C * sizeof(T));
        for (long i = 0; i < count; ++i) {
            T* rows[kHarmonics];
            for (int l = 0; l < 3; ++l) {
                const long each = kFirst[l + 1] - kFirst[l];
                for (long h = 0; h < each; ++h) rows[kFirst[l] + h] = m.density.data() + density_at(l) + (i * each + h) * C;
            }
            for (int64_t e = graph_.row_ptr[begin + i]; e < graph_.row_ptr[begin + i + 1]; ++e) {
                const Edge<T> edge(graph_.r + 3 * e);
                T harmonic[kHarmonics];
                edge.harmonics(harmonic);
                radial(layers_[k], edge.d, false, m);
                const T* of = seen(k, graph_.neighbor[e]);
                for (long c = 0; c < C; c += W) {
                    const Vec<T> size = load<T>(m.radial.data() + c) * load<T>(of + c);
                    for (long h = 0; h < kHarmonics; ++h)
                        store<T>(rows[h] + c, load<T>(rows[h] + c) + harmonic[h] * size);
                }
            }
        }
    }

    void forward(long k, int64_t begin, long count, bool keep, T* energy, const WindowScratch<T>& m) {
        constexpr long W = kLanes<T>;
        const WindowPotentialLayer<T>& w = layers_[k];
        const long C = n_.channels, H = n_.hidden;
        densities(k, begin, count, m);
        T* products = keep ? mapped(k, begin) : m.mapped.data();
        for (int l = 0; l < 3; ++l) {
            const long each = kFirst[l + 1] - kFirst[l], width = kMapsOf[l] * n_.products;
            multiply<T>(width, {count * each, z_.channels, m.density.data() + density_at(l), C, w.maps[l], width,
                                products + mapped_at(l), width, nullptr, Start::kZero});
        }
        invariants(products, count, m);
        for (long i = 0; i < count; ++i) {
            T* row = m.features.data() + i * n_.features;
            memcpy(row, m.density.data() + i * C, C * sizeof(T));
            const T* scale = w.scale + species_[begin + i] * n_.features;
            for (long f = 0; f < n_.features; f += W) store<T>(row + f, load<T>(row + f) * load<T>(scale + f));
        }
        T* x = m.rows.data();
        for (long i = 0; i < count; ++i)
            memcpy(x + i * H, w.bias + (role_ * z_.species + species_[begin + i]) * H, H * sizeof(T));
        multiply<T>(H, {count, n_.features, m.features.data(), n_.features, w.first, H, x, H, nullptr, Start::kAdd});
        if (k) multiply<T>(H, {count, z_.hidden, known(begin), H, w.before, H, x, H, nullptr, Start::kAdd});
        activate(x, x, keep ? traces_[k].first_slope.data() + begin * H : nullptr, count);
        T* to = known(begin);
        multiply<T>(H, {count, z_.hidden, x, H, w.second, H, to, H, w.second_bias, Start::kBias});
        activate(to, to, keep ? traces_[k].last_slope.data() + begin * H : nullptr, count);
        const T* last = w.last + role_ * H;
        for (long i = 0; i < count; ++i) {
            Vec<T> sum{};
            for (long n = 0; n < H; n += W) {
                const Vec<T> all = load<T>(to + i * H + n) + load<T>(x + i * H + n);
                store<T>(to + i * H + n, all);
                sum += all * load<T>(last + n);
            }
            if (energy) energy[begin + i] = (k ? energy[begin + i] : T(0)) + lane_sum<T>(sum);
        }
    }

    // silu, and its slope.
    void activate(const T* x, T* to, T* slope, long count) const {
        for (long n = 0; n < count * n_.hidden; n += kLanes<T>) {
            const Vec<T> at = load<T>(x + n), share = T(1) / (exponential(-at) + T(1));
            store<T>(to + n, at * share);
            if (slope) store<T>(slope + n, share * (T(1) + at * (T(1) - share)));
        }
    }

    // The rows of products of an atom: [harmonics of l], each with its maps side by side.
    T* rows_of(T* products, int l, long i) const {
        return products + mapped_at(l) + i * (kFirst[l + 1] - kFirst[l]) * kMapsOf[l] * n_.products;
    }

    // The features behind those that are the density itself.
    void invariants(T* products, long count, const WindowScratch<T>& m) const {
        constexpr long W = kLanes<T>;
        const long P = n_.products;
        for (long i = 0; i < count; ++i) {
            T* to = m.features.data() + i * n_.features + n_.channels;
            const T *s = rows_of(products, 0, i), *v = rows_of(products, 1, i), *t = rows_of(products, 2, i);
            for (long p = 0; p < P; p += W) {
                const auto at = [p](const T* row) { return load<T>(row + p); };
                Vec<T> vectors{}, tensors{}, a[3], b[3], q[6];
                for (long h = 0; h < 3; ++h) {
                    a[h] = at(v + 3 * h * P), b[h] = at(v + (3 * h + 2) * P);
                    vectors += a[h] * at(v + (3 * h + 1) * P);
                }
                for (long h = 0; h < 6; ++h) {
                    q[h] = at(t + 2 * h * P);
                    tensors += q[h] * at(t + (2 * h + 1) * P);
                }
                store<T>(to + p, at(s) * at(s + P));
                store<T>(to + P + p, vectors);
                store<T>(to + 2 * P + p, tensors);
                Vec<T> bent{};
                for (long h = 0; h < 3; ++h) bent += a[h] * along(q, b, h);
                store<T>(to + 3 * P + p, bent);
            }
        }
    }

    // Component h of the tensor q times the vector b.
    static Vec<T> along(const Vec<T> (&q)[6], const Vec<T> (&b)[3], long h) {
        constexpr T mixed = T(0.70710678118654752440);
        switch (h) {
            case 0: return q[0] * b[0] + mixed * (q[3] * b[1] + q[4] * b[2]);
            case 1: return q[1] * b[1] + mixed * (q[3] * b[0] + q[5] * b[2]);
            default: return q[2] * b[2] + mixed * (q[4] * b[0] + q[5] * b[1]);
        }
    }

    // From what the products are and the slopes of the features [4 products] to those of the products, in their place.
    void invariant_slopes(T* products, long count, const WindowScratch<T>& m) const {
        constexpr long W = kLanes<T>;
        constexpr T mixed = T(0.70710678118654752440);
        const long P = n_.products;
        for (long i = 0; i < count; ++i) {
            const T* of = m.features.data() + i * n_.features + n_.channels;
            T *s = rows_of(products, 0, i), *v = rows_of(products, 1, i), *t = rows_of(products, 2, i);
            for (long p = 0; p < P; p += W) {
                const Vec<T> scalar = load<T>(of + p), vector = load<T>(of + P + p), tensor = load<T>(of + 2 * P + p),
                             bent = load<T>(of + 3 * P + p);
                const Vec<T> s0 = load<T>(s + p), s1 = load<T>(s + P + p);
                store<T>(s + p, scalar * s1);
                store<T>(s + P + p, scalar * s0);
                Vec<T> a[3], b[3], q[6];
                for (long h = 0; h < 3; ++h) a[h] = load<T>(v + 3 * h * P + p), b[h] = load<T>(v + (3 * h + 2) * P + p);
                for (long h = 0; h < 6; ++h) q[h] = load<T>(t + 2 * h * P + p);
                for (long h = 0; h < 3; ++h) {
                    T* row = v + 3 * h * P + p;
                    store<T>(row, vector * load<T>(row + P) + bent * along(q, b, h));
                    store<T>(row + P, vector * a[h]);
                    store<T>(row + 2 * P, bent * along(q, a, h));
                }
                const Vec<T> outer[6] = {a[0] * b[0],
                                         a[1] * b[1],
                                         a[2] * b[2],
                                         mixed * (a[0] * b[1] + a[1] * b[0]),
                                         mixed * (a[0] * b[2] + a[2] * b[0]),
                                         mixed * (a[1] * b[2] + a[2] * b[1])};
                for (long h = 0; h < 6; ++h) {
                    T* row = t + 2 * h * P + p;
                    store<T>(row, tensor * load<T>(row + P) + bent * outer[h]);
                    store<T>(row + P, tensor * q[h]);
                }
            }
        }
    }

    // From the slopes of what the layer knows of the atoms to those of the density around them and of the layer before.
    void backward(long k, int64_t begin, long count, const WindowScratch<T>& m) {
        constexpr long W = kLanes<T>;
        const WindowPotentialLayer<T>& w = layers_[k];
        const long C = n_.channels, H = n_.hidden, F = n_.features;
        T *of = known_slope(begin), *rows = m.rows.data(), *other = m.other.data();
        const T* last = w.last + role_ * H;
        for (long i = 0; i < count; ++i)
            for (long n = 0; n < H; n += W) {
                T* at = of + i * H + n;
                store<T>(at, k + 1 < z_.layers ? load<T>(at) + load<T>(last + n) : load<T>(last + n));
            }
        const T *first_slope = traces_[k].first_slope.data() + begin * H, *last_slope = traces_[k].last_slope.data() + begin * H;
        for (long n = 0; n < count * H; n += W) store<T>(other + n, load<T>(of + n) * load<T>(last_slope + n));
        memcpy(rows, of, count * H * sizeof(T));
        multiply<T>(H, {count, z_.hidden, other, H, w.second_back, H, rows, H, nullptr, Start::kAdd});
        for (long n = 0; n < count * H; n += W) store<T>(rows + n, load<T>(rows + n) * load<T>(first_slope + n));
        // the slopes of what is known before take the place of those of what is known now
        if (k) multiply<T>(H, {count, z_.hidden, rows, H, w.before_back, H, of, H, nullptr, Start::kZero});
        multiply<T>(F, {count, z_.hidden, rows, H, w.first_back, F, m.features.data(), F, nullptr, Start::kZero});
        for (long i = 0; i < count; ++i) {
            T* row = m.features.data() + i * F;
            const T* scale = w.scale + species_[begin + i] * F;
            for (long f = 0; f < F; f += W) store<T>(row + f, load<T>(row + f) * load<T>(scale + f));
        }
        T* products = mapped(k, begin);
        invariant_slopes(products, count, m);
        T* to = density_slope_.data() + begin * kHarmonics * C;
        for (long i = 0; i < count; ++i) memcpy(to + i * C, m.features.data() + i * F, C * sizeof(T));
        for (int l = 0; l < 3; ++l) {
            const long each = kFirst[l + 1] - kFirst[l], width = kMapsOf[l] * n_.products;
            multiply<T>(C, {count * each, width, products + mapped_at(l), width, w.maps_back[l], C, to + density_at(l), C,
                            nullptr, l ? Start::kZero : Start::kAdd});
        }
    }

    // What the densities around an atom and around its neighbours say: its slope, and that of what is known of it before.
    void edges(long k, int64_t begin, long count, double* slope, const WindowScratch<T>& m) {
        constexpr long W = kLanes<T>;
        constexpr T kParity[kHarmonics] = {1, -1, -1, -1, 1, 1, 1, 1, 1, 1};
        const long C = n_.channels;
        const T root = T(1.41421356237309504880);
        T* of_seen = m.density.data();  // [atoms][channels]
        if (k) memset(of_seen, 0, kAtoms * C * sizeof(T));
        for (long i = 0; i < count; ++i) {
            const int64_t atom = begin + i;
            const Rows own = density_slopes(atom);
            const T* self = seen(k, atom);
            double sum[3] = {};
            for (int64_t e = graph_.row_ptr[atom]; e < graph_.row_ptr[atom + 1]; ++e) {
                const Edge<T> edge(graph_.r + 3 * e);
                T harmonic[kHarmonics];
                edge.harmonics(harmonic);
                radial(layers_[k], edge.d, true, m);
                const int64_t j = graph_.neighbor[e];
                const Rows theirs = density_slopes(j);
                const T* of = seen(k, j);
                Vec<T> stretch{}, turn[3] = {};
                for (long c = 0; c < C; c += W) {
                    const Vec<T> value = load<T>(m.radial.data() + c), change = load<T>(m.radial.data() + C + c);
                    const Vec<T> they = load<T>(of + c), me = load<T>(self + c);
                    Vec<T> both[kHarmonics], back{}, radial{};
                    for (long h = 0; h < kHarmonics; ++h) {
                        const Vec<T> from = kParity[h] * load<T>(theirs.of[h] + c);
                        both[h] = they * load<T>(own.of[h] + c) + me * from;
                        back += harmonic[h] * from;
                        radial += harmonic[h] * both[h];
                    }
                    if (k) store<T>(of_seen + i * C + c, load<T>(of_seen + i * C + c) + value * back);
                    stretch += change * radial;
                    const T x = edge.x, y = edge.y, z = edge.z;
                    turn[0] += value * (both[1] + (x + x) * both[4] + root * (y * both[7] + z * both[8]));
                    turn[1] += value * (both[2] + (y + y) * both[5] + root * (x * both[7] + z * both[9]));
                    turn[2] += value * (both[3] + (z + z) * both[6] + root * (x * both[8] + y * both[9]));
                }
                const T u[3] = {edge.x, edge.y, edge.z}, along = lane_sum<T>(stretch);
                const T t[3] = {lane_sum<T>(turn[0]), lane_sum<T>(turn[1]), lane_sum<T>(turn[2])};
                const T radially = t[0] * u[0] + t[1] * u[1] + t[2] * u[2];
                for (int x = 0; x < 3; ++x)
                    sum[x] -= static_cast<double>(along * u[x] + (t[x] - radially * u[x]) / edge.d);
            }
            for (int x = 0; x < 3; ++x) slope[3 * atom + x] = sum[x] + (k + 1 < z_.layers ? slope[3 * atom + x] : 0.0);
        }
        if (k)
            multiply<T>(n_.hidden, {count, z_.channels, of_seen, C, layers_[k].neighbor_back, n_.hidden, known_slope(begin),
                                    n_.hidden, nullptr, Start::kAdd});
    }

    const WindowPotentialSizes& z_;
    const WindowPotentialLayer<T>* layers_;
    const AttentionGraph<T>& graph_;
    const int64_t* species_;
    const long role_;
    const RowLengths<T> n_;
    const int64_t groups_;
    LayerTrace<T>* traces_;
    Buffer<T> known_, known_slope_, density_slope_;
};

template <class T>
void window_potential(const WindowPotentialSizes& z, const WindowPotentialLayer<T>* layers, const AttentionGraph<T>& graph,
                      const int64_t* species, int role, T* energy, double* slope, int threads) {
    WindowPotential<T>(z, layers, graph, species, role).run(energy, slope, threads);
}

}  // namespace
