// A window of a rollout in one call: from the state of systems to their frames and the state at its end.
//
// The arithmetic of mdtrajnet_fast/md/window.py, which says what it does and why.  Systems that do not see each other are
// worked on in groups of some hundred atoms, several at once where there are threads; no result depends on either.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/domain.hpp"
#include "cpu/neighbors.hpp"
#include "cpu/predictor.hpp"

namespace mdtrajnet {

// The arithmetic that all models share.
struct Rules {
    double skin;               // of the neighbour list, Å
    double fs;                 // ASE's unit of momentum has velocities of Å in 1 / fs of its unit of time
    std::vector<double> back;  // weights of the predictions that a reversible window ends with
    double most;               // by which internal velocities are scaled in one window
    int steps;                 // Newton steps on an angular momentum, at most
    double uncertain;          // part of the kinetic energy by which the total energy may seem off
};

// The systems and their atoms, one after another.
struct Contents {
    std::vector<std::int64_t> ptr, species;  // [systems + 1], [atoms]
    std::vector<double> masses, cells;       // [atoms] amu; [systems][3][3] Å, or empty: none is periodic
    std::vector<std::uint8_t> pbc;           // [systems][3], or empty
};

enum class Method { kPlain, kReversible, kSymplectic };

// How the windows of a rollout come about; symplectic ones need a model with window potentials.
struct Course {
    Method method;
    double pull;  // of the energy to keep, at the end of every so many windows; infinite: all the way
    std::int64_t every;
    std::int64_t needed;  // energies whose mean is kept, of the start and then of such ends; 0: none is kept
};

// What is known of the energies to keep.
struct Kept {
    std::vector<double> sums;  // [2][systems] eV, total and relative to the centre of mass kinetic
    std::int64_t seen = 0;     // how many were summed
};

// One window: frames at the times `t` that are `wanted`; the last time is its end.
struct Window {
    std::int64_t number;  // counted from the start of the rollout
    std::int64_t times;
    const double* t;                      // [times] fs after its start
    const std::uint8_t* wanted;           // [times]
    double* positions;                    // [wanted][atoms][3] Å
    double* momenta;                      // [wanted][atoms][3], ASE units
    double* energies;                     // or null: potential energies [wanted][systems] eV
    double *end_positions, *end_momenta;  // [atoms][3]
};

// A system whose trajectory cannot go on: one of its atoms leaves its course or, without one, what the neighbour list says;
// with neither, another process knows.
struct Broken {
    std::int64_t system, atom;  // atom: counted within the system; -1 for none
    std::string why;
};

class Engine {
  public:
    // domain: where the contents are a process's share of one periodic system; it outlives the engine.
    Engine(std::shared_ptr<const Predictor> predictor, const Contents& contents, const Rules& rules,
           const Course& course, Domain* domain = nullptr);
    ~Engine();

    std::int64_t atoms() const { return atoms_; }
    std::int64_t systems() const { return systems_; }
    bool has_energies() const { return predictor_->has_energies(); }

    // The energies to keep, to go on with in another engine; without any seen, the first window starts with its own.
    const Kept& kept() const { return kept_; }
    void keep(Kept kept) { kept_ = std::move(kept); }

    // One window from positions (Å) and momenta (ASE units) [atoms][3].  If a system breaks, what is written is worthless.
    std::optional<Broken> window(const double* positions, const double* momenta, const Window& window, int threads);

    // Total energies, and kinetic ones relative to the centre of mass: energies [2][systems] (eV).
    std::optional<Broken> energies(const double* positions, const double* momenta, double* energies, int threads);

  private:
    class Group;
    std::optional<Broken> each(int threads, const std::function<void(Group&, int)>& work);
    void add(const std::vector<double>& energies);

    std::shared_ptr<const Predictor> predictor_;
    Rules rules_;
    Course course_;
    Kept kept_;
    std::int64_t atoms_, systems_;
    std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace mdtrajnet
