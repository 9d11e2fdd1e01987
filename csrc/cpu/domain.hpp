// One periodic system that processes share: what a process asks of the others, and which atoms hang together.
//
// Every process owns some of the atoms. In its arrays these come first, then ghosts: atoms of other processes, or images
// of atoms, that its own may see. Only its own atoms have edges. What a network has to know of ghosts from layer to
// layer, their owners tell; so nothing is computed twice, and one process is the case without ghosts.
//
// All processes make the same calls in the same order. How they reach each other is up to who derives from Domain.
#pragma once

#include <cstdint>
#include <vector>

namespace mdtrajnet {

// Which atoms hang together, as far as one process knows and what it shares.
struct Components {
    std::vector<std::int64_t> label;  // [atoms, then ghosts], 0 .. count - 1
    std::int64_t count = 0;
    std::vector<std::int64_t> shared;  // those of which there may be atoms elsewhere
    std::vector<std::int64_t> name;    // of each of these: the same in all processes
};

class Domain {
  public:
    // ids: of the own atoms, no two the same in all processes.
    explicit Domain(std::vector<std::int64_t> ids) : ids_(std::move(ids)) {}
    virtual ~Domain() = default;
    Domain(const Domain&) = delete;

    std::int64_t own() const { return static_cast<std::int64_t>(ids_.size()); }
    std::int64_t ghosts() const { return ghosts_; }
    // [own, then ghosts][3] Å: from where an atom is, or the one that a ghost stands for, to the image that is seen here.
    const std::vector<double>& offsets() const { return offsets_; }

    // Finds the ghosts of all processes, at their own positions [own][3] (Å).
    void meet(const double* positions) {
        meet(positions, told_, offsets_);
        ghosts_ = static_cast<std::int64_t>(offsets_.size()) / 3 - own();
    }

    // Overwrites what ghosts have by what their owners have: these tell of theirs, then hear of the others'. Between the
    // two, whatever else is computed costs the way there nothing. at(context, atom, piece): where an atom has the so many
    // bytes[piece] of it. (No std::function: this is called from code for several instruction sets.)
    using At = void* (*)(void* context, std::int64_t atom, int piece);
    void tell(int pieces, const std::int64_t* bytes, At at, void* context);
    void hear(int pieces, const std::int64_t* bytes, At at, void* context);
    void refresh(int pieces, const std::int64_t* bytes, At at, void* context) {
        tell(pieces, bytes, at, context);
        hear(pieces, bytes, at, context);
    }

    // An order of the groups of so many own atoms, one after another: the outer ones first, in which an atom is told of or
    // sees a ghost. Returns how many they are.
    std::int64_t outer_first(const std::int64_t* row_ptr, const std::int64_t* neighbor, std::int64_t group,
                             const std::int64_t*& order);

    // Adds up over all processes, in place.
    virtual void sum(double* x, std::int64_t count) = 0;

    // Whether it is so in one of the processes.
    bool any(bool here);

    // From edges of the own atoms, whose neighbours may be ghosts.
    Components components(const std::int64_t* row_ptr, const std::int32_t* neighbor);

    // Adds up the rows [count][width] of shared components, in place.
    void sum_shared(const Components& components, double* rows, std::int64_t width);

  protected:
    // As above: writes the numbers of atoms to be told of, and the offsets.
    virtual void meet(const double* positions, std::vector<std::int64_t>& told, std::vector<double>& offsets) = 0;
    // Sends a row of so many bytes for each atom to be told of, and receives one for each ghost: both are under way from
    // the first to the second.
    virtual void begin_swap(const void* out, std::int64_t outs, void* in, std::int64_t ins, std::int64_t bytes) = 0;
    virtual void end_swap() = 0;
    // Adds up rows [count][width] of the same name, wherever they are, in place.
    virtual void sum_named(const std::int64_t* names, double* rows, std::int64_t count, std::int64_t width) = 0;

  private:
    std::vector<std::int64_t> ids_, told_, order_;
    std::int64_t ghosts_ = 0;
    std::vector<double> offsets_;
    std::vector<unsigned char> out_, in_;
};

}  // namespace mdtrajnet
