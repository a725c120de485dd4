// The kernels of warps for x86-64 with AVX2 and FMA.
#include "warp.h"

// Marked functions, not options for the whole file: with those the linker could take inline functions of the
// standard library from here for everybody.
#if DIFFCROP_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
#define DIFFCROP_LEVEL avx2
#define DIFFCROP_LOOKUPS 0
#define DIFFCROP_VECTOR_BYTES 32
#include "warp_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
