// What every entry from Python that computes begins with.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/team.hpp"

namespace {

// Throws what Python's signal handlers raise: Ctrl-C does not wait for a long call to end.
inline void handle_signals() {
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals()) throw pybind11::error_already_set();
}

// While it lives, other Python threads run, signals are heard, and this one's subnormal numbers are 0.  Nothing else releases
// the GIL.
class Computing {
    const Subnormals subnormals_{Subnormals::kZero};
    const pybind11::gil_scoped_release release_;
    const mdtrajnet::Watch watch_{handle_signals};
};

}  // namespace
