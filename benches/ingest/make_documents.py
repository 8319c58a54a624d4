#!/usr/bin/env python3
"""Documents for the measurement of ingest, made from a corpus's sentences.

    make_documents.py sentences --corpus corpus.jsonl --out sentences.jsonl [--most N]
    make_documents.py documents --sentences sentences.jsonl --vectors vectors.jsonl --count N --out docs.jsonl

Each sentence is encoded once, by `nsparse encode`; a document is 5 to 10 sentences drawn with a seed, and its vector is the
maximum over theirs, which is what an encoder that pools by the maximum makes of segments.
"""

import argparse
import json
import random
import re
import struct

# A full stop, question or exclamation mark, then a blank and something that may begin a sentence.
END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[\"'])")


def sentences(arguments):
    count = 0
    with open(arguments.corpus, encoding="utf-8") as lines, open(arguments.out, "w", encoding="utf-8") as out:
        for line in lines:
            document = json.loads(line)
            for text in [document.get("title", ""), *END.split(document["text"])]:
                text = text.strip()
                if len(text) < 20:
                    continue
                out.write(json.dumps({"_id": f"s{count}", "text": text}, ensure_ascii=False) + "\n")
                count += 1
                if count == arguments.most:
                    return


def shortest(weight):
    """The fewest digits that give the same 32-bit float back."""
    for digits in range(6, 10):
        text = f"{weight:.{digits}g}"
        if struct.pack("f", float(text)) == struct.pack("f", weight):
            return float(text)
    return weight


def documents(arguments):
    texts, vectors = [], []
    with open(arguments.sentences, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    with open(arguments.vectors, encoding="utf-8") as lines:
        vectors = [json.loads(line)["vector"] for line in lines]
    if len(texts) != len(vectors):
        raise SystemExit(f"error: {len(texts)} sentences and {len(vectors)} vectors")
    draw = random.Random(arguments.seed)
    with open(arguments.out, "w", encoding="utf-8") as out:
        for number in range(arguments.count):
            chosen = draw.sample(range(len(texts)), draw.randint(5, 10))
            vector = {}
            for sentence in chosen:
                for token, weight in vectors[sentence].items():
                    if weight > vector.get(token, 0.0):
                        vector[token] = weight
            document = {
                "_id": f"d{number:06}",
                "title": texts[chosen[0]],
                "text": " ".join(texts[sentence] for sentence in chosen[1:]),
                "embedding": {token: shortest(weight) for token, weight in vector.items() if "." not in token},
            }
            out.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("sentences")
    one.add_argument("--corpus", required=True)
    one.add_argument("--most", type=int, default=0)
    one.add_argument("--out", required=True)
    one.set_defaults(run=sentences)
    two = kinds.add_parser("documents")
    two.add_argument("--sentences", required=True)
    two.add_argument("--vectors", required=True)
    two.add_argument("--count", type=int, default=50_000)
    two.add_argument("--seed", type=int, default=1)
    two.add_argument("--out", required=True)
    two.set_defaults(run=documents)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
