#!/usr/bin/env python3
"""The floor: two connections, each in a loop over bodies of 5 MB. Lines are sent as they stand, nothing is looked at but the
status, nothing is repeated or noted."""

import argparse
import http.client
import json
import queue
import threading
from urllib.parse import urlsplit

START = b'{"_id":"'


def bodies(path, size):
    parts, held = [], 0
    with open(path, "rb") as lines:
        for line in lines:
            # `{"_id":"d000001","title":…`: the id goes into the action, the rest is the document.
            if not line.startswith(START):
                raise SystemExit("error: a line does not begin with its id")
            end = line.index(b'"', len(START))
            parts.append(b'{"index":{"_id":"' + line[len(START) : end] + b'"}}\n{' + line[end + 2 :])
            held += len(parts[-1])
            if held >= size:
                yield b"".join(parts)
                parts, held = [], 0
    if parts:
        yield b"".join(parts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--url", required=True)
    parser.add_argument("--index", required=True)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=5_000_000)
    arguments = parser.parse_args()
    url = urlsplit(arguments.url)
    waiting, failed = queue.Queue(maxsize=1), []

    def connect():
        return http.client.HTTPConnection(url.hostname, url.port, timeout=300)

    def send():
        connection = connect()
        while (body := waiting.get()) is not None:
            path = f"/{arguments.index}/_bulk?pipeline=_none&filter_path=errors"
            connection.request("POST", path, body, {"content-type": "application/x-ndjson"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200 or json.loads(text)["errors"]:
                failed.append(text[:500])

    threads = [threading.Thread(target=send) for _ in range(arguments.connections)]
    for thread in threads:
        thread.start()
    for body in bodies(arguments.file, arguments.bytes):
        waiting.put(body)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"error: {failed[0]}")
    connection = connect()
    connection.request("POST", f"/{arguments.index}/_refresh")
    connection.getresponse().read()
    connection.request("GET", f"/{arguments.index}/_count")
    print(json.dumps({"count": json.loads(connection.getresponse().read())["count"]}))


if __name__ == "__main__":
    main()
