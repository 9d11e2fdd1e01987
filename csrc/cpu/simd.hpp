// Vectors of the instruction set that a unit is compiled for, as GCC's and Clang's vector extension has them.
// Everything here lives in an anonymous namespace of its unit: units of different instruction sets must not share code.
#pragma once

#include <math.h>
#include <stdint.h>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
    typedef float V __attribute__((vector_size(kVectorBytes)));
    typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Simd<double> {
    typedef double V __attribute__((vector_size(kVectorBytes)));
    typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename Simd<T>::V;
template <class T>
constexpr long kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <class T>
inline void store(T* p, Vec<T> x) {
    *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = x;
}

template <class T>
inline Vec<T> broadcast(T x) {
    return x - Vec<T>{};
}

// The numbers 0 ... W - 1 as template arguments.
template <long... Lane>
struct Lanes {};
template <long W, long... Lane>
struct CountLanes : CountLanes<W - 1, W - 1, Lane...> {};
template <long... Lane>
struct CountLanes<0, Lane...> {
    using Type = Lanes<Lane...>;
};
template <long W>
using AllLanes = typename CountLanes<W>::Type;

// Lane k of the result is lane k ^ Step of x.
template <class T, long Step, long... Lane>
inline Vec<T> swapped(Vec<T> x, Lanes<Lane...>) {
    constexpr typename Simd<T>::I from = {(Lane ^ Step)...};
    return __builtin_shuffle(x, from);
}

// The sums of the lanes that are equal modulo `Rest`, in each of these.
template <class T, long Rest, long Step = kLanes<T> / 2>
inline Vec<T> fold(Vec<T> x) {
    if constexpr (Step < Rest) return x;
    else return fold<T, Rest, Step / 2>(x + swapped<T, Step>(x, AllLanes<kLanes<T>>{}));
}

template <class T>
inline T lane_sum(Vec<T> x) {
    return fold<T, 1>(x)[0];
}

// Elements in whole vectors.
template <class T>
constexpr long padded(long n) {
    return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

inline Vec<float> clamp(Vec<float> x, float low, float high) {
    x = x < low ? broadcast(low) : x;
    return x > high ? broadcast(high) : x;
}

}  // namespace
