// Products of small matrices that lie in cache, row-major, in blocks of registers.
#pragma once

#include <string.h>

#include "simd.hpp"

namespace {

enum class Start { kZero, kBias, kAdd };  // what a product is added to: nothing, one row, the result so far

// Registers hold kRows<C> rows of C vectors of the result, and leave room for the operands.
template <int C>
constexpr int kRows = kVectorRegisters == 32 ? (C == 3   ? 8
                                                : C == 2 ? 12
                                                         : 14)
                                             : (C == 3   ? 4
                                                : C == 2 ? 6
                                                         : 8);

// Whether registers just suffice for one row more, which would wait for itself if it were left alone.
template <int C>
constexpr bool kLoneRow = kVectorRegisters == 32 && C == 3;

template <int N>
struct Count {
    static constexpr int value = N;
};

template <class T>
struct Product {
    long rows, depth;
    const T* a;  // a(i, k) = a[i * lda + k], transposed a[k * lda + i]
    long lda;
    const T* b;  // b(k, j) = b[k * ldb + j]
    long ldb;
    T* c;  // c(i, j) = c[i * ldc + j]
    long ldc;
    const T* bias;
    Start start;
};

template <class T, int R, int C, bool Transposed>
void block(const Product<T>& p, const T* a, const T* b, T* c, const T* bias) {
    constexpr long W = kLanes<T>;
    Vec<T> sum[R][C];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) {
            if (p.start == Start::kZero) sum[i][j] = Vec<T>{};
            else sum[i][j] = load<T>(p.start == Start::kBias ? bias + j * W : c + i * p.ldc + j * W);
        }
    const long lda = p.lda;
    const T* row[(R + 2) / 3];  // three rows share a pointer: one index register reaches them all
#pragma GCC unroll 8
    for (int i = 0; i < (R + 2) / 3; ++i) row[i] = a + 3 * i * lda;
    for (long k = 0; k < p.depth; ++k) {
        Vec<T> right[C];
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) right[j] = load<T>(b + j * W);
        b += p.ldb;
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vec<T> left = broadcast<T>(Transposed ? a[i] : row[i / 3][(i % 3) * lda]);
#pragma GCC unroll 4
            for (int j = 0; j < C; ++j) sum[i][j] += left * right[j];
        }
        if (Transposed) a += lda;
#pragma GCC unroll 8
        for (int i = 0; i < (R + 2) / 3; ++i) ++row[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) store<T>(c + i * p.ldc + j * W, sum[i][j]);
}

// The last rows, fewer than kRows<C>.
template <class T, int R, int C, bool Transposed>
void last_rows(long rows, const Product<T>& p, const T* a, const T* b, T* c, const T* bias) {
    if constexpr (R > 0) {
        if (rows == R) block<T, R, C, Transposed>(p, a, b, c, bias);
        else last_rows<T, R - 1, C, Transposed>(rows, p, a, b, c, bias);
    }
}

template <class T, int C, bool Transposed>
void panel(const Product<T>& p, const T* b, long column) {
    constexpr int R = kRows<C>;
    const T* bias = p.bias + column;
    const long step = Transposed ? 1 : p.lda;
    long i = 0;
    for (; i + R <= p.rows; i += R) {
        if (kLoneRow<C> && p.rows - i == R + 1) {
            block<T, R + 1, C, Transposed>(p, p.a + i * step, b, p.c + i * p.ldc + column, bias);
            return;
        }
        block<T, R, C, Transposed>(p, p.a + i * step, b, p.c + i * p.ldc + column, bias);
    }
    if (i < p.rows)
        last_rows<T, R - 1, C, Transposed>(p.rows - i, p, p.a + i * step, b, p.c + i * p.ldc + column, bias);
}

// Cuts columns, in whole vectors, into panels of three, two or one: of(Count, first column) for each.
template <class T, class F>
void for_each_panel(long columns, const F& of) {
    constexpr long W = kLanes<T>;
    long vectors = (columns + W - 1) / W, j = 0;
    for (; vectors > 4 || vectors == 3; vectors -= 3, j += 3 * W) of(Count<3>{}, j);
    for (; vectors >= 2; vectors -= 2, j += 2 * W) of(Count<2>{}, j);
    if (vectors) of(Count<1>{}, j);
}

// c = start + a b over `columns`, which count in whole vectors: b, c and bias are padded to them.
template <class T, bool Transposed = false>
void multiply(long columns, const Product<T>& p) {
    for_each_panel<T>(columns, [&](auto c, long j) { panel<T, c.value, Transposed>(p, p.b + j, j); });
}

// The same for b in panels, each with its rows one after another, so that large weights are read from end to end: from one
// row of a wide b to the next no prefetcher follows.  p.ldb is not used.
template <class T>
void multiply_panels(long columns, Product<T> p) {
    for_each_panel<T>(columns, [&](auto c, long j) {
        p.ldb = c.value * kLanes<T>;
        panel<T, c.value, false>(p, p.b + j * p.depth, j);
    });
}

// b [depth][columns] in panels for multiply_panels, in memory for `depth` rows of whole vectors.
template <class T>
void to_panels(long depth, long columns, const T* b, T* panels) {
    for_each_panel<T>(columns, [&](auto c, long j) {
        const long width = c.value * kLanes<T>, real = j + width < columns ? width : columns - j;
        for (long k = 0; k < depth; ++k) memcpy(panels + j * depth + k * width, b + k * columns + j, real * sizeof(T));
    });
}

// c[i * ldc + j] += sum_k a[i * lda + k] b[j * ldb + k] over whole vectors of k: the products of long rows.
template <class T, int R, int C>
void dot_block(long depth, const T* a, long lda, const T* b, long ldb, T* c, long ldc) {
    constexpr long W = kLanes<T>;
    Vec<T> sum[R][C] = {};
    for (long k = 0; k < depth; k += W) {
        Vec<T> right[C];
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) right[j] = load<T>(b + j * ldb + k);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
            const Vec<T> left = load<T>(a + i * lda + k);
#pragma GCC unroll 4
            for (int j = 0; j < C; ++j) sum[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) c[i * ldc + j] += lane_sum<T>(sum[i][j]);
}

template <class T>
void multiply_rows(long rows, long columns, long depth, const T* a, long lda, const T* b, long ldb, T* c, long ldc) {
    constexpr int R = kVectorRegisters == 32 ? 4 : 2;
    long i = 0;
    for (; i + R <= rows; i += R) {
        long j = 0;
        for (; j + 4 <= columns; j += 4)
            dot_block<T, R, 4>(depth, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
        for (; j < columns; ++j) dot_block<T, R, 1>(depth, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
    }
    for (; i < rows; ++i)
        for (long j = 0; j < columns; ++j)
            dot_block<T, 1, 1>(depth, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
}

}  // namespace
