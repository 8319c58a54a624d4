"""A training step in PyTorch: the other side of `nsparse bench train`.

BertForMaskedLM of transformers with random weights, vectors by the maximum over all positions, InfoNCE over the batch
and FLOPS, clipping, AdamW, all in f32. The logits are a [B, L, V] tensor, as PyTorch users have them. Everything that
eager PyTorch does best is used: fused AdamW, the maximum before the activation, no attention mask where nothing is
padded.
"""

import argparse
import contextlib

import torch
import transformers
from torch.nn import functional as F

import common

# What the imports alone hold; the class is looked up so that it is loaded by now.
LIBRARIES = (transformers.BertForMaskedLM, common.peak_memory())[1]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layers", type=int, default=6)
    add("--hidden", type=int, default=384)
    add("--heads", type=int, default=12)
    add("--vocab", type=int, default=30522)
    add("--docs", type=int, default=16, help="documents a step; half of them positives of one query each")
    add("--tokens", type=int, default=128)
    add("--active", default="150", help="entries above zero at the start, or all")
    add("--dropout", type=float, default=0.1)
    add("--rounds", type=int, default=7)
    add("--warmup", type=int, default=2)
    add("--threads", type=int, default=2)
    add("--device", default="cpu")
    add("--bf16", action="store_true", help="autocast to bfloat16; parameters stay f32")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--count-flops", action="store_true", help="only count operations of forward and backward, by torch")
    add("--seed", type=int, default=1)
    return parser.parse_args()


class Encoder(torch.nn.Module):
    """Document vectors [B, V] by SPLADE's maximum."""

    def __init__(self, config):
        super().__init__()
        self.mlm = transformers.BertForMaskedLM(config)

    def forward(self, ids):
        logits = self.mlm(input_ids=ids).logits
        return torch.log1p(torch.relu(logits.amax(dim=1).float()))


def network(args):
    config = transformers.BertConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
        max_position_embeddings=max(args.tokens, 512),
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    )
    return Encoder(config)


def set_density(model, ids, active):
    """Moves the decoder's bias so that about `active` entries of a document are above zero."""
    with torch.no_grad():
        model.eval()
        pooled = model.mlm(input_ids=ids).logits.amax(dim=1).flatten()
        if active == "all":
            threshold = pooled.min() - 1.0
        else:
            threshold = pooled.topk(int(active) * len(ids)).values[-1]
        model.mlm.cls.predictions.decoder.bias.fill_(-threshold.item())
        model.train()


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = network(args)
    batches = torch.randint(5, args.vocab, (args.warmup + args.rounds, args.docs, args.tokens))
    set_density(model, batches[0][:16], args.active)
    model.to(device)
    batches = batches.to(device)
    # Eight tokens of its positive, each with a weight, make a query.
    queries = torch.zeros(len(batches), args.docs // 2, args.vocab, device=device)
    own = batches[:, ::2, 1:9]
    queries.scatter_(2, own, 1.0 + (own % 8).float())
    targets = torch.arange(0, args.docs, 2, device=device)

    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, fused=True)
    forward = torch.compile(model) if args.compile else model
    precision = torch.autocast(device.type, dtype=torch.bfloat16) if args.bf16 else contextlib.nullcontext()
    active = []

    def loss_of(number):
        with precision:
            weights = forward(batches[number])
        scores = queries[number] @ weights.T
        active.append((weights.detach() > 0).sum().item() / args.docs if device.type == "cpu" else float("nan"))
        return F.cross_entropy(scores, targets) + 1e-3 * weights.mean(dim=0).square().sum()

    def step(number):
        optimizer.zero_grad(set_to_none=True)
        loss_of(number).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    if args.count_flops:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            loss_of(0)
        forward_flops = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            loss_of(0).backward()
        print({"forward": forward_flops, "forward and backward": counter.get_total_flops()})
        return

    is_cuda = device.type == "cuda"
    seconds = common.rounds(step, args.rounds, args.warmup, torch.cuda.synchronize if is_cuda else lambda: None)
    more = {"peak_memory_bytes": torch.cuda.max_memory_allocated()} if is_cuda else {}
    config = {key: getattr(args, key) for key in ("layers", "hidden", "heads", "vocab", "docs", "tokens", "active")}
    config |= {"dropout": args.dropout, "bf16": args.bf16, "compile": args.compile}
    common.report(
        "pytorch",
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        torch.get_num_threads(),
        args.device,
        config,
        args.docs * args.tokens,
        seconds,
        libraries_memory_bytes=LIBRARIES,
        active_dimensions=sum(active) / len(active),
        parameters=sum(p.numel() for p in model.parameters()),
        **more,
    )


if __name__ == "__main__":
    main()
