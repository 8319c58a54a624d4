#!/usr/bin/env python3
"""What sentence-transformers' `mine_hard_negatives` keeps of known candidates: golden/mining/expected.json.

    python make_mining.py --out DIR        # the golden folder (default: the folder of this script)

The embeddings are made up, of length 1 as sentence-transformers makes them; the model only looks them up. No score is
so near a limit that rounding decides. All negatives that pass are asked for, best first, so nothing is drawn.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import sentence_transformers
import torch
from datasets import Dataset, arrow_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

# A fingerprint only names cached files; making one pickles more than some versions can.
arrow_dataset.generate_fingerprint = lambda *_: "mining"
QUERIES, DOCUMENTS, DIM, SEED = 6, 40, 12, 20261121


class LookUp(torch.nn.Module):
    """A sentence-transformers module that knows the vectors of its texts."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors, self.anchor = vectors, torch.nn.Parameter(torch.zeros(1))
        self.modalities, self.max_seq_length = ["text"], 512

    def preprocess(self, inputs, *args, **kwargs):
        return self.tokenize(inputs)

    def tokenize(self, texts, *args, **kwargs):
        return {"input_ids": torch.tensor([list(self.vectors).index(t) for t in texts])}

    def forward(self, features, *args, **kwargs):
        table = torch.tensor(np.stack(list(self.vectors.values())))
        features["sentence_embedding"] = table[features["input_ids"]]
        return features

    def get_sentence_embedding_dimension(self):
        return DIM

    get_embedding_dimension = get_sentence_embedding_dimension

    def save(self, *args, **kwargs):
        pass


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    args = args.parse_args()
    rng = np.random.default_rng(SEED)

    def vector():
        # sparse and not below 0, as ours are
        v = rng.integers(1, 20, DIM) * (rng.random(DIM) < 0.5)
        return (v / max(np.linalg.norm(v), 1e-9)).astype(np.float32)

    documents = {f"d{i:02}": vector() for i in range(DOCUMENTS)}
    queries = {f"q{i}": vector() for i in range(QUERIES)}
    # The positive stands in the middle of the ranking, so that margins bite. q5 has two.
    positives = {}
    for q, v in queries.items():
        ranked = sorted(documents, key=lambda d: -float(documents[d] @ v))
        positives[q] = [ranked[4]] if q != "q5" else [ranked[3], ranked[9]]
    pairs = [(q, d) for q, ds in positives.items() for d in ds]
    model = SentenceTransformer(modules=[LookUp({**queries, **documents})], similarity_fn_name="dot", device="cpu")
    data = Dataset.from_dict({"anchor": [q for q, _ in pairs], "positive": [d for _, d in pairs]})
    cases = []
    for limits in (
        {}, {"absolute_margin": 0.0}, {"absolute_margin": 0.125}, {"relative_margin": 0.05}, {"relative_margin": 0.3},
        {"max_score": 0.7}, {"min_score": 0.45}, {"max_score": 0.625, "min_score": 0.25},
        {"absolute_margin": 0.0625, "relative_margin": 0.1, "max_score": 0.55, "min_score": 0.2},
    ):
        for q, v in queries.items():
            scores = {d: float(w.astype(np.float64) @ v) for d, w in documents.items()}
            p = min(scores[d] for d in positives[q])
            edges = [limits.get("max_score"), limits.get("min_score")]
            edges += [p - limits["absolute_margin"]] if "absolute_margin" in limits else []
            edges += [p - abs(p) * limits["relative_margin"]] if "relative_margin" in limits else []
            near = [abs(x - e) for d, x in scores.items() if d not in positives[q] for e in edges if e is not None]
            assert min(near, default=1) > 1e-5, (q, limits)
        mined = mine_hard_negatives(
            data, model, corpus=list(documents), num_negatives=DOCUMENTS, range_max=DOCUMENTS + 2, sampling_strategy="top",
            output_format="triplet", verbose=False, **limits)
        kept = {q: {d: [] for d in ds} for q, ds in positives.items()}
        for row in mined:
            kept[row["anchor"]][row["positive"]].append(row["negative"])
        cases.append({"limits": limits, "kept": kept})
    out = {
        "about": "negatives that sentence-transformers keeps, best first, by query and positive",
        "versions": {"sentence_transformers": sentence_transformers.__version__, "torch": torch.__version__},
        "documents": {d: v.tolist() for d, v in documents.items()},
        "queries": {q: v.tolist() for q, v in queries.items()},
        "positives": positives,
        "cases": cases,
    }
    path = os.path.join(args.out, "mining", "expected.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lines = [f" {json.dumps(k)}: " + ("{\n" + ",\n".join(f"  {json.dumps(a)}: {json.dumps(b)}" for a, b in v.items()) + "\n }"
             if k in ("documents", "queries") else "[\n" + ",\n".join("  " + json.dumps(c) for c in v) + "\n ]"
             if k == "cases" else json.dumps(v)) for k, v in out.items()]
    with open(path, "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")
    print(path, [sum(len(n) for p in c["kept"].values() for n in p.values()) for c in cases])


main()
