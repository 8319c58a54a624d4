#!/bin/sh
# Runs the tests whose tools this machine has, and names those that are left out.
#
#   scripts/test.sh          what needs nothing outside the repository, and what the tools here allow
#   scripts/test.sh data     the tests on the data sets in NSPARSE_TEST_DATA (default ../shared/data)
#
# What needs root or installs something is done only with CI=true or NSPARSE_TEST_INSTALL=1; scripts/install-test-tools.sh
# then brings Java, Maven, pip, a browser and a container engine, and scripts/build-image.sh an image where none can be pulled.
set -eu
cd "$(dirname "$0")/.."
what=${1:-all}
may_install() { [ "${CI:-}" = true ] || [ "${NSPARSE_TEST_INSTALL:-}" = 1 ]; }
if may_install; then
    scripts/install-test-tools.sh
fi

features=,nsparse/parquet
left_out=
leave_out() { left_out="$left_out
  $1"; }
tests_of() { features="$features,nsparse-integration-tests/$1"; }

java_version=$( (java -version 2>&1 || true) | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
if command -v mvn >/dev/null && [ "${java_version:-0}" -ge 11 ] && [ "${java_version:-0}" -le 21 ]; then
    tests_of node
    tests_of djl
    features="$features,nsparse/test-node"
else
    leave_out "node, djl: a real OpenSearch and DJL need Java 11 to 21 and Maven (Debian: openjdk-17-jre-headless maven)"
fi
if [ -n "${ORT_DYLIB_PATH:-}" ] || ORT_DYLIB_PATH=$(scripts/fetch-onnxruntime.sh); then
    tests_of onnx
    export ORT_DYLIB_PATH
else
    unset ORT_DYLIB_PATH
    leave_out "onnx: onnxruntime comes through pip (Debian: python3-pip), or ORT_DYLIB_PATH names its library"
fi
if command -v chromium >/dev/null; then
    features="$features,nsparse/test-browser"
else
    leave_out "browser: the page of \`nsparse report\` is shown by chromium (Debian: chromium)"
fi
data=${NSPARSE_TEST_DATA:-../shared/data}
if [ "$what" = data ]; then
    if [ ! -d "$data" ]; then
        echo "error: no test data in $data: set NSPARSE_TEST_DATA to a folder that holds them (docs/testing.md lists them)" >&2
        exit 2
    fi
    NSPARSE_TEST_DATA=$(cd "$data" && pwd)
    export NSPARSE_TEST_DATA
    tests_of data
    # The same packages and features as without data, so that no dependency is built twice; only these tests.
    selected=
    minilm=${NSPARSE_MINILM:-$PWD/models/minilm}
    if [ -f "$minilm/model.safetensors" ] || { may_install && scripts/fetch-minilm.sh "$minilm"; }; then
        tests_of minilm
        export NSPARSE_MINILM="$minilm"
        selected="$selected --test minilm"
    else
        leave_out "minilm: scripts/fetch-minilm.sh brings all-MiniLM-L6-v2, or NSPARSE_MINILM names its folder"
    fi
    for file in $(grep -l 'feature = "data"' integration-tests/tests/*.rs); do
        selected="$selected --test $(basename "$file" .rs)"
    done
else
    leave_out "data: tests on real data sets run with \`make test-data\`"
    selected=
fi

# An engine needs an image: the one named, the official one, or one of ours that was built here before.
official=opensearchproject/opensearch:2.16.0
ours=nsparse-test/opensearch:2.16.0
have() { docker image inspect "$1" >/dev/null 2>&1; }
if ! docker info >/dev/null 2>&1; then
    leave_out "containers: no container engine answers (Debian: docker.io; then start it)"
elif [ -n "${NSPARSE_OPENSEARCH_IMAGE:-}" ] || have $official; then
    tests_of containers
elif have $ours || { ! docker pull --quiet $official 2>/dev/null && may_install; }; then
    tests_of containers
    if ! have $ours; then
        # Built as the tests are, so that nothing is compiled twice: the program assembles the image's server.
        # shellcheck disable=SC2086
        cargo build --release --locked --workspace --bins --tests --features "${features#,}"
        scripts/build-image.sh $ours
    fi
    export NSPARSE_OPENSEARCH_IMAGE=$ours
elif have $official; then
    tests_of containers
else
    leave_out "containers: $official cannot be pulled; scripts/build-image.sh, called by root, builds an image"
fi

# shellcheck disable=SC2086
cargo test --release --locked --workspace $selected --features "${features#,}"

if [ -n "$left_out" ]; then
    echo "Left out on this machine:$left_out"
fi
