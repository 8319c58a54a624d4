#!/bin/sh
# Measures ingest against opensearch-py and a raw loop, then queries over what was ingested:
# benches/ingest/run.sh --model DIR --data DIR [--documents N] [--turns N] [--only ingest|queries]
#
# Needs target/release/nsparse, and Java and mvn for the node, or a cluster that NSPARSE_BENCH_URL names. Makes a venv,
# encodes the sentences of DIR/corpus.jsonl once, and keeps everything in target/ingest-bench/, so that the same command
# goes on where it was stopped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
nsparse=${NSPARSE:-$root/target/release/nsparse}
work=${NSPARSE_BENCH_DIR:-$root/target/ingest-bench}
model='' data='' documents=50000 turns=3 sentences=0 only=''
while [ $# -gt 0 ]; do
    case $1 in
        --model) model=$2 ;;
        --data) data=$2 ;;
        --documents) documents=$2 ;;
        --turns) turns=$2 ;;
        --sentences) sentences=$2 ;;
        --only) only=$2 ;;
        *) echo "error: unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$model" ] && [ -n "$data" ] || { echo "error: give --model DIR and --data DIR" >&2; exit 2; }
mkdir -p "$work"

venv=$work/venv
if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
fi
python=$venv/bin/python

name=sentences-$sentences
[ -f "$work/$name.jsonl" ] || {
    "$python" "$here/make_documents.py" sentences --corpus "$data/corpus.jsonl" --most "$sentences" --out "$work/$name.part"
    mv "$work/$name.part" "$work/$name.jsonl"
}
# Stopped and started again it goes on; once it is whole it costs nothing.
"$nsparse" encode "$work/$name.jsonl" --model "$model" --out "$work/$name-vectors.jsonl"
docs=$work/docs-$documents-$name.jsonl
[ -f "$docs" ] || {
    "$python" "$here/make_documents.py" documents --sentences "$work/$name.jsonl" --vectors "$work/$name-vectors.jsonl" \
        --count "$documents" --out "$docs.part"
    mv "$docs.part" "$docs"
}

url=${NSPARSE_BENCH_URL:-}
if [ -z "$url" ]; then
    port=${NSPARSE_BENCH_PORT:-9287}
    "$nsparse" cluster up --port "$port" --heap 2g
    trap '"$nsparse" cluster down --port "$port"' EXIT
    url=http://127.0.0.1:$port
fi
if [ "$only" != queries ]; then
    "$python" "$here/compare.py" "$docs" --url "$url" --nsparse "$nsparse" --turns "$turns" --log "$work/runs.jsonl"
fi
if [ "$only" != ingest ]; then
    index=nsparse-bench-queries
    ask() { (cd "$here" && "$python" -c 'import sys, compare; compare.ask(sys.argv[1], sys.argv[2], sys.argv[3], compare.MAPPING if sys.argv[2] == "PUT" else None)' "$url" "$@"); }
    ask DELETE "/$index"
    ask PUT "/$index"
    rm -f "$work/queries.journal"*
    "$nsparse" ingest "$docs" --url "$url" --index "$index" --ready --journal "$work/queries.journal"
    # One segment, as an index is after a night: segments that are merged meanwhile would be measured too.
    ask POST "/$index/_forcemerge?max_num_segments=1"
    "$nsparse" bench queries --url "$url" --index "$index" --data "$data" --model "$model" --rounds "$turns" \
        --prune max_ratio:0.2 --prune max_ratio:0.4 --two-phase max_ratio:0.4
    ask DELETE "/$index"
fi
