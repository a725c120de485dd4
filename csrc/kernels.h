// What the operations on boxes work on, and where those of each instruction set are found. No PyTorch in here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "lanes.h"
#include "plan.h"
#include "storage.h"

// Functions can be compiled for another instruction set than the library where the compiler knows how to mark them.
#if defined(__x86_64__) && defined(__GNUC__)
#define DIFFCROP_X86 1
#include <immintrin.h>
#else
#define DIFFCROP_X86 0
#endif

namespace diffcrop {

// Memory for the rows of one thread: taken piece by piece, given back together.
template <class A>
class Scratch {
 public:
  // One that stays for the next call: getting memory from the system takes longer than a small crop.
  static Scratch& of_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

  A* take(int64_t n) {
    constexpr int64_t line = 64 / sizeof(A);
    n = (n + line - 1) / line * line;
    if (blocks_.empty() || used_ + n > blocks_.back().size) {
      const int64_t size = std::max<int64_t>({n, 4096, blocks_.empty() ? 0 : 2 * blocks_.back().size});
      blocks_.push_back({std::unique_ptr<A, Free>(static_cast<A*>(
                             ::operator new(static_cast<size_t>(size) * sizeof(A), std::align_val_t{64}))),
                         size});
      used_ = 0;
    }
    used_ += n;
    return blocks_.back().data.get() + (used_ - n);
  }
  // All pieces are given back; the largest block stays unless it is huge.
  void clear() {
    if (blocks_.size() > 1) blocks_.erase(blocks_.begin(), blocks_.end() - 1);
    if (!blocks_.empty() && blocks_.back().size > kMost) blocks_.clear();
    used_ = 0;
  }
  // Gives back what was taken since mark(), if that is all in one block.
  using Mark = std::pair<size_t, int64_t>;
  Mark mark() const { return {blocks_.size(), used_}; }
  void release(const Mark& mark) {
    if (blocks_.size() == mark.first) used_ = mark.second;
  }

 private:
  static constexpr int64_t kMost = 1 << 20;
  struct Free {
    void operator()(A* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  struct Piece {
    std::unique_ptr<A, Free> data;
    int64_t size;
  };
  std::vector<Piece> blocks_;
  int64_t used_ = 0;
};

// A box's plans, or that it is not finite or names no image.
template <class A>
struct BoxPlan {
  bool valid = false;
  int64_t image = 0;
  bool ahead = false;   // whether the image is probably not in a cache
  bool flat = false;    // whether this is a signal's, which has no y axis
  bool widens = false;  // whether the width of the filter depends on the box, where derivatives are asked for
  AxisPlan<A> y, x;
  Operator<A> across;  // x
  RowOrder order;
  // The transposed matrices.
  Band<A> y_back, x_back;
  Operator<A> back;  // x_back
  RowOrder order_back;
};

// A row of the result: output i of channel c, or of all channels where m > 1.
struct Row {
  int64_t c, i;
};

// Rows of one box are counted through its channels: row f is output f % h of channel f / h (times m: the first of those
// that are side by side).
template <class A>
Row row_at(const BoxPlan<A>& box, int64_t f) {
  return {f / box.y.outputs * box.across.m, f % box.y.outputs};
}

// The next row, without a division.
template <class A>
Row next(const BoxPlan<A>& box, Row row) {
  return row.i + 1 < box.y.outputs ? Row{row.c, row.i + 1} : Row{row.c + box.across.m, 0};
}

// A derivative by the ends of an axis.
struct AxisSum {
  double lo = 0, hi = 0;
};

// Sums that go on over many rows, a part in each lane, weighted for both ends of the axis.
struct DotLanes {
  double lo[kLanes] = {}, hi[kLanes] = {};
};

struct BoxSum {
  AxisSum y, x;
};

// Columns with a row of their own that products are made of, and the most pairs of these and of one of ones.
constexpr int kMostColumns = 6, kMostProducts = 28;

// One box's part in the gradient of its image.
template <class G, class A>
struct Contribution {
  const BoxPlan<A>* box;
  View<const G> grad;
};

// The operations on crops of images that store T, for one instruction set; resample.h says what each does.
template <class T>
struct Kernels {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  using Images = const View<const T>&;
  // Whether registers are looked up by permutations, which the plans are laid out for.
  bool lookups;
  void (*crop)(const BoxPlan<A>&, Images, const View<O>&, int64_t begin, int64_t end, const A* fill, Scratch<A>&);
  void (*jacobian)(const BoxPlan<A>&, Images, const View<O>&, int64_t begin, int64_t end, const A* fill, Scratch<A>&);
  void (*gram)(const BoxPlan<A>&, Images, const View<const A>& target, int64_t c, int64_t begin, int64_t end,
               bool moments, double huber, const A* fill, double* result, Scratch<A>&);
  BoxSum (*grad_boxes)(const BoxPlan<A>&, Images, const View<const O>&, int64_t begin, int64_t end, const A* fill,
                       Scratch<A>&);
  void (*grad_images)(const std::vector<Contribution<O, A>>&, const View<O>&, int64_t pixels, int64_t m, int64_t c,
                      int64_t c_end, int64_t begin, int64_t end, Scratch<A>&);
};

// What a patch is blended into, in coordinates of its region: rows of a canvas or of the derivative by it, side by
// side, and the same of the mask (data null: none). `kept` has room for what the canvas was (or for derivatives by the
// colour), then for the matte, then for what the mask was.
template <class A>
struct Blend {
  View<A> canvas, mask, kept;
  int64_t channels;
  bool matte, over;
};

// The operations on one patch; superimpose.h says what each does.
template <class A>
struct PasteKernels {
  void (*blend)(const BoxPlan<A>&, const View<const A>& patch, const Blend<A>&, int64_t begin, int64_t end,
                Scratch<A>&);
  void (*turn)(const BoxPlan<A>&, const Blend<A>&, int64_t begin, int64_t end, Scratch<A>&);
  BoxSum (*shares)(const BoxPlan<A>&, const View<const A>& grad, int64_t begin, int64_t end, Scratch<A>&);
};

// Each is compiled in a file of its own, for double, float, Half, BFloat16 and uint8_t, those of patches for the
// types of sums.
namespace plain {
template <class T>
Kernels<T> kernels();
template <class A>
PasteKernels<A> paste_kernels();
}  // namespace plain
#if DIFFCROP_X86
namespace avx2 {
template <class T>
Kernels<T> kernels();
template <class A>
PasteKernels<A> paste_kernels();
}  // namespace avx2
namespace avx512 {
template <class T>
Kernels<T> kernels();
template <class A>
PasteKernels<A> paste_kernels();
}  // namespace avx512
#endif

}  // namespace diffcrop
