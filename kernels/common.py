"""What the attention kernels share: tiles of edges, the hidden layer, columns of packed centres.

A tile has PACK centres with SLOT edges each, SLOT * PACK rows in all. Products with weights that
all centres share take the tile as it is. Products with a matrix of the centre's own take the PACK
matrices side by side and keep, of each row, the columns of its centre (`collect`); the transposed
products take rows that are zero outside their centre's columns (`spread`). That multiplies the work
of these products, and of no others, by PACK.
"""

import triton
import triton.language as tl


@triton.jit
def tile_rows(row_ptr, group, first, last, SLOT: tl.constexpr, PACK: tl.constexpr):
    """Of each row: its centre, whether that exists, its first edge, and the end of the edges."""
    row = tl.arange(0, SLOT * PACK)
    centre = first + group * PACK + row // SLOT
    inside = centre < last
    begin = tl.load(row_ptr + centre, mask=inside, other=0)
    end = tl.load(row_ptr + centre + 1, mask=inside, other=0)
    return centre, inside, begin + row % SLOT, end


@triton.jit
def packed_centres(group, first, last, WIDTH: tl.constexpr, PACK: tl.constexpr):
    """Of each of PACK * WIDTH columns: index of its centre in the slice, column, and existence."""
    column = tl.arange(0, PACK * WIDTH)
    local = group * PACK + column // WIDTH
    return local.to(tl.int64), column % WIDTH, first + local < last


@triton.jit
def membership(SLOT: tl.constexpr, PACK: tl.constexpr):
    """1 where a row [rows, PACK] belongs to a centre, 0 elsewhere."""
    row = tl.arange(0, SLOT * PACK)
    return tl.where((row // SLOT)[:, None] == tl.arange(0, PACK)[None, :], 1.0, 0.0)


@triton.jit
def total(x, axis: tl.constexpr):
    """Sums over an axis, the same to the bit in every thread that gets a copy.

    Without + 0 the compiler fuses a product with the sum's first step across threads: each of two
    threads then rounds the other's product and not its own, and copies of one sum differ.
    """
    return tl.sum(x + 0.0, axis=axis)


@triton.jit
def collect(x, member, PACK: tl.constexpr):
    """[rows, PACK * columns] -> [rows, columns]: the columns of the row's own centre."""
    if PACK > 1:
        x = tl.reshape(x, [x.shape[0], PACK, x.shape[1] // PACK])
        x = total(x * member[:, :, None], axis=1)
    return x


@triton.jit
def spread(x, member, PACK: tl.constexpr):
    """[rows, columns] -> [rows, PACK * columns]: zero outside the columns of the row's centre."""
    if PACK > 1:
        x = tl.reshape(x[:, None, :] * member[:, :, None], [x.shape[0], PACK * x.shape[1]])
    return x


@triton.jit
def sum_rows(x, SLOT: tl.constexpr, PACK: tl.constexpr):
    """[rows, columns] -> [PACK, columns]: sums over the edges of each centre."""
    return tl.sum(tl.reshape(x, [PACK, SLOT, x.shape[1]]), axis=1)


@triton.jit
def sum_paths(x, HP: tl.constexpr):
    """[rows, paths * HP] -> [rows, HP]: sums over what shares a head."""
    return total(tl.reshape(x, [x.shape[0], x.shape[1] // HP, HP]), axis=1)


@triton.jit
def stack(x, y):
    """[rows, columns] twice -> [2 rows, columns], for one product with both."""
    both = tl.permute(tl.join(x, y), (2, 0, 1))
    return tl.reshape(both, [2 * x.shape[0], x.shape[1]])


@triton.jit
def unstack(both):
    """The two halves that `stack` has joined."""
    both = tl.reshape(both, [2, both.shape[0] // 2, both.shape[1]])
    return tl.split(tl.permute(both, (1, 2, 0)))


@triton.jit
def basis(d, inv_step, BP: tl.constexpr):
    """The distance Gaussians [rows, BP] of d [rows] and their derivatives."""
    z = d[:, None] * inv_step - tl.arange(0, BP)[None, :]
    g = tl.exp(-z * z) * (1 / 1.12)
    return g, -2 * inv_step * z * g


@triton.jit
def gelu(x):
    """GELU in its exact form, and its derivative."""
    normal = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    return x * normal, normal + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
