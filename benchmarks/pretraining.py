"""Pre-training speed beside Hugging Face's Trainer: the same samples, sizes and precision, round after round.

    pip install accelerate
    python benchmarks/pretraining.py --corpus STORE --out runs/speed [--size mini] [--batch-size 64] [--max-length 128]

Each round trains ours, then `BertForPreTraining` in `Trainer` (see peer.py), for the same number of steps in one
process. Printed are the medians over the rounds, their ratio, and the share of the machine's largest matrix product
that ours reaches, counting the operations of the whole model (some of which the last layer leaves out). Nothing else
should run on the machine. Writes `pretraining.json`.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peer import our_steps, padded, trainer_seconds

from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder, compile_layers
from bertsmith.model.folder import save_model
from bertsmith.model.operations import TextShape
from bertsmith.model.sizes import named_size
from bertsmith.tasks.benchmark_work import whole_operations
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus import open_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.timing import matrix_product_speed

RATE = 1e-4
MASK_SHARE = 0.15
FILLERS = {"input_ids": 0, "token_type_ids": 0, "labels": -100}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1, help="of both models")
    parser.add_argument("--compile", action="store_true", help="both; the peer's batches are then all of --max-length")
    parser.add_argument("--steps", type=int, default=12, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = resolve_device()
    precision = resolve_precision("auto", device)
    task, model, theirs = build(arguments)
    optimizer = build_optimizer(model.to(device), OptimizerSettings(learning_rate=RATE))
    if arguments.compile:
        compile_layers(model)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    lengths: list[int] = []
    memory: dict[str, int] = {}
    for number in range(arguments.rounds):
        tokens, seconds, rows = 0, 0.0, []
        for step, step_seconds in our_steps(
            model,
            task,
            optimizer,
            batch_size=arguments.batch_size,
            num_steps=arguments.steps,
            learning_rate=RATE,
            precision=precision,
            seed=number,
        ):
            seconds += step_seconds
            tokens += step.num_tokens if step_seconds else 0
            rows += features(step.micro_batches[0])
        speeds["ours"].append(tokens / seconds)
        memory["ours"] = peak_memory(idle=0)  # the peer is not there in our turn
        ours_idle = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        seconds = trainer_seconds(
            theirs,
            rows,
            partial(padded, fillers=FILLERS, length=arguments.max_length if arguments.compile else None),
            batch_size=arguments.batch_size,
            learning_rate=RATE,
            precision=precision,
            order="sequential",
            is_compiled=arguments.compile,
        )
        speeds["theirs"].append(tokens / seconds)
        theirs.cpu()
        memory["theirs"] = peak_memory(ours_idle)
        lengths += [len(row["input_ids"]) for row in rows]
        print(f"round {number + 1}: ours {speeds['ours'][-1]:,.0f}, theirs {speeds['theirs'][-1]:,.0f} tokens/s")
    seen = sum(length**2 for length in lengths) / sum(lengths)
    report(arguments, speeds, memory, precision, operations(model.encoder.config, seen))


def peak_memory(idle: int) -> int:
    """Bytes on the GPU at the peak since the last call, less those of the other that lie there idle; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    peak = torch.cuda.max_memory_allocated() - idle
    torch.cuda.reset_peak_memory_stats()
    return peak


def build(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Our task and model, and theirs with the same weights."""
    settings = PretrainSettings(
        corpus=arguments.corpus,
        out=arguments.out,
        size=arguments.size,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
    )
    tokenizer = load_tokenizer(arguments.corpus / "tokenizer")
    corpora = {"train": open_corpus(arguments.corpus, "train")}
    task = make_task(with_objective(settings, "bert"), arguments.max_length, tokenizer, corpora)
    dropout = arguments.dropout
    config = named_size(arguments.size, tokenizer.vocab_size).with_dropout(dropout, dropout, None)
    model = task.build(Encoder(config))
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_model(arguments.out / "start", model, config, "BertForPreTraining")
    theirs = transformers.BertForPreTraining.from_pretrained(arguments.out / "start")
    theirs.resize_token_embeddings(pad_to_multiple_of=64)  # which matrix products like
    return task, model, theirs


def features(batch: Any) -> list[dict[str, Any]]:
    """The samples of one of our batches as the peer takes them."""
    labels = np.full(len(batch.inputs.token_ids), -100)
    labels[batch.labels["masked_positions"].numpy()] = batch.labels["masked_labels"].numpy()
    rows = []
    offsets = batch.inputs.offsets.tolist()
    for start, end, pair in zip(offsets, offsets[1:], batch.labels["pair_labels"].tolist(), strict=False):
        rows.append(
            {
                "input_ids": batch.inputs.token_ids[start:end].tolist(),
                "token_type_ids": batch.inputs.segment_ids[start:end].tolist(),
                "labels": labels[start:end].tolist(),
                "next_sentence_label": pair if pair >= 0 else -100,
            }
        )
    return rows


def operations(config: EncoderConfig, seen: float) -> float:
    """Of forward and backward pass a token: all of the encoder, and the head at masked positions only.

    Args:
        seen: how many tokens a token sees on average, those of its own sequence.
    """
    return whole_operations(config, TextShape(sequences=0, tokens=1, token_pairs=seen), MASK_SHARE)


def report(
    arguments: argparse.Namespace,
    speeds: dict[str, list[float]],
    memory: dict[str, int],
    precision: Any,
    operations_a_token: float,
) -> None:
    """Medians, ratio, share of the peak; on the screen and as JSON."""
    ours, theirs = (statistics.median(speeds[name]) for name in ("ours", "theirs"))
    peak = matrix_product_speed(precision, resolve_device())
    share = ours * operations_a_token / peak
    result = {
        **{
            name: getattr(arguments, name)
            for name in ("size", "batch_size", "max_length", "dropout", "compile", "steps")
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens_per_second": speeds,
        "ratio": ours / theirs,
        "peak_gpu_memory_bytes": memory,
        "matrix_product_operations_per_second": peak,
        "share_of_peak": share,
    }
    (arguments.out / "pretraining.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"ours {ours:,.0f}, theirs {theirs:,.0f} tokens/s: {ours / theirs:.2f} times; {share:.0%} of the peak")


if __name__ == "__main__":
    main()
