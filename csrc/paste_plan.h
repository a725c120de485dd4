// Where patches lie on canvases: the region that each touches, and the plans of the crop of the patch that fills it.
#pragma once

#include "operators.h"

namespace diffcrop {

// A patch in its region, rows [top, top + height) and columns [left, left + width) of its canvas: the crop of the patch
// that fills these, and where derivatives are wanted its transpose and its derivatives.
template <class A>
struct Placed {
  bool finite = false, there = false;
  int64_t canvas = -1, top = 0, left = 0;
  BoxPlan<A> plan, slopes;
  double by_x = 0, by_y = 0;
  int64_t below = 0;  // where its region begins among what is kept

  int64_t height() const { return plan.y.outputs; }
  int64_t width() const { return plan.x.outputs; }
};

// Patches of a call where they lie. Stays for the next call, as getting memory takes longer than a small paste.
template <class A>
class Layout {
 public:
  struct Wanted {
    bool patches = false, boxes = false;
  };

  // Those of `rows`, in this order.
  void place(const Tensor& patches, const Boxes& boxes, const Sizes& shape, const Options& options, bool lookups,
             const Wanted& wanted, const std::vector<int64_t>& rows);

  // Once they are done with: many do not stay in memory.
  void release();

  std::span<Placed<A>> all() { return {placed_.data(), static_cast<size_t>(used_)}; }

 private:
  std::vector<Placed<A>> placed_;
  int64_t used_ = 0;
};

// The rows of boxes that name each canvas, in their order; what names none is in no list.
std::vector<std::vector<int64_t>> lists_of(const Boxes& boxes, int64_t count);

}  // namespace diffcrop
