# Consolidates protocols, as Mix does in the project of whoever uses Emily. Here it does not where Nx lies on
# ERL_LIBS (see mix.exs), and each look-up of an implementation then costs a microsecond.

for protocol <- [Enumerable, Collectable, Inspect, String.Chars, Nx.Container, Nx.LazyContainer],
    not Protocol.consolidated?(protocol) do
  implementations = Protocol.extract_impls(protocol, :code.get_path())
  {:ok, code} = Protocol.consolidate(protocol, implementations)
  :code.purge(protocol)
  :code.delete(protocol)
  {:module, ^protocol} = :code.load_binary(protocol, ~c"#{protocol}", code)
end
