// Atomic energies for one instruction set: the arithmetic of Potential.forward in mdtrajnet_fast/model/potential.py, which says
// what it computes.  Atoms are worked on in groups, so that their rows make matrices; no row depends on another.
#pragma once

#include <optional>

#include "attention_pack.hpp"
#include "functions.hpp"
#include "gemm.hpp"
#include "math/edge.hpp"
#include "team.hpp"

namespace {

using mdtrajnet::PotentialSizes;
using mdtrajnet::PotentialWeights;

constexpr long kAtoms = 16;               // of a group
constexpr long kHarmonics = 10;           // of l = 0, 1, 2 as Cartesian tensors
constexpr long kFirst[] = {0, 1, 4, 10};  // harmonic of each l, and the end

template <class T>
Vec<T> silu(Vec<T> x) {
    return x / (exponential(-x) + T(1));
}

// Elements of a row of weights: whole vectors of any instruction set.
template <class T>
constexpr long row_length(long n) {
    constexpr long kWhole = 64 / static_cast<int>(sizeof(T));
    return (n + kWhole - 1) / kWhole * kWhole;
}

// Memory of one thread for a group.
template <class T>
struct AtomGroup {
    long basis, used, products, features, hidden;  // lengths; the last three are of rows in whole vectors
    Buffer<T> radial, density, mapped, feature, layer, second;

    explicit AtomGroup(const PotentialSizes& z)
        : basis(z.species * z.radial), used(basis + 3 * z.products), products(row_length<T>(z.products)),
          features(row_length<T>(used)), hidden(row_length<T>(z.hidden)) {
        radial.resize(row_length<T>(z.radial));
        density.resize(kAtoms * kHarmonics * basis);
        mapped.resize(kAtoms * 6 * 2 * products);
        feature.resize(kAtoms * features);
        layer.resize(kAtoms * hidden);
        second.resize(kAtoms * hidden);
    }

    // The rows [atoms][harmonics of l][basis] of an l.
    T* rows_of(int l) const { return density.data() + kAtoms * kFirst[l] * basis; }
};

// The densities around the atoms begin .. begin + count.
template <class T>
void densities(const PotentialSizes& z, const AttentionGraph<T>& graph, const int64_t* species, int64_t begin,
               long count, const AtomGroup<T>& m) {
    constexpr long W = kLanes<T>;
    const T cutoff = T(z.cutoff), step = cutoff / T(z.radial - 1);
    memset(m.density.data(), 0, kAtoms * kHarmonics * m.basis * sizeof(T));
    for (long i = 0; i < count; ++i)
        for (int64_t e = graph.row_ptr[begin + i]; e < graph.row_ptr[begin + i + 1]; ++e) {
            const T* r = graph.r + 3 * e;
            const T d = square_root(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
            const T x = r[0] / d, y = r[1] / d, w = r[2] / d;
            const T third = T(1.0 / 3), mixed = T(1.41421356237309504880);
            const T harmonic[kHarmonics] = {
                T(1),         x, y, w, x * x - third, y * y - third, w * w - third, mixed * x * y, mixed * x * w,
                mixed * y * w};
            const T size = envelope(d, cutoff) / T(1.12);
            for (long n = 0; n < z.radial; n += W) {
                Vec<T> away;
                for (long k = 0; k < W; ++k) away[k] = d / step - T(n + k);
                store<T>(m.radial.data() + n, size * exponential(-away * away));
            }
            const long column = species[graph.neighbor[e]] * z.radial;
            for (int l = 0; l < 3; ++l) {
                const long each = kFirst[l + 1] - kFirst[l];
                for (long h = 0; h < each; ++h) {
                    T* row = m.rows_of(l) + (i * each + h) * m.basis + column;
                    const T factor = harmonic[kFirst[l] + h];
                    for (long n = 0; n < z.radial; ++n) row[n] += factor * m.radial.data()[n];
                }
            }
        }
}

// Features of the atoms: the isotropic density, then the products of each l.
template <class T>
void invariants(const PotentialSizes& z, const PotentialWeights<T>& weights, long count, const AtomGroup<T>& m) {
    for (long i = 0; i < count; ++i)
        memcpy(m.feature.data() + i * m.features, m.rows_of(0) + i * m.basis, m.basis * sizeof(T));
    const long width = 2 * m.products;
    for (int l = 0; l < 3; ++l) {
        const long each = kFirst[l + 1] - kFirst[l];
        const T* maps = weights.maps + l * m.basis * width;
        multiply<T>(width, {count * each, m.basis, m.rows_of(l), m.basis, maps, width, m.mapped.data(), width, nullptr,
                            Start::kZero});
        for (long i = 0; i < count; ++i) {
            T* to = m.feature.data() + i * m.features + m.basis + l * z.products;
            memset(to, 0, z.products * sizeof(T));
            for (long h = 0; h < each; ++h) {
                const T *left = m.mapped.data() + (i * each + h) * width, *right = left + m.products;
                for (long p = 0; p < z.products; ++p) to[p] += left[p] * right[p];
            }
        }
    }
}

template <class T>
void potential(const PotentialSizes& z, const PotentialWeights<T>& weights, const SharedGraph<T>& graph,
               const int64_t* species, T* energy, int threads) {
    constexpr long W = kLanes<T>;
    const int64_t groups = (graph.own() + kAtoms - 1) / kAtoms;
    const auto work = [&](const AtomGroup<T>& m, int64_t g) {
        const int64_t begin = g * kAtoms;
        const long count = graph.own() - begin < kAtoms ? graph.own() - begin : kAtoms;
        densities(z, graph, species, begin, count, m);
        invariants(z, weights, count, m);
        for (long i = 0; i < count; ++i) {
            const T* scale = weights.scale + species[begin + i] * m.used;
            T* row = m.feature.data() + i * m.features;
            for (long n = 0; n < m.used; ++n) row[n] *= scale[n];
        }
        multiply<T>(m.hidden, {count, m.used, m.feature.data(), m.features, weights.first, m.hidden, m.layer.data(),
                               m.hidden, nullptr, Start::kZero});
        for (long i = 0; i < count; ++i) {
            T* row = m.layer.data() + i * m.hidden;
            const T* bias = weights.first_bias + species[begin + i] * m.hidden;
            for (long n = 0; n < m.hidden; n += W) store<T>(row + n, silu<T>(load<T>(row + n) + load<T>(bias + n)));
        }
        multiply<T>(m.hidden, {count, z.hidden, m.layer.data(), m.hidden, weights.second, m.hidden, m.second.data(),
                               m.hidden, weights.second_bias, Start::kBias});
        for (long i = 0; i < count; ++i) {
            Vec<T> sum{};
            for (long n = 0; n < m.hidden; n += W) {
                const long at = i * m.hidden + n;
                sum +=
                    (load<T>(m.layer.data() + at) + silu<T>(load<T>(m.second.data() + at))) * load<T>(weights.last + n);
            }
            energy[begin + i] = lane_sum<T>(sum);
        }
    };
    parallel(threads, [&](auto& guard) {
        std::optional<AtomGroup<T>> m;
        guard([&] { m.emplace(z); });
#pragma omp for
        for (int64_t g = 0; g < groups; ++g) guard([&] { work(*m, g); });
    });
}

}  // namespace
