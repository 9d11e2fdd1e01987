// Folding of a block's weights and its gradients: the arithmetic of fold in mdtrajnet_fast/ops/reference.py, which says what it
// does.  In plain torch it is hundreds of operations, each too small for what calling it costs.
#pragma once

namespace mdtrajnet {

struct FoldSizes {
    long scalars;  // S
    long heads;
    long rows[2];             // n, m: of key and value, hidden units plus one
    long scalar_channels[2];  // c0, v0 of a head
    long vector_channels[2];  // c1, v1
    long query_channels[2];   // q0, q1
};

// As BlockWeights has them, row-major.
template <class T>
struct BlockPaths {
    T *key_scalar, *key_vector, *value_scalar, *value_vector, *query_scalar, *query_vector, *bilinear_scalar,
        *bilinear_vector, *out_scalar, *out_vector;
};

// As FoldedWeights has them.
template <class T>
struct FoldedPaths {
    T *query, *key_atom, *key_edge, *value_atom, *value_edge, *scalar_atom, *scalar_edge, *out;
};

template <class T>
void fold(const FoldSizes&, const BlockPaths<T>&, const FoldedPaths<T>& to);

// Overwrites the gradients of all weights.
template <class T>
void fold_backward(const FoldSizes&, const BlockPaths<T>&, const FoldedPaths<T>& gradient, const BlockPaths<T>& to);

}  // namespace mdtrajnet
