// The calls of `paste`: tensors (N, channels, rows, columns), checked; and what these calls share.
//
// A canvas pixel reads the patch at the inverse box, so the part of a paste that touches a region of the canvas is a
// crop of the patch (paste_plan.h). Rows of canvases are cut into bands by sizes alone. Each is one thread's, which
// blends all its patches in their order, so the results have the same bits for any number of threads.
#pragma once

#include "paste_plan.h"

namespace diffcrop {

// How patches are blended: with their last channel as the matte, over each other or added up.
struct Rules {
  bool matte, over;
};

// Derivatives that are wanted; null: not.
struct PasteGradients {
  const Tensor *patches, *boxes, *canvas;
};

// Patches of A, the type of sums.
template <class A>
void paste_patches(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                   const Tensor* mask, const Rules& rules, const Options& options);
// Whole numbers are moved, not computed. T: any type of their size.
template <class T>
void move_patches(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                  const Tensor* mask, const Options& options);
template <class A>
void paste_gradients(const OptionalTensor& grad, const OptionalTensor& grad_mask, const Tensor& patches,
                     const Boxes& boxes, const OptionalTensor& canvas, const Sizes& shape, const Rules& rules,
                     const Options& options, const PasteGradients& by);

template <class A>
PasteKernels<A> paste_kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::paste_kernels<A>();
    case Level::avx2:
      return avx2::paste_kernels<A>();
#endif
    default:
      return plain::paste_kernels<A>();
  }
}

// Rows of a canvas that are one thread's.
struct Bands {
  int64_t rows, each;
  Bands(int64_t channels, int64_t height, int64_t width)
      : rows(std::clamp<int64_t>(kElements / std::max<int64_t>(channels * width, 1) / kBatch, 1, 8) * kBatch),
        each(ceil_div(height, rows)) {}
};

template <class A>
View<A> rows_of(const Tensor& tensor, A* data, int64_t canvas, int64_t top) {
  View<A> view = view_of(tensor, data, canvas);
  view.data += top * view.row;
  return view;
}

template <class A>
View<A> no_view() {
  return {nullptr, 0, 0, 0};
}

// Copies `height` rows of each channel, or makes them zeros where there is no source.
template <class A>
void copy_rows(const View<A>& to, const View<const A>& from, int64_t channels, int64_t height, int64_t width) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < height; ++i) {
      A* const row = to.at(c, i);
      const A* const source = from.data == nullptr ? nullptr : from.at(c, i);
      if (to.column == 1 && source == nullptr)
        std::fill_n(row, width, A(0));
      else if (to.column == 1 && from.column == 1)
        std::memcpy(row, source, width * sizeof(A));
      else
        for (int64_t j = 0; j < width; ++j) row[j * to.column] = source == nullptr ? A(0) : source[j * from.column];
    }
}

// The rows of a band that a patch touches, as rows of its region; and views of what is there.
template <class A>
struct Meeting {
  int64_t begin, end;
  Meeting(const Placed<A>& patch, int64_t top, int64_t bottom)
      : begin(std::max(top, patch.top) - patch.top), end(std::min(bottom, patch.top + patch.height()) - patch.top) {}
  bool empty() const { return begin >= end; }

  // A view of the band's rows from `top` on as rows of the region.
  static View<A> region(View<A> band, const Placed<A>& patch, int64_t top) {
    if (band.data != nullptr) band.data += (patch.top - top) * band.row + patch.left * band.column;
    return band;
  }
};

template <class A>
View<const A> readable(const View<A>& view) {
  return {view.data, view.channel, view.row, view.column};
}

}  // namespace diffcrop
