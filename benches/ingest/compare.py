#!/usr/bin/env python3
"""Runs nsparse, opensearch-py and the raw loop in turns over the same jsonl, each into a fresh index, and prints a table.

Needs a cluster at --url with nothing else to do. Time, CPU and memory are those of the whole client process, from its start
to its end, which comes after a refresh and a count on every side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
INDEX = "nsparse-bench-ingest"
MAPPING = {
    "settings": {"index": {"number_of_shards": 1, "number_of_replicas": 0}},
    "mappings": {
        "properties": {
            "title": {"type": "text", "analyzer": "english"},
            "text": {"type": "text", "analyzer": "english"},
            "embedding": {"type": "rank_features"},
        }
    },
}


def ask(url, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise SystemExit(f"error: {method} {path}: {error.code} {error.read()[:300]}")


def measured(command):
    """Seconds, CPU seconds, peak memory in MB, and what was printed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        raise SystemExit(f"error: {' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "megabytes": usage.ru_maxrss / 1024,
        "printed": json.loads(printed),
    }


def once(side, file, count, arguments):
    ask(arguments.url, "DELETE", f"/{INDEX}")
    ask(arguments.url, "PUT", f"/{INDEX}", MAPPING)
    common = ["--url", arguments.url, "--index", INDEX]
    with tempfile.TemporaryDirectory() as folder:
        command = {
            "nsparse": [arguments.nsparse, "--json", "--quiet", "ingest", file, *common, "--ready",
                        "--journal", str(Path(folder) / "journal"), *arguments.options.split()],
            "parallel_bulk": [sys.executable, str(HERE / "parallel_bulk.py"), file, *common],
            "raw": [sys.executable, str(HERE / "raw.py"), file, *common],
        }[side]
        result = measured(command)
    found = ask(arguments.url, "GET", f"/{INDEX}/_count")["count"]
    if found != count:
        raise SystemExit(f"error: {side} left {found} of {count} documents")
    ask(arguments.url, "DELETE", f"/{INDEX}")
    result.update(side=side, documents=count)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--url", required=True)
    parser.add_argument("--nsparse", default=str(HERE.parent.parent / "target/release/nsparse"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", default="parallel_bulk,raw,nsparse", help="which clients, in the order of the first turn")
    parser.add_argument("--options", default="", help="more options for nsparse ingest")
    parser.add_argument("--log", default="", help="each run's figures as a line of JSON")
    arguments = parser.parse_args()
    with open(arguments.file, "rb") as lines:
        count = sum(1 for _ in lines)
    sides, runs = arguments.sides.split(","), []

    def note(result):
        runs.append(result)
        print(
            f"{result['side']}: {result['documents']} documents in {result['seconds']:.1f} s, "
            f"CPU {result['cpu']:.1f} s, {result['megabytes']:.0f} MB",
            file=sys.stderr,
            flush=True,
        )
        if arguments.log:
            with open(arguments.log, "a") as log:
                log.write(json.dumps(result) + "\n")

    # The first load of a JVM is slower than all others: it belongs to nobody.
    with tempfile.TemporaryDirectory() as folder:
        few = str(Path(folder) / "few.jsonl")
        with open(arguments.file, "rb") as lines, open(few, "wb") as out:
            for _ in range(min(count, max(count // 10, 500))):
                out.write(next(lines))
        with open(few, "rb") as lines:
            few_count = sum(1 for _ in lines)
        once("raw", few, few_count, arguments)
        small = once("nsparse", few, few_count, arguments)
        for turn in range(arguments.turns):
            # Whoever comes first in a turn comes last in the next.
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                note(once(side, arguments.file, count, arguments))

    def median(side, key):
        return statistics.median(run[key] for run in runs if run["side"] == side)

    print("| client | seconds | documents/s | client CPU, s | peak memory, MB |\n|---|---|---|---|---|")
    for side, name in [("nsparse", "nsparse ingest"), ("parallel_bulk", "opensearch-py parallel_bulk"),
                       ("raw", "raw loop, 2 × 5 MB")]:
        if side not in sides:
            continue
        seconds = median(side, "seconds")
        print(f"| {name} | {seconds:.1f} | {count / seconds:.0f} | {median(side, 'cpu'):.2f} | {median(side, 'megabytes'):.0f} |")
    ours = median("nsparse", "seconds")
    print(f"\n{count} documents, median of {arguments.turns} turns.")
    if "parallel_bulk" in sides:
        print(f"nsparse to parallel_bulk: {median('parallel_bulk', 'seconds') / ours:.2f} × (wanted: 1.2)")
        cpu = median("nsparse", "cpu") / median("parallel_bulk", "cpu")
        print(f"client CPU: {cpu:.3f} of opensearch-py's (wanted: 0.25)")
    if "raw" in sides:
        print(f"nsparse to the raw loop: {median('raw', 'seconds') / ours:.2f} × (wanted: 0.95)")
    print(f"memory: {median('nsparse', 'megabytes'):.1f} MB at {count} documents, {small['megabytes']:.1f} MB at {few_count} "
          f"(wanted: at most 20 more)")


if __name__ == "__main__":
    main()
