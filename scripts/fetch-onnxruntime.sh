#!/bin/sh
# Fetches onnxruntime's shared library (MIT) out of its Python package, with this machine's own pip, and prints where it
# is. In the default folder `nsparse --runtime onnxruntime` finds it. Nothing of it belongs into a commit.
#
#   scripts/fetch-onnxruntime.sh [FOLDER]     default $NSPARSE_CACHE/onnxruntime, else ~/.cache/nsparse/onnxruntime
#
# NSPARSE_ONNXRUNTIME names another version for pip: onnxruntime==1.22.1
set -eu
folder=${1:-${NSPARSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nsparse}/onnxruntime}
fail() { echo "error: $1" >&2; exit 3; }
library() {
    for file in "$folder"/libonnxruntime.so* "$folder"/libonnxruntime.*dylib; do
        if [ -f "$file" ]; then
            (cd "$folder" && echo "$(pwd)/${file##*/}")
            return
        fi
    done
    return 1
}
if library; then
    exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is missing (Debian: python3-pip)"
mkdir -p "$folder"
aside=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$aside"' EXIT
trap 'exit 130' INT TERM
python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$aside" "${NSPARSE_ONNXRUNTIME:-onnxruntime>=1.20,<2}" >&2 ||
    fail "pip cannot fetch onnxruntime: check the network and pip's settings"
python3 -m zipfile -e "$aside"/onnxruntime-*.whl "$aside/wheel"
cp "$aside/wheel/onnxruntime/LICENSE" "$aside/wheel/onnxruntime/ThirdPartyNotices.txt" "$folder/"
# Renamed into place, so that nobody finds half a library.
mv "$aside"/wheel/onnxruntime/capi/libonnxruntime.* "$folder/"
library || fail "the package holds no libonnxruntime"
