// What the dynamics conserves, restored: the arithmetic of mdtrajnet_fast/md/conservation.py, which says what it does.
//
// Component by component and time by time, on one thread: a result does not depend on the other components and times.
// Cost and memory are linear in the number of atoms.
#pragma once

#include <cstdint>

namespace mdtrajnet {

class Domain;
struct Components;

struct Motion {
    // At the start.
    std::int64_t atoms;
    const double* positions;        // [atoms][3], Å
    const double* velocities;       // [atoms][3], Å/fs
    const double* masses;           // [atoms], amu
    const std::int64_t* component;  // [atoms], labels from 0 to atoms - 1
    const bool* isolated;           // [atoms], the same for all atoms of a component
    // Afterwards; changed in place.
    std::int64_t times;
    const double* t;   // [times], fs
    double* moved;     // [times][atoms][3], Å
    double* velocity;  // [times][atoms][3], Å/fs
    // Where processes share the components, none of which is isolated; `component` are the labels of these.
    Domain* domain = nullptr;
    const Components* shared = nullptr;
};

// The first atom that moves by `cutoff` (Å) or more from where it started (with `flight`, from where it would be in free
// flight), or has a number that is not finite; -1 if there is none.  Reads neither positions, masses nor components.
std::int64_t runaway(const Motion& motion, bool flight, double cutoff);

// Takes from the velocities afterwards, at positions [times][atoms][3] (Å), what moves and, where it is isolated, turns each
// component as a rigid body.  Reads neither positions and velocities at the start, nor t and moved.
void internal_velocities(const Motion& motion, const double* positions);

// steps: the most Newton steps on an angular momentum.
void conserve(const Motion& motion, int steps);

}  // namespace mdtrajnet
