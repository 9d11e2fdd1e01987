#include "cpu/neighbors.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/team.hpp"

namespace mdtrajnet {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint8_t;

// Below these sizes a parallel region costs more than it saves; bins cost more than they save.
constexpr int64_t kParallelAtoms = 2000;
constexpr int64_t kBinnedAtoms = 128;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    text.precision(17);
    (text << ... << parts);
    throw std::invalid_argument(text.str());
}

// " (system 3)" where there are many.
std::string in_system(int64_t system, int64_t count) {
    return count > 1 ? " (system " + std::to_string(system) + ")" : std::string();
}

std::string triple(const double* v) {
    std::ostringstream text;
    text << '[' << v[0] << ", " << v[1] << ", " << v[2] << ']';
    return text.str();
}

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

void cross(const double* a, const double* b, double* c) {
    c[0] = a[1] * b[2] - a[2] * b[1];
    c[1] = a[2] * b[0] - a[0] * b[2];
    c[2] = a[0] * b[1] - a[1] * b[0];
}

// One system's cell.  A direction that is not periodic gets a unit vector perpendicular to the periodic ones, so
// that its fractional coordinate is a length in Å.
struct Lattice {
    double vector[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    double inverse[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};  // fractional[k] = dot(inverse[k], position)
    double height[3] = {1, 1, 1};                              // between opposite faces
    bool periodic[3] = {false, false, false};

    bool any_periodic() const { return periodic[0] || periodic[1] || periodic[2]; }

    void translation(const int32_t* shift, double* out) const {
        for (int d = 0; d < 3; ++d)
            out[d] = shift[0] * vector[0][d] + shift[1] * vector[1][d] + shift[2] * vector[2][d];
    }
};

// Unit vectors perpendicular to those lattice vectors that are periodic, in place of those that are not.
void complete(Lattice& lattice) {
    for (int k = 0; k < 3; ++k) {
        if (lattice.periodic[k]) continue;
        double* v = lattice.vector[k];
        const double* a = lattice.vector[(k + 1) % 3];
        const double* b = lattice.vector[(k + 2) % 3];
        const bool has_a = lattice.periodic[(k + 1) % 3] || k == 2;  // vectors before k are settled already
        const bool has_b = lattice.periodic[(k + 2) % 3] || k >= 1;
        if (has_a && has_b) {
            cross(a, b, v);
        } else if (has_a || has_b) {
            const double* c = has_a ? a : b;
            double axis[3] = {0, 0, 0};  // the one that c is least along
            int least = 0;
            for (int d = 1; d < 3; ++d)
                if (std::abs(c[d]) < std::abs(c[least])) least = d;
            axis[least] = 1;
            cross(c, axis, v);
        } else {
            v[0] = v[1] = v[2] = 0;
            v[k] = 1;
        }
        const double length = std::sqrt(dot(v, v));
        for (int d = 0; d < 3; ++d) v[d] /= length;
    }
}

Lattice make_lattice(const Systems& systems, int64_t system) {
    Lattice lattice;
    if (!systems.cells || !systems.pbc) return lattice;
    const double* cell = systems.cells + 9 * system;
    for (int k = 0; k < 3; ++k) lattice.periodic[k] = systems.pbc[3 * system + k];
    for (int k = 0; k < 9; ++k)
        if (!std::isfinite(cell[k]))
            refuse("cell", in_system(system, systems.count), " is not finite: vector ", k / 3, " is ",
                   triple(cell + 3 * (k / 3)), "; give three finite lattice vectors in Å as rows");
    if (!lattice.any_periodic()) return lattice;

    std::memcpy(lattice.vector, cell, sizeof lattice.vector);
    for (int k = 0; k < 3; ++k)
        if (lattice.periodic[k] && dot(cell + 3 * k, cell + 3 * k) < kCoincident * kCoincident)
            refuse("cell", in_system(system, systems.count), " vector ", k, " is ", triple(cell + 3 * k),
                   " but pbc is True along it; give its length, or set pbc to False there");
    complete(lattice);

    double normal[3][3];
    double lengths = 1;
    for (int k = 0; k < 3; ++k) {
        cross(lattice.vector[(k + 1) % 3], lattice.vector[(k + 2) % 3], normal[k]);
        lengths *= std::sqrt(dot(lattice.vector[k], lattice.vector[k]));
    }
    const double volume = dot(lattice.vector[0], normal[0]);
    if (!(std::abs(volume) > 1e-9 * lengths))
        refuse("cell", in_system(system, systems.count), " is degenerate: its periodic vectors ", triple(cell), ", ",
               triple(cell + 3), ", ", triple(cell + 6),
               " are linearly dependent; give independent lattice vectors, or set pbc to False along one");
    for (int k = 0; k < 3; ++k) {
        for (int d = 0; d < 3; ++d) lattice.inverse[k][d] = normal[k][d] / volume;
        lattice.height[k] = 1 / std::sqrt(dot(lattice.inverse[k], lattice.inverse[k]));
    }
    return lattice;
}

// The one expression that decides whether a pair is a neighbour.
inline double distance2(const double* ri, const double* rj, const double* translation) {
    const double x = (rj[0] - ri[0]) + translation[0];
    const double y = (rj[1] - ri[1]) + translation[1];
    const double z = (rj[2] - ri[2]) + translation[2];
    return x * x + y * y + z * z;
}

[[noreturn]] void refuse_coincident(int64_t i, int64_t j, const int32_t* shift, double d2, int64_t system,
                                    int64_t count) {
    if (i > j) std::swap(i, j);
    const bool image = shift[0] || shift[1] || shift[2];
    refuse("atoms ", i, " and ", j, in_system(system, count), " coincide", image ? " through a periodic image" : "",
           ": they are ", std::sqrt(d2), " Å apart; atoms must be at least ", kCoincident,
           " Å from each other, so remove one of them", image ? " or mend the cell" : "");
}

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// A neighbour found: the atom (within its system) and which periodic image of the system it lies in.
struct Hit {
    int32_t atom;
    int32_t image;
};

// A growing array of hits whose memory is not initialised.
class Hits {
  public:
    Hits() = default;
    Hits(Hits&& other) noexcept : data_(other.data_), size_(other.size_), capacity_(other.capacity_) {
        other.data_ = nullptr;
    }
    Hits(const Hits&) = delete;
    Hits& operator=(const Hits&) = delete;
    ~Hits() { std::free(data_); }

    // Room for `more` hits at the end.
    Hit* reserve(int64_t more) {
        if (size_ + more > capacity_) {
            capacity_ = std::max<int64_t>(2 * capacity_, size_ + more);
            void* grown = std::realloc(data_, capacity_ * sizeof(Hit));
            if (!grown) throw std::bad_alloc();
            data_ = static_cast<Hit*>(grown);
        }
        return data_ + size_;
    }
    void add(int64_t count) { size_ += count; }
    int64_t size() const { return size_; }
    const Hit* data() const { return data_; }

  private:
    Hit* data_ = nullptr;
    int64_t size_ = 0, capacity_ = 0;
};

// A run of atoms, contiguous once sorted by bin, seen in one periodic image.
struct Segment {
    int32_t begin, end;
    int32_t image;
    double translation[3];
};

}  // namespace

struct NeighborSearch::System {
    int64_t index, count;  // of this system, and how many there are: for messages
    int64_t first;         // its first atom
    int32_t atoms;
    const double* positions;  // of its first atom
    double cutoff;
    Lattice lattice;

    double rounding = 0;        // bound on the error of a distance between wrapped atoms, Å
    bool wrapped = false;       // some atom lies outside the cell
    std::vector<int32_t> wrap;  // [atoms][3]: position = wrapped position + wrap . cell
    int64_t bins[3] = {1, 1, 1};
    int64_t reach[3] = {0, 0, 0};           // how many bins the cutoff spans
    int64_t images[3] = {0, 0, 0};          // how many periodic images it spans
    std::vector<double> x, y, z;            // wrapped positions, sorted by bin
    std::vector<int32_t> order, bin_start;  // the atom at each place; where each bin starts
    std::vector<Hits> hits;                 // one per thread
    std::vector<const Hit*> hits_of;        // [atoms], into `hits`
    const int64_t* row_ptr = nullptr;       // of its first atom

    System(const Systems& systems, int64_t system, double cutoff_)
        : index(system), count(systems.count), first(systems.ptr[system]),
          atoms(static_cast<int32_t>(systems.ptr[system + 1] - first)), positions(systems.positions + 3 * first),
          cutoff(cutoff_), lattice(make_lattice(systems, system)) {}

    void find(int threads, int64_t* counts);
    void fill(int threads, int32_t* neighbor, int32_t* shift) const;

  private:
    bool direct() const { return atoms <= kBinnedAtoms && !lattice.any_periodic(); }
    void check_finite() const;
    void wrap_and_bin();
    void choose_bins(const double* extent);
    void segments_of(int64_t bin, std::vector<Segment>& segments) const;
    int64_t image_id(int64_t a, int64_t b, int64_t c) const {
        return ((a + images[0]) * (2 * images[1] + 1) + b + images[1]) * (2 * images[2] + 1) + c + images[2];
    }
    void image_of(int32_t id, int32_t* image) const {
        const int32_t ny = static_cast<int32_t>(2 * images[1] + 1), nz = static_cast<int32_t>(2 * images[2] + 1);
        image[0] = id / (ny * nz) - static_cast<int32_t>(images[0]);
        image[1] = id / nz % ny - static_cast<int32_t>(images[1]);
        image[2] = id % nz - static_cast<int32_t>(images[2]);
    }
    int64_t search(int32_t place, const Segment& segment, Hit* out, double* scratch) const;
};

void NeighborSearch::System::check_finite() const {
    for (int32_t i = 0; i < atoms; ++i) {
        const double* r = positions + 3 * i;
        // Below 1e15 Å a coordinate still resolves an Å.
        if (!(std::abs(r[0]) < 1e15 && std::abs(r[1]) < 1e15 && std::abs(r[2]) < 1e15)) {
            const bool finite = std::isfinite(r[0]) && std::isfinite(r[1]) && std::isfinite(r[2]);
            refuse("the position of atom ", first + i, in_system(index, count), " is ",
                   finite ? "too far from the origin" : "not finite", ": ", triple(r),
                   "; positions are finite numbers in Å");
        }
    }
}

void NeighborSearch::System::choose_bins(const double* extent) {
    // Atoms are sorted with the last direction fastest: a run along it is contiguous, so finer bins there cost
    // nothing and trim what must be searched.
    const double fineness[3] = {1, 1, 3};
    const double range = cutoff * (1 + 1e-12) + 4 * rounding;
    double number[3];
    for (int k = 0; k < 3; ++k) number[k] = std::max(1.0, std::floor(extent[k] * fineness[k] / range));
    // No more bins than atoms.
    for (double total; (total = number[0] * number[1] * number[2]) > std::max<double>(1, atoms);) {
        double& largest = *std::max_element(number, number + 3);
        largest = std::max(1.0, std::floor(largest * std::max(0.5, atoms / total)));
    }
    double all_images = 1;
    for (int k = 0; k < 3; ++k) {
        bins[k] = static_cast<int64_t>(number[k]);
        const double width = extent[k] / number[k];
        if (lattice.periodic[k]) {
            reach[k] = static_cast<int64_t>(std::min(std::ceil(range / width), 1e9));
            images[k] = (reach[k] + bins[k] - 1) / bins[k];
        } else {
            reach[k] =
                bins[k] == 1 ? 0 : std::min<int64_t>(bins[k] - 1, static_cast<int64_t>(std::ceil(range / width)));
        }
        all_images *= 2.0 * images[k] + 1;
    }
    if (all_images > std::numeric_limits<int32_t>::max())
        refuse("the cell", in_system(index, count), " is too thin for the cutoff of ", cutoff, " Å: its faces are ",
               triple(lattice.height), " Å apart, which gives ", all_images,
               " periodic images; check the cell's unit (Å) or reduce its skew");
}

void NeighborSearch::System::wrap_and_bin() {
    wrap.assign(3 * static_cast<size_t>(atoms), 0);
    std::vector<double> fractional(3 * static_cast<size_t>(atoms));
    double low[3], high[3], farthest = 0, translated = 0, reachable = cutoff;
    std::fill(low, low + 3, std::numeric_limits<double>::infinity());
    std::fill(high, high + 3, -std::numeric_limits<double>::infinity());
    double length[3];
    for (int k = 0; k < 3; ++k) length[k] = std::sqrt(dot(lattice.vector[k], lattice.vector[k]));

    for (int32_t i = 0; i < atoms; ++i) {
        const double* r = positions + 3 * i;
        double moved = 0;
        for (int k = 0; k < 3; ++k) {
            double f = dot(lattice.inverse[k], r);
            if (lattice.periodic[k]) {
                const double n = std::floor(f);
                if (!(std::abs(n) < 1e9))
                    refuse("atom ", first + i, in_system(index, count), " at ", triple(r), " lies ", n,
                           " cells away along lattice vector ", k, "; wrap the positions or check the cell's unit (Å)");
                f -= n;
                wrap[3 * i + k] = static_cast<int32_t>(n);
                moved += std::abs(n) * length[k];
            }
            fractional[3 * i + k] = f;
            low[k] = std::min(low[k], f);
            high[k] = std::max(high[k], f);
            farthest = std::max(farthest, std::abs(r[k]));
        }
        translated = std::max(translated, moved);
    }
    wrapped = translated > 0;

    double extent[3], origin[3];
    for (int k = 0; k < 3; ++k) {
        extent[k] = lattice.periodic[k] ? lattice.height[k] : high[k] - low[k];
        origin[k] = lattice.periodic[k] ? 0 : low[k];
        if (lattice.periodic[k]) reachable += length[k] * (1 + cutoff / lattice.height[k]);
    }
    rounding = 1e-14 * (farthest + translated + reachable);
    choose_bins(extent);

    // Counting sort; stable, so that atoms of one bin stay in order.
    std::vector<int32_t> bin_of(atoms);
    bin_start.assign(bins[0] * bins[1] * bins[2] + 1, 0);
    for (int32_t i = 0; i < atoms; ++i) {
        int64_t bin = 0;
        for (int k = 0; k < 3; ++k) {
            const double width = lattice.periodic[k] ? 1 : extent[k];
            const double f = fractional[3 * i + k] - origin[k];
            const int64_t place = width > 0 ? static_cast<int64_t>(f / width * bins[k]) : 0;
            bin = bin * bins[k] + std::min(std::max<int64_t>(place, 0), bins[k] - 1);
        }
        bin_of[i] = static_cast<int32_t>(bin);
        ++bin_start[bin + 1];
    }
    std::partial_sum(bin_start.begin(), bin_start.end(), bin_start.begin());
    std::vector<int32_t> next(bin_start.begin(), bin_start.end() - 1);
    order.resize(atoms);
    x.resize(atoms), y.resize(atoms), z.resize(atoms);
    for (int32_t i = 0; i < atoms; ++i) {
        const int32_t place = next[bin_of[i]]++;
        const double* r = positions + 3 * i;
        double t[3];
        lattice.translation(&wrap[3 * i], t);
        order[place] = i;
        x[place] = r[0] - t[0], y[place] = r[1] - t[1], z[place] = r[2] - t[2];
    }
}

// The atoms that those of a bin may see, images in ascending order.
void NeighborSearch::System::segments_of(int64_t bin, std::vector<Segment>& segments) const {
    segments.clear();
    const int64_t c[3] = {bin / (bins[1] * bins[2]), bin / bins[2] % bins[1], bin % bins[2]};
    int64_t from[3], to[3];
    for (int k = 0; k < 3; ++k) {
        from[k] = c[k] - reach[k], to[k] = c[k] + reach[k];
        if (!lattice.periodic[k]) from[k] = std::max<int64_t>(from[k], 0), to[k] = std::min(to[k], bins[k] - 1);
    }
    for (int64_t a = from[0]; a <= to[0]; ++a) {
        const int64_t image_a = floor_div(a, bins[0]);
        for (int64_t b = from[1]; b <= to[1]; ++b) {
            const int64_t image_b = floor_div(b, bins[1]);
            const int64_t row = ((a - image_a * bins[0]) * bins[1] + b - image_b * bins[1]) * bins[2];
            for (int64_t image_c = floor_div(from[2], bins[2]); image_c <= floor_div(to[2], bins[2]); ++image_c) {
                const int64_t base = image_c * bins[2];
                Segment segment;
                segment.begin = bin_start[row + std::max(from[2] - base, int64_t(0))];
                segment.end = bin_start[row + std::min(to[2] - base, bins[2] - 1) + 1];
                if (segment.begin == segment.end) continue;
                segment.image = static_cast<int32_t>(image_id(image_a, image_b, image_c));
                const int32_t image[3] = {static_cast<int32_t>(image_a), static_cast<int32_t>(image_b),
                                          static_cast<int32_t>(image_c)};
                lattice.translation(image, segment.translation);
                segments.push_back(segment);
            }
        }
    }
}

// Appends to `out` the atoms of a segment within the cutoff of the atom at `place`; returns how many.
int64_t NeighborSearch::System::search(int32_t place, const Segment& segment, Hit* out, double* scratch) const {
    const double px = x[place] - segment.translation[0];
    const double py = y[place] - segment.translation[1];
    const double pz = z[place] - segment.translation[2];
    const double* __restrict sx = x.data() + segment.begin;
    const double* __restrict sy = y.data() + segment.begin;
    const double* __restrict sz = z.data() + segment.begin;
    const int32_t* __restrict atom = order.data() + segment.begin;
    double* __restrict d2 = scratch;
    const int32_t n = segment.end - segment.begin;
    for (int32_t k = 0; k < n; ++k) {
        const double dx = sx[k] - px, dy = sy[k] - py, dz = sz[k] - pz;
        d2[k] = dx * dx + dy * dy + dz * dz;
    }
    // The wrapped positions carry a rounding error: pairs within it of a limit are decided below.
    const double limit = cutoff * cutoff, margin = 4 * rounding * (cutoff + rounding);
    const double least = (kCoincident + 4 * rounding) * (kCoincident + 4 * rounding);
    int32_t found = 0;
    for (int32_t k = 0; k < n; ++k) {  // d2 is overtaken by its own compaction
        const double v = d2[k];
        out[found] = {atom[k], segment.image};
        d2[found] = v;
        found += v <= limit + margin;
    }
    int32_t kept = 0;
    for (int32_t k = 0; k < found; ++k) {
        if (d2[k] > limit - margin || d2[k] < least) {
            const int32_t i = order[place], j = out[k].atom;
            int32_t shift[3];
            image_of(segment.image, shift);
            for (int d = 0; d < 3; ++d) shift[d] += wrap[3 * i + d] - wrap[3 * j + d];
            if (i == j && !shift[0] && !shift[1] && !shift[2]) continue;
            double translation[3];
            lattice.translation(shift, translation);
            const double exact = distance2(positions + 3 * i, positions + 3 * j, translation);
            if (exact < kCoincident * kCoincident) refuse_coincident(first + i, first + j, shift, exact, index, count);
            if (exact > limit) continue;
        }
        out[kept++] = out[k];
    }
    return kept;
}

void NeighborSearch::System::find(int threads, int64_t* counts) {
    if (!atoms) return;
    check_finite();
    if (direct()) {  // one bin, atoms in order
        x.resize(atoms), y.resize(atoms), z.resize(atoms), order.resize(atoms);
        wrap.assign(3 * static_cast<size_t>(atoms), 0);
        bin_start = {0, atoms};
        double farthest = 0;
        for (int32_t i = 0; i < atoms; ++i) {
            const double* r = positions + 3 * i;
            x[i] = r[0], y[i] = r[1], z[i] = r[2];
            order[i] = i;
            for (int k = 0; k < 3; ++k) farthest = std::max(farthest, std::abs(r[k]));
        }
        rounding = 1e-14 * (farthest + cutoff);
    } else {
        wrap_and_bin();
    }

    hits_of.resize(atoms);
    hits.resize(threads);
    std::vector<int64_t> offset(atoms);
    std::vector<int32_t> owner(atoms);
    std::vector<std::exception_ptr> errors(threads);
    const int64_t bins_total = static_cast<int64_t>(bin_start.size()) - 1;

    const auto work = [&](int thread) {
        // Each thread takes the bins of an equal share of the atoms.
        const auto bin_at = [&](int64_t share) {
            const int64_t atom = atoms * share / threads;
            return std::lower_bound(bin_start.begin(), bin_start.end() - 1, atom) - bin_start.begin();
        };
        const int64_t from = thread == 0 ? 0 : bin_at(thread);
        const int64_t to = thread == threads - 1 ? bins_total : bin_at(thread + 1);
        Hits& mine = hits[thread];
        std::vector<Segment> segments;
        std::vector<double> scratch;
        for (int64_t bin = from; bin < to; ++bin) {
            if (bin_start[bin] == bin_start[bin + 1]) continue;
            Guard::look();
            segments_of(bin, segments);
            for (int32_t place = bin_start[bin]; place < bin_start[bin + 1]; ++place) {
                const int64_t start = mine.size();
                for (const Segment& segment : segments) {
                    const int32_t n = segment.end - segment.begin;
                    if (scratch.size() < static_cast<size_t>(n)) scratch.resize(2 * n);
                    Hit* out = mine.reserve(n);
                    mine.add(search(place, segment, out, scratch.data()));
                }
                const int32_t atom = order[place];
                offset[atom] = start;
                owner[atom] = thread;
                counts[atom] = mine.size() - start;
            }
        }
    };
    if (threads == 1) {
        work(0);
    } else {
        parallel(threads, [&](auto&) {  // the first thread's error is thrown, whichever came first
#pragma omp for schedule(static, 1)
            for (int t = 0; t < threads; ++t) {
                try {
                    work(t);
                } catch (...) {
                    errors[t] = std::current_exception();
                }
            }
        });
    }
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
    for (int32_t i = 0; i < atoms; ++i) hits_of[i] = hits[owner[i]].data() + offset[i];
}

// Orders hits by atom; those of one atom keep their order.  A radix sort between two scratch rows, of which it
// returns the one that holds the result.
static const Hit* sort_hits(const Hit* hits, Hit* row, Hit* other, int64_t n) {
    int32_t low = std::numeric_limits<int32_t>::max(), high = 0;
    for (int64_t k = 0; k < n; ++k) low = std::min(low, hits[k].atom), high = std::max(high, hits[k].atom);
    const int digit = n < 128 ? 6 : 8;  // a short row should not pay for a long histogram
    const uint32_t mask = (1u << digit) - 1;
    for (int bit = 0; bit < 32 && (int64_t(high) - low) >> bit; bit += digit) {
        int32_t start[257];
        std::fill(start, start + mask + 2, 0);
        for (int64_t k = 0; k < n; ++k) ++start[(uint32_t(hits[k].atom - low) >> bit & mask) + 1];
        for (uint32_t k = 0; k < mask; ++k) start[k + 1] += start[k];
        for (int64_t k = 0; k < n; ++k) row[start[uint32_t(hits[k].atom - low) >> bit & mask]++] = hits[k];
        hits = row;
        std::swap(row, other);
    }
    return hits;
}

// An atom's hits come in the order of the bins, and those of one neighbour in ascending order of the image.
void NeighborSearch::System::fill(int threads, int32_t* neighbor, int32_t* shift) const {
    if (!atoms) return;
    const auto base = static_cast<int32_t>(first);
    if (direct()) {  // one bin: in order already
        for (int32_t i = 0; i < atoms; ++i) {
            const int64_t count_i = row_ptr[i + 1] - row_ptr[i];
            for (int64_t k = 0; k < count_i; ++k) neighbor[row_ptr[i] + k] = base + hits_of[i][k].atom;
        }
        std::memset(shift + 3 * row_ptr[0], 0, 3 * sizeof(int32_t) * (row_ptr[atoms] - row_ptr[0]));
        return;
    }
    std::vector<int32_t> image(3 * (2 * images[0] + 1) * (2 * images[1] + 1) * (2 * images[2] + 1));
    for (size_t id = 0; id < image.size() / 3; ++id) image_of(static_cast<int32_t>(id), &image[3 * id]);
    int64_t longest = 0;
    for (int32_t i = 0; i < atoms; ++i) longest = std::max(longest, row_ptr[i + 1] - row_ptr[i]);
    std::vector<std::vector<Hit>> scratch(threads, std::vector<Hit>(2 * longest));

    const auto work = [&](int t) {
        Hit *row = scratch[t].data(), *other = row + longest;
        for (int64_t i = int64_t(atoms) * t / threads; i < int64_t(atoms) * (t + 1) / threads; ++i) {
            const int64_t n = row_ptr[i + 1] - row_ptr[i];
            const Hit* sorted = sort_hits(hits_of[i], row, other, n);
            int32_t* __restrict to = neighbor + row_ptr[i], * __restrict to_shift = shift + 3 * row_ptr[i];
            for (int64_t k = 0; k < n; ++k) {
                to[k] = base + sorted[k].atom;
                for (int d = 0; d < 3; ++d) to_shift[3 * k + d] = image[3 * sorted[k].image + d];
            }
            if (!wrapped) continue;
            for (int64_t k = 0; k < n; ++k)
                for (int d = 0; d < 3; ++d) to_shift[3 * k + d] += wrap[3 * i + d] - wrap[3 * sorted[k].atom + d];
        }
    };
    if (threads == 1) {
        work(0);
        return;
    }
    parallel(threads, [&](auto& guard) {
#pragma omp for schedule(static, 1)
        for (int t = 0; t < threads; ++t) guard([&] { work(t); });
    });
}

namespace {

int threads_or_all(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

// Runs body(s) for every system; many small ones share out the threads.  The first system's error is thrown.
template <class Body>
void for_each_system(const Systems& systems, int threads, const Body& body) {
    if (threads == 1 || systems.count == 1 || systems.atoms < kParallelAtoms) {
        for (int64_t s = 0; s < systems.count; ++s)
            body(s, systems.ptr[s + 1] - systems.ptr[s] < kParallelAtoms ? 1 : threads);
        return;
    }
    const auto large = [&](int64_t s) { return systems.ptr[s + 1] - systems.ptr[s] >= kParallelAtoms; };
    for (int64_t s = 0; s < systems.count; ++s)
        if (large(s)) body(s, threads);
    std::exception_ptr error;
    int64_t failed = systems.count;
    parallel(threads, [&](auto&) {
#pragma omp for schedule(dynamic, 8)
        for (int64_t s = 0; s < systems.count; ++s) {
            if (large(s)) continue;
            try {
                body(s, 1);
            } catch (...) {
#pragma omp critical(mdtrajnet_neighbors)
                if (s < failed) failed = s, error = std::current_exception();
            }
        }
    });
    if (error) std::rethrow_exception(error);
}

}  // namespace

NeighborSearch::NeighborSearch(const Systems& systems, double cutoff, int threads, int64_t* row_ptr)
    : systems_(systems), threads_(threads_or_all(threads)), row_ptr_(row_ptr), found_(systems.count) {
    row_ptr[0] = 0;
    for_each_system(systems_, threads_, [&](int64_t s, int team) {
        found_[s] = std::make_unique<System>(systems_, s, cutoff);
        found_[s]->row_ptr = row_ptr + found_[s]->first;
        found_[s]->find(team, row_ptr + 1 + found_[s]->first);
    });
    std::partial_sum(row_ptr, row_ptr + systems.atoms + 1, row_ptr);
}

NeighborSearch::~NeighborSearch() = default;

void NeighborSearch::fill(int32_t* neighbor, int32_t* shift) const {
    for_each_system(systems_, threads_, [&](int64_t s, int team) { found_[s]->fill(team, neighbor, shift); });
}

VerletList::VerletList(double cutoff, double skin) : cutoff_(cutoff), skin_(skin) {}

bool VerletList::reusable(const Systems& systems) const {
    const auto same = [](const auto& kept, const auto* given, int64_t size) {
        return given ? static_cast<int64_t>(kept.size()) == size && std::equal(kept.begin(), kept.end(), given)
                     : kept.empty();
    };
    if (!valid_ || static_cast<int64_t>(positions_.size()) != 3 * systems.atoms ||
        !same(ptr_, systems.ptr, systems.count + 1) || !same(cells_, systems.cells, 9 * systems.count) ||
        !same(pbc_, systems.pbc, 3 * systems.count))
        return false;
    // |u_i - u_j| <= |u_i - c| + |u_j - c| for the displacements u and any c: take their mean, which moves no pair.
    for (int64_t s = 0; s < systems.count; ++s) {
        const int64_t from = systems.ptr[s], to = systems.ptr[s + 1];
        double mean[3] = {0, 0, 0}, farthest = 0;
        for (int64_t k = 3 * from; k < 3 * to; ++k) {
            mean[k % 3] += (systems.positions[k] - positions_[k]) / static_cast<double>(to - from);
            farthest = std::max({farthest, std::abs(systems.positions[k]), std::abs(positions_[k])});
        }
        const double allowed = 0.5 * skin_ - 1e-14 * (farthest + cutoff_);  // less what rounding may hide
        for (int64_t i = from; i < to; ++i) {
            double moved2 = 0;
            for (int d = 0; d < 3; ++d) {
                const double moved = systems.positions[3 * i + d] - positions_[3 * i + d] - mean[d];
                moved2 += moved * moved;
            }
            if (!(allowed > 0 && moved2 <= allowed * allowed)) return false;  // also where it is not finite
        }
    }
    return true;
}

void VerletList::build(const Systems& systems, int threads) {
    valid_ = false;
    row_ptr_.resize(systems.atoms + 1);
    const NeighborSearch search(systems, cutoff_ + skin_, threads, row_ptr_.data());
    neighbor_.resize(row_ptr_.back());
    shift_.resize(3 * row_ptr_.back());
    search.fill(neighbor_.data(), shift_.data());
    positions_.assign(systems.positions, systems.positions + 3 * systems.atoms);
    ptr_.assign(systems.ptr, systems.ptr + systems.count + 1);
    cells_.clear(), pbc_.clear();
    if (systems.cells) cells_.assign(systems.cells, systems.cells + 9 * systems.count);
    if (systems.pbc) pbc_.assign(systems.pbc, systems.pbc + 3 * systems.count);
    keep_.resize(neighbor_.size());
    valid_ = true;
    ++builds_;
}

void VerletList::filter(const Systems& systems, int threads, int64_t* row_ptr) {
    const double limit = cutoff_ * cutoff_;
    row_ptr[0] = 0;
    for_each_system(systems, threads, [&](int64_t s, int team) {
        const Lattice lattice = make_lattice(systems, s);
        const int64_t from = systems.ptr[s], to = systems.ptr[s + 1];
        std::vector<std::exception_ptr> errors(team);
        const auto work = [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                int64_t kept = 0;
                for (int64_t e = row_ptr_[i]; e < row_ptr_[i + 1]; ++e) {
                    const int32_t* shift = &shift_[3 * e];
                    double translation[3] = {0, 0, 0};
                    if (shift[0] | shift[1] | shift[2]) lattice.translation(shift, translation);
                    const int64_t j = neighbor_[e];
                    const double d2 = distance2(systems.positions + 3 * i, systems.positions + 3 * j, translation);
                    if (d2 < kCoincident * kCoincident) refuse_coincident(i, j, shift, d2, s, systems.count);
                    keep_[e] = d2 <= limit;
                    kept += keep_[e];
                }
                row_ptr[i + 1] = kept;
            }
        };
        if (team == 1) {
            work(from, to);
            return;
        }
        parallel(team, [&](auto&) {  // as above
#pragma omp for schedule(static, 1)
            for (int t = 0; t < team; ++t) {
                try {
                    work(from + (to - from) * t / team, from + (to - from) * (t + 1) / team);
                } catch (...) {
                    errors[t] = std::current_exception();
                }
            }
        });
        for (const std::exception_ptr& error : errors)
            if (error) std::rethrow_exception(error);
    });
    std::partial_sum(row_ptr, row_ptr + systems.atoms + 1, row_ptr);
}

void VerletList::update(const Systems& systems, int threads, int64_t* row_ptr) {
    threads_ = threads_or_all(threads);
    kept_row_ptr_ = row_ptr;
    if (!reusable(systems)) build(systems, threads_);
    filter(systems, threads_, row_ptr);
}

void VerletList::fill(int32_t* neighbor, int32_t* shift) const {
    const auto atoms = static_cast<int64_t>(row_ptr_.size()) - 1;
    const int team = atoms < kParallelAtoms ? 1 : threads_;
    const auto work = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t at = kept_row_ptr_[i];
            for (int64_t e = row_ptr_[i]; e < row_ptr_[i + 1]; ++e) {
                if (!keep_[e]) continue;
                neighbor[at] = neighbor_[e];
                std::memcpy(shift + 3 * at, &shift_[3 * e], 3 * sizeof(int32_t));
                ++at;
            }
        }
    };
    if (team == 1) {
        work(0, atoms);
        return;
    }
    parallel(team, [&](auto& guard) {
#pragma omp for schedule(static, 1)
        for (int t = 0; t < team; ++t) guard([&] { work(atoms * t / team, atoms * (t + 1) / team); });
    });
}

template <class T>
void edge_vectors(const Systems& systems, const double* velocities, const int64_t* row_ptr, const int32_t* neighbor,
                  const int32_t* shift, T* r, T* w) {
    for (int64_t s = 0; s < systems.count; ++s) {
        const double* cell = systems.cells ? systems.cells + 9 * s : nullptr;
        for (int64_t i = systems.ptr[s]; i < systems.ptr[s + 1]; ++i)
            for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
                const int64_t j = neighbor[e];
                for (int x = 0; x < 3; ++x) {
                    double away = systems.positions[3 * j + x] - systems.positions[3 * i + x];
                    if (cell)
                        away +=
                            shift[3 * e] * cell[x] + shift[3 * e + 1] * cell[3 + x] + shift[3 * e + 2] * cell[6 + x];
                    r[3 * e + x] = static_cast<T>(away);
                    if (w) w[3 * e + x] = static_cast<T>(velocities[3 * j + x] - velocities[3 * i + x]);
                }
            }
    }
}

template void edge_vectors(const Systems&, const double*, const int64_t*, const int32_t*, const int32_t*, float*,
                           float*);
template void edge_vectors(const Systems&, const double*, const int64_t*, const int32_t*, const int32_t*, double*,
                           double*);

void connected_components(int64_t atoms, const int64_t* row_ptr, const int32_t* neighbor, int64_t* labels) {
    // Union-find whose roots are the first atoms of their components.
    std::vector<int64_t> parent(atoms);
    std::iota(parent.begin(), parent.end(), int64_t(0));
    const auto root = [&](int64_t i) {
        while (parent[i] != i) i = parent[i] = parent[parent[i]];
        return i;
    };
    for (int64_t i = 0; i < atoms; ++i) {
        for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
            const int64_t a = root(i), b = root(neighbor[e]);
            parent[std::max(a, b)] = std::min(a, b);
        }
    }
    int64_t count = 0;
    for (int64_t i = 0; i < atoms; ++i) labels[i] = parent[i] == i ? count++ : labels[root(i)];
}

}  // namespace mdtrajnet
