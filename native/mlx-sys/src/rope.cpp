// Rotary positions on the CPU in one pass. MLX composes them there of about twenty operations, the sines
// and cosines of all positions among them.

#include <cmath>

#include "floats.h"

namespace {

using namespace emily;

struct Rotation {
  int dims;
  bool traditional, has_frequencies;
  // Counts without frequencies.
  float base;
  float scale;

  bool operator==(const Rotation&) const = default;
};

// The cosine and the sine of each position and pair of features.
class Angles {
 public:
  // One angle by position: `base^(-2 i / dims)`, or the reciprocal of a frequency.
  Angles(const Rotation& rotation, const mx::array* frequencies) : pairs_(rotation.dims / 2) {
    for (int i = 0; i < pairs_; ++i) {
      steps_.push_back(
          frequencies ? 1.0 / frequencies->data<float>()[i * frequencies->strides(0)]
                      : std::exp(-i * (std::log(double(rotation.base)) / pairs_)));
    }
  }

  void compute(int64_t first, int positions, double scale) {
    cosines_.resize(size_t(positions) * pairs_);
    sines_.resize(cosines_.size());
    for (int position = 0; position < positions; ++position) {
      const double at = (first + position) * scale;
      for (int i = 0; i < pairs_; ++i) {
        cosines_[size_t(position) * pairs_ + i] = static_cast<float>(std::cos(at * steps_[i]));
        sines_[size_t(position) * pairs_ + i] = static_cast<float>(std::sin(at * steps_[i]));
      }
    }
  }

  const float* cosines(int position) const {
    return cosines_.data() + size_t(position) * pairs_;
  }

  const float* sines(int position) const {
    return sines_.data() + size_t(position) * pairs_;
  }

 private:
  int pairs_;
  std::vector<double> steps_;
  std::vector<float> cosines_, sines_;
};

template <typename T>
void rotate_row(
    const float* row,
    T* to,
    int64_t features,
    const Rotation& rotation,
    const float* cosines,
    const float* sines) {
  const int pairs = rotation.dims / 2;
  // The places of a pair's two features.
  const int step = rotation.traditional ? 2 : 1, other = rotation.traditional ? 1 : pairs;
  for (int i = 0; i < pairs; ++i) {
    const float x = row[i * step], y = row[i * step + other];
    to[i * step] = static_cast<T>(x * cosines[i] - y * sines[i]);
    to[i * step + other] = static_cast<T>(x * sines[i] + y * cosines[i]);
  }
  for (int64_t i = rotation.dims; i < features; ++i) {
    to[i] = static_cast<T>(row[i]);
  }
}

// x is {batch, .., positions, features} or {positions, features}; there is one offset for all or one for each
// of the batch.
template <typename T>
void rotate(
    const mx::array& x,
    const mx::array& offsets,
    const mx::array* frequencies,
    const Rotation& rotation,
    mx::array& out) {
  const int rank = x.ndim(), positions = x.shape(-2), batches = rank > 2 ? x.shape(0) : 1;
  const int64_t features = x.shape(-1), stride = x.strides(-1);
  const int64_t offset_stride = offsets.size() > 1 ? offsets.strides(0) : 0;
  Angles angles(rotation, frequencies);
  std::vector<float> room;
  T* to = out.data<T>();
  Walk heads(x, 1, rank - 2);
  for (int batch = 0; batch < batches; ++batch) {
    if (batch == 0 || offset_stride != 0) {
      angles.compute(offsets.data<int32_t>()[batch * offset_stride], positions, rotation.scale);
    }
    const T* of_batch = x.data<T>() + (rank > 2 ? batch * x.strides(0) : 0);
    for (int64_t head = 0; head < heads.count(); ++head, heads.step()) {
      for (int position = 0; position < positions; ++position, to += features) {
        const T* from = of_batch + heads.offset() + position * x.strides(-2);
        const float* row = floats(from, stride, features, room);
        const float *cosines = angles.cosines(position), *sines = angles.sines(position);
        rotate_row(row, to, features, rotation, cosines, sines);
      }
    }
  }
}

class Rope : public HostPrimitive {
 public:
  Rope(mx::Stream stream, Rotation rotation) : HostPrimitive(stream), rotation_(rotation) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    set_row_major(inputs[0], out);
    dispatch([inputs = kept(inputs),
              out = mx::array::unsafe_weak_copy(out),
              rotation = rotation_]() mutable {
      const mx::array* frequencies = rotation.has_frequencies ? &inputs[2] : nullptr;
      with_float(out.dtype(), [&](auto number) {
        rotate<decltype(number)>(inputs[0], inputs[1], frequencies, rotation, out);
      });
    });
  }

  const char* name() const override {
    return "HostRope";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return rotation_ == static_cast<const Rope&>(other).rotation_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Rotation rotation_;
};

} // namespace

extern "C" int emily_rope(
    mlx_array* res,
    const mlx_array x,
    int dims,
    bool traditional,
    float base,
    float scale,
    const mlx_array offset,
    const mlx_array frequencies,
    const mlx_stream s) {
  return answer(res, [&] {
    auto inputs = arrays({x, offset, frequencies});
    const auto &rows = inputs[0], &offsets = inputs[1];
    require_float(rows.dtype());
    bool fits = rows.ndim() > 1 && rows.size() > 0 && offsets.dtype() == mx::int32;
    fits = fits && dims > 0 && dims % 2 == 0 && dims <= rows.shape(-1);
    const bool each = offsets.ndim() == 1 && rows.ndim() > 2 && offsets.size() == rows.shape(0);
    fits = fits && (offsets.size() == 1 || each);
    const Rotation rotation{dims, traditional, frequencies.ctx != nullptr, base, scale};
    if (rotation.has_frequencies) {
      fits = fits && inputs[2].dtype() == mx::float32 && inputs[2].shape() == mx::Shape{dims / 2};
    }
    if (!fits) {
      throw std::invalid_argument("expected rows, and offsets and frequencies that fit them");
    }
    auto node = std::make_shared<Rope>(host_stream(s), rotation);
    const auto shape = rows.shape();
    const auto dtype = rows.dtype();
    return mx::array(shape, dtype, std::move(node), std::move(inputs));
  });
}
