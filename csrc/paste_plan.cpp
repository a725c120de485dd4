// Compiled apart from the calls: boxes become regions and plans.
#include "paste_plan.h"

namespace diffcrop {
namespace {

// A side shorter than this is empty: quotients by it must not overflow.
constexpr double kLeast = 1e-30;

double reach_of(const Options& options, double width) {
  switch (options.mode) {
    case Mode::bicubic:
      return 2 * width;
    case Mode::lanczos3:
      return 3 * width;
    case Mode::area:
      return 0.5 * (width + 1);
    case Mode::gaussian:
      return 6 * options.parameter * width;
    default:
      return width;
  }
}

// One axis of a paste: the canvas pixels [first, last) that a patch of n pixels touches, and their ends in the patch.
struct Place {
  double lo, side, n;
  int64_t first = 0, last = 0;

  Place(double lo, double hi, int64_t n, int64_t pixels, const Options& options)
      : lo(lo), side(hi - lo), n(static_cast<double>(n)) {
    if (!(std::abs(side) >= kLeast)) return;
    const double step = std::abs(side) / this->n, width = options.antialias ? std::max(1 / step, 1.0) : 1.0;
    const double low = std::min(lo, hi), high = std::max(lo, hi), end = static_cast<double>(pixels);
    const double margin = step * (reach_of(options, width) - 0.5) + 1e-9 * (1 + std::abs(lo) + std::abs(hi));
    // Pixel j has its centre at j + 1/2.
    const double begin = std::clamp(std::ceil(low - margin - 0.5), 0.0, end);
    first = static_cast<int64_t>(begin);
    last = static_cast<int64_t>(std::clamp(std::floor(high + margin - 0.5) + 1, begin, end));
  }

  int64_t length() const { return last - first; }
  double in_patch(int64_t edge) const { return (static_cast<double>(edge) - lo) * (n / side); }

  // The plan's derivatives are those by the ends of the region in the patch; what is wanted is by lo and hi. With p_j
  // the centre of pixel j, c_j = (p_j - lo) n / side - 1/2 and the width n / |side|,
  //
  //   d c_j / d lo = -n / side (1 - f_j)   d c_j / d hi = -n / side f_j   with f_j = (p_j - lo) / side,
  //   d width / d hi = -n / side / |side|, by lo the negative.
  //
  // So that f_j are the plan's fractions and 1 / |side| its slope, and -n / side is a factor of all.
  template <class A>
  void by_sides(AxisPlan<A>& plan) const {
    for (int64_t j = 0; j < plan.outputs; ++j) plan.fraction[j] = (static_cast<double>(first + j) + 0.5 - lo) / side;
    if (plan.width_slope != 0) plan.width_slope = 1 / std::abs(side);
  }
  double factor() const { return -n / side; }
};

}  // namespace

template <class A>
void Layout<A>::place(const Tensor& patches, const Boxes& boxes, const Sizes& shape, const Options& options,
                      bool lookups, const Wanted& wanted, const std::vector<int64_t>& rows) {
  const Sizes sides = spatial(patches);
  const bool dense = patches.stride(3) == 1;
  const Need forward{.across = true, .back = wanted.patches, .ability = {dense, pairs<A>(1)}, .lookups = lookups};
  const Need slopes{
      .derivatives = true, .across = true, .back = true, .ability = {dense, pairs<A>(1)}, .lookups = lookups};
  if (placed_.size() < rows.size()) placed_.resize(rows.size());
  used_ = static_cast<int64_t>(rows.size());
  parallel(used_, kGrain / (64 * 2 * (sides[0] + sides[1])), [&](int64_t k) {
    const int64_t r = rows[k];
    Placed<A>& mine = placed_[k];
    mine.canvas = boxes.image(r);
    mine.finite = boxes.is_sound(r) && mine.canvas >= 0 && mine.canvas < shape[0];
    mine.there = false;
    if (!mine.finite) return;
    const Place x(boxes.at(r, 0), boxes.at(r, 2), sides[1], shape[3], options);
    const Place y(boxes.at(r, 1), boxes.at(r, 3), sides[0], shape[2], options);
    mine.there = x.length() > 0 && y.length() > 0;
    if (!mine.there) return;
    const std::array<double, 4> box = {x.in_patch(x.first), y.in_patch(y.first), x.in_patch(x.last),
                                       y.in_patch(y.last)};
    mine.top = y.first, mine.left = x.first;
    const Sizes size = {y.length(), x.length()};
    plan_box<A>(mine.plan, box, size, sides, options, forward);
    if (!wanted.boxes) return;
    plan_box<A>(mine.slopes, box, size, sides, options, slopes);
    y.by_sides(mine.slopes.y), x.by_sides(mine.slopes.x);
    mine.by_y = y.factor(), mine.by_x = x.factor();
  });
}

template <class A>
void Layout<A>::release() {
  size_t room = 0;
  for (const Placed<A>& patch : placed_) room += room_of<A>(patch.plan) + room_of<A>(patch.slopes);
  if (room > kMostKept) std::vector<Placed<A>>().swap(placed_);
}

template class Layout<double>;
template class Layout<float>;

// The rows of boxes that name each canvas, in their order; what names none is in no list.
std::vector<std::vector<int64_t>> lists_of(const Boxes& boxes, int64_t count) {
  std::vector<std::vector<int64_t>> result(count);
  for (int64_t r = 0; r < boxes.size(); ++r) {
    const int64_t canvas = boxes.image(r);
    if (canvas >= 0 && canvas < count) result[canvas].push_back(r);
  }
  return result;
}

}  // namespace diffcrop
