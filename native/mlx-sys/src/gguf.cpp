#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

// mlx-c lists the tensors of a GGUF file and gives metadata by key, but does not list those keys.
extern "C" int emily_gguf_metadata_keys(mlx_vector_string* keys, mlx_io_gguf gguf) {
  try {
    std::vector<std::string> names;
    for (const auto& entry : mlx_io_gguf_get_(gguf).second) {
      names.push_back(entry.first);
    }
    mlx_vector_string_set_(*keys, names);
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
