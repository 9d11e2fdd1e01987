#include "cpu/predictor.hpp"

#include "cpu/domain.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mdtrajnet {
namespace {

using std::int64_t;

// Rows (times x atoms) of one pass: bounds the memory for long lists of times.
constexpr int64_t kRows = 1 << 17;
// Rows of one thread: with fewer, waking another takes longer than it saves.
constexpr int64_t kRowsOfThread = 1024;

// Memory of one state of `atoms` atoms.
template <class T>
struct StateBuffer {
    StateBuffer(std::size_t atoms, long scalars) : memory(atoms * (scalars + 6)), atoms(atoms), scalars(scalars) {}

    AttentionState<T> view() {
        return {memory.data(), memory.data() + atoms * scalars, memory.data() + atoms * (scalars + 3)};
    }
    std::vector<T> memory;
    std::size_t atoms;
    long scalars;
};

template <class T>
void add(T* to, const T* a, const T* b, std::size_t count) {
    for (std::size_t k = 0; k < count; ++k) to[k] = a[k] + b[k];
}

// Overwrites the states of ghosts, in all copies, by those that their owners have.
template <class T>
void refresh(const SharedGraph<T>& graph, int64_t times, int parts, const AttentionState<T>* state, long scalars) {
    struct Of {
        const AttentionState<T>* state;
        int64_t atoms, times;
        long widths[3];
    } of{state, graph.atoms, times, {scalars, 3, 3}};
    std::vector<int64_t> bytes;  // pieces: part by part, copy by copy, these three
    for (int64_t k = 0; k < parts * times; ++k)
        for (const long width : of.widths) bytes.push_back(width * sizeof(T));
    const auto at = [](void* context, int64_t atom, int piece) -> void* {
        const Of& of = *static_cast<Of*>(context);
        const int64_t k = piece / 3;
        const AttentionState<T>& state = of.state[k / of.times];
        T* const arrays[] = {state.scalars, state.displacement, state.velocity};
        return arrays[piece % 3] + (k % of.times * of.atoms + atom) * of.widths[piece % 3];
    };
    graph.domain->refresh(static_cast<int>(bytes.size()), bytes.data(), at, &of);
}

template <class T>
void* pack(const AttentionKernels& kernels, const AttentionSizes& size, const AttentionWeights<T>& weights,
           bool gradients) {
    return functions_of<T>(kernels).pack(size, weights, gradients);
}

}  // namespace

const AttentionKernels& chosen_kernels() {
    const char* name = std::getenv("MDTRAJNET_INSTRUCTION_SET");
    if (name && !*name) name = nullptr;
    const AttentionKernels* kernels = attention_kernels(name);
    if (!kernels)
        throw std::invalid_argument(std::string("MDTRAJNET_INSTRUCTION_SET is \"") + name +
                                    "\", but must name one that this processor has, of base, avx2 and avx512; unset it "
                                    "to use the best");
    return *kernels;
}

template <>
const AttentionFunctions<float>& functions_of(const AttentionKernels& kernels) {
    return kernels.single;
}
template <>
const AttentionFunctions<double>& functions_of(const AttentionKernels& kernels) {
    return kernels.real;
}

template <class T>
Block::Block(const AttentionSizes& size, const AttentionWeights<T>& weights, bool gradients)
    : size(size), real(sizeof(T) == sizeof(double)), kernels_(chosen_kernels()),
      packed_(pack(kernels_, size, weights, gradients)) {}

Block::~Block() { real ? kernels_.real.release(packed_) : kernels_.single.release(packed_); }

template <class T>
void attention_stack(const Blocks& blocks, bool running, const SharedGraph<T>& graph, int64_t times, int parts,
                     const T* const* scalars, T* const* displacement, T* const* velocity, int threads) {
    const std::size_t atoms = graph.atoms * times;
    const long S = blocks.front()->size.scalars;
    std::vector<StateBuffer<T>> states, increments;
    AttentionState<T> state[2]{}, increment[2]{};
    for (int k = 0; k < parts; ++k) {
        states.emplace_back(atoms, S);
        increments.emplace_back(atoms, S);
        state[k] = states.back().view();
        increment[k] = increments.back().view();
        std::copy_n(scalars[k], atoms * S, state[k].scalars);
    }
    for (const auto& block : blocks) {
        const bool last = block == blocks.back();  // nobody reads the scalars of the last state
        for (int k = 0; last && k < parts; ++k) increment[k].scalars = nullptr;
        block->forward<T>(graph, times, state[0], parts > 1 ? &state[1] : nullptr, increment[0],
                          parts > 1 ? &increment[1] : nullptr, threads);
        for (int k = 0; k < parts; ++k) {
            if (running) {
                const std::size_t from = last ? atoms * S : 0;
                T *sum = states[k].memory.data() + from, *more = increments[k].memory.data() + from;
                add(sum, sum, more, atoms * (S + 6) - from);
            } else {
                states[k].memory.swap(increments[k].memory);
                state[k] = states[k].view();
                increment[k] = increments[k].view();
                if (!last) add(state[k].scalars, state[k].scalars, scalars[k], atoms * S);
            }
        }
        if (graph.domain && !last) refresh(graph, times, parts, state, S);
    }
    for (int k = 0; k < parts; ++k) {
        std::copy_n(state[k].displacement, 3 * atoms, displacement[k]);
        std::copy_n(state[k].velocity, 3 * atoms, velocity[k]);
    }
}

template <class T>
void Predictor::motion(const SharedGraph<T>& graph, const HeadAtoms<T>& atoms, int64_t times, const double* t,
                       double* moved, double* velocity, int threads) const {
    const HeadSizes& head = parts_.head;
    const int parts = head.readout ? 1 : 2;
    const long S = head.species_channels + head.time_channels;
    const int64_t numbers = 3 * graph.atoms, most = std::max<int64_t>(1, kRows / std::max<int64_t>(1, graph.atoms));
    std::fill_n(moved, times * numbers, 0.0);
    std::fill_n(velocity, times * numbers, 0.0);
    std::vector<T> scalars[2], dx[2], dv[2];
    for (int64_t begin = 0; begin < times; begin += most) {
        const int64_t count = std::min(most, times - begin), rows = graph.atoms * count;
        T *s[2]{}, *x[2]{}, *v[2]{};
        for (int k = 0; k < parts; ++k) {
            scalars[k].resize(rows * S), dx[k].resize(3 * rows), dv[k].resize(3 * rows);
            s[k] = scalars[k].data(), x[k] = dx[k].data(), v[k] = dv[k].data();
        }
        for (std::size_t m = 0; m < parts_.members.size(); ++m) {
            first_scalars<T>(head, static_cast<const T*>(parts_.embeddings[m]), graph.atoms, atoms.species, count,
                             t + begin, s[0], s[1]);
            attention_stack<T>(parts_.members[m], parts_.running, graph, count, parts, s, x, v, threads);
            add_motion<T>(head, graph, atoms, count, t + begin, x[0], head.readout ? v[0] : x[1],
                          1.0 / static_cast<double>(parts_.members.size()), moved + begin * numbers,
                          velocity + begin * numbers, threads);
        }
    }
}

namespace {

template <class T>
void scalars(const DensityNetwork& of, const SharedGraph<T>& graph, const int64_t* species, int role, T* scalar,
             double* slope, int threads) {
    functions_of<T>(chosen_kernels())
        .window_potential(of.sizes, of.weights_as<T>(), graph, species, {role, nullptr}, scalar, slope, threads);
}

}  // namespace

template <class T>
void Predictor::slopes(const SharedGraph<T>& graph, const int64_t* species, int role, T* energy, double* slope,
                       int threads) const {
    scalars<T>(parts_.window_potentials, graph, species, role, energy, slope, threads);
}

template <class T>
void Predictor::energies(const SharedGraph<T>& graph, const int64_t* species, T* energy, int threads) const {
    if (has_window_potentials()) return slopes<T>(graph, species, kEnergy, energy, nullptr, threads);
    PotentialWeights<T> w{};
    std::size_t k = 0;
    for (const T** p : {&w.maps, &w.scale, &w.first, &w.first_bias, &w.second, &w.second_bias, &w.last})
        *p = static_cast<const T*>(parts_.potential_weights[k++]);
    functions_of<T>(chosen_kernels()).potential(parts_.potential, w, graph, species, energy, threads);
}

template <class T>
void Predictor::charges(const SharedGraph<T>& graph, const int64_t* species, T* charge, int threads) const {
    scalars<T>(parts_.dipole, graph, species, 0, charge, nullptr, threads);
}

int useful_threads(int threads, int64_t rows) {
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows / kRowsOfThread)));
}

#define MDTRAJNET_FOR(T)                                                                                         \
    template Block::Block(const AttentionSizes&, const AttentionWeights<T>&, bool);                              \
    template void attention_stack(const Blocks&, bool, const SharedGraph<T>&, int64_t, int, const T* const*,     \
                                  T* const*, T* const*, int);                                                    \
    template void Predictor::motion(const SharedGraph<T>&, const HeadAtoms<T>&, int64_t, const double*, double*, \
                                    double*, int) const;                                                         \
    template void Predictor::energies(const SharedGraph<T>&, const int64_t*, T*, int) const;                     \
    template void Predictor::slopes(const SharedGraph<T>&, const int64_t*, int, T*, double*, int) const;         \
    template void Predictor::charges(const SharedGraph<T>&, const int64_t*, T*, int) const;
MDTRAJNET_FOR(float)
MDTRAJNET_FOR(double)
#undef MDTRAJNET_FOR

}  // namespace mdtrajnet
