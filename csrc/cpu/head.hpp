// What surrounds the attention blocks of a network on the CPU: the scalars that enter the first, and the head that makes
// a motion of the last state.  The arithmetic of Network.forward in mdtrajnet_fast/model/network.py, which says what it does.
//
// `times` copies of the graph's atoms come one after another, a row for each atom.  The rows of one copy do not depend on
// the other copies, and no result on the number of threads.
#pragma once

#include <cstdint>

#include "attention.hpp"

namespace mdtrajnet {

struct HeadSizes {
    long species_channels, time_channels;
    double radial_cutoff;  // Å
    double time_cutoff;    // fs
    bool conserving;       // the head; else the published one
    bool readout;          // velocities are read out; else they are time derivatives of the displacements
    std::int64_t species;  // rows of the embedding
};

struct Components;

// The graph's atoms at the start.
template <class T>
struct HeadAtoms {
    const std::int64_t* species;    // [atoms], rows of the embedding
    const T* masses;                // [atoms], amu
    const T* velocities;            // [atoms][3], Å/fs
    const std::int64_t* component;  // [atoms], labels from 0 to components - 1
    std::int64_t components;
    const Components* shared = nullptr;  // with ghosts: those components, and what processes share of them
};

// scalars [times][atoms][species channels, then time channels]; embedding [species][species channels], t [times] fs.
// tangent: memory for the scalars' derivatives with respect to time, or null.
template <class T>
void first_scalars(const HeadSizes& size, const T* embedding, std::int64_t atoms, const std::int64_t* species,
                   std::int64_t times, const double* t, T* scalars, T* tangent);

// Adds `share` of the motion to moved (Å) and velocity (Å/fs).  dx, dv: displacement of the last state, and its velocity
// change or, without a read-out, the displacement's time derivative; they are used up.  All four [times][atoms][3].
template <class T>
void add_motion(const HeadSizes& size, const SharedGraph<T>& graph, const HeadAtoms<T>& atoms, std::int64_t times,
                const double* t, T* dx, T* dv, double share, double* moved, double* velocity, int threads);

}  // namespace mdtrajnet
