# Every target does the set-up that it needs first: `make test` on a fresh Debian 12 or 13 is enough.
# EMILY_MLX_VARIANT chooses the build of MLX: metal, cpu, cuda12 or cuda13.
# ERL_LIBS names a folder of compiled Erlang applications, Nx among them, for machines without Hex.

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
export ERL_LIBS ?= $(wildcard $(HOME)/.cache/emily/erl_libs)

# Asked for when a recipe starts, after the set-up: system, hex or none. GNU make before 4.4 does
# not export to $(shell).
SITUATION = $(shell ERL_LIBS='$(ERL_LIBS)' EMILY_SYSTEM_DEPS='$(EMILY_SYSTEM_DEPS)' scripts/situation.sh)
MIX = $(if $(filter hex,$(SITUATION)),,EMILY_SYSTEM_DEPS=1 )mix
CARGO_FLAGS = --release --locked

.PHONY: setup build demo test bench fmt lint docs clean

setup:
	@scripts/setup.sh

build: setup
	$(MIX) compile

demo: build
	$(MIX) run examples/smollm2.exs
	$(if $(filter none,$(SITUATION)),@echo "Left out without Nx: examples/streams.exs",$(MIX) run examples/streams.exs)

test: setup
	cargo test $(CARGO_FLAGS) --no-fail-fast --package emily-core
	$(MIX) test

bench: build
	@for bench in $(filter-out $(if $(filter none,$(SITUATION)),bench/backend.exs),$(wildcard bench/*.exs)); do echo "== $$bench"; $(MIX) run $$bench || exit 1; done

fmt: setup
	cargo fmt --all
	$(MIX) format

lint: setup
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	$(MIX) format --check-formatted
	MIX_ENV=test $(MIX) compile --warnings-as-errors

docs: build
	$(if $(filter hex,$(SITUATION)),mix docs,@echo "Left out without Hex: ex_doc")

# What was downloaded stays in the cache folder.
clean:
	rm -rf _build deps doc priv target
