#!/usr/bin/env bash
# Finds or brings a CUDA toolkit, and prints what the shell has to set to build with it:
#
#   eval "$(scripts/cuda-toolkit.sh)"        nvcc and headers: enough to compile
#   eval "$(scripts/cuda-toolkit.sh run)"    the libraries too (cuBLAS, cuRAND; 1 GB more): for a machine with a GPU
#
# An installed toolkit is used where CUDA_HOME names it or nvcc is on PATH. Otherwise NVIDIA's packages are fetched from
# PyPI with pip, as pip is set up here, into ${XDG_CACHE_HOME:-~/.cache}/nsparse/cuda. No GPU and no driver is needed.
# CUDA_COMPUTE_CAP (90: Hopper, 80: Ampere, 89: Ada) is what nvidia-smi says unless it is set, and 90 without a GPU.
set -euo pipefail
version=13.0.3.0 # of NVIDIA's package cuda-toolkit, which names the others' versions; needs driver 580 or newer
newest=13.4      # the newest CUDA that the crate cudarc 0.19.10 knows
what=${1:-build}
case $what in build | run) ;; *) echo "error: scripts/cuda-toolkit.sh takes build or run, not \`$what\`" >&2; exit 2 ;; esac
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/nsparse/cuda

# Installs packages whole: into a folder beside, then renamed. Several runs may meet.
fetch() { # folder, extras
    local folder=$1 extras=$2 new pip
    [ -d "$folder" ] && return
    for pip in "python3 -m pip" pip3 pip none; do
        $pip --version >/dev/null 2>&1 && break
    done
    if [ "$pip" = none ]; then
        echo "error: no CUDA toolkit (nvcc on PATH, or CUDA_HOME), and no pip to fetch one: install either" >&2
        exit 3
    fi
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/.new.XXXXXX")
    echo "Fetching cuda-toolkit[$extras] $version from PyPI into $folder" >&2
    if ! $pip install --quiet --disable-pip-version-check --root-user-action=ignore --only-binary=:all: \
        --target "$new" "cuda-toolkit[$extras]==$version" >&2; then
        rm -rf "$new"
        echo "error: pip could not fetch NVIDIA's packages: see its message above, or install a CUDA toolkit and set CUDA_HOME" >&2
        exit 3
    fi
    mv -T "$new" "$folder" 2>/dev/null || rm -rf "$new"
}

if [ -z "${CUDA_HOME:-}" ] && command -v nvcc >/dev/null; then
    CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
fi
if [ -n "${CUDA_HOME:-}" ]; then
    if ! [ -x "$CUDA_HOME/bin/nvcc" ]; then
        echo "error: CUDA_HOME is \`$CUDA_HOME\`, but there is no bin/nvcc in it: name a CUDA toolkit, or unset it to have one fetched" >&2
        exit 2
    fi
else
    fetch "$cache/$version.packages" nvcc,cccl
    CUDA_HOME=$(echo "$cache/$version.packages"/nvidia/cu*)
    if [ "$what" = run ]; then
        fetch "$cache/$version.libraries" cublas,curand
        # Where the program looks for them; see encoder/src/reference/cuda.rs.
        mkdir -p "$cache/$version"
        ln -sfn "$(echo "$cache/$version.libraries"/nvidia/cu*)/lib" "$cache/$version/lib"
    fi
fi

release=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
if [ -z "$release" ]; then
    echo "error: \`$CUDA_HOME/bin/nvcc --version\` names no release: is it NVIDIA's compiler?" >&2
    exit 3
fi
if [ -z "${CUDA_COMPUTE_CAP:-}" ]; then
    CUDA_COMPUTE_CAP=$( (nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true) | sed -n '1s/[^0-9]//gp')
fi

printf 'export CUDA_HOME=%q\n' "$CUDA_HOME"
printf 'export CUDA_PATH=%q\n' "$CUDA_HOME"
printf 'export PATH=%q:"$PATH"\n' "$CUDA_HOME/bin"
printf 'export CUDA_RELEASE=%q\n' "$release"
printf 'export CUDA_COMPUTE_CAP=%q\n' "${CUDA_COMPUTE_CAP:-90}"
# A newer toolkit than the bindings know has what the newest known one has.
if [ "$(printf '%s\n%s\n' "$release" "$newest" | sort -V | tail -n 1)" != "$newest" ]; then
    printf 'export CUDARC_CUDA_VERSION=%s0%s0\n' "${newest%.*}" "${newest#*.}"
fi
