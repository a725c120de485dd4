// Registers the kernels of warps with PyTorch: unpacks tensors, plans the boxes, shares the work among threads.

#include "warp.h"

#include "operators.h"

namespace {

using namespace diffcrop;

template <class T>
WarpKernels<T> warp_kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::warp_kernels<T>();
    case Level::avx2:
      return avx2::warp_kernels<T>();
#endif
    default:
      return plain::warp_kernels<T>();
  }
}

Surface surface_of(const std::string& mode, bool antialias, const std::string& padding, bool align_corners,
                   int64_t height, int64_t width) {
  const Options options = options_of(mode, antialias, padding, 0.5, align_corners);
  require(options.mode != Mode::gaussian && options.padding != Padding::renormalize, "unknown mode or padding_mode");
  const int taps = options.mode == Mode::nearest    ? 1
                   : options.mode == Mode::bicubic  ? 4
                   : options.mode == Mode::lanczos3 ? 6
                                                    : 2;
  return {options.mode, options.padding, align_corners, antialias ? -0.5 : -0.75, taps, height, width};
}

// The boxes of a call, planned.
class Warps {
 public:
  Warps(const Tensor& matrices, const OptionalTensor& index, const OptionalTensor& reductions, int64_t images,
        const Sizes& size, const Surface& surface) {
    const int64_t rows = matrices.size(0);
    require(matrices.dim() == 3 && matrices.size(1) == 3 && matrices.size(2) == 3,
            "matrices must have shape (R, 3, 3)");
    require(matrices.scalar_type() == ScalarType::Float || matrices.scalar_type() == ScalarType::Double,
            "matrices must be float32 or float64");
    if (index) {
      require(index->dim() == 1 && index->size(0) == rows, "index must have shape (R,)");
      require(index->scalar_type() == ScalarType::Long, "index must be int64");
    } else {
      require(rows == 0 || (images > 0 && rows % images == 0), "R must be a multiple of B");
    }
    if (reductions) {
      require(reductions->dim() == 2 && reductions->size(0) == rows && reductions->size(1) == 2,
              "reductions must have shape (R, 2)");
      require(reductions->scalar_type() == ScalarType::Long, "reductions must be int64");
    }
    plans_.resize(rows);
    for (int64_t r = 0; r < rows; ++r) {
      WarpPlan& plan = plans_[r];
      plan.image = index ? data_of<const int64_t>(*index)[r * index->stride(0)] : r / (rows / images);
      std::array<double, 9> matrix;
      plan.valid = plan.image >= 0 && plan.image < images;
      for (int64_t i = 0; i < 9; ++i) {
        matrix[i] = number(matrices, r * matrices.stride(0) + i / 3 * matrices.stride(1) + i % 3 * matrices.stride(2));
        plan.valid = plan.valid && std::abs(matrix[i]) <= kFarthest;  // NaN is not
      }
      int64_t steps[2] = {kUnit, kUnit};
      if (reductions)
        for (int64_t i = 0; i < 2; ++i)
          steps[i] = data_of<const int64_t>(*reductions)[r * reductions->stride(0) + i * reductions->stride(1)];
      plan.left_out = steps[0] < 1 || steps[1] < 1;
      if (plan.left_out || !plan.valid) continue;
      plan.x = make_reduction(steps[0], surface);
      plan.y = make_reduction(steps[1], surface);
      plan_warp(plan, matrix, size[0], size[1]);
    }
  }

  int64_t size() const { return static_cast<int64_t>(plans_.size()); }
  const WarpPlan& operator[](int64_t r) const { return plans_[r]; }

 private:
  static double number(const Tensor& tensor, int64_t place) {
    if (tensor.scalar_type() == ScalarType::Double) return data_of<const double>(tensor)[place];
    return data_of<const float>(tensor)[place];
  }

  std::vector<WarpPlan> plans_;
};

// How the rows of crops are cut: by sizes alone, so that sums depend neither on the threads nor on the other boxes.
struct Parts {
  int64_t rows, groups, length, each;
  Parts(int64_t rows, int64_t width, int64_t channels)
      : rows(rows),
        groups(ceil_div(channels, kShared)),
        length(std::clamp<int64_t>(kPiece / (width * std::clamp<int64_t>(channels, 1, kShared)), 16, 256)),
        each(ceil_div(rows, length)),
        channels_(channels) {}

  struct Part {
    int64_t box, c, c_end, begin, end;
  };
  Part operator[](int64_t i) const {
    const int64_t group = i / each % groups, piece = i % each;
    return {i / each / groups, group * kShared, std::min((group + 1) * kShared, channels_), piece * length,
            std::min((piece + 1) * length, rows)};
  }
  int64_t of_box() const { return groups * each; }

 private:
  int64_t channels_;
};

template <class A, class F>
void share(int64_t count, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), [&](int64_t from, int64_t to) {
    Scratch<A>& scratch = Scratch<A>::of_thread();
    for (int64_t i = from; i < to; ++i) f(i, scratch);
    scratch.clear();
  });
}

template <class A>
std::vector<A> fills_of(const std::vector<double>& fill, int64_t channels) {
  std::vector<A> result(channels);
  for (int64_t c = 0; c < channels; ++c) result[c] = store<A>(fill[fill.size() == 1 ? 0 : c]);
  return result;
}

template <class O>
void set_rows(const View<O>& out, int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end, O value) {
  for (; c < c_end; ++c)
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < width; ++j) out.at(c, i)[j * out.column] = value;
}

template <class T>
void warp_typed(const Tensor& images, const Warps& boxes, const Surface& surface, const std::vector<double>& fill,
                const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const WarpKernels<T> kernels = warp_kernels_of<T>();
  const int64_t width = out.size(3);
  const std::vector<A> fills = fills_of<A>(fill, images.size(1));
  const Parts parts(out.size(2), width, images.size(1));
  share<A>(boxes.size() * parts.of_box(), 1, [&](int64_t i, Scratch<A>& scratch) {
    const auto [box, c, c_end, begin, end] = parts[i];
    const WarpPlan& plan = boxes[box];
    const auto view = view_of(out, data_of<O>(out), box);
    if (plan.left_out || !plan.valid) {
      const double value = plan.left_out ? 0 : std::numeric_limits<double>::quiet_NaN();
      return set_rows(view, width, c, c_end, begin, end, store<O>(value));
    }
    kernels.warp(plan, surface, view_of(images, data_of<const T>(images), plan.image), view, width, c, c_end, begin,
                 end, fills.data(), scratch);
  });
}

template <class T>
void jacobian_typed(const Tensor& images, const Warps& boxes, const Surface& surface, const std::vector<double>& fill,
                    const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const WarpKernels<T> kernels = warp_kernels_of<T>();
  const int64_t width = out.size(3), entries = out.size(4);
  const std::vector<A> fills = fills_of<A>(fill, images.size(1));
  const Parts parts(out.size(2), width * entries, images.size(1));
  share<A>(boxes.size() * parts.of_box(), 1, [&](int64_t i, Scratch<A>& scratch) {
    const auto [box, c, c_end, begin, end] = parts[i];
    const WarpPlan& plan = boxes[box];
    // Of five dimensions, but no volume: the last are the entries of a pixel.
    View<O> view{data_of<O>(out) + box * out.stride(0), out.stride(1), out.stride(2), out.stride(3)};
    if (plan.left_out || !plan.valid) {
      view.column = 1;
      const double value = plan.left_out ? 0 : std::numeric_limits<double>::quiet_NaN();
      return set_rows(view, width * entries, c, c_end, begin, end, store<O>(value));
    }
    kernels.jacobian(plan, surface, view_of(images, data_of<const T>(images), plan.image), view, width, entries == 9, c,
                     c_end, begin, end, fills.data(), scratch);
  });
}

template <class T>
void grad_matrices_typed(const Tensor& grad, const Tensor& images, const Warps& boxes, const Surface& surface,
                         const std::vector<double>& fill, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const WarpKernels<T> kernels = warp_kernels_of<T>();
  const int64_t height = grad.size(2), width = grad.size(3);
  const std::vector<A> fills = fills_of<A>(fill, images.size(1));
  const Parts parts(height, width, images.size(1));
  std::vector<std::array<double, 9>> sums(boxes.size() * parts.of_box());
  share<A>(static_cast<int64_t>(sums.size()), 1, [&](int64_t i, Scratch<A>& scratch) {
    const auto [box, c, c_end, begin, end] = parts[i];
    const WarpPlan& plan = boxes[box];
    sums[i].fill(0);
    if (plan.left_out || !plan.valid) return;
    kernels.grad_matrices(plan, surface, view_of(images, data_of<const T>(images), plan.image),
                          view_of(grad, data_of<const G>(grad), box), height, width, c, c_end, begin, end, fills.data(),
                          sums[i].data(), scratch);
  });
  for (int64_t r = 0; r < boxes.size(); ++r) {
    std::array<double, 9> total = {};
    if (!boxes[r].valid && !boxes[r].left_out) total.fill(std::numeric_limits<double>::quiet_NaN());
    for (int64_t i = r * parts.of_box(); i < (r + 1) * parts.of_box(); ++i)
      for (int k = 0; k < 9; ++k) total[k] += sums[i][k];
    for (int k = 0; k < 9; ++k) {
      if (out.scalar_type() == ScalarType::Double)
        data_of<double>(out)[r * 9 + k] = total[k];
      else
        data_of<float>(out)[r * 9 + k] = static_cast<float>(total[k]);
    }
  }
}

template <class G>
void grad_images_typed(const Tensor& grad, const Warps& boxes, const Surface& surface, const Tensor& out) {
  using A = SumOf<G>;
  const WarpKernels<G> kernels = warp_kernels_of<G>();
  const int64_t count = out.size(0), channels = out.size(1);
  std::vector<std::vector<WarpPart<G>>> parts(count);
  for (int64_t r = 0; r < boxes.size(); ++r)
    if (boxes[r].valid && !boxes[r].left_out)
      parts[boxes[r].image].push_back(
          {&boxes[r], view_of(grad, data_of<const G>(grad), r), grad.size(2), grad.size(3)});
  const int64_t together = std::min(channels, kShared), groups = ceil_div(channels, kShared);
  const int64_t rows = std::clamp<int64_t>(kTile / (surface.width * together), 8, kMostRows);
  const int64_t bands = ceil_div(surface.height, rows);
  share<A>(count * groups * bands, 1, [&](int64_t i, Scratch<A>& scratch) {
    const int64_t image = i / (groups * bands), group = i / bands % groups, begin = i % bands * rows;
    kernels.grad_images(parts[image], surface, view_of(out, data_of<G>(out), image), group * kShared,
                        std::min((group + 1) * kShared, channels), begin, std::min(begin + rows, surface.height),
                        scratch);
  });
}

template <class T>
void nearest_typed(const Tensor& images, const Warps& boxes, const Surface& surface, const std::vector<double>& fill,
                   const Tensor& out) {
  constexpr bool floating = std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;
  const int64_t height = out.size(2), width = out.size(3), channels = images.size(1);
  parallel(boxes.size() * height, kGrain / (8 * width), [&](int64_t row) {
    const int64_t r = row / height, i = row % height;
    const WarpPlan& plan = boxes[r];
    const View<T> view = view_of(out, data_of<T>(out), r);
    if (!plan.valid) {
      const double nan = std::numeric_limits<double>::quiet_NaN();
      for (int64_t c = 0; c < channels; ++c)
        set_rows(view, width, c, c + 1, i, i + 1, store<T>(floating ? nan : fill[fill.size() == 1 ? 0 : c]));
      return;
    }
    const View<const T> image = view_of(images, data_of<const T>(images), plan.image);
    for (int64_t j = 0; j < width; ++j) {
      const auto [y, x] = nearest_pixel(plan, surface, static_cast<double>(j) + 0.5, static_cast<double>(i) + 0.5);
      for (int64_t c = 0; c < channels; ++c)
        view.at(c, i)[j * view.column] =
            x < 0 || y < 0 ? store<T>(fill[fill.size() == 1 ? 0 : c]) : image.at(c, y)[x * image.column];
    }
  });
}

void check(const Tensor& images, const Sizes& size, const std::vector<double>& fill) {
  require(images.dim() == 4 && images.size(2) > 0 && images.size(3) > 0,
          "images must have shape (B, C, H, W), not empty");
  require(size.size() == 2 && size[0] > 0 && size[1] > 0, "size must be (h, w), at least 1");
  // Pixels are counted in 32 bits, reductions too.
  require(std::max({images.size(2), images.size(3), size[0], size[1]}) < (int64_t{1} << 27), "axes must be below 2^27");
  require(fill.size() == 1 || static_cast<int64_t>(fill.size()) == images.size(1),
          "fill must be one number, or one per channel");
}

Tensor warp(const Tensor& images, const Tensor& matrices, const OptionalTensor& index, const OptionalTensor& reductions,
            const Sizes& size, bool channels_last, const std::string& mode, bool antialias, const std::string& padding,
            const std::vector<double>& fill, bool align_corners) {
  check(images, size, fill);
  const Surface surface = surface_of(mode, antialias, padding, align_corners, images.size(2), images.size(3));
  const Warps boxes(matrices, index, reductions, images.size(0), size, surface);
  const bool nearest = surface.mode == Mode::nearest;
  const ScalarType dtype =
      images.scalar_type() == ScalarType::Byte && !nearest ? ScalarType::Float : images.scalar_type();
  const Tensor out = allocate({boxes.size(), images.size(1), size[0], size[1]}, dtype, images, channels_last);
  if (images.size(1) == 0 || boxes.size() == 0) return out;
  if (nearest)
    dispatch_any(images.scalar_type(), [&]<class T>() { nearest_typed<T>(images, boxes, surface, fill, out); });
  else
    dispatch(images.scalar_type(), [&]<class T>() { warp_typed<T>(images, boxes, surface, fill, out); });
  return out;
}

Tensor warp_jacobian(const Tensor& images, const Tensor& matrices, const OptionalTensor& index,
                     const OptionalTensor& reductions, const Sizes& size, bool projective, const std::string& mode,
                     bool antialias, const std::string& padding, const std::vector<double>& fill, bool align_corners) {
  check(images, size, fill);
  const Surface surface = surface_of(mode, antialias, padding, align_corners, images.size(2), images.size(3));
  require(surface.mode != Mode::nearest, "nearest has no derivative by the matrix");
  const Warps boxes(matrices, index, reductions, images.size(0), size, surface);
  const ScalarType dtype = images.scalar_type() == ScalarType::Byte ? ScalarType::Float : images.scalar_type();
  const Tensor out =
      allocate({boxes.size(), images.size(1), size[0], size[1], projective ? 9 : 6}, dtype, images, false);
  if (images.size(1) > 0 && boxes.size() > 0)
    dispatch(images.scalar_type(), [&]<class T>() { jacobian_typed<T>(images, boxes, surface, fill, out); });
  return out;
}

Tensor warp_grad_matrices(const Tensor& grad, const Tensor& images, const Tensor& matrices, const OptionalTensor& index,
                          const OptionalTensor& reductions, const std::string& mode, bool antialias,
                          const std::string& padding, const std::vector<double>& fill, bool align_corners) {
  require(grad.dim() == 4, "grad must have shape (R, C, h, w)");
  check(images, {grad.size(2), grad.size(3)}, fill);
  const Surface surface = surface_of(mode, antialias, padding, align_corners, images.size(2), images.size(3));
  const Warps boxes(matrices, index, reductions, images.size(0), {grad.size(2), grad.size(3)}, surface);
  require(grad.size(0) == boxes.size() && grad.size(1) == images.size(1), "grad must have shape (R, C, h, w)");
  require(surface.mode != Mode::nearest, "nearest has no derivative by the matrix");
  require(grad.scalar_type() == (images.scalar_type() == ScalarType::Byte ? ScalarType::Float : images.scalar_type()),
          "grad must have the dtype of the crop");
  const Tensor out = allocate({boxes.size(), 3, 3}, matrices.scalar_type(), matrices, false);
  dispatch(images.scalar_type(), [&]<class T>() { grad_matrices_typed<T>(grad, images, boxes, surface, fill, out); });
  return out;
}

Tensor warp_grad_images(const Tensor& grad, const Tensor& matrices, const OptionalTensor& index,
                        const OptionalTensor& reductions, const Sizes& image_shape, bool channels_last,
                        const std::string& mode, bool antialias, const std::string& padding,
                        const std::vector<double>& fill, bool align_corners) {
  require(grad.dim() == 4 && image_shape.size() == 4, "grad must have shape (R, C, h, w), image_shape be (B, C, H, W)");
  require(grad.scalar_type() != ScalarType::Byte, "grad must be floating-point");
  const Tensor out = allocate(image_shape, grad.scalar_type(), grad, channels_last);
  check(out, {grad.size(2), grad.size(3)}, fill);
  const Surface surface = surface_of(mode, antialias, padding, align_corners, image_shape[2], image_shape[3]);
  const Warps boxes(matrices, index, reductions, image_shape[0], {grad.size(2), grad.size(3)}, surface);
  require(grad.size(0) == boxes.size() && grad.size(1) == image_shape[1], "grad must have shape (R, C, h, w)");
  if (image_shape[0] == 0 || image_shape[1] == 0) return out;
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_images_typed<G>(grad, boxes, surface, out);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("warp", TORCH_BOX(&warp));
  library.impl("warp_jacobian", TORCH_BOX(&warp_jacobian));
  library.impl("warp_grad_matrices", TORCH_BOX(&warp_grad_matrices));
  library.impl("warp_grad_images", TORCH_BOX(&warp_grad_images));
}
