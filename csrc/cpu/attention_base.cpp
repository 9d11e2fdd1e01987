// The attention block for one instruction set; the build gives this file its flags.
#define MDTRAJNET_KERNELS attention_kernels_base
#define MDTRAJNET_INSTRUCTION_SET "base"
#include "attention_unit.hpp"
