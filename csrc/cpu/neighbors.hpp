// Neighbour lists of many systems, periodic or not.
//
// The list is full (both i->j and j->i), in compressed rows: the edges of atom i are row_ptr[i] .. row_ptr[i+1],
// ordered by (neighbor, shift), whatever the number of threads.  For edge e of atom i
//
//     r = positions[neighbor[e]] + shift[e] . cell - positions[i],    0 < |r| <= cutoff,
//
// evaluated in double precision as (positions[j] - positions[i]) + shift . cell.  Atoms may lie anywhere: the shift
// belongs to the positions as given.  Bad input throws std::invalid_argument naming the atom.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace mdtrajnet {

// Two atoms closer than this (Å) are taken for a mistake in the input.
constexpr double kCoincident = 1e-6;

struct Systems {
    const double* positions;  // [atoms][3], Å
    std::int64_t atoms;
    const std::int64_t* ptr;  // [count + 1]: the atoms of system s are ptr[s] .. ptr[s+1]
    std::int64_t count;
    const double* cells = nullptr;      // [count][3][3], rows are lattice vectors; null: none is periodic
    const std::uint8_t* pbc = nullptr;  // [count][3]; null: none is periodic
};

// The search comes in two steps because the caller allocates the edges once their number is known.
class NeighborSearch {
  public:
    // Finds all pairs and writes row_ptr [atoms + 1].  threads 0: as many as OpenMP has.
    NeighborSearch(const Systems& systems, double cutoff, int threads, std::int64_t* row_ptr);
    ~NeighborSearch();

    // Writes neighbor [edges] and shift [edges][3], where edges = row_ptr[atoms].
    void fill(std::int32_t* neighbor, std::int32_t* shift) const;

  private:
    struct System;
    Systems systems_;
    int threads_;
    const std::int64_t* row_ptr_;
    std::vector<std::unique_ptr<System>> found_;
};

// A list with a skin: the candidates within cutoff + skin are kept and filtered for as long as no atom has moved
// more than skin / 2 (less the drift that its system's atoms share), and cell, pbc and ptr stay as they were.
class VerletList {
  public:
    VerletList(double cutoff, double skin);

    // As NeighborSearch: row_ptr is written here, and read again by fill(), which writes the edges.
    void update(const Systems& systems, int threads, std::int64_t* row_ptr);
    void fill(std::int32_t* neighbor, std::int32_t* shift) const;

    std::int64_t builds() const { return builds_; }

  private:
    bool reusable(const Systems& systems) const;
    void build(const Systems& systems, int threads);
    void filter(const Systems& systems, int threads, std::int64_t* row_ptr);

    double cutoff_, skin_;
    int threads_ = 1;
    std::int64_t builds_ = 0;
    bool valid_ = false;
    std::vector<double> positions_, cells_;  // at the last build, as are ptr and pbc
    std::vector<std::int64_t> ptr_;
    std::vector<std::uint8_t> pbc_;
    std::vector<std::int64_t> row_ptr_;  // the candidates, and those within the cutoff at the last update
    std::vector<std::int32_t> neighbor_, shift_;
    std::vector<std::uint8_t> keep_;
    const std::int64_t* kept_row_ptr_ = nullptr;
};

// r [edges][3] (Å) of each edge, as above, and w [edges][3] (Å/fs), the velocity of the neighbour less that of the centre:
// differences in double precision, then rounded to T.  Without w, which may be null, velocities may be null, too.
template <class T>
void edge_vectors(const Systems& systems, const double* velocities, const std::int64_t* row_ptr,
                  const std::int32_t* neighbor, const std::int32_t* shift, T* r, T* w);

// Labels 0.. of the connected components, in the order of their first atoms.
void connected_components(std::int64_t atoms, const std::int64_t* row_ptr, const std::int32_t* neighbor,
                          std::int64_t* labels);

}  // namespace mdtrajnet
