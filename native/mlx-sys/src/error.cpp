// Stands in for mlx-c's error.cpp, whose default handler ends the process, and which takes the text
// of an exception for a printf format: a '%' in a file's name or in an einsum reads foreign memory.

#include <cstdarg>
#include <exception>
#include <memory>
#include <stdexcept>

#include "mlx/c/error.h"

namespace {

void ignore(const char*, void*) {}

mlx_error_handler_func handler = ignore;
std::shared_ptr<void> handler_data;

} // namespace

extern "C" void mlx_set_error_handler(
    mlx_error_handler_func next,
    void* data,
    void (*destroy)(void*)) {
  handler_data = destroy ? std::shared_ptr<void>(data, destroy) : nullptr;
  handler = next ? next : ignore;
}

// Callers pass the text of the exception that they have caught, and nothing to format.
extern "C" void _mlx_error(const char*, const int, const char* text, ...) {
  handler(text, handler_data.get());
}

// The handler runs inside the catch block, where the exception is still the current one.
extern "C" bool emily_current_exception_is_invalid_argument() {
  if (!std::current_exception()) {
    return false;
  }
  try {
    throw;
  } catch (const std::invalid_argument&) {
    return true;
  } catch (...) {
    return false;
  }
}
