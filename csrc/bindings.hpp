// What entries from Python share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <iterator>
#include <vector>

#include "cpu/predictor.hpp"
#include "cpu/team.hpp"

namespace {

// Throws what Python's signal handlers raise: Ctrl-C does not wait for a long call to end.
inline void handle_signals() {
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals()) throw pybind11::error_already_set();
}

// Every one that computes begins with this.  While it lives, other Python threads run, signals are heard, and this one's
// subnormal numbers are 0.  Nothing else releases the GIL.
class Computing {
    const Subnormals subnormals_{Subnormals::kZero};
    const pybind11::gil_scoped_release release_;
    const mdtrajnet::Watch watch_{handle_signals};
};

// None, or roles, species, layers, intervals, channels, products, hidden, cutoff and the addresses of the weights.
inline mdtrajnet::DensityNetwork density_network(const pybind11::object& of) {
    if (of.is_none()) return {};
    const pybind11::tuple t = of;
    const auto size = [&](int k) { return t[k].cast<long>(); };
    mdtrajnet::DensityNetwork network{
        static_cast<int>(size(0)), {size(1), size(2), size(3), size(4), size(5), size(6), t[7].cast<double>()}, {}};
    const auto weights = t[8].cast<std::vector<std::uintptr_t>>();
    for (std::size_t k = 0; k < std::size(network.weights); ++k)
        network.weights[k] = reinterpret_cast<const void*>(weights.at(k));
    return network;
}

}  // namespace
