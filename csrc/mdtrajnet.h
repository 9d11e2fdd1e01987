// mdtrajnet: trajectories of atoms predicted by an MDtrajNet model, on the CPU, for C, C++ and what can call C.
//
//     mdtrajnet export molecules-nve molecules-nve.mdtrajnet        writes the file that mdtrajnet_load reads
//     cc program.c -I LIB -L LIB -lmdtrajnet -Wl,-rpath,LIB         LIB: see `mdtrajnet info`
//
// Units: Å, fs, Å/fs, amu, eV.  Arrays hold the atoms of all systems one after another; positions are unwrapped.
//
// A function returns MDTRAJNET_OK, or the code that it writes to `error` (may be NULL) with the details.  Nothing is
// global: threads share a model as they like, and use a rollout one at a time.  Results do not depend on how many.
#ifndef MDTRAJNET_H
#define MDTRAJNET_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum {
    MDTRAJNET_OK,
    MDTRAJNET_INVALID,  // an argument that cannot be used
    MDTRAJNET_FILE,     // a file that is missing, damaged, too new or no model
    MDTRAJNET_BROKEN,   // a system whose trajectory cannot go on
    MDTRAJNET_FAILED    // anything else, such as a lack of memory
};

typedef struct mdtrajnet_error {
    int code;
    char message[1000];    // UTF-8: what was got, what was expected, how to mend it
    int64_t system, atom;  // that the message speaks of, the atom counted within its system; -1 for none
    int64_t windows;       // of mdtrajnet_advance: how many were done before
} mdtrajnet_error;

typedef struct mdtrajnet_model mdtrajnet_model;      // weights
typedef struct mdtrajnet_rollout mdtrajnet_rollout;  // systems on their way, and the energies that they keep

int mdtrajnet_load(const char* path, mdtrajnet_model** model, mdtrajnet_error* error);
void mdtrajnet_free_model(mdtrajnet_model* model);  // or NULL; its rollouts stay usable

double mdtrajnet_own_window(const mdtrajnet_model* model);             // fs, of its best method
int mdtrajnet_has_potential(const mdtrajnet_model* model);             // 1 or 0: whether it knows energies
int mdtrajnet_knows(const mdtrajnet_model* model, int atomic_number);  // 1 or 0

typedef struct mdtrajnet_systems {  // is copied
    int64_t count;
    const int64_t* ptr;       // [count + 1], from 0: system s has the atoms ptr[s] to ptr[s + 1] - 1
    const int32_t* numbers;   // [atoms] atomic numbers
    const double* masses;     // [atoms] amu
    const double* cells;      // [count][3][3] Å, a row for each cell vector; NULL if no system is periodic
    const uint8_t* periodic;  // [count][3] 1 for a periodic direction, else 0; NULL if no system is periodic
} mdtrajnet_systems;

enum {
    MDTRAJNET_BEST,        // symplectic windows where the model has the potentials for them, else reversible ones
    MDTRAJNET_SYMPLECTIC,  // by kicks that conserve an energy whatever the weights
    MDTRAJNET_REVERSIBLE,  // of the network, seen from both ends
    MDTRAJNET_PLAIN        // the network's own map, cheaper than reversible ones, but vibrations drift
};

typedef struct mdtrajnet_options {
    double window;  // length of a window, fs; 0: the method's own, the only one of symplectic windows
    int method;     // how windows come about
    // How fast windows return to the energy to keep, 1/fs; negative: the default, the only one of plain windows.
    double energy_rate;
    int threads;  // 0: as many as OpenMP would take
} mdtrajnet_options;
#define MDTRAJNET_DEFAULTS {0, 0, -1, 0}

int mdtrajnet_start(const mdtrajnet_model* model, const mdtrajnet_systems* systems,
                    const mdtrajnet_options* options,  // NULL: the defaults
                    mdtrajnet_rollout** rollout, mdtrajnet_error* error);
void mdtrajnet_free_rollout(mdtrajnet_rollout* rollout);  // or NULL

// Replaces positions and velocities [atoms][3] by those `windows` windows later.  If a system breaks, by those after
// the windows that were done; the others can go on from there in a rollout of their own.  How windows are shared out
// among calls does not change a bit.  Of a model that knows energies, windows are drawn to the mean of the total energy
// over the first ones, in which nothing draws; plain windows keep the energy of the start.
int mdtrajnet_advance(mdtrajnet_rollout* rollout, int64_t windows, double* positions, double* velocities,
                      mdtrajnet_error* error);

// One window, with frames [times][atoms][3] at times (fs after its start, inside of it).
int mdtrajnet_advance_with_frames(mdtrajnet_rollout* rollout, double* positions, double* velocities, int64_t times,
                                  const double* t, double* frame_positions, double* frame_velocities,
                                  mdtrajnet_error* error);

// Forgets the energy to keep: for velocities that something else changed, a thermostat say.
void mdtrajnet_restart(mdtrajnet_rollout* rollout);

// Total energies [systems] (eV, each up to a constant) of a state, for a model that knows energies.
int mdtrajnet_energies(mdtrajnet_rollout* rollout, const double* positions, const double* velocities, double* energies,
                       mdtrajnet_error* error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
