# :soak runs for minutes, :gpu needs a GPU, :model needs the demo's weights (`mix test --include soak`).
# CUDA kernels are compiled when they are first used, which takes seconds each.
timeout = if System.get_env("EMILY_TEST_DEVICE") == "gpu", do: 600_000, else: 60_000
ExUnit.start(exclude: [:soak, :gpu, :model], timeout: timeout)
Application.put_env(:stream_data, :max_runs, Emily.TestDevice.runs(100))
