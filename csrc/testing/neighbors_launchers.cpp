// The launchers of cuda/neighbors.hpp for ctypes.  Each returns null, or the message of the exception.
#include "cuda/neighbors_parts.hpp"  // for emulated_scan

using namespace mdtrajnet;

EMULATION_EXPORT std::size_t emulated_workspace_bytes(std::int64_t atoms, std::int64_t systems) {
    return cuda::workspace_bytes(atoms, systems);
}

EMULATION_EXPORT std::size_t emulated_skin_bytes(std::int64_t atoms, std::int64_t systems) {
    return cuda::skin_bytes(atoms, systems);
}

EMULATION_EXPORT const char* emulated_count_neighbors(const Systems* systems, double cutoff, std::int64_t capacity,
                                                      void* workspace, std::int64_t* row_ptr, cuda::Status* status) {
    return message_of([&] { cuda::count_neighbors(*systems, cutoff, capacity, workspace, row_ptr, status, nullptr); });
}

EMULATION_EXPORT const char* emulated_fill_neighbors(const Systems* systems, double cutoff, void* workspace,
                                                     const std::int64_t* row_ptr, std::int32_t* neighbor,
                                                     std::int32_t* shift, const cuda::Status* status) {
    return message_of(
        [&] { cuda::fill_neighbors(*systems, cutoff, workspace, row_ptr, neighbor, shift, status, nullptr); });
}

EMULATION_EXPORT const char* emulated_update_skin(const Systems* systems, double cutoff, double skin,
                                                  const cuda::SkinList* list, void* workspace) {
    return message_of([&] { cuda::update_skin(*systems, cutoff, skin, *list, workspace, nullptr); });
}

EMULATION_EXPORT const char* emulated_count_within(const Systems* systems, double cutoff, const cuda::SkinList* list,
                                                   std::int64_t capacity, void* workspace, std::int64_t* row_ptr,
                                                   cuda::Status* status) {
    return message_of(
        [&] { cuda::count_within(*systems, cutoff, *list, capacity, workspace, row_ptr, status, nullptr); });
}

EMULATION_EXPORT const char* emulated_fill_within(const Systems* systems, double cutoff, const cuda::SkinList* list,
                                                  const std::int64_t* row_ptr, std::int32_t* neighbor,
                                                  std::int32_t* shift, const cuda::Status* status) {
    return message_of([&] { cuda::fill_within(*systems, cutoff, *list, row_ptr, neighbor, shift, status, nullptr); });
}

EMULATION_EXPORT const char* emulated_edge_vectors(const Systems* systems, const double* velocities,
                                                   const std::int64_t* row_ptr, const std::int32_t* neighbor,
                                                   const std::int32_t* shift, float* r, float* w) {
    return message_of([&] { cuda::edge_vectors(*systems, velocities, row_ptr, neighbor, shift, r, w, nullptr); });
}

// The scan alone, which takes more items than a search here has atoms.
EMULATION_EXPORT const char* emulated_scan(std::int32_t* count, std::int64_t items, std::int64_t capacity,
                                           std::int64_t* sums, std::int64_t* out, cuda::Status* status) {
    return message_of([&] {
        cuda::Workspace w{};
        w.count = count, w.sums = sums;
        cuda::scan(w, items, out, capacity, status, nullptr, nullptr);
        cuda::check(cudaGetLastError(), "scan");
    });
}

EMULATION_EXPORT const char* emulated_connected_components(std::int64_t atoms, const std::int64_t* row_ptr,
                                                           const std::int32_t* neighbor, std::int64_t rounds,
                                                           std::int64_t* label, std::uint8_t* settled) {
    return message_of(
        [&] { cuda::connected_components(atoms, row_ptr, neighbor, int(rounds), label, settled, nullptr); });
}
