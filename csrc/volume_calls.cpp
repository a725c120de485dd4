#include "volume_calls.h"

#include "nearest.h"

namespace diffcrop {
namespace {

// Outputs of a brick, and the most rows of it: neighbours along y share more than neighbours along z.
constexpr int64_t kBrick = 1 << 15, kBrickRows = 32;

// The outputs of each crop, or the pixels of each volume, cut into bricks by sizes alone.
class Bricks {
 public:
  // `groups` of m channels side by side.
  Bricks(int64_t groups, int64_t m, const Sizes& size, int64_t most = kBrick) : groups_(groups), m_(m), size_(size) {
    brick_.rows = std::min(size[1], std::max<int64_t>(std::min(kBrickRows, most / (size[2] * m)), 1));
    brick_.planes = std::clamp<int64_t>(most / (brick_.rows * size[2] * m), 1, size[0]);
    slabs_ = ceil_div(size[0], brick_.planes), bands_ = ceil_div(size[1], brick_.rows);
  }

  const BrickSize& brick() const { return brick_; }
  int64_t each() const { return groups_ * slabs_ * bands_; }

  // Calls f(item, brick, its number, scratch) for all bricks of `count` items, on torch's threads; number item * each()
  // and following are those of an item. Channel by channel, so that boxes of one volume find it in the cache. `work`:
  // multiply-adds of an output.
  template <class A, class F>
  void share(int64_t count, int64_t work, const F& f) const {
    const int64_t outputs = brick_.planes * brick_.rows * size_[2] * m_, some = slabs_ * bands_;
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(work * outputs, 1), 1);
    torch::stable::parallel_for(0, count * each(), grain, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t group = piece / (count * some), item = piece / some % count, place = piece % some;
        f(item, at(group, place), item * each() + group * some + place, scratch);
      }
      scratch.clear();
    });
  }

 private:
  Brick at(int64_t group, int64_t place) const {
    const int64_t i = place % bands_ * brick_.rows, j = place / bands_ * brick_.planes;
    return {group * m_, j, std::min(j + brick_.planes, size_[0]), i, std::min(i + brick_.rows, size_[1])};
  }

  int64_t groups_, m_, slabs_ = 0, bands_ = 0;
  Sizes size_;
  BrickSize brick_;
};

// Sets a brick of a crop without a box.
template <class O>
void fill_brick(const Solid<O>& out, const Brick& brick, int64_t width, int64_t m, const O* values) {
  for (int64_t c = brick.c; c < brick.c + m; ++c)
    for (int64_t j = brick.j; j < brick.j_end; ++j)
      for (int64_t i = brick.i; i < brick.i_end; ++i)
        for (int64_t k = 0; k < width; ++k) out.at(c, j, i)[k * out.column] = values[c];
}

template <class T>
VolumeKernels<T> volume_kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::volume_kernels<T>();
    case Level::avx2:
      return avx2::volume_kernels<T>();
#endif
    default:
      return plain::volume_kernels<T>();
  }
}

// Item i of a tensor (N, channels, planes, rows, columns).
template <class T>
Solid<T> solid_of(const Tensor& tensor, T* data, int64_t i) {
  return {data + i * tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

// How rows of a tensor are read: see Ability.
template <class T>
Ability ability_of(const Tensor& tensor, int64_t m) {
  const int64_t column = tensor.stride(4);
  return {column == m && (m == 1 || tensor.stride(1) == 1), m > 1 || pairs<T>(m)};
}

template <class T>
void crop_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const auto kernels = volume_kernels_of<T>();
  const int64_t channels = images.size(1);
  const int64_t m = is_interleaved(images) && is_interleaved(out) ? channels : 1;
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bricks bricks(channels / m, m, size);
  const Need need{
      .across = true, .ability = ability_of<T>(images, m), .m = m, .lookups = kernels.lookups, .brick = bricks.brick()};
  boxes.each_run<A, VolumePlan<A>>(
      boxes.run(), size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
        bricks.share<A>(plans.size(), 16, [&](int64_t r, const Brick& brick, int64_t, Scratch<A>& scratch) {
          const VolumePlan<A>& box = plans[r];
          const auto view = solid_of(out, target, first + r);
          if (!box.valid) return fill_brick(view, brick, size[2], m, nans<O>(channels).data());
          kernels.crop(box, solid_of(images, source, box.image), view, brick, or_null(fill), scratch);
        });
      });
}

template <class T>
void jacobian_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                    const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const auto kernels = volume_kernels_of<T>();
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bricks bricks(channels, 1, size);
  const Need need{
      .derivatives = true, .across = true, .ability = {}, .lookups = kernels.lookups, .brick = bricks.brick()};
  boxes.each_run<A, VolumePlan<A>>(
      boxes.run(), size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
        bricks.share<A>(plans.size(), 64, [&](int64_t r, const Brick& brick, int64_t, Scratch<A>& scratch) {
          const VolumePlan<A>& box = plans[r];
          const int64_t row = 6 * size[2], plane = row * size[1], volume = plane * size[0];
          const Solid<O> view{target + (first + r) * channels * volume, volume, plane, row, 1};
          if (!box.valid) return fill_brick(view, brick, row, 1, nans<O>(channels).data());
          kernels.jacobian(box, solid_of(images, source, box.image), view, brick, or_null(fill), scratch);
        });
      });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const auto kernels = volume_kernels_of<T>();
  const int64_t channels = images.size(1), m = is_interleaved(images) ? channels : 1;
  const Sizes size = spatial(grad);
  const auto* const source = data_of<const T>(images);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bricks bricks(channels / m, m, size);
  const Need need{.derivatives = true,
                  .across = true,
                  .back = true,
                  .ability = {},
                  .m = m,
                  .lookups = kernels.lookups,
                  .brick = bricks.brick()};
  boxes.each_run<A, VolumePlan<A>>(
      boxes.run(), size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
        const auto count = static_cast<int64_t>(plans.size());
        std::vector<VolumeSum> parts(count * bricks.each());
        bricks.share<A>(count, 32, [&](int64_t r, const Brick& brick, int64_t piece, Scratch<A>& scratch) {
          const VolumePlan<A>& box = plans[r];
          if (!box.valid) return;
          parts[piece] = kernels.grad_boxes(box, solid_of(images, source, box.image),
                                            solid_of(grad, cotangent, first + r), brick, or_null(fill), scratch);
        });
        for (int64_t r = 0; r < count; ++r) {
          std::array<AxisSum, 3> total;
          for (int64_t piece = r * bricks.each(); piece < (r + 1) * bricks.each(); ++piece) {
            const auto& [z, y, x] = parts[piece];
            const std::array<AxisSum, 3> part = {x, y, z};
            for (int axis = 0; axis < 3; ++axis) total[axis].lo += part[axis].lo, total[axis].hi += part[axis].hi;
          }
          put_box(out, first + r, plans[r].valid, total);
        }
      });
}

template <class G>
void grad_typed(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  using A = SumOf<G>;
  const auto kernels = volume_kernels_of<G>();
  const int64_t count = out.size(0), channels = out.size(1), m = is_interleaved(out) ? channels : 1;
  const Sizes pixels = spatial(out);
  const auto* const cotangent = data_of<const G>(grad);
  auto* const target = data_of<G>(out);
  std::vector<std::vector<VolumeContribution<G, A>>> parts(count);
  const Bricks bricks(channels / m, m, pixels, kElements);
  const auto pass = [&] {
    bricks.share<A>(count, 4, [&](int64_t image, const Brick& brick, int64_t, Scratch<A>& scratch) {
      kernels.grad_images(parts[image], solid_of(out, target, image), pixels[2], m, brick, scratch);
    });
  };
  if (boxes.size() == 0) return pass();
  // Every row of the gradient is written once, by one thread, with all its boxes: they have to be planned together.
  const Need need{.back = true,
                  .ability = {ability_of<G>(grad, m).dense, false},
                  .m = m,
                  .lookups = kernels.lookups,
                  .brick = bricks.brick()};
  boxes.each_run<A, VolumePlan<A>>(boxes.size(), spatial(grad), pixels, options, need, [&](int64_t, const auto& plans) {
    for (int64_t r = 0; r < boxes.size(); ++r)
      if (plans[r].valid) parts[plans[r].image].push_back({&plans[r], solid_of(grad, cotangent, r)});
    pass();
  });
}

template <class T>
void nearest_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                   const std::vector<double>& fills, const Tensor& out) {
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<T>(out);
  const auto fill = std::make_unique<T[]>(channels);  // no vector, which has no data() for bool
  for (int64_t c = 0; c < channels; ++c) fill[c] = store<T>(fills[fills.size() == 1 ? 0 : c]);
  constexpr bool floating = std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;
  const Bricks bricks(channels, 1, size);
  boxes.each_run<float, VolumePlan<float>>(
      boxes.run(), size, spatial(images), options, {}, [&](int64_t first, const auto& plans) {
        bricks.share<float>(plans.size(), 2, [&](int64_t r, const Brick& brick, int64_t, Scratch<float>&) {
          const VolumePlan<float>& box = plans[r];
          const auto view = solid_of(out, target, first + r);
          if (box.valid) return nearest_brick<T>(box, solid_of(images, source, box.image), view, brick, fill.get());
          if constexpr (floating)
            fill_brick(view, brick, size[2], 1, nans<T>(channels).data());
          else
            fill_brick(view, brick, size[2], 1, fill.get());
        });
      });
}

}  // namespace

void crop_volumes(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                  const std::vector<double>& fill, const Tensor& out) {
  if (options.mode == Mode::nearest)
    dispatch_any(images.scalar_type(), [&]<class T>() { nearest_typed<T>(images, boxes, size, options, fill, out); });
  else
    dispatch(images.scalar_type(), [&]<class T>() { crop_typed<T>(images, boxes, size, options, fill, out); });
}

void jacobian_volumes(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                      const std::vector<double>& fill, const Tensor& out) {
  dispatch(images.scalar_type(), [&]<class T>() { jacobian_typed<T>(images, boxes, size, options, fill, out); });
}

void grad_boxes_of_volumes(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                           const std::vector<double>& fill, const Tensor& out) {
  dispatch(images.scalar_type(), [&]<class T>() { grad_boxes_typed<T>(grad, images, boxes, options, fill, out); });
}

void grad_volumes(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_typed<G>(grad, boxes, options, out);
  });
}

}  // namespace diffcrop
