# AGoQ: `make demo` trains a model, `make test` runs the tests, `make help` lists the rest.
JOBS ?= $(shell nproc)
# The text that the demo learns: any UTF-8 file; empty: the one that a Debian package brings.
TEXT ?=
# Seconds for each fuzzer in `make check`.
FUZZ_SECONDS ?= 30
# no: use what is there, install nothing.
INSTALL ?= yes
# More options for CMake, e.g. CMAKE_FLAGS='-DAGOQ_NATIVE=OFF -DAGOQ_BENCH=ON'.
CMAKE_FLAGS ?=

# Objects found again by ccache wherever the checkout lies.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1
export JOBS

install = $(if $(filter no,$(INSTALL)),@:,@tools/install.sh)
# The CUDA backend is built where its compiler is.
frontend = $(if $(filter no,$(INSTALL)),@:,@tools/cudnn_frontend.sh || echo "warning: building without the CUDA backend" >&2)
# What the demo builds is for this machine alone, the program without tests; `make` adds the rest to it.
gpus = $(wildcard /dev/nvidia[0-9])
cmake = @cmake -G Ninja -S . --log-level=NOTICE
MAKEFLAGS += --no-print-directory

.NOTPARALLEL:
.PHONY: all venv demo test check bench format format-check lint sanitize fuzz build-sanitize clean help

all: ## Build the program build/agoq and the tests (the default)
	$(install) build
	$(frontend)
	$(cmake) -B build -DCMAKE_BUILD_TYPE=Release -DAGOQ_TESTS=ON -DAGOQ_CUDA_WITHOUT_GPU=ON $(CMAKE_FLAGS)
	@cmake --build build --parallel $(JOBS)

venv: ## Install the Python packages of 'agoq data' and 'agoq report' into .venv
	$(install) build
	@tools/venv.sh

demo: ## Build the program and train a small LLaMA on real text for two minutes; TEXT=FILE chooses the text
	$(install) program demo
	$(if $(gpus),$(frontend))
	$(cmake) -B build -DCMAKE_BUILD_TYPE=Release -DAGOQ_TESTS=OFF -DAGOQ_CUDA_WITHOUT_GPU=OFF $(CMAKE_FLAGS)
	@cmake --build build --parallel $(JOBS) --target agoq
	@tools/demo.sh $(if $(TEXT),"$(TEXT)")

test: ## Run all tests, C++ and Python
	$(install) build
	$(frontend)
	@tools/venv.sh python/requirements-dev.txt
	@$(MAKE) all INSTALL=no
	@ctest --test-dir build --output-on-failure --parallel $(JOBS)

check: ## Static checks, fuzzers and the tests under sanitizers
	$(install) build check
	@$(MAKE) INSTALL=no format-check lint fuzz sanitize

format: ## Format the C++ sources in place
	$(install) check
	@tools/format.sh

format-check: ## Fail on a source that is not formatted
	$(install) check
	@tools/format.sh --check
	@shellcheck examples/*.sbatch tools/*.sh tests/fuzz/*.sh .ci/run

# One build with clang serves sanitizers and fuzzers.
build-sanitize:
	$(install) build check
	$(cmake) -B build-sanitize -DCMAKE_CXX_COMPILER="$$(command -v clang++-14 || command -v clang++)" \
	  -DAGOQ_CUDA=OFF -DAGOQ_UNITY=OFF -DAGOQ_SANITIZE=address,undefined -DAGOQ_FUZZ=ON

lint: ## Run clang-tidy, and check that floors and rooms do not include each other in a circle
	$(install) build check
	@tools/check_layers.py
	$(cmake) -B build-lint -DCMAKE_CXX_COMPILER="$$(command -v clang++-14 || command -v clang++)" \
	  -DAGOQ_CUDA=OFF -DAGOQ_TESTS=OFF -DAGOQ_UNITY=ON
	@tools/lint.py build-lint

fuzz: build-sanitize ## Run every fuzzer for FUZZ_SECONDS
	@cmake --build build-sanitize --parallel $(JOBS) --target fuzzers
	@tests/fuzz/run.sh $(FUZZ_SECONDS) build-sanitize

sanitize: build-sanitize ## Run the C++ tests under address and undefined-behaviour sanitizers
	@cmake --build build-sanitize --parallel $(JOBS)
	@ctest --test-dir build-sanitize --output-on-failure --parallel $(JOBS)

bench: ## Build the benchmarks into build/bench
	$(install) build
	@$(MAKE) all INSTALL=no CMAKE_FLAGS="$(CMAKE_FLAGS) -DAGOQ_BENCH=ON"

clean: ## Remove what was built; runs/ and .venv stay
	rm -rf build build-sanitize build-lint

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo "Variables: TEXT=FILE JOBS=$(JOBS) FUZZ_SECONDS=$(FUZZ_SECONDS) INSTALL=no CMAKE_FLAGS='-D...'"
