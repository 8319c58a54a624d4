#!/usr/bin/env python3
"""Makes the figures of docs/results.md: trainings and their rankings, each once, in a folder that can be gone on from.

    benches/results/run.py scifact   --data DIR --minilm DIR     the published recipe
    benches/results/run.py distilled --data DIR --minilm DIR     the longer one, with teachers
    benches/results/run.py ablations --data DIR --minilm DIR     arms from one warm start, three seeds each
    benches/results/run.py steering  --data DIR --minilm DIR     the controller, from weights ten times too high and too low
    benches/results/run.py collapse  --data DIR --minilm DIR     runs built to fail, whose cause the guard has to name
    benches/results/run.py processes --data DIR --minilm DIR     one process and two

Needs a built program (--nsparse, default target/release/nsparse) and nothing but Python's own library. Every step's
command, seconds and peak memory go to OUT/log.jsonl; what is there is not made again.
"""

import argparse
import array
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ROOT / "configs/scifact.yaml"
SEEDS = [1, 2, 3]
# One contrastive stage of an ablation: some two minutes on two cores. Documents are cut at 128 tokens, in training and at
# the test, so that the whole corpus is encoded for every arm and seed.
SHORT = [
    "warm_start.steps=0", "calibration.when=never", "data.max_tokens=128", "train.steps=90", "train.negatives=1",
    "eval.fraction=0", "checkpoint.every=0",
]


class Work:
    """Steps that are run once each."""

    def __init__(self, arguments):
        self.nsparse, self.out = arguments.nsparse, Path(arguments.out)
        self.data, self.minilm, self.idf = arguments.data, arguments.minilm, arguments.idf
        self.split = arguments.split
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
        changes = [f"run.dir={folder}", f"data.dir={self.data}", f"data.split={self.split}", *sets]
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
        self.step("negatives", "mine", "--data", self.data, "--split", self.split, "--engine", "local", "--depth", 50, "--sample", 3,
                  "--out", rows)
        return rows

    def warm(self):
        """The warm start that all arms begin with."""
        rows = self.rows()
        return self.train("warm", RECIPE, [f"model.path={self.minilm}", f"data.rows={rows}", "train.steps=0", "eval.fraction=0"])

    def compare(self, name, runs, baseline):
        """The mean over seeds against another arm's, by query."""
        qrels = Path(self.data) / "qrels/test.tsv"
        joined = [",".join(map(str, files)) for files in (runs, baseline)]
        return self.step(name, "eval", "--qrels", qrels, "--run", joined[0], "--baseline", joined[1])


def difference(result):
    d = result["against_baseline"]["difference"]
    return f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"


def published(work, name, recipe, sets):
    model, entry = work.train(name, recipe, sets)
    ranking = work.rank(name, "--method", "sparse", "--model", model)
    result = work.compare(f"{name} against BM25", [ranking], [work.bm25()])
    dims = json.loads((work.out / "rankings" / name / "summary.json").read_text())["dimensions"]["document_mean"]
    print("| recipe | config | time | peak memory | active dimensions | nDCG@10 | against BM25 |\n|---|---|---|---|---|---|---|")
    print(
        f"| {recipe.name} | {entry['config']} | {entry['seconds'] / 60:.0f} min | {entry['peak_megabytes']} MB "
        f"| {dims:.1f} | {result['metrics']['ndcg@10']:.4f} | {difference(result)} |"
    )


def scifact(work):
    published(work, "scifact", RECIPE, [f"model.path={work.minilm}", f"data.rows={work.rows()}"])


def distilled(work):
    rows, sentences = work.rows(), work.out / "sentences.jsonl"
    work.step("sentences", "data", "sentences", "--data", work.data, "--out", sentences)
    recipe = ROOT / "configs/scifact-distilled.yaml"
    sets = (
        f"data.sets=[{{name: claims, rows: {rows}, weight: 1}}, {{name: sentences, rows: {sentences}, weight: 3}}]",
        f"teachers.members=[{{kind: dense, path: {work.minilm}, pooling: mean, max_tokens: 256, weight: 0.6}}, "
        "{kind: bm25, weight: 0.4}]",
        f"teachers.cache={work.out / 'teachers'}",
    )
    published(work, "scifact-distilled", recipe, [f"model.path={work.minilm}", *sets])


def arms(work):
    """Name → what an arm sets; all begin with the warm start."""
    rows = work.rows()
    teachers = (
        f"teachers={{scale: 30, cache: {work.out / 'teachers'}, members: [{{kind: dense, path: {work.minilm}, pooling: mean}}, {{kind: bm25}}]}}"
    )
    given_idf = {"published-idf": [f"data.rows={rows}", f"data.idf={{file: {work.idf}}}"]} if work.idf else {}
    return {
        "infonce": [f"data.rows={rows}"],
        "kd-ensemble": [f"data.rows={rows}", teachers, "train.losses.kl={weight: 1, teacher: ensemble, candidates: batch}",
                        "train.losses.infonce.weight=0"],
        "double-log": [f"data.rows={rows}", "model.activation=l0"],
        "l0-mask": [f"data.rows={rows}", "train.losses.flops.spare_below=150"],
        **given_idf,
    }


def ablations(work):
    warm, _ = work.warm()
    rankings, costs = {}, {}
    for seed in SEEDS:
        for name, sets in arms(work).items():
            own = [f"model.path={warm}", f"run.seed={seed}", *SHORT, *sets]
            model, entry = work.train(f"{name}-{seed}", RECIPE, own)
            costs.setdefault(name, []).append(entry)
            rankings.setdefault(name, []).append(work.rank(f"{name}-{seed}", "--method", "sparse", "--model", model))
            if name == "infonce":
                mined = work.out / f"mined-{seed}.jsonl"
                work.step(f"mined-{seed}", "mine", "--data", work.data, "--model", model, "--depth", 200, "--sample", 30,
                          "--merge", work.rows(), "--seed", seed, "--out", mined)
                # As many steps again, on the mined rows and, for comparison, on the same rows as before.
                first = model
                for arm, own_rows in (("stage-two", mined), ("stage-one-on", work.rows())):
                    second = [f"model.path={first}", f"run.seed={seed + 100}", *SHORT, f"data.rows={own_rows}"]
                    model, entry = work.train(f"{arm}-{seed}", RECIPE, second)
                    costs.setdefault(arm, []).append(entry)
                    rankings.setdefault(arm, []).append(work.rank(f"{arm}-{seed}", "--method", "sparse", "--model", model))
                tuned = work.out / f"tuned-{seed}"
                work.step(f"tune-idf-{seed}", "tune-idf", "--model", first, "--data", work.data, "--seed", seed, "--out", tuned)
                rankings.setdefault("tune-idf", []).append(work.rank(f"tune-idf-{seed}", "--method", "sparse", "--model", tuned))
    print("| arm | against | nDCG@10, mean of seeds | difference, 95 % interval by query | active dimensions | minutes a run | peak memory |")
    print("|---|---|---|---|---|---|---|")
    pairs = [(name, "infonce") for name in rankings] + [("stage-two", "stage-one-on")]
    for name, base in pairs:
        result = work.compare(f"{name} against {base}", rankings[name], rankings[base])
        runs = costs.get(name, [])
        minutes = max((r["seconds"] for r in runs), default=0) / 60
        memory = max((r["peak_megabytes"] for r in runs), default=0)
        dims = [r["result"]["density"]["active_dimensions"] for r in runs if r["result"]["density"]]
        dims = f"{sum(dims) / len(dims):.0f}" if dims else ""
        print(
            f"| {name} | {base} | {result['metrics']['ndcg@10']:.4f} | {difference(result)} | {dims} "
            f"| {minutes:.1f} | {memory} MB |", flush=True,
        )
    raised = {name: [line for r in runs for line in r["result"]["warnings"]] for name, runs in costs.items()}
    print(f"\nguard, over {sum(map(len, costs.values()))} runs: {raised}")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steering(work):
    """From the weight that the target needs, from ten times as much, and from a tenth."""
    warm, _ = work.warm()
    # Few examples, so that 500 documents stand in none of them.
    rows = work.out / "few-rows.jsonl"
    rows.write_text("".join(line + "\n" for line in work.rows().read_text().splitlines()[:200]))
    print("| target | first weight | last weight | mean of held-out documents | off by |\n|---|---|---|---|---|")
    target, found = 150, 1e-3
    for factor in (1, 10, 0.1):
        first = found * factor
        aim = f"train.losses.flops={{target: {{doc_dims: {target}, start_weight: {first}}}}}"
        sets = [f"model.path={warm}", f"data.rows={rows}", *SHORT, "train.steps=200", aim]
        folder = work.train(f"steering-{factor:g}", RECIPE, sets)[0].parent
        density = json.loads((folder / "summary.json").read_text())["density"]
        last = [line["lambda"] for line in lines(folder) if line["kind"] == "step"][-1]
        found = last if factor == 1 else found
        off = (density["mean"] / density["target"] - 1) * 100
        print(f"| {target} | {first:.2g} | {last:.2g} | {density['mean']:.1f} ({density['held_out']}) | {off:+.1f} % |", flush=True)


# What is wrong → what the recipe sets. The guard sees telemetry alone.
BROKEN = {
    "full-weight": ["train.losses.flops={weight: 10, ramp_steps: 0}"],
    "logits-times-20": [],
    "all-dense": ["calibration.when=never"],
}


def scaled(model, out, factor):
    """A copy of a model whose logits are `factor` times as large: the head's last norm and the bias are multiplied."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in ("transform.LayerNorm.weight", "transform.LayerNorm.bias", "bias"):
        first, end = (start + place for place in header[f"cls.predictions.{name}"]["data_offsets"])
        values = array.array("f", data[first:end])
        data[first:end] = array.array("f", [factor * value for value in values]).tobytes()
    file.write_bytes(data)
    return out


def collapse(work):
    warm, _ = work.warm()
    print("| run | found at step | finding |\n|---|---|---|")
    for name, sets in BROKEN.items():
        start = {"all-dense": work.minilm, "logits-times-20": scaled(warm, work.out / "scaled", 20)}.get(name, warm)
        own = [f"model.path={start}", f"data.rows={work.rows()}", *SHORT, "train.steps=50", *sets]
        folder = work.train(f"collapse-{name}", RECIPE, own)[0].parent
        for line in lines(folder):
            if line["kind"] == "warning":
                print(f"| {name} | {line['total_step']} | {line['finding']}: {line['cause']} |", flush=True)


def processes(work):
    """The same run in one process and in two: losses and densities step by step."""
    warm, _ = work.warm()
    own = [f"model.path={warm}", f"data.rows={work.rows()}", *SHORT, "train.steps=20", "train.dropout=0.1"]
    runs = []
    for count in (1, 2):
        folder = work.out / f"processes-{count}"
        sets = [f"run.dir={folder}", f"data.dir={work.data}", f"data.split={work.split}", *own]
        work.step(f"{count} processes", "train", RECIPE, "--replace", "--processes", count,
                  *[part for change in sets for part in ("--set", change)])
        runs.append([line for line in lines(folder) if line["kind"] == "step"])
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(*runs, strict=True))
    dims = max(abs(a["active_dimensions"] - b["active_dimensions"]) for a, b in zip(*runs, strict=True))
    print(f"{len(runs[0])} steps: losses part by at most {apart:.1e}, active dimensions by {dims:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scifact", "distilled", "ablations", "steering", "collapse", "processes"])
    parser.add_argument("--data", required=True, help="the data set's folder")
    parser.add_argument("--split", default="train", help="the judgments that are trained on (Cranfield has test alone)")
    parser.add_argument("--minilm", required=True, help="all-MiniLM-L6-v2 (scripts/fetch-minilm.sh)")
    parser.add_argument("--idf", help="a published idf.json of the same vocabulary: one arm more")
    parser.add_argument("--out", default="runs/results", help="where trainings and rankings go")
    parser.add_argument("--nsparse", default=str(ROOT / "target/release/nsparse"), help="the program")
    arguments = parser.parse_args()
    parts = {"scifact": scifact, "distilled": distilled, "ablations": ablations, "steering": steering, "collapse": collapse, "processes": processes}
    parts[arguments.what](Work(arguments))


if __name__ == "__main__":
    main()
