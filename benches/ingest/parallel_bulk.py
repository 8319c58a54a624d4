#!/usr/bin/env python3
"""The peer: opensearch-py's `parallel_bulk`, as its guide has it, over the same jsonl."""

import argparse
import json

from opensearchpy import OpenSearch, helpers


def actions(path, index):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            yield {"_index": index, "_id": document.pop("_id"), "_source": document}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--url", required=True)
    parser.add_argument("--index", required=True)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=500)
    arguments = parser.parse_args()
    client = OpenSearch(arguments.url, timeout=120)
    taken = 0
    for ok, answer in helpers.parallel_bulk(
        client, actions(arguments.file, arguments.index), thread_count=arguments.threads, chunk_size=arguments.chunk
    ):
        if not ok:
            raise SystemExit(f"error: {answer}")
        taken += 1
    client.indices.refresh(index=arguments.index)
    print(json.dumps({"documents": taken, "count": client.count(index=arguments.index)["count"]}))


if __name__ == "__main__":
    main()
