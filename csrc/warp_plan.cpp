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

// Where the triangle ends whose values at whole numbers have this variance. One that ends at T in (K, K + 1] has
// 2 sum (1 - k / T) k^2 / (1 + 2 sum (1 - k / T)), k from 1 to K.
double support_of(double variance) {
  const double last = std::max(std::ceil(std::sqrt(1 + 6 * variance) - 1), 1.0), twice = last * (last + 1);
  const double squares = twice * (2 * last + 1) / 3, cubes = twice * twice / 2;
  return (cubes - variance * twice) / (squares - variance * (1 + 2 * last));
}

// In units of the distance of samples; see _weights in _impl/warp.py.
double support_of(double s, double m, Mode mode) {
  if (mode == Mode::bilinear) return support_of((1 - 1 / (s * s)) * m * m / 6);
  return std::max(m * std::cbrt(1 - 1 / (s * s * s * s)), 1.0);
}

Reduction make_mean(int64_t reduction, double s) {
  Reduction result;
  const bool three = 3 * reduction < 5 * kUnit;
  result.m = three ? 3 : (reduction + kUnit - 1) / kUnit;
  result.middle = 0.5;
  const double all = three ? 2 * s - 1 : static_cast<double>(result.m);
  result.weight.assign(result.m, 1 / all);
  if (three) result.weight[0] = result.weight[2] = (s - 1) / all;
  return result;
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

Reduction make_reduction(int64_t reduction, const Surface& surface) {
  reduction = std::clamp(reduction, kUnit, kMostSamples * kUnit);
  if (reduction == kUnit) return {};
  const double s = static_cast<double>(reduction) / kUnit;
  if (surface.mode == Mode::area) return make_mean(reduction, s);
  Reduction result;
  result.m = (reduction + kUnit - 1) / kUnit;
  result.middle = static_cast<double>(result.m) / 2;
  const double support = support_of(s, static_cast<double>(result.m), surface.mode);
  const int64_t reach = (surface.mode == Mode::bicubic ? 2 : surface.mode == Mode::lanczos3 ? 3 : 1) * result.m;
  result.weight.clear();
  double total = 0;
  for (int64_t k = -reach; k <= reach; ++k) {
    const double weight = filter(surface, static_cast<double>(k) / support);
    if (result.weight.empty() && weight == 0) continue;
    if (result.weight.empty()) result.first = k;
    result.weight.push_back(weight);
    total += weight;
  }
  while (result.weight.back() == 0) result.weight.pop_back();
  if (result.length() == 1) return {};
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
