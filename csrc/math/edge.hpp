// The equations of one edge, for plain numbers and for dual ones (with a time derivative).
//
// r: from centre to neighbour, w: velocity of the neighbour relative to the centre, d = |r|, u = r / d.
#pragma once

#include <math.h>

#include "dual.hpp"

namespace {

template <class T>
MDTRAJNET_HD inline T square_root(T x) {
    return sqrt(x);
}
template <>
MDTRAJNET_HD inline float square_root(float x) {
    return sqrtf(x);
}
template <class T>
MDTRAJNET_HD inline Dual<T> square_root(Dual<T> x) {
    const T root = square_root(x.v);
    return {root, x.t / (root + root)};
}

// What logits and values need to know of an edge.
template <class N>
struct Geometry {
    N d, wu, ww;  // |r|, w.u, w.w
    N u[3];
};

// A floor far below any distance keeps everything finite where atoms coincide.
template <class T, class N>
MDTRAJNET_HD inline Geometry<N> geometry(const N (&r)[3], const N (&w)[3]) {
    Geometry<N> g;
    N dd = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
    if (value(dd) < T(1e-20)) {
        dd = dd * T(0);
        dd += chain(dd, T(1e-20), T(0));
    }
    g.d = square_root(dd);
    for (int x = 0; x < 3; ++x) g.u[x] = r[x] / g.d;
    g.wu = w[0] * g.u[0] + w[1] * g.u[1] + w[2] * g.u[2];
    g.ww = w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
    return g;
}

// 1 - 10 x^3 + 15 x^4 - 6 x^5 with x = d / cutoff, 0 beyond, in a form that never rounds below 0; and its slope.
template <class T>
MDTRAJNET_HD inline T envelope(T d, T cutoff) {
    const T x = d < cutoff ? d / cutoff : T(1);
    return (T(1) - x) * (T(1) - x) * (T(1) - x) * (T(1) + T(3) * x * (T(1) + T(2) * x));
}
template <class T>
MDTRAJNET_HD inline T envelope_slope(T d, T cutoff) {
    const T x = d < cutoff ? d / cutoff : T(1);
    return T(-30) * x * x * (T(1) - x) * (T(1) - x) / cutoff;
}

}  // namespace
