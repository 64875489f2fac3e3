# :soak runs for minutes, :gpu needs a GPU, :model needs the demo's weights (`mix test --include soak`).
ExUnit.start(exclude: [:soak, :gpu, :model])
