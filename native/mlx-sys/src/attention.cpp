// Attention on the CPU, which MLX composes there of about ten operations. Of few queries, as a decoding step
// has them, it is one pass. With many queries the two products are large and BLAS's; what is between
// them is one pass.

#include <algorithm>
#include <cmath>
#include <limits>

#include "exponential.h"
#include "floats.h"

namespace {

using namespace emily;

struct Form {
  float scale;
  bool causal, has_mask, has_sinks;

  bool operator==(const Form&) const = default;
};

float dot(const float* a, const float* b, int64_t count) {
  return sum_of(count, [a, b](int64_t i) { return a[i] * b[i]; });
}

// A mask as it is read at {batch, head, query, key}: axes that it lacks or has one of do not count.
template <typename T>
class Mask {
 public:
  explicit Mask(const mx::array* mask) : mask_(mask) {
    if (mask) {
      for (int axis = 1; axis <= mask->ndim(); ++axis) {
        const bool counts = mask->shape(-axis) > 1;
        strides_[4 - axis] = counts ? mask->strides(-axis) : 0;
      }
    }
  }

  // The scores of a query with each key where the mask lets them, and with what it adds.
  void apply(float* scores, int64_t batch, int64_t head, int64_t query, int64_t keys) const {
    if (!mask_) {
      return;
    }
    const int64_t at = batch * strides_[0] + head * strides_[1] + query * strides_[2];
    if (mask_->dtype() == mx::bool_) {
      const bool* seen = mask_->data<bool>() + at;
      for (int64_t key = 0; key < keys; ++key) {
        scores[key] = seen[key * strides_[3]] ? scores[key] : hidden();
      }
    } else {
      const T* added = mask_->data<T>() + at;
      for (int64_t key = 0; key < keys; ++key) {
        scores[key] += static_cast<float>(added[key * strides_[3]]);
      }
    }
  }

  // The score of a key that is not seen. Finite, so that a query that sees none has no NaN.
  static constexpr float hidden() {
    return std::numeric_limits<float>::lowest();
  }

 private:
  const mx::array* mask_;
  int64_t strides_[4] = {};
};

EMILY_WIDE void exponentials(float* scores, int64_t count, float greatest) {
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = static_cast<float>(exponential(scores[i] - greatest));
  }
}

// In place. A sink is one more score without a value.
void softmax(float* scores, int64_t keys, const float* sink) {
  float greatest = sink ? *sink : -std::numeric_limits<float>::infinity();
  for (int64_t key = 0; key < keys; ++key) {
    greatest = std::max(greatest, scores[key]);
  }
  exponentials(scores, keys, greatest);
  float sum = sum_of(keys, [scores](int64_t key) { return scores[key]; });
  sum += sink ? std::exp(*sink - greatest) : 0.0f;
  for (int64_t key = 0; key < keys; ++key) {
    scores[key] /= sum;
  }
}

// What makes weights of the scores of queries, in place.
template <typename T>
class Weights {
 public:
  // The mask and the sinks come last of the inputs, in this order.
  Weights(const std::vector<mx::array>& inputs, Form form, int64_t queries, int64_t keys)
      : mask_(form.has_mask ? &inputs[inputs.size() - 1 - form.has_sinks] : nullptr),
        sinks_(form.has_sinks ? &inputs.back() : nullptr),
        causal_(form.causal),
        queries_(queries),
        keys_(keys) {}

  void weigh(int64_t batch, int64_t head, int64_t query, float* scores) const {
    mask_.apply(scores, batch, head, query, keys_);
    if (causal_) {
      const int64_t seen = std::max<int64_t>(query + keys_ - queries_ + 1, 0);
      std::fill(scores + std::min(seen, keys_), scores + keys_, Mask<T>::hidden());
    }
    float sink = 0.0f;
    if (sinks_) {
      sink = static_cast<float>(sinks_->data<T>()[head * sinks_->strides(0)]);
    }
    softmax(scores, keys_, sinks_ ? &sink : nullptr);
  }

 private:
  Mask<T> mask_;
  const mx::array* sinks_;
  bool causal_;
  int64_t queries_, keys_;
};

template <typename T>
class Attention {
 public:
  Attention(const std::vector<mx::array>& inputs, Form form, mx::array& out)
      : q_(inputs[0]),
        k_(inputs[1]),
        v_(inputs[2]),
        scale_(form.scale),
        weights_(inputs, form, q_.shape(2), k_.shape(2)),
        group_(q_.shape(1) / k_.shape(1)),
        queries_(q_.shape(2)),
        keys_(k_.shape(2)),
        depth_(q_.shape(3)),
        width_(v_.shape(3)),
        scores_(rows() * keys_),
        scaled_(rows() * depth_),
        sums_(rows() * width_),
        out_(out.data<T>()) {}

  void compute() {
    for (int64_t batch = 0; batch < q_.shape(0); ++batch) {
      for (int64_t head = 0; head < k_.shape(1); ++head) {
        score(batch, head);
        for (int64_t row = 0; row < rows(); ++row) {
          const int64_t query_head = head * group_ + row / queries_;
          weights_.weigh(batch, query_head, row % queries_, scores(row));
        }
        sum(batch, head);
      }
    }
  }

 private:
  // The rows that share a head of the keys: those of its group of heads, query by query.
  int64_t rows() const {
    return group_ * queries_;
  }

  float* scores(int64_t row) {
    return scores_.data() + row * keys_;
  }

  void score(int64_t batch, int64_t head) {
    for (int64_t row = 0; row < rows(); ++row) {
      const T* q = q_.data<T>() + batch * q_.strides(0) +
          (head * group_ + row / queries_) * q_.strides(1) + row % queries_ * q_.strides(2);
      for (int64_t i = 0; i < depth_; ++i) {
        scaled_[row * depth_ + i] = scale_ * static_cast<float>(q[i * q_.strides(3)]);
      }
    }
    const T* k = k_.data<T>() + batch * k_.strides(0) + head * k_.strides(1);
    for (int64_t key = 0; key < keys_; ++key, k += k_.strides(2)) {
      const float* features = floats(k, k_.strides(3), depth_, room_);
      for (int64_t row = 0; row < rows(); ++row) {
        scores(row)[key] = dot(scaled_.data() + row * depth_, features, depth_);
      }
    }
  }

  void sum(int64_t batch, int64_t head) {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    const T* v = v_.data<T>() + batch * v_.strides(0) + head * v_.strides(1);
    for (int64_t key = 0; key < keys_; ++key, v += v_.strides(2)) {
      const float* features = floats(v, v_.strides(3), width_, room_);
      for (int64_t row = 0; row < rows(); ++row) {
        const float weight = scores(row)[key];
        float* sums = sums_.data() + row * width_;
        for (int64_t i = 0; i < width_; ++i) {
          sums[i] += weight * features[i];
        }
      }
    }
    // Heads of a group follow each other in the output, as rows do here.
    for (size_t i = 0; i < sums_.size(); ++i) {
      *out_++ = static_cast<T>(sums_[i]);
    }
  }

  const mx::array &q_, &k_, &v_;
  float scale_;
  Weights<T> weights_;
  int64_t group_, queries_, keys_, depth_, width_;
  std::vector<float> scores_, scaled_, sums_, room_;
  T* out_;
};

class HostAttention : public HostPrimitive {
 public:
  HostAttention(mx::Stream stream, Form form) : HostPrimitive(stream), form_(form) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    dispatch([inputs = kept(inputs),
              out = mx::array::unsafe_weak_copy(out),
              form = form_]() mutable {
      with_float(out.dtype(), [&](auto number) {
        Attention<decltype(number)>(inputs, form, out).compute();
      });
    });
  }

  const char* name() const override {
    return "HostAttention";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return form_ == static_cast<const HostAttention&>(other).form_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    auto shape = inputs[0].shape();
    shape.back() = inputs[2].shape(-1);
    return {shape};
  }

 private:
  Form form_;
};

// Of scores {batch, heads, queries, keys} in f32.
class HostAttentionWeights : public HostPrimitive {
 public:
  HostAttentionWeights(mx::Stream stream, Form form) : HostPrimitive(stream), form_(form) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    set_row_major(inputs[0], out);
    dispatch([inputs = kept(inputs),
              out = mx::array::unsafe_weak_copy(out),
              form = form_]() mutable {
      const auto& scores = inputs[0];
      const int64_t heads = out.shape(1), queries = out.shape(2), keys = out.shape(3);
      const Weights<float> weights(inputs, form, queries, keys);
      std::vector<float> room;
      Walk rows(scores, 0, 3);
      float* to = out.data<float>();
      for (int64_t row = 0; row < rows.count(); ++row, rows.step(), to += keys) {
        const float* from = scores.data<float>() + rows.offset();
        const float* given = floats(from, scores.strides(3), keys, room);
        if (given != to) {
          std::copy(given, given + keys, to);
        }
        weights.weigh(row / queries / heads, row / queries % heads, row % queries, to);
      }
    });
  }

  const char* name() const override {
    return "HostAttentionWeights";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return form_ == static_cast<const HostAttentionWeights&>(other).form_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  Form form_;
};

// Whether a mask broadcasts to the scores, {batch, heads, queries, keys}.
bool broadcasts(const mx::array& mask, const mx::Shape& scores) {
  for (int axis = 1; axis <= mask.ndim(); ++axis) {
    if (axis > 4 || (mask.shape(-axis) != 1 && mask.shape(-axis) != scores[4 - axis])) {
      return false;
    }
  }
  return true;
}

// Whether the mask and the sinks, the last inputs where they are there, suit the scores and the first input's
// dtype.
bool suit(
    const std::vector<mx::array>& inputs,
    mlx_array mask,
    mlx_array sinks,
    const mx::Shape& scores) {
  const auto dtype = inputs[0].dtype();
  bool suit = true;
  if (mask.ctx) {
    const auto& given = inputs[inputs.size() - 1 - (sinks.ctx != nullptr)];
    suit = (given.dtype() == mx::bool_ || given.dtype() == dtype) && broadcasts(given, scores);
  }
  if (sinks.ctx) {
    const auto& given = inputs.back();
    suit = suit && given.dtype() == dtype && given.shape() == mx::Shape{scores[1]};
  }
  return suit;
}

} // namespace

extern "C" int emily_attention(
    mlx_array* res,
    const mlx_array queries,
    const mlx_array keys,
    const mlx_array values,
    float scale,
    bool causal,
    const mlx_array mask,
    const mlx_array sinks,
    const mlx_stream s) {
  return answer(res, [&] {
    auto inputs = arrays({queries, keys, values, mask, sinks});
    const auto &q = inputs[0], &k = inputs[1], &v = inputs[2];
    require_float(q.dtype());
    for (const auto* input : {&q, &k, &v}) {
      if (input->ndim() != 4 || input->size() == 0 || input->dtype() != q.dtype()) {
        throw std::invalid_argument("expected three arrays of rank 4 and one dtype");
      }
    }
    bool fits = k.shape(0) == q.shape(0) && v.shape(0) == q.shape(0) && k.shape(1) == v.shape(1);
    fits = fits && k.shape(2) == v.shape(2) && k.shape(3) == q.shape(3);
    fits = fits && q.shape(1) % k.shape(1) == 0;
    fits = fits && suit(inputs, mask, sinks, {q.shape(0), q.shape(1), q.shape(2), k.shape(2)});
    if (!fits) {
      throw std::invalid_argument("expected keys, values, mask and sinks that fit the queries");
    }
    const Form form{scale, causal, mask.ctx != nullptr, sinks.ctx != nullptr};
    auto node = std::make_shared<HostAttention>(host_stream(s), form);
    const mx::Shape shape = {q.shape(0), q.shape(1), q.shape(2), v.shape(3)};
    const auto dtype = q.dtype();
    return mx::array(shape, dtype, std::move(node), std::move(inputs));
  });
}

extern "C" int emily_attention_weights(
    mlx_array* res,
    const mlx_array scores_,
    bool causal,
    const mlx_array mask,
    const mlx_array sinks,
    const mlx_stream s) {
  return answer(res, [&] {
    auto inputs = arrays({scores_, mask, sinks});
    const auto shape = inputs[0].shape();
    const bool fits = shape.size() == 4 && inputs[0].size() > 0 &&
        inputs[0].dtype() == mx::float32 && suit(inputs, mask, sinks, shape);
    if (!fits) {
      throw std::invalid_argument("expected f32 scores, and mask and sinks that fit them");
    }
    const Form form{1.0f, causal, mask.ctx != nullptr, sinks.ctx != nullptr};
    auto node = std::make_shared<HostAttentionWeights>(host_stream(s), form);
    return mx::array(shape, mx::float32, std::move(node), std::move(inputs));
  });
}
