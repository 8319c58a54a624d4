#!/usr/bin/env python3
"""Makes the figures of docs/results.md: trainings and their rankings, each once, in a folder that can be gone on from.

    benches/results/run.py scifact   --data DIR --minilm DIR     the published recipe
    benches/results/run.py ablations --data DIR --minilm DIR     arms from one warm start, three seeds each
    benches/results/run.py steering  --data DIR --minilm DIR     the controller, from weights ten times too high and too low

Needs a built program (--nsparse, default target/release/nsparse) and nothing but Python's own library. Every step's
command, seconds and peak memory go to OUT/log.jsonl; what is there is not made again.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = [1, 2, 3]
# One contrastive stage of an ablation: about five minutes on two cores.
SHORT = ["warm_start.steps=0", "calibration.when=never", "train.steps=45", "eval.every=0", "checkpoint.every=0"]


class Work:
    """Steps that are run once each."""

    def __init__(self, arguments):
        self.nsparse, self.out = arguments.nsparse, Path(arguments.out)
        self.data, self.minilm, self.idf = arguments.data, arguments.minilm, arguments.idf
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "log.jsonl"
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.done = {tuple(entry["command"]): entry for entry in map(json.loads, lines)}

    def step(self, name, *command):
        """Runs the program with --json; gives what it printed."""
        command = [str(part) for part in command]
        if tuple(command) in self.done:
            return self.done[tuple(command)]["result"]
        print(f"{name}: nsparse {' '.join(command)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        process = subprocess.Popen([self.nsparse, "--json", "--quiet", *command], stdout=subprocess.PIPE, text=True)
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"error: {name} ended with {os.waitstatus_to_exitcode(status)}")
        entry = {
            "name": name,
            "command": command,
            "seconds": round(time.monotonic() - started, 1),
            "peak_megabytes": round(usage.ru_maxrss / 1e3),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "result": json.loads(printed),
        }
        with self.log.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        self.done[tuple(command)] = entry
        return entry["result"]

    def cost(self, *command):
        return self.done[tuple(str(part) for part in command)]

    def train(self, name, recipe, sets):
        """Trains once; gives the model directory and the step's log entry."""
        folder = self.out / name
        changes = [f"run.dir={folder}", f"data.dir={self.data}", *sets]
        command = ["train", recipe, "--replace", *[part for change in changes for part in ("--set", change)]]
        self.step(name, *command)
        config = hashlib.sha256((folder / "config.yaml").read_bytes()).hexdigest()[:12]
        return folder / "model", {**self.cost(*command), "config": config}

    def rank(self, name, *method):
        """Ranks the test queries once; gives the ranking's file."""
        folder = self.out / "rankings" / name
        self.step(f"{name}, test", "eval", "--data", self.data, "--engine", "local", *method, "--out", folder)
        return folder / "run.trec"

    def bm25(self):
        return self.rank("bm25", "--method", "bm25")

    def rows(self):
        rows = self.out / "rows.jsonl"
        self.step("negatives", "mine", "--data", self.data, "--engine", "local", "--depth", 50, "--sample", 3, "--out", rows)
        return rows

    def warm(self):
        """The warm start that all arms begin with."""
        rows = self.rows()
        recipe = ROOT / "configs/scifact.yaml"
        return self.train("warm", recipe, [f"model.path={self.minilm}", f"data.rows={rows}", "train.steps=0", "eval.fraction=0"])

    def compare(self, name, runs, baseline):
        """The mean over seeds against another arm's, by query."""
        qrels = Path(self.data) / "qrels/test.tsv"
        joined = [",".join(map(str, files)) for files in (runs, baseline)]
        return self.step(name, "eval", "--qrels", qrels, "--run", joined[0], "--baseline", joined[1])


def difference(result):
    d = result["against_baseline"]["difference"]
    return f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"


def scifact(work):
    rows = work.rows()
    recipe = ROOT / "configs/scifact.yaml"
    model, entry = work.train("scifact", recipe, [f"model.path={work.minilm}", f"data.rows={rows}"])
    ranking = work.rank("scifact", "--method", "sparse", "--model", model)
    result = work.compare("scifact against BM25", [ranking], [work.bm25()])
    print("| recipe | config | time | peak memory | nDCG@10 | against BM25 |\n|---|---|---|---|---|---|")
    print(
        f"| configs/scifact.yaml | {entry['config']} | {entry['seconds'] / 60:.0f} min | {entry['peak_megabytes']} MB "
        f"| {result['metrics']['ndcg@10']:.4f} | {difference(result)} |"
    )


def arms(work):
    """Name → what an arm sets; all begin with the warm start."""
    rows = work.rows()
    teachers = (
        f"teachers={{scale: 30, members: [{{kind: dense, path: {work.minilm}, pooling: mean}}, {{kind: bm25}}]}}"
    )
    published = {"published-idf": [f"data.rows={rows}", f"data.idf={{file: {work.idf}}}"]} if work.idf else {}
    return {
        "infonce": [f"data.rows={rows}"],
        "kd-ensemble": [f"data.rows={rows}", teachers, "train.losses.kl={weight: 1, teacher: ensemble, candidates: batch}",
                        "train.losses.infonce.weight=0"],
        "double-log": [f"data.rows={rows}", "model.activation=l0"],
        "l0-mask": [f"data.rows={rows}", "train.losses.flops.spare_below=150"],
        "trained-idf": [f"data.rows={rows}", "query={side: trained_idf, learning_rate: 1e-2}"],
        **published,
    }


def ablations(work):
    warm, _ = work.warm()
    recipe = ROOT / "configs/scifact.yaml"
    rankings, costs = {}, {}
    for seed in SEEDS:
        for name, sets in arms(work).items():
            own = [f"model.path={warm}", f"run.seed={seed}", *SHORT, *sets]
            model, entry = work.train(f"{name}-{seed}", recipe, own)
            costs.setdefault(name, []).append(entry)
            rankings.setdefault(name, []).append(work.rank(f"{name}-{seed}", "--method", "sparse", "--model", model))
            if name == "infonce":
                mined = work.out / f"mined-{seed}.jsonl"
                work.step(f"mined-{seed}", "mine", "--data", work.data, "--model", model, "--depth", 200, "--sample", 30,
                          "--merge", work.rows(), "--seed", seed, "--out", mined)
                second = [f"model.path={model}", f"run.seed={seed + 100}", *SHORT, f"data.rows={mined}"]
                model, entry = work.train(f"stage-two-{seed}", recipe, second)
                costs.setdefault("stage-two", []).append(entry)
                rankings.setdefault("stage-two", []).append(work.rank(f"stage-two-{seed}", "--method", "sparse", "--model", model))
                tuned = work.out / f"tuned-{seed}"
                first = work.out / f"infonce-{seed}" / "model"
                work.step(f"tune-idf-{seed}", "tune-idf", "--model", first, "--data", work.data, "--seed", seed, "--out", tuned)
                rankings.setdefault("tune-idf", []).append(work.rank(f"tune-idf-{seed}", "--method", "sparse", "--model", tuned))
    base = rankings["infonce"]
    print("| arm | against | nDCG@10, mean of seeds | difference, 95 % interval by query | minutes a run | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, files in rankings.items():
        result = work.compare(name, files, base)
        runs = costs.get(name, [])
        minutes = max((r["seconds"] for r in runs), default=0) / 60
        memory = max((r["peak_megabytes"] for r in runs), default=0)
        print(f"| {name} | infonce | {result['metrics']['ndcg@10']:.4f} | {difference(result)} | {minutes:.1f} | {memory} MB |")


def steering(work):
    warm, _ = work.warm()
    recipe = ROOT / "configs/scifact.yaml"
    print("| target | first weight | mean of 500 held-out documents | off by |\n|---|---|---|---|")
    for weight in (1e-2, 1e-4):
        for target in (120, 200):
            name = f"steering-{target}-{weight:g}"
            aim = f"train.losses.flops={{target: {{doc_dims: {target}, start_weight: {weight}}}}}"
            sets = [f"model.path={warm}", f"data.rows={work.rows()}", *SHORT, "train.steps=60", aim]
            folder = work.train(name, recipe, sets)[0].parent
            density = json.loads((folder / "summary.json").read_text())["density"]
            mean = density["mean"]
            print(f"| {target} | {weight:g} | {mean:.1f} | {(mean / target - 1) * 100:+.1f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scifact", "ablations", "steering"])
    parser.add_argument("--data", required=True, help="the data set's folder")
    parser.add_argument("--minilm", required=True, help="all-MiniLM-L6-v2 (scripts/fetch-minilm.sh)")
    parser.add_argument("--idf", help="a published idf.json of the same vocabulary: one arm more")
    parser.add_argument("--out", default="runs/results", help="where trainings and rankings go")
    parser.add_argument("--nsparse", default=str(ROOT / "target/release/nsparse"), help="the program")
    arguments = parser.parse_args()
    {"scifact": scifact, "ablations": ablations, "steering": steering}[arguments.what](Work(arguments))


if __name__ == "__main__":
    main()
