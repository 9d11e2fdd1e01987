// The GPU's attention block for Python: device addresses and a stream in, checked by the caller, which knows the tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings_cuda.hpp"
#include "cuda/attention_layout.hpp"

namespace py = pybind11;
using namespace mdtrajnet;

namespace {

using Addresses = std::vector<Address>;

// Sizes of a block, and where its packed weights are.
struct CudaBlock {
    AttentionSizes size{};
    Address packed = 0;

    cuda::AttentionBlock view() const { return {size, at<const float>(packed)}; }
};

// Three addresses: scalars, displacement, velocity change.
struct State {
    explicit State(const Addresses& a) : given(!a.empty()) {
        if (given) view = {at<float>(a.at(0)), at<float>(a.at(1)), at<float>(a.at(2))};
    }
    const AttentionState<float>* or_null() const { return given ? &view : nullptr; }

    bool given;
    AttentionState<float> view{};
};

// (atoms, row_ptr, neighbor, r, w, edges)
[[maybe_unused]] cuda::AttentionRows rows_of(const py::tuple& graph, std::int64_t times) {
    const auto address = [&](int k) { return graph[k].cast<Address>(); };
    return {{graph[0].cast<std::int64_t>(), at<const std::int64_t>(address(1)), at<const std::int64_t>(address(2)),
             at<const float>(address(3)), at<const float>(address(4))},
            graph[5].cast<std::int64_t>(),
            times};
}

// The folded tensors in the order of FoldedWeights, of one hidden layer for each network.
[[maybe_unused]] AttentionWeights<float> weights_of(const Addresses& a) {
    AttentionWeights<float> w{};
    std::size_t k = 0;
    for (int net = 0; net < 2; ++net) {
        w.layer_weight[net][0] = at<float>(a.at(k++));
        w.layer_bias[net][0] = at<float>(a.at(k++));
    }
    for (float** p :
         {&w.query, &w.key_atom, &w.key_edge, &w.value_atom, &w.value_edge, &w.scalar_atom, &w.scalar_edge, &w.out})
        *p = at<float>(a.at(k++));
    return w;
}

CudaBlock make_block(long scalars, long time_channels, long centres, long heads, long key_channels, long value_channels,
                     const std::vector<long>& key_hidden, const std::vector<long>& value_hidden, double cutoff,
                     bool envelope) {
    CudaBlock block;
    block.size = {scalars, time_channels, centres, heads, key_channels, value_channels, {}, {}, cutoff, envelope};
    const std::vector<long>* hidden[2] = {&key_hidden, &value_hidden};
    for (int net = 0; net < 2; ++net) {
        block.size.layers[net] = static_cast<int>(hidden[net]->size());  // other than 1 is refused later
        if (!hidden[net]->empty()) block.size.hidden[net][0] = hidden[net]->front();
    }
    return block;
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
    py::class_<CudaBlock>(m, "CudaAttentionBlock", "Sizes of a block, and the device address of its packed weights.")
        .def(py::init(&make_block), py::kw_only(), py::arg("scalars"), py::arg("time_channels"), py::arg("centres"),
             py::arg("heads"), py::arg("key_channels"), py::arg("value_channels"), py::arg("key_hidden"),
             py::arg("value_hidden"), py::arg("cutoff"), py::arg("envelope"))
        .def_property_readonly(
            "packed_bytes",
            [](const CudaBlock& block) -> std::size_t { ON_CUDA(return cuda::packed_attention_bytes(block.size)); })
        .def_property_readonly(
            "specialised", [](const CudaBlock& block) { return cuda::specialised(block.size); },
            "Are there edge kernels for these sizes by themselves?  Known without CUDA, too.")
        .def("pack",
             [](CudaBlock& block, const Addresses& weights, Address packed, Address stream) {
                 block.packed = packed;
                 ON_CUDA(
                     cuda::pack_attention(block.size, weights_of(weights), at<float>(packed), at<CUstream_st>(stream)));
             })
        .def("workspace_bytes",
             [](const CudaBlock& block, const py::tuple& graph, std::int64_t times, bool tangent,
                bool stack) -> std::size_t {
                 ON_CUDA(return cuda::attention_bytes(block.size, rows_of(graph, times), tangent, stack));
             })
        .def("forward", [](const CudaBlock& block, const py::tuple& graph, std::int64_t times, const Addresses& state,
                           const Addresses& tangent, const Addresses& out, const Addresses& out_tangent,
                           Address workspace, Address stream) {
            ON_CUDA(cuda::attention(block.view(), rows_of(graph, times), State(state).view, State(tangent).or_null(),
                                    State(out).view, State(out_tangent).or_null(), at<void>(workspace),
                                    at<CUstream_st>(stream)));
        });

    // scalars and outs hold the values, and where asked for the tangents; the first of an out, its scalars, is 0.
    m.def("cuda_attention_stack",
          [](const std::vector<const CudaBlock*>& blocks, bool running, const py::tuple& graph, std::int64_t times,
             const Addresses& scalars, const std::vector<Addresses>& outs, Address workspace, Address stream) {
              std::vector<cuda::AttentionBlock> views;
              for (const CudaBlock* block : blocks) views.push_back(block->view());
              const bool tangent = scalars.size() > 1;
              const State out(outs.at(0)), out_tangent(tangent ? outs.at(1) : Addresses{});
              ON_CUDA(cuda::attention_stack(views, running, rows_of(graph, times), at<const float>(scalars.at(0)),
                                            at<const float>(tangent ? scalars[1] : 0), out.view, out_tangent.or_null(),
                                            at<void>(workspace), at<CUstream_st>(stream)));
          });
}
