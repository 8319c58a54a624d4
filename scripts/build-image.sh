#!/bin/sh
# Builds a container image of OpenSearch where no image registry can be reached: the server that `nsparse cluster up`
# assembles through Maven, on Debian's own packages. An image that is there already is kept.
#
#   scripts/build-image.sh [TAG]     default nsparse-test/opensearch:2.16.0
#
# Needs root, a container engine and debootstrap. Packages come from the mirror in this machine's own apt sources.
set -eu
cd "$(dirname "$0")/.."
version=2.16.0
suite=bookworm
tag=${1:-nsparse-test/opensearch:$version}

fail() { echo "error: $1" >&2; exit 3; }

docker info >/dev/null 2>&1 || fail "no container engine answers: install and start one (Debian: docker.io)"
if docker image inspect "$tag" >/dev/null 2>&1; then
    echo "The image $tag is there already"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "building an image of Debian's packages needs root"
command -v debootstrap >/dev/null || fail "debootstrap is missing (Debian: debootstrap)"
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(SITE)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 == "main" && $3 !~ /-|\// { print $4; exit }')
[ -n "$mirror" ] || fail "apt knows no Debian mirror: check /etc/apt/sources.list, then run \`apt-get update\`"
# debootstrap does not read apt's settings; its downloads take a proxy from the environment.
proxy=
eval "$(apt-config shell proxy Acquire::http::Proxy)"
[ -z "$proxy" ] || export http_proxy="$proxy" https_proxy="$proxy"

# Where the program keeps servers: called by root that is /var/tmp/nsparse-0 if the home folder is closed to others.
assembled() {
    for root in "${NSPARSE_CACHE:-}" "${XDG_CACHE_HOME:-$HOME/.cache}/nsparse" /var/tmp/nsparse-0; do
        server=$root/opensearch-$version
        if [ -n "$root" ] && [ -f "$server/.nsparse-assembled" ]; then
            echo "$server"
            return
        fi
    done
}
server=$(assembled)
if [ -z "$server" ]; then
    program=target/release/nsparse
    [ -x "$program" ] || cargo build --release --locked --package nsparse
    port=$(awk 'BEGIN { srand(); print 20000 + int(rand() * 10000) }')
    "$program" cluster up --engine assembled --version $version --heap 512m --port "$port"
    "$program" cluster down --port "$port"
    server=$(assembled)
    [ -n "$server" ] || fail "the assembled server is not where it was expected"
    rm -rf "${server%/*}/nodes/$port"
fi

work=$(mktemp -d /var/tmp/nsparse-image.XXXXXX)
# debootstrap mounts /proc in there; a run that was stopped may leave it.
clean() {
    umount "$work/proc" 2>/dev/null || true
    umount "$work/sys" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

log=$work.log
echo "Unpacking Debian's packages for $tag"
if ! debootstrap --variant=minbase --include=openjdk-17-jre-headless,ca-certificates $suite "$work" "$mirror" >"$log" 2>&1; then
    tail -n 10 "$log" >&2
    fail "debootstrap failed; the whole log is $log"
fi
rm -f "$log"
mkdir -p "$work/usr/share/opensearch"
cp -R "$server/." "$work/usr/share/opensearch/"
for folder in logs data config; do
    mkdir -p "$work/usr/share/opensearch/$folder"
    chown -R 1000:1000 "$work/usr/share/opensearch/$folder"
done

java=$(cd "$work" && echo usr/lib/jvm/java-17-openjdk-*)

# Neither packages nor documentation are needed in there.
tar -C "$work" --exclude=./var/cache/apt/archives/*.deb --exclude=./var/lib/apt/lists/* --exclude=./usr/share/doc/* \
    --exclude=./usr/share/man/* --exclude=./usr/share/locale/* --exclude=./proc/* --exclude=./sys/* --one-file-system -c . |
    docker import \
        --change 'USER 1000:1000' \
        --change "ENV OPENSEARCH_JAVA_HOME=/$java" \
        --change 'WORKDIR /usr/share/opensearch' \
        --change 'EXPOSE 9200' \
        --change 'CMD ["bin/opensearch", "-Ediscovery.type=single-node", "-Enetwork.host=0.0.0.0", "-Ecluster.routing.allocation.disk.threshold_enabled=false"]' \
        - "$tag" >/dev/null
echo "Built the image $tag"
