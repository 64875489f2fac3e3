defmodule Emily.Events do
  @moduledoc false
  # Telemetry events as messages to the test that wants them.

  @doc "Calls `fun`; `{event, measurements, metadata}` of each of the events comes to this process."
  def during(events, options \\ [], fun) do
    handler = {__MODULE__, make_ref()}
    config = {self(), Keyword.get(options, :of_all, false)}
    :telemetry.attach_many(handler, events, &__MODULE__.forward/4, config)

    try do
      fun.()
    after
      :telemetry.detach(handler)
    end
  end

  @doc false
  # Events of other processes are not this test's, unless it asks for all.
  def forward(event, measurements, metadata, {test, of_all?}) do
    if of_all? or self() == test, do: send(test, {event, measurements, metadata})
  end
end
