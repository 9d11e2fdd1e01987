// The exact GELU, x Phi(x), and its slope, Phi(x) + x phi(x), with Phi and phi of the normal distribution.
//
// In single precision both are 1/2 plus x times a polynomial in x^2, cut at |x| = 5.25 where Phi is 1 or 0 to rounding;
// no exponential and no division.  Chebyshev interpolation, degree 14: largest errors 7e-7 (value, relative beyond 1) and 3e-6
// (slope, where |x| > 5; 6e-7 below 3).
#pragma once

#include "dual.hpp"

namespace {

constexpr float kGeluEnd = 5.25f;
constexpr int kGeluTerms = 15;

struct GeluValue {
    static constexpr float c[kGeluTerms] = {
        1.346593499e-01f,  -6.712685525e-02f, 4.964598641e-02f,  -3.976217285e-02f, 3.202755004e-02f,
        -2.505319193e-02f, 1.856592484e-02f,  -1.273210067e-02f, 8.328680880e-03f,  -5.528017413e-03f,
        3.039716743e-03f,  -9.698687354e-04f, 5.455136998e-04f,  -6.798868999e-04f, 2.774600289e-04f,
    };
};

struct GeluSlope {
    static constexpr float c[kGeluTerms] = {
        1.350651830e-01f,  -6.992533803e-02f, 5.928147584e-02f,  -6.181631982e-02f, 7.011894137e-02f,
        -7.839678228e-02f, 7.922572643e-02f,  -6.835026294e-02f, 5.796305463e-02f,  -5.364055559e-02f,
        3.364573792e-02f,  -6.791130174e-03f, 5.746813957e-03f,  -1.240247767e-02f, 5.514531862e-03f,
    };
};

// (Phi(x) or the slope, less 1/2) / x, for s = 2 (x / kGeluEnd)^2 - 1.  By recursion, so that the terms are constants on a
// GPU as well.
template <class Terms, int K = 0, class V>
MDTRAJNET_HD inline V gelu_series(V s) {
    constexpr float term = Terms::c[K];
    if constexpr (K == kGeluTerms - 2) {
        constexpr float last = Terms::c[K + 1];
        return s * last + term;
    } else {
        return gelu_series<Terms, K + 1>(s) * s + term;
    }
}

// Values and slopes for x already cut to +-kGeluEnd.
template <class V>
MDTRAJNET_HD inline V gelu_argument(V cut) {
    return cut * cut * (2.0f / (kGeluEnd * kGeluEnd)) - 1.0f;
}

}  // namespace
