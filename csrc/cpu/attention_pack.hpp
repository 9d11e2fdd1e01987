// Weights in the layout of the kernels: rows padded to whole vectors, first layers cut into their distance and time parts.
#pragma once

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <memory>

#include "attention.hpp"
#include "gemm.hpp"
#include "team.hpp"

namespace {

using mdtrajnet::AttentionSizes;
using mdtrajnet::AttentionWeights;
using mdtrajnet::kMaxLayers;

// Aligned memory with room for one vector more than asked for, so that whole vectors may be read at the end.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(data_); }

    T* resize(long size, bool zero = true) {
        size_t bytes = static_cast<size_t>(size) * sizeof(T) + kVectorBytes;
        const size_t unit = bytes < 4 * kHugePage ? 64 : kHugePage;
        bytes = (bytes + unit - 1) / unit * unit;
        free(data_);
        data_ = static_cast<T*>(aligned_alloc(unit, bytes));
        if (!data_) mdtrajnet::throw_bad_alloc();
#ifdef __linux__
        // Large memory is new from the system each time: page by page, that would take a tenth of an evaluation. Advice.
        if (unit == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        if (zero) memset(data_, 0, bytes);
        return data_;
    }
    T* data() const { return data_; }
    operator const T*() const { return data_; }

  private:
    static constexpr size_t kHugePage = 1 << 21;
    T* data_ = nullptr;
};

template <class T>
struct Layer {
    long in, out, ld;  // ld: out in whole vectors
    Buffer<T> weight;  // [in, ld]; of a first layer only the distance part
    Buffer<T> time;    // [time_channels, ld], a first layer's rest
    Buffer<T> bias;    // [ld]
    long ld_back;      // in, in whole vectors
    Buffer<T> back;    // [out, ld_back]: the weight as it came, for gradients
};

template <class T>
struct Packed {
    AttentionSizes size;
    long S, h, c, v, n, m;      // c = c0 h, v = v0; n, m without the constant unit
    long ld_scalars, ld_query;  // row lengths in whole vectors
    long key_columns, ld_key;   // columns of an atom; row length of key_atom, all rows of an atom in one
    long edge_columns, ld_edge;
    long value_columns, ld_value_atom;  // 2 h
    long ld_value;                      // own and shared columns side by side: 8 h in whole vectors
    long ld_scalar_atom, ld_scalar_edge;
    Layer<T> layers[2][kMaxLayers];
    Buffer<T> query, key_edge, value_edge, scalar_edge, out;
    Buffer<T> key_atom, value_atom, scalar_atom;  // the large ones, in panels
    // for gradients: in rows, or transposed
    Buffer<T> key_atom_rows, value_atom_rows;
    Buffer<T> key_edge_back;     // [edge_columns, padded n + 1]
    Buffer<T> value_edge_back;   // [6 h, padded m + 1]
    Buffer<T> scalar_atom_back;  // [h, S v0, padded m + 1]
    Buffer<T> scalar_edge_back;  // [h, 2, v0, padded m + 1]
    Buffer<T> out_back;          // [S, padded h v0]
    Buffer<T> query_back;        // [c, padded S]
};

// rows x columns of a into b, with other row lengths.
template <class T>
void copy_rows(long rows, long columns, const T* a, long lda, T* b, long ldb) {
    for (long i = 0; i < rows; ++i) memcpy(b + i * ldb, a + i * lda, columns * sizeof(T));
}

// One stage of the transpose of a square of vectors: swaps its off-diagonal squares of side `Side`, then of half that.
template <class T, long Side, long... Lane>
inline void swap_squares(Vec<T> (&x)[kLanes<T>], Lanes<Lane...> lanes) {
    using I = typename Simd<T>::I;
    constexpr long W = kLanes<T>;
    constexpr I low = {((Lane & Side) ? W + Lane - Side : Lane)...},
                high = {((Lane & Side) ? W + Lane : Lane + Side)...};
#pragma GCC unroll 16
    for (long i = 0; i < W; ++i) {
        if (i & Side) continue;
        const Vec<T> a = x[i], b = x[i + Side];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + Side] = __builtin_shuffle(a, b, high);
    }
    if constexpr (Side > 1) swap_squares<T, Side / 2>(x, lanes);
}

// b [columns, ldb] = transpose of a [rows, lda].  Rows of b are written in whole vectors, so ldb must be padded; Roomy: those
// of a may be read so, too, beyond their columns and the end.
template <class T, bool Roomy = false>
void transpose(long rows, long columns, const T* a, long lda, T* b, long ldb) {
    constexpr long W = kLanes<T>;
    for (long i = 0; i < rows; i += W) {
        long j = 0;
        for (; j + (Roomy ? 1 : W) <= columns; j += W) {
            Vec<T> x[W] = {};
#pragma GCC unroll 16
            for (long k = 0; k < W; ++k)
                if (i + k < rows) x[k] = load(a + (i + k) * lda + j);
            swap_squares<T, W / 2>(x, AllLanes<W>{});
#pragma GCC unroll 16
            for (long k = 0; k < W; ++k)
                if (j + k < columns) store(b + (j + k) * ldb + i, x[k]);
        }
        for (; j < columns; ++j)
            for (long k = i; k < i + W && k < rows; ++k) b[j * ldb + k] = a[k * lda + j];
    }
}

template <class T>
void* pack(const AttentionSizes& size, const AttentionWeights<T>& w, bool gradients) {
    auto packed = std::make_unique<Packed<T>>();
    Packed<T>& p = *packed;
    p.size = size;
    const long S = p.S = size.scalars, h = p.h = size.heads, v = p.v = size.value_channels;
    const long c = p.c = size.key_channels * h;
    const long n = p.n = size.hidden[0][size.layers[0] - 1], m = p.m = size.hidden[1][size.layers[1] - 1];
    p.ld_scalars = padded<T>(S);
    p.ld_query = padded<T>(c);
    p.key_columns = c + 2 * h;
    p.ld_key = padded<T>((n + 1) * p.key_columns);
    p.edge_columns = 2 * c + 4 * h;
    p.ld_edge = padded<T>(p.edge_columns);
    p.value_columns = 2 * h;
    p.ld_value_atom = padded<T>((m + 1) * p.value_columns);
    p.ld_value = padded<T>(8 * h);
    p.ld_scalar_atom = padded<T>(S * v);
    p.ld_scalar_edge = padded<T>(v);

    for (int net = 0; net < 2; ++net)
        for (int k = 0; k < size.layers[net]; ++k) {
            Layer<T>& layer = p.layers[net][k];
            const long time = k ? 0 : size.time_channels;
            layer.in = k ? size.hidden[net][k - 1] : size.centres;
            layer.out = size.hidden[net][k];
            layer.ld = padded<T>(layer.out);
            const T* weight = w.layer_weight[net][k];
            const long stride = layer.in + time;
            transpose(layer.out, layer.in, weight, stride, layer.weight.resize(layer.in * layer.ld), layer.ld);
            if (!k) transpose(layer.out, time, weight + layer.in, stride, layer.time.resize(time * layer.ld), layer.ld);
            copy_rows(1, layer.out, w.layer_bias[net][k], 0, layer.bias.resize(layer.ld), 0);
            if (gradients) {
                layer.ld_back = padded<T>(layer.in + time);
                copy_rows(layer.out, stride, weight, stride, layer.back.resize(layer.out * layer.ld_back),
                          layer.ld_back);
            }
        }
    copy_rows(S, c, w.query, c, p.query.resize(S * p.ld_query), p.ld_query);
    const long key = (n + 1) * p.key_columns, value = (m + 1) * p.value_columns;
    to_panels(S, key, w.key_atom, p.key_atom.resize(S * p.ld_key));
    copy_rows(n + 1, p.edge_columns, w.key_edge, p.edge_columns, p.key_edge.resize((n + 1) * p.ld_edge), p.ld_edge);
    to_panels(S, value, w.value_atom, p.value_atom.resize(S * p.ld_value_atom));
    // the atom's own columns come first in a row: leave room for them
    copy_rows(m + 1, 6 * h, w.value_edge, 6 * h, p.value_edge.resize((m + 1) * p.ld_value) + 2 * h, p.ld_value);
    p.scalar_atom.resize(h * (m + 1) * p.ld_scalar_atom);
    for (long k = 0; k < h; ++k)
        to_panels(m + 1, S * v, w.scalar_atom + k * (m + 1) * S * v,
                  p.scalar_atom.data() + k * (m + 1) * p.ld_scalar_atom);
    copy_rows(h * 2 * (m + 1), v, w.scalar_edge, v, p.scalar_edge.resize(h * 2 * (m + 1) * p.ld_scalar_edge),
              p.ld_scalar_edge);
    copy_rows(h * v, S, w.out, S, p.out.resize(h * v * p.ld_scalars), p.ld_scalars);
    if (gradients) {
        copy_rows(S, key, w.key_atom, key, p.key_atom_rows.resize(S * p.ld_key), p.ld_key);
        copy_rows(S, value, w.value_atom, value, p.value_atom_rows.resize(S * p.ld_value_atom), p.ld_value_atom);
        const long ldn = padded<T>(n + 1), ldm = padded<T>(m + 1);
        transpose(n + 1, p.edge_columns, w.key_edge, p.edge_columns, p.key_edge_back.resize(p.edge_columns * ldn), ldn);
        transpose(m + 1, 6 * h, w.value_edge, 6 * h, p.value_edge_back.resize(6 * h * ldm), ldm);
        p.scalar_atom_back.resize(h * S * v * ldm);
        p.scalar_edge_back.resize(h * 2 * v * ldm);
        for (long k = 0; k < h; ++k) {
            transpose(m + 1, S * v, w.scalar_atom + k * (m + 1) * S * v, S * v,
                      p.scalar_atom_back.data() + k * S * v * ldm, ldm);
            for (long part = 0; part < 2; ++part)
                transpose(m + 1, v, w.scalar_edge + (2 * k + part) * (m + 1) * v, v,
                          p.scalar_edge_back.data() + (2 * k + part) * v * ldm, ldm);
        }
        transpose(h * v, S, w.out, S, p.out_back.resize(S * padded<T>(h * v)), padded<T>(h * v));
        transpose(S, c, w.query, c, p.query_back.resize(c * p.ld_scalars), p.ld_scalars);
    }
    return packed.release();
}

template <class T>
void release(void* packed) {
    delete static_cast<Packed<T>*>(packed);
}

}  // namespace
