// A number and its derivative with respect to time, carried through the same arithmetic.
#pragma once

#ifdef __CUDACC__
#define MDTRAJNET_HD __host__ __device__
#else
#define MDTRAJNET_HD
#endif

namespace {

template <class T>
struct Dual {
    T v, t;
};

template <class T>
MDTRAJNET_HD inline Dual<T> operator+(Dual<T> a, Dual<T> b) {
    return {a.v + b.v, a.t + b.t};
}
template <class T>
MDTRAJNET_HD inline Dual<T> operator-(Dual<T> a, Dual<T> b) {
    return {a.v - b.v, a.t - b.t};
}
template <class T>
MDTRAJNET_HD inline Dual<T> operator*(Dual<T> a, Dual<T> b) {
    return {a.v * b.v, a.v * b.t + a.t * b.v};
}
template <class T>
MDTRAJNET_HD inline Dual<T> operator*(Dual<T> a, T b) {
    return {a.v * b, a.t * b};
}
template <class T>
MDTRAJNET_HD inline Dual<T> operator/(Dual<T> a, Dual<T> b) {
    const T q = a.v / b.v;
    return {q, (a.t - q * b.t) / b.v};
}
template <class T>
MDTRAJNET_HD inline Dual<T>& operator+=(Dual<T>& a, Dual<T> b) {
    return a = a + b;
}

// f(x) with the slope f'(x), whatever x is.
template <class T>
MDTRAJNET_HD inline T chain(T, T f, T) {
    return f;
}
template <class T>
MDTRAJNET_HD inline Dual<T> chain(Dual<T> x, T f, T slope) {
    return {f, slope * x.t};
}
template <class T>
MDTRAJNET_HD inline T value(T x) {
    return x;
}
template <class T>
MDTRAJNET_HD inline T value(Dual<T> x) {
    return x.v;
}

}  // namespace
