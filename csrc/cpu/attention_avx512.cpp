// The attention block for one instruction set; the build gives this file its flags.
#define MDTRAJNET_KERNELS attention_kernels_avx512
#define MDTRAJNET_INSTRUCTION_SET "avx512"
#include "attention_unit.hpp"
