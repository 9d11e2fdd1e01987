#include "cpu/head.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "math/edge.hpp"

namespace mdtrajnet {
namespace {

using std::int64_t;

// The mean velocity of each atom and its neighbours, less its own: [atoms][3].
template <class T>
std::vector<T> drifts(const AttentionGraph<T>& graph, const T* masses, T cutoff, int threads) {
    std::vector<T> drift(3 * graph.atoms);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < graph.atoms; ++i) {
        T total = masses[i], sum[3] = {};
        for (int64_t e = graph.row_ptr[i]; e < graph.row_ptr[i + 1]; ++e) {
            const T *r = graph.r + 3 * e, *w = graph.w + 3 * e;
            const T mass = masses[graph.neighbor[e]] * envelope(std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]), cutoff);
            total += mass;
            for (int x = 0; x < 3; ++x) sum[x] += mass * w[x];
        }
        for (int x = 0; x < 3; ++x) drift[3 * i + x] = sum[x] / total;
    }
    return drift;
}

// Takes from `of` [atoms][3] its mass-weighted mean in each component.  sum, mass: memory [components][3], [components].
template <class T>
void remove_means(const HeadAtoms<T>& atoms, int64_t count, T* of, std::vector<double>& sum, std::vector<double>& mass) {
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(mass.begin(), mass.end(), 0.0);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t c = atoms.component[i];
        mass[c] += atoms.masses[i];
        for (int x = 0; x < 3; ++x) sum[3 * c + x] += double(atoms.masses[i]) * of[3 * i + x];
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t c = atoms.component[i];
        for (int x = 0; x < 3; ++x) of[3 * i + x] -= T(sum[3 * c + x] / mass[c]);
    }
}

}  // namespace

template <class T>
void first_scalars(const HeadSizes& size, const T* embedding, int64_t atoms, const int64_t* species, int64_t times,
                   const T* t, T* scalars, int threads) {
    const long channels = size.species_channels, centres = size.time_channels;
    const T inverse_step = T((centres - 1) / size.time_cutoff);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < times * atoms; ++row) {
        T* s = scalars + row * (channels + centres);
        std::copy_n(embedding + species[row % atoms] * channels, channels, s);
        for (long k = 0; k < centres; ++k) {
            const T x = (t[row] - T(k * size.time_cutoff / (centres - 1))) * inverse_step;
            s[channels + k] = std::exp(-x * x) / T(1.12);
        }
    }
}

template <class T>
void apply_head(const HeadSizes& size, const AttentionGraph<T>& graph, const HeadAtoms<T>& atoms, int64_t times,
                const T* t, T* displacement, T* velocity, int threads) {
    const int64_t count = graph.atoms;
    const T* v = atoms.velocities;
    if (!size.conserving) {
        if (velocity)
            for (int64_t k = 0; k < 3 * times * count; ++k) velocity[k] += v[k % (3 * count)];
        return;
    }
    const std::vector<T> drift = drifts(graph, atoms.masses, T(size.radial_cutoff), threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<double> sum(3 * atoms.components), mass(atoms.components);
#pragma omp for
        for (int64_t k = 0; k < times; ++k) {
            const T* time = t + k * count;
            T* dx = displacement + 3 * k * count;
            T* dv = velocity ? velocity + 3 * k * count : nullptr;
            for (int64_t i = 0; i < count; ++i) {
                const T x = time[i] / T(size.time_cutoff);
                const T carried = time[i] * (T(1) - std::exp(-(T(3) * x) * (T(3) * x)));
                const T share = T(5) * x * x / (T(4) * x + T(1));
                for (int64_t y = 3 * i; y < 3 * i + 3; ++y) {
                    dx[y] = drift[y] * carried + share * dx[y];
                    if (dv) dv[y] *= x;
                }
            }
            remove_means(atoms, count, dx, sum, mass);
            if (dv) remove_means(atoms, count, dv, sum, mass);
            for (int64_t y = 0; y < 3 * count; ++y) {
                dx[y] += v[y] * time[y / 3];
                if (dv) dv[y] += v[y];
            }
        }
    }
}

template void first_scalars(const HeadSizes&, const float*, int64_t, const int64_t*, int64_t, const float*, float*, int);
template void first_scalars(const HeadSizes&, const double*, int64_t, const int64_t*, int64_t, const double*, double*, int);
template void apply_head(const HeadSizes&, const AttentionGraph<float>&, const HeadAtoms<float>&, int64_t, const float*,
                         float*, float*, int);
template void apply_head(const HeadSizes&, const AttentionGraph<double>&, const HeadAtoms<double>&, int64_t,
                         const double*, double*, double*, int);

}  // namespace mdtrajnet
