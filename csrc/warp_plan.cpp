// Compiled without fused multiply-adds, as plan.cpp is: weights round as those of the reference do.
#include <cmath>

#include "warp.h"

namespace diffcrop {
namespace {

double keys(double a, double x) {
  x = std::abs(x);
  if (x <= 1) return 1 + x * x * (-(a + 3) + x * (a + 2));
  return x < 2 ? -4 * a + x * (8 * a + x * (-5 * a + x * a)) : 0;
}

double filter(const Surface& surface, double x) {
  switch (surface.mode) {
    case Mode::bicubic:
      return keys(surface.a, x);
    case Mode::lanczos3:
      return std::abs(x) < 3 ? Lanczos3::at(x).first : 0;
    default:
      return std::max(1 - std::abs(x), 0.0);
  }
}

int64_t nearest_on_axis(double above, double z, int64_t pixels, const Surface& surface) {
  if (surface.align_corners && pixels == 1) return 0;
  const double far = kEndless * z;
  double c = (std::abs(above) > far ? (above < 0 ? -kEndless : kEndless) : above / z) - 0.5;
  const auto count = static_cast<double>(pixels);
  if (surface.periodic()) {
    const double period = surface.padding == Padding::circular ? count : 2 * count - (surface.align_corners ? 2 : 0);
    if (std::abs(c) > 1073741824.0) c -= c - modulo(c, period);
  } else {
    c = std::clamp(c, -3.0, count + 3);
  }
  return folded(floored(c + kSlack * (2 + std::abs(c)) + 0.5), pixels, surface);
}

}  // namespace

std::pair<int64_t, int64_t> nearest_pixel(const WarpPlan& plan, const Surface& surface, double u, double v) {
  const auto row = [&](int i) { return plan.m[3 * i] * u + (plan.m[3 * i + 1] * v + plan.m[3 * i + 2]); };
  const double z = row(2);
  if (!(z > 0)) return {-1, -1};
  return {nearest_on_axis(row(1), z, surface.height, surface), nearest_on_axis(row(0), z, surface.width, surface)};
}

Reduction make_reduction(int64_t m, const Surface& surface) {
  Reduction result;
  result.m = m;
  if (m <= 1) return result;
  if (surface.mode == Mode::area) {
    result.weight.assign(m, 1.0 / static_cast<double>(m));
    return result;
  }
  const int64_t reach = surface.mode == Mode::bicubic ? 2 : surface.mode == Mode::lanczos3 ? 3 : 1;
  result.weight.clear();
  double total = 0;
  for (int64_t k = -reach * m; k < (reach + 1) * m; ++k) {
    // Of the sample of the same name in the output that lies around 0.
    const double x = (static_cast<double>(k) + 0.5) / static_cast<double>(m) - 0.5;
    const double weight = std::abs(x) < static_cast<double>(reach) ? filter(surface, x) : 0;
    if (result.weight.empty() && weight == 0) continue;
    if (result.weight.empty()) result.first = k;
    result.weight.push_back(weight);
    total += weight;
  }
  while (result.weight.back() == 0) result.weight.pop_back();
  for (double& weight : result.weight) weight /= total;
  return result;
}

void plan_warp(WarpPlan& plan, const std::array<double, 9>& matrix, int64_t height, int64_t width) {
  const double z =
      matrix[6] * (0.5 * static_cast<double>(width)) + (matrix[7] * (0.5 * static_cast<double>(height)) + matrix[8]);
  plan.sign = z < 0 ? -1 : 1;
  for (int i = 0; i < 9; ++i) plan.m[i] = plan.sign * matrix[i];
  plan.affine = plan.m[6] == 0 && plan.m[7] == 0 && plan.m[8] == 1;
}

}  // namespace diffcrop
