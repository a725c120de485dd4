// All kernels of warps, for the instruction set that is asked for: warp_*.cpp include this alone.

// clang-format off: each builds on those before it
#include "warp_places.h"
#if DIFFCROP_LOOKUPS
#include "warp_vectors.h"
#endif
#include "warp_samples.h"
#include "warp_values.h"
#include "warp_cotangents.h"
#include "warp_matrices.h"
#include "warp_images.h"
#include "warp_jacobian.h"
// clang-format on

namespace diffcrop::DIFFCROP_LEVEL {

template <class T>
WarpKernels<T> warp_kernels() {
  return {warp_rows<T>, warp_jacobian_rows<T>, matrix_rows<T>, warp_image_rows<ResultOf<T>>};
}
template WarpKernels<double> warp_kernels();
template WarpKernels<float> warp_kernels();
template WarpKernels<Half> warp_kernels();
template WarpKernels<BFloat16> warp_kernels();
template WarpKernels<uint8_t> warp_kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
