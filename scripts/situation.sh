#!/usr/bin/env bash
# Says where Nx comes from on this machine:
#   system  Nx is on ERL_LIBS: Mix runs with EMILY_SYSTEM_DEPS=1
#   hex     Hex is installed: `mix deps.get` brings Nx
#   none    neither: all but the Nx side is built and tested, with EMILY_SYSTEM_DEPS=1 too
set -euo pipefail

IFS=:
for folder in ${ERL_LIBS:-}; do
  if compgen -G "$folder/nx*/ebin/Elixir.Nx.beam" >/dev/null; then
    echo system
    exit
  fi
done

archives=${MIX_ARCHIVES:-${MIX_HOME:-$HOME/.mix}}
if [ -z "${EMILY_SYSTEM_DEPS:-}" ] && [ -n "$(find "$archives" -maxdepth 4 -name 'hex-*' 2>/dev/null)" ]; then
  echo hex
else
  echo none
fi
