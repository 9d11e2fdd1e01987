// The Python module mdtrajnet_fast._C.  Arrays come as numpy, tensors as raw pointers; nothing of torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpu/conservation.hpp"
#include "cpu/neighbors.hpp"
#ifdef MDTRAJNET_CUDA
#include "cuda/device.hpp"
#endif

namespace py = pybind11;
using namespace mdtrajnet;

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> words;
    std::stringstream stream(text);
    for (std::string word; std::getline(stream, word, separator);) words.push_back(word);
    return words;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["flags"] = MDTRAJNET_CXX_FLAGS;
    info["instruction_sets"] = split(MDTRAJNET_INSTRUCTION_SETS, ' ');
    info["openmp"] = _OPENMP;
#ifdef MDTRAJNET_CUDA
    py::dict cuda;
    cuda["nvcc"] = nvcc_version();
    std::vector<std::string> archs = split(cuda_archs(), ',');
    for (std::string& arch : archs) arch.pop_back();  // 900 -> 90
    cuda["archs"] = archs;
    info["cuda"] = cuda;
#else
    info["cuda"] = py::none();
#endif
    return info;
}

py::dict devices() {
    py::dict result;
    py::list list;
#ifdef MDTRAJNET_CUDA
    const CudaDevices found = cuda_devices();
    for (const CudaDevice& device : found.devices) {
        py::dict entry;
        entry["name"] = device.name;
        entry["compute_capability"] = py::make_tuple(device.major, device.minor);
        entry["multiprocessors"] = device.multiprocessors;
        entry["memory"] = device.memory;
        list.append(entry);
    }
    result["error"] = found.error.empty() ? py::object(py::none()) : py::str(found.error);
#else
    result["error"] = "mdtrajnet_fast was built without CUDA: nvcc was not found, or MDTRAJNET_CUDA=0";
#endif
    result["devices"] = list;
    return result;
}

// "int64 array of shape (4, 3)"
std::string describe(const py::array& array) {
    return py::str("{} array of shape {}").format(array.dtype(), array.attr("shape")).cast<std::string>();
}

py::array as_array(const py::object& value, const char* name) {
    py::array array = py::array::ensure(value);
    if (!array) throw py::value_error(std::string(name) + " is not an array");
    return array;
}

bool has_shape(const py::array& array, std::initializer_list<py::ssize_t> shape) {
    return array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), array.shape());
}

bool kind_in(const py::array& array, const char* kinds) { return std::strchr(kinds, array.dtype().kind()); }

// The arguments of a neighbour list, checked for shape and type; the arrays live as long as this does.
class Input {
  public:
    Input(const py::object& positions, const py::object& cell, const py::object& pbc, const py::object& ptr) {
        take_positions(positions);
        take_ptr(ptr);
        take_cell(cell, pbc, !ptr.is_none());
    }
    Input(const Input&) = delete;

    Systems systems{};

  private:
    void take_positions(const py::object& value) {
        const py::array array = as_array(value, "positions");
        const bool real32 = py::isinstance<py::array_t<float>>(array);
        if (array.ndim() != 2 || array.shape(1) != 3 || !(real32 || py::isinstance<py::array_t<double>>(array)))
            throw py::value_error("positions must be a float32 or float64 array of shape [atoms, 3], got a " +
                                  describe(array));
        if (array.shape(0) > std::numeric_limits<std::int32_t>::max())
            throw py::value_error("positions has " + std::to_string(array.shape(0)) +
                                  " atoms, but one call takes at most 2147483647; split the systems over calls");
        positions_ = py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(array);
        systems.positions = positions_.data();
        systems.atoms = positions_.shape(0);
    }

    void take_ptr(const py::object& value) {
        systems.ptr = one_;
        systems.count = 1;
        one_[1] = systems.atoms;
        if (value.is_none()) return;
        const py::array array = as_array(value, "ptr");
        if (array.ndim() != 1 || array.shape(0) < 1 || !kind_in(array, "iu"))
            throw py::value_error("ptr must be an int64 array of shape [systems + 1], got a " + describe(array));
        ptr_ = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
        systems.ptr = ptr_.data();
        systems.count = ptr_.shape(0) - 1;
        bool rising = ptr_.at(0) == 0 && ptr_.at(systems.count) == systems.atoms;
        for (std::int64_t s = 0; s < systems.count; ++s) rising = rising && systems.ptr[s] <= systems.ptr[s + 1];
        if (!rising)
            throw py::value_error("ptr must rise from 0 to the number of atoms, " + std::to_string(systems.atoms) +
                                  ", got " + py::str(ptr_).cast<std::string>() +
                                  "; system s is made of the atoms ptr[s] .. ptr[s + 1] - 1");
    }

    void take_cell(const py::object& cell, const py::object& pbc, bool many) {
        const std::string systems_text = "[" + std::to_string(systems.count) + " systems, ";
        if (!pbc.is_none()) {
            const py::array array = as_array(pbc, "pbc");
            const bool fits = many ? has_shape(array, {systems.count, 3}) : array.ndim() == 0 || has_shape(array, {3});
            if (!fits || !kind_in(array, "biu"))
                throw py::value_error(
                    "pbc must be " +
                    (many ? "a bool array of shape " + systems_text + "3]" : std::string("a bool or three of them")) +
                    ", got a " + describe(array));
            const auto flags = py::array_t<bool, py::array::c_style | py::array::forcecast>::ensure(array);
            pbc_.resize(3 * systems.count);
            for (size_t k = 0; k < pbc_.size(); ++k) pbc_[k] = flags.data()[array.ndim() ? k : 0];
            systems.pbc = pbc_.data();
        }
        if (!cell.is_none()) {
            const py::array array = as_array(cell, "cell");
            if (!(many ? has_shape(array, {systems.count, 3, 3}) : has_shape(array, {3, 3})) || !kind_in(array, "fiu"))
                throw py::value_error("cell must hold real lattice vectors as rows, in shape " +
                                      (many ? systems_text + "3, 3]" : std::string("[3, 3]")) + ", got a " +
                                      describe(array));
            if (pbc.is_none())
                throw py::value_error("cell is given but pbc is not; pass pbc=True, three flags, or leave both out");
            cell_ = py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(array);
            systems.cells = cell_.data();
        } else {
            for (const std::uint8_t flag : pbc_)
                if (flag) throw py::value_error("pbc is True but no cell is given; pass the lattice vectors as cell");
        }
    }

    py::array_t<double> positions_, cell_;
    py::array_t<std::int64_t> ptr_;
    std::vector<std::uint8_t> pbc_;
    std::int64_t one_[2] = {0, 0};
};

double positive(double value, const char* name) {
    if (!(std::isfinite(value) && value > 0))
        throw py::value_error(std::string(name) + " must be a positive, finite length in Å, got " +
                              std::to_string(value));
    return value;
}

// None: 0, which stands for all that OpenMP has.
int thread_count(const py::object& threads) {
    if (threads.is_none()) return 0;
    const int count = threads.cast<int>();
    if (count < 1)
        throw py::value_error("threads must be at least 1, or None for the default, got " + std::to_string(count));
    return count;
}

// find(row_ptr) counts the edges of each atom and fill(neighbor, shift) writes them; both run without the GIL.
template <class Find, class Fill>
py::tuple run_list(std::int64_t atoms, const Find& find, const Fill& fill) {
    py::array_t<std::int64_t> row_ptr(atoms + 1);
    std::int64_t* rows = row_ptr.mutable_data();
    {
        const Computing computing;
        find(rows);
    }
    py::array_t<std::int32_t> neighbor(rows[atoms]);
    py::array_t<std::int32_t> shift({py::ssize_t(rows[atoms]), py::ssize_t(3)});
    std::int32_t *neighbors = neighbor.mutable_data(), *shifts = shift.mutable_data();
    {
        const Computing computing;
        fill(neighbors, shifts);
    }
    return py::make_tuple(std::move(row_ptr), std::move(neighbor), std::move(shift));
}

py::tuple neighbor_list(const py::object& positions, double cutoff, const py::object& cell, const py::object& pbc,
                        const py::object& ptr, const py::object& threads) {
    const Input input(positions, cell, pbc, ptr);
    const int team = thread_count(threads);
    positive(cutoff, "cutoff");
    std::optional<NeighborSearch> search;
    return run_list(
        input.systems.atoms, [&](std::int64_t* rows) { search.emplace(input.systems, cutoff, team, rows); },
        [&](std::int32_t* neighbor, std::int32_t* shift) { search->fill(neighbor, shift); });
}

py::tuple update_list(VerletList& list, const py::object& positions, const py::object& cell, const py::object& pbc,
                      const py::object& ptr, const py::object& threads) {
    const Input input(positions, cell, pbc, ptr);
    const int team = thread_count(threads);
    return run_list(
        input.systems.atoms, [&](std::int64_t* rows) { list.update(input.systems, team, rows); },
        [&](std::int32_t* neighbor, std::int32_t* shift) { list.fill(neighbor, shift); });
}

using RowPtr = py::array_t<std::int64_t, py::array::c_style>;
using Neighbors = py::array_t<std::int32_t, py::array::c_style>;

void check_edges(const RowPtr& row_ptr, const Neighbors& neighbor) {
    const std::int64_t atoms = row_ptr.size() - 1, edges = neighbor.size();
    bool sound =
        row_ptr.ndim() == 1 && neighbor.ndim() == 1 && atoms >= 0 && row_ptr.at(0) == 0 && row_ptr.at(atoms) == edges;
    for (std::int64_t i = 0; sound && i < atoms; ++i) sound = row_ptr.data()[i] <= row_ptr.data()[i + 1];
    for (std::int64_t e = 0; sound && e < edges; ++e) sound = 0 <= neighbor.data()[e] && neighbor.data()[e] < atoms;
    if (!sound)
        throw py::value_error(
            "edges are not compressed rows: row_ptr [atoms + 1] must rise from 0 to the length of "
            "neighbor, whose entries are atoms; take them from neighbor_list");
}

py::array_t<std::int64_t> components(const RowPtr& row_ptr, const Neighbors& neighbor) {
    check_edges(row_ptr, neighbor);
    py::array_t<std::int64_t> labels(row_ptr.size() - 1);
    connected_components(labels.size(), row_ptr.data(), neighbor.data(), labels.mutable_data());
    return labels;
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
py::tuple edge_vectors_as(const Systems& systems, const Array<double>& velocities, const RowPtr& row_ptr,
                          const Neighbors& neighbor, const Neighbors& shift) {
    const std::vector<py::ssize_t> shape = {neighbor.size(), 3};
    py::array_t<T> r(shape), w(shape);
    T *to_r = r.mutable_data(), *to_w = w.mutable_data();
    {
        const Computing computing;
        edge_vectors<T>(systems, velocities.data(), row_ptr.data(), neighbor.data(), shift.data(), to_r, to_w);
    }
    return py::make_tuple(std::move(r), std::move(w));
}

py::tuple vectors_of_edges(const py::object& positions, const Array<double>& velocities, const py::object& cell,
                           const py::object& pbc, const py::object& ptr, const RowPtr& row_ptr,
                           const Neighbors& neighbor, const Neighbors& shift, bool float64) {
    const Input input(positions, cell, pbc, ptr);
    check_edges(row_ptr, neighbor);
    const std::int64_t atoms = input.systems.atoms;
    if (!has_shape(velocities, {atoms, 3}) || row_ptr.size() != atoms + 1 || !has_shape(shift, {neighbor.size(), 3}))
        throw py::value_error(
            "velocities must be of shape [atoms, 3], row_ptr [atoms + 1] and shift [edges, 3] for the " +
            std::to_string(atoms) + " positions given, got a " + describe(velocities) + ", a " + describe(row_ptr) +
            " and a " + describe(shift));
    return (float64 ? edge_vectors_as<double> : edge_vectors_as<float>)(input.systems, velocities, row_ptr, neighbor,
                                                                        shift);
}

void expect(const py::array& array, std::initializer_list<py::ssize_t> shape, const char* name) {
    if (!has_shape(array, shape))
        throw py::value_error(std::string(name) + " must be of shape " +
                              py::str(py::cast(std::vector<py::ssize_t>(shape))).cast<std::string>() +
                              " for the atoms and times given, got a " + describe(array));
}

void check_components(const Array<std::int64_t>& component, std::int64_t atoms) {
    expect(component, {atoms}, "component");
    for (std::int64_t i = 0; i < atoms; ++i)
        if (component.data()[i] < 0 || component.data()[i] >= atoms)
            throw py::value_error("component must hold labels from 0 to the number of atoms less 1, got " +
                                  std::to_string(component.data()[i]) + "; take them from connected_components");
}

py::tuple conserve_momenta(const Array<double>& positions, const Array<double>& velocities, const Array<double>& masses,
                           const Array<double>& t, const Array<double>& moved, const Array<double>& velocity,
                           const Array<std::int64_t>& component, const Array<bool>& isolated, int steps) {
    const std::int64_t atoms = masses.size(), times = t.size();
    expect(masses, {atoms}, "masses");
    expect(t, {times}, "t");
    expect(positions, {atoms, 3}, "positions");
    expect(velocities, {atoms, 3}, "velocities");
    expect(moved, {times, atoms, 3}, "moved");
    expect(velocity, {times, atoms, 3}, "velocity");
    check_components(component, atoms);
    expect(isolated, {atoms}, "isolated");
    const std::vector<py::ssize_t> shape = {times, atoms, 3};
    py::array_t<double> new_moved(shape), new_velocity(shape);
    const Motion motion{atoms,
                        positions.data(),
                        velocities.data(),
                        masses.data(),
                        component.data(),
                        isolated.data(),
                        times,
                        t.data(),
                        new_moved.mutable_data(),
                        new_velocity.mutable_data()};
    std::copy_n(moved.data(), moved.size(), motion.moved);
    std::copy_n(velocity.data(), velocity.size(), motion.velocity);
    {
        const Computing computing;
        conserve(motion, steps);
    }
    return py::make_tuple(std::move(new_moved), std::move(new_velocity));
}

bool same_bytes(const py::array& a, const py::array& b) {
    const bool comparable = a.nbytes() == b.nbytes() && (a.flags() & b.flags() & py::array::c_style);
    return comparable && !std::memcmp(a.data(), b.data(), a.nbytes());
}

}  // namespace

void bind_attention(py::module_&);
void bind_cuda_attention(py::module_&);
void bind_cuda_neighbors(py::module_&);
void bind_cuda_windows(py::module_&);
void bind_engine(py::module_&);

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native parts of mdtrajnet_fast.";
    bind_attention(m);
    bind_cuda_attention(m);
    bind_cuda_neighbors(m);
    bind_cuda_windows(m);
    bind_engine(m);
    m.def("build_info", &build_info,
          "How this module was built: compiler, flags, instruction_sets, openmp (its date), and cuda: None, or\n"
          "the version of nvcc and the archs.");
    m.def("neighbor_list", &neighbor_list, py::arg("positions"), py::arg("cutoff"), py::arg("cell"), py::arg("pbc"),
          py::arg("ptr"), py::arg("threads"),
          "row_ptr, neighbor, shift: see mdtrajnet_fast.neighbors.host.neighbor_list.");
    py::class_<VerletList>(m, "VerletList", "See mdtrajnet_fast.neighbors.host.NeighborList.")
        .def(py::init([](double cutoff, double skin) {
                 if (!(std::isfinite(skin) && skin >= 0))
                     throw py::value_error("skin must be a finite length in Å, 0 or more, got " + std::to_string(skin));
                 return VerletList(positive(cutoff, "cutoff"), skin);
             }),
             py::arg("cutoff"), py::arg("skin"))
        .def("update", &update_list, py::arg("positions"), py::arg("cell"), py::arg("pbc"), py::arg("ptr"),
             py::arg("threads"))
        .def_property_readonly("builds", &VerletList::builds);
    m.def("connected_components", &components, py::arg("row_ptr"), py::arg("neighbor"),
          "Labels of the connected components, in the order of their first atoms.");
    m.def("edge_vectors", &vectors_of_edges, py::arg("positions"), py::arg("velocities"), py::arg("cell"),
          py::arg("pbc"), py::arg("ptr"), py::arg("row_ptr"), py::arg("neighbor"), py::arg("shift"), py::arg("float64"),
          "r, w: see mdtrajnet_fast.neighbors.host.edge_vectors.");
    m.def("conserve", &conserve_momenta, py::arg("positions"), py::arg("velocities"), py::arg("masses"), py::arg("t"),
          py::arg("moved"), py::arg("velocity"), py::arg("component"), py::arg("isolated"), py::arg("steps"),
          "moved, velocity: see mdtrajnet_fast.md.conservation.conserve.");
    m.def("same_bytes", &same_bytes, py::arg("a"), py::arg("b"),
          "Whether two arrays, both in C order, hold the same bytes; of their types it knows nothing.");
    m.def("cuda_devices", &devices,
          "The CUDA devices seen: devices (a list of name, compute_capability, multiprocessors, memory in\n"
          "bytes) and error (None, or why there are none: no driver, no device, or built without CUDA).");
}
