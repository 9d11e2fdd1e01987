#include "cpu/head.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/domain.hpp"
#include "cpu/team.hpp"
#include "math/edge.hpp"

namespace mdtrajnet {
namespace {

using std::int64_t;

// The mean velocity of each atom and its neighbours, less its own: [atoms][3].
template <class T>
std::vector<T> drifts(const AttentionGraph<T>& graph, const T* masses, T cutoff, int threads) {
    std::vector<T> drift(3 * graph.atoms);
    parallel(threads, [&](auto&) {
#pragma omp for
        for (int64_t i = 0; i < graph.atoms; ++i) {
            T total = masses[i], sum[3] = {};
            for (int64_t e = graph.row_ptr[i]; e < graph.row_ptr[i + 1]; ++e) {
                const T *r = graph.r + 3 * e, *w = graph.w + 3 * e;
                const T distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
                const T mass = masses[graph.neighbor[e]] * envelope(distance, cutoff);
                total += mass;
                for (int x = 0; x < 3; ++x) sum[x] += mass * w[x];
            }
            for (int x = 0; x < 3; ++x) drift[3 * i + x] = sum[x] / total;
        }
    });
    return drift;
}

// Takes from `of` [own atoms][3] its mass-weighted mean in each component.  sum: memory [components][4], the last the mass.
template <class T>
void remove_means(const HeadAtoms<T>& atoms, const SharedGraph<T>& graph, T* of, std::vector<double>& sum) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t i = 0; i < graph.own(); ++i) {
        double* to = sum.data() + 4 * atoms.component[i];
        for (int x = 0; x < 3; ++x) to[x] += double(atoms.masses[i]) * of[3 * i + x];
        to[3] += atoms.masses[i];
    }
    if (graph.domain) graph.domain->sum_shared(*atoms.shared, sum.data(), 4);
    for (int64_t i = 0; i < graph.own(); ++i) {
        const double* from = sum.data() + 4 * atoms.component[i];
        for (int x = 0; x < 3; ++x) of[3 * i + x] -= T(from[x] / from[3]);
    }
}

}  // namespace

template <class T>
void first_scalars(const HeadSizes& size, const T* embedding, int64_t atoms, const int64_t* species, int64_t times,
                   const double* t, T* scalars, T* tangent) {
    const long channels = size.species_channels, centres = size.time_channels;
    const double step = size.time_cutoff / (centres - 1);
    std::vector<T> basis(centres), slope(centres);
    for (int64_t k = 0; k < times; ++k) {
        for (long c = 0; c < centres; ++c) {
            const double x = (t[k] - c * step) / step, value = std::exp(-x * x) / 1.12;
            basis[c] = T(value);
            slope[c] = T(-2 * x / step * value);
        }
        for (int64_t i = 0; i < atoms; ++i) {
            scalars = std::copy_n(embedding + species[i] * channels, channels, scalars);
            scalars = std::copy(basis.begin(), basis.end(), scalars);
            if (!tangent) continue;
            tangent = std::fill_n(tangent, channels, T(0));
            tangent = std::copy(slope.begin(), slope.end(), tangent);
        }
    }
}

template <class T>
void add_motion(const HeadSizes& size, const SharedGraph<T>& graph, const HeadAtoms<T>& atoms, int64_t times,
                const double* t, T* dx, T* dv, double share, double* moved, double* velocity, int threads) {
    const int64_t numbers = 3 * graph.atoms;
    std::vector<T> drift;
    if (size.conserving) drift = drifts(graph, atoms.masses, T(size.radial_cutoff), threads);
    const auto work = [&](int64_t k, std::vector<double>& sum) {
        T *x = dx + k * numbers, *y = dv + k * numbers;
        if (size.conserving) {
            const double part = t[k] / size.time_cutoff, fading = std::exp(-9 * part * part), tall = 4 * part + 1;
            const T carried = T(t[k] * (1 - fading)), rise = T(5 * part * part / tall);
            // the factors of drift, displacement and dv in the velocity
            const T drifting = T(size.readout ? 0 : 1 - fading + 18 * part * part * fading);
            const T rising = T(size.readout ? 0 : 10 * part * (2 * part + 1) / (tall * tall) / size.time_cutoff);
            const T changing = size.readout ? T(part) : rise;
            for (int64_t n = 0; n < numbers; ++n) {
                y[n] = drift[n] * drifting + rising * x[n] + changing * y[n];
                x[n] = drift[n] * carried + rise * x[n];
            }
            remove_means(atoms, graph, x, sum);
            remove_means(atoms, graph, y, sum);
        }
        // the published head leaves free flight to the rollout
        const double flight = size.conserving ? t[k] : 0, kept = size.conserving || size.readout;
        for (int64_t n = 0; n < numbers; ++n) {
            const double v = atoms.velocities[n];
            moved[k * numbers + n] += share * (v * flight + x[n]);
            velocity[k * numbers + n] += share * (v * kept + y[n]);
        }
    };
    // processes speak with each other in one order
    parallel(graph.domain ? 1 : threads, [&](auto& guard) {
        std::vector<double> sum;
        guard([&] { sum.resize(4 * atoms.components); });
#pragma omp for
        for (int64_t k = 0; k < times; ++k) guard([&] { work(k, sum); });
    });
}

template void first_scalars(const HeadSizes&, const float*, int64_t, const int64_t*, int64_t, const double*, float*,
                            float*);
template void first_scalars(const HeadSizes&, const double*, int64_t, const int64_t*, int64_t, const double*, double*,
                            double*);
template void add_motion(const HeadSizes&, const SharedGraph<float>&, const HeadAtoms<float>&, int64_t, const double*,
                         float*, float*, double, double*, double*, int);
template void add_motion(const HeadSizes&, const SharedGraph<double>&, const HeadAtoms<double>&, int64_t, const double*,
                         double*, double*, double, double*, double*, int);

}  // namespace mdtrajnet
