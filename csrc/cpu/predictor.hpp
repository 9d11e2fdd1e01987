// A model made ready for the CPU: from a graph and times to the motion of its atoms, and from a graph to their energies.
//
// The arithmetic of Network.forward in mdtrajnet_fast/model/network.py, which says what it does.  No result depends on the number
// of threads, and none of one time on the other times.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/attention.hpp"
#include "cpu/head.hpp"

namespace mdtrajnet {

// The kernels that the environment variable MDTRAJNET_INSTRUCTION_SET names, or the best that the processor has.  Throws
// std::invalid_argument for a name that it has not.
const AttentionKernels& chosen_kernels();

template <class T>
const AttentionFunctions<T>& functions_of(const AttentionKernels& kernels);

// Weights of one block in the layout of the kernels, in single or double precision.
class Block {
  public:
    // weights: those of an AttentionWeights<double> or <float>.
    template <class T>
    Block(const AttentionSizes& size, const AttentionWeights<T>& weights, bool gradients);
    Block(const Block&) = delete;
    ~Block();

    template <class T>
    void forward(const AttentionGraph<T>& graph, std::int64_t times, const AttentionState<T>& state,
                 const AttentionState<T>* tangent, const AttentionState<T>& out, const AttentionState<T>* out_tangent,
                 int threads) const {
        functions_of<T>(kernels_).forward(packed_, graph, times, state, tangent, out, out_tangent, threads);
    }

    template <class T>
    void backward(const AttentionGraph<T>& graph, std::int64_t times, const AttentionState<T>& state,
                  const AttentionState<T>& increment_gradient, const AttentionState<T>& state_gradient,
                  const AttentionWeights<T>& weight_gradient, const AttentionEdgeGradients<T>& edge_gradient,
                  int threads) const {
        functions_of<T>(kernels_).backward(packed_, graph, times, state, increment_gradient, state_gradient,
                                           weight_gradient, edge_gradient, threads);
    }

    const AttentionSizes size;
    const bool real;  // double precision

  private:
    const AttentionKernels& kernels_;
    void* packed_;
};

using Blocks = std::vector<std::shared_ptr<Block>>;

// All blocks one after another, from the first scalars [times x atoms][S] to the displacement and velocity change of the
// last state [times x atoms][3].  parts: 1, or 2 with time tangents.  running: whether increments add up.
template <class T>
void attention_stack(const Blocks& blocks, bool running, const SharedGraph<T>& graph, std::int64_t times, int parts,
                     const T* const* scalars, T* const* displacement, T* const* velocity, int threads);

// A network that gives every atom a scalar: of window potentials or, in a single role, charges.
struct DensityNetwork {
    int roles;  // 0: the model has none
    WindowPotentialSizes sizes;
    const void* weights[13];  // in the order of WindowPotentialWeights

    template <class T>
    WindowPotentialWeights<T> weights_as() const {
        WindowPotentialWeights<T> w{};
        std::size_t k = 0;
        for (const T** p : {&w.radial, &w.element, &w.onward, &w.onward_back, &w.maps, &w.maps_back, &w.scale, &w.first,
                            &w.first_back, &w.second, &w.second_back, &w.second_bias, &w.last})
            *p = static_cast<const T*>(weights[k++]);
        return w;
    }
};

// What a model consists of beside its blocks.  Addresses are of arrays that outlive it, in the blocks' precision.
struct PredictorParts {
    bool real;                            // the precision of all weights, double or single
    std::vector<Blocks> members;          // whose mean motion it predicts; none of window potentials alone
    std::vector<const void*> embeddings;  // of each member, [species][species channels]
    bool running;
    HeadSizes head;
    bool has_potential;
    PotentialSizes potential;
    const void* potential_weights[7];  // in the order of PotentialWeights
    DensityNetwork window_potentials;
    DensityNetwork dipole;
};

class Predictor {
  public:
    explicit Predictor(PredictorParts parts) : parts_(std::move(parts)) {}

    bool real() const { return parts_.real; }
    bool has_network() const { return !parts_.members.empty(); }
    bool has_potential() const { return parts_.has_potential; }
    bool has_window_potentials() const { return parts_.window_potentials.roles > 0; }
    bool has_energies() const { return has_potential() || has_window_potentials(); }
    bool has_dipole() const { return parts_.dipole.roles > 0; }
    const HeadSizes& head() const { return parts_.head; }

    // moved (Å) and velocity (Å/fs), [times][atoms][3], at the times t (fs); overwritten.
    template <class T>
    void motion(const SharedGraph<T>& graph, const HeadAtoms<T>& atoms, std::int64_t times, const double* t,
                double* moved, double* velocity, int threads) const;

    // Atomic energies [atoms] (eV): of the window potentials where the model has them, else of its potential.
    template <class T>
    void energies(const SharedGraph<T>& graph, const std::int64_t* species, T* energy, int threads) const;

    // Atomic energies [atoms] (eV) of a window potential, all atoms in one role (0 .. kRoles - 1), and slopes of their
    // sum [atoms][3] (eV/Å); either may be null.  Of a model with such potentials.
    template <class T>
    void slopes(const SharedGraph<T>& graph, const std::int64_t* species, int role, T* energy, double* slope,
                int threads) const;

    // Charges [atoms] (e) up to a constant, of a model with a dipole.
    template <class T>
    void charges(const SharedGraph<T>& graph, const std::int64_t* species, T* charge, int threads) const;

  private:
    PredictorParts parts_;
};

// How many of `threads` are worth waking for so many rows: times x (atoms + edges).
int useful_threads(int threads, std::int64_t rows);

}  // namespace mdtrajnet
