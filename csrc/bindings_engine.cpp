// The engine of rollouts for Python: states in, states out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "cpu/engine.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

void expect(const py::array& array, const std::vector<py::ssize_t>& shape, const char* name) {
    if (!std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim()))
        throw py::value_error(std::string(name) + " must be of shape " + py::str(py::cast(shape)).cast<std::string>() +
                              " for the engine's systems, got " + py::str(array.attr("shape")).cast<std::string>());
}

std::unique_ptr<Engine> make_engine(std::shared_ptr<Predictor> predictor, std::vector<std::int64_t> ptr,
                                    std::vector<std::int64_t> species, std::vector<double> masses,
                                    const std::optional<Array>& cell,
                                    const std::optional<py::array_t<bool, py::array::c_style | py::array::forcecast>>& pbc,
                                    double skin, double fs, std::vector<double> back, double most, int steps) {
    Contents contents{std::move(ptr), std::move(species), std::move(masses), {}, {}};
    const auto atoms = static_cast<std::int64_t>(contents.species.size());
    bool sound = contents.ptr.size() > 1 && contents.ptr[0] == 0 && contents.ptr.back() == atoms &&
                 contents.masses.size() == contents.species.size() && !back.empty();
    for (std::size_t s = 1; sound && s < contents.ptr.size(); ++s) sound = contents.ptr[s - 1] < contents.ptr[s];
    for (const std::int64_t species : contents.species) sound = sound && 0 <= species && species < predictor->head().species;
    if (!sound)
        throw py::value_error("an engine needs systems of at least one atom each, with a known species and a mass for every "
                              "atom of ptr [systems + 1]");
    const py::ssize_t systems = contents.ptr.size() - 1;
    if (cell && pbc) {
        expect(*cell, {systems, 3, 3}, "cell");
        expect(*pbc, {systems, 3}, "pbc");
        contents.cells.assign(cell->data(), cell->data() + cell->size());
        contents.pbc.assign(pbc->data(), pbc->data() + pbc->size());
    }
    return std::make_unique<Engine>(std::move(predictor), contents, Rules{skin, fs, std::move(back), most, steps});
}

Method method_named(const std::string& name) {
    if (name == "plain") return Method::kPlain;
    if (name == "reversible") return Method::kReversible;
    if (name == "symplectic") return Method::kSymplectic;
    throw py::value_error("method must be plain, reversible or symplectic, got " + name);
}

py::object said(const std::optional<Broken>& broken) {
    return broken ? py::object(py::make_tuple(broken->system, broken->atom, broken->why)) : py::none();
}

// What `windows` windows lead to: the frames at times t of the last, the energies at the end or None (measured of a single
// window, where asked for and no target is given), how many windows were done, and None or what broke in the next, as Broken says;
// then the frame is the state before.
py::tuple advance(Engine& engine, Array positions, Array momenta, const Array& t, std::int64_t windows,
                  const std::string& name, double pull, const std::optional<Array>& total, const std::optional<Array>& near, bool measure,
                  int threads) {
    const py::ssize_t atoms = engine.atoms(), systems = engine.systems(), times = t.size();
    expect(positions, {atoms, 3}, "positions");
    expect(momenta, {atoms, 3}, "momenta");
    if (times < 1 || windows < 1 || (windows > 1 && (times > 1 || measure)))
        throw py::value_error("a call takes one window, with any times, or several with their end alone, unmeasured");
    const Method method = method_named(name);
    if (method == Method::kSymplectic && (!engine.has_window_potentials() || total || measure))
        throw py::value_error("symplectic windows are of models with window potentials, and have no energy to keep");
    EnergyTarget target{nullptr, nullptr, pull};
    if (total && near) {
        expect(*total, {systems}, "total");
        expect(*near, {systems}, "near");
        target.total = total->data();
        target.near = near->data();
    }
    const bool measured = measure && engine.has_potential() && !target.total;
    py::array_t<double> x(std::vector<py::ssize_t>{times, atoms, 3}), p(std::vector<py::ssize_t>{times, atoms, 3});
    py::array_t<double> energies(std::vector<py::ssize_t>{2, measured ? systems : 0});
    std::vector<double> before_x, before_p;
    const double *from_x = positions.data(), *from_p = momenta.data();
    const Window window{times,           t.data(), method, target, x.mutable_data(), p.mutable_data(),
                        measured ? energies.mutable_data() : nullptr};
    std::optional<Broken> broken;
    std::int64_t done = 0;
    for (;;) {
        {
            const Computing computing;
            broken = engine.window(from_x, from_p, window, threads);
        }
        if (broken || ++done == windows) break;
        if (PyErr_CheckSignals()) throw py::error_already_set();
        before_x.assign(x.data(), x.data() + x.size());
        before_p.assign(p.data(), p.data() + p.size());
        from_x = before_x.data(), from_p = before_p.data();
    }
    if (broken) {  // the state that the last good window led to
        x = py::array_t<double>(std::vector<py::ssize_t>{1, atoms, 3}, from_x);
        p = py::array_t<double>(std::vector<py::ssize_t>{1, atoms, 3}, from_p);
    }
    return py::make_tuple(std::move(x), std::move(p), measured ? py::object(std::move(energies)) : py::none(), done,
                          said(broken));
}

py::tuple energies(Engine& engine, const Array& positions, const Array& momenta, int threads) {
    const py::ssize_t atoms = engine.atoms();
    expect(positions, {atoms, 3}, "positions");
    expect(momenta, {atoms, 3}, "momenta");
    if (!engine.has_potential()) throw py::value_error("the engine's model has no potential");
    py::array_t<double> energies(std::vector<py::ssize_t>{2, py::ssize_t(engine.systems())});
    const double *x = positions.data(), *p = momenta.data();
    double* to = energies.mutable_data();
    std::optional<Broken> broken;
    {
        const Computing computing;
        broken = engine.energies(x, p, Method::kReversible, to, threads);
    }
    return py::make_tuple(std::move(energies), said(broken));
}

}  // namespace

void bind_engine(py::module_& module) {
    py::class_<Engine>(module, "Engine", "See csrc/cpu/engine.hpp.")
        .def(py::init(&make_engine), py::arg("predictor"), py::kw_only(), py::arg("ptr"), py::arg("species"),
             py::arg("masses"), py::arg("cell"), py::arg("pbc"), py::arg("skin"), py::arg("fs"), py::arg("back"),
             py::arg("most"), py::arg("steps"))
        .def("advance", &advance, py::arg("positions"), py::arg("momenta"), py::kw_only(), py::arg("t"), py::arg("windows"),
             py::arg("method"), py::arg("pull"), py::arg("total"), py::arg("near"), py::arg("measure"),
             py::arg("threads"))
        .def("energies", &energies, py::arg("positions"), py::arg("momenta"), py::arg("threads"));
}
