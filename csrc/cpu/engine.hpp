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

#include "cpu/neighbors.hpp"
#include "cpu/predictor.hpp"

namespace mdtrajnet {

// What does not change from window to window.
struct Rules {
    double skin;              // of the neighbour list, Å
    double fs;                // ASE's unit of momentum has velocities of Å in 1 / fs of its unit of time
    std::vector<double> back; // weights of the predictions that a reversible window ends with
    double most;              // by which internal velocities are scaled in one window
    int steps;                // Newton steps on an angular momentum, at most
};

// The systems and their atoms, one after another.
struct Contents {
    std::vector<std::int64_t> ptr, species;  // [systems + 1], [atoms]
    std::vector<double> masses, cells;       // [atoms] amu; [systems][3][3] Å, or empty: none is periodic
    std::vector<std::uint8_t> pbc;           // [systems][3], or empty
};

// The energies to keep.
struct EnergyTarget {
    const double* total;  // [systems] eV; null: not known yet
    const double* near;   // [systems] eV, differences up to which the pull is weak
    double pull;          // infinite: all the way
};

// How a window comes about.
enum class Method { kPlain, kReversible, kSymplectic };

struct Window {
    std::int64_t times;
    const double* t;  // [times] fs after the start; the last is the window's end
    Method method;    // symplectic: of a model with window potentials; keeps no target
    EnergyTarget target;
    double* positions;  // [times][atoms][3] Å
    double* momenta;    // [times][atoms][3], ASE units
    double* energies;   // or null; [2][systems] eV at the end, total and relative to the centre of mass kinetic, for a
                        // target that is not known
};

// A system whose trajectory cannot go on: one of its atoms leaves its course or, without one, what the neighbour list says.
struct Broken {
    std::int64_t system, atom;  // atom: counted within the system; -1 for none
    std::string why;
};

class Engine {
  public:
    Engine(std::shared_ptr<const Predictor> predictor, const Contents& contents, const Rules& rules);
    ~Engine();

    std::int64_t atoms() const { return atoms_; }
    std::int64_t systems() const { return systems_; }
    bool has_potential() const { return predictor_->has_potential(); }
    bool has_window_potentials() const { return predictor_->has_window_potentials(); }

    // One window from positions (Å) and momenta (ASE units) [atoms][3].  If a system breaks, what is written is worthless.
    std::optional<Broken> window(const double* positions, const double* momenta, const Window& window, int threads);

    // Total energies, and kinetic ones relative to the centre of mass: energies [2][systems] (eV).  Of the potential, or
    // for symplectic windows of the window potentials, which the model has to have.
    std::optional<Broken> energies(const double* positions, const double* momenta, Method method, double* energies,
                                   int threads);

  private:
    class Group;
    std::optional<Broken> each(int threads, const std::function<void(Group&, int)>& work);

    std::shared_ptr<const Predictor> predictor_;
    Rules rules_;
    std::int64_t atoms_, systems_;
    std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace mdtrajnet
