"""A whole fine-tuning is, step by step, that of Transformers' models in a plain loop: losses, rates, decay, clipping.

Without dropout nothing is left to chance, so after two epochs all weights have to be where the peer's are.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks.saved import TASKS, FinetuneTask
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.loader import Loader
from bertsmith.training.loop import train
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.plan import Stage, TrainSettings
from bertsmith.training.task import Batch

pytestmark = pytest.mark.conformance

BATCH_SIZE, EPOCHS, RATE, EPSILON, DECAY, IGNORED = 4, 2, 1e-3, 1e-6, 5.0, -100
WORDS = "the cat sat at the river a dog she saw the old house in the city he said".split()
TEXTS = [" ".join(WORDS[start : start + 3 + start % 7]) for start in range(11)] * 2
"""Of three to nine words; the last batch of an epoch has two."""


def rows_of(task: str, folder: Path) -> str:
    path = folder / "train.json"
    if task == "classification":
        path = folder / "train.jsonl"
        path.write_text(
            "".join(json.dumps({"text": text, "label": str(len(text) % 3)}) + "\n" for text in TEXTS), encoding="utf-8"
        )
    elif task == "tagging":
        path = folder / "train.conll"
        sentences = ("\n".join(f"{word} {word[0]}" for word in text.split()) for text in TEXTS)
        path.write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    else:
        questions = [
            {
                "context": text,
                "qas": [{"id": str(number), "question": "who", "answers": [{"text": word, "answer_start": start}]}],
            }
            for number, text in enumerate(TEXTS)
            for word in [text.split()[number % 3]]
            for start in [text.index(word)]
        ]
        path.write_text(
            json.dumps({"version": "1.1", "data": [{"title": "", "paragraphs": questions}]}), encoding="utf-8"
        )
    return str(path)


def peer_inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as Transformers takes it: padded, with its labels in their places."""
    lengths = list(batch.inputs.lengths)

    def padded(values_T: Tensor, filler: int = 0) -> Tensor:
        return pad_sequence(list(torch.split(values_T, lengths)), batch_first=True, padding_value=filler)

    ids = batch.inputs.token_ids
    inputs = {
        "input_ids": padded(ids),
        "token_type_ids": padded(batch.inputs.segment_ids),
        "attention_mask": padded(torch.ones_like(ids)),
    }
    targets = batch.labels["targets"]
    if "word_positions" in batch.labels:
        labels_T = torch.full_like(ids, IGNORED)
        labels_T[batch.labels["word_positions"]] = targets
        return inputs | {"labels": padded(labels_T, IGNORED)}
    if targets.ndim == 2:
        return inputs | {"start_positions": targets[:, 0], "end_positions": targets[:, 1]}
    return inputs | {"labels": targets}


def peer_loss(peer: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's own; but of answers, which for Transformers may begin and end in padding, as ours cannot."""
    outputs = peer(**inputs)
    if "start_positions" not in inputs:
        loss: Tensor = outputs.loss
        return loss
    is_padding = inputs["attention_mask"] == 0
    ends = [
        nn.functional.cross_entropy(
            outputs[f"{end}_logits"].masked_fill(is_padding, -torch.inf), inputs[f"{end}_positions"]
        )
        for end in ("start", "end")
    ]
    return (ends[0] + ends[1]) / 2


def train_peer(peer: nn.Module, task: FinetuneTask, seed: int) -> None:
    """As `transformers.Trainer` does it: AdamW, a tenth of warm-up and a linear fall, no decay on biases and norms."""
    parameters = dict(peer.named_parameters())
    spared = {name for name in parameters if name.endswith("bias") or "LayerNorm" in name}
    groups = [
        {"params": [one for name, one in parameters.items() if name not in spared], "weight_decay": DECAY},
        {"params": [parameters[name] for name in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=EPSILON)
    num_steps = EPOCHS * -(-task.examples("train").num_examples(0) // BATCH_SIZE)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0.1 * num_steps, num_steps)
    steps = Loader(task.examples("train"), task.collate, batch_size=BATCH_SIZE, seed=seed).steps()
    for _ in range(num_steps):
        peer_loss(peer, peer_inputs(next(steps).micro_batches[0])).backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    steps.close()


PEERS: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "classification": (transformers.BertForSequenceClassification.from_pretrained, {"max_length": 24}),
    "tagging": (
        transformers.BertForTokenClassification.from_pretrained,
        {"tag_column": -1, "scheme": "none", "max_length": 24},
    ),
    "answering": (
        transformers.BertForQuestionAnswering.from_pretrained,
        {"max_length": 24, "max_query_length": 8, "doc_stride": 6},
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_fine_tuning_ends_where_that_of_transformers_does(name: str, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    config = named_size("tiny", tokenizer.vocab_size, max_length=48).with_dropout(0.0, 0.0, 0.0)
    kind, (load, options) = TASKS[name], PEERS[name]
    settings, rows = kind.read_rows(rows_of(name, tmp_path), kind.settings(**options))
    task = kind.make(tokenizer, kind.find_labels(rows, settings), settings, {"train": rows, "dev": [], "test": []})
    torch.manual_seed(0)
    model = task.build(Encoder(config))

    def as_peer(place: str) -> Any:
        save_model(tmp_path / place, model, config, f"Bert{task.architecture}")
        return load(tmp_path / place, attn_implementation="eager")

    start = {key: value.clone() for key, value in model.state_dict().items()}
    peer = as_peer("before")
    train_peer(peer.train(), task, seed=3)
    optimizer = OptimizerSettings(learning_rate=RATE, epsilon=EPSILON, weight_decay=DECAY)
    run = TrainSettings(
        budget=f"{EPOCHS} epochs", batch_size=BATCH_SIZE, seed=3, precision="fp32", device="cpu", optimizer=optimizer
    )
    train(model, [Stage(task)], run, tmp_path / "run", console=Console(quiet=True))
    found = as_peer("after").state_dict()
    moved = [(model.state_dict()[key] - value).norm() for key, value in start.items()]
    assert min(moved) > 0
    for key, expected in peer.state_dict().items():
        # Not closer: where a gradient is nothing but rounding (the biases of keys), Adam makes steps of it.
        assert (found[key] - expected).norm() <= 1e-3 * max(float(expected.norm()), 0.1), key
