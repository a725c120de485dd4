// What warps work on, and where those of each instruction set are found. No PyTorch in here.
//
// A box has a matrix M that takes (u, v, 1), a point of its crop, to (X, Y, Z), a point of the image (X / Z, Y / Z).
// Its samples lie on a lattice, m to an output along an axis, and an output is a weighted sum of samples. A sample
// reads the pixels around its position (X / Z - 1/2, Y / Z - 1/2) on the axes of pixel indices.
#pragma once

#include <array>
#include <numeric>
#include <span>
#include <vector>

#include "kernels.h"

namespace diffcrop {

// Samples that are worked on together, the most pixels that one reads along an axis, and the most channels that share
// what is known of a position.
constexpr int64_t kSpots = 16;
constexpr int kMostTaps = 6;
constexpr int64_t kShared = 16;
// No box has more samples an axis and output. Reductions are given in parts of 1 / kUnit.
constexpr int64_t kMostSamples = 16, kUnit = 256;
// Numbers of the part of an image's gradient that a thread adds to at a time, and the most rows of it.
constexpr int64_t kTile = 1 << 17, kMostRows = 64;
// Positions farther out are as good as infinity: the nearest such place serves, and nothing moves there.
constexpr double kEndless = 4503599627370496.0;

// The least whole number that is not below a / b, or 0.
inline int64_t first_of(int64_t a, int64_t b) {
  return a <= 0 ? 0 : (a + b - 1) / b;
}

// One axis of a crop: output j is the sum of weight[t] times sample j m + first + t, and begins where sample j m would
// lie if `middle` were 0.
struct Reduction {
  int64_t m = 1, first = 0;
  double middle = 0.5;
  std::vector<double> weight = {1.0};
  int64_t length() const { return static_cast<int64_t>(weight.size()); }
  // All samples of n outputs, counted from `first`.
  int64_t count(int64_t n) const { return (n - 1) * m + length(); }
  // Outputs that share a sample.
  int64_t overlap() const { return (length() + m - 1) / m; }
  // Where sample k, counted from `first`, lies.
  double place(int64_t k) const { return (static_cast<double>(k + first) + middle) / static_cast<double>(m); }
};

struct WarpPlan {
  bool valid = false;     // the matrix is finite and its image one of those given
  bool left_out = false;  // zeros, and no part in any gradient
  int64_t image = 0;
  double sign = 1;      // of the matrix given where that below is not its negative
  double m[9] = {};     // Z > 0 in front
  bool affine = false;  // Z = 1
  Reduction x, y;
};

// The surface that samples are taken from.
struct Surface {
  Mode mode;
  Padding padding;
  bool align_corners;
  double a;  // of Keys' cubic
  int taps;
  int64_t height, width;
  bool periodic() const { return padding == Padding::reflection || padding == Padding::circular; }
  // Whether samples far from a row of pixels may read it all the same.
  bool scattered() const { return periodic() || (align_corners && height == 1); }
};

// In [0, b) and exact, also far out.
inline double modulo(double a, double b) {
  const double r = std::fmod(a, b);
  return r < 0 ? r + b : r;
}

// The pixel that place k stands for, or -1.
inline int32_t folded(double k, int64_t pixels, const Surface& surface) {
  const auto last = static_cast<double>(pixels - 1);
  if (surface.padding == Padding::border) return static_cast<int32_t>(std::clamp(k, 0.0, last));
  if (!surface.periodic()) return k >= 0 && k <= last ? static_cast<int32_t>(k) : -1;
  if (k >= 0 && k <= last) return static_cast<int32_t>(k);
  if (surface.padding == Padding::circular) return static_cast<int32_t>(modulo(k, last + 1));
  const double period = surface.align_corners ? 2 * last : 2 * last + 2;
  k = modulo(k, period);
  return static_cast<int32_t>(k <= last ? k : (surface.align_corners ? period : period - 1) - k);
}

// The samples of an axis that is reduced by `reduction` / kUnit, and what they weigh in an output. `mode` and `a`: the
// filter.
Reduction make_reduction(int64_t reduction, const Surface& surface);

// Orients the matrix; `matrix` is finite.
void plan_warp(WarpPlan& plan, const std::array<double, 9>& matrix, int64_t height, int64_t width);

// Row and column of the pixel that `nearest` reads, or what is below 0.
std::pair<int64_t, int64_t> nearest_pixel(const WarpPlan& plan, const Surface& surface, double u, double v);

// One box's part in the gradient of its image.
template <class G>
struct WarpPart {
  const WarpPlan* plan;
  View<const G> grad;
  int64_t height, width;  // of the crop
};

// The operations on images that store T, for one instruction set; warp_values.h, warp_jacobian.h, warp_matrices.h and
// warp_images.h say what each does. [c, c_end) are at most kShared channels; `fill` has a value for every channel.
template <class T>
struct WarpKernels {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  void (*warp)(const WarpPlan&, const Surface&, const View<const T>& image, const View<O>& out, int64_t width,
               int64_t c, int64_t c_end, int64_t begin, int64_t end, const A* fill, Scratch<A>&);
  void (*jacobian)(const WarpPlan&, const Surface&, const View<const T>& image, const View<O>& out, int64_t width,
                   bool projective, int64_t c, int64_t c_end, int64_t begin, int64_t end, const A* fill, Scratch<A>&);
  void (*grad_matrices)(const WarpPlan&, const Surface&, const View<const T>& image, const View<const O>& grad,
                        int64_t height, int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end,
                        const A* fill, double* result, Scratch<A>&);
  void (*grad_images)(std::span<const WarpPart<O>>, const Surface&, const View<O>& out, int64_t c, int64_t c_end,
                      int64_t begin, int64_t end, Scratch<A>&);
};

namespace plain {
template <class T>
WarpKernels<T> warp_kernels();
}
#if DIFFCROP_X86
namespace avx2 {
template <class T>
WarpKernels<T> warp_kernels();
}
namespace avx512 {
template <class T>
WarpKernels<T> warp_kernels();
}
#endif

}  // namespace diffcrop
