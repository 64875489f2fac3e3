// What MLX lacks where several streams share a CUDA device.

// Reading and writing memory of a CUDA device. MLX itself reads by moving the buffer to unified memory for good,
// without a lock, and frees the device's copy that another stream's kernels may still use.

#include <cstring>
#include <stdexcept>
#include <string>

#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

#ifdef __linux__
#include <dlfcn.h>

namespace {

// As in mlx/backend/cuda/allocator.h of MLX 0.32.2, whose includes need CUDA's own headers.
struct CudaBuffer {
  void* data;
  size_t size;
  int device; // -1 for unified memory
};

using CopyToHost = int (*)(void*, unsigned long long, size_t);
using CopyToDevice = int (*)(unsigned long long, const void*, size_t);
using Synchronize = int (*)(void*);

// Of the driver, which libmlx has loaded. It is not linked here: the library must load without it.
template <typename Function>
Function of_driver(const char* name) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  const auto found = driver ? reinterpret_cast<Function>(dlsym(driver, name)) : nullptr;
  if (found == nullptr) {
    throw std::runtime_error(std::string("the CUDA driver has no ") + name);
  }
  return found;
}

void check(const char* what, int status) {
  if (status != 0) {
    throw std::runtime_error(std::string(what) + " failed: CUDA error " + std::to_string(status));
  }
}

const CudaBuffer* buffer_of(const mlx::core::array& array) {
  return array.data_shared_ptr() ? static_cast<const CudaBuffer*>(array.buffer().ptr()) : nullptr;
}

using Create = int (*)(void**, const char*, const char*, int, const char* const*, const char* const*);
using Compile = int (*)(void*, int, const char* const*);
using Destroy = int (*)(void**);

} // namespace

// The compiler of CUDA's kernels makes statics when it is first used, and ends them at the exit, also while
// it compiles.
extern "C" void emily_cuda_prepare_compiler() {
  const auto create = reinterpret_cast<Create>(dlsym(RTLD_DEFAULT, "nvrtcCreateProgram"));
  const auto compile = reinterpret_cast<Compile>(dlsym(RTLD_DEFAULT, "nvrtcCompileProgram"));
  const auto destroy = reinterpret_cast<Destroy>(dlsym(RTLD_DEFAULT, "nvrtcDestroyProgram"));
  void* program = nullptr;
  const char* nothing = "__global__ void nothing() {}";
  if (create && compile && destroy && create(&program, nothing, "nothing.cu", 0, nullptr, nullptr) == 0) {
    compile(program, 0, nullptr);
    destroy(&program);
  }
}

extern "C" int emily_cuda_read(mlx_array array, void* into, size_t bytes) {
  try {
    const auto& evaluated = mlx_array_get_(array);
    const auto* buffer = buffer_of(evaluated);
    if (bytes == 0 || buffer == nullptr) {
      return 0;
    }
    const char* start = static_cast<const char*>(buffer->data) + evaluated.offset();
    if (buffer->device == -1) {
      std::memcpy(into, start, bytes);
      return 0;
    }
    static const auto copy = of_driver<CopyToHost>("cuMemcpyDtoH_v2");
    check("cuMemcpyDtoH", copy(into, reinterpret_cast<unsigned long long>(start), bytes));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

extern "C" bool emily_cuda_has(mlx_array array) {
  const auto& computed = mlx_array_get_(array);
  if (computed.status() == mlx::core::array::Status::unscheduled) {
    return false;
  }
  const auto* buffer = buffer_of(computed);
  return buffer != nullptr && buffer->device != -1;
}

extern "C" int emily_cuda_write(mlx_array array, const void* from, size_t bytes) {
  try {
    const auto& evaluated = mlx_array_get_(array);
    const auto* buffer = buffer_of(evaluated);
    if (buffer == nullptr || buffer->size < evaluated.offset() + bytes) {
      throw std::runtime_error("the buffer is smaller than what is written");
    }
    char* start = static_cast<char*>(buffer->data) + evaluated.offset();
    if (buffer->device == -1) {
      std::memcpy(start, from, bytes);
      return 0;
    }
    static const auto copy = of_driver<CopyToDevice>("cuMemcpyHtoD_v2");
    static const auto synchronize = of_driver<Synchronize>("cuStreamSynchronize");
    check("cuMemcpyHtoD", copy(reinterpret_cast<unsigned long long>(start), from, bytes));
    // The copy returns once the elements are staged; MLX's streams do not wait for the driver's own.
    check("cuStreamSynchronize", synchronize(nullptr));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
#else
extern "C" void emily_cuda_prepare_compiler() {}

extern "C" int emily_cuda_read(mlx_array, void*, size_t) {
  mlx_error("this build of MLX has no CUDA");
  return 1;
}

extern "C" bool emily_cuda_has(mlx_array) {
  return false;
}

extern "C" int emily_cuda_write(mlx_array, const void*, size_t) {
  mlx_error("this build of MLX has no CUDA");
  return 1;
}
#endif
