// MLX's gather follows every index unchecked. Clamping the indices with MLX's operations takes two
// passes over them before it, and the gather itself waits for each row of memory in turn; this takes
// one pass, and asks for rows before it copies them.

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

// The next indices' distances in memory along an axis.
class Places {
 public:
  Places(const mx::array& indices, int64_t size, int64_t stride)
      : indices_(indices),
        walk_(indices, 0, indices.ndim()),
        dense_(walk_.is_dense()),
        size_(size),
        stride_(stride) {}

  void read(int64_t count, int64_t* places) {
    mx::dispatch_int_types(indices_.dtype(), "[take]", [&](auto type) {
      using Index = MLX_GET_TYPE(type);
      const Index* indices = indices_.data<Index>();
      for (int64_t i = 0; i < count; ++i) {
        Index index;
        if (dense_) {
          index = indices[done_ + i];
        } else {
          index = indices[walk_.offset()];
          walk_.step();
        }
        places[i] = inside(index, size_) * stride_;
      }
    });
    done_ += count;
  }

 private:
  const mx::array& indices_;
  Walk walk_;
  const bool dense_;
  const int64_t size_, stride_;
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
  Places next(indices, a.shape(axis), a.strides(axis));
  Walk before(a, 0, axis), behind(a, axis + 1, a.ndim());
  const bool dense = behind.is_dense();
  const int64_t row = behind.count();
  const int64_t total = indices.size();
  const Item* from = a.data<Item>();
  Item* to = out.data<Item>();
  int64_t places[GROUP];
  for (int64_t done = 0; done < total; done += GROUP) {
    const int64_t count = std::min(GROUP, total - done);
    next.read(count, places);
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

} // namespace

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
