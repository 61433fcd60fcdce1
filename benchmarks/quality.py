"""What the same minutes give: ours and Hugging Face's Trainer pre-train BERT-mini, and both are asked the same masks.

    pip install accelerate
    python benchmarks/quality.py --corpus STORE --out runs/quality [--budget 10m] [--size mini] [--seed 0]

Ours learns masked tokens and next sentences as `recipes/novels.yaml` says. The peer, which has no next sentences,
learns masked tokens alone, which spares it some work: `BertForMaskedLM` in `Trainer`, with
`DataCollatorForLanguageModeling` (15 % hidden) on the same store's tokens, cut as its example scripts cut text, 126
tokens between [CLS] and [SEP], no padding; fused AdamW, batches of 32, a rate of 1e-3 that falls to 0 after a warm-up
of a tenth, no dropout, bf16 where the device has it. How many steps fit in the time is measured first, so that its
rate has fallen when the time is over. Then both models guess the same hidden 15 % of the held-out documents, by the
same code. Run on an idle machine; a run that is there already is not run again. Writes `quality.json`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, save_model
from bertsmith.model.sizes import named_size
from bertsmith.settings import from_mapping, read_config
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus import open_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.progress import read_metrics
from bertsmith.training.schedule import Budget

RECIPE = Path(__file__).parent.parent / "recipes" / "novels.yaml"
MAX_LENGTH = 128
PEER_BATCH_SIZE = 32
PEER_RATE = 1e-3
CALIBRATION_STEPS = 12
UNCOUNTED_STEPS = 4


def main() -> None:
    """Train what is not there yet, ask both, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    own = {name: getattr(arguments, name) for name in ("budget", "size", "seed")}
    where = {"corpus": str(arguments.corpus), "out": str(arguments.out / "ours")}
    settings = from_mapping(PretrainSettings, {**read_config(RECIPE)["pretrain"], **own, **where}, str(RECIPE))
    if not (settings.out / "model").is_dir():
        pretrain(settings)
    tokenizer = load_tokenizer(arguments.corpus / "tokenizer")
    config = named_size(arguments.size, tokenizer.vocab_size).with_dropout(0.0, 0.0, None)
    theirs = arguments.out / "theirs"
    if not (theirs / "model.safetensors").exists():
        train_peer(arguments, config, theirs)
    result: dict[str, Any] = {"budget": arguments.budget, "size": arguments.size, "torch": torch.__version__}
    for name, folder in (("ours", settings.out / "model"), ("theirs", theirs)):
        result[name] = judge(settings, config, folder)
    seconds = [
        line["seconds"]
        for line in read_metrics(settings.out / "metrics.jsonl")
        if line["kind"] == "train" and line["losses"]["mlm"] <= result["theirs"]["mlm_loss"]
    ]
    result["seconds_of_ours_until_a_training_loss_as_low_as_theirs_at_the_end"] = min(seconds, default=None)
    (arguments.out / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def train_peer(arguments: argparse.Namespace, config: EncoderConfig, folder: Path) -> None:
    """Train `BertForMaskedLM` for the budget and save it in `folder`; its weights begin as transformers draws them."""
    seconds = Budget.parse(arguments.budget).amount
    transformers.set_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place), PretrainingModel(Encoder(config), pairs=False), config, "BertForMaskedLM")
        their_config = transformers.BertConfig.from_pretrained(place)
    start = transformers.BertForMaskedLM(their_config)
    blocks = peer_blocks(arguments.corpus)
    ends: list[float] = []
    trainer(start, blocks, arguments.corpus, CALIBRATION_STEPS, ends).train()
    step_seconds = (ends[-1] - ends[UNCOUNTED_STEPS - 1]) / (CALIBRATION_STEPS - UNCOUNTED_STEPS)
    transformers.set_seed(arguments.seed)
    model = transformers.BertForMaskedLM(their_config)
    run = trainer(model, blocks, arguments.corpus, int(seconds / step_seconds), ends)
    began = time.perf_counter()
    run.train()
    print(f"the peer took {time.perf_counter() - began:.0f} s for {run.state.global_step} steps")
    model.save_pretrained(folder)


def peer_blocks(store: Path) -> list[dict[str, list[int]]]:
    """All training tokens in blocks that fill a sequence, as `run_mlm.py` of transformers groups texts."""
    special = transformers.AutoTokenizer.from_pretrained(store / "tokenizer")
    tokens = np.concatenate(open_corpus(store, "train").shards())
    length = MAX_LENGTH - 2
    blocks = tokens[: len(tokens) // length * length].reshape(-1, length).tolist()
    return [{"input_ids": [special.cls_token_id, *block, special.sep_token_id]} for block in blocks]


def trainer(model: Any, blocks: list[dict[str, list[int]]], store: Path, steps: int, ends: list[float]) -> Any:
    """A Trainer for so many steps, which notes in `ends` when each of them ended."""

    class Clock(transformers.TrainerCallback):
        """When each step ended."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Note the time."""
            ends.append(time.perf_counter())

    device = resolve_device()
    tokenizer = transformers.AutoTokenizer.from_pretrained(store / "tokenizer")
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is saved there
            per_device_train_batch_size=PEER_BATCH_SIZE,
            max_steps=steps,
            learning_rate=PEER_RATE,
            warmup_steps=steps // 10,
            weight_decay=0.01,
            optim="adamw_torch_fused",
            bf16=resolve_precision("auto", device) == "bf16",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=blocks,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[Clock()],
    )


def judge(settings: PretrainSettings, config: EncoderConfig, folder: Path) -> dict[str, float]:
    """Held-out figures of a model's folder: 15 % of the tokens of running text, the same for every model."""
    tokenizer = load_tokenizer(settings.corpus / "tokenizer")
    asked = PretrainSettings(corpus=settings.corpus, out=settings.out, objective="mlm", max_length=MAX_LENGTH)
    corpora = {"train": open_corpus(settings.corpus, "train"), "dev": open_corpus(settings.corpus, "heldout")}
    task = make_task(with_objective(asked, "bert"), MAX_LENGTH, tokenizer, corpora)
    model = PretrainingModel(Encoder(config), pairs=False)
    load_weights(folder, model, strict=False)
    device = resolve_device()
    return dict(evaluate_task(model.to(device), task, "dev", device=device, precision="fp32").metrics)


if __name__ == "__main__":
    main()
