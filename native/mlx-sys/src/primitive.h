// What our own primitives have in common: walks over arrays, the memory of results, and how an mlx-c
// function answers.

#pragma once

#include <cstdint>
#include <vector>

#include "mlx/backend/common/utils.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"
#include "mlx/primitives.h"

namespace emily {

namespace mx = mlx::core;

// The distances of elements in memory from the first one, along some axes in row-major order.
class Walk {
 public:
  // The axes `first` to `end` of an array, `end` not included.
  Walk(const mx::array& array, int first, int end) {
    add(array, first, end);
  }

  // More axes, inside the others.
  void add(const mx::array& array, int first, int end) {
    for (int axis = first; axis < end; ++axis) {
      if (array.shape(axis) == 1) {
        continue;
      }
      sizes_.push_back(array.shape(axis));
      strides_.push_back(array.strides(axis));
      at_.push_back(0);
      count_ *= array.shape(axis);
    }
  }

  // How many elements there are.
  int64_t count() const {
    return count_;
  }

  // Whether the elements lie one behind the other.
  bool is_dense() const {
    int64_t expected = 1;
    for (size_t axis = sizes_.size(); axis-- > 0;) {
      if (strides_[axis] != expected) {
        return false;
      }
      expected *= sizes_[axis];
    }
    return true;
  }

  // Where the present element is. Behind the last one comes the first.
  int64_t offset() const {
    return offset_;
  }

  void step() {
    for (size_t axis = sizes_.size(); axis-- > 0;) {
      offset_ += strides_[axis];
      if (++at_[axis] < sizes_[axis]) {
        return;
      }
      offset_ -= strides_[axis] * sizes_[axis];
      at_[axis] = 0;
    }
  }

 private:
  std::vector<int64_t> sizes_, strides_, at_;
  int64_t count_ = 1, offset_ = 0;
};

// Row-major memory for a result, which is that of an input of its shape and dtype where nobody else
// needs it.
inline void set_row_major(const mx::array& in, mx::array& out) {
  if (in.flags().row_contiguous && mx::is_donatable(in, out)) {
    out.copy_shared_buffer(in);
  } else {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  }
}

// A primitive with one output that is computed on CPU streams only.
class HostPrimitive : public mx::UnaryPrimitive {
 public:
  using UnaryPrimitive::UnaryPrimitive;

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::runtime_error(std::string(name()) + " is computed on a CPU stream only");
  }

 protected:
  // Queues work on arrays, which the stream keeps meanwhile.
  template <typename Work>
  void dispatch(Work&& work) {
    mx::cpu::get_command_encoder(stream()).dispatch(std::forward<Work>(work));
  }
};

inline mx::Stream host_stream(mlx_stream s) {
  auto stream = mlx_stream_get_(s);
  if (stream.device != mx::Device::cpu) {
    throw std::invalid_argument("expected a stream of the CPU");
  }
  return stream;
}

// Gives what `make` makes to the caller of an mlx-c function, or tells the error.
template <typename Make>
int answer(mlx_array* res, Make&& make) {
  try {
    mlx_array_set_(*res, make());
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

} // namespace emily
