// MLX follows every index unchecked. Bringing indices inside their axis with MLX's operations takes two to
// six passes over them; this takes one. Where elements are taken along one axis, so does everything
// together, and rows are asked for before they are copied, where MLX's gather waits for each row of memory
// in turn.

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "mlx/dtype_utils.h"
#include "primitive.h"

namespace {

using namespace emily;

// Indices that are read together.
constexpr int64_t GROUP = 256;

// How many rows ahead of the copied one memory is asked for, and how much of each.
constexpr int64_t AHEAD = 8;
constexpr size_t MOST_ASKED = 512, CACHE_LINE = 64;

// A place inside an axis of `size > 0`, whatever the index: from `-size` on negative ones count from the
// end, and what lies beyond is clamped.
template <typename Index>
int64_t inside(Index index, int64_t size) {
  if constexpr (std::is_unsigned_v<Index>) {
    return static_cast<int64_t>(std::min<uint64_t>(index, size - 1));
  } else {
    const int64_t at = std::clamp<int64_t>(index, -size, size - 1);
    return at < 0 ? at + size : at;
  }
}

// Where a window of `window > 0` elements is written: at `size` where it would leave the axis. Negative
// indices down to `-size` count from the end.
template <typename Index>
int64_t beside(Index index, int64_t size, int64_t window) {
  if constexpr (std::is_unsigned_v<Index>) {
    return index > static_cast<uint64_t>(size) ? size : beside<int64_t>(index, size, window);
  } else {
    // As 64 bits, which hold the sum of a negative index and any size.
    const int64_t at = index < 0 ? static_cast<int64_t>(index) + size : index;
    return at < 0 || at > size - window ? size : at;
  }
}

// Indices one after the other, in row-major order.
class Indices {
 public:
  explicit Indices(const mx::array& indices)
      : indices_(indices), walk_(indices, 0, indices.ndim()), dense_(walk_.is_dense()) {}

  // Maps the next ones.
  template <typename Map, typename Place>
  void read(int64_t count, Place* places, Map&& map) {
    mx::dispatch_int_types(indices_.dtype(), "[index]", [&](auto type) {
      using Index = MLX_GET_TYPE(type);
      const Index* indices = indices_.data<Index>();
      for (int64_t i = 0; i < count; ++i) {
        if (dense_) {
          places[i] = static_cast<Place>(map(indices[done_ + i]));
        } else {
          places[i] = static_cast<Place>(map(indices[walk_.offset()]));
          walk_.step();
        }
      }
    });
    done_ += count;
  }

 private:
  const mx::array& indices_;
  Walk walk_;
  const bool dense_;
  int64_t done_ = 0;
};

void ask_for(const void* row, size_t bytes) {
  for (size_t at = 0; at < std::min(bytes, MOST_ASKED); at += CACHE_LINE) {
    __builtin_prefetch(static_cast<const char*>(row) + at);
  }
}

// Copies dense rows from places that `from` is the origin of.
template <typename Item>
void copy_rows(const Item* from, const int64_t* places, int64_t count, int64_t row, Item* to) {
  if (row == 1) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = from[places[i]];
    }
    return;
  }
  const size_t bytes = row * sizeof(Item);
  for (int64_t i = 0; i < count; ++i) {
    if (i + AHEAD < count) {
      ask_for(from + places[i + AHEAD], bytes);
    }
    std::memcpy(to + i * row, from + places[i], bytes);
  }
}

// The items are copied as integers of their size.
template <typename Item>
void take(const mx::array& a, const mx::array& indices, mx::array& out, int axis) {
  Indices next(indices);
  const int64_t size = a.shape(axis), stride = a.strides(axis);
  Walk before(a, 0, axis), behind(a, axis + 1, a.ndim());
  const bool dense = behind.is_dense();
  const int64_t row = behind.count();
  const int64_t total = indices.size();
  const Item* from = a.data<Item>();
  Item* to = out.data<Item>();
  int64_t places[GROUP];
  for (int64_t done = 0; done < total; done += GROUP) {
    const int64_t count = std::min(GROUP, total - done);
    next.read(count, places, [&](auto index) { return inside(index, size) * stride; });
    for (int64_t n = 0; n < before.count(); ++n, before.step()) {
      const Item* origin = from + before.offset();
      Item* target = to + (n * total + done) * row;
      if (dense) {
        copy_rows(origin, places, count, row, target);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t item = 0; item < row; ++item, behind.step()) {
          *target++ = origin[places[i] + behind.offset()];
        }
      }
    }
  }
}

class ClampedTake : public HostPrimitive {
 public:
  ClampedTake(mx::Stream stream, int axis) : HostPrimitive(stream), axis_(axis) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    dispatch([a = mx::array::unsafe_weak_copy(inputs[0]),
              indices = mx::array::unsafe_weak_copy(inputs[1]),
              out = mx::array::unsafe_weak_copy(out),
              axis = axis_]() mutable {
      switch (a.itemsize()) {
        case 1:
          return take<uint8_t>(a, indices, out, axis);
        case 2:
          return take<uint16_t>(a, indices, out, axis);
        case 4:
          return take<uint32_t>(a, indices, out, axis);
        default:
          return take<uint64_t>(a, indices, out, axis);
      }
    });
  }

  const char* name() const override {
    return "ClampedTake";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return axis_ == static_cast<const ClampedTake&>(other).axis_;
  }

  static mx::Shape shape_of(const mx::array& a, const mx::array& indices, int axis) {
    const auto& shape = a.shape();
    mx::Shape result(shape.begin(), shape.begin() + axis);
    result.insert(result.end(), indices.shape().begin(), indices.shape().end());
    result.insert(result.end(), shape.begin() + axis + 1, shape.end());
    return result;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {shape_of(inputs[0], inputs[1], axis_)};
  }

 private:
  int axis_;
};

struct Bounds {
  int size;
  // Nothing is written with 0: then the places are read.
  int window;

  bool operator==(const Bounds&) const = default;
};

class Positions : public HostPrimitive {
 public:
  Positions(mx::Stream stream, Bounds bounds) : HostPrimitive(stream), bounds_(bounds) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    dispatch([indices = mx::array::unsafe_weak_copy(inputs[0]),
              out = mx::array::unsafe_weak_copy(out),
              bounds = bounds_]() mutable {
      Indices next(indices);
      const int64_t count = indices.size(), size = bounds.size, window = bounds.window;
      uint32_t* to = out.data<uint32_t>();
      if (window == 0) {
        next.read(count, to, [&](auto index) { return inside(index, size); });
      } else {
        next.read(count, to, [&](auto index) { return beside(index, size, window); });
      }
    });
  }

  const char* name() const override {
    return "Positions";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return bounds_ == static_cast<const Positions&>(other).bounds_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Bounds bounds_;
};

} // namespace

extern "C" int emily_positions(
    mlx_array* res,
    const mlx_array indices_,
    int size,
    int window,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto& indices = mlx_array_get_(indices_);
    const auto stream = host_stream(s);
    const bool fits = window == 0 ? size > 0 : window > 0 && size >= 0;
    if (!fits || !mx::issubdtype(indices.dtype(), mx::integer)) {
      throw std::invalid_argument("expected integers and an axis that they can be positions of");
    }
    return mx::array(
        indices.shape(),
        mx::uint32,
        std::make_shared<Positions>(stream, Bounds{size, window}),
        {indices});
  });
}

extern "C" int emily_clamped_take(
    mlx_array* res,
    const mlx_array a_,
    const mlx_array indices_,
    int axis,
    const mlx_stream s) {
  return answer(res, [&] {
    const auto &a = mlx_array_get_(a_), &indices = mlx_array_get_(indices_);
    const auto stream = host_stream(s);
    const bool fits = axis >= 0 && axis < static_cast<int>(a.ndim()) && a.shape(axis) > 0;
    if (!fits || !mx::issubdtype(indices.dtype(), mx::integer)) {
      throw std::invalid_argument("a take needs integers and an axis that has elements");
    }
    return mx::array(
        ClampedTake::shape_of(a, indices, axis),
        a.dtype(),
        std::make_shared<ClampedTake>(stream, axis),
        {a, indices});
  });
}
