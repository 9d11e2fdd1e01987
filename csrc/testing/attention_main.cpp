// Runs every kernel of the attention block and the potentials on random systems, for the sanitizers to watch.  Prints how
// many runs were finite.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/attention.hpp"

using namespace mdtrajnet;

namespace {

std::mt19937 rng(7);

// Exactly as much memory as is asked for, so that a step beyond it is seen.
template <class T>
std::vector<std::vector<T>>& pool() {
    static std::vector<std::vector<T>> memory;
    return memory;
}

template <class T>
T* random_array(long size, double scale = 0.3) {
    std::normal_distribution<double> normal(0, scale);
    pool<T>().emplace_back(size);
    for (T& x : pool<T>().back()) x = static_cast<T>(normal(rng));
    return pool<T>().back().data();
}

template <class T>
AttentionWeights<T> random_weights(const AttentionSizes& z) {
    AttentionWeights<T> w{};
    for (int net = 0; net < 2; ++net)
        for (int k = 0; k < z.layers[net]; ++k) {
            const long in = k ? z.hidden[net][k - 1] : z.centres + z.time_channels;
            w.layer_weight[net][k] = random_array<T>(z.hidden[net][k] * in);
            w.layer_bias[net][k] = random_array<T>(z.hidden[net][k]);
        }
    const long S = z.scalars, h = z.heads, c = z.key_channels * h, v = z.value_channels;
    const long n = z.hidden[0][z.layers[0] - 1] + 1, m = z.hidden[1][z.layers[1] - 1] + 1;
    w.query = random_array<T>(S * c);
    w.key_atom = random_array<T>(S * n * (c + 2 * h));
    w.key_edge = random_array<T>(n * (2 * c + 4 * h));
    w.value_atom = random_array<T>(S * m * 2 * h);
    w.value_edge = random_array<T>(m * 6 * h);
    w.scalar_atom = random_array<T>(h * m * S * v);
    w.scalar_edge = random_array<T>(h * 2 * m * v);
    w.out = random_array<T>(h * v * S);
    return w;
}

template <class T>
AttentionState<T> random_state(long atoms, long S) {
    return {random_array<T>(atoms * S), random_array<T>(atoms * 3, 0.05), random_array<T>(atoms * 3, 0.05)};
}

template <class T>
bool finite(const AttentionState<T>& s, long atoms, long S) {
    bool fine = true;
    for (long k = 0; s.scalars && k < atoms * S; ++k) fine = fine && std::isfinite(s.scalars[k]);
    for (long k = 0; k < atoms * 3; ++k)
        fine = fine && std::isfinite(s.displacement[k]) && std::isfinite(s.velocity[k]);
    return fine;
}

struct Neighbors {
    std::vector<std::int64_t> row_ptr{0}, neighbor;

    // Of `atoms` atoms of which the first has `most` neighbours, the last none.
    Neighbors(long atoms, long most) {
        for (long i = 0; i < atoms; ++i) {
            const long count = i == atoms - 1 ? 0 : i == 0 ? most : 1 + i % 9;
            for (long k = 0; k < count; ++k) neighbor.push_back((i + 1 + k) % atoms);
            row_ptr.push_back(static_cast<std::int64_t>(neighbor.size()));
        }
    }
};

template <class T>
int run(const AttentionFunctions<T>& kernels, AttentionSizes z, long atoms, long most, long times, int threads) {
    const Neighbors list(atoms, most);
    const auto &row_ptr = list.row_ptr, &neighbor = list.neighbor;
    const long edges = static_cast<long>(neighbor.size()), rows = atoms * times;
    const AttentionGraph<T> graph{atoms, row_ptr.data(), neighbor.data(), random_array<T>(3 * edges, 1.5),
                                  random_array<T>(3 * edges, 0.05)};
    const AttentionWeights<T> weights = random_weights<T>(z);
    void* packed = kernels.pack(z, weights, true);
    const auto state = random_state<T>(rows, z.scalars), tangent = random_state<T>(rows, z.scalars);
    auto out = random_state<T>(rows, z.scalars), out_tangent = random_state<T>(rows, z.scalars);
    kernels.forward(packed, graph, times, state, nullptr, out, nullptr, threads);
    int good = finite(out, rows, z.scalars);
    kernels.forward(packed, graph, times, state, &tangent, out, &out_tangent, threads);
    good += finite(out, rows, z.scalars) && finite(out_tangent, rows, z.scalars);
    auto state_gradient = random_state<T>(rows, z.scalars), upstream = random_state<T>(rows, z.scalars);
    const AttentionEdgeGradients<T> edge_gradient{random_array<T>(3 * edges), random_array<T>(3 * edges)};
    const AttentionWeights<T> weight_gradient = random_weights<T>(z);
    kernels.backward(packed, graph, times, state, upstream, state_gradient, weight_gradient, edge_gradient, threads);
    good += finite(state_gradient, rows, z.scalars);
    out.scalars = upstream.scalars = nullptr;
    kernels.forward(packed, graph, times, state, nullptr, out, nullptr, threads);
    kernels.backward(packed, graph, times, state, upstream, state_gradient, weight_gradient, edge_gradient, threads);
    good += finite(out, rows, z.scalars) && finite(state_gradient, rows, z.scalars);
    kernels.release(packed);
    return good;
}

// A system without velocities, for potentials.
template <class T>
struct System {
    const Neighbors list;
    std::vector<std::int64_t> species;
    const AttentionGraph<T> graph;

    System(long atoms, long most, long elements)
        : list(atoms, most), species(atoms),
          graph{atoms, list.row_ptr.data(), list.neighbor.data(),
                random_array<T>(3 * static_cast<long>(list.neighbor.size()), 1.5), nullptr} {
        for (long i = 0; i < atoms; ++i) species[i] = i % elements;
    }
};

// Elements of a row in whole vectors.
template <class T>
long whole(long n) {
    constexpr long kWhole = 64 / static_cast<long>(sizeof(T));
    return (n + kWhole - 1) / kWhole * kWhole;
}

template <class T>
bool run(const AttentionFunctions<T>& kernels, const PotentialSizes& z, long atoms, long most, int threads) {
    const System<T> system(atoms, most, z.species);
    const long basis = z.species * z.radial, features = basis + 3 * z.products, hidden = whole<T>(z.hidden);
    const PotentialWeights<T> weights{random_array<T>(3 * basis * 2 * whole<T>(z.products)),
                                      random_array<T>(z.species * features),
                                      random_array<T>(features * hidden),
                                      random_array<T>(z.species * hidden),
                                      random_array<T>(z.hidden * hidden),
                                      random_array<T>(hidden),
                                      random_array<T>(hidden)};
    std::vector<T> energy(atoms, T(NAN));
    kernels.potential(z, weights, system.graph, system.species.data(), energy.data(), threads);
    bool fine = true;
    for (const T x : energy) fine = fine && std::isfinite(x);
    return fine;
}

// Window potentials: with both results, then with each alone; and gradients of their weights.
template <class T>
int run(const AttentionFunctions<T>& kernels, const WindowPotentialSizes& z, long atoms, long most, int threads) {
    const System<T> system(atoms, most, z.species);
    const long channels = whole<T>(z.channels), products = whole<T>(z.products), hidden = whole<T>(z.hidden);
    const long entry = channels + hidden, features = channels + 4 * products, L = z.layers;
    const WindowPotentialWeights<T> weights{random_array<T>(L * z.intervals * kRadialPowers * channels),
                                            random_array<T>(kRoles * L * z.species * entry),
                                            random_array<T>((L - 1) * z.hidden * entry),
                                            random_array<T>((L - 1) * entry * hidden),
                                            random_array<T>(L * z.channels * 7 * products),
                                            random_array<T>(L * 7 * products * channels),
                                            random_array<T>(L * z.species * features),
                                            random_array<T>(L * features * hidden),
                                            random_array<T>(L * z.hidden * features),
                                            random_array<T>(L * z.hidden * hidden),
                                            random_array<T>(L * z.hidden * hidden),
                                            random_array<T>(L * hidden),
                                            random_array<T>(kRoles * L * hidden)};
    int good = 0;
    for (int role = 0; role < kRoles; ++role) {
        std::vector<T> energy(atoms, T(NAN));
        std::vector<double> slope(3 * atoms, NAN);
        kernels.window_potential(z, weights, system.graph, system.species.data(), {role, nullptr},
                                 role == 1 ? nullptr : energy.data(), role == 2 ? nullptr : slope.data(), threads);
        bool fine = true;
        for (const T x : energy) fine = fine && (role == 1 || std::isfinite(x));
        for (const double x : slope) fine = fine && (role == 2 || std::isfinite(x));
        good += fine;
    }
    const long counts[kWindowWeights] = {L * z.intervals * kRadialPowers * channels,
                                         kRoles * L * z.species * entry,
                                         (L - 1) * z.hidden * entry,
                                         L * z.channels * 7 * products,
                                         L * z.species * features,
                                         L * features * hidden,
                                         L * z.hidden * hidden,
                                         L * hidden,
                                         kRoles * L * hidden};
    std::vector<T> gradients[kWindowWeights];
    WindowPotentialGradients<T> gradient;
    for (int k = 0; k < kWindowWeights; ++k) {
        gradients[k].assign(counts[k], T(NAN));
        gradient.weights[k] = gradients[k].data();
    }
    std::vector<std::int64_t> roles(atoms);
    for (long i = 0; i < atoms; ++i) roles[i] = i % kRoles;
    kernels.window_gradients(z, weights, system.graph, system.species.data(), {0, roles.data()}, random_array<T>(atoms),
                             random_array<T>(3 * atoms), gradient, threads);
    bool fine = true;
    for (const auto& one : gradients)
        for (const T x : one) fine = fine && std::isfinite(x);
    return good + fine;
}

}  // namespace

int main() {
    const AttentionSizes small{8, 3, 6, 2, 3, 2, {2, 1}, {{8, 7}, {9}}, 4.0, true};
    const AttentionSizes odd{9, 2, 37, 3, 12, 17, {1, 2}, {{33}, {20, 40}}, 4.0, false};
    const AttentionSizes published{20, 4, 16, 4, 8, 8, {1, 1}, {{128}, {128}}, 4.0, false};
    const AttentionKernels& kernels = *attention_kernels();
    int good = 0, all = 0;
    for (const AttentionSizes& sizes : {small, odd, published})
        for (const int threads : {1, 2})
            for (const long atoms : {1L, 21L, 40L}) {
                const long most = atoms > 1 ? 3 * atoms : 0;  // beyond one group of edges, in one row
                good += run(kernels.single, sizes, atoms, most, 2, threads);
                good += run(kernels.real, sizes, atoms, most, 1, threads);
                all += 8;
            }
    for (const PotentialSizes& sizes : {PotentialSizes{1, 2, 1, 1, 4.0}, {3, 5, 17, 20, 4.0}, {4, 14, 48, 64, 5.0}})
        for (const int threads : {1, 2})
            for (const long atoms : {1L, 16L, 37L}) {
                const long most = atoms > 1 ? 3 * atoms : 0;
                good +=
                    run(kernels.single, sizes, atoms, most, threads) + run(kernels.real, sizes, atoms, most, threads);
                all += 2;
            }
    for (const WindowPotentialSizes& sizes :
         {WindowPotentialSizes{1, 1, 2, 1, 1, 1, 4.0}, {3, 3, 5, 18, 17, 20, 4.0}, {4, 2, 20, 32, 32, 96, 5.0}})
        for (const int threads : {1, 2})
            for (const long atoms : {1L, 16L, 37L}) {
                const long most = atoms > 1 ? 3 * atoms : 0;
                good +=
                    run(kernels.single, sizes, atoms, most, threads) + run(kernels.real, sizes, atoms, most, threads);
                all += 2 * (kRoles + 1);
            }
    std::printf("%s: %d of %d finite\n", kernels.instruction_set, good, all);
    return good != all;
}
