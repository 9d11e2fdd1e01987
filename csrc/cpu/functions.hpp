// Elementary functions of vectors: polynomials in single precision, the C library's in double precision.
#pragma once

#include "math/gelu.hpp"
#include "simd.hpp"

namespace {

inline Vec<float> exponential(Vec<float> x) {
    // 2^n e^f with n the nearest integer, found by adding a number whose last bit counts ones
    constexpr float kShift = 12582912.0f;
    x = clamp(x, -87.0f, 88.0f);
    const Vec<float> shifted = x * 1.44269504f + kShift;
    const Vec<float> n = shifted - kShift;
    const Vec<float> f = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec<float> p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.0f;
    return (Vec<float>)((Simd<float>::I)p + ((Simd<float>::I)shifted << 23));
}

inline Vec<double> exponential(Vec<double> x) {
    for (int k = 0; k < kLanes<double>; ++k) x[k] = exp(x[k]);
    return x;
}

inline void gelu(Vec<float> x, Vec<float>& value, Vec<float>* slope) {
    const Vec<float> cut = clamp(x, -kGeluEnd, kGeluEnd), s = gelu_argument(cut);
    value = x * (cut * gelu_series<GeluValue>(s) + 0.5f);
    if (slope) *slope = cut * gelu_series<GeluSlope>(s) + 0.5f;
}

inline void gelu(Vec<double> x, Vec<double>& value, Vec<double>* slope) {
    for (int k = 0; k < kLanes<double>; ++k) {
        const double phi = 0.5 * erfc(-x[k] * 0.70710678118654752440);
        value[k] = x[k] * phi;
        if (slope) (*slope)[k] = phi + x[k] * 0.39894228040143267794 * exp(-0.5 * x[k] * x[k]);
    }
}

}  // namespace
