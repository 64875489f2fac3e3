defmodule Emily.LoadTest do
  use ExUnit.Case, async: true

  import Emily.Elements

  alias Emily.{Native, Stream}

  @moduletag :tmp_dir

  # Version 1.0: magic, length of the header, the header padded so that the elements are aligned to 64.
  defp npy(descr, shape, elements) do
    sizes = Enum.map_join(shape, ", ", &Integer.to_string/1)
    comma = if length(shape) == 1, do: ",", else: ""
    header = "{'descr': '#{descr}', 'fortran_order': False, 'shape': (#{sizes}#{comma}), }"
    padded = String.pad_trailing(header, 64 * div(byte_size(header) + 10 + 64, 64) - 11) <> "\n"
    <<0x93, "NUMPY", 1, 0, byte_size(padded)::16-little, padded::binary, elements::binary>>
  end

  defp safetensors(json, data), do: <<byte_size(json)::64-little, json::binary, data::binary>>

  # A GGUF version 3 with string, array and number metadata and one f32 tensor.
  defp gguf do
    string = fn text -> <<byte_size(text)::64-little, text::binary>> end

    metadata = [
      string.("general.name") <> <<8::32-little>> <> string.("tiny"),
      string.("tokens") <>
        <<9::32-little, 8::32-little, 2::64-little>> <> string.("a") <> string.("bc"),
      string.("count") <> <<4::32-little, 7::32-little>>
    ]

    tensor =
      string.("w") <> <<2::32-little, 3::64-little, 2::64-little, 0::32-little, 0::64-little>>

    header = <<"GGUF", 3::32-little, 1::64-little, 3::64-little>>
    head = IO.iodata_to_binary([header, metadata, tensor])
    padding = :binary.copy(<<0>>, rem(32 - rem(byte_size(head), 32), 32))
    head <> padding <> for(n <- 1..6, into: <<>>, do: <<n * 1.0::float-32-little>>)
  end

  defp write(folder, name, content) do
    path = Path.join(folder, name)
    File.write!(path, content)
    path
  end

  defp on_new_stream(fun) do
    stream = Stream.new(Emily.TestDevice.device())
    Stream.with_stream(stream, fn -> fun.(stream.worker) end)
  end

  test "npy", %{tmp_dir: folder} do
    elements = for n <- 1..6, into: <<>>, do: <<n * 0.5::float-32-little>>
    path = write(folder, "a.npy", npy("<f4", [2, 3], elements))

    on_new_stream(fn w ->
      assert %{tensors: %{"array" => tensor} = tensors, metadata: metadata} = Emily.load(path)
      assert {map_size(tensors), metadata} == {1, %{}}
      refute Native.ready?(tensor)
      assert read(w, tensor) == {{:f, 32}, [2, 3], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]}
    end)

    path = write(folder, "b.npy", npy("<i8", [2], <<-1::64-little, 5::64-little>>))
    %{tensors: %{"array" => tensor}} = Emily.load(path)
    assert decode(Emily.to_binary(tensor), {:s, 64}) == [-1, 5]
  end

  test "safetensors, with metadata", %{tmp_dir: folder} do
    json =
      ~s({"__metadata__":{"format":"pt","made by":"a test"},) <>
        ~s("a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},) <>
        ~s("b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},) <>
        ~s("c":{"dtype":"U8","shape":[],"data_offsets":[12,13]}})

    data =
      <<1.5::float-32-little, -2.0::float-32-little, 0x3F80::16-little, 0x4000::16-little, 9>>

    path = write(folder, "model.safetensors", safetensors(json, data))

    on_new_stream(fn w ->
      %{tensors: tensors, metadata: metadata} = Emily.load(path)
      assert metadata == %{"format" => "pt", "made by" => "a test"}
      assert Enum.sort(Map.keys(tensors)) == ["a.weight", "b", "c"]
      refute Enum.any?(Map.values(tensors), &Native.ready?/1)
      assert read(w, tensors["a.weight"]) == {{:f, 32}, [2], [1.5, -2.0]}
      assert read(w, tensors["b"]) == {{:bf, 16}, [1, 2], [1.0, 2.0]}
      assert read(w, tensors["c"]) == {{:u, 8}, [], [9]}
    end)
  end

  test "gguf, with metadata of every kind", %{tmp_dir: folder} do
    path = write(folder, "tiny.gguf", gguf())

    on_new_stream(fn w ->
      %{tensors: tensors, metadata: metadata} = Emily.load(path)
      # GGUF lists sizes from the last axis.
      assert read(w, tensors["w"]) == {{:f, 32}, [2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
      assert %{"general.name" => "tiny", "tokens" => ["a", "bc"], "count" => count} = metadata
      assert {{:u, 32}, [], [7]} = read(w, count)
    end)
  end

  test "tensors outlive the file and the stream", %{tmp_dir: folder} do
    path = write(folder, "a.npy", npy("|u1", [3], <<1, 2, 3>>))
    stream = Stream.new(Emily.TestDevice.device())
    %{tensors: %{"array" => tensor}} = Stream.with_stream(stream, fn -> Emily.load(path) end)
    Stream.close(stream)
    File.rm!(path)
    assert Emily.to_binary(tensor) == <<1, 2, 3>>
  end

  test "sixteen processes use the same lazy weights", %{tmp_dir: folder} do
    elements = for n <- 1..1000, into: <<>>, do: <<n * 1.0::float-32-little>>

    %{tensors: %{"array" => weights}} =
      Emily.load(write(folder, "a.npy", npy("<f4", [1000], elements)))

    sums =
      for _ <- 1..16 do
        Task.async(fn ->
          on_new_stream(fn w -> read(w, Native.sum(w, weights, [0], false)) end)
        end)
      end

    assert Enum.uniq(Task.await_many(sums, 60_000)) == [{{:f, 32}, [], [500_500.0]}]
  end

  test "a wrong name is an ArgumentError", %{tmp_dir: folder} do
    for name <- ["weights.bin", "weights", "weights.NPY", ""] do
      path = write(folder, "x" <> name, "content")

      assert_raise ArgumentError,
                   ~r/load: wrong file name, expected one ending in .gguf, .safetensors or .npy, got/,
                   fn -> Emily.load(path) end
    end

    assert_raise ArgumentError, ~r/expected a text in UTF-8/, fn ->
      Emily.load(<<255, ".npy">>)
    end
  end

  test "a file that cannot be read is a RuntimeError that names it", %{tmp_dir: folder} do
    missing = Path.join(folder, "missing.safetensors")
    error = assert_raise RuntimeError, fn -> Emily.load(missing) end
    assert error.message =~ "load: #{missing}: No such file or directory"

    folder_path = Path.join(folder, "folder.npy")
    File.mkdir!(folder_path)
    error = assert_raise RuntimeError, fn -> Emily.load(folder_path) end
    assert error.message =~ folder_path
  end

  test "broken files are errors, when they are loaded or first used", %{tmp_dir: folder} do
    good = %{
      "a.npy" => npy("<f4", [2, 3], :binary.copy(<<1>>, 24)),
      "a.safetensors" =>
        safetensors(~s({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}), <<0::64>>),
      "a.gguf" => gguf()
    }

    broken =
      for {name, content} <- good, kept <- 0..(byte_size(content) - 1)//7 do
        {name, binary_part(content, 0, kept)}
      end

    odd = [
      {"a.npy", "no numpy file at all, though it is long enough to have a header"},
      {"a.npy", npy("<f4", [2_000_000_000, 2_000_000_000], <<>>)},
      {"a.npy", npy("<f4", [-1], <<0::32>>)},
      {"a.npy", npy("|O", [1], <<0::32>>)},
      {"a.safetensors", <<-1::64, "{}">>},
      {"a.safetensors", safetensors("[1,2]", <<>>)},
      {"a.safetensors", safetensors("not json", <<>>)},
      {"a.safetensors",
       safetensors(~s({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}), <<0::64>>)},
      {"a.safetensors",
       safetensors(~s({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}), <<0::64>>)},
      {"a.safetensors", safetensors(~s({"a":{"shape":[2]}}), <<0::64>>)},
      {"a.gguf", "GGUF"},
      {"a.gguf", :binary.copy("x", 1000)}
    ]

    for {{name, content}, number} <- Enum.with_index(broken ++ odd) do
      path = write(folder, "#{number}-#{name}", content)
      assert {number, load_all(path)} == {number, :error}
    end

    assert on_new_stream(fn w -> read(w, Native.exp(w, tensor([0.0], {:f, 32}))) end) ==
             {{:f, 32}, [1], [1.0]}
  end

  defp load_all(path) do
    on_new_stream(fn w ->
      %{tensors: tensors} = Emily.load(path)
      for {_name, tensor} <- tensors, do: Native.to_binary(w, tensor)
    end)
  rescue
    _ in [ArgumentError, RuntimeError] -> :error
  end
end
