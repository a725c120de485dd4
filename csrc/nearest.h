// Crops without arithmetic.
#pragma once

#include "kernels.h"

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

}  // namespace diffcrop
