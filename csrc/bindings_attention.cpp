// Attention blocks and predictors for Python: raw pointers in, checked by the caller, which knows the tensors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpu/fold.hpp"
#include "cpu/predictor.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

namespace {

using Pointer = std::uintptr_t;
using Pointers = std::vector<Pointer>;

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
    for (T** p :
         {&w.query, &w.key_atom, &w.key_edge, &w.value_atom, &w.value_edge, &w.scalar_atom, &w.scalar_edge, &w.out})
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

std::shared_ptr<Block> make_block(bool real, long scalars, long time_channels, long centres, long heads,
                                  long key_channels, long value_channels, const std::vector<long>& key_hidden,
                                  const std::vector<long>& value_hidden, double cutoff, bool envelope,
                                  const Pointers& weights, bool gradients) {
    AttentionSizes size{scalars, time_channels, centres, heads, key_channels, value_channels, {}, {}, cutoff, envelope};
    const std::vector<long>* hidden[2] = {&key_hidden, &value_hidden};
    for (int net = 0; net < 2; ++net) {
        if (hidden[net]->empty() || hidden[net]->size() > kMaxLayers)
            throw py::value_error("a radial network has " + std::to_string(hidden[net]->size()) +
                                  " hidden layers, but the CPU kernels take 1 to " + std::to_string(kMaxLayers) +
                                  "; use backend=\"reference\"");
        size.layers[net] = static_cast<int>(hidden[net]->size());
        for (int k = 0; k < size.layers[net]; ++k) size.hidden[net][k] = (*hidden[net])[k];
    }
    return real ? std::make_shared<Block>(size, weights_of<double>(size, weights), gradients)
                : std::make_shared<Block>(size, weights_of<float>(size, weights), gradients);
}

// Calls work(T{}) with the precision of the kernels.
template <class Work>
void with_precision(bool real, const Work& work) {
    real ? work(double{}) : work(float{});
}

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

template <class T>
std::vector<T*> all_as(const Pointers& pointers) {
    std::vector<T*> all;
    for (const Pointer p : pointers) all.push_back(as<T>(p));
    return all;
}

void check_labels(const char* name, Pointer labels, std::int64_t atoms, std::int64_t count) {
    for (std::int64_t i = 0; i < atoms; ++i)
        if (const std::int64_t label = as<std::int64_t>(labels)[i]; label < 0 || label >= count)
            throw py::value_error(std::string("the graph's ") + name + " must lie in 0 .. " +
                                  std::to_string(count - 1) + ", but atom " + std::to_string(i) + " has " +
                                  std::to_string(label));
}

// potential: None, or species, radial, products, hidden, cutoff and the addresses of the weights.
// window_potentials, dipole: as density_network has them.
std::shared_ptr<Predictor> make_predictor(bool real, std::vector<Blocks> members, const Pointers& embeddings,
                                          long species, long species_channels, long time_channels, double radial_cutoff,
                                          bool running, bool conserving, bool readout, double time_cutoff,
                                          const py::object& potential, const py::object& window_potentials,
                                          const py::object& dipole) {
    PredictorParts parts{};
    parts.real = real;
    parts.running = running;
    parts.head = {species_channels, time_channels, radial_cutoff, time_cutoff, conserving, readout, species};
    for (const Pointer p : embeddings) parts.embeddings.push_back(as<void>(p));
    parts.members = std::move(members);
    if (!potential.is_none()) {
        const py::tuple t = potential;
        parts.has_potential = true;
        parts.potential = {t[0].cast<long>(), t[1].cast<long>(), t[2].cast<long>(), t[3].cast<long>(),
                           t[4].cast<double>()};
        const auto weights = t[5].cast<Pointers>();
        for (std::size_t k = 0; k < std::size(parts.potential_weights); ++k)
            parts.potential_weights[k] = as<void>(weights.at(k));
    }
    parts.window_potentials = density_network(window_potentials);
    parts.dipole = density_network(dipole);
    return std::make_shared<Predictor>(std::move(parts));
}

// atoms: addresses of species, masses, velocities and component, and how many components there are.
py::tuple motion(const Predictor& predictor, const py::tuple& graph, const py::tuple& atoms,
                 const py::array_t<double, py::array::c_style | py::array::forcecast>& t, int threads) {
    const Graph g = graph_of(graph);
    const auto at = [&](int k) { return atoms[k].cast<Pointer>(); };
    const auto components = atoms[4].cast<std::int64_t>();
    check_labels("species", at(0), g.atoms, predictor.head().species);
    check_labels("components", at(3), g.atoms, components);
    const Pointer p[] = {at(0), at(1), at(2), at(3)};
    const std::vector<py::ssize_t> shape = {t.size(), py::ssize_t(g.atoms), 3};
    py::array_t<double> moved(shape), velocity(shape);
    const double* times = t.data();
    double *to_moved = moved.mutable_data(), *to_velocity = velocity.mutable_data();
    {
        const Computing computing;
        with_precision(predictor.real(), [&](auto zero) {
            using T = decltype(zero);
            const HeadAtoms<T> of{as<std::int64_t>(p[0]), as<T>(p[1]), as<T>(p[2]), as<std::int64_t>(p[3]), components};
            predictor.motion<T>(g.view<T>(), of, shape[0], times, to_moved, to_velocity, threads);
        });
    }
    return py::make_tuple(std::move(moved), std::move(velocity));
}

void energies(const Predictor& predictor, const py::tuple& graph, Pointer species, Pointer energy, int threads) {
    const Graph g = graph_of(graph);
    check_labels("species", species, g.atoms, predictor.head().species);
    const Computing computing;
    with_precision(predictor.real(), [&](auto zero) {
        using T = decltype(zero);
        predictor.energies<T>(g.view<T>(), as<std::int64_t>(species), as<T>(energy), threads);
    });
}

void slopes(const Predictor& predictor, const py::tuple& graph, Pointer species, int role, Pointer energy,
            Pointer slope, int threads) {
    const Graph g = graph_of(graph);
    check_labels("species", species, g.atoms, predictor.head().species);
    if (role < 0 || role >= kRoles)
        throw py::value_error("role must lie in 0 .. " + std::to_string(kRoles - 1) + ", got " + std::to_string(role));
    const Computing computing;
    with_precision(predictor.real(), [&](auto zero) {
        using T = decltype(zero);
        predictor.slopes<T>(g.view<T>(), as<std::int64_t>(species), role, as<T>(energy), as<double>(slope), threads);
    });
}

void charges(const Predictor& predictor, const py::tuple& graph, Pointer species, Pointer charge, int threads) {
    const Graph g = graph_of(graph);
    check_labels("species", species, g.atoms, predictor.head().species);
    if (!predictor.has_dipole()) throw py::value_error("the predictor's model has no dipole");
    const Computing computing;
    with_precision(predictor.real(), [&](auto zero) {
        using T = decltype(zero);
        predictor.charges<T>(g.view<T>(), as<std::int64_t>(species), as<T>(charge), threads);
    });
}

// Window potentials, and a graph whose atoms have roles of their own.
struct Roles {
    DensityNetwork network;
    Graph graph;
    const std::int64_t* species;
    WindowRoles each;
};

// network: as density_network has it, of kRoles roles.
Roles roles_of(const py::object& network, const py::tuple& graph, Pointer species, Pointer roles) {
    const DensityNetwork of = density_network(network);
    const Graph g = graph_of(graph);
    check_labels("species", species, g.atoms, of.sizes.species);
    check_labels("roles", roles, g.atoms, kRoles);
    return {of, g, as<std::int64_t>(species), {0, as<std::int64_t>(roles)}};
}

// Energies and slopes.
void window_slopes(bool float64, const py::object& network, const py::tuple& graph, Pointer species, Pointer roles,
                   Pointer energy, Pointer slope, int threads) {
    const Roles in = roles_of(network, graph, species, roles);
    const Computing computing;
    with_precision(float64, [&](auto zero) {
        using T = decltype(zero);
        functions_of<T>(chosen_kernels())
            .window_potential(in.network.sizes, in.network.weights_as<T>(), in.graph.view<T>(), in.species, in.each,
                              as<T>(energy), as<double>(slope), threads);
    });
}

// Gradients of the weights, from those of what window_slopes found.
void window_gradients(bool float64, const py::object& network, const py::tuple& graph, Pointer species, Pointer roles,
                      Pointer energy_gradient, Pointer slope_gradient, const Pointers& gradient, int threads) {
    const Roles in = roles_of(network, graph, species, roles);
    const Computing computing;
    with_precision(float64, [&](auto zero) {
        using T = decltype(zero);
        WindowPotentialGradients<T> to;
        for (std::size_t k = 0; k < kWindowWeights; ++k) to.weights[k] = as<T>(gradient.at(k));
        functions_of<T>(chosen_kernels())
            .window_gradients(in.network.sizes, in.network.weights_as<T>(), in.graph.view<T>(), in.species, in.each,
                              as<T>(energy_gradient), as<T>(slope_gradient), to, threads);
    });
}

template <class T>
BlockPaths<T> paths_of(const Pointers& pointers) {
    BlockPaths<T> w;
    std::size_t k = 0;
    for (T** p : {&w.key_scalar, &w.key_vector, &w.value_scalar, &w.value_vector, &w.query_scalar, &w.query_vector,
                  &w.bilinear_scalar, &w.bilinear_vector, &w.out_scalar, &w.out_vector})
        *p = as<T>(pointers.at(k++));
    return w;
}

template <class T>
FoldedPaths<T> folded_of(const Pointers& pointers) {
    FoldedPaths<T> f;
    std::size_t k = 0;
    for (T** p :
         {&f.query, &f.key_atom, &f.key_edge, &f.value_atom, &f.value_edge, &f.scalar_atom, &f.scalar_edge, &f.out})
        *p = as<T>(pointers.at(k++));
    return f;
}

// The folded weights; or where there is memory for them the gradients of the weights, from those of the folded ones.
template <class T>
void fold_weights(const FoldSizes& size, const Pointers& weights, const Pointers& folded, const Pointers& gradient) {
    if (gradient.empty()) fold(size, paths_of<T>(weights), folded_of<T>(folded));
    else fold_backward(size, paths_of<T>(weights), folded_of<T>(folded), paths_of<T>(gradient));
}

}  // namespace

void bind_attention(py::module_& module) {
    module.def("instruction_set", [] { return chosen_kernels().instruction_set; });
    module.def("useful_threads", &useful_threads, py::arg("threads"), py::arg("rows"));

    py::class_<Block, std::shared_ptr<Block>>(module, "AttentionBlock")
        .def(py::init(&make_block), py::kw_only(), py::arg("float64"), py::arg("scalars"), py::arg("time_channels"),
             py::arg("centres"), py::arg("heads"), py::arg("key_channels"), py::arg("value_channels"),
             py::arg("key_hidden"), py::arg("value_hidden"), py::arg("cutoff"), py::arg("envelope"), py::arg("weights"),
             py::arg("gradients"))
        .def("forward",
             [](const Block& block, const py::tuple& graph, std::int64_t times, const Pointers& state,
                const Pointers& tangent, const Pointers& out, const Pointers& out_tangent, int threads) {
                 const Graph g = graph_of(graph);
                 const Computing computing;
                 with_precision(block.real, [&](auto zero) {
                     block_forward<decltype(zero)>(block, g, times, state, tangent, out, out_tangent, threads);
                 });
             })
        .def("backward", [](const Block& block, const py::tuple& graph, std::int64_t times, const Pointers& state,
                            const Pointers& increment_gradient, const Pointers& state_gradient,
                            const Pointers& weight_gradient, const Pointers& edge_gradient, int threads) {
            const Graph g = graph_of(graph);
            const Computing computing;
            with_precision(block.real, [&](auto zero) {
                using T = decltype(zero);
                block.backward<T>(g.view<T>(), times, state_of<T>(state), state_of<T>(increment_gradient),
                                  state_of<T>(state_gradient), weights_of<T>(block.size, weight_gradient),
                                  {as<T>(edge_gradient.at(0)), as<T>(edge_gradient.at(1))}, threads);
            });
        });

    module.def("attention_stack",
               [](const Blocks& blocks, bool running, const py::tuple& graph, std::int64_t times,
                  const Pointers& scalars, const Pointers& displacement, const Pointers& velocity, int threads) {
                   const Graph g = graph_of(graph);
                   const Computing computing;
                   with_precision(blocks.at(0)->real, [&](auto zero) {
                       using T = decltype(zero);
                       attention_stack<T>(blocks, running, g.view<T>(), times, static_cast<int>(scalars.size()),
                                          all_as<T>(scalars).data(), all_as<T>(displacement).data(),
                                          all_as<T>(velocity).data(), threads);
                   });
               });
    module.def("fold", [](bool float64, long scalars, long heads, const std::array<long, 8>& sizes,
                          const Pointers& weights, const Pointers& folded, const Pointers& gradient) {
        const auto& [n, m, c0, v0, c1, v1, q0, q1] = sizes;
        const FoldSizes size{scalars, heads, {n, m}, {c0, v0}, {c1, v1}, {q0, q1}};
        const Computing computing;
        (float64 ? fold_weights<double> : fold_weights<float>)(size, weights, folded, gradient);
    });

    module.def("window_slopes", &window_slopes);
    module.def("window_gradients", &window_gradients);

    py::class_<Predictor, std::shared_ptr<Predictor>>(module, "Predictor")
        .def(py::init(&make_predictor), py::kw_only(), py::arg("real"), py::arg("members"), py::arg("embeddings"),
             py::arg("species"), py::arg("species_channels"), py::arg("time_channels"), py::arg("radial_cutoff"),
             py::arg("running"), py::arg("conserving"), py::arg("readout"), py::arg("time_cutoff"),
             py::arg("potential"), py::arg("window_potentials"), py::arg("dipole"))
        .def("motion", &motion, py::arg("graph"), py::arg("atoms"), py::arg("t"), py::arg("threads"))
        .def("energies", &energies, py::arg("graph"), py::arg("species"), py::arg("energy"), py::arg("threads"))
        .def("slopes", &slopes, py::arg("graph"), py::arg("species"), py::arg("role"), py::arg("energy"),
             py::arg("slope"), py::arg("threads"))
        .def("charges", &charges, py::arg("graph"), py::arg("species"), py::arg("charge"), py::arg("threads"));
}
