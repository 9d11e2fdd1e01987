// The launcher of cuda/conservation.hpp for ctypes.  Returns null, or the message of the exception.
#include "cuda/conservation.hpp"

using namespace mdtrajnet;

EMULATION_EXPORT const char* emulated_internal_velocities(std::int64_t times, std::int64_t atoms,
                                                          const double* positions, const double* velocities,
                                                          const double* masses, const std::int64_t* component,
                                                          const bool* isolated, void* workspace, double* out) {
    return message_of([&] {
        cuda::internal_velocities({times, atoms, positions, velocities, masses, component, isolated}, workspace, out,
                                  nullptr);
    });
}
