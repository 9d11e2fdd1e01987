// Numbers in memory with or without their tangents, and products of small matrices of them: what kernels are written in that
// compute values alone or values with a derivative.
#pragma once

#include "gemm.hpp"
#include "math/dual.hpp"

namespace {

// Numbers in memory, with their tangents in a second array.
template <class T, bool Tangent>
struct Field {
    T *v, *t;

    Field operator+(long k) const { return {v + k, Tangent && t ? t + k : nullptr}; }
};

template <class T, bool Tangent>
struct Number {
    using Scalar = T;
    using Vector = Vec<T>;
};
template <class T>
struct Number<T, true> {
    using Scalar = Dual<T>;
    using Vector = Dual<Vec<T>>;
};

template <class T>
inline T get(Field<T, false> f, long k) {
    return f.v[k];
}
template <class T>
inline Dual<T> get(Field<T, true> f, long k) {
    return {f.v[k], f.t[k]};
}
template <class T>
inline void put(Field<T, false> f, long k, T x) {
    f.v[k] = x;
}
template <class T>
inline void put(Field<T, true> f, long k, Dual<T> x) {
    f.v[k] = x.v;
    f.t[k] = x.t;
}
template <class T>
inline Vec<T> get_vector(Field<T, false> f, long k) {
    return load(f.v + k);
}
template <class T>
inline Dual<Vec<T>> get_vector(Field<T, true> f, long k) {
    return {load(f.v + k), load(f.t + k)};
}
template <class T>
inline void put_vector(Field<T, false> f, long k, Vec<T> x) {
    store(f.v + k, x);
}
template <class T>
inline void put_vector(Field<T, true> f, long k, Dual<Vec<T>> x) {
    store(f.v + k, x.v);
    store(f.t + k, x.t);
}
template <class T>
inline Vec<T> spread(T x) {
    return broadcast(x);
}
template <class T>
inline Dual<Vec<T>> spread(Dual<T> x) {
    return {broadcast(x.v), broadcast(x.t)};
}
template <class T>
inline T lane(Vec<T> x, long k) {
    return x[k];
}
template <class T>
inline Dual<T> lane(const Dual<Vec<T>>& x, long k) {
    return {x.v[k], x.t[k]};
}

template <class T, long Rest>
inline Vec<T> fold_all(Vec<T> x) {
    return fold<T, Rest>(x);
}
template <class T, long Rest>
inline Dual<Vec<T>> fold_all(const Dual<Vec<T>>& x) {
    return {fold<T, Rest>(x.v), fold<T, Rest>(x.t)};
}

// c = start + a b with the tangent; an operand without one (t null) is constant.
template <bool Transposed = false, class T, bool D>
void product(long columns, long rows, long depth, Field<T, D> a, long lda, Field<T, D> b, long ldb, Field<T, D> c,
             long ldc, Start start = Start::kZero, Field<T, D> bias = {nullptr, nullptr}) {
    multiply<T, Transposed>(columns, {rows, depth, a.v, lda, b.v, ldb, c.v, ldc, bias.v, start});
    if constexpr (D) {
        if (start == Start::kBias && !bias.t) start = Start::kZero;
        multiply<T, Transposed>(columns, {rows, depth, a.t, lda, b.v, ldb, c.t, ldc, bias.t, start});
        if (b.t) multiply<T, Transposed>(columns, {rows, depth, a.v, lda, b.t, ldb, c.t, ldc, nullptr, Start::kAdd});
    }
}

// c = a b with b constant and in panels.
template <class T, bool D>
void product_panels(long columns, long rows, long depth, Field<T, D> a, long lda, const T* b, Field<T, D> c, long ldc) {
    multiply_panels<T>(columns, {rows, depth, a.v, lda, b, 0, c.v, ldc, nullptr, Start::kZero});
    if constexpr (D) multiply_panels<T>(columns, {rows, depth, a.t, lda, b, 0, c.t, ldc, nullptr, Start::kZero});
}

template <class T, bool D>
Field<T, D> constant(const T* p) {
    return {const_cast<T*>(p), nullptr};
}

}  // namespace
