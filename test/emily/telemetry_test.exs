defmodule Emily.TelemetryTest do
  # Not async: events reach every handler of the VM.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias Emily.{Memory, Native, Telemetry}

  # Without the application there are no events to test.
  @compile {:no_warn_undefined, :telemetry}
  @moduletag skip: not Code.ensure_loaded?(:telemetry)

  @prefixes [[:emily, :eval], [:emily, :to_binary], [:emily, :fallback]]

  setup do
    test = self()
    handler = "#{inspect(test)}"
    spans = for prefix <- @prefixes, suffix <- [:start, :stop, :exception], do: prefix ++ [suffix]
    events = [[:emily, :memory, :stats] | spans]

    :telemetry.attach_many(handler, events, &__MODULE__.forward/4, test)
    on_exit(fn -> :telemetry.detach(handler) end)
  end

  # Events of other processes are not this test's.
  def forward(event, measurements, metadata, test) do
    if self() == test, do: send(test, {event, measurements, metadata})
  end

  defp configure(key, value) do
    before = Application.fetch_env(:emily, key)
    Application.put_env(:emily, key, value)

    on_exit(fn ->
      case before do
        {:ok, value} -> Application.put_env(:emily, key, value)
        :error -> Application.delete_env(:emily, key)
      end
    end)
  end

  defp tensor, do: Emily.from_binary(<<1, 2, 3, 4, 5, 6>>, [2, 3], {:u, 8})

  test "eval is a span without metadata" do
    assert Emily.eval(tensor()) == :ok
    assert_received {[:emily, :eval, :start], start, metadata}
    assert is_integer(start.monotonic_time) and is_integer(start.system_time)
    assert Map.keys(metadata) == [:telemetry_span_context]
    assert_received {[:emily, :eval, :stop], stop, _metadata}
    assert stop.duration >= 0 and stop.monotonic_time >= start.monotonic_time
    refute_received {[:emily | _], _, _}
  end

  test "to_binary is a span with shape, dtype and the bytes read" do
    assert Emily.to_binary(tensor()) == <<1, 2, 3, 4, 5, 6>>
    assert_received {[:emily, :to_binary, :start], _, %{shape: [2, 3], dtype: {:u, 8}} = metadata}
    refute Map.has_key?(metadata, :byte_size)

    assert_received {[:emily, :to_binary, :stop], %{duration: _},
                     %{shape: [2, 3], dtype: {:u, 8}, byte_size: 6}}
  end

  test "a failed read is an exception event" do
    dead = tensor()
    Native.deallocate(dead)
    assert_raise ArgumentError, fn -> Emily.to_binary(dead) end

    assert_received {[:emily, :to_binary, :exception], %{duration: _},
                     %{kind: :error, reason: %ArgumentError{}, stacktrace: [_ | _]}}

    assert_raise ArgumentError, fn -> Emily.eval(:none) end
    assert_received {[:emily, :eval, :exception], _, %{reason: %ArgumentError{}}}
  end

  test "memory stats are measurements" do
    stats = Memory.stats()
    assert_received {[:emily, :memory, :stats], ^stats, metadata} when metadata == %{}
    assert Map.keys(Telemetry.memory_stats()) == [:active, :cache, :peak]
    assert_received {[:emily, :memory, :stats], %{active: _, peak: _, cache: _}, _}
  end

  test "building and evaluating in the native layer emits nothing" do
    w = Emily.Stream.new(Emily.TestDevice.device()).worker
    Native.eval(w, Native.add(w, tensor(), tensor()))
    refute_received {[:emily | _], _, _}
  end

  describe "fallback" do
    @inputs [%{shape: {2, 3}, type: {:f, 32}}, %{shape: {}, type: {:s, 64}}]

    test "is a span with the op and its inputs" do
      assert Telemetry.fallback(:reduce, @inputs, fn -> :result end) == :result

      metadata = %{
        op: :reduce,
        input_shapes: [{2, 3}, {}],
        input_dtypes: [{:f, 32}, {:s, 64}]
      }

      for suffix <- [:start, :stop] do
        assert_received {[:emily, :fallback, ^suffix], _, got}
        assert Map.delete(got, :telemetry_span_context) == metadata
      end
    end

    test "is silent by default" do
      assert Telemetry.fallback_mode() == :silent
      assert capture_log(fn -> Telemetry.fallback(:reduce, @inputs, fn -> :ok end) end) == ""
    end

    test "warns once for an operation and its shapes" do
      configure(:fallback, :warn)
      Telemetry.reset_dedup()

      log =
        capture_log(fn ->
          for _ <- 1..3, do: Telemetry.fallback(:reduce, @inputs, fn -> :ok end)
        end)

      assert length(String.split(log, "reduce fell back to Nx.BinaryBackend")) == 2
      assert log =~ "shapes=[{2, 3}, {}] dtypes=[f: 32, s: 64]"

      assert capture_log(fn -> Telemetry.fallback(:reduce, tl(@inputs), fn -> :ok end) end) =~
               "reduce fell back"
    end

    test "raises before the span, without running" do
      configure(:fallback, :raise)

      error =
        assert_raise RuntimeError, fn ->
          Telemetry.fallback(:reduce, @inputs, fn -> flunk("it ran") end)
        end

      assert error.message =~ "reduce fell back to Nx.BinaryBackend, shapes=[{2, 3}, {}] dtypes="
      refute_received {[:emily, :fallback | _], _, _}
    end

    test "warn_on_fallback counts where fallback is not set" do
      configure(:warn_on_fallback, true)
      assert Telemetry.fallback_mode() == :warn
      configure(:fallback, :silent)
      assert Telemetry.fallback_mode() == :silent
    end

    test "refuses another mode" do
      configure(:fallback, :quiet)

      assert_raise ArgumentError, ~r/invalid :emily, :fallback config: .* got: :quiet/, fn ->
        Telemetry.fallback_mode()
      end
    end
  end

  describe "metrics" do
    @compile {:no_warn_undefined, Elixir.Telemetry.Metrics}
    @installed Code.ensure_loaded?(Elixir.Telemetry.Metrics)

    if @installed do
      test "are of events that are there, with measurements that they have" do
        metrics = Telemetry.metrics()
        assert length(metrics) == 11

        # The measurements of the events that Emily.Telemetry documents.
        measured = %{
          [:emily, :eval, :stop] => %{duration: 1},
          [:emily, :async_eval, :stop] => %{duration: 1},
          [:emily, :to_binary, :stop] => %{duration: 1},
          [:emily, :fallback, :stop] => %{duration: 1},
          [:emily, :block, :fallback] => %{},
          [:emily, :compiler, :compile, :stop] => %{duration: 1},
          [:emily, :compiler, :fallback] => %{count: 1},
          [:emily, :memory, :stats] => %{active: 1_000_000, peak: 2_000_000, cache: 3_000_000}
        }

        for %module{event_name: event, measurement: measurement} = metric <- metrics do
          measurements = Map.fetch!(measured, event)

          cond do
            module == Elixir.Telemetry.Metrics.Counter ->
              :ok

            is_function(measurement, 2) ->
              assert is_number(measurement.(measurements, %{byte_size: 7}))

            is_function(measurement, 1) ->
              assert is_number(measurement.(measurements))

            true ->
              assert is_map_key(measurements, measurement)
          end

          assert metric.description
        end

        # In megabytes, as last seen.
        [active] = for %{name: [:emily, :memory, :stats, :active]} = m <- metrics, do: m
        assert active.measurement.(measured[[:emily, :memory, :stats]]) == 1.0
      end
    else
      test "need their package" do
        assert_raise RuntimeError, ~r/needs the package telemetry_metrics/, &Telemetry.metrics/0
      end
    end
  end
end
