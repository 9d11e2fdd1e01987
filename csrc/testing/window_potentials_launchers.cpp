// The launchers of cuda/window_potentials.hpp for ctypes.  Each returns null, or the message of the exception.
#include "cuda/window_potentials.hpp"

#include "cpu/predictor.hpp"  // DensityNetwork

using namespace mdtrajnet;

EMULATION_EXPORT const char* emulated_window_bytes(const DensityNetwork* network, std::int64_t atoms,
                                                   std::int64_t slopes, std::int64_t* bytes) {
    return message_of([&] { *bytes = std::int64_t(cuda::window_potential_bytes(network->sizes, atoms, slopes)); });
}

EMULATION_EXPORT const char* emulated_window_potential(const DensityNetwork* network,
                                                       const AttentionGraph<float>* graph, const std::int64_t* species,
                                                       std::int64_t role, float* energy, double* slope,
                                                       void* workspace) {
    return message_of([&] {
        cuda::window_potential(network->sizes, network->weights_as<float>(), *graph, species, role, energy, slope,
                               workspace, nullptr);
    });
}
