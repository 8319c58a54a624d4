"""What the scripts of the other side share: memory, rounds, texts, the model's folder."""

import json
import platform
import statistics
import sys
import time
from pathlib import Path


def peak_memory():
    """The most memory that this process has held, in bytes: what `nsparse bench` reads as well."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def rounds(work, count, warmup, settle=lambda: None):
    """Seconds of `count` calls after `warmup` ones; `settle` waits until a device is done."""
    seconds = []
    for number in range(warmup + count):
        settle()
        started = time.perf_counter()
        work(number)
        settle()
        if number >= warmup:
            seconds.append(time.perf_counter() - started)
    return seconds


def report(program, versions, threads, device, config, tokens, seconds, **more):
    """One JSON object on standard output, with the keys of `nsparse bench --json`."""
    median = statistics.median(seconds)
    print(
        json.dumps(
            {
                "program": program,
                "version": versions,
                "python": platform.python_version(),
                "device": device,
                "threads": threads,
                "config": config,
                "tokens": tokens,
                "tokens_per_second": tokens / median,
                "rounds": len(seconds),
                "median_seconds": median,
                "min_seconds": min(seconds),
                "max_seconds": max(seconds),
                "seconds": seconds,
                "peak_memory_bytes": more.pop("peak_memory_bytes", None) or peak_memory(),
                **more,
            },
            indent=2,
        )
    )


def read_texts(path, most=None):
    """Texts that `nsparse bench encode --save-texts` wrote."""
    with open(path, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
    return texts[:most] if most else texts


def window(folder):
    """Most tokens of a document, as the model directory says."""
    facts = Path(folder) / "nsparse.json"
    return json.loads(facts.read_text())["max_tokens"] if facts.is_file() else 512


def tokenise(folder, texts, most):
    """`[CLS] pieces [SEP]` of each text, at most `most` ids, by the folder's tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [[first, *e.ids[: most - 2], last] for e in encodings]
