"""Encoding in sentence-transformers: the other side of `nsparse bench encode`.

SparseEncoder with an MLM transformer and SpladePooling over the same model directory, in f32. It sorts texts by length
itself.
"""

import argparse

import sentence_transformers
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

import common

# What the imports alone hold.
LIBRARIES = common.peak_memory()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="model directory: config.json, model.safetensors, tokenizer.json")
    add("--texts", required=True, help="jsonl that `nsparse bench encode --save-texts` wrote")
    add("--most", type=int, help="only the first so many texts")
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=16)
    add("--rounds", type=int, default=1)
    add("--warmup", type=int, default=0, help="whole rounds before; 32 texts always go first")
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    texts = common.read_texts(args.texts, args.most)
    most = common.window(args.model)
    transformer = Transformer(args.model, transformer_task="fill-mask", max_seq_length=most)
    model = SparseEncoder(modules=[transformer, SpladePooling(pooling_strategy="max")], device="cpu")
    active = 0

    def encode(texts):
        nonlocal active
        vectors = model.encode(texts, batch_size=args.batch, show_progress_bar=False, convert_to_sparse_tensor=True)
        active = vectors._nnz() / len(texts)

    encode(texts[:32])
    seconds = common.rounds(lambda _: encode(texts), args.rounds, args.warmup)
    peak = common.peak_memory()
    common.report(
        "sentence-transformers",
        f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}",
        args.threads,
        "cpu",
        {"batch": args.batch, "documents": len(texts)},
        sum(len(w) for w in common.tokenise(args.model, texts, most)),
        seconds,
        documents=len(texts),
        documents_per_second=len(texts) / sorted(seconds)[len(seconds) // 2],
        active_dimensions=active,
        peak_memory_bytes=peak,
        libraries_memory_bytes=LIBRARIES,
    )


if __name__ == "__main__":
    main()
