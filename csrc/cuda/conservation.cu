#include "cuda/conservation.hpp"

#include "cuda/launch.hpp"

// Sums of each component at each time: over its atoms first of mass, number, positions and velocities, then of what turns it.
// Where all atoms of a warp belong together, one lane adds for all: a crystal is one component.

namespace mdtrajnet::cuda {
namespace {

using std::int64_t;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 128;
constexpr int kMass = 0, kNumber = 1, kPosition = 2, kVelocity = 5, kInertia = 8, kSpin = 14, kSums = 17;

struct Vector {
    double x, y, z;
};

__device__ Vector load(const double* p) { return {p[0], p[1], p[2]}; }
__device__ Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
__device__ Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
__device__ Vector operator*(double s, Vector a) { return {s * a.x, s * a.y, s * a.z}; }
__device__ double dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ Vector cross(Vector a, Vector b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

struct Matrix {
    Vector row[3];

    __device__ double trace() const { return row[0].x + row[1].y + row[2].z; }
    __device__ Vector operator*(Vector v) const { return {dot(row[0], v), dot(row[1], v), dot(row[2], v)}; }
};

__device__ Matrix cofactors(const Matrix& m, double& det) {
    const Matrix c{{cross(m.row[1], m.row[2]), cross(m.row[2], m.row[0]), cross(m.row[0], m.row[1])}};
    det = dot(m.row[0], c.row[0]);
    return c;
}

// The angular velocity of a tensor of inertia that spins: by the pseudo-inverse that _inverse in conservation.py describes.
__device__ Vector angular_velocity(const Matrix& a, Vector spin) {
    double det;
    const Matrix c = cofactors(a, det);
    const double size = a.trace() / 2, area = c.trace();
    const bool has_axis = !(det > 1e-10 * size * area) && area > 0;
    Matrix axis{}, full = a;
    for (int k = 0; k < 3; ++k) {
        if (has_axis) axis.row[k] = (1 / area) * c.row[k];
        full.row[k] = a.row[k] + size * axis.row[k];
    }
    const Matrix d = cofactors(full, det);
    if (!(det > 0)) return {0, 0, 0};
    const Vector omega = (1 / det) * (d * spin);
    return has_axis ? omega - (1 / size) * (axis * spin) : omega;
}

// An atom at a time; threads beyond the last are given its place, and have none of its weight.
struct Place {
    int64_t row, atom, label;
    bool real;

    __device__ explicit Place(const Moving& m) {
        const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, rows = m.times * m.atoms;
        real = thread < rows;
        row = real ? thread : rows - 1;
        atom = row % m.atoms;
        label = row - atom + m.component[atom];
    }
};

// Adds to the sums of a label, for all lanes of a warp.
template <int N>
__device__ void add(double* sums, int64_t label, const double (&x)[N]) {
    const bool together = __all_sync(kAll, label == __shfl_sync(kAll, label, 0));
    for (int k = 0; k < N; ++k) {
        double sum = x[k];
        if (together)
            for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
        if (!together || threadIdx.x % 32 == 0) atomicAdd(sums + kSums * label + k, sum);
    }
}

struct Relative {
    Vector r, v;  // to the centre of mass

    __device__ Relative(const Moving& m, const Place& at, const double* sums) {
        const double* own = sums + kSums * at.label;
        const double over = 1 / own[kMass];
        r = load(m.positions + 3 * at.row) - over * load(own + kPosition);
        v = load(m.velocities + 3 * at.row) - over * load(own + kVelocity);
    }
};

__global__ void __launch_bounds__(kThreads) sum_motion(Moving m, double* sums) {
    const Place at(m);
    const double mass = at.real ? m.masses[at.atom] : 0;
    const Vector r = mass * load(m.positions + 3 * at.row), v = mass * load(m.velocities + 3 * at.row);
    const double x[kInertia] = {mass, at.real ? 1. : 0., r.x, r.y, r.z, v.x, v.y, v.z};
    add(sums, at.label, x);
}

__global__ void __launch_bounds__(kThreads) sum_turning(Moving m, double* sums) {
    const Place at(m);
    const double mass = at.real ? m.masses[at.atom] : 0;
    const Relative own(m, at, sums);
    const Vector r = own.r, spin = mass * cross(r, own.v);
    const double square = dot(r, r);
    const double x[kSums - kInertia] = {mass * (square - r.x * r.x),
                                        mass * (square - r.y * r.y),
                                        mass * (square - r.z * r.z),
                                        -mass * r.x * r.y,
                                        -mass * r.x * r.z,
                                        -mass * r.y * r.z,
                                        spin.x,
                                        spin.y,
                                        spin.z};
    add(sums + kInertia, at.label, x);
}

__global__ void __launch_bounds__(kThreads) subtract_rigid(Moving m, const double* sums, double* out) {
    const Place at(m);
    if (!at.real) return;
    const Relative own(m, at, sums);
    const double *of = sums + kSums * at.label, *i = of + kInertia;
    const bool several = of[kNumber] > 1;
    Vector v = several ? own.v : Vector{0, 0, 0};  // alone: none, whatever is rounded
    if (m.isolated && m.isolated[at.atom] && several) {
        const Matrix inertia{{{i[0], i[3], i[4]}, {i[3], i[1], i[5]}, {i[4], i[5], i[2]}}};
        v = v - cross(angular_velocity(inertia, load(of + kSpin)), own.r);
    }
    out[3 * at.row] = v.x, out[3 * at.row + 1] = v.y, out[3 * at.row + 2] = v.z;
}

}  // namespace

std::size_t internal_velocities_bytes(std::int64_t times, std::int64_t atoms) {
    return std::size_t(times * atoms) * kSums * sizeof(double);
}

void internal_velocities(const Moving& moving, void* workspace, double* out, Stream stream) {
    const int64_t rows = moving.times * moving.atoms;
    if (rows == 0) return;
    double* const sums = static_cast<double*>(workspace);
    const dim3 grid(unsigned((rows + kThreads - 1) / kThreads)), block(kThreads);
    check(cudaMemsetAsync(sums, 0, internal_velocities_bytes(moving.times, moving.atoms), stream),
          "internal velocities");
    launch(sum_motion, grid, block, 0, stream, moving, sums);
    if (moving.isolated) launch(sum_turning, grid, block, 0, stream, moving, sums);
    launch(subtract_rigid, grid, block, 0, stream, moving, sums, out);
    check(cudaGetLastError(), "internal velocities");
}

}  // namespace mdtrajnet::cuda
