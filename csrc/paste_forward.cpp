// Values of `paste`.
#include "paste_calls.h"

namespace diffcrop {

template <class A>
void paste_patches(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                   const Tensor* mask, const Rules& rules, const Options& options) {
  static thread_local Layout<A> layout;
  const Kernels<A> kernels = kernels_of<A>();
  const PasteKernels<A> paste = paste_kernels_of<A>();
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const Sizes shape = {out.size(0), channels, height, width};
  const auto* const source = data_of<const A>(patches);
  auto* const target = data_of<A>(out);
  const auto canvases = lists_of(boxes, out.size(0));
  std::vector<int64_t> rows;
  for (const auto& list : canvases) rows.insert(rows.end(), list.begin(), list.end());
  std::vector<int64_t> first = {0};
  for (const auto& list : canvases) first.push_back(first.back() + static_cast<int64_t>(list.size()));
  layout.place(patches, boxes, shape, options, kernels.lookups, {}, rows);
  const auto placed = layout.all();
  const Bands bands(channels, height, width);
  const bool direct = out.stride(3) == 1;
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(bands.rows * width * channels, 1), 1);
  torch::stable::parallel_for(0, out.size(0) * bands.each, grain, [&](int64_t from, int64_t to) {
    Scratch<A>& scratch = Scratch<A>::of_thread();
    for (int64_t piece = from; piece < to; ++piece) {
      scratch.clear();
      const int64_t b = piece / bands.each, top = piece % bands.each * bands.rows;
      const int64_t bottom = std::min(top + bands.rows, height), count = bottom - top;
      const View<A> result = rows_of(out, target, b, top);
      View<A> band = result;
      if (!direct) band = {scratch.take(channels * count * width), count * width, width, 1};
      View<const A> below = readable(no_view<A>());
      if (canvas) below = rows_of(*canvas, data_of<const A>(*canvas), b, top);
      copy_rows<A>(band, below, channels, count, width);
      View<A> masks = no_view<A>();
      if (mask != nullptr) {
        masks = rows_of(*mask, data_of<A>(*mask), b, top);
        copy_rows<A>(masks, readable(no_view<A>()), 1, count, width);
      }
      for (int64_t k = first[b]; k < first[b + 1]; ++k) {
        const Placed<A>& patch = placed[k];
        if (!patch.there) continue;
        const Meeting<A> meeting(patch, top, bottom);
        if (meeting.empty()) continue;
        const auto mark = scratch.mark();
        const Blend<A> blend{Meeting<A>::region(band, patch, top),
                             Meeting<A>::region(masks, patch, top),
                             no_view<A>(),
                             channels,
                             rules.matte,
                             rules.over};
        paste.blend(patch.plan, view_of(patches, source, rows[k]), blend, meeting.begin, meeting.end, scratch);
        scratch.release(mark);
      }
      if (!direct) copy_rows<A>(result, readable(band), channels, count, width);
    }
    scratch.clear();
  });
  layout.release();
}

template <class T>
void move_patches(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                  const Tensor* mask, const Options& options) {
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const auto* const source = data_of<const T>(patches);
  auto* const target = data_of<T>(out);
  Layout<float> layout;
  std::vector<int64_t> rows(boxes.size());
  for (int64_t r = 0; r < boxes.size(); ++r) rows[r] = r;
  layout.place(patches, boxes, {out.size(0), channels, height, width}, options, false, {}, rows);
  const auto placed = layout.all();
  parallel(out.size(0), 1, [&](int64_t b) {
    View<const T> below = readable(no_view<T>());
    if (canvas) below = view_of(*canvas, data_of<const T>(*canvas), b);
    const View<T> to = view_of(out, target, b);
    copy_rows<T>(to, below, channels, height, width);
    View<float> masks = no_view<float>();
    if (mask != nullptr) {
      masks = view_of(*mask, data_of<float>(*mask), b);
      copy_rows<float>(masks, readable(no_view<float>()), 1, height, width);
    }
    for (int64_t r = 0; r < boxes.size(); ++r) {
      const Placed<float>& patch = placed[r];
      if (!patch.there || patch.canvas != b) continue;
      const View<const T> from = view_of(patches, source, r);
      const auto &y = patch.plan.y, &x = patch.plan.x;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < y.outputs; ++i)
          for (int64_t j = 0; y.count[i] > 0 && j < x.outputs; ++j) {
            if (x.count[j] == 0) continue;
            to.at(c, patch.top + i)[(patch.left + j) * to.column] = from.at(c, y.start[i])[x.start[j] * from.column];
            if (c == 0 && masks.data != nullptr) masks.at(0, patch.top + i)[patch.left + j] = 1;
          }
    }
  });
}

template void paste_patches<double>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                    const Rules&, const Options&);
template void paste_patches<float>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                   const Rules&, const Options&);
template void move_patches<uint8_t>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                    const Options&);
template void move_patches<uint16_t>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                     const Options&);
template void move_patches<uint32_t>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                     const Options&);
template void move_patches<uint64_t>(const Tensor&, const Boxes&, const OptionalTensor&, const Tensor&, const Tensor*,
                                     const Options&);

}  // namespace diffcrop
