// What windows need of the GPU, potentials and velocities without rigid motion, for Python: device addresses and a stream in,
// checked by the caller, which knows the tensors.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings.hpp"
#include "bindings_cuda.hpp"
#include "cuda/conservation.hpp"
#include "cuda/window_potentials.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

// network: as density_network has it, of device addresses.
void bind_cuda_windows(py::module_& m) {
    m.def(
        "cuda_window_bytes",
        [](const py::tuple& network, std::int64_t atoms, bool slopes) -> std::size_t {
            ON_CUDA(return cuda::window_potential_bytes(density_network(network).sizes, atoms, slopes));
        },
        py::arg("network"), py::arg("atoms"), py::arg("slopes"), "Bytes of the workspace of cuda_window_potential.");
    // graph: atoms and the addresses of row_ptr, neighbor, r and w; slope: 0 for energies alone
    m.def("cuda_window_potential", [](const py::tuple& network, const py::tuple& graph, Address species,
                                      std::int64_t role, Address energy, Address slope, Address workspace,
                                      Address stream) {
        const DensityNetwork of = density_network(network);
        if (role < 0 || role >= of.roles)
            throw py::value_error("role must lie in 0 .. " + std::to_string(of.roles - 1) + ", got " +
                                  std::to_string(role));
        ON_CUDA(const auto address = [&](int k) { return graph[k].cast<Address>(); }; const AttentionGraph<float> view{
            graph[0].cast<std::int64_t>(), at<const std::int64_t>(address(1)), at<const std::int64_t>(address(2)),
            at<const float>(address(3)), at<const float>(address(4))};
                cuda::window_potential(of.sizes, of.weights_as<float>(), view, at<const std::int64_t>(species), role,
                                       at<float>(energy), at<double>(slope), at<void>(workspace),
                                       at<CUstream_st>(stream)));
    });
    m.def(
        "cuda_internal_velocities_bytes",
        [](std::int64_t times, std::int64_t atoms) -> std::size_t {
            ON_CUDA(return cuda::internal_velocities_bytes(times, atoms));
        },
        py::arg("times"), py::arg("atoms"), "Bytes of the workspace of cuda_internal_velocities.");
    m.def("cuda_internal_velocities",
          [](std::int64_t times, std::int64_t atoms, Address positions, Address velocities, Address masses,
             Address component, Address isolated, Address workspace, Address out, Address stream) {
              ON_CUDA(cuda::internal_velocities(
                  {times, atoms, at<const double>(positions), at<const double>(velocities), at<const double>(masses),
                   at<const std::int64_t>(component), at<const bool>(isolated)},
                  at<void>(workspace), at<double>(out), at<CUstream_st>(stream)));
          });
}
