#!/usr/bin/env python3
"""Check the sample collection in this folder; standard library only.

    python3 samples/check.py [FOLDER]

FOLDER is a data set in BEIR form (default: `retrieval` beside this file). What must hold:

* every line of corpus.jsonl and queries.jsonl is a JSON object with exactly the expected
  string fields, and ids are unique and made of a-z, 0-9 and hyphens;
* at least 220 documents, each of 40 to 90 words (the title not counted), no title twice;
* no two documents share half of their word 5-grams: |A & B| / min(|A|, |B|) < 0.5;
* 60 training queries, at least 30 held out, none in both, none unjudged;
* every judgment names an existing query and document once, and a query has 1 to 3 of them;
* at least 20 queries, of them 8 held out, share no content word with any of their relevant
  documents (title and text). A content word is a lower-cased run of letters, digits or
  underscores that is not in STOP_WORDS.

Prints a summary and every fault; exits with 1 if there is a fault.
"""

import itertools
import json
import re
import sys
from pathlib import Path

MIN_DOCUMENTS, MIN_WORDS, MAX_WORDS = 220, 40, 90
TRAIN_QUERIES, MIN_TEST_QUERIES = 60, 30
MIN_MISMATCHED, MIN_MISMATCHED_TEST = 20, 8
GRAM, MAX_OVERLAP = 5, 0.5

# Words that carry no topic. Anything else that a query and a document share counts as shared.
STOP_WORDS = frozenset(
    """a about after again all also although am an and another any are as at be because been
    before being both but by can cannot could did do does doing down each every few for from
    get gets had has have having he her here his how i if in into is it its just me more most
    much my no nobody nor not of off on once one only or other others our out over own per she
    should so some something still such than that the their them then there these they this
    those through to too two under until up upon us very was we were what when where whether
    which while who whom whose why will with without would yet you your""".split()
)


def words(text):
    """Lower-cased runs of letters, digits and underscores, in order."""
    return re.findall(r"\w+", text.lower())


def grams(text):
    """The set of word 5-grams of a text."""
    tokens = words(text)
    return {tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)}


def read_jsonl(path, fields, faults):
    """Read a jsonl file into {id: object}; faults name the file and line."""
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            faults.append(f"{where}: not JSON: {error}")
            continue
        if not isinstance(row, dict) or set(row) != set(fields):
            faults.append(f"{where}: expected the fields {', '.join(fields)}")
        elif not all(isinstance(row[field], str) and row[field].strip() for field in fields):
            faults.append(f"{where}: every field must be a non-empty string")
        elif not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["_id"]):
            faults.append(f"{where}: id {row['_id']!r} has other characters than a-z, 0-9, '-'")
        elif row["_id"] in rows:
            faults.append(f"{where}: id {row['_id']!r} for the second time")
        else:
            rows[row["_id"]] = row
    return rows


def read_qrels(path, queries, corpus, faults):
    """Read a judgment file into {query id: [document ids]}."""
    qrels = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0] != "query-id\tcorpus-id\tscore":
        faults.append(f"{path.name}:1: expected the header query-id, corpus-id, score")
    for number, line in enumerate(lines[1:], 2):
        where = f"{path.name}:{number}"
        parts = line.split("\t")
        if len(parts) != 3 or parts[2] != "1":
            faults.append(f"{where}: expected query, document and the score 1, tab-separated")
            continue
        query, document, _ = parts
        if query not in queries:
            faults.append(f"{where}: no query {query!r}")
        elif document not in corpus:
            faults.append(f"{where}: no document {document!r}")
        elif document in qrels.setdefault(query, []):
            faults.append(f"{where}: judged twice")
        else:
            qrels[query].append(document)
    return qrels


def check_documents(corpus, faults):
    """Counts, lengths, titles and overlap; returns the word counts and the largest overlap."""
    if len(corpus) < MIN_DOCUMENTS:
        faults.append(f"{len(corpus)} documents, expected at least {MIN_DOCUMENTS}")
    lengths = {key: len(row["text"].split()) for key, row in corpus.items()}
    for key, length in lengths.items():
        if not MIN_WORDS <= length <= MAX_WORDS:
            faults.append(f"{key}: {length} words, expected {MIN_WORDS} to {MAX_WORDS}")
    titles = [row["title"].lower() for row in corpus.values()]
    for title in {title for title in titles if titles.count(title) > 1}:
        faults.append(f"title {title!r} occurs more than once")
    shingles = {key: grams(row["text"]) for key, row in corpus.items()}
    worst = (0.0, "", "")
    for (key_a, a), (key_b, b) in itertools.combinations(shingles.items(), 2):
        overlap = len(a & b) / max(1, min(len(a), len(b)))
        worst = max(worst, (overlap, key_a, key_b))
        if overlap >= MAX_OVERLAP:
            faults.append(f"{key_a} and {key_b} share {overlap:.0%} of their 5-grams")
    return list(lengths.values()), worst


def check_queries(queries, train, test, faults):
    """Counts and splits."""
    if len(train) != TRAIN_QUERIES:
        faults.append(f"{len(train)} training queries, expected {TRAIN_QUERIES}")
    if len(test) < MIN_TEST_QUERIES:
        faults.append(f"{len(test)} held-out queries, expected at least {MIN_TEST_QUERIES}")
    for query in sorted(set(train) & set(test)):
        faults.append(f"{query}: in both splits")
    for query in sorted(set(queries) - set(train) - set(test)):
        faults.append(f"{query}: not judged")
    texts = [row["text"].lower() for row in queries.values()]
    for text in {text for text in texts if texts.count(text) > 1}:
        faults.append(f"query {text!r} occurs more than once")
    for query, documents in {**train, **test}.items():
        if not 1 <= len(documents) <= 3:
            faults.append(f"{query}: {len(documents)} relevant documents, expected 1 to 3")


def mismatched(qrels, queries, corpus):
    """The queries without a content word in common with any of their relevant documents."""
    found = []
    for query, documents in qrels.items():
        asked = set(words(queries[query]["text"])) - STOP_WORDS
        written = {
            word
            for document in documents
            for word in words(corpus[document]["title"] + " " + corpus[document]["text"])
        }
        if asked and not asked & written:
            found.append(query)
    return found


def main():
    default = Path(__file__).resolve().parent / "retrieval"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    files = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        print(f"FAULT {folder} has no {', '.join(missing)}")
        return 1
    faults = []
    corpus = read_jsonl(folder / "corpus.jsonl", ("_id", "title", "text"), faults)
    queries = read_jsonl(folder / "queries.jsonl", ("_id", "text"), faults)
    train = read_qrels(folder / "qrels" / "train.tsv", queries, corpus, faults)
    test = read_qrels(folder / "qrels" / "test.tsv", queries, corpus, faults)

    lengths, (overlap, a, b) = check_documents(corpus, faults)
    check_queries(queries, train, test, faults)
    hard_train = mismatched(train, queries, corpus)
    hard_test = mismatched(test, queries, corpus)
    if len(hard_train) + len(hard_test) < MIN_MISMATCHED or len(hard_test) < MIN_MISMATCHED_TEST:
        faults.append(
            f"{len(hard_train)} + {len(hard_test)} queries share no word with their answers, "
            f"expected {MIN_MISMATCHED}, of them {MIN_MISMATCHED_TEST} held out"
        )

    seen = {document for documents in train.values() for document in documents}
    targets = {document for documents in test.values() for document in documents}
    print(f"documents         {len(corpus)}")
    if lengths:
        mean = sum(lengths) / len(lengths)
        print(f"words             {min(lengths)} to {max(lengths)}, mean {mean:.1f}")
    print(f"closest pair      {overlap:.1%} of the 5-grams ({a}, {b})")
    for name, qrels, hard in (("train", train, hard_train), ("test", test, hard_test)):
        pairs = sum(map(len, qrels.values()))
        print(f"{name:<18}{len(qrels)} queries, {pairs} judgments, {len(hard)} without a shared word")
    print(f"test targets      {len(targets)} documents, {len(targets & seen)} of them also in train")
    for fault in faults:
        print(f"FAULT {fault}")
    print("faulty" if faults else "all good")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
