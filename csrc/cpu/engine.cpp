#include "cpu/engine.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/conservation.hpp"
#include "cpu/team.hpp"

namespace mdtrajnet {
namespace {

using std::int64_t;
using Array = std::vector<double>;

// Atoms of a group: enough to make use of weights once they are in the cache, few enough to leave room for the states.
constexpr int64_t kGroup = 128;

// NO_ENERGY of mdtrajnet_fast/md/window.py.
constexpr const char* kNoEnergy =
    "its potential energy is not finite. The model left the chemistry it was trained on; start from a lower "
    "temperature or a relaxed geometry";

void sum_to(double* to, double factor, const double* x, int64_t count) {
    for (int64_t n = 0; n < count; ++n) to[n] += factor * x[n];
}

// What a window does about the energies to keep at its end: nothing, measure them, or draw to a goal.
struct Goal {
    double* measured = nullptr;                      // [2][systems] eV, total and relative kinetic
    const double *total = nullptr, *near = nullptr;  // [systems] eV, and the differences up to which the pull is weak
};

}  // namespace

// Some of the systems, and memory for their windows.
class Engine::Group {
  public:
    Group(const Predictor& predictor, const Contents& all, const Rules& rules, const Course& course, Domain* domain,
          int64_t from, int64_t to)
        : first_system(from), first_atom(all.ptr[from]), atoms(all.ptr[to] - all.ptr[from]), systems(to - from),
          predictor_(predictor), rules_(rules), course_(course), domain_(domain),
          list_(predictor.head().radial_cutoff, rules.skin) {
        for (int64_t s = from; s <= to; ++s) ptr_.push_back(all.ptr[s] - first_atom);
        const auto part = [&](const auto& x, auto& own, int64_t each, int64_t begin, int64_t end) {
            if (!x.empty()) own.assign(x.begin() + each * begin, x.begin() + each * end);
        };
        part(all.species, species_, 1, first_atom, first_atom + atoms);
        part(all.masses, masses_, 1, first_atom, first_atom + atoms);
        part(all.cells, cells_, 9, from, to);
        part(all.pbc, pbc_, 3, from, to);
        isolated_.reset(new bool[atoms]);
        for (int64_t s = 0; s < systems; ++s) {
            const bool periodic = domain_ || (!pbc_.empty() && (pbc_[3 * s] || pbc_[3 * s + 1] || pbc_[3 * s + 2]));
            std::fill(isolated_.get() + ptr_[s], isolated_.get() + ptr_[s + 1], !periodic);
        }
    }

    // The group's share of a window of all `total` atoms and `all` systems.  Throws Broken.
    void window(const double* positions, const double* momenta, const Window& of, const Goal& goal, int64_t total,
                int64_t all, int threads) {
        threads_ = threads;
        start(positions, momenta);
        goal_ = {};
        if (goal.total) goal_.total = goal.total + first_system, goal_.near = goal.near + first_system;
        energies_.assign(goal.measured ? 2 * systems : 0, 0.0);
        if (goal.measured) goal_.measured = energies_.data();
        switch (course_.method) {
            case Method::kPlain: plain(of.times, of.t); break;
            case Method::kReversible: reversible(of.times, of.t); break;
            case Method::kSymplectic: symplectic(of.times, of.t);
        }
        together([&] {
            for (std::size_t n = 0; n < path_.moved.size(); ++n)
                if (!std::isfinite(path_.moved[n] + path_.velocity[n]))
                    throw broke_at(static_cast<int64_t>(n) / 3 % atoms);
        });
        for (int64_t k = 0, frame = 0; k < of.times; ++k) {
            if (of.wanted[k]) {
                const int64_t at = 3 * (frame * total + first_atom);
                write_state(k, of.positions + at, of.momenta + at);
                if (of.energies) write_energies(k, of.energies + frame * all + first_system);
                ++frame;
            }
        }
        write_state(of.times - 1, of.end_positions + 3 * first_atom, of.end_momenta + 3 * first_atom);
        write(goal.measured, all);
    }

    void energies(const double* positions, const double* momenta, double* energies, int64_t all, int threads) {
        threads_ = threads;
        start(positions, momenta);
        energies_.assign(2 * systems, 0.0);
        measure(potential(x_), v_);
        write(energies, all);
    }

    const int64_t first_system, first_atom, atoms, systems;

  private:
    struct KeptAcceleration {
        Array x, acceleration;
    };

    // The way from a start.
    struct Path {
        Array moved, velocity;  // [times][atoms][3] Å and Å/fs

        void resize(int64_t numbers) { moved.resize(numbers), velocity.resize(numbers); }
    };

    void start(const double* positions, const double* momenta) {
        x_.assign(positions + 3 * first_atom, positions + 3 * (first_atom + atoms));
        v_.resize(3 * atoms);
        for (int64_t n = 0; n < 3 * atoms; ++n) v_[n] = momenta[3 * first_atom + n] / masses_[n / 3] * rules_.fs;
    }

    void write(double* energies, int64_t all) const {
        for (int64_t k = 0; energies && k < 2; ++k)
            std::copy_n(energies_.data() + k * systems, systems, energies + k * all + first_system);
    }

    // The frame at time number k.
    void write_state(int64_t k, double* x, double* p) const {
        for (int64_t n = 0; n < 3 * atoms; ++n) {
            x[n] = x_[n] + path_.moved[3 * k * atoms + n];
            p[n] = path_.velocity[3 * k * atoms + n] / rules_.fs * masses_[n / 3];
        }
    }

    void write_energies(int64_t k, double* energies) {
        Array x = x_;
        sum_to(x.data(), 1, path_.moved.data() + 3 * k * atoms, 3 * atoms);
        const Array& energy = potential(x);
        std::copy(energy.begin(), energy.end(), energies);
    }

    void plain(int64_t times, const double* t) {
        forward(x_, v_, times, t, path_);
        at_start_ = here_;
        keep_energy(times, t, path_);
    }

    void reversible(int64_t times, const double* t) {
        const int64_t inner = times - 1, numbers = 3 * atoms;
        const double* h = t + inner;
        forward(x_, v_, times, t, path_);
        at_start_ = here_;
        double *moved = path_.moved.data() + inner * numbers, *velocity = path_.velocity.data() + inner * numbers;
        Array x(numbers), v(velocity, velocity + numbers);
        for (int64_t n = 0; n < numbers; ++n) {
            x[n] = x_[n] + moved[n];
            moved[n] *= rules_.back[0];
            velocity[n] *= rules_.back[0];
        }
        for (std::size_t k = 1; k < rules_.back.size(); ++k) {
            backward(x, v, 1, h, seen_);
            sum_to(x.data(), 1, seen_.moved.data(), numbers);
            v = seen_.velocity;
            forward(x, v, 1, h, seen_);
            sum_to(x.data(), 1, seen_.moved.data(), numbers);
            v = seen_.velocity;
            for (int64_t n = 0; n < numbers; ++n) moved[n] += rules_.back[k] * (x[n] - x_[n]);
            sum_to(velocity, rules_.back[k], v.data(), numbers);
        }
        end_.moved.assign(moved, moved + numbers);
        end_.velocity.assign(velocity, velocity + numbers);
        conserve_momenta(1, h, end_);
        keep_energy(1, h, end_);
        if (inner) within(inner, t);
        std::copy(end_.moved.begin(), end_.moved.end(), path_.moved.end() - numbers);
        std::copy(end_.velocity.begin(), end_.velocity.end(), path_.velocity.end() - numbers);
    }

    // The frames before the end, seen from both ends.
    void within(int64_t inner, const double* t) {
        const int64_t numbers = 3 * atoms;
        Array x = x_, ago(inner);
        sum_to(x.data(), 1, end_.moved.data(), numbers);
        for (int64_t k = 0; k < inner; ++k) ago[k] = t[inner] - t[k];
        backward(x, end_.velocity, inner, ago.data(), seen_);
        for (int64_t k = 0; k < inner; ++k) {
            const double late = t[k] / t[inner];
            for (int64_t n = 0, at = k * numbers; n < numbers; ++n, ++at) {
                double &moved = path_.moved[at], &velocity = path_.velocity[at];
                moved += late * (x[n] - x_[n] + seen_.moved[at] - moved);
                velocity += late * (seen_.velocity[at] - velocity);
            }
        }
        path_.moved.resize(inner * numbers), path_.velocity.resize(inner * numbers);
        conserve_momenta(inner, t, path_);
        path_.resize((inner + 1) * numbers);
    }

    // Kicks at both ends and in the middle, and free flight between them.
    void symplectic(int64_t times, const double* t) {
        const int64_t inner = times - 1, numbers = 3 * atoms;
        const double h = t[inner];
        Array x = x_, v = v_;
        sum_to(v.data(), h / 6, kept_acceleration(kEnds, x).data(), numbers);
        fly(h / 2, h / 2, x, v);
        sum_to(v.data(), 2 * h / 3, acceleration(kMiddle, x).data(), numbers);
        fly(h / 2, h, x, v);
        path_.resize(times * numbers);
        double *moved = path_.moved.data() + inner * numbers, *velocity = path_.velocity.data() + inner * numbers;
        for (int64_t n = 0; n < numbers; ++n) {
            moved[n] = x[n] - x_[n];
            x[n] = x_[n] + moved[n];  // to the bit where the next window starts, which then knows its acceleration
        }
        sum_to(v.data(), h / 6, kept_acceleration(kEnds, x).data(), numbers);
        std::copy(v.begin(), v.end(), velocity);
        if (inner) {
            const Array before = kept_acceleration(kEnergy, x_), after = kept_acceleration(kEnergy, x);
            for (int64_t k = 0; k < inner; ++k) interpolate(t[k], h, before, after, moved, velocity, k);
        }
        if (!goal_.total && !goal_.measured) return;
        end_.moved.assign(moved, moved + numbers);
        end_.velocity.assign(velocity, velocity + numbers);
        find_neighbors(x);
        at_start_ = here_;
        keep_energy(1, &h, end_);
        std::copy(end_.velocity.begin(), end_.velocity.end(), velocity);
    }

    // Moves x by v for a time; then it is so late in the window.  Throws for an atom where nobody should look for neighbours.
    void fly(double time, double late, Array& x, Array& v) const {
        sum_to(x.data(), time, v.data(), 3 * atoms);
        Array moved(3 * atoms);
        for (int64_t n = 0; n < 3 * atoms; ++n) moved[n] = x[n] - x_[n];
        const Motion motion{atoms,           x_.data(), v_.data(), masses_.data(), nullptr,
                            isolated_.get(), 1,         &late,     moved.data(),   v.data()};
        check_course(motion, true);
    }

    // Throws for an atom that has left its course.
    void check_course(const Motion& motion, bool flight) const {
        together([&] {
            const int64_t atom = runaway(motion, flight, predictor_.head().radial_cutoff);
            if (atom >= 0) throw broke_at(atom);
        });
    }

    // Where processes share a system, a trajectory that breaks in one of them does so in all.
    template <class Work>
    void together(const Work& work) const {
        if (!domain_) return work();
        std::optional<Broken> broken;
        try {
            work();
        } catch (const Broken& why) {
            broken = why;
        }
        const bool elsewhere = domain_->any(broken.has_value());
        if (broken) throw *broken;
        if (elsewhere) throw Broken{first_system, -1, {}};
    }

    // Whether what is known at one place has to be found at another.
    bool differ(const Array& known, const Array& wanted) const {
        return domain_ ? domain_->any(known != wanted) : known != wanted;
    }

    // The frame at t within a window of h, on the quintic polynomial with the positions, velocities and accelerations of
    // both ends.
    void interpolate(double t, double h, const Array& before, const Array& after, const double* moved,
                     const double* velocity, int64_t frame) {
        const double s = t / h;
        double *x = path_.moved.data() + frame * 3 * atoms, *v = path_.velocity.data() + frame * 3 * atoms;
        for (int64_t n = 0; n < 3 * atoms; ++n) {
            // what a parabola from the start leaves for the powers 3 to 5 of s
            const double speed = h * v_[n], bend = h * h * before[n];
            const double dx = moved[n] - speed - bend / 2, dv = h * velocity[n] - speed - bend,
                         da = h * h * after[n] - bend;
            const double c3 = 10 * dx - 4 * dv + da / 2, c4 = -15 * dx + 7 * dv - da, c5 = 6 * dx - 3 * dv + da / 2;
            x[n] = s * (speed + s * (bend / 2 + s * (c3 + s * (c4 + s * c5))));
            v[n] = (speed + s * (bend + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)))) / h;
        }
    }

    // Accelerations (Å/fs^2) at x by a window potential, without what would move or turn a component as a whole: the
    // potential has none of it, but its rounding has.
    Array acceleration(WindowRole role, const Array& x) {
        find_neighbors(x);
        Array a(3 * all());
        predictor_.real() ? slopes<double>(role, x, a) : slopes<float>(role, x, a);
        a.resize(3 * atoms);
        for (int64_t n = 0; n < 3 * atoms; ++n) a[n] *= -rules_.fs * rules_.fs / masses_[n / 3];
        internal_velocities({atoms, x.data(), nullptr, masses_.data(), here_.label.data(), isolated_.get(), 1, nullptr,
                             nullptr, a.data(), domain_, &here_},
                            x.data());
        return a;
    }

    // The same, kept: the end of a window is the start of the next.
    const Array& kept_acceleration(WindowRole role, const Array& x) {
        KeptAcceleration& kept = kept_[role];
        if (differ(kept.x, x)) {
            kept.acceleration = acceleration(role, x);
            kept.x = x;
        }
        return kept.acceleration;
    }

    template <class T>
    void slopes(WindowRole role, const Array& x, Array& slope) const {
        Edges<T> edges;
        predictor_.slopes<T>(graph<T>(x, nullptr, edges), species_.data(), role, nullptr, slope.data(),
                             useful_threads(threads_, rows()));
    }

    // Where the atoms are t after x and v, with the momenta of these.
    void forward(const Array& x, const Array& v, int64_t times, const double* t, Path& path) {
        find_neighbors(x);
        path.resize(3 * atoms * times);
        predictor_.real() ? predict<double>(x, v, times, t, path) : predict<float>(x, v, times, t, path);
        const Motion motion = motion_of(x, v, here_, times, t, path);
        check_course(motion, predictor_.head().conserving);  // the published head leaves free flight to the rollout
        conserve(motion, rules_.steps);
    }

    Broken broke_at(int64_t atom) const {
        const int64_t s = std::upper_bound(ptr_.begin(), ptr_.end(), atom) - ptr_.begin() - 1;
        return {first_system + s, atom - ptr_[s], {}};
    }

    // Where they were t before: the film in reverse.
    void backward(const Array& x, const Array& v, int64_t times, const double* t, Path& path) {
        Array turned(v.size());
        for (std::size_t n = 0; n < v.size(); ++n) turned[n] = -v[n];
        forward(x, turned, times, t, path);
        for (double& velocity : path.velocity) velocity = -velocity;
    }

    void conserve_momenta(int64_t times, const double* t, Path& path) {
        conserve(motion_of(x_, v_, at_start_, times, t, path), rules_.steps);
    }

    Motion motion_of(const Array& x, const Array& v, const Components& components, int64_t times, const double* t,
                     Path& path) const {
        return {atoms,           x.data(),   v.data(), masses_.data(),    components.label.data(),
                isolated_.get(), times,      t,        path.moved.data(), path.velocity.data(),
                domain_,         &components};
    }

    // Atoms with the ghosts.
    int64_t all() const { return atoms + (domain_ ? domain_->ghosts() : 0); }

    // The systems, or what a process sees of one: with the ghosts, which were refreshed at x.
    Systems systems_at(const Array& x) const {
        return {
            domain_ ? seen_x_.data() : x.data(), all(), ptr_.data(), systems, cells_.empty() ? nullptr : cells_.data(),
            pbc_.empty() ? nullptr : pbc_.data()};
    }

    void find_neighbors(const Array& x) {
        if (domain_) look_around(x);
        const Systems there = systems_at(x);
        row_ptr_.resize(all() + 1);
        together([&] {
            try {
                list_.update(there, threads_, row_ptr_.data());
            } catch (const std::invalid_argument& error) {
                refuse(there, error.what());
                throw;
            }
        });
        near_.resize(row_ptr_.back());
        shift_.resize(3 * row_ptr_.back());
        list_.fill(near_.data(), shift_.data());
        std::fill(row_ptr_.begin() + atoms, row_ptr_.end(), row_ptr_[atoms]);  // ghosts have no edges
        near_.resize(row_ptr_.back());
        neighbor_.assign(near_.begin(), near_.end());
        if (domain_) {
            here_ = domain_->components(row_ptr_.data(), near_.data());
        } else {
            here_.label.resize(atoms);
            connected_components(atoms, row_ptr_.data(), near_.data(), here_.label.data());
            here_.count = *std::max_element(here_.label.begin(), here_.label.end()) + 1;
        }
    }

    // Finds ghosts, once an atom of any process has moved far enough to see others, and where they are.
    void look_around(const Array& x) {
        const double far = rules_.skin * rules_.skin / 4;
        bool moved = met_at_.empty();
        for (int64_t i = 0; i < atoms && !moved; ++i) {
            double square = 0;
            for (int64_t n = 3 * i; n < 3 * i + 3; ++n) square += (x[n] - met_at_[n]) * (x[n] - met_at_[n]);
            moved = !(square <= far);
        }
        if (domain_->any(moved)) {
            domain_->meet(x.data());
            met_at_ = x;
            list_ = VerletList(predictor_.head().radial_cutoff, rules_.skin);
            ptr_ = {0, all()};
            species_.resize(all()), masses_.resize(all());
            refresh(1, species_), refresh(1, masses_);
        }
        seen_x_ = with_ghosts(x);
        const std::vector<double>& offsets = domain_->offsets();
        for (std::size_t n = 0; n < offsets.size(); ++n) seen_x_[n] += offsets[n];
    }

    // What ghosts have of `of` [all][width], from their owners.
    template <class T>
    void refresh(int64_t width, std::vector<T>& of) const {
        struct Of {
            T* data;
            int64_t width;
        } rows{of.data(), width};
        const int64_t bytes = width * sizeof(T);
        const auto at = [](void* context, int64_t atom, int) -> void* {
            return static_cast<Of*>(context)->data + atom * static_cast<Of*>(context)->width;
        };
        domain_->refresh(1, &bytes, at, &rows);
    }

    // Vectors of the atoms [atoms][3], and those of the ghosts.
    Array with_ghosts(Array of) const {
        of.resize(3 * all());
        if (domain_) refresh(3, of);
        return of;
    }

    // Throws for the system that a neighbour list refuses, and says why.
    void refuse(const Systems& there, const char* why) const {
        if (domain_) throw Broken{first_system, -1, why};
        for (int64_t s = 0; s < systems; ++s) {
            const int64_t ptr[2] = {0, ptr_[s + 1] - ptr_[s]};
            std::vector<int64_t> row_ptr(ptr[1] + 1);
            const Systems alone{
                there.positions + 3 * ptr_[s],          ptr[1], ptr, 1, there.cells ? there.cells + 9 * s : nullptr,
                there.pbc ? there.pbc + 3 * s : nullptr};
            try {
                NeighborSearch(alone, predictor_.head().radial_cutoff, 1, row_ptr.data());
            } catch (const std::invalid_argument& error) {
                throw Broken{first_system + s, -1, error.what()};
            }
        }
    }

    // The edges' vectors at x and, for a motion, v; and the graph of them.
    template <class T>
    struct Edges {
        std::vector<T> r, w;
    };
    template <class T>
    SharedGraph<T> graph(const Array& x, const Array* v, Edges<T>& edges) const {
        edges.r.resize(3 * near_.size());
        if (v) edges.w.resize(3 * near_.size());
        T* w = v ? edges.w.data() : nullptr;
        edge_vectors<T>(systems_at(x), v ? v->data() : nullptr, row_ptr_.data(), near_.data(), shift_.data(),
                        edges.r.data(), w);
        return {{all(), row_ptr_.data(), neighbor_.data(), edges.r.data(), w}, all() - atoms, domain_};
    }

    template <class T>
    void predict(const Array& x, const Array& v, int64_t times, const double* t, Path& path) const {
        Edges<T> edges;
        const Array seen_v = with_ghosts(v);
        const SharedGraph<T> of = graph(x, &seen_v, edges);
        const std::vector<T> masses(masses_.begin(), masses_.end()), velocities(seen_v.begin(), seen_v.end());
        path.resize(3 * all() * times);
        predictor_.motion<T>(
            of, {species_.data(), masses.data(), velocities.data(), here_.label.data(), here_.count, &here_}, times, t,
            path.moved.data(), path.velocity.data(), useful_threads(threads_, times * rows()));
        for (int64_t k = 1; k < times && domain_; ++k)  // without the ghosts
            for (Array* of : {&path.moved, &path.velocity})
                std::copy_n(of->begin() + 3 * k * all(), 3 * atoms, of->begin() + 3 * k * atoms);
        path.resize(3 * atoms * times);
    }

    template <class T>
    void add_potential(const Array& x, Array& energy) const {
        Edges<T> edges;
        std::vector<T> atomic(all());
        predictor_.energies<T>(graph<T>(x, nullptr, edges), species_.data(), atomic.data(),
                               useful_threads(threads_, rows()));
        for (int64_t s = 0; s < systems; ++s)
            for (int64_t i = ptr_[s]; i < end_of(s); ++i) energy[s] += static_cast<double>(atomic[i]);
        sum(energy);
    }

    int64_t rows() const { return atoms + static_cast<int64_t>(near_.size()); }

    // Potential energies [systems] (eV) at x; those of the last x are kept.
    const Array& potential(const Array& x) {
        if (differ(energy_at_, x)) {
            find_neighbors(x);
            energy_.assign(systems, 0.0);
            predictor_.real() ? add_potential<double>(x, energy_) : add_potential<float>(x, energy_);
            for (int64_t s = 0; s < systems; ++s)
                if (!std::isfinite(energy_[s])) throw Broken{first_system + s, -1, kNoEnergy};
            energy_at_ = x;
        }
        return energy_;
    }

    // Kinetic energies [systems] (eV) of velocities v [atoms][3].
    Array kinetic(const double* v) const {
        Array energy(systems, 0.0);
        for (int64_t s = 0; s < systems; ++s)
            for (int64_t i = ptr_[s]; i < end_of(s); ++i)
                energy[s] += 0.5 / (rules_.fs * rules_.fs) * masses_[i] *
                             (v[3 * i] * v[3 * i] + v[3 * i + 1] * v[3 * i + 1] + v[3 * i + 2] * v[3 * i + 2]);
        sum(energy);
        return energy;
    }

    // Of system s the last of this process's atoms, and one.
    int64_t end_of(int64_t s) const { return domain_ ? atoms : ptr_[s + 1]; }

    // Adds up over the processes that share a system.
    void sum(Array& x) const {
        if (domain_) domain_->sum(x.data(), static_cast<int64_t>(x.size()));
    }

    // Writes the energies of a state: the total, and the kinetic energy relative to the centre of mass.
    void measure(const Array& potential, const Array& v) {
        const Array all = kinetic(v.data());
        for (int64_t s = 0; s < systems; ++s) {
            Array p(4);  // momentum and mass
            for (int64_t i = ptr_[s]; i < end_of(s); ++i) {
                for (int k = 0; k < 3; ++k) p[k] += masses_[i] * v[3 * i + k];
                p[3] += masses_[i];
            }
            sum(p);
            const double overall = (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]) / p[3];
            energies_[s] = potential[s] + all[s];
            energies_[systems + s] = all[s] - 0.5 / (rules_.fs * rules_.fs) * overall;
        }
    }

    // Draws the velocities at the end of a path from the start to the goal, or measures the energies there.
    void keep_energy(int64_t times, const double* t, Path& path) {
        if (!goal_.total && !goal_.measured) return;
        const int64_t numbers = 3 * atoms;
        const double *moved = path.moved.data() + (times - 1) * numbers,
                     *v = path.velocity.data() + (times - 1) * numbers;
        Array x = x_;
        sum_to(x.data(), 1, moved, numbers);
        const Array& energy = potential(x);
        if (!goal_.total) {
            measure(energy, Array(v, v + numbers));
            return;
        }
        Path inner;  // velocities without the rigid motion of each component
        inner.velocity = path.velocity;
        Array positions(path.moved);
        for (int64_t k = 0; k < times; ++k) sum_to(positions.data() + k * numbers, 1, x_.data(), numbers);
        internal_velocities(motion_of(x_, v_, at_start_, times, t, inner), positions.data());
        const Array now = kinetic(v), own = kinetic(inner.velocity.data() + (times - 1) * numbers);
        for (int64_t s = 0; s < systems; ++s) {
            // rigid and internal energies add up
            const double wanted = std::max(goal_.total[s] - energy[s] - (now[s] - own[s]), 0.0), more = wanted - own[s];
            if (!(own[s] > 0)) continue;
            const double far = std::pow(more / goal_.near[s], 4);
            const double share = std::isinf(course_.pull) ? 1.0 : -std::expm1(-course_.pull * (1 + far));
            const double scale = share * std::clamp(std::sqrt(wanted / own[s]) - 1, -rules_.most, rules_.most);
            for (int64_t k = 0; k < times; ++k)
                sum_to(path.velocity.data() + k * numbers + 3 * ptr_[s], t[k] / t[times - 1] * scale,
                       inner.velocity.data() + k * numbers + 3 * ptr_[s], 3 * (end_of(s) - ptr_[s]));
        }
    }

    const Predictor& predictor_;
    const Rules& rules_;
    const Course& course_;
    Domain* const domain_;
    VerletList list_;
    std::vector<int64_t> ptr_, species_;  // these and masses with ghosts
    Array masses_, cells_;
    std::vector<std::uint8_t> pbc_;
    std::unique_ptr<bool[]> isolated_;
    int threads_ = 1;

    Goal goal_;                 // of the group's systems
    Array x_, v_, energies_;    // the start of the window; [2][systems] at its end
    Array energy_at_, energy_;  // the x of the last potential energies, and these
    Path path_, end_, seen_;
    Array met_at_;                             // positions when the ghosts were found
    Array seen_x_;                             // with those of ghosts, where neighbours were looked for
    std::vector<int64_t> row_ptr_, neighbor_;  // where neighbours were looked for last
    std::vector<std::int32_t> near_, shift_;
    Components here_, at_start_;     // there, and at the start of the window
    KeptAcceleration kept_[kRoles];  // by role
};

Engine::Engine(std::shared_ptr<const Predictor> predictor, const Contents& contents, const Rules& rules,
               const Course& course, Domain* domain)
    : predictor_(std::move(predictor)), rules_(rules), course_(course), atoms_(contents.ptr.back()),
      systems_(static_cast<int64_t>(contents.ptr.size()) - 1) {
    for (int64_t from = 0; from < systems_;) {
        int64_t to = from + 1;
        while (to < systems_ && contents.ptr[to] - contents.ptr[from] < kGroup) ++to;
        groups_.push_back(std::make_unique<Group>(*predictor_, contents, rules_, course_, domain, from, to));
        from = to;
    }
}

Engine::~Engine() = default;

// Runs work(group, threads) for every group; the first system's trouble is returned.
std::optional<Broken> Engine::each(int threads, const std::function<void(Group&, int)>& work) {
    const auto count = static_cast<int64_t>(groups_.size());
    const bool apart = threads > 1 && count >= 2 * threads;  // else the threads share the work on each group
    std::vector<std::optional<Broken>> broken(count);
    parallel(apart ? threads : 1, [&](auto& guard) {
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < count; ++g)
            guard([&] {
                try {
                    work(*groups_[g], apart ? 1 : threads);
                } catch (const Broken& why) {
                    broken[g] = why;
                }
            });
    });
    for (std::optional<Broken>& why : broken)
        if (why) return why;
    return std::nullopt;
}

std::optional<Broken> Engine::window(const double* positions, const double* momenta, const Window& window,
                                     int threads) {
    Array measured(2 * systems_), total(systems_), near(systems_);
    if (course_.needed && !kept_.seen) {
        if (auto broken = energies(positions, momenta, measured.data(), threads)) return broken;
        add(measured);
    }
    Goal goal;
    if (course_.needed && (window.number + 1) % course_.every == 0) {
        if (kept_.seen < course_.needed) {
            goal.measured = measured.data();
        } else {
            for (int64_t s = 0; s < systems_; ++s) {
                total[s] = kept_.sums[s] / static_cast<double>(kept_.seen);
                near[s] = rules_.uncertain * (kept_.sums[systems_ + s] / static_cast<double>(kept_.seen));
            }
            goal.total = total.data(), goal.near = near.data();
        }
    }
    auto broken = each(
        threads, [&](Group& group, int own) { group.window(positions, momenta, window, goal, atoms_, systems_, own); });
    if (goal.measured && !broken) add(measured);
    return broken;
}

std::optional<Broken> Engine::energies(const double* positions, const double* momenta, double* energies, int threads) {
    return each(threads, [&](Group& group, int own) { group.energies(positions, momenta, energies, systems_, own); });
}

void Engine::add(const Array& energies) {
    kept_.sums.resize(2 * systems_);
    sum_to(kept_.sums.data(), 1, energies.data(), 2 * systems_);
    ++kept_.seen;
}

}  // namespace mdtrajnet
