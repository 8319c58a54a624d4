"""Encoding in onnxruntime: the other side of `nsparse bench encode`.

Texts are tokenised, sorted by length, padded in batches, run through a graph from token ids to document vectors
[B, V], and the entries above zero are collected. Without --onnx the graph is exported from the model directory by
torch.onnx first, which is not timed; with --fuse attention and norms become onnxruntime's own operators.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy
import onnxruntime

import common

# What the imports alone hold.
LIBRARIES = common.peak_memory()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="model directory: config.json, model.safetensors, tokenizer.json")
    add("--texts", required=True, help="jsonl that `nsparse bench encode --save-texts` wrote")
    add("--most", type=int, help="only the first so many texts")
    add("--onnx", help="a graph with two inputs (ids, mask: int64 [B, L]) and one output [B, V]")
    add("--export-only", metavar="FILE", help="write the graph of torch.onnx to a file, and stop")
    add("--fuse", action="store_true", help="let onnxruntime's transformers optimizer fuse the exported graph")
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=16)
    add("--rounds", type=int, default=1)
    add("--warmup", type=int, default=0, help="whole rounds before; 32 texts always go first")
    return parser.parse_args()


def export(folder, path, is_fused):
    """Document vectors as a graph: logits, masked maximum, ln(1 + relu)."""
    import torch
    import transformers

    class Vectors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlm = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager")

        def forward(self, input_ids, attention_mask):
            logits = self.mlm(input_ids=input_ids, attention_mask=attention_mask).logits
            masked = logits + (attention_mask.unsqueeze(-1).to(logits.dtype) - 1.0) * 1e4
            return torch.log1p(torch.relu(masked.amax(dim=1)))

    ids = torch.ones(2, 16, dtype=torch.long)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in names} | {"output": {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(
            Vectors().eval(),
            (ids, mask),
            str(path),
            input_names=names,
            output_names=["output"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    if is_fused:
        from onnxruntime.transformers import optimizer

        shape = json.loads((Path(folder) / "config.json").read_text())
        heads, hidden = shape["num_attention_heads"], shape["hidden_size"]
        fused = optimizer.optimize_model(str(path), "bert", heads, hidden, opt_level=0)
        fused.save_model_to_file(str(path))


def main():
    args = arguments()
    if args.export_only:
        export(args.model, args.export_only, args.fuse)
        return
    texts = common.read_texts(args.texts, args.most)
    most = common.window(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = args.onnx
        if path is None:
            path = Path(folder) / "model.onnx"
            export(args.model, path, args.fuse)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [i.name for i in session.get_inputs()]
    ids_name = next(n for n in inputs if n.endswith("input_ids"))
    mask_name = next(n for n in inputs if n.endswith("attention_mask"))
    tokens, active = 0, 0

    def encode(texts):
        nonlocal tokens, active
        windows = common.tokenise(args.model, texts, most)
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
        vectors = [None] * len(windows)
        for start in range(0, len(order), args.batch):
            places = order[start : start + args.batch]
            length = len(windows[places[0]])
            ids = numpy.zeros((len(places), length), dtype=numpy.int64)
            mask = numpy.zeros_like(ids)
            for row, place in enumerate(places):
                ids[row, : len(windows[place])] = windows[place]
                mask[row, : len(windows[place])] = 1
            for place, row in zip(places, session.run(None, {ids_name: ids, mask_name: mask})[0]):
                (entries,) = numpy.nonzero(row)
                vectors[place] = (entries, row[entries])
        tokens = sum(len(w) for w in windows)
        active = sum(len(v[0]) for v in vectors) / len(vectors)

    encode(texts[:32])
    seconds = common.rounds(lambda _: encode(texts), args.rounds, args.warmup)
    common.report(
        "onnxruntime",
        f"onnxruntime {onnxruntime.__version__}",
        args.threads,
        "cpu",
        {"batch": args.batch, "documents": len(texts), "graph": args.onnx or "torch.onnx"},
        tokens,
        seconds,
        documents=len(texts),
        documents_per_second=len(texts) / sorted(seconds)[len(seconds) // 2],
        active_dimensions=active,
        libraries_memory_bytes=LIBRARIES,
    )


if __name__ == "__main__":
    main()
