#!/usr/bin/env python3
"""Golden values for documents of several windows with SeDR's late cache.

The oracle is PyTorch + HF transformers on the CPU, on the tiny BERT and the inputs of make_golden.py:

    python make_long_documents.py [--out DIR]     # the golden folder, by default this script's

Documents (rows of inputs.safetensors, each a window without padding): A = rows 0 and 1, B = row 2, C = rows 3, 4 and 5.
A document's vector is log1p(relu(max over all positions of all its windows)), special ids 0.
Rows of the logits: the batch's queries 0 and 1 (positives A and B; C is a hard negative of both), then the cached query 2
(positive: cached document 0). Columns: A, B, C, then cached documents 0 and 1, which carry no gradient. Query 0 has the
cached document 1 as another known positive: it is no candidate of its. The loss is the cross entropy, temperature 1.3,
mean over rows. Written: long/late_cache.json (value, the cached documents, score matrix) and long/grad.safetensors (vectors
and the gradient of every parameter). Float64 rounded to float32, as in make_golden.py.
"""
import argparse
import json
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

VOCAB, TEMPERATURE = 211, 1.3
DOCUMENTS = [[0, 1], [2], [3, 4, 5]]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=here)
    out = parser.parse_args().out
    inputs = load_file(os.path.join(here, "inputs.safetensors"))
    config = BertConfig.from_json_file(os.path.join(here, "tiny-bert", "config.json"))
    config._attn_implementation = "eager"
    model = BertForMaskedLM(config)
    missing = model.load_state_dict(load_file(os.path.join(here, "tiny-bert", "model.safetensors")), strict=False)
    assert not missing.unexpected_keys and all("decoder" in k for k in missing.missing_keys), missing
    model.tie_weights()
    model = model.double().eval()

    def vector(rows):
        logits = []
        for row in rows:
            ids = inputs["input_ids"][row][inputs["attention_mask"][row] == 1].unsqueeze(0)
            logits.append(model(input_ids=ids).logits[0])
        pooled = torch.cat(logits).amax(dim=0)
        keep = torch.ones(VOCAB, dtype=torch.float64)
        keep[inputs["special_ids"]] = 0
        return torch.log1p(torch.relu(pooled)) * keep

    docs = torch.stack([vector(rows) for rows in DOCUMENTS])
    queries = (inputs["q_multihot"] * torch.relu(inputs["idf"])).double()
    generator = torch.Generator().manual_seed(20)
    cached = torch.rand(2, VOCAB, generator=generator) * (torch.rand(2, VOCAB, generator=generator) < 0.2)
    cached[:, inputs["special_ids"]] = 0
    scores = queries @ torch.cat([docs, cached.double()]).T
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[0, 4] = False
    logits = (scores / TEMPERATURE).masked_fill(~allowed, float("-inf"))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 3]))
    loss.backward()

    os.makedirs(os.path.join(out, "long"), exist_ok=True)
    tensors = {"rep.docs": docs.detach().float().contiguous()}
    for name, parameter in model.named_parameters():
        if "decoder" not in name:
            tensors[name] = parameter.grad.float().contiguous()
    save_file(tensors, os.path.join(out, "long", "grad.safetensors"))
    with open(os.path.join(out, "long", "late_cache.json"), "w") as f:
        json.dump({"value": loss.item(), "temperature": TEMPERATURE, "scores": scores.tolist(),
                   "cached": [{str(j): float(row[j]) for j in row.nonzero().flatten().tolist()} for row in cached]}, f)
        f.write("\n")


main()
