// The kernels of signals for the oldest processors that the compiler serves.
#include "signals.h"

#define DIFFCROP_LEVEL plain
#define DIFFCROP_LOOKUPS 0
#define DIFFCROP_VECTOR_BYTES 16
#include "passes.h"
#include "signal_passes.h"
