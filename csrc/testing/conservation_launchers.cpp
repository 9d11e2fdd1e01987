// The launcher of cuda/conservation.hpp for ctypes.  Returns null, or the message of the exception.
#include "cuda/conservation.hpp"

#include <exception>
#include <string>

using namespace mdtrajnet;

EMULATION_EXPORT const char* emulated_internal_velocities(std::int64_t times, std::int64_t atoms,
                                                          const double* positions, const double* velocities,
                                                          const double* masses, const std::int64_t* component,
                                                          const bool* isolated, void* workspace, double* out) {
    static std::string message;
    try {
        cuda::internal_velocities({times, atoms, positions, velocities, masses, component, isolated}, workspace, out,
                                  nullptr);
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
    return nullptr;
}
