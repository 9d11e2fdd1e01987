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

// A domain whose processes speak with each other through a Python object: what domain.hpp leaves to who derives from it.
class PythonDomain final : public Domain {
  public:
    PythonDomain(py::object group, std::vector<std::int64_t> ids) : Domain(std::move(ids)), group_(std::move(group)) {}

    // Where an exception came between the halves of a swap, nothing may be written to its rows any longer.
    ~PythonDomain() override {
        try {
            group_.attr("drop_swap")();
        } catch (py::error_already_set& error) {
            error.discard_as_unraisable("the end of a domain");
        }
    }

    void sum(double* x, std::int64_t count) override {
        const py::gil_scoped_acquire acquire;
        group_.attr("sum")(view(x, count * sizeof(double)));
    }

  protected:
    void meet(const double* positions, std::vector<std::int64_t>& told, std::vector<double>& offsets) override {
        const py::gil_scoped_acquire acquire;
        const auto found =
            group_.attr("meet")(py::array_t<double>({py::ssize_t(own()), py::ssize_t(3)}, positions)).cast<py::tuple>();
        const auto atoms = found[0].cast<py::array_t<std::int64_t, py::array::c_style>>();
        const auto from = found[1].cast<Array>();
        told.assign(atoms.data(), atoms.data() + atoms.size());
        offsets.assign(from.data(), from.data() + from.size());
        if (from.ndim() != 2 || from.shape(0) < own() || from.shape(1) != 3)
            throw py::value_error("a process needs an offset for each of its atoms, then for each ghost");
        for (const std::int64_t atom : told)
            if (atom < 0 || atom >= own()) throw py::index_error("a process tells others of its own atoms alone");
    }

    void begin_swap(const void* out, std::int64_t outs, void* in, std::int64_t ins, std::int64_t bytes) override {
        const py::gil_scoped_acquire acquire;
        group_.attr("begin_swap")(view(const_cast<void*>(out), outs * bytes), view(in, ins * bytes), bytes);
    }

    void end_swap() override {
        const py::gil_scoped_acquire acquire;
        group_.attr("end_swap")();
    }

    void sum_named(const std::int64_t* names, double* rows, std::int64_t count, std::int64_t width) override {
        const py::gil_scoped_acquire acquire;
        group_.attr("sum_named")(view(const_cast<std::int64_t*>(names), count * sizeof(std::int64_t)),
                                 view(rows, count * width * sizeof(double)), width);
    }

  private:
    static py::memoryview view(void* data, std::int64_t bytes) {
        static char nothing;
        return py::memoryview::from_memory(data ? data : &nothing, bytes);
    }

    py::object group_;
};

Method method_named(const std::string& name) {
    if (name == "plain") return Method::kPlain;
    if (name == "reversible") return Method::kReversible;
    if (name == "symplectic") return Method::kSymplectic;
    throw py::value_error("method must be plain, reversible or symplectic, got " + name);
}

std::unique_ptr<Engine> make_engine(
    std::shared_ptr<Predictor> predictor, std::vector<std::int64_t> ptr, std::vector<std::int64_t> species,
    std::vector<double> masses, const std::optional<Array>& cell,
    const std::optional<py::array_t<bool, py::array::c_style | py::array::forcecast>>& pbc, double skin, double fs,
    std::vector<double> back, double most, int steps, double uncertain, const std::string& method, double pull,
    std::int64_t every, std::int64_t needed, PythonDomain* domain) {
    Contents contents{std::move(ptr), std::move(species), std::move(masses), {}, {}};
    const auto atoms = static_cast<std::int64_t>(contents.species.size());
    bool sound = contents.ptr.size() > 1 && contents.ptr[0] == 0 && contents.ptr.back() == atoms &&
                 contents.masses.size() == contents.species.size() && !back.empty();
    for (std::size_t s = 1; sound && s < contents.ptr.size(); ++s) sound = contents.ptr[s - 1] < contents.ptr[s];
    for (const std::int64_t species : contents.species)
        sound = sound && 0 <= species && species < predictor->head().species;
    if (!sound)
        throw py::value_error(
            "an engine needs systems of at least one atom each, with a known species and a mass for every "
            "atom of ptr [systems + 1]");
    const py::ssize_t systems = contents.ptr.size() - 1;
    if (cell && pbc) {
        expect(*cell, {systems, 3, 3}, "cell");
        expect(*pbc, {systems, 3}, "pbc");
        contents.cells.assign(cell->data(), cell->data() + cell->size());
        contents.pbc.assign(pbc->data(), pbc->data() + pbc->size());
    }
    if (domain && (systems != 1 || domain->own() != atoms))
        throw py::value_error("a domain has one system, and of that the engine's atoms");
    const Course course{method_named(method), pull, every, needed};
    if (course.method == Method::kSymplectic && !predictor->has_window_potentials())
        throw py::value_error("symplectic windows are of models with window potentials");
    if (every < 1 || needed < 0 || (needed && !predictor->has_energies()))
        throw py::value_error("energies are kept of models that have them, every so many windows");
    return std::make_unique<Engine>(std::move(predictor), contents,
                                    Rules{skin, fs, std::move(back), most, steps, uncertain}, course, domain);
}

py::object said(const std::optional<Broken>& broken) {
    return broken ? py::object(py::make_tuple(broken->system, broken->atom, broken->why)) : py::none();
}

// What the windows from `number` on lead to, of which window w has counts[w] of the times t, the last of them its end:
// positions and momenta of the wanted frames [wanted][atoms][3], their potential energies [wanted][systems] or None, the state
// at the end, how many windows were done, and None or what broke in the next, as Broken says; then the frames and the end
// are those of the windows that were done.
py::tuple advance(Engine& engine, const Array& positions, const Array& momenta, std::int64_t number, const Array& t,
                  const std::vector<std::int64_t>& counts, const std::vector<std::uint8_t>& wanted, int threads) {
    const py::ssize_t atoms = engine.atoms(), systems = engine.systems();
    expect(positions, {atoms, 3}, "positions");
    expect(momenta, {atoms, 3}, "momenta");
    std::int64_t times = 0;
    bool sound = !counts.empty();
    for (const std::int64_t count : counts) sound = sound && count > 0, times += count;
    if (!sound || times != t.size() || times != static_cast<std::int64_t>(wanted.size()))
        throw py::value_error("a call takes at least one window, each with its times and which of them are wanted");
    const py::ssize_t frames = std::count_if(wanted.begin(), wanted.end(), [](std::uint8_t w) { return w != 0; });
    const bool measured = engine.has_energies();
    py::array_t<double> x(std::vector<py::ssize_t>{frames, atoms, 3}), p(std::vector<py::ssize_t>{frames, atoms, 3}),
        energies(std::vector<py::ssize_t>{measured ? frames : 0, systems});
    std::vector<double> from_x(positions.data(), positions.data() + 3 * atoms),
        from_p(momenta.data(), momenta.data() + 3 * atoms), to_x(3 * atoms), to_p(3 * atoms);
    double *frame_x = x.mutable_data(), *frame_p = p.mutable_data(),
           *energy = measured ? energies.mutable_data() : nullptr;
    std::optional<Broken> broken;
    std::int64_t done = 0, at = 0, frame = 0;
    for (const std::int64_t count : counts) {
        if (done && PyErr_CheckSignals()) throw py::error_already_set();
        {
            const Computing computing;
            broken = engine.window(
                from_x.data(), from_p.data(),
                {number + done, count, t.data() + at, wanted.data() + at, frame_x + 3 * atoms * frame,
                 frame_p + 3 * atoms * frame, energy ? energy + systems * frame : nullptr, to_x.data(), to_p.data()},
                threads);
        }
        if (broken) break;
        frame += std::count_if(wanted.begin() + at, wanted.begin() + at + count, [](std::uint8_t w) { return w != 0; });
        at += count;
        ++done;
        from_x.swap(to_x), from_p.swap(to_p);
    }
    const py::slice part(0, frame, 1);
    const std::vector<py::ssize_t> state{atoms, 3};
    return py::make_tuple(x[part], p[part], measured ? py::object(energies[part]) : py::none(),
                          py::array_t<double>(state, from_x.data()), py::array_t<double>(state, from_p.data()), done,
                          said(broken));
}

py::tuple energies(Engine& engine, const Array& positions, const Array& momenta, int threads) {
    const py::ssize_t atoms = engine.atoms();
    expect(positions, {atoms, 3}, "positions");
    expect(momenta, {atoms, 3}, "momenta");
    if (!engine.has_energies()) throw py::value_error("the engine's model has no potential");
    py::array_t<double> energies(std::vector<py::ssize_t>{2, py::ssize_t(engine.systems())});
    const double *x = positions.data(), *p = momenta.data();
    double* to = energies.mutable_data();
    std::optional<Broken> broken;
    {
        const Computing computing;
        broken = engine.energies(x, p, to, threads);
    }
    return py::make_tuple(std::move(energies), said(broken));
}

py::tuple kept(const Engine& engine) {
    const Kept& kept = engine.kept();
    py::array_t<double> sums(std::vector<py::ssize_t>{2, py::ssize_t(engine.systems())});
    if (kept.seen) std::copy(kept.sums.begin(), kept.sums.end(), sums.mutable_data());
    else std::fill_n(sums.mutable_data(), sums.size(), 0.0);
    return py::make_tuple(std::move(sums), kept.seen);
}

void keep(Engine& engine, const Array& sums, std::int64_t seen) {
    expect(sums, {2, py::ssize_t(engine.systems())}, "sums");
    engine.keep({{sums.data(), sums.data() + sums.size()}, seen});
}

}  // namespace

void bind_engine(py::module_& module) {
    py::class_<PythonDomain>(module, "Domain", "See csrc/cpu/domain.hpp.")
        .def(py::init<py::object, std::vector<std::int64_t>>(), py::arg("group"), py::arg("ids"));
    py::class_<Engine>(module, "Engine", "See csrc/cpu/engine.hpp.")
        .def(py::init(&make_engine), py::arg("predictor"), py::kw_only(), py::arg("ptr"), py::arg("species"),
             py::arg("masses"), py::arg("cell"), py::arg("pbc"), py::arg("skin"), py::arg("fs"), py::arg("back"),
             py::arg("most"), py::arg("steps"), py::arg("uncertain"), py::arg("method"), py::arg("pull"),
             py::arg("every"), py::arg("needed"), py::arg("domain") = nullptr, py::keep_alive<1, 18>())
        .def("advance", &advance, py::arg("positions"), py::arg("momenta"), py::kw_only(), py::arg("number"),
             py::arg("t"), py::arg("counts"), py::arg("wanted"), py::arg("threads"))
        .def("energies", &energies, py::arg("positions"), py::arg("momenta"), py::arg("threads"))
        .def("kept", &kept)
        .def("keep", &keep, py::arg("sums"), py::arg("seen"));
}
