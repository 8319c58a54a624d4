#!/usr/bin/env bash
# Builds, checks and tests nsparse with CUDA, beside the ordinary build, in target/cuda (docs/cuda.md).
#
#   scripts/cuda-build.sh build    target/cuda/nsparse, stripped, below 60 MB; it starts on machines without a GPU
#   scripts/cuda-build.sh tests    target/cuda/tests, stripped: to be run where a GPU is but no compiler
#   scripts/cuda-build.sh check    lints of everything with the feature `cuda`, and the tests of it that need no GPU
#   scripts/cuda-build.sh test     the tests on a GPU, then a benchmark; fails where there is none. Without cargo it
#                                  runs what `build` and `tests` made elsewhere
#
# NVIDIA's libraries are not linked but loaded when a GPU is asked for: the functions stay undefined in the program
# and are bound when they are first called (lazy binding), which encoder/src/reference/cuda.rs prepares.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-build}
most=$((60 * 1000 * 1000))
target=$(realpath -m target/cuda)
cargo=${CARGO:-cargo}

# What cargo has to know: the toolkit ($1 is scripts/cuda-toolkit.sh's argument), and how to link.
set_up() {
    local toolkit part name view=$target/toolkit
    toolkit=$(scripts/cuda-toolkit.sh "$1")
    eval "$toolkit"
    # A view of the toolkit whose lib folder has nothing to link to: empty archives stand for the libraries that are
    # loaded later, and for the two that candle names but nsparse calls nothing of, the CUDA runtime and candle's
    # kernels for quantised models (30 MB).
    mkdir -p "$view/lib"
    for part in bin include nvvm; do
        [ ! -d "$CUDA_HOME/$part" ] || ln -sfn "$CUDA_HOME/$part" "$view/$part"
    done
    for name in cuda cudart nvrtc curand cublas cublasLt moe; do
        rm -f "$view/lib/lib$name.a"
        ar rcs "$view/lib/lib$name.a"
    done
    unset CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR CUDNN_LIB
    export CUDA_HOME=$view CUDA_PATH=$view
    local major=${CUDA_RELEASE%.*}
    export NSPARSE_CUDA_LIBRARIES="libcuda.so.1 libcublasLt.so.$major libcublas.so.$major libcurand.so.10"
    export CARGO_TARGET_DIR=$target
    export RUSTFLAGS="${RUSTFLAGS:-} -L native=$view/lib -C relro-level=partial -C link-arg=-Wl,-z,lazy \
-C link-arg=-Wl,--unresolved-symbols=ignore-all"
    echo "CUDA $CUDA_RELEASE, compute capability $CUDA_COMPUTE_CAP"
}

# A stripped copy. The linker was told to let everything undefined pass: what is left so must be of the libraries that
# are loaded later.
finish() { # made, name
    local strangers
    strangers=$(nm --dynamic --undefined-only "$1" | awk '$1 == "U" && $2 !~ /@/ { print $2 }' |
        grep -vE '^(cu|cublas|cublasLt|curand)[A-Z]' | tr '\n' ' ' || true)
    if [ -n "$strangers" ]; then
        echo "error: $1 calls functions that no library gives it: $strangers" >&2
        exit 1
    fi
    strip -o "$target/$2.new" "$1"
    mv "$target/$2.new" "$target/$2"
    echo "target/cuda/$2: $(stat -c %s "$target/$2") bytes"
}

build() {
    $cargo build --release --locked --features cuda --bin nsparse
    finish "$target/release/nsparse" nsparse
    if [ "$(stat -c %s "$target/nsparse")" -ge $most ]; then
        echo "error: at most $most bytes are allowed" >&2
        exit 1
    fi
    # It starts without any library of NVIDIA's.
    "$target/nsparse" --version
}

build_tests() {
    local made
    $cargo test --no-run --release --locked -p nsparse-integration-tests --features cuda --test cuda
    made=$($cargo test --no-run --release --locked -p nsparse-integration-tests --features cuda --test cuda 2>&1 |
        sed -n 's/.*Executable .*(\(.*\)).*/\1/p')
    finish "$made" tests
}

case $what in
build)
    set_up build
    build
    ;;
tests)
    set_up build
    build_tests
    ;;
check)
    set_up build
    $cargo clippy --release --locked --workspace --all-targets --features cuda,nsparse-integration-tests/cuda -- -D warnings
    $cargo test --release --locked -p nsparse-encoder --features cuda --lib reference
    ;;
test)
    if [[ $(nvidia-smi --list-gpus 2>/dev/null || true) != GPU* ]]; then
        echo "error: no GPU: not run. \`nvidia-smi --list-gpus\` shows none on this machine; \`make check-cuda\` needs none" >&2
        exit 3
    fi
    if command -v "$cargo" >/dev/null; then
        set_up run
        build_tests
        build
    else
        echo "No cargo here: target/cuda/tests and target/cuda/nsparse are run as they are"
    fi
    "$target/tests" --nocapture --test-threads 1
    "$target/nsparse" bench train --device cuda
    "$target/nsparse" bench train --device cuda --layers 12 --hidden 768 --heads 12 --docs 64 --tokens 256
    "$target/nsparse" bench encode --device cuda
    ;;
*)
    echo "error: scripts/cuda-build.sh takes build, tests, check or test, not \`$what\`" >&2
    exit 2
    ;;
esac
