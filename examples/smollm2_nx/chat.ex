defmodule SmolLM2.Nx.Chat do
  @moduledoc """
  SmolLM2 as an `Nx.Serving`: questions in, answers out.

      serving = SmolLM2.Nx.Chat.serving({model, params}, tokenizer, tokens: 64, partitions: 2)
      children = [{Nx.Serving, serving: serving, name: Chat, batch_size: 1, partitions: true}]
      Nx.Serving.batched_run(Chat, "Why is the sky blue?")

  A batch is one question, and each partition has a stream of its own, so that as many questions are
  answered at a time as there are partitions. The weights are the same tensors for all.
  """

  alias SmolLM2.Nx.Generate
  alias SmolLM2.Tokenizer

  @doc """
  The serving. Options:

    * `:tokens` - the longest answer; 64 by default.
    * `:prompt` - the longest question, in tokens; 128 by default. A longer one raises ArgumentError.
    * `:partitions` - how many answer at the same time; 1 by default.
    * `:device` - where the partitions' streams are, `:gpu` by default.
    * `:defn_options` - of the compilations, the compiler among them.
  """
  @spec serving({SmolLM2.Nx.Model.t(), map}, Tokenizer.t(), keyword) :: Nx.Serving.t()
  def serving(model, tokenizer, options) do
    options =
      Keyword.validate!(options, [
        :defn_options,
        tokens: 64,
        prompt: 128,
        partitions: 1,
        device: :gpu
      ])

    room = Generate.padded(options[:prompt])
    stop = [Tokenizer.control!(tokenizer, "<|im_end|>")]

    answer = fn batch, defn_options ->
      {ids, count} = Nx.Defn.jit_apply(&Function.identity/1, [batch], defn_options)
      prompt = ids |> Nx.to_flat_list() |> Enum.take(Nx.to_number(count[0]))
      run = [stop: stop, positions: room + options[:tokens], defn_options: defn_options]
      %{ids: ids} = Generate.run(model, prompt, [tokens: options[:tokens]] ++ run)
      Nx.tensor([ids ++ List.duplicate(-1, options[:tokens] - length(ids))], type: :s32)
    end

    # A serving computes in tasks, to which the caller's default backend does not go.
    backend = {Emily.Backend, device: options[:device]}
    on_emily = &Nx.with_default_backend(backend, fn -> answer.(&1, &2) end)

    fn defn_options -> &on_emily.(&1, defn_options) end
    |> Nx.Serving.new([max_concurrency: options[:partitions]] ++ options[:defn_options])
    |> Nx.Serving.client_preprocessing(&{batch(tokenizer, &1, room), :no_info})
    |> Nx.Serving.client_postprocessing(fn {ids, _metadata}, :no_info ->
      Tokenizer.decode(tokenizer, for(id <- Nx.to_flat_list(ids), id >= 0, do: id))
    end)
    |> Emily.Serving.with_streams(device: options[:device])
  end

  defp batch(tokenizer, question, room) do
    prompt = Tokenizer.encode_chat(tokenizer, question)
    count = length(prompt)

    if count > room do
      raise ArgumentError, "the question has #{count} tokens, at most #{room} are answered"
    end

    Nx.with_default_backend(Nx.BinaryBackend, fn ->
      ids = Nx.tensor(prompt ++ List.duplicate(0, room - count), type: :s32)
      Nx.Batch.stack([{ids, Nx.tensor(count, type: :s32)}])
    end)
  end
end
