defmodule Emily.NativeProgramTest do
  # Programs through the native module: what the compiler makes of a defn, without a defn.
  use ExUnit.Case, async: true

  import Emily.Eventually

  alias Emily.{Elements, Hostile, Native}
  alias Emily.Native.{Call, Nif}

  @f32 {:f, 32}
  @s32 {:s, 32}

  setup do
    {:ok, w: Emily.Stream.new(Emily.TestDevice.device()).worker}
  end

  defp f32(numbers), do: Elements.tensor(numbers, @f32)
  defp scalar(number, type \\ @f32), do: Elements.tensor([number], type, [])

  defp floats(w, ref) do
    for <<x::float-32-native <- Call.to_binary(w, ref)>>, do: x
  end

  defp integers(w, ref) do
    for <<x::signed-32-native <- Call.to_binary(w, ref)>>, do: x
  end

  defp compile(w, inputs, constants, steps, outputs) do
    Call.compile_program(w, inputs, constants, steps, outputs, false)
  end

  # Asks key `key` about its one input of s32.
  defp asking(w, key) do
    compile(w, [{[], @s32}], [], [{:call, [0], key, [{[], @s32}]}], [1])
  end

  # {count, sum}: asks 1 about even counts and 2 about odd ones, in a branch in a loop, and sums the answers.
  defp questions(w) do
    state = [{[], @s32}, {[], @s32}]
    inner = state ++ [{[], @s32}]
    condition = compile(w, inner, [], [{:apply, :less, [0, 2], 1}], [3])

    steps = [
      {:apply, :remainder, [0, 4], 1},
      {:cond, 5, [0], asking(w, 2), asking(w, 1)},
      {:apply, :add, [1, 6], 1},
      {:apply, :add, [0, 3], 1}
    ]

    body = compile(w, inner, [scalar(1, @s32), scalar(2, @s32)], steps, [8, 7])
    compile(w, inner, [], [{:while, [0, 1], [2], condition, body}], [3, 4])
  end

  # Runs for longer than any test lasts.
  defp endless(w) do
    condition = compile(w, [{[], @f32}], [scalar(1.0e9)], [{:apply, :less, [0, 1], 1}], [2])
    body = compile(w, [{[], @f32}], [], [{:apply, :sin, [0], 1}], [1])
    compile(w, [{[], @f32}], [], [{:while, [0], [], condition, body}], [1])
  end

  defp run(w, program, inputs), do: Call.run_program(w, program, inputs, &no_call/2)

  defp no_call(key, _tensors), do: flunk("asked #{key}")

  # {count, value} is doubled while count < limit; the limit is captured.
  defp doubling(w) do
    state = [{[], @s32}, {[2], @f32}]
    inner = state ++ [{[], @s32}]
    condition = compile(w, inner, [], [{:apply, :less, [0, 2], 1}], [3])
    steps = [{:apply, :add, [0, 3], 1}, {:apply, :add, [1, 1], 1}]
    body = compile(w, inner, [scalar(1, @s32)], steps, [4, 5])
    compile(w, inner, [], [{:while, [0, 1], [2], condition, body}], [3, 4])
  end

  describe "a step" do
    test "applies an op to inputs and constants", %{w: w} do
      steps = [
        {:apply, :multiply, [0, 1], 1},
        {:apply, {:sum, %{axes: [0], keep_axes: true}}, [2], 1}
      ]

      program = compile(w, [{[3], @f32}], [scalar(10.0)], steps, [3, 2, 0])
      assert [sum, product, x] = run(w, program, [f32([1.0, 2.0, 3.0])])
      assert floats(w, sum) == [60.0]
      assert floats(w, product) == [10.0, 20.0, 30.0]
      assert floats(w, x) == [1.0, 2.0, 3.0]
    end

    test "loops while a condition holds", %{w: w} do
      program = doubling(w)

      for {limit, factor} <- [{0, 1.0}, {1, 2.0}, {10, 1024.0}] do
        inputs = [scalar(0, @s32), f32([1.0, -1.0]), scalar(limit, @s32)]
        assert [count, value] = run(w, program, inputs)
        assert integers(w, count) == [limit]
        assert floats(w, value) == [factor, -factor]
      end
    end

    test "takes the branch that a scalar says", %{w: w} do
      on_true = compile(w, [{[2], @f32}], [], [{:apply, :negative, [0], 1}], [1])
      on_false = compile(w, [{[2], @f32}], [], [{:apply, :square, [0], 1}], [1])
      steps = [{:cond, 0, [1], on_true, on_false}]
      program = compile(w, [{[], {:pred, 1}}, {[2], @f32}], [], steps, [2])

      for {truth, expected} <- [{1, [-3.0, 4.0]}, {0, [9.0, 16.0]}] do
        assert [taken] = run(w, program, [scalar(truth, {:pred, 1}), f32([3.0, -4.0])])
        assert floats(w, taken) == expected
      end
    end

    test "may have several outputs and absent inputs", %{w: w} do
      matrix = Elements.tensor([2.0, 0.0, 0.0, 4.0], @f32, [2, 2])
      clip = {:apply, :clip, [1, nil, 0], 1}
      split = {:apply, {:split, %{parts: 2, axis: 0}}, [3], 2}
      program = compile(w, [{[], @f32}, {[2, 2], @f32}], [scalar(0.5)], [clip, split], [4, 5])
      assert [first, second] = run(w, program, [scalar(3.0), matrix])
      assert floats(w, first) == [2.0, 0.0]
      assert floats(w, second) == [0.0, 3.0]
    end

    test "asks the caller, which may compute on the same stream meanwhile", %{w: w} do
      steps = [
        {:apply, :negative, [0], 1},
        {:call, [1, 0], 7, [{[2], @f32}]},
        {:apply, :add, [2, 1], 1}
      ]

      program = compile(w, [{[2], @f32}], [], steps, [3])

      on_call = fn 7, [negative, x] ->
        assert floats(w, negative) == [-1.0, -2.0]
        [Native.multiply(w, x, f32([100.0, 100.0]))]
      end

      assert [sum] = Call.run_program(w, program, [f32([1.0, 2.0])], on_call)
      assert floats(w, sum) == [99.0, 198.0]
    end

    test "asks in a branch in a loop", %{w: w} do
      test = self()

      on_call = fn key, [count] ->
        [number] = integers(w, count)
        send(test, {:asked, key, number})
        [scalar(number * 10 + key, @s32)]
      end

      inputs = [scalar(0, @s32), scalar(0, @s32), scalar(5, @s32)]
      assert [count, sum] = Call.run_program(w, questions(w), inputs, on_call)
      assert integers(w, count) == [5]
      assert integers(w, sum) == [1 + 12 + 21 + 32 + 41]

      for number <- 0..4,
          do: assert_received({:asked, key, ^number} when key == rem(number, 2) + 1)

      refute_received {:asked, _, _}
    end
  end

  describe "a question" do
    test "may be answered with a tensor of another stream", %{w: w} do
      other = Emily.Stream.new(Emily.TestDevice.device()).worker
      ten = scalar(10, @s32)
      on_call = fn 3, [x] -> [Native.multiply(other, x, ten)] end
      assert [product] = Call.run_program(w, asking(w, 3), [scalar(7, @s32)], on_call)
      assert integers(w, product) == [70]
    end

    test "takes only what the program said", %{w: w} do
      program = asking(w, 3)

      for wrong <- [[], [scalar(1.0)], [f32([1.0])], [scalar(1, @s32), scalar(1, @s32)], [:x], :y] do
        assert_raise ArgumentError, ~r/^program: /, fn ->
          Call.run_program(w, program, [scalar(7, @s32)], fn 3, _ -> wrong end)
        end
      end
    end

    test "that raises ends the run and leaves nothing in the mailbox", %{w: w} do
      program = asking(w, 3)

      for raise_it <- [fn -> raise "no" end, fn -> throw(:no) end, fn -> exit(:no) end] do
        catch_it = fn ->
          Call.run_program(w, program, [scalar(7, @s32)], fn 3, _ -> raise_it.() end)
        end

        assert {kind, reason} = caught(catch_it)

        assert {kind, reason} in [
                 {:error, %RuntimeError{message: "no"}},
                 {:throw, :no},
                 {:exit, :no}
               ]
      end

      refute_received _
    end

    test "is answered once, by the stream that asked", %{w: w} do
      other = Emily.Stream.new(Emily.TestDevice.device()).worker
      {:ok, _job} = Nif.program_run(w, asking(w, 3), [scalar(7, @s32)], :wait, :tag)
      assert_receive {:tag, {:call, run, 3, [_]}}
      answer = [scalar(8, @s32)]

      {:ok, _job} = Nif.program_resume(other, run, answer, :elsewhere)
      assert_receive {:elsewhere, {:error, {:invalid_argument, text}}}
      assert text =~ "one that this stream has begun"

      {:ok, _job} = Nif.program_resume(w, run, answer, :first)
      assert_receive {:first, {:ok, [result]}}
      assert integers(w, result) == [8]

      {:ok, _job} = Nif.program_resume(w, run, answer, :second)
      assert_receive {:second, {:error, {:invalid_argument, text}}}
      assert text =~ "has gone on"
    end

    test "of a caller that dies leaves the stream free", %{w: w} do
      test = self()
      program = asking(w, 3)

      {caller, monitor} =
        spawn_monitor(fn ->
          Call.run_program(w, program, [scalar(7, @s32)], fn 3, _ ->
            send(test, :asked)
            Process.sleep(:infinity)
          end)
        end)

      assert_receive :asked
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
      assert [x] = Call.run_program(w, program, [scalar(7, @s32)], fn 3, [x] -> [x] end)
      assert integers(w, x) == [7]
    end
  end

  defp caught(fun) do
    fun.()
  catch
    kind, reason -> {kind, reason}
  end

  describe "a long program" do
    test "stops when its stream is closed" do
      stream = Emily.Stream.new(Emily.TestDevice.device())
      w = stream.worker
      program = endless(w)
      task = Task.async(fn -> caught(fn -> run(w, program, [scalar(1.0)]) end) end)
      # The one job that there is runs.
      busy(task.pid)
      Emily.Stream.close(stream)
      assert {:error, %RuntimeError{message: message}} = Task.await(task)
      assert message =~ "stopped"
    end

    test "stops when its caller dies", %{w: w} do
      program = endless(w)
      {caller, monitor} = spawn_monitor(fn -> run(w, program, [scalar(1.0)]) end)
      busy(caller)
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
      # Jobs behind it are served.
      assert floats(w, Native.add(w, scalar(1.0), scalar(2.0))) == [3.0]
    end
  end

  defp busy(caller) do
    eventually(fn -> match?({:status, :waiting}, Process.info(caller, :status)) end)
  end

  describe "a program" do
    test "is refused where a register, a type or a number of outputs is wrong", %{w: w} do
      x = [{[3], @f32}]
      body = compile(w, [{[], @f32}], [], [{:apply, {:astype, %{dtype: @s32}}, [0], 1}], [1])
      same = compile(w, [{[], @f32}], [], [], [0])

      for {steps, outputs, text} <- [
            {[{:apply, :add, [0, 1], 1}], [1], "wrong register"},
            {[], [1], "wrong output"},
            {[{:apply, :add, [0], 1}], [1], "add: wrong number of inputs"},
            {[{:apply, :exp, [0], 2}], [1], "number of outputs"},
            {[{:apply, {:sum, %{axes: [1], keep_axes: true}}, [0], 1}], [1], "sum: wrong axes"},
            {[{:while, [0], [], same, same}], [1], "wrong condition"},
            {[{:cond, 0, [], same, same}], [1], "wrong predicate"},
            {[{:call, [0], :key, []}], [0], "wrong step"},
            {[{:call, [0], 1, [{[-1], @f32}]}], [0], "zeros: wrong shape"}
          ] do
        assert_raise ArgumentError, ~r/#{text}/, fn -> compile(w, x, [], steps, outputs) end
      end

      assert_raise ArgumentError, ~r/wrong state/, fn ->
        compile(w, [{[], @f32}], [], [{:while, [0], [], same, body}], [1])
      end
    end

    test "checks what it is run with", %{w: w} do
      program = compile(w, [{[2], @f32}], [], [{:apply, :exp, [0], 1}], [1])

      for wrong <- [[], [scalar(1.0)], [f32([1.0, 2.0]), f32([1.0])], [:x], [{:donate, :x}], :y] do
        assert_raise ArgumentError, ~r/^program: /, fn -> run(w, program, wrong) end
      end
    end

    test "takes lazy constants and inputs of any stream", %{w: w} do
      other = Emily.Stream.new(Emily.TestDevice.device()).worker
      lazy = fn -> Native.add(other, f32([1.0, 2.0]), f32([1.0, 2.0])) end
      program = compile(w, [{[2], @f32}], [lazy.()], [{:apply, :multiply, [0, 1], 1}], [2])
      assert [product] = run(w, program, [lazy.()])
      assert floats(w, product) == [4.0, 16.0]
    end

    test "uses donated inputs up", %{w: w} do
      program = compile(w, [{[2], @f32}], [], [{:apply, :add, [0, 0], 1}], [1])
      x = f32([1.0, 2.0])
      assert [sum] = run(w, program, [{:donate, x}])
      assert floats(w, sum) == [2.0, 4.0]
      assert_raise ArgumentError, ~r/deallocated/, fn -> Native.eval(w, Native.exp(w, x)) end
      assert_raise ArgumentError, ~r/deallocated/, fn -> run(w, program, [x]) end
    end

    test "that is not run for its inputs' sake leaves donated ones alone", %{w: w} do
      program = compile(w, [{[2], @f32}], [], [{:apply, :add, [0, 0], 1}], [1])
      x = f32([1.0, 2.0, 3.0])
      assert_raise ArgumentError, fn -> run(w, program, [{:donate, x}]) end
      assert floats(w, x) == [1.0, 2.0, 3.0]
    end

    test "tells how large it is", %{w: w} do
      assert Nif.program_info(doubling(w)) == {3, 2}
      assert Nif.program_info(questions(w)) == {4, 3}
    end

    test "runs on four streams at once with the same bits", %{w: w} do
      matrix = Elements.tensor(for(i <- 1..256, do: rem(i * 7919, 101) / 50 - 1), @f32, [16, 16])

      steps = [
        {:apply, :matmul, [0, 1], 1},
        {:apply, :tanh, [2], 1},
        {:apply, :matmul, [3, 0], 1},
        {:apply, {:sum, %{axes: [1], keep_axes: false}}, [4], 1}
      ]

      program = compile(w, [{[16, 16], @f32}], [matrix], steps, [5, 3])
      serial = for output <- run(w, program, [matrix]), do: Call.to_binary(w, output)

      streams =
        for _ <- 1..4 do
          Task.async(fn ->
            own = Emily.Stream.new(Emily.TestDevice.device()).worker

            for _ <- 1..2_500, reduce: true do
              same? ->
                outputs = run(own, program, [matrix])
                same? and Enum.map(outputs, &Call.to_binary(own, &1)) == serial
            end
          end)
        end

      assert Task.await_many(streams, :infinity) == [true, true, true, true]
    end
  end

  describe "what is scheduled" do
    test "is lazy and has the same numbers", %{w: w} do
      x = f32([1.0, 2.0])
      lazy = Native.add(w, x, x)
      assert Call.async_eval(w, [lazy, x]) == :ok
      refute Native.ready?(lazy)
      more = Native.multiply(w, lazy, lazy)
      assert floats(w, lazy) == [2.0, 4.0]
      assert Native.ready?(lazy)
      assert floats(w, more) == [4.0, 16.0]
    end

    test "goes to other streams", %{w: w} do
      other = Emily.Stream.new(Emily.TestDevice.device()).worker
      x = f32([1.0, 2.0])
      lazy = Native.add(w, x, x)
      Call.async_eval(w, [lazy])
      assert floats(other, Native.multiply(other, lazy, lazy)) == [4.0, 16.0]
      # Lazy at another stream: made ready there first.
      foreign = Native.add(other, x, x)
      assert Call.async_eval(w, [foreign]) == :ok
      assert Native.ready?(foreign)
    end

    test "is a program's output, and the next one's input", %{w: w} do
      program = compile(w, [{[2], @f32}], [], [{:apply, :add, [0, 0], 1}], [1])

      [last] =
        for _ <- 1..20, reduce: [f32([1.0, -3.0])] do
          [x] -> Call.run_program(w, program, [{:donate, x}], &no_call/2, :schedule)
        end

      refute Native.ready?(last)
      assert floats(w, last) == [1_048_576.0, -3_145_728.0]
    end

    test "is waited for where it can fail", %{w: w} do
      singular = Elements.tensor([1.0, 2.0, 2.0, 4.0], @f32, [2, 2])
      inverse = Call.apply(w, :linalg_inv, [singular])
      assert_raise RuntimeError, fn -> Call.async_eval(w, [inverse]) end

      program = compile(w, [{[2, 2], @f32}], [], [{:apply, :linalg_inv, [0], 1}], [1])

      assert_raise RuntimeError, fn ->
        Call.run_program(w, program, [singular], &no_call/2, :schedule)
      end

      # Nobody else is told.
      assert floats(w, Native.add(w, scalar(1.0), scalar(2.0))) == [3.0]
    end

    test "is a list of tensors, or an error", %{w: w} do
      for wrong <- [:x, [:y], [nil], [1 | 2]] do
        assert_raise ArgumentError, ~r/^async_eval: /, fn -> Call.async_eval(w, wrong) end
      end

      assert_raise FunctionClauseError, fn -> Emily.async_eval(f32([1.0])) end
    end

    test "by Emily.async_eval, on the caller's stream" do
      stream = Emily.Stream.new(Emily.TestDevice.device())
      x = f32([1.0, 2.0])

      Emily.Stream.with_stream(stream, fn ->
        lazy = Native.add(stream.worker, x, x)
        assert Emily.async_eval([lazy]) == :ok
        assert Emily.to_binary(lazy) == Elements.encode([2.0, 4.0], @f32)
      end)
    end
  end

  describe "edited at random" do
    @edits 10_000

    @tag timeout: 600_000
    test "a program is refused or runs", %{w: w} do
      :rand.seed(:exsss, {20, 26, 11})
      programs = List.to_tuple(programs(w))

      outcomes =
        for _ <- 1..@edits do
          {parts, inputs} = elem(programs, :rand.uniform(tuple_size(programs)) - 1)
          [templates, constants, steps, outputs] = edited = edit(parts, w)

          case Nif.program_compile(w, templates, constants, steps, outputs, false) do
            {:error, {:invalid_argument, text}} when is_binary(text) ->
              :refused

            program when is_reference(program) ->
              # What takes much memory or time is only compiled.
              if small?(edited), do: try_run(w, program, inputs), else: :compiled
          end
        end

      frequencies = Enum.frequencies(outcomes)
      assert Enum.sum(Map.values(frequencies)) == @edits
      assert frequencies.refused > div(@edits, 2)
      assert frequencies.ran > 500
      # The stream is as it was.
      assert floats(w, Native.add(w, scalar(1.0), scalar(2.0))) == [3.0]
    end
  end

  defp programs(w) do
    four = [{[2, 2], @f32}, {[2, 2], @f32}]
    matrix = Elements.tensor([1.0, 2.0, 3.0, 4.0], @f32, [2, 2])
    count = {[], @s32}
    [one, ten] = [scalar(1, @s32), scalar(10, @s32)]
    condition = compile(w, [count, {[2, 2], @f32}], [ten], [{:apply, :less, [0, 2], 1}], [3])
    steps = [{:apply, :add, [0, 2], 1}, {:apply, :sin, [1], 1}]
    body = compile(w, [count, {[2, 2], @f32}], [one], steps, [3, 4])
    same = compile(w, four, [], [], [0])
    sum = compile(w, four, [], [{:apply, :add, [0, 1], 1}], [2])

    [
      {[
         four,
         [matrix, scalar(0.5)],
         [
           {:apply, :matmul, [0, 1], 1},
           {:apply, {:sum, %{axes: [0], keep_axes: true}}, [4], 1},
           {:apply, {:concatenate, %{axis: 0}}, [4, 5, 2], 1},
           {:apply, {:slice, %{starts: [0, 0], stops: [4, 2], strides: [2, 1]}}, [6], 1},
           {:apply, {:transpose, %{axes: [1, 0]}}, [7], 1},
           {:apply, {:astype, %{dtype: @s32}}, [8], 1},
           {:apply, {:take, %{axis: 0}}, [0, 9], 1},
           {:apply, :multiply, [10, 3], 1},
           {:apply, {:split, %{parts: 2, axis: 0}}, [11], 2}
         ],
         [11, 4, 12, 0]
       ], [matrix, matrix]},
      {[
         [count, {[2, 2], @f32}],
         [ten],
         [
           {:while, [0, 1], [], condition, body},
           {:apply, :equal, [3, 2], 1},
           {:cond, 5, [1, 4], sum, same},
           {:call, [6], 4, [{[2, 2], @f32}]}
         ],
         [7, 3]
       ], [scalar(0, @s32), matrix]}
    ]
  end

  defp edit(parts, w) do
    times = :rand.uniform(3)
    Enum.reduce(1..times, parts, fn _, parts -> edit_at(parts, w, :rand.uniform(6)) end)
  end

  # Goes down to a random place, more or less deep, and changes what stands there.
  defp edit_at(list, w, depth) when is_list(list) and list != [] and depth > 0 do
    if List.improper?(list),
      do: change(list, w),
      else: List.update_at(list, random(length(list)), &edit_at(&1, w, depth - 1))
  end

  defp edit_at(tuple, w, depth) when is_tuple(tuple) and tuple != {} and depth > 0 do
    at = random(tuple_size(tuple))
    put_elem(tuple, at, edit_at(elem(tuple, at), w, depth - 1))
  end

  defp edit_at(map, w, depth) when is_map(map) and map != %{} and depth > 0 do
    {key, value} = Enum.random(map)
    Map.put(map, key, edit_at(value, w, depth - 1))
  end

  defp edit_at(term, w, _depth), do: change(term, w)

  defp change(number, w) when is_integer(number) do
    Enum.random([number + 1, number - 1, random(14), random(14), term(w)])
  end

  defp change(list, w) when is_list(list) and list != [] do
    if List.improper?(list) do
      term(w)
    else
      Enum.random([
        tl(list),
        Enum.reverse(list),
        list ++ list,
        list ++ [term(w)],
        [hd(list) | term(w)],
        Enum.shuffle(list)
      ])
    end
  end

  defp change(tuple, w) when is_tuple(tuple) and tuple != {} do
    Enum.random([
      Tuple.delete_at(tuple, random(tuple_size(tuple))),
      Tuple.insert_at(tuple, tuple_size(tuple), term(w)),
      term(w)
    ])
  end

  defp change(op, w) when is_atom(op) do
    Enum.random([:add, :exp, :matmul, :linalg_qr, :apply, :while, :cond, :call, nil, term(w)])
  end

  defp change(_term, w), do: term(w)

  defp term(w), do: Enum.random(Hostile.terms(w))

  defp random(count), do: :rand.uniform(count) - 1

  defp small?(number) when is_integer(number), do: number < 1_000
  defp small?([head | tail]), do: small?(head) and small?(tail)
  defp small?(tuple) when is_tuple(tuple), do: small?(Tuple.to_list(tuple))
  defp small?(map) when is_map(map), do: small?(Map.values(map))
  defp small?(_term), do: true

  defp try_run(w, program, inputs),
    do: outcome(w, Nif.program_run(w, program, inputs, :wait, :edited))

  # An edited loop may never end. Questions are answered with what they show.
  defp outcome(_w, {:error, {kind, _text}}) when kind in [:invalid_argument, :runtime],
    do: :refused

  defp outcome(w, {:ok, job}) do
    receive do
      {:edited, {:ok, outputs}} ->
        read_all(w, outputs)

      {:edited, {:call, run, _key, shown}} ->
        outcome(w, Nif.program_resume(w, run, shown, :edited))

      {:edited, {:error, reason}} ->
        outcome(w, {:error, reason})
    after
      2_000 ->
        unless Nif.cancel(job), do: assert_receive({:edited, _late})
        :stopped
    end
  end

  defp read_all(w, outputs) do
    for output <- outputs, do: Call.to_binary(w, output)
    :ran
  end
end
