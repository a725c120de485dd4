// Crops without arithmetic.
#pragma once

#include "kernels.h"
#include "volumes.h"

namespace diffcrop {

// Nearest keeps every dtype: elements are moved, not computed.
template <class T, class A>
void nearest_rows(const BoxPlan<A>& box, const View<const T>& image, const View<T>& out, int64_t begin, int64_t end,
                  const T* fills) {
  for (int64_t f = begin; f < end; ++f) {
    const auto [c, i] = row_at(box, f);
    const T fill = fills[c];
    const T* const row = image.at(c, box.y.start[i]);
    T* const to = out.at(c, i);
    for (int64_t j = 0; j < box.x.outputs; ++j) {
      const bool inside = box.y.count[i] > 0 && box.x.count[j] > 0;
      to[j * out.column] = inside ? row[box.x.start[j] * image.column] : fill;
    }
  }
}

// A brick of a volume's crop.
template <class T, class A>
void nearest_brick(const VolumePlan<A>& box, const Solid<const T>& volume, const Solid<T>& out, const Brick& brick,
                   const T* fills) {
  const T fill = fills[brick.c];
  for (int64_t j = brick.j; j < brick.j_end; ++j)
    for (int64_t i = brick.i; i < brick.i_end; ++i) {
      const T* const row = volume.at(brick.c, box.z.start[j], box.y.start[i]);
      T* const to = out.at(brick.c, j, i);
      const bool there = box.z.count[j] > 0 && box.y.count[i] > 0;
      for (int64_t k = 0; k < box.x.outputs; ++k)
        to[k * out.column] = there && box.x.count[k] > 0 ? row[box.x.start[k] * volume.column] : fill;
    }
}

}  // namespace diffcrop
