// The kernels of warps for the oldest processors that the compiler serves.
#include "warp.h"

#define DIFFCROP_LEVEL plain
#define DIFFCROP_LOOKUPS 0
#define DIFFCROP_VECTOR_BYTES 16
#include "warp_kernels.h"
