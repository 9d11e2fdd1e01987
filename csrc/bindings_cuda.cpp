// The GPU's neighbour search for Python: device addresses and a stream in, checked by the caller.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings_cuda.hpp"
#include "cuda/neighbors.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

void bind_cuda_neighbors(py::module_& m) {
    py::class_<Systems>(m, "CudaSystems", "csrc/cpu/neighbors.hpp: Systems, of device addresses.")
        .def(py::init([](Address positions, std::int64_t atoms, Address ptr, std::int64_t count, Address cells,
                         Address pbc) {
                 return Systems{at<const double>(positions), atoms,
                                at<const std::int64_t>(ptr), count,
                                at<const double>(cells),     at<const std::uint8_t>(pbc)};
             }),
             py::arg("positions"), py::arg("atoms"), py::arg("ptr"), py::arg("count"), py::arg("cells"),
             py::arg("pbc"));
    py::class_<cuda::SkinList>(m, "CudaSkinList", "csrc/cuda/neighbors.hpp: SkinList.")
        .def(py::init([](Address state, Address row_ptr, Address neighbor, Address shift, std::int64_t capacity) {
                 return cuda::SkinList{at<void>(state), at<std::int64_t>(row_ptr), at<std::int32_t>(neighbor),
                                       at<std::int32_t>(shift), capacity};
             }),
             py::arg("state"), py::arg("row_ptr"), py::arg("neighbor"), py::arg("shift"), py::arg("capacity"));
    m.def(
        "cuda_neighbor_bytes",
        [](std::int64_t atoms, std::int64_t systems) {
            ON_CUDA(return py::make_tuple(cuda::workspace_bytes(atoms, systems), cuda::skin_bytes(atoms, systems)));
        },
        py::arg("atoms"), py::arg("systems"), "Bytes of the workspace and of a skin list's state.");
    m.def("cuda_count_neighbors", [](const Systems& systems, double cutoff, std::int64_t capacity, Address workspace,
                                     Address row_ptr, Address status, Address stream) {
        ON_CUDA(cuda::count_neighbors(systems, cutoff, capacity, at<void>(workspace), at<std::int64_t>(row_ptr),
                                      at<cuda::Status>(status), at<CUstream_st>(stream)));
    });
    m.def("cuda_fill_neighbors", [](const Systems& systems, double cutoff, Address workspace, Address row_ptr,
                                    Address neighbor, Address shift, Address status, Address stream) {
        ON_CUDA(cuda::fill_neighbors(systems, cutoff, at<void>(workspace), at<const std::int64_t>(row_ptr),
                                     at<std::int32_t>(neighbor), at<std::int32_t>(shift),
                                     at<const cuda::Status>(status), at<CUstream_st>(stream)));
    });
    m.def("cuda_update_skin", [](const Systems& systems, double cutoff, double skin, const cuda::SkinList& list,
                                 Address workspace, Address stream) {
        ON_CUDA(cuda::update_skin(systems, cutoff, skin, list, at<void>(workspace), at<CUstream_st>(stream)));
    });
    m.def("cuda_count_within",
          [](const Systems& systems, double cutoff, const cuda::SkinList& list, std::int64_t capacity,
             Address workspace, Address row_ptr, Address status, Address stream) {
              ON_CUDA(cuda::count_within(systems, cutoff, list, capacity, at<void>(workspace),
                                         at<std::int64_t>(row_ptr), at<cuda::Status>(status), at<CUstream_st>(stream)));
          });
    m.def("cuda_fill_within", [](const Systems& systems, double cutoff, const cuda::SkinList& list, Address row_ptr,
                                 Address neighbor, Address shift, Address status, Address stream) {
        ON_CUDA(cuda::fill_within(systems, cutoff, list, at<const std::int64_t>(row_ptr), at<std::int32_t>(neighbor),
                                  at<std::int32_t>(shift), at<const cuda::Status>(status), at<CUstream_st>(stream)));
    });
    m.def("cuda_edge_vectors", [](const Systems& systems, Address velocities, Address row_ptr, Address neighbor,
                                  Address shift, Address r, Address w, Address stream) {
        ON_CUDA(cuda::edge_vectors(systems, at<const double>(velocities), at<const std::int64_t>(row_ptr),
                                   at<const std::int32_t>(neighbor), at<const std::int32_t>(shift), at<float>(r),
                                   at<float>(w), at<CUstream_st>(stream)));
    });
    m.def("cuda_connected_components", [](std::int64_t atoms, Address row_ptr, Address neighbor, int rounds,
                                          Address label, Address settled, Address stream) {
        ON_CUDA(cuda::connected_components(atoms, at<const std::int64_t>(row_ptr), at<const std::int32_t>(neighbor),
                                           rounds, at<std::int64_t>(label), at<std::uint8_t>(settled),
                                           at<CUstream_st>(stream)));
    });
}
