#!/bin/sh
# Installs what the tests use beside Rust, on Debian as root: Java and Maven for a real OpenSearch and DJL, pip for
# onnxruntime, a container engine for testcontainers, a browser for the page of `nsparse report`. Called by scripts/test.sh with CI=true or NSPARSE_TEST_INSTALL=1
# alone.
set -eu
[ "$(id -u)" = 0 ] || { echo "error: installing needs root: run as root, or install by hand what \`make test\` names" >&2; exit 3; }
command -v apt-get >/dev/null || { echo "error: only Debian's apt-get is known to this script" >&2; exit 3; }

need=
command -v mvn >/dev/null || need="$need maven"
command -v java >/dev/null || need="$need openjdk-17-jre-headless"
python3 -m pip --version >/dev/null 2>&1 || need="$need python3-pip"
command -v chromium >/dev/null || need="$need chromium"
command -v dockerd >/dev/null || need="$need docker.io iptables"
command -v debootstrap >/dev/null || need="$need debootstrap"
if [ -n "$need" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086
    apt-get install -q -y --no-install-recommends $need
fi

# A session of its own and no stream of ours: whoever reads this script's output need not wait for the engine's end.
if ! docker info >/dev/null 2>&1; then
    log=$(mktemp -t nsparse-dockerd.XXXXXX)
    setsid dockerd --storage-driver=overlay2 </dev/null >"$log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
    engine=$!
    tries=0
    until docker info >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ] || ! kill -0 "$engine" 2>/dev/null; then
            echo "note: the container engine did not start; its log, \`$log\`, ends with:" >&2
            tail -n 5 "$log" >&2
            exit 0
        fi
        sleep 0.5
    done
    echo "The container engine runs as process $engine, its log is $log"
fi
