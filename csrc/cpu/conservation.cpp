#include "cpu/conservation.hpp"

#include "cpu/domain.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

namespace mdtrajnet {
namespace {

using std::int64_t;

// What is lost of an angular momentum is rounding below this part of sum m |r| |v|.  A molecule that does not rotate
// needs one step.
constexpr double kExact = 1e-15;
// An eigenvalue of a tensor of inertia below this part of the largest is 0: that of the axis of a linear molecule.
constexpr double kFlat = 1e-10;

using Vector = std::array<double, 3>;
using Matrix = std::array<Vector, 3>;  // symmetric, or a rotation's rows

Vector load(const double* x) { return {x[0], x[1], x[2]}; }

void store(const Vector& a, double* x) { std::copy(a.begin(), a.end(), x); }

Vector operator+(const Vector& a, const Vector& b) { return {a[0] + b[0], a[1] + b[1], a[2] + b[2]}; }

Vector operator-(const Vector& a, const Vector& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }

Vector operator*(double s, const Vector& a) { return {s * a[0], s * a[1], s * a[2]}; }

double dot(const Vector& a, const Vector& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

Vector cross(const Vector& a, const Vector& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

Vector operator*(const Matrix& a, const Vector& x) { return {dot(a[0], x), dot(a[1], x), dot(a[2], x)}; }

// Adds that of a mass at r.
void add_inertia(double mass, const Vector& r, Matrix& tensor) {
    const double square = dot(r, r);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) tensor[i][j] += mass * ((i == j ? square : 0.0) - r[i] * r[j]);
}

// Of a symmetric positive semidefinite matrix, by Jacobi's rotations: they make it diagonal, and x its eigenvectors.
Matrix pseudo_inverse(Matrix a) {
    Matrix x{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};  // rows
    for (int sweep = 0; sweep < 16; ++sweep) {    // each squares what is left: a few suffice
        const double left = std::abs(a[0][1]) + std::abs(a[0][2]) + std::abs(a[1][2]);
        if (!(left > 1e-20 * (a[0][0] + a[1][1] + a[2][2]))) break;  // also where it is not finite
        for (int p = 0; p < 2; ++p)
            for (int q = p + 1; q < 3; ++q) {
                if (a[p][q] == 0) continue;
                const int r = 3 - p - q;
                const double half = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                const double t = std::copysign(1 / (std::abs(half) + std::sqrt(half * half + 1)), half);
                const double c = 1 / std::sqrt(t * t + 1), s = t * c;
                a[p][p] -= t * a[p][q];
                a[q][q] += t * a[p][q];
                a[p][q] = a[q][p] = 0;
                const double rp = c * a[r][p] - s * a[r][q], rq = s * a[r][p] + c * a[r][q];
                a[r][p] = a[p][r] = rp;
                a[r][q] = a[q][r] = rq;
                const Vector xp = c * x[p] - s * x[q];
                x[q] = s * x[p] + c * x[q];
                x[p] = xp;
            }
    }
    const double least = kFlat * std::max({a[0][0], a[1][1], a[2][2]});
    Matrix inverse{};
    for (int k = 0; k < 3; ++k) {
        if (a[k][k] <= least) continue;
        for (int i = 0; i < 3; ++i) inverse[i] = inverse[i] + (x[k][i] / a[k][k]) * x[k];
    }
    return inverse;
}

// About theta, by |theta|: Rodrigues' formula.
Matrix rotation(const Vector& theta) {
    const double angle = std::sqrt(dot(theta, theta));
    const auto sinc = [](double x) { return x > 0 ? std::sin(x) / x : 1.0; };
    const double once = sinc(angle), twice = 0.5 * sinc(0.5 * angle) * sinc(0.5 * angle);
    Matrix turn;
    for (int k = 0; k < 3; ++k) {
        Vector unit{};
        unit[k] = 1;
        const Vector first = cross(unit, theta);  // row k of theta x
        turn[k] = unit + once * first + twice * cross(first, theta);
    }
    return turn;
}

struct Particle {
    double mass;
    Vector r, v;  // from the centre of mass, relative to it
};

// Turns them until their angular momentum is what is wanted; false if it is already.
bool turn(std::vector<Particle>& particles, const Vector& wanted, double t, int steps) {
    for (int step = 0; step < steps; ++step) {
        Vector lost = wanted;
        double size = 0;
        Matrix inertia{}, inertia_v{};
        for (const Particle& p : particles) {
            lost = lost - p.mass * cross(p.r, p.v);
            size += p.mass * std::sqrt(dot(p.r, p.r) * dot(p.v, p.v));
            add_inertia(p.mass, p.r, inertia);
            add_inertia(p.mass, p.v, inertia_v);
        }
        const double most = std::max({std::abs(lost[0]), std::abs(lost[1]), std::abs(lost[2])});
        if (!(most > kExact * size)) return step > 0;
        // pseudo-inverses leave out rotation about the axis of a linear molecule
        Matrix both = inertia;
        for (int k = 0; k < 3; ++k) both[k] = both[k] + (t * t) * inertia_v[k];
        both = pseudo_inverse(both);
        std::array<Vector, 3> by_angle;  // theta for each unit of omega
        for (int k = 0; k < 3; ++k) {
            Vector unit{};
            unit[k] = 1;
            by_angle[k] = (t * t) * (both * cross(wanted, unit));
            inertia[k] = inertia[k] + cross(by_angle[k], wanted);
        }
        for (int i = 0; i < 3; ++i)  // symmetric but for rounding
            for (int j = 0; j < i; ++j) inertia[i][j] = inertia[j][i] = 0.5 * (inertia[i][j] + inertia[j][i]);
        const Vector omega = pseudo_inverse(inertia) * lost;
        const Matrix turned = rotation(omega[0] * by_angle[0] + omega[1] * by_angle[1] + omega[2] * by_angle[2]);
        for (Particle& p : particles) {
            p.r = turned * p.r;
            p.v = turned * p.v + cross(omega, p.r);
        }
    }
    return true;
}

// The atoms begin .. end make up a component.
void conserve_component(const Motion& m, const int64_t* begin, const int64_t* end, int steps,
                        std::vector<Particle>& particles) {
    double mass = 0;
    for (const int64_t* i = begin; i < end; ++i) mass += m.masses[*i];
    const auto mean = [&](const auto& of) {  // weighted with the masses
        Vector sum{};
        for (const int64_t* i = begin; i < end; ++i) sum = sum + m.masses[*i] * of(*i);
        return (1 / mass) * sum;
    };
    const auto position = [&](int64_t i) { return load(m.positions + 3 * i); };
    const auto start_velocity = [&](int64_t i) { return load(m.velocities + 3 * i); };

    const bool turns = m.isolated[*begin] && end - begin > 1;
    Vector drift{}, wanted{};
    if (turns) {
        const Vector centre = mean(position);
        drift = mean(start_velocity);
        for (const int64_t* i = begin; i < end; ++i)
            wanted = wanted + m.masses[*i] * cross(position(*i) - centre, start_velocity(*i) - drift);
        particles.resize(end - begin);
    }
    for (int64_t k = 0; k < m.times; ++k) {
        double *moved = m.moved + 3 * m.atoms * k, *velocity = m.velocity + 3 * m.atoms * k;
        const Vector away = mean([&](int64_t i) { return load(moved + 3 * i) - m.t[k] * start_velocity(i); });
        const Vector faster = mean([&](int64_t i) { return load(velocity + 3 * i) - start_velocity(i); });
        for (const int64_t* i = begin; i < end; ++i) {
            store(load(moved + 3 * *i) - away, moved + 3 * *i);
            store(load(velocity + 3 * *i) - faster, velocity + 3 * *i);
        }
        if (!turns) continue;
        const Vector centre = mean([&](int64_t i) { return position(i) + load(moved + 3 * i); });
        for (int64_t n = 0; n < end - begin; ++n) {
            const int64_t i = begin[n];
            particles[n] = {m.masses[i], position(i) + load(moved + 3 * i) - centre, load(velocity + 3 * i) - drift};
        }
        if (!turn(particles, wanted, m.t[k], steps)) continue;
        for (int64_t n = 0; n < end - begin; ++n) {
            const int64_t i = begin[n];
            store(particles[n].r + (centre - position(i)), moved + 3 * i);
            store(particles[n].v + drift, velocity + 3 * i);
        }
    }
}

// Calls of(begin, end) with the atoms of each component.
template <class F>
void for_each_component(int64_t atoms, const int64_t* component, const F& of) {
    std::vector<int64_t> ptr(atoms + 1), order(atoms);  // the atoms in the order of their labels
    for (int64_t i = 0; i < atoms; ++i) ++ptr[component[i] + 1];
    std::partial_sum(ptr.begin(), ptr.end(), ptr.begin());
    std::vector<int64_t> next(ptr.begin(), ptr.end() - 1);
    for (int64_t i = 0; i < atoms; ++i) order[next[component[i]]++] = i;
    for (int64_t c = 0; c < atoms; ++c)
        if (ptr[c] < ptr[c + 1]) of(order.data() + ptr[c], order.data() + ptr[c + 1]);
}

}  // namespace

int64_t runaway(const Motion& m, bool flight, double cutoff) {
    int64_t first = m.atoms;
    for (int64_t k = 0; k < m.times; ++k)
        for (int64_t i = 0; i < first; ++i)
            for (int64_t x = 3 * i; x < 3 * i + 3; ++x) {
                const int64_t at = 3 * m.atoms * k + x;
                const double away = m.moved[at] - (flight ? m.t[k] * m.velocities[x] : 0);
                if (!(std::abs(away) < cutoff && std::isfinite(m.velocity[at]))) first = i;
            }
    return first < m.atoms ? first : -1;
}

namespace {

// Takes from values [rows][atoms][3] their mass-weighted means in each component, wherever its atoms are.
void remove_means(const Motion& m, int64_t rows, double* values) {
    const int64_t width = 1 + 3 * rows;
    std::vector<double> sums(m.shared->count * width);
    for (int64_t i = 0; i < m.atoms; ++i) {
        double* to = sums.data() + m.component[i] * width;
        *to++ += m.masses[i];
        for (int64_t k = 0; k < rows; ++k)
            for (int x = 0; x < 3; ++x) *to++ += m.masses[i] * values[3 * (k * m.atoms + i) + x];
    }
    m.domain->sum_shared(*m.shared, sums.data(), width);
    for (int64_t i = 0; i < m.atoms; ++i) {
        const double *from = sums.data() + m.component[i] * width, mass = *from++;
        for (int64_t k = 0; k < rows; ++k)
            for (int x = 0; x < 3; ++x) values[3 * (k * m.atoms + i) + x] -= *from++ / mass;
    }
}

// Momenta alone, of components that no one process has all atoms of.
void conserve_together(const Motion& m) {
    const int64_t numbers = 3 * m.atoms;
    std::vector<double> more(2 * m.times * numbers);  // than in free flight: way and velocity at each time
    for (int64_t k = 0; k < m.times; ++k)
        for (int64_t n = 0; n < numbers; ++n) {
            more[2 * k * numbers + n] = m.moved[k * numbers + n] - m.t[k] * m.velocities[n];
            more[(2 * k + 1) * numbers + n] = m.velocity[k * numbers + n] - m.velocities[n];
        }
    remove_means(m, 2 * m.times, more.data());
    for (int64_t k = 0; k < m.times; ++k)
        for (int64_t n = 0; n < numbers; ++n) {
            m.moved[k * numbers + n] = more[2 * k * numbers + n] + m.t[k] * m.velocities[n];
            m.velocity[k * numbers + n] = more[(2 * k + 1) * numbers + n] + m.velocities[n];
        }
}

}  // namespace

void conserve(const Motion& motion, int steps) {
    if (motion.domain) return conserve_together(motion);
    std::vector<Particle> particles;
    for_each_component(motion.atoms, motion.component, [&](const int64_t* begin, const int64_t* end) {
        conserve_component(motion, begin, end, steps, particles);
    });
}

void internal_velocities(const Motion& motion, const double* positions) {
    if (motion.domain) return remove_means(motion, motion.times, motion.velocity);
    const double* masses = motion.masses;
    for_each_component(motion.atoms, motion.component, [&](const int64_t* begin, const int64_t* end) {
        for (int64_t k = 0; k < motion.times; ++k) {
            const double* x = positions + 3 * motion.atoms * k;
            double *v = motion.velocity + 3 * motion.atoms * k, mass = 0;
            if (end - begin == 1) {  // alone: none, whatever is rounded
                store(Vector{}, v + 3 * *begin);
                continue;
            }
            Vector centre{}, drift{}, spin{}, omega{};
            for (const int64_t* i = begin; i < end; ++i) {
                mass += masses[*i];
                centre = centre + masses[*i] * load(x + 3 * *i);
                drift = drift + masses[*i] * load(v + 3 * *i);
            }
            centre = (1 / mass) * centre;
            drift = (1 / mass) * drift;
            if (motion.isolated[*begin]) {
                Matrix inertia{};
                for (const int64_t* i = begin; i < end; ++i) {
                    const Vector r = load(x + 3 * *i) - centre;
                    spin = spin + masses[*i] * cross(r, load(v + 3 * *i) - drift);
                    add_inertia(masses[*i], r, inertia);
                }
                omega = pseudo_inverse(inertia) * spin;
            }
            for (const int64_t* i = begin; i < end; ++i)
                store(load(v + 3 * *i) - drift - cross(omega, load(x + 3 * *i) - centre), v + 3 * *i);
        }
    });
}

}  // namespace mdtrajnet
