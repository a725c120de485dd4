// The operators on crops: registered with PyTorch through its stable ABI.

#include "nearest.h"
#include "operators.h"
#include "pieces.h"
#include "signal_calls.h"
#include "volume_calls.h"

namespace {

using namespace diffcrop;

template <class T>
void crop_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1);
  // Channels stay side by side only where both ends have them so; else each is a plane of its own, with strides.
  const int64_t m = is_interleaved(images) && is_interleaved(out) ? channels : 1;
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels / m * size[0], 8 * size[1] * m);
  const Need need{.across = true,
                  .ability = {is_dense(view_of(images, source, 0), m), m > 1 || pairs<T>(m)},
                  .m = m,
                  .lookups = kernels.lookups,
                  .pixel = channels * static_cast<int64_t>(sizeof(T))};
  boxes.each_run<A>(boxes.run(), size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      const auto view = view_of(out, target, first + r);
      const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
      if (!box.valid) return fill_rows(view, size[0], size[1], m, begin, end, nans<O>(channels).data());
      kernels.crop(box, view_of(images, source, box.image), view, begin, end, or_null(fill), scratch);
    });
  });
}

template <class T>
void jacobian_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                    const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels * size[0], 32 * size[1]);
  const Need need{.derivatives = true, .across = true, .ability = {}, .lookups = kernels.lookups};
  boxes.each_run<A>(boxes.run(), size, as_image(spatial(images)), options, need, [&](int64_t first, const auto& plans) {
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      const int64_t width = 2 * boxes.axes() * size[1], begin = pieces.begin(piece), end = pieces.end(piece);
      const View<O> view{target + (first + r) * channels * size[0] * width, size[0] * width, width, 1};
      if (!box.valid) return fill_rows(view, size[0], width, 1, begin, end, nans<O>(channels).data());
      kernels.jacobian(box, view_of(images, source, box.image), view, begin, end, or_null(fill), scratch);
    });
  });
}

template <class T>
void gram_typed(const Tensor& images, const Boxes& boxes, const Tensor& targets, bool moments, double huber,
                const Options& options, const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1), columns = out.size(3);
  const Sizes size = spatial(targets);
  const auto* const source = data_of<const T>(images);
  const auto* const wanted = data_of<const A>(targets);
  auto* const result = data_of<double>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(size[0], 64 * size[1]);
  const Need need{.derivatives = true,
                  .across = true,
                  .ability = {},
                  .lookups = kernels.lookups,
                  .pixel = channels * static_cast<int64_t>(sizeof(T))};
  using Products = std::array<double, kMostProducts>;
  boxes.each_run<A>(boxes.run(), size, as_image(spatial(images)), options, need, [&](int64_t first, const auto& plans) {
    const auto count = static_cast<int64_t>(plans.size());
    std::vector<Products> parts(count * channels * pieces.each);
    const auto one = [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      if (!box.valid) return parts[piece].fill(std::numeric_limits<double>::quiet_NaN());
      parts[piece] = {};
      kernels.gram(box, view_of(images, source, box.image), view_of(targets, wanted, first + r),
                   piece / pieces.each % channels, pieces.begin(piece), pieces.end(piece), moments, huber,
                   or_null(fill), parts[piece].data(), scratch);
    };
    pieces.share(plans, one, channels);
    for (int64_t part = 0; part < count * channels; ++part) {
      Products total = {};
      for (int64_t piece = part * pieces.each; piece < (part + 1) * pieces.each; ++piece)
        for (int p = 0; p < kMostProducts; ++p) total[p] += parts[piece][p];
      double* const matrix = result + (first * channels + part) * columns * columns;
      const double* next = total.data();
      // Those with the column of ones come last.
      const int64_t rows = moments ? columns - 1 : columns;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i; j < rows; ++j, ++next) matrix[i * columns + j] = matrix[j * columns + i] = *next;
      for (int64_t i = 0; moments && i < columns; ++i, ++next)
        matrix[i * columns + rows] = matrix[rows * columns + i] = *next;
    }
  });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1), m = is_interleaved(images) ? channels : 1;
  const Sizes size = spatial(grad);
  const auto* const source = data_of<const T>(images);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels / m * size[0], 12 * size[1] * m);
  const Need need{
      .derivatives = true,
      .across = true,
      .back = true,
      .ability = {is_dense(view_of(images, source, 0), m) && (m == 1 || fill.empty()), m > 1 || pairs<T>(m)},
      .m = m,
      .lookups = kernels.lookups,
      .pixel = channels * static_cast<int64_t>(sizeof(T))};
  boxes.each_run<A>(boxes.run(), size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    std::vector<BoxSum> parts(static_cast<int64_t>(plans.size()) * pieces.each);
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      if (!box.valid) return;
      parts[piece] = kernels.grad_boxes(box, view_of(images, source, box.image), view_of(grad, cotangent, first + r),
                                        pieces.begin(piece), pieces.end(piece), or_null(fill), scratch);
    });
    put_sums(out, plans, parts, pieces.each, [&](int64_t r) { return first + r; });
  });
}

template <class G>
void grad_images_typed(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  using A = SumOf<G>;
  const Kernels<G> kernels = kernels_of<G>();
  const Sizes pixels = spatial(out);
  const int64_t count = out.size(0), channels = out.size(1), height = pixels[0], width = pixels[1];
  const int64_t m = is_interleaved(out) ? channels : 1, groups = channels / m;
  const auto* const cotangent = data_of<const G>(grad);
  auto* const target = data_of<G>(out);
  std::vector<std::vector<Contribution<G, A>>> parts(count);
  const auto pass = [&] {
    const int64_t rows = std::min(kRows, height), elements = rows * width * m;
    const int64_t some = std::clamp<int64_t>(kElements / elements, 1, groups);  // channels of a piece
    const int64_t bands = ceil_div(height, rows), blocks = ceil_div(groups, some);
    const int64_t grain = std::max<int64_t>(kGrain / (4 * elements * some), 1);
    torch::stable::parallel_for(0, count * blocks * bands, grain, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t image = piece / (blocks * bands), c = piece / bands % blocks * some, begin = piece % bands * rows;
        kernels.grad_images(parts[image], view_of(out, target, image), width, m, c * m, std::min(c + some, groups) * m,
                            begin, std::min(begin + rows, height), scratch);
      }
      scratch.clear();
    });
  };
  if (boxes.size() == 0) return pass();
  // Every row of the gradient is written once, by one thread, with all its boxes: they have to be planned together.
  const Need need{.back = true,
                  .ability = {is_dense(view_of(grad, cotangent, 0), m), false},
                  .m = m,
                  .lookups = kernels.lookups,
                  .ahead = static_cast<double>(grad.numel()) * sizeof(G) > kCached};
  boxes.each_run<A>(boxes.size(), spatial(grad), {height, width}, options, need, [&](int64_t, const auto& plans) {
    for (int64_t r = 0; r < boxes.size(); ++r)
      if (plans[r].valid) parts[plans[r].image].push_back({&plans[r], view_of(grad, cotangent, r)});
    pass();
  });
}

template <class T>
void nearest_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                   const std::vector<double>& fills, const Tensor& out) {
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<T>(out);
  const auto fill = nearest_fill<T>(fills, channels);
  const Pieces pieces(channels * size[0], 2 * size[1]);
  boxes.each_run<float>(
      boxes.run(), size, as_image(spatial(images)), options, {}, [&](int64_t first, const auto& plans) {
        pieces.share(plans, [&](const BoxPlan<float>& box, int64_t r, int64_t piece, Scratch<float>&) {
          const auto view = view_of(out, target, first + r);
          const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
          if (box.valid) return nearest_rows<T>(box, view_of(images, source, box.image), view, begin, end, fill.get());
          fill_unknown(view, size, begin, end, channels, fill.get());
        });
      });
}

void check_images(const Tensor& images, const Sizes& size) {
  const auto axes = static_cast<int64_t>(size.size());
  const auto least = [](const Sizes& sizes) { return *std::min_element(sizes.begin(), sizes.end()); };
  const auto most = [](const Sizes& sizes) { return *std::max_element(sizes.begin(), sizes.end()); };
  require(
      axes >= 1 && axes <= 3 && images.dim() == axes + 2 && least(spatial(images)) > 0,
      "images must have shape (B, C, W), (B, C, H, W) or (B, C, D, H, W), not empty, and size a number for each axis");
  require(least(size) > 0, "size must be at least 1 along every axis");
  // Runs of pixels are held in 32 bits.
  require(std::max(most(spatial(images)), most(size)) < (int64_t{1} << 31), "axes must be below 2^31");
}

// (N, channels, size).
Sizes shape_of(int64_t count, int64_t channels, const Sizes& size) {
  Sizes shape = {count, channels};
  shape.insert(shape.end(), size.begin(), size.end());
  return shape;
}

Tensor crop(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Sizes& size,
            bool channels_last, const std::string& mode, bool antialias, const std::string& padding,
            const std::vector<double>& fill, double parameter, bool align_corners) {
  check_images(images, size);
  check_fill(fill, images.size(1));
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0), images.dim() - 2);
  const ScalarType dtype = result_dtype(images.scalar_type(), options.mode);
  const Tensor out = allocate(shape_of(boxes.size(), images.size(1), size), dtype, images, channels_last);
  if (images.size(1) == 0) return out;
  if (boxes.axes() == 3)
    crop_volumes(images, boxes, size, options, fill, out);
  else if (options.mode == Mode::nearest)
    dispatch_any(images.scalar_type(),
                 [&]<class T>() { nearest_typed<T>(images, boxes, as_image(size), options, fill, out); });
  else if (boxes.axes() == 1)
    crop_signals(images, boxes, size, options, fill, out);
  else
    dispatch(images.scalar_type(), [&]<class T>() { crop_typed<T>(images, boxes, size, options, fill, out); });
  return out;
}

Tensor crop_jacobian(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Sizes& size,
                     const std::string& mode, bool antialias, const std::string& padding,
                     const std::vector<double>& fill, double parameter, bool align_corners) {
  check_images(images, size);
  check_fill(fill, images.size(1));
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0), images.dim() - 2);
  const ScalarType dtype = result_dtype(images.scalar_type(), options.mode);
  Sizes shape = shape_of(boxes.size(), images.size(1), size);
  shape.push_back(2 * boxes.axes());
  const Tensor out = allocate(shape, dtype, images, false);
  if (images.size(1) == 0) return out;
  if (boxes.axes() == 3)
    jacobian_volumes(images, boxes, size, options, fill, out);
  else
    dispatch(images.scalar_type(),
             [&]<class T>() { jacobian_typed<T>(images, boxes, as_image(size), options, fill, out); });
  return out;
}

Tensor crop_gram(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Tensor& targets,
                 const std::string& metric, double huber, const std::string& mode, bool antialias,
                 const std::string& padding, const std::vector<double>& fill, double parameter, bool align_corners) {
  require(targets.dim() == 4, "targets must have shape (R, C, h, w): of images alone");
  check_images(images, spatial(targets));
  check_fill(fill, images.size(1));
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0), images.dim() - 2);
  const bool moments = metric == "zncc", wide = images.scalar_type() == ScalarType::Double;
  require(moments || metric == "l2", "unknown metric");
  require(targets.size(0) == boxes.size() && targets.size(1) == images.size(1), "targets must have shape (R, C, h, w)");
  require(targets.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
          "targets must have the dtype of sums, float32 or with float64 images that");
  const int64_t columns = moments ? 7 : 5;
  const Tensor out = allocate({boxes.size(), images.size(1), columns, columns}, ScalarType::Double, images, false);
  if (images.size(1) > 0)
    dispatch(images.scalar_type(),
             [&]<class T>() { gram_typed<T>(images, boxes, targets, moments, huber, options, fill, out); });
  return out;
}

Tensor crop_grad_boxes(const Tensor& grad, const Tensor& images, const Tensor& boxes_tensor,
                       const OptionalTensor& index, const std::string& mode, bool antialias, const std::string& padding,
                       const std::vector<double>& fill, double parameter, bool align_corners) {
  check_images(images, spatial(grad));
  check_fill(fill, images.size(1));
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0), images.dim() - 2);
  require(grad.size(0) == boxes.size() && grad.size(1) == images.size(1), "grad must have shape (R, C, h, w)");
  require(grad.scalar_type() == result_dtype(images.scalar_type(), options.mode),
          "grad must have the dtype of the crop");
  const Tensor out = allocate({boxes.size(), 2 * boxes.axes()}, boxes_tensor.scalar_type(), boxes_tensor, false);
  if (boxes.axes() == 3)
    grad_boxes_of_volumes(grad, images, boxes, options, fill, out);
  else if (boxes.axes() == 1)
    grad_boxes_of_signals(grad, images, boxes, options, fill, out);
  else
    dispatch(images.scalar_type(), [&]<class T>() { grad_boxes_typed<T>(grad, images, boxes, options, fill, out); });
  return out;
}

Tensor crop_grad_images(const Tensor& grad, const Tensor& boxes_tensor, const OptionalTensor& index,
                        const Sizes& image_shape, bool channels_last, const std::string& mode, bool antialias,
                        const std::string& padding, const std::vector<double>&, double parameter, bool align_corners) {
  require(image_shape.size() >= 3 && image_shape.size() <= 5, "image_shape must be (B, C, H, W)");
  const Tensor out = allocate(image_shape, grad.scalar_type(), grad, channels_last);
  check_images(out, spatial(grad));
  const Options options = options_of(mode, antialias, padding, parameter, align_corners);
  const Boxes boxes(boxes_tensor, index, image_shape[0], out.dim() - 2);
  require(grad.size(0) == boxes.size() && grad.size(1) == image_shape[1], "grad must have shape (R, C, h, w)");
  require(grad.scalar_type() != ScalarType::Byte, "grad must be floating-point");
  if (image_shape[0] == 0 || image_shape[1] == 0) return out;
  if (boxes.axes() == 3) {
    grad_volumes(grad, boxes, options, out);
    return out;
  }
  if (boxes.axes() == 1) {
    grad_signals(grad, boxes, options, out);
    return out;
  }
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_images_typed<G>(grad, boxes, options, out);
  });
  return out;
}

// The level that the kernels run at, not what the processor could do.
std::string simd_level() {
  constexpr const char* names[] = {"default", "avx2", "avx512"};
  return names[static_cast<int>(level())];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("crop", TORCH_BOX(&crop));
  library.impl("crop_jacobian", TORCH_BOX(&crop_jacobian));
  library.impl("crop_gram", TORCH_BOX(&crop_gram));
  library.impl("crop_grad_boxes", TORCH_BOX(&crop_grad_boxes));
  library.impl("crop_grad_images", TORCH_BOX(&crop_grad_images));
}

// An op without tensor arguments has no backend to be dispatched by; this key also serves the case of none.
STABLE_TORCH_LIBRARY_IMPL(diffcrop, CompositeExplicitAutograd, library) {
  library.impl("simd_level", TORCH_BOX(&simd_level));
}
