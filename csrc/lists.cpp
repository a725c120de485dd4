// Crops of images of different sizes: the operators on a list of tensors (C, H, W), of which each box names one.
//
// The passes are those of crop.cpp, box by box, so that bits do not tell a list from calls for each of its images. All
// boxes are planned and shared out among the threads together, and written to their rows of the one result.

#include "nearest.h"
#include "operators.h"
#include "pieces.h"

namespace {

using namespace diffcrop;

using List = std::vector<Tensor>;

// An image (C, H, W), or its gradient.
template <class T>
struct Member {
  View<T> view;
  Sizes pixels;
  bool interleaved;  // whether the channels of a pixel are side by side
};

template <class T>
Member<T> member_of(const Tensor& image) {
  const View<T> view{data_of<T>(image), image.stride(0), image.stride(1), image.stride(2)};
  const int64_t channels = image.size(0);
  return {view, {image.size(1), image.size(2)}, channels > 1 && view.channel == 1 && view.column == channels};
}

template <class T>
std::vector<Member<T>> members_of(const List& images) {
  std::vector<Member<T>> members;
  members.reserve(images.size());
  for (const Tensor& image : images) members.push_back(member_of<T>(image));
  return members;
}

// Whether the channels are the innermost dimension, also in a slice: the layout of what is made of an image.
bool is_channels_last(const Tensor& image) {
  return image.size(0) > 1 && image.stride(0) == 1 && image.stride(2) != 1;
}

bool are_channels_last(const List& images) {
  return std::all_of(images.begin(), images.end(), is_channels_last);
}

// The image that box r reads, or null where it names none.
template <class T>
const Member<T>* image_of(const Boxes& boxes, const std::vector<Member<T>>& members, int64_t r) {
  const int64_t image = boxes.image(r);
  return image >= 0 && image < static_cast<int64_t>(members.size()) ? &members[image] : nullptr;
}

// Calls f(m, boxes) for the boxes whose images are read with m channels side by side: one, or where `together` all.
template <class T, class F>
void by_layout(const Boxes& boxes, const std::vector<Member<T>>& members, int64_t channels, bool together, const F& f) {
  std::vector<int64_t> rows[2];
  for (int64_t r = 0; r < boxes.size(); ++r) {
    const Member<T>* const image = image_of(boxes, members, r);
    rows[together && image != nullptr && image->interleaved].push_back(r);
  }
  if (!rows[0].empty()) f(int64_t{1}, rows[0]);
  if (!rows[1].empty()) f(channels, rows[1]);
}

// Plans the boxes `rows`, and calls f(first, plans) for runs of them. `need_of`: of an image.
template <class A, class T, class N, class F>
void each_run(const Boxes& boxes, const std::vector<Member<T>>& members, const std::vector<int64_t>& rows, int64_t most,
              const Sizes& size, const Options& options, const Need& shared, const N& need_of, const F& f) {
  const auto plan_one = [&](BoxPlan<A>& plan, int64_t i) {
    const Member<T>* const image = image_of(boxes, members, rows[i]);
    plan.valid = false;
    if (image != nullptr) boxes.plan<A>(plan, rows[i], size, image->pixels, options, need_of(*image));
  };
  boxes.each_run<A>(static_cast<int64_t>(rows.size()), most, size, plan_one, shared, f);
}

template <class T>
void crop_typed(const List& images, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const auto members = members_of<const T>(images);
  const int64_t channels = out.size(1);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  by_layout(boxes, members, channels, true, [&](int64_t m, const std::vector<int64_t>& rows) {
    const Pieces pieces(channels / m * size[0], 8 * size[1] * m);
    const Need shared{.across = true,
                      .ability = {},
                      .m = m,
                      .lookups = kernels.lookups,
                      .pixel = channels * static_cast<int64_t>(sizeof(T))};
    const auto need_of = [&](const Member<const T>& image) {
      Need need = shared;
      need.ability = {is_dense(image.view, m), m > 1 || pairs<T>(m)};
      return need;
    };
    const auto run = [&](int64_t first, const auto& plans) {
      pieces.share(plans, [&](const BoxPlan<A>& box, int64_t i, int64_t piece, Scratch<A>& scratch) {
        const auto view = view_of(out, target, rows[first + i]);
        const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
        if (!box.valid) return fill_rows(view, size[0], size[1], m, begin, end, nans<O>(channels).data());
        kernels.crop(box, members[box.image].view, view, begin, end, or_null(fill), scratch);
      });
    };
    each_run<A>(boxes, members, rows, boxes.run(), size, options, shared, need_of, run);
  });
}

template <class T>
void nearest_typed(const List& images, const Boxes& boxes, const Sizes& size, const Options& options,
                   const std::vector<double>& fills, const Tensor& out) {
  const auto members = members_of<const T>(images);
  const int64_t channels = out.size(1);
  auto* const target = data_of<T>(out);
  const auto fill = nearest_fill<T>(fills, channels);
  const Pieces pieces(channels * size[0], 2 * size[1]);
  by_layout(boxes, members, channels, false, [&](int64_t, const std::vector<int64_t>& rows) {
    const auto need_of = [](const Member<const T>&) { return Need(); };
    const auto run = [&](int64_t first, const auto& plans) {
      pieces.share(plans, [&](const BoxPlan<float>& box, int64_t i, int64_t piece, Scratch<float>&) {
        const auto view = view_of(out, target, rows[first + i]);
        const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
        if (box.valid) return nearest_rows<T>(box, members[box.image].view, view, begin, end, fill.get());
        fill_unknown(view, size, begin, end, channels, fill.get());
      });
    };
    each_run<float>(boxes, members, rows, boxes.run(), size, options, {}, need_of, run);
  });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const List& images, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const auto members = members_of<const T>(images);
  const int64_t channels = grad.size(1);
  const Sizes size = spatial(grad);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  by_layout(boxes, members, channels, true, [&](int64_t m, const std::vector<int64_t>& rows) {
    const Pieces pieces(channels / m * size[0], 12 * size[1] * m);
    const Need shared{.derivatives = true,
                      .across = true,
                      .back = true,
                      .ability = {},
                      .m = m,
                      .lookups = kernels.lookups,
                      .pixel = channels * static_cast<int64_t>(sizeof(T))};
    const auto need_of = [&](const Member<const T>& image) {
      Need need = shared;
      need.ability = {is_dense(image.view, m) && (m == 1 || fill.empty()), m > 1 || pairs<T>(m)};
      return need;
    };
    const auto run = [&](int64_t first, const auto& plans) {
      std::vector<BoxSum> parts(static_cast<int64_t>(plans.size()) * pieces.each);
      pieces.share(plans, [&](const BoxPlan<A>& box, int64_t i, int64_t piece, Scratch<A>& scratch) {
        if (!box.valid) return;
        parts[piece] = kernels.grad_boxes(box, members[box.image].view, view_of(grad, cotangent, rows[first + i]),
                                          pieces.begin(piece), pieces.end(piece), or_null(fill), scratch);
      });
      put_sums(out, plans, parts, pieces.each, [&](int64_t i) { return rows[first + i]; });
    };
    each_run<A>(boxes, members, rows, boxes.run(), size, options, shared, need_of, run);
  });
}

// How the gradient by an image is cut into pieces, of which the first has the number `begin`.
struct Cut {
  int64_t begin, rows, some, bands, blocks;
  Cut(int64_t begin, const Sizes& pixels, int64_t channels, int64_t m)
      : begin(begin),
        rows(std::min(kRows, pixels[0])),
        some(std::clamp<int64_t>(kElements / (rows * pixels[1] * m), 1, channels / m)),
        bands(ceil_div(pixels[0], rows)),
        blocks(ceil_div(channels / m, some)) {}
  int64_t end() const { return begin + bands * blocks; }
};

// The gradients by members [first, last), from the parts of each.
template <class G, class A>
void grad_members(const Kernels<G>& kernels, const std::vector<Member<G>>& members, int64_t first, int64_t last,
                  int64_t channels, const std::vector<std::vector<Contribution<G, A>>>& parts) {
  std::vector<Cut> cuts;
  int64_t work = 0;
  for (int64_t k = first; k < last; ++k) {
    const Member<G>& image = members[k];
    cuts.emplace_back(cuts.empty() ? 0 : cuts.back().end(), image.pixels, channels, image.interleaved ? channels : 1);
    work += 4 * channels * image.pixels[0] * image.pixels[1];
  }
  const int64_t count = cuts.back().end(), grain = std::max<int64_t>(kGrain / ceil_div(work, count), 1);
  torch::stable::parallel_for(0, count, grain, [&](int64_t from, int64_t to) {
    Scratch<A>& scratch = Scratch<A>::of_thread();
    const auto after = std::upper_bound(cuts.begin(), cuts.end(), from,
                                        [](int64_t piece, const Cut& cut) { return piece < cut.begin; });
    auto cut = after - 1;
    for (int64_t number = from; number < to; ++number) {
      if (number == cut->end()) ++cut;
      const int64_t k = first + (cut - cuts.begin()), piece = number - cut->begin;
      const Member<G>& image = members[k];
      const int64_t m = image.interleaved ? channels : 1;
      const int64_t c = piece / cut->bands * cut->some, begin = piece % cut->bands * cut->rows;
      kernels.grad_images(parts[k], image.view, image.pixels[1], m, c * m, std::min(c + cut->some, channels / m) * m,
                          begin, std::min(begin + cut->rows, image.pixels[0]), scratch);
    }
    scratch.clear();
  });
}

template <class G>
void grad_images_typed(const Tensor& grad, const Boxes& boxes, const Options& options,
                       const std::vector<int64_t>& place, const List& outs) {
  using A = SumOf<G>;
  const Kernels<G> kernels = kernels_of<G>();
  const auto members = members_of<G>(outs);
  const int64_t channels = grad.size(1), count = static_cast<int64_t>(outs.size());
  const auto* const cotangent = data_of<const G>(grad);
  std::vector<std::vector<int64_t>> rows_of(count);
  for (int64_t r = 0; r < boxes.size(); ++r) {
    const int64_t image = boxes.image(r);
    if (image >= 0 && image < static_cast<int64_t>(place.size()) && place[image] >= 0)
      rows_of[place[image]].push_back(r);
  }
  const Need shared{.back = true, .ability = {}, .ahead = static_cast<double>(grad.numel()) * sizeof(G) > kCached};
  std::vector<std::vector<Contribution<G, A>>> parts(count);
  std::vector<int64_t> rows, owner;
  // All boxes of an image are planned together, since every row of its gradient is written once; so are those of
  // further images up to a number that bounds the memory.
  for (int64_t first = 0, last; first < count; first = last) {
    rows.clear(), owner.clear();
    for (last = first; last < count; ++last) {
      if (last > first && rows.size() + rows_of[last].size() > kBoxes) break;
      rows.insert(rows.end(), rows_of[last].begin(), rows_of[last].end());
      owner.insert(owner.end(), rows_of[last].size(), last);
    }
    if (rows.empty()) {
      grad_members(kernels, members, first, last, channels, parts);
      continue;
    }
    const auto plan_one = [&](BoxPlan<A>& plan, int64_t i) {
      const Member<G>& image = members[owner[i]];
      Need need = shared;
      need.m = image.interleaved ? channels : 1;
      need.ability = {is_dense(view_of(grad, cotangent, 0), need.m), false};
      need.lookups = kernels.lookups;
      boxes.plan<A>(plan, rows[i], spatial(grad), image.pixels, options, need);
    };
    const auto run = [&](int64_t, const auto& plans) {
      for (size_t i = 0; i < plans.size(); ++i)
        if (plans[i].valid) parts[owner[i]].push_back({&plans[i], view_of(grad, cotangent, rows[i])});
      grad_members(kernels, members, first, last, channels, parts);
    };
    const auto all = static_cast<int64_t>(rows.size());
    boxes.each_run<A>(all, all, spatial(grad), plan_one, shared, run);
  }
}

void check_list(const List& images, const Sizes& size, const std::vector<double>& fill) {
  require(!images.empty(), "images must not be an empty list");
  const auto fits = [](int64_t n) { return n > 0 && n < (int64_t{1} << 31); };
  const int64_t channels = images[0].size(0);
  const ScalarType dtype = images[0].scalar_type();
  for (const Tensor& image : images)
    require(image.dim() == 3 && image.size(0) == channels && fits(image.size(1)) && fits(image.size(2)) &&
                image.scalar_type() == dtype,
            "images must have shape (C, H, W), not empty and below 2^31, and agree in channels and dtype");
  require(size.size() == 2 && fits(size[0]) && fits(size[1]), "size must be two numbers from 1 to 2^31 - 1");
  check_fill(fill, channels);
}

Tensor crop_list(const List& images, const Tensor& boxes_tensor, const Tensor& index, const Sizes& size,
                 const std::string& mode, bool antialias, const std::string& padding, const std::vector<double>& fill,
                 double parameter, bool align_corners) {
  check_list(images, size, fill);
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const OptionalTensor owner(index);
  const Boxes boxes(boxes_tensor, owner, static_cast<int64_t>(images.size()));
  const int64_t channels = images[0].size(0);
  const ScalarType dtype = images[0].scalar_type();
  const Tensor out = allocate({boxes.size(), channels, size[0], size[1]}, result_dtype(dtype, options.mode), images[0],
                              are_channels_last(images));
  if (channels == 0) return out;
  if (options.mode == Mode::nearest)
    dispatch_any(dtype, [&]<class T>() { nearest_typed<T>(images, boxes, size, options, fill, out); });
  else
    dispatch(dtype, [&]<class T>() { crop_typed<T>(images, boxes, size, options, fill, out); });
  return out;
}

void check_grad(const Tensor& grad, const List& images, const Boxes& boxes) {
  require(grad.dim() == 4 && grad.size(0) == boxes.size() && grad.size(1) == images[0].size(0),
          "grad must have shape (R, C, h, w)");
}

Tensor crop_list_grad_boxes(const Tensor& grad, const List& images, const Tensor& boxes_tensor, const Tensor& index,
                            const std::string& mode, bool antialias, const std::string& padding,
                            const std::vector<double>& fill, double parameter, bool align_corners) {
  check_list(images, spatial(grad), fill);
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const OptionalTensor owner(index);
  const Boxes boxes(boxes_tensor, owner, static_cast<int64_t>(images.size()));
  check_grad(grad, images, boxes);
  require(grad.scalar_type() == result_dtype(images[0].scalar_type(), options.mode),
          "grad must have the dtype of the crop");
  const Tensor out = allocate({boxes.size(), 4}, boxes_tensor.scalar_type(), boxes_tensor, false);
  dispatch(images[0].scalar_type(), [&]<class T>() { grad_boxes_typed<T>(grad, images, boxes, options, fill, out); });
  return out;
}

// The gradients by those of the images that are `wanted`, by number.
List crop_list_grad_images(const Tensor& grad, const List& images, const Tensor& boxes_tensor, const Tensor& index,
                           const Sizes& wanted, const std::string& mode, bool antialias, const std::string& padding,
                           const std::vector<double>&, double parameter, bool align_corners) {
  check_list(images, spatial(grad), {0});
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const OptionalTensor owner(index);
  const auto count = static_cast<int64_t>(images.size());
  const Boxes boxes(boxes_tensor, owner, count);
  check_grad(grad, images, boxes);
  require(grad.scalar_type() != ScalarType::Byte, "grad must be floating-point");
  std::vector<int64_t> place(count, -1);
  List outs;
  for (const int64_t k : wanted) {
    require(k >= 0 && k < count && place[k] < 0, "wanted must be different numbers of images");
    place[k] = static_cast<int64_t>(outs.size());
    const Tensor& image = images[k];
    const int64_t channels = image.size(0), height = image.size(1), width = image.size(2);
    if (is_channels_last(image))
      outs.push_back(
          torch::stable::select(allocate({1, channels, height, width}, grad.scalar_type(), grad, true), 0, 0));
    else
      outs.push_back(allocate({channels, height, width}, grad.scalar_type(), grad, false));
  }
  if (outs.empty() || grad.size(1) == 0) return outs;
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_images_typed<G>(grad, boxes, options, place, outs);
  });
  return outs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("crop_list", TORCH_BOX(&crop_list));
  library.impl("crop_list_grad_boxes", TORCH_BOX(&crop_list_grad_boxes));
  library.impl("crop_list_grad_images", TORCH_BOX(&crop_list_grad_images));
}
