// What every entry from Python that computes begins with.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/subnormals.hpp"

namespace {

// While it lives, other Python threads run, and this one's subnormal numbers are 0.  Nothing else releases the GIL.
class Computing {
    const Subnormals subnormals_{Subnormals::kZero};
    const pybind11::gil_scoped_release release_;
};

}  // namespace
