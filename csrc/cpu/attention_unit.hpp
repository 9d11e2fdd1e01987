// The table of functions of one instruction set.  Included by one source file for each.
#include "attention_backward.hpp"
#include "potential_forward.hpp"
#include "window_potentials.hpp"

namespace mdtrajnet {

const AttentionKernels& MDTRAJNET_KERNELS() {
    static constexpr AttentionKernels kernels = {
        MDTRAJNET_INSTRUCTION_SET,
        {pack<float>, release<float>, forward<float>, backward<float>, potential<float>, window_potential<float>,
         window_gradients<float>},
        {pack<double>, release<double>, forward<double>, backward<double>, potential<double>, window_potential<double>,
         window_gradients<double>},
    };
    return kernels;
}

}  // namespace mdtrajnet
