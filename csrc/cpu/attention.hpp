// The attention block and potentials on the CPU: what the bindings see.  One table of functions for each instruction set.
#pragma once

#include <cstdint>

namespace mdtrajnet {

constexpr int kMaxLayers = 8;  // hidden layers of one radial network

struct AttentionSizes {
    long scalars;        // S: species and time channels of an atom
    long time_channels;  // the last of them, which the radial networks read
    long centres;        // Gaussians of the distance
    long heads;
    long key_channels, value_channels;  // scalar channels of a head
    int layers[2];                      // hidden layers of key and value network
    long hidden[2][kMaxLayers];         // their widths
    double cutoff;                      // radial, Å
    bool envelope;
};

// Folded weights as mdtrajnet_fast.ops.FoldedWeights has them, row-major.  n, m: last hidden width of key and value, plus 1.
template <class T>
struct AttentionWeights {
    T* layer_weight[2][kMaxLayers];  // [out, in]
    T* layer_bias[2][kMaxLayers];    // [out]
    T* query;                        // [S, c0 h]
    T* key_atom;                     // [S, n, c0 h + 2 h]
    T* key_edge;                     // [n, 2 c0 h + 4 h]
    T* value_atom;                   // [S, m, 2 h]
    T* value_edge;                   // [m, 6 h]
    T* scalar_atom;                  // [h, m, S v0]
    T* scalar_edge;                  // [h, 2 m, v0]
    T* out;                          // [h v0, S]
};

// Neighbours of the input geometry, sorted by centre.
template <class T>
struct AttentionGraph {
    std::int64_t atoms;
    const std::int64_t* row_ptr;   // [atoms + 1]
    const std::int64_t* neighbor;  // [edges]
    const T* r;                    // [edges, 3]
    const T* w;                    // [edges, 3]
};

class Domain;

// The same of a process's share of a system (domain.hpp): the last of the atoms are ghosts, without edges.
template <class T>
struct SharedGraph : AttentionGraph<T> {
    std::int64_t ghosts;
    Domain* domain;  // null: the system is this process's alone

    SharedGraph(const AttentionGraph<T>& graph, std::int64_t ghosts = 0, Domain* domain = nullptr)
        : AttentionGraph<T>(graph), ghosts(ghosts), domain(domain) {}
    std::int64_t own() const { return this->atoms - ghosts; }
};

// Per atom: scalars [S], displacement [3], velocity change [3].  `times` copies of the graph's atoms, one after another.
template <class T>
struct AttentionState {
    T *scalars, *displacement, *velocity;
};

// Gradients with respect to the edges' vectors, or null.
template <class T>
struct AttentionEdgeGradients {
    T *r, *w;  // [edges, 3], summed over times
};

struct PotentialSizes {
    long species, radial, products, hidden;
    double cutoff;  // Å
};

// Weights of a potential; all rows but scale's are padded with zeros to whole vectors of any instruction set, 64 bytes.
template <class T>
struct PotentialWeights {
    const T* maps;         // [3][species radial][2 products]: of each l the left one, then the right one, each padded
    const T* scale;        // [species][features]
    const T* first;        // [features][hidden]
    const T* first_bias;   // [species][hidden]
    const T* second;       // [hidden][hidden]
    const T* second_bias;  // [hidden]
    const T* last;         // [hidden]
};

enum WindowRole : int { kEnergy, kEnds, kMiddle, kRoles };  // as in mdtrajnet_fast/model/window_potentials.py

constexpr long kRadialPowers = 6;  // of a distance within an interval, 0 to 5

// intervals: equal ones, of the distances up to the cutoff.
struct WindowPotentialSizes {
    long species, layers, intervals, channels, products, hidden;
    double cutoff;  // Å
};

// Weights of window potentials; of a dipole's charges, which are their energies in one role.  All rows, and each part of those that have several, are padded with zeros to whole
// vectors of any instruction set, 64 bytes.  features: channels, then four times products.  "back": what gradients are
// multiplied by.
template <class T>
struct WindowPotentialWeights {
    const T* radial;       // [layers][intervals][powers][channels]: radial functions as polynomials
    const T* element;      // [roles][layers][species][channels + hidden]: what neighbours see, and first biases
    const T* onward;       // [layers - 1][hidden][channels + hidden]: what a layer knows, into the same of the next
    const T* onward_back;  // [layers - 1][channels + hidden, padded][hidden]
    const T* maps;         // [layers][channels][7 products]: two of l = 0, two and one more of l = 1, two of l = 2
    const T* maps_back;    // [layers][7 products, padded][channels]
    const T* scale;        // [layers][species][features]
    const T* first;        // [layers][features, padded][hidden]
    const T* first_back;   // [layers][hidden][features]
    const T* second;       // [layers][hidden][hidden]
    const T* second_back;  // [layers][hidden][hidden]
    const T* second_bias;  // [layers][hidden]
    const T* last;         // [roles][layers][hidden]
};

// Of those of them that are not copies, in their layouts: of radial, element, onward, maps, scale, first, second, second_bias, last.
constexpr int kWindowWeights = 9;
template <class T>
struct WindowPotentialGradients {
    T* weights[kWindowWeights];

    T* radial() const { return weights[0]; }
    T* element() const { return weights[1]; }
    T* onward() const { return weights[2]; }
    T* maps() const { return weights[3]; }
    T* scale() const { return weights[4]; }
    T* first() const { return weights[5]; }
    T* second() const { return weights[6]; }
    T* second_bias() const { return weights[7]; }
    T* last() const { return weights[8]; }
};

// Of each atom, or of all of them where `each` is null.
struct WindowRoles {
    std::int64_t all;
    const std::int64_t* each;

    std::int64_t of(std::int64_t atom) const { return each ? each[atom] : all; }
};

template <class T>
struct AttentionFunctions {
    // Weights in the layout of this instruction set; `gradients` adds what backward needs.
    void* (*pack)(const AttentionSizes&, const AttentionWeights<T>&, bool gradients);
    void (*release)(void* packed);
    // increments of the state (of scalars only where there is memory for them); with `tangent` also theirs
    void (*forward)(const void* packed, const AttentionGraph<T>&, std::int64_t times, const AttentionState<T>& state,
                    const AttentionState<T>* tangent, const AttentionState<T>& increment,
                    const AttentionState<T>* increment_tangent, int threads);
    // gradients of the state, the weights and the edges from those of the increments (scalars' may be null: zero);
    // overwrites every output
    void (*backward)(const void* packed, const AttentionGraph<T>&, std::int64_t times, const AttentionState<T>& state,
                     const AttentionState<T>& increment_gradient, const AttentionState<T>& state_gradient,
                     const AttentionWeights<T>& weight_gradient, const AttentionEdgeGradients<T>& edge_gradient,
                     int threads);
    // atomic energies [own atoms] (eV), of species [atoms]; reads no w of the graph
    void (*potential)(const PotentialSizes&, const PotentialWeights<T>&, const SharedGraph<T>&,
                      const std::int64_t* species, T* energy, int threads);
    // atomic energies [atoms] (eV) in their roles, and slopes of the sum of all [atoms, 3] (eV/Å); either may be null, and
    // those of ghosts mean nothing.  Every edge of the graph must be there from its other end, too; reads no w
    void (*window_potential)(const WindowPotentialSizes&, const WindowPotentialWeights<T>&, const SharedGraph<T>&,
                             const std::int64_t* species, const WindowRoles&, T* energy, double* slope, int threads);
    // gradients of the weights, of kRoles roles, from those of the energies [atoms] and of the slopes [atoms, 3]; overwritten
    void (*window_gradients)(const WindowPotentialSizes&, const WindowPotentialWeights<T>&, const AttentionGraph<T>&,
                             const std::int64_t* species, const WindowRoles&, const T* energy_gradient,
                             const T* slope_gradient, const WindowPotentialGradients<T>& gradient, int threads);
};

struct AttentionKernels {
    const char* instruction_set;
    AttentionFunctions<float> single;
    AttentionFunctions<double> real;
};

const AttentionKernels& attention_kernels_base();
const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();

// The best that the processor has, or the one named ("base", "avx2", "avx512"); null if it has not that one.
const AttentionKernels* attention_kernels(const char* instruction_set = nullptr);

}  // namespace mdtrajnet
