// Elementary functions of f32 on the CPU. MLX's wheel for x86-64 computes them one number at a time, for
// processors of any age.

#include "mlx/backend/common/unary.h"
#include "exponential.h"
#include "floats.h"

namespace {

using namespace emily;

EMILY_WIDE void exponentials(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<float>(exponential(from[i]));
  }
}

EMILY_WIDE void error_functions(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<float>(error_function(from[i]));
  }
}

EMILY_WIDE void logistics(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<float>(logistic(from[i]));
  }
}

using Function = void (*)(const float*, float*, int64_t);

class Elementary : public HostPrimitive {
 public:
  Elementary(mx::Stream stream, Function function) : HostPrimitive(stream), function_(function) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    if (inputs[0].flags().contiguous) {
      mx::set_unary_output_data(inputs[0], out);
    } else {
      out.set_data(mx::allocator::malloc(out.nbytes()));
    }
    dispatch([in = mx::array::unsafe_weak_copy(inputs[0]),
              out = mx::array::unsafe_weak_copy(out),
              function = function_]() mutable {
      const float* from = in.data<float>();
      float* to = out.data<float>();
      if (in.flags().contiguous) {
        function(from, to, in.data_size());
        return;
      }
      // A scalar is contiguous, so that there is a last axis.
      const int last = in.ndim() - 1;
      const int64_t length = in.shape(last), stride = in.strides(last);
      std::vector<float> room;
      Walk rows(in, 0, last);
      for (int64_t n = 0; n < rows.count(); ++n, rows.step(), to += length) {
        function(floats(from + rows.offset(), stride, length, room), to, length);
      }
    });
  }

  const char* name() const override {
    return "HostElementary";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return function_ == static_cast<const Elementary&>(other).function_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Function function_;
};

int elementary(mlx_array* res, mlx_array x, mlx_stream s, Function function) {
  return answer(res, [&] {
    const auto& in = mlx_array_get_(x);
    if (in.dtype() != mx::float32) {
      throw std::invalid_argument("expected f32");
    }
    auto node = std::make_shared<Elementary>(host_stream(s), function);
    return mx::array(in.shape(), in.dtype(), std::move(node), {in});
  });
}

} // namespace

extern "C" int emily_exp(mlx_array* res, const mlx_array x, const mlx_stream s) {
  return elementary(res, x, s, exponentials);
}

extern "C" int emily_erf(mlx_array* res, const mlx_array x, const mlx_stream s) {
  return elementary(res, x, s, error_functions);
}

extern "C" int emily_sigmoid(mlx_array* res, const mlx_array x, const mlx_stream s) {
  return elementary(res, x, s, logistics);
}
