"""Runs nsparse and the other side in turns, and prints a table of medians and ratios.

Every process leaves its JSON in a folder; what is there already is not run again, so that a comparison can be stopped
and continued. The other side first shows which of its settings is the fastest.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

TRAIN = {
    "train": ["--layers", "6", "--hidden", "384", "--heads", "12", "--docs", "16", "--tokens", "128"],
    "train-base": ["--layers", "12", "--hidden", "768", "--heads", "12", "--docs", "8", "--tokens", "256"],
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=[*TRAIN, "encode", "growth"])
    add("--turns", type=int, default=3, help="how often both sides run, one after the other")
    add("--rounds", type=int, default=5, help="timed steps of each process (training)")
    add("--active", default="150", help="entries above zero at the start (training): a number or all")
    add("--dropout", default="0.1", help="dropout rate (training)")
    add("--threads", default="1,2", help="thread counts that are tried for each side")
    add("--model", help="model directory (encoding)")
    add("--data", help="data set's folder (encoding)")
    add("--sample", default="600", help="documents of the data set (encoding)")
    add("--seed", default="1", help="what the sample is drawn from (encoding)")
    add("--batches", default="4,16,32", help="batch sizes that the other sides try (encoding)")
    add("--onnx", help="one more graph for onnxruntime to try beside torch.onnx's exports (encoding)")
    add("--nsparse", default=str(ROOT / "target/release/nsparse"), help="the program")
    add("--out", help="folder of the results [default: target/peer/WHAT]")
    return parser.parse_args()


class Runs:
    """Processes whose results are kept as files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, name, command):
        command = [str(part) for part in command]
        path = self.folder / f"{name}.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["command"] == command:
                return kept["result"]
        print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"error: {name} ended with {done.returncode}")
        result = json.loads(done.stdout)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps({"command": command, "result": result}, indent=1))
        aside.rename(path)
        return result


def fastest(candidates):
    """The setting whose result has the most tokens a second."""
    return max(candidates, key=lambda pair: pair[1]["tokens_per_second"])[0]


def median(results, key):
    return statistics.median(r[key] for r in results)


def table(sides, settings):
    """Markdown: the first side against each other one."""
    first = next(iter(sides.values()))
    lines = [
        "| side | setting | tokens/s (median, spread of turns) | nsparse is faster by | peak memory | nsparse's share of it |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in sides.items():
        speeds = [r["tokens_per_second"] for r in results]
        speed = f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        memory = median(results, "peak_memory_bytes")
        faster = share = ""
        if results is not first:
            faster = f"{median(first, 'tokens_per_second') / statistics.median(speeds):.2f} ×"
            share = f"{median(first, 'peak_memory_bytes') / memory:.2f}"
        lines.append(f"| {name} | {settings[name]} | {speed} | {faster} | {memory / 1e6:.0f} MB | {share} |")
    for name, results in sides.items():
        libraries = results[0].get("libraries_memory_bytes")
        if libraries:
            rest = median(results, "peak_memory_bytes") - libraries
            if lines[-1].startswith("|"):
                lines.append("")
            lines.append(
                f"{name}: {libraries / 1e6:.0f} MB of its memory are its libraries; "
                f"nsparse's share of the rest is {median(first, 'peak_memory_bytes') / rest:.2f}."
            )
    if "share_of_rate" in first[0]:
        executed, share = median(first, "gflops_per_second"), median(first, "share_of_rate")
        rate = median(first, "rate_gflops_per_second")
        screened = " (screened head: without its product with the vocabulary)" if first[0]["head_is_screened"] else ""
        lines.append("")
        lines.append(
            f"nsparse executes {executed:.1f} GFLOP/s in products{screened}, "
            f"{share * 100:.0f} % of the {rate:.1f} GFLOP/s that they reach alone."
        )
    versions = "; ".join(f"{name}: {results[0]['version']}" for name, results in sides.items())
    return "\n".join(lines) + f"\n\n{versions}"


def train(args, runs):
    shape = TRAIN[args.what]
    both = [*shape, "--vocab", "30522", "--active", args.active, "--dropout", args.dropout]
    peer = [sys.executable, HERE / "train_step.py", *both]
    ours = [args.nsparse, "bench", "train", "--json", "--quiet", *both]

    def tried(name, command):
        found = []
        for n in args.threads.split(","):
            result = runs.run(f"search-{name}-{n}", [*command, "--warmup", 1, "--rounds", 2, "--threads", n])
            found.append((n, result))
        return fastest(found)

    threads = {"nsparse": tried("nsparse", ours), "PyTorch": tried("pytorch", peer)}
    sides = {"nsparse": [], "PyTorch": []}
    for turn in range(args.turns):
        for name, command in (("nsparse", ours), ("PyTorch", peer)):
            timed = [*command, "--rounds", args.rounds, "--threads", threads[name]]
            sides[name].append(runs.run(f"turn-{turn}-{name.lower()}", timed))
    settings = {name: f"{n} threads" for name, n in threads.items()}
    print(f"Training step {' '.join(both)}\n\n{table(sides, settings)}")


def encode(args, runs):
    if not args.model or not args.data:
        sys.exit("error: give --model DIR and --data DIR")
    texts = runs.folder / f"texts-{args.sample}-{args.seed}.jsonl"
    few = 96
    ours = [args.nsparse, "bench", "encode", "--json", "--quiet", "--model", args.model, "--data", args.data]
    ours += ["--sample", args.sample, "--seed", args.seed, "--save-texts", texts, "--rounds", 1, "--warmup", 0]
    found = [(n, runs.run(f"search-nsparse-{n}", [*ours, "--threads", n])) for n in args.threads.split(",")]
    threads = fastest(found)
    tokens = found[0][1]["tokens"]
    graphs = {"given graph": args.onnx} if args.onnx else {}
    for name, option in (("plain graph", []), ("fused graph", ["--fuse"])):
        path = graphs[name] = runs.folder / f"{name.split()[0]}.onnx"
        if not path.is_file():
            script = [sys.executable, HERE / "encode_onnxruntime.py", "--model", args.model, "--texts", texts]
            command = [*script, "--export-only", runs.folder / "part.onnx", *option]
            subprocess.run([str(part) for part in command], check=True)
            (runs.folder / "part.onnx").rename(path)
    peers = {
        "onnxruntime": {
            name: [sys.executable, HERE / "encode_onnxruntime.py", "--onnx", path] for name, path in graphs.items()
        },
        "sentence-transformers": {"": [sys.executable, HERE / "encode_sentence_transformers.py"]},
    }
    settings = {"nsparse": f"{threads} threads"}
    commands = {"nsparse": [*ours, "--threads", threads]}
    for name, kinds in peers.items():
        found = []
        for kind, command in kinds.items():
            command = [*command, "--model", args.model, "--texts", texts]
            for n in args.threads.split(","):
                for batch in args.batches.split(","):
                    setting = [*command, "--threads", n, "--batch", batch]
                    label = "-".join(filter(None, ["search", name, kind.split(" ")[0], n, batch]))
                    result = runs.run(label, [*setting, "--most", few])
                    told = f"{kind}, " if kind else ""
                    found.append(((setting, f"{told}{n} threads, batches of {batch}"), result))
        commands[name], settings[name] = fastest(found)
    sides = {name: [] for name in commands}
    for turn in range(args.turns):
        for name, command in commands.items():
            result = runs.run(f"turn-{turn}-{name}", command)
            if result["tokens"] != tokens:
                sys.exit(f"error: {name} read {result['tokens']} tokens, nsparse {tokens}")
            sides[name].append(result)
    length = tokens / sides["nsparse"][0]["documents"]
    print(f"Encoding {sides['nsparse'][0]['documents']} documents, {length:.0f} tokens in the mean\n")
    print(table(sides, settings))
    actives = ", ".join(f"{name} {r[0]['active_dimensions']:.1f}" for name, r in sides.items())
    print(f"\nactive entries a document: {actives}")


def growth(args, runs):
    """nsparse alone: long documents and large batches against small ones."""
    shapes = {
        "8 documents × 64 tokens": ["--docs", "8", "--tokens", "64"],
        "8 documents × 512 tokens": ["--docs", "8", "--tokens", "512"],
        "256 documents × 64 tokens, 8 at once": ["--docs", "256", "--tokens", "64", "--micro-batch", "8"],
    }
    results = {name: [] for name in shapes}
    for turn in range(args.turns):
        for place, (name, shape) in enumerate(shapes.items()):
            command = [args.nsparse, "bench", "train", "--json", "--quiet", "--active", args.active, *shape]
            rounds = ["--rounds", "2", "--warmup", "1"] if "256" in name else ["--rounds", args.rounds]
            results[name].append(runs.run(f"turn-{turn}-{place}", [*command, "--dropout", args.dropout, *rounds]))
    first = median(next(iter(results.values())), "gflops_per_second")
    print("| step | GFLOP/s executed | of the first | share of rate | tokens/s | peak memory |\n|---|---|---|---|---|---|")
    for name, found in results.items():
        executed, share = median(found, "gflops_per_second"), median(found, "share_of_rate")
        speed, memory = median(found, "tokens_per_second"), median(found, "peak_memory_bytes")
        ratio = f"{executed / first * 100:.0f} %"
        print(f"| {name} | {executed:.1f} | {ratio} | {share * 100:.0f} % | {speed:.0f} | {memory / 1e6:.0f} MB |")


def main():
    args = arguments()
    runs = Runs(args.out or ROOT / "target/peer" / args.what)
    {"encode": encode, "growth": growth}.get(args.what, train)(args, runs)


if __name__ == "__main__":
    main()
