#include "cpu/domain.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/neighbors.hpp"

namespace mdtrajnet {

using std::int64_t;

void Domain::tell(int pieces, const int64_t* bytes, At at, void* context) {
    const int64_t row = std::accumulate(bytes, bytes + pieces, int64_t(0));
    out_.resize(row * told_.size());
    in_.resize(row * ghosts());
    unsigned char* to = out_.data();
    for (const int64_t atom : told_)
        for (int piece = 0; piece < pieces; to += bytes[piece++])
            std::memcpy(to, at(context, atom, piece), bytes[piece]);
    begin_swap(out_.data(), static_cast<int64_t>(told_.size()), in_.data(), ghosts(), row);
}

void Domain::hear(int pieces, const int64_t* bytes, At at, void* context) {
    end_swap();
    const unsigned char* from = in_.data();
    for (int64_t ghost = own(); ghost < own() + ghosts(); ++ghost)
        for (int piece = 0; piece < pieces; from += bytes[piece++])
            std::memcpy(at(context, ghost, piece), from, bytes[piece]);
}

int64_t Domain::outer_first(const int64_t* row_ptr, const int64_t* neighbor, int64_t group, const int64_t*& order) {
    std::vector<char> outer((own() + group - 1) / group);
    for (const int64_t atom : told_) outer[atom / group] = true;
    for (int64_t i = 0; i < own(); ++i)
        for (int64_t e = row_ptr[i]; e < row_ptr[i + 1] && !outer[i / group]; ++e)
            outer[i / group] = neighbor[e] >= own();
    order_.resize(outer.size());
    std::iota(order_.begin(), order_.end(), 0);
    order = order_.data();
    return std::stable_partition(order_.begin(), order_.end(), [&](int64_t k) { return outer[k]; }) - order_.begin();
}

bool Domain::any(bool here) {
    double count = here;
    sum(&count, 1);
    return count > 0;
}

Components Domain::components(const int64_t* row_ptr, const std::int32_t* neighbor) {
    const int64_t all = own() + ghosts();
    std::vector<int64_t> rows(row_ptr, row_ptr + own() + 1);
    rows.resize(all + 1, rows.back());
    Components found;
    found.label.resize(all);
    connected_components(all, rows.data(), neighbor, found.label.data());
    found.count = all ? *std::max_element(found.label.begin(), found.label.end()) + 1 : 0;

    // The least id of all atoms that hang together, which spreads from process to process.
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    std::vector<int64_t> least(found.count, kNone), seen(ids_);
    seen.resize(all);
    for (int64_t i = 0; i < own(); ++i) least[found.label[i]] = std::min(least[found.label[i]], ids_[i]);
    bool changed = true;
    while (any(changed)) {
        for (int64_t i = 0; i < own(); ++i) seen[i] = least[found.label[i]];
        const int64_t bytes = sizeof(int64_t);
        refresh(
            1, &bytes, [](void* of, int64_t atom, int) -> void* { return static_cast<int64_t*>(of) + atom; },
            seen.data());
        changed = false;
        for (int64_t i = own(); i < all; ++i) {
            int64_t& here = least[found.label[i]];
            if (here == kNone || seen[i] >= here) continue;  // ghosts among themselves, or nothing new
            here = seen[i];
            changed = true;
        }
    }

    enum : char { kOwn = 1, kElsewhere = 2 };
    std::vector<char> known(found.count);
    for (int64_t i = 0; i < all; ++i) known[found.label[i]] |= i < own() ? kOwn : kElsewhere;
    for (const int64_t atom : told_) known[found.label[atom]] |= kElsewhere;
    for (int64_t c = 0; c < found.count; ++c)
        if (known[c] == (kOwn | kElsewhere)) found.shared.push_back(c), found.name.push_back(least[c]);
    return found;
}

void Domain::sum_shared(const Components& components, double* rows, int64_t width) {
    const auto count = static_cast<int64_t>(components.shared.size());
    std::vector<double> shared(count * width);
    for (int64_t k = 0; k < count; ++k)
        std::copy_n(rows + components.shared[k] * width, width, shared.data() + k * width);
    sum_named(components.name.data(), shared.data(), count, width);
    for (int64_t k = 0; k < count; ++k)
        std::copy_n(shared.data() + k * width, width, rows + components.shared[k] * width);
}

}  // namespace mdtrajnet
