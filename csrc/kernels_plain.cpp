// The kernels for the oldest processors that the compiler serves.
#include "kernels.h"
#include "volumes.h"

#define DIFFCROP_LEVEL plain
#define DIFFCROP_LOOKUPS 0
#define DIFFCROP_VECTOR_BYTES 16
#include "gram.h"
#include "passes.h"
#include "points.h"
#include "resample.h"
#include "superimpose.h"
#include "volume_passes.h"
