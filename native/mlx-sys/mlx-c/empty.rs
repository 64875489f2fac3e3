// Cargo wants a target; the package exists for its dependency alone.
