// The attention block for Python: raw pointers in, checked by the caller, which knows the tensors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/attention.hpp"
#include "cpu/head.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

namespace {

using Pointer = std::uintptr_t;
using Pointers = std::vector<Pointer>;

// The kernels to use: those MDTRAJNET_INSTRUCTION_SET names, or the best there are.
const AttentionKernels& chosen_kernels() {
    const char* name = std::getenv("MDTRAJNET_INSTRUCTION_SET");
    if (name && !*name) name = nullptr;
    const AttentionKernels* kernels = attention_kernels(name);
    if (!kernels)
        throw py::value_error(std::string("MDTRAJNET_INSTRUCTION_SET is \"") + name +
                              "\", but must name one that this processor has, of base, avx2 and avx512; unset it to use "
                              "the best");
    return *kernels;
}

template <class T>
const AttentionFunctions<T>& functions(const AttentionKernels& kernels);
template <>
const AttentionFunctions<float>& functions(const AttentionKernels& kernels) {
    return kernels.single;
}
template <>
const AttentionFunctions<double>& functions(const AttentionKernels& kernels) {
    return kernels.real;
}

template <class T>
T* as(Pointer p) {
    return reinterpret_cast<T*>(p);
}

template <class T>
AttentionState<T> state_of(const Pointers& p) {
    return {as<T>(p.at(0)), as<T>(p.at(1)), as<T>(p.at(2))};
}

// The folded tensors in the order of FoldedWeights, the layers as weight, bias, weight, bias, ...
template <class T>
AttentionWeights<T> weights_of(const AttentionSizes& size, const Pointers& pointers) {
    AttentionWeights<T> w{};
    std::size_t k = 0;
    for (int net = 0; net < 2; ++net)
        for (int layer = 0; layer < size.layers[net]; ++layer) {
            w.layer_weight[net][layer] = as<T>(pointers.at(k++));
            w.layer_bias[net][layer] = as<T>(pointers.at(k++));
        }
    for (T** p : {&w.query, &w.key_atom, &w.key_edge, &w.value_atom, &w.value_edge, &w.scalar_atom, &w.scalar_edge, &w.out})
        *p = as<T>(pointers.at(k++));
    return w;
}

struct Graph {
    std::int64_t atoms;
    Pointer row_ptr, neighbor, r, w;

    template <class T>
    AttentionGraph<T> view() const {
        return {atoms, as<std::int64_t>(row_ptr), as<std::int64_t>(neighbor), as<T>(r), as<T>(w)};
    }
};

Graph graph_of(const py::tuple& t) {
    return {t[0].cast<std::int64_t>(), t[1].cast<Pointer>(), t[2].cast<Pointer>(), t[3].cast<Pointer>(),
            t[4].cast<Pointer>()};
}

// One block's weights, in the layout of the kernels.
class Block {
  public:
    Block(bool real, long scalars, long time_channels, long centres, long heads, long key_channels, long value_channels,
          const std::vector<long>& key_hidden, const std::vector<long>& value_hidden, double cutoff, bool envelope,
          const Pointers& weights, bool gradients)
        : real(real), kernels_(chosen_kernels()) {
        size = {scalars, time_channels, centres, heads, key_channels, value_channels, {}, {}, cutoff, envelope};
        const std::vector<long>* hidden[2] = {&key_hidden, &value_hidden};
        for (int net = 0; net < 2; ++net) {
            if (hidden[net]->empty() || hidden[net]->size() > kMaxLayers)
                throw py::value_error("a radial network has " + std::to_string(hidden[net]->size()) +
                                      " hidden layers, but the CPU kernels take 1 to " + std::to_string(kMaxLayers) +
                                      "; use backend=\"reference\"");
            size.layers[net] = static_cast<int>(hidden[net]->size());
            for (int k = 0; k < size.layers[net]; ++k) size.hidden[net][k] = (*hidden[net])[k];
        }
        packed_ = real ? kernels_.real.pack(size, weights_of<double>(size, weights), gradients)
                       : kernels_.single.pack(size, weights_of<float>(size, weights), gradients);
    }
    Block(const Block&) = delete;
    ~Block() { real ? kernels_.real.release(packed_) : kernels_.single.release(packed_); }

    template <class T>
    void forward(const AttentionGraph<T>& graph, std::int64_t times, const AttentionState<T>& state,
                 const AttentionState<T>* tangent, const AttentionState<T>& out, const AttentionState<T>* out_tangent,
                 int threads) const {
        functions<T>(kernels_).forward(packed_, graph, times, state, tangent, out, out_tangent, threads);
    }

    template <class T>
    void backward(const AttentionGraph<T>& graph, std::int64_t times, const Pointers& state, const Pointers& increment_gradient,
                  const Pointers& state_gradient, const Pointers& weight_gradient, const Pointers& edge_gradient,
                  int threads) const {
        functions<T>(kernels_).backward(packed_, graph, times, state_of<T>(state), state_of<T>(increment_gradient), state_of<T>(state_gradient),
                                        weights_of<T>(size, weight_gradient),
                                        {as<T>(edge_gradient.at(0)), as<T>(edge_gradient.at(1))}, threads);
    }

    bool real;
    AttentionSizes size;

  private:
    const AttentionKernels& kernels_;
    void* packed_;
};

template <class T>
void block_forward(const Block& block, const Graph& graph, std::int64_t times, const Pointers& state,
                   const Pointers& tangent, const Pointers& out, const Pointers& out_tangent, int threads) {
    AttentionState<T> change{}, out_change{};
    if (!tangent.empty()) {
        change = state_of<T>(tangent);
        out_change = state_of<T>(out_tangent);
    }
    block.forward<T>(graph.view<T>(), times, state_of<T>(state), tangent.empty() ? nullptr : &change, state_of<T>(out),
                     tangent.empty() ? nullptr : &out_change, threads);
}

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

// All blocks, from the first scalars to the last displacement and velocity change; tangents where given.
template <class T>
void stack(const std::vector<const Block*>& blocks, bool running, const Graph& graph, std::int64_t times,
           const Pointers& scalars, const Pointers& displacement, const Pointers& velocity, int threads) {
    const std::size_t atoms = graph.atoms * times, parts = scalars.size();
    const long S = blocks.front()->size.scalars;
    std::vector<StateBuffer<T>> states, increments;
    AttentionState<T> state[2]{}, increment[2]{};
    for (std::size_t k = 0; k < parts; ++k) {
        states.emplace_back(atoms, S);
        increments.emplace_back(atoms, S);
        state[k] = states.back().view();
        increment[k] = increments.back().view();
        std::copy_n(as<T>(scalars[k]), atoms * S, state[k].scalars);
    }
    for (const Block* block : blocks) {
        const bool last = block == blocks.back();  // nobody reads the scalars of the last state
        for (std::size_t k = 0; last && k < parts; ++k) increment[k].scalars = nullptr;
        block->forward<T>(graph.view<T>(), times, state[0], parts > 1 ? &state[1] : nullptr, increment[0],
                          parts > 1 ? &increment[1] : nullptr, threads);
        for (std::size_t k = 0; k < parts; ++k) {
            if (running) {
                const std::size_t from = last ? atoms * S : 0;
                T *sum = states[k].memory.data() + from, *more = increments[k].memory.data() + from;
                add(sum, sum, more, atoms * (S + 6) - from);
            } else {
                states[k].memory.swap(increments[k].memory);
                state[k] = states[k].view();
                increment[k] = increments[k].view();
                if (!last) add(state[k].scalars, state[k].scalars, as<T>(scalars[k]), atoms * S);
            }
        }
    }
    for (std::size_t k = 0; k < parts; ++k) {
        std::copy_n(state[k].displacement, 3 * atoms, as<T>(displacement.at(k)));
        std::copy_n(state[k].velocity, 3 * atoms, as<T>(velocity.at(k)));
    }
}

// Atoms of a graph as the head reads them: species, masses, velocities, component, components.
struct Atoms {
    Pointer species, masses, velocities, component;
    std::int64_t components;

    template <class T>
    HeadAtoms<T> view() const {
        return {as<std::int64_t>(species), as<T>(masses), as<T>(velocities), as<std::int64_t>(component), components};
    }
};

Atoms atoms_of(const py::tuple& t) {
    return {t[0].cast<Pointer>(), t[1].cast<Pointer>(), t[2].cast<Pointer>(), t[3].cast<Pointer>(),
            t[4].cast<std::int64_t>()};
}

void check_labels(const char* name, Pointer labels, std::int64_t atoms, std::int64_t count) {
    for (std::int64_t i = 0; i < atoms; ++i)
        if (const std::int64_t label = as<std::int64_t>(labels)[i]; label < 0 || label >= count)
            throw py::value_error(std::string("the graph's ") + name + " must lie in 0 .. " + std::to_string(count - 1) +
                                  ", but atom " + std::to_string(i) + " has " + std::to_string(label));
}

// What makes up a model: the blocks and the embedding of each member.
struct Model {
    std::vector<std::vector<const Block*>> blocks;
    Pointers embeddings;
    bool running;
    HeadSizes head;
};

// Adds the members' mean motion to moved and velocity: embedding and time basis, all blocks, the head.
template <class T>
void add_motions(const Model& model, const Graph& graph, const Atoms& atoms, std::int64_t times, const double* t,
                 double* moved, double* velocity, int threads) {
    const std::size_t rows = graph.atoms * times;
    std::vector<T> scalars(rows * (model.head.species_channels + model.head.time_channels)), dx(3 * rows), dv(3 * rows);
    const auto address = [](std::vector<T>& x) { return Pointers{reinterpret_cast<Pointer>(x.data())}; };
    for (std::size_t k = 0; k < model.blocks.size(); ++k) {
        first_scalars<T>(model.head, as<T>(model.embeddings.at(k)), graph.atoms, as<std::int64_t>(atoms.species), times, t,
                         scalars.data());
        stack<T>(model.blocks[k], model.running, graph, times, address(scalars), address(dx), address(dv), threads);
        add_motion<T>(model.head, graph.view<T>(), atoms.view<T>(), times, t, dx.data(), dv.data(),
                      1.0 / static_cast<double>(model.blocks.size()), moved, velocity, threads);
    }
}

py::tuple predict(std::vector<std::vector<const Block*>> blocks, Pointers embeddings, std::int64_t species, bool running,
                  bool conserving, double time_cutoff, const py::tuple& graph, const py::tuple& atoms,
                  const py::array_t<double, py::array::c_style | py::array::forcecast>& t, int threads) {
    const Graph g = graph_of(graph);
    const Atoms a = atoms_of(atoms);
    check_labels("species", a.species, g.atoms, species);
    check_labels("components", a.component, g.atoms, a.components);
    const Block& block = *blocks.at(0).at(0);
    const AttentionSizes& of = block.size;
    const HeadSizes head{of.scalars - of.time_channels, of.time_channels, of.cutoff, time_cutoff, conserving};
    const Model model{std::move(blocks), std::move(embeddings), running, head};
    const std::vector<py::ssize_t> shape = {t.size(), py::ssize_t(g.atoms), 3};
    py::array_t<double> moved(shape), velocity(shape);
    std::fill_n(moved.mutable_data(), moved.size(), 0.0);
    std::fill_n(velocity.mutable_data(), velocity.size(), 0.0);
    const double* times = t.data();
    double *to_moved = moved.mutable_data(), *to_velocity = velocity.mutable_data();
    {
        py::gil_scoped_release release;
        (block.real ? add_motions<double> : add_motions<float>)(model, g, a, shape[0], times, to_moved, to_velocity,
                                                                threads);
    }
    return py::make_tuple(std::move(moved), std::move(velocity));
}

template <class T>
void potential_energies(const PotentialSizes& size, const Pointers& weights, const Graph& graph, Pointer species,
                        Pointer energy, int threads) {
    PotentialWeights<T> w;
    std::size_t k = 0;
    for (T** p : {&w.maps, &w.scale, &w.first, &w.first_bias, &w.second, &w.second_bias, &w.last})
        *p = as<T>(weights.at(k++));
    functions<T>(chosen_kernels()).potential(size, w, graph.view<T>(), as<std::int64_t>(species), as<T>(energy), threads);
}

void potential(bool float64, long species, long radial, long products, long hidden, double cutoff,
               const Pointers& weights, const py::tuple& graph, Pointer atoms_species, Pointer energy, int threads) {
    const Graph g = graph_of(graph);
    check_labels("species", atoms_species, g.atoms, species);
    const PotentialSizes size{species, radial, products, hidden, cutoff};
    py::gil_scoped_release release;
    (float64 ? potential_energies<double> : potential_energies<float>)(size, weights, g, atoms_species, energy, threads);
}

}  // namespace

void bind_attention(py::module_& module) {
    module.def("instruction_set", [] { return chosen_kernels().instruction_set; });

    py::class_<Block>(module, "AttentionBlock")
        .def(py::init<bool, long, long, long, long, long, long, const std::vector<long>&, const std::vector<long>&, double,
                      bool, const Pointers&, bool>(),
             py::kw_only(), py::arg("float64"), py::arg("scalars"), py::arg("time_channels"), py::arg("centres"),
             py::arg("heads"), py::arg("key_channels"), py::arg("value_channels"), py::arg("key_hidden"),
             py::arg("value_hidden"), py::arg("cutoff"), py::arg("envelope"), py::arg("weights"), py::arg("gradients"))
        .def("forward",
             [](const Block& block, const py::tuple& graph, std::int64_t times, const Pointers& state,
                const Pointers& tangent, const Pointers& out, const Pointers& out_tangent, int threads) {
                 const Graph g = graph_of(graph);
                 py::gil_scoped_release release;
                 (block.real ? block_forward<double> : block_forward<float>)(block, g, times, state, tangent, out,
                                                                            out_tangent, threads);
             })
        .def("backward",
             [](const Block& block, const py::tuple& graph, std::int64_t times, const Pointers& state, const Pointers& increment_gradient,
                const Pointers& state_gradient, const Pointers& weight_gradient, const Pointers& edge_gradient,
                int threads) {
                 const Graph g = graph_of(graph);
                 py::gil_scoped_release release;
                 const auto run = [&](auto zero) {
                     using T = decltype(zero);
                     block.backward<T>(g.view<T>(), times, state, increment_gradient, state_gradient, weight_gradient,
                                       edge_gradient, threads);
                 };
                 block.real ? run(double{}) : run(float{});
             });

    module.def("attention_stack",
               [](const std::vector<const Block*>& blocks, bool running, const py::tuple& graph, std::int64_t times,
                  const Pointers& scalars, const Pointers& displacement, const Pointers& velocity, int threads) {
                   const Graph g = graph_of(graph);
                   py::gil_scoped_release release;
                   (blocks.at(0)->real ? stack<double> : stack<float>)(blocks, running, g, times, scalars, displacement,
                                                                      velocity, threads);
               });
    module.def("predict", &predict);
    module.def("potential", &potential, py::arg("float64"), py::arg("species"), py::arg("radial"), py::arg("products"),
               py::arg("hidden"), py::arg("cutoff"), py::arg("weights"), py::arg("graph"), py::arg("atoms_species"),
               py::arg("energy"), py::arg("threads"));
}
