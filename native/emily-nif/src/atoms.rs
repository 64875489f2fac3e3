//! Every atom of the wire, alphabetically.

rustler::atoms! {
    active,
    cache,
    collect,
    cpu,
    elsewhere,
    error,
    gpu,
    invalid_argument,
    memory,
    nil,
    ok,
    peak,
    pending,
    queue_full,
    runtime,
    stopped,
    wired,
}
