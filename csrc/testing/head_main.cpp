// Runs what surrounds the attention blocks on random systems, for the sanitizers to watch.  Prints how many runs were finite
// and, with the conserving head, started from the input.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/head.hpp"

using namespace mdtrajnet;

namespace {

std::mt19937 rng(7);

// Exactly as much memory as is asked for, so that a step beyond it is seen.
template <class T>
std::vector<T> random_array(long size) {
    std::normal_distribution<double> normal(0, 0.5);
    std::vector<T> array(size);
    for (T& x : array) x = static_cast<T>(normal(rng));
    return array;
}

template <class T>
bool run(const HeadSizes& size, long atoms, long times, int threads) {
    std::vector<std::int64_t> row_ptr{0}, neighbor, species, component;
    for (long i = 0; i < atoms; ++i) {  // none has the last atom for a neighbour, which has none itself
        for (long k = 1; i + k < atoms - 1 && k < 9; ++k) neighbor.push_back(i + k);
        row_ptr.push_back(static_cast<std::int64_t>(neighbor.size()));
        species.push_back(i % 3);
        component.push_back(i == atoms - 1);
    }
    const long edges = static_cast<long>(neighbor.size()), rows = times * atoms;
    const auto r = random_array<T>(3 * edges), w = random_array<T>(3 * edges), velocities = random_array<T>(3 * atoms);
    const auto embedding = random_array<T>(3 * size.species_channels);
    const std::vector<T> masses(atoms, T(12));
    const AttentionGraph<T> graph{atoms, row_ptr.data(), neighbor.data(), r.data(), w.data()};
    const HeadAtoms<T> start{species.data(), masses.data(), velocities.data(), component.data(), 2};
    std::vector<double> t(times);
    for (long k = 0; k < times; ++k) t[k] = 5.0 * k;

    std::vector<T> scalars(rows * (size.species_channels + size.time_channels), T(NAN)), tangent;
    if (!size.readout) tangent = scalars;
    first_scalars(size, embedding.data(), atoms, species.data(), times, t.data(), scalars.data(),
                  size.readout ? nullptr : tangent.data());
    bool good = true;
    for (const auto& array : {scalars, tangent})
        for (const T x : array) good = good && std::isfinite(x);

    auto dx = random_array<T>(3 * rows), dv = random_array<T>(3 * rows);
    std::vector<double> moved(3 * rows, 0.0), velocity(3 * rows, 0.0);
    for (const double share : {0.25, 0.75})
        add_motion<T>(size, graph, start, times, t.data(), dx.data(), dv.data(), share, moved.data(), velocity.data(),
                      threads);
    for (long n = 0; n < 3 * rows; ++n) good = good && std::isfinite(moved[n]) && std::isfinite(velocity[n]);
    for (long n = 0; size.conserving && n < 3 * atoms; ++n)  // t = 0
        good = good && moved[n] == 0 && velocity[n] == double(velocities[n]);
    return good;
}

}  // namespace

int main() {
    int good = 0, all = 0;
    for (const bool conserving : {true, false})
        for (const int threads : {1, 2})
            for (const long atoms : {1L, 2L, 40L})
                for (const long times : {1L, 3L})
                    for (const bool readout : {true, false}) {
                        const HeadSizes size{5, 3, 4.0, 12.0, conserving, readout, 3};
                        good += run<float>(size, atoms, times, threads) + run<double>(size, atoms, times, threads);
                        all += 2;
                    }
    std::printf("%d of %d right\n", good, all);
    return good != all;
}
