// The kernels of warps for x86-64 with AVX-512.
#include "warp.h"

// Marked functions, not options for the whole file: with those the linker could take inline functions of the
// standard library from here for everybody.
#if DIFFCROP_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi,bmi2,prefer-vector-width=512")
#endif
#define DIFFCROP_LEVEL avx512
#define DIFFCROP_LOOKUPS 1
#define DIFFCROP_VECTOR_BYTES 32
#include "vectors.h"
#include "warp_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
