#!/usr/bin/env bash
# Builds, checks and tests nsparse with CUDA, beside the ordinary build, in target/cuda (docs/cuda.md).
#
#   scripts/cuda-build.sh build    target/cuda/nsparse, stripped, below 60 MB; it starts on machines without a GPU
#   scripts/cuda-build.sh check    lints of everything with the feature `cuda`, and the tests of it that need no GPU
#   scripts/cuda-build.sh test     the tests on a GPU, then a benchmark; fails where there is none
#
# NVIDIA's libraries are not linked but loaded when a GPU is asked for: the functions stay undefined in the program
# and are bound when they are first called (lazy binding), which encoder/src/reference/cuda.rs prepares.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-build}
most=$((60 * 1000 * 1000))
case $what in
build | check) needs=build ;;
test)
    needs=run
    if [[ $(nvidia-smi --list-gpus 2>/dev/null || true) != GPU* ]]; then
        echo "error: no GPU: not run. \`nvidia-smi --list-gpus\` shows none on this machine; \`make check-cuda\` needs none" >&2
        exit 3
    fi
    ;;
*)
    echo "error: scripts/cuda-build.sh takes build, check or test, not \`$what\`" >&2
    exit 2
    ;;
esac

toolkit=$(scripts/cuda-toolkit.sh $needs)
eval "$toolkit"
target=$(realpath -m target/cuda)
major=${CUDA_RELEASE%.*}

# A view of the toolkit whose lib folder has nothing to link to: empty archives stand for the libraries that are loaded
# later, and for the two that candle names but nsparse calls nothing of, the CUDA runtime and candle's kernels for
# quantised models (30 MB).
view=$target/toolkit
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
export NSPARSE_CUDA_LIBRARIES="libcuda.so.1 libcublasLt.so.$major libcublas.so.$major libcurand.so.10"
export CARGO_TARGET_DIR=$target
export RUSTFLAGS="${RUSTFLAGS:-} -L native=$view/lib -C relro-level=partial -C link-arg=-Wl,-z,lazy \
-C link-arg=-Wl,--unresolved-symbols=ignore-all"
cargo=${CARGO:-cargo}
echo "CUDA $CUDA_RELEASE, compute capability $CUDA_COMPUTE_CAP"

# The linker was told to let everything undefined pass: what is left so must be of the libraries that are loaded later.
check_undefined() { # program
    local strangers
    strangers=$(nm --dynamic --undefined-only "$1" | awk '$1 == "U" && $2 !~ /@/ { print $2 }' |
        grep -vE '^(cu|cublas|cublasLt|curand)[A-Z]' | tr '\n' ' ' || true)
    if [ -n "$strangers" ]; then
        echo "error: $1 calls functions that no library gives it: $strangers" >&2
        exit 1
    fi
}

case $what in
build)
    $cargo build --release --locked --features cuda --bin nsparse
    check_undefined "$target/release/nsparse"
    strip -o "$target/nsparse.new" "$target/release/nsparse"
    size=$(stat -c %s "$target/nsparse.new")
    if [ "$size" -ge $most ]; then
        echo "error: the program has $size bytes stripped; at most $most are allowed" >&2
        exit 1
    fi
    # No library of NVIDIA's is needed to start.
    "$target/nsparse.new" --version
    mv "$target/nsparse.new" "$target/nsparse"
    echo "target/cuda/nsparse: $size bytes"
    ;;
check)
    $cargo clippy --release --locked --workspace --all-targets --features cuda,nsparse-integration-tests/cuda -- -D warnings
    $cargo test --release --locked -p nsparse-encoder --features cuda --lib reference
    ;;
test)
    $cargo test --release --locked -p nsparse-integration-tests --features cuda --test cuda -- --nocapture
    $cargo build --release --locked --features cuda --bin nsparse
    "$target/release/nsparse" bench train --device cuda
    "$target/release/nsparse" bench train --device cuda --layers 12 --hidden 768 --heads 12 --docs 64 --tokens 256
    "$target/release/nsparse" bench encode --device cuda
    ;;
esac
