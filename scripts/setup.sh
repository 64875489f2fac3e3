#!/usr/bin/env bash
# Brings what building and testing emily needs.
#   setup.sh           installs what is missing, on Debian 12 and 13, as root or with sudo; on other
#                      systems names it and how to get it
#   setup.sh --check   only looks for what building the NIF needs
# What is there is left as it is; with nothing missing it is done in a second.
set -euo pipefail
cd "$(dirname "$0")/.."
# Where rustup puts cargo, whether or not the shell was told.
PATH=$PATH:$HOME/.cargo/bin

rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
elixir=1.17
debian=
if [ -r /etc/os-release ]; then
  debian=$(. /etc/os-release && if [ "$ID" = debian ]; then echo "${VERSION_CODENAME:-}"; fi)
fi

## What is looked for (macOS has bash 3.2: no associative arrays)

at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

has() {
  local version folders
  case $1 in
    elixir) version=$(elixir --short-version 2>/dev/null) && at_least "$elixir" "$version" ;;
    rust) version=$(cargo --version 2>/dev/null) && at_least "$rust" "$(cut -d ' ' -f 2 <<<"$version")" ;;
    lints) cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ;;
    # mlx-c includes it; g++ has it from version 13 on.
    cxx) echo '#include <format>' | ${CXX:-c++} -std=c++20 -fsyntax-only -x c++ - 2>/dev/null ;;
    python) python3 -c 'import pip' 2>/dev/null ;;
    make) command -v make >/dev/null ;;
    libclang)
      # Where bindgen looks for it.
      [ -n "${LIBCLANG_PATH:-}" ] && return
      folders="$(llvm-config --libdir 2>/dev/null || true) /usr/lib* /usr/lib/*-linux-* /usr/lib*/llvm*/lib*
        /usr/local/lib* /usr/local/llvm*/lib* /opt/homebrew/opt/llvm/lib
        /Library/Developer/CommandLineTools/usr/lib
        /Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib"
      # shellcheck disable=SC2086 # these are patterns
      [ -n "$(find $folders -maxdepth 1 \( -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' -o -name libclang.dylib \) 2>/dev/null)" ]
      ;;
  esac
}

missing() { for tool in "$@"; do has "$tool" || echo "$tool"; done; }

## What is said

describe() {
  case $1 in
    elixir) echo "Elixir $elixir or newer" ;;
    rust) echo "cargo and rustc $rust or newer" ;;
    lints) echo "rustfmt and clippy" ;;
    cxx) echo "a C++ compiler with C++20's <format>: g++ 13 or newer (CXX names another than c++)" ;;
    make) echo "make" ;;
    python) echo "python3 with pip" ;;
    libclang) echo "libclang, for bindgen (LIBCLANG_PATH names its folder)" ;;
  esac
}

# apt-get's arguments for a tool: Debian 12 has most of them too old, Debian 13 cargo only.
packages() {
  case $1 in
    elixir) echo -t trixie elixir erlang-dev ;;
    cxx) echo -t trixie g++ ;;
    rust) echo -t trixie cargo/trixie-backports rustc/trixie-backports ;;
    lints) echo -t trixie rustfmt/trixie-backports rust-clippy/trixie-backports ;;
    python) echo python3-pip ;;
    libclang) echo libclang1 ;;
    make) echo make ;;
  esac
}

has_rustup() { command -v rustup >/dev/null; }

install_command() {
  case "${debian:-$(uname -s)} $1" in
    *\ rust | *\ lints)
      if has_rustup; then
        echo "rustup update stable && rustup default stable && rustup component add rustfmt clippy"
      elif [ -n "$debian" ]; then
        echo "make setup (which runs apt-get install $(packages "$1"))"
      else
        echo "curl --proto =https -sSf https://sh.rustup.rs | sh -s -- -y -c rustfmt -c clippy"
      fi
      ;;
    bookworm\ * | trixie\ *) echo "make setup (which runs apt-get install $(packages "$1"))" ;;
    Darwin\ elixir) echo "brew install elixir" ;;
    Darwin\ python) echo "brew install python3" ;;
    Darwin\ *) echo "xcode-select --install" ;;
    *) echo "your system's package manager" ;;
  esac
}

name_missing() {
  for tool in "$@"; do
    echo "missing: $(describe "$tool")"
    echo "    get it with: $(install_command "$tool")"
  done
}

## What is done on Debian

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "setup: neither root nor sudo, cannot run: $*" >&2
    exit 1
  fi
}

# Errors go to stderr; the lines about each package are many.
apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" >/dev/null; }

# Packages of the release are installed only when they are asked for: priority 100 is below that of
# Debian's own release.
add_release() {
  local mirror
  if [ -e "/etc/apt/sources.list.d/$1.sources" ] || [ -n "$(apt-cache policy | grep "n=$1,")" ]; then return; fi
  mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $debian" | head -n 1)
  echo "setup: adding $1 to apt's sources, pinned at priority 100"
  as_root tee "/etc/apt/sources.list.d/$1.sources" >/dev/null <<TXT
Types: deb
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: $1
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
TXT
  as_root tee "/etc/apt/preferences.d/$1" >/dev/null <<TXT
Package: *
Pin: release n=$1
Pin-Priority: 100
TXT
}

install_on_debian() {
  local tool plain="" newer=""
  for tool in "$@"; do
    case "$(packages "$tool")" in
      *trixie*) newer="$newer $(packages "$tool")" ;;
      *) plain="$plain $(packages "$tool")" ;;
    esac
  done
  case $newer in *trixie*) add_release trixie ;; esac
  case $newer in *backports*) add_release trixie-backports ;; esac
  echo "setup: installing$plain${newer//-t trixie/}"
  apt_get update -qq
  # shellcheck disable=SC2086 # lists of names
  {
    [ -z "$plain" ] || apt_get install -y -qq --no-install-recommends $plain
    [ -z "$newer" ] || apt_get install -y -qq --no-install-recommends $newer
  }
}

## The run

if [ "${1:-}" = --check ]; then
  lacking=$(missing rust cxx make libclang python)
  name_missing $lacking >&2
  [ -z "$lacking" ]
  exit
fi

tools="elixir cxx libclang python make rust lints"
lacking=$(missing $tools)
installable=$lacking
# What rustup looks after is left to it.
if has_rustup; then installable=$(grep -v -e rust -e lints <<<"$lacking" || true); fi
if [ "$debian" != bookworm ] && [ "$debian" != trixie ]; then installable=; fi
if [ -n "$installable" ]; then
  install_on_debian $installable
  lacking=$(missing $tools)
fi
if [ -n "$lacking" ]; then
  name_missing $lacking >&2
  exit 1
fi

# Hex is worth one try: without it and without Nx on ERL_LIBS the Nx side is left out.
situation=$(scripts/situation.sh)
if [ "$situation" = none ] && [ -z "${EMILY_SYSTEM_DEPS:-}" ]; then
  if EMILY_SYSTEM_DEPS=1 timeout 60 mix do local.hex --force --if-missing + local.rebar --force --if-missing >/dev/null 2>&1; then
    situation=$(scripts/situation.sh)
  fi
fi

case $situation in
  system) echo "setup: all tools are there; Nx is on ERL_LIBS ($ERL_LIBS)" ;;
  hex)
    echo "setup: all tools are there; Hex brings Nx"
    if ! mix deps.get; then
      echo "setup: Hex could not bring the dependencies; EMILY_SYSTEM_DEPS=1 makes do without Nx" >&2
      exit 1
    fi
    ;;
  none) echo "setup: all tools are there; neither Nx on ERL_LIBS nor Hex: the Nx side is left out" ;;
esac
