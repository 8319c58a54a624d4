# nsparse: `make quickstart` shows the main job, `make test` proves it. `make help` lists the rest.
# Everything is built with one optimised profile, so that no target builds the dependencies twice.

CARGO ?= cargo
NSPARSE := target/release/nsparse

.PHONY: help build quickstart test test-data lint doc deny check cuda check-cuda test-cuda clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

build: ## Build the program: target/release/nsparse
	$(CARGO) build --release --locked

quickstart: build ## The main job on embedded sample data: no server, nothing to download
	$(NSPARSE) quickstart

test: ## All tests that need nothing outside the repository, and those whose tools are installed
	scripts/test.sh

test-data: ## Tests on the data sets in NSPARSE_TEST_DATA (default ../shared/data)
	scripts/test.sh data

lint: ## Format and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --locked --features nsparse-integration-tests/all,nsparse/test-node,nsparse/test-browser,nsparse/parquet -- -D warnings

doc: ## The crates' documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps --locked

deny: ## Licences, bans and sources of all dependencies
	$(CARGO) deny check bans licenses sources

check: lint doc deny ## Everything that needs no run

cuda: ## The program with CUDA: target/cuda/nsparse; needs no GPU (docs/cuda.md)
	scripts/cuda-build.sh build

check-cuda: ## Lints and GPU-less tests of the CUDA build
	scripts/cuda-build.sh check

test-cuda: ## Tests and a benchmark on a GPU; fails where there is none
	scripts/cuda-build.sh test

clean: ## Remove what was built and what quickstart wrote
	$(CARGO) clean
	rm -rf quickstart
