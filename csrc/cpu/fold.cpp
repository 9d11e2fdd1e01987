#include "cpu/fold.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mdtrajnet {
namespace {

// to [rows, c] = scale a [rows, q] b [q, c]
template <class T>
void product(long rows, long q, long c, double scale, const T* a, const T* b, T* to) {
    std::fill_n(to, rows * c, T(0));
    for (long i = 0; i < rows; ++i)
        for (long k = 0; k < q; ++k) {
            const T x = static_cast<T>(scale) * a[i * q + k];
            for (long j = 0; j < c; ++j) to[i * c + j] += x * b[k * c + j];
        }
}

template <class T>
void product_backward(long rows, long q, long c, double scale, const T* a, const T* b, const T* of, T* of_a, T* of_b) {
    std::fill_n(of_b, q * c, T(0));
    for (long i = 0; i < rows; ++i)
        for (long k = 0; k < q; ++k) {
            const T x = static_cast<T>(scale) * a[i * q + k];
            T sum = 0;
            for (long j = 0; j < c; ++j) {
                sum += of[i * c + j] * b[k * c + j];
                of_b[k * c + j] += x * of[i * c + j];
            }
            of_a[i * q + k] = static_cast<T>(scale) * sum;
        }
}

// to [columns, rows] = scale from [rows, columns]
template <class T>
void transpose(long rows, long columns, double scale, const T* from, T* to) {
    for (long i = 0; i < rows; ++i)
        for (long j = 0; j < columns; ++j) to[j * rows + i] = static_cast<T>(scale) * from[i * columns + j];
}

template <class T>
void copy(long count, double scale, const T* from, T* to) {
    for (long k = 0; k < count; ++k) to[k] = static_cast<T>(scale) * from[k];
}

// What the vector channels of a head are multiplied by, one row for each of two results: [2, h, c]; and its gradient.
template <class T>
struct Mix {
    Mix(long h, long c) : h(h), c(c), rows(2 * h * c), sums(2 * h * c), products(2 * h * c) {}

    // y [2, h] = x [h, c] . rows
    void apply(const T* x, T* y) {
        const long width = h * c;
        for (long z = 0; z < 2; ++z)
            for (long k = 0; k < width; ++k) products[z * width + k] = x[k] * rows[z * width + k];
        for (long row = 0; row < 2 * h; ++row) {
            T sum = 0;
            for (long k = 0; k < c; ++k) sum += products[row * c + k];
            y[row] = sum;
        }
    }

    // The gradient of x from that of y; adds to that of the rows.
    void apply_backward(const T* x, const T* of_y, T* of_x) {
        const long width = h * c;
        for (long head = 0; head < h; ++head) {
            std::fill_n(products.begin() + head * c, c, of_y[head]);
            std::fill_n(products.begin() + width + head * c, c, of_y[h + head]);
        }
        const T *u = products.data(), *v = u + width, *a = rows.data(), *b = a + width;
        T *of_a = sums.data(), *of_b = of_a + width;
#pragma omp simd
        for (long k = 0; k < width; ++k) {
            of_x[k] = u[k] * a[k] + v[k] * b[k];
            of_a[k] += u[k] * x[k];
            of_b[k] += v[k] * x[k];
        }
    }

    long h, c;
    std::vector<T> rows, sums, products;
};

// A block's sizes and the norms of its paths; where the parts that belong to hidden unit i lie.
struct Layout {
    explicit Layout(const FoldSizes& size)
        : S(size.scalars), h(size.heads), n(size.rows[0]), m(size.rows[1]), c0(size.scalar_channels[0]),
          v0(size.scalar_channels[1]), c1(size.vector_channels[0]), v1(size.vector_channels[1]),
          q0(size.query_channels[0]), q1(size.query_channels[1]) {
        const double p0 = 1 / std::sqrt(S + 2.0), p1 = 1 / std::sqrt(S + 4.0);
        const double logit = 1 / std::sqrt(double((q0 * c0 + q1 * c1) * (c0 + 3 * c1)));
        query = p0 * logit / std::sqrt(double(S));
        dots = p1 * logit / (2 * std::sqrt(6.0));
        out = p0 / std::sqrt(double(h * v0));
        out_vector = p1 / std::sqrt(double(h * v1));
    }
    long key_atom(long i, long u) const { return (u * n + i) * (c0 + 2) * h; }
    long key_edge(long i) const { return i * (2 * c0 + 4) * h; }
    long value_atom(long i, long u) const { return (u * m + i) * 2 * h; }
    long value_edge(long i) const { return i * 6 * h; }
    long scalar_atom(long i, long u, long head) const { return ((head * m + i) * S + u) * v0; }
    long scalar_edge(long i, long p, long head) const { return ((head * 2 + p) * m + i) * v0; }

    long S, h, n, m, c0, v0, c1, v1, q0, q1;
    double query, dots, out, out_vector;
    double edge = -1 / (2 * std::sqrt(3.0));  // what comes from r and w beside what comes from s_i
};

// Columns that multiply r, w and (w.u) u, each [2, h], from the paths r x Y0, w x Y0, r x Y2, w x Y2.
template <class T>
struct EdgePaths {
    explicit EdgePaths(long h) : width(2 * h), paths(8 * h), columns(6 * h) {}

    void apply() {
        const T *r0 = path(0), *w0 = path(1), *r2 = path(2), *w2 = path(3);
        for (long k = 0; k < width; ++k) {
            column(0)[k] = T(-0.5) * r0[k] - kappa * r2[k];
            column(1)[k] = T(0.5) * (kappa * w2[k] - w0[k]);
            column(2)[k] = T(-1.5) * kappa * w2[k];
        }
    }

    void apply_backward() {
        const T *a = column(0), *b = column(1), *g = column(2);
        for (long k = 0; k < width; ++k) {
            path(0)[k] = T(-0.5) * a[k];
            path(1)[k] = T(-0.5) * b[k];
            path(2)[k] = -kappa * a[k];
            path(3)[k] = kappa * (T(0.5) * b[k] - T(1.5) * g[k]);
        }
    }

    T* path(long p) { return paths.data() + p * width; }
    T* column(long k) { return columns.data() + k * width; }

    long width;
    std::vector<T> paths, columns;
    T kappa = static_cast<T>(1 / std::sqrt(10.0));  // what a path of l = 2 weighs
};

}  // namespace

template <class T>
void fold(const FoldSizes& size, const BlockPaths<T>& w, const FoldedPaths<T>& to) {
    const Layout l(size);
    const long S = l.S, h = l.h;
    EdgePaths<T> edge(h);

    std::vector<T> queries(S * h * l.c0);
    product(S * h, l.q0, l.c0, l.query, w.query_scalar, w.bilinear_scalar, queries.data());
    for (long u = 0; u < S; ++u) transpose(h, l.c0, 1, queries.data() + u * h * l.c0, to.query + u * h * l.c0);
    copy(h * l.v0 * S, l.out, w.out_scalar, to.out);

    Mix<T> key(h, l.c1);
    product(2 * h, l.q1, l.c1, l.dots, w.query_vector, w.bilinear_vector, key.rows.data());
    for (long i = 0; i < l.n; ++i) {
        const T *scalar = w.key_scalar + i * (S + 2) * h * l.c0, *vector = w.key_vector + i * (S + 4) * h * l.c1;
        for (long u = 0; u < S; ++u, scalar += h * l.c0, vector += h * l.c1) {
            T* atom = to.key_atom + l.key_atom(i, u);
            transpose(h, l.c0, 1, scalar, atom);
            key.apply(vector, atom + h * l.c0);
        }
        T* row = to.key_edge + l.key_edge(i);
        for (long p = 0; p < 2; ++p, scalar += h * l.c0, row += h * l.c0) transpose(h, l.c0, l.edge, scalar, row);
        for (long p = 0; p < 4; ++p, vector += h * l.c1) key.apply(vector, edge.path(p));
        edge.apply();
        const T *a = edge.column(0), *b = edge.column(1), *g = edge.column(2);
        for (long k = 0; k < h; ++k) {  // d^2, d (w.u), |w|^2, (w.u)^2
            row[k] = a[k];
            row[h + k] = b[k] + g[k] + a[h + k];
            row[2 * h + k] = b[h + k];
            row[3 * h + k] = g[h + k];
        }
    }

    Mix<T> value(h, l.v1);
    transpose(h * l.v1, 2, l.out_vector, w.out_vector, value.rows.data());
    for (long i = 0; i < l.m; ++i) {
        const T *scalar = w.value_scalar + i * (S + 2) * h * l.v0, *vector = w.value_vector + i * (S + 4) * h * l.v1;
        for (long u = 0; u < S; ++u, vector += h * l.v1) value.apply(vector, to.value_atom + l.value_atom(i, u));
        for (long p = 0; p < 4; ++p, vector += h * l.v1) value.apply(vector, edge.path(p));
        edge.apply();
        std::copy_n(edge.column(0), 6 * h, to.value_edge + l.value_edge(i));
        for (long u = 0; u < S + 2; ++u)
            for (long head = 0; head < h; ++head, scalar += l.v0) {
                if (u < S) std::copy_n(scalar, l.v0, to.scalar_atom + l.scalar_atom(i, u, head));
                else copy(l.v0, l.edge, scalar, to.scalar_edge + l.scalar_edge(i, u - S, head));
            }
    }
}

template <class T>
void fold_backward(const FoldSizes& size, const BlockPaths<T>& w, const FoldedPaths<T>& gradient,
                   const BlockPaths<T>& to) {
    const Layout l(size);
    const long S = l.S, h = l.h;
    EdgePaths<T> edge(h);

    std::vector<T> queries(S * h * l.c0);
    for (long u = 0; u < S; ++u) transpose(l.c0, h, 1, gradient.query + u * h * l.c0, queries.data() + u * h * l.c0);
    product_backward(S * h, l.q0, l.c0, l.query, w.query_scalar, w.bilinear_scalar, queries.data(), to.query_scalar,
                     to.bilinear_scalar);
    copy(h * l.v0 * S, l.out, gradient.out, to.out_scalar);

    Mix<T> key(h, l.c1);
    product(2 * h, l.q1, l.c1, l.dots, w.query_vector, w.bilinear_vector, key.rows.data());
    for (long i = 0; i < l.n; ++i) {
        const long vectors = i * (S + 4) * h * l.c1;
        T *scalar = to.key_scalar + i * (S + 2) * h * l.c0, *vector = to.key_vector + vectors;
        const T* x = w.key_vector + vectors;
        for (long u = 0; u < S; ++u, scalar += h * l.c0, vector += h * l.c1, x += h * l.c1) {
            const T* atom = gradient.key_atom + l.key_atom(i, u);
            transpose(l.c0, h, 1, atom, scalar);
            key.apply_backward(x, atom + h * l.c0, vector);
        }
        const T* row = gradient.key_edge + l.key_edge(i);
        for (long p = 0; p < 2; ++p, scalar += h * l.c0, row += h * l.c0) transpose(l.c0, h, l.edge, row, scalar);
        T *a = edge.column(0), *b = edge.column(1), *g = edge.column(2);
        for (long k = 0; k < h; ++k) {
            a[k] = row[k];
            a[h + k] = b[k] = g[k] = row[h + k];
            b[h + k] = row[2 * h + k];
            g[h + k] = row[3 * h + k];
        }
        edge.apply_backward();
        for (long p = 0; p < 4; ++p, vector += h * l.c1, x += h * l.c1) key.apply_backward(x, edge.path(p), vector);
    }
    product_backward(2 * h, l.q1, l.c1, l.dots, w.query_vector, w.bilinear_vector, key.sums.data(), to.query_vector,
                     to.bilinear_vector);

    Mix<T> value(h, l.v1);
    transpose(h * l.v1, 2, l.out_vector, w.out_vector, value.rows.data());
    for (long i = 0; i < l.m; ++i) {
        const long vectors = i * (S + 4) * h * l.v1;
        T *scalar = to.value_scalar + i * (S + 2) * h * l.v0, *vector = to.value_vector + vectors;
        const T* x = w.value_vector + vectors;
        for (long u = 0; u < S; ++u, vector += h * l.v1, x += h * l.v1)
            value.apply_backward(x, gradient.value_atom + l.value_atom(i, u), vector);
        std::copy_n(gradient.value_edge + l.value_edge(i), 6 * h, edge.column(0));
        edge.apply_backward();
        for (long p = 0; p < 4; ++p, vector += h * l.v1, x += h * l.v1) value.apply_backward(x, edge.path(p), vector);
        for (long u = 0; u < S + 2; ++u)
            for (long head = 0; head < h; ++head, scalar += l.v0) {
                if (u < S) std::copy_n(gradient.scalar_atom + l.scalar_atom(i, u, head), l.v0, scalar);
                else copy(l.v0, l.edge, gradient.scalar_edge + l.scalar_edge(i, u - S, head), scalar);
            }
    }
    transpose(2, h * l.v1, l.out_vector, value.sums.data(), to.out_vector);
}

template void fold(const FoldSizes&, const BlockPaths<float>&, const FoldedPaths<float>&);
template void fold(const FoldSizes&, const BlockPaths<double>&, const FoldedPaths<double>&);
template void fold_backward(const FoldSizes&, const BlockPaths<float>&, const FoldedPaths<float>&,
                            const BlockPaths<float>&);
template void fold_backward(const FoldSizes&, const BlockPaths<double>&, const FoldedPaths<double>&,
                            const BlockPaths<double>&);

}  // namespace mdtrajnet
