defmodule Emily.Footprint do
  @moduledoc false
  # What this operating system process holds: threads, open files and resident bytes. Linux only.

  defstruct [:threads, :files, :resident]

  def known?, do: File.dir?("/proc/self/task")

  def now do
    # The BEAM reads through the folder of its own process, whichever thread asks.
    %__MODULE__{
      threads: length(File.ls!("/proc/self/task")),
      files: length(File.ls!("/proc/self/fd")),
      resident: resident()
    }
  end

  defp resident do
    [_, kilobytes] = Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, File.read!("/proc/self/status"))
    String.to_integer(kilobytes) * 1024
  end
end
