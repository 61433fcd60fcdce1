"""Our steps, and Hugging Face's Trainer at its best on this machine; the latter needs `pip install accelerate`."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
import transformers

from bertsmith.training.device import ResolvedPrecision
from bertsmith.training.loader import Loader, Step
from bertsmith.training.step import take_step
from bertsmith.training.task import Task

UNCOUNTED_STEPS = 2
"""Steps at the beginning of a round that are not timed, neither ours nor theirs."""
Row = dict[str, Any]


class _Clock(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def our_steps(
    model: torch.nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    num_steps: int,
    learning_rate: float,
    precision: ResolvedPrecision,
    seed: int,
) -> Iterator[tuple[Step, float]]:
    """Our steps, each with the seconds that its data and its update took; 0 for the first UNCOUNTED_STEPS."""
    device = next(model.parameters()).device
    loader = Loader(task.examples("train"), task.collate, batch_size=batch_size, seed=seed)
    with closing(loader.steps()) as steps:
        for number in range(num_steps):
            began = time.perf_counter()
            step = next(steps)
            take_step(
                model,
                task,
                step,
                optimizer,
                learning_rate=learning_rate,
                max_grad_norm=1.0,
                seed=seed,
                number=number,
                device=device,
                precision=precision,
            )
            yield step, time.perf_counter() - began if number >= UNCOUNTED_STEPS else 0.0


def trainer_seconds(
    model: Any,
    rows: Sequence[Row],
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    learning_rate: float,
    precision: ResolvedPrecision,
    groups_lengths: bool,
) -> float:
    """Seconds for one pass over the rows but the first UNCOUNTED_STEPS batches.

    With its fused AdamW, bf16 where the device has it, its default attention, no logging and no saving.

    Args:
        rows: as many as whole batches; the shortest and longest lie anywhere in them.
        groups_lengths: batches of similar length, which saves padding; else the rows in their order.
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                num_train_epochs=1,
                learning_rate=learning_rate,
                optim="adamw_torch_fused",
                bf16=precision == "bf16",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                train_sampling_strategy="group_by_length" if groups_lengths else "sequential",
            ),
            train_dataset=list(rows),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    return clock.ends[-1] - clock.ends[UNCOUNTED_STEPS - 1]


def padded(rows: Sequence[Row], fillers: dict[str, int]) -> dict[str, torch.Tensor]:
    """A batch as long as its longest sequence: the named lists filled up, all else as it is."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in fillers:
            values = [value + [fillers[name]] * (longest - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


def matrix_product_speed(precision: ResolvedPrecision) -> float:
    """Operations a second of the CPU's fastest matrix product of a size that the layers of large models have."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(4096, 1024, dtype=dtype), torch.randn(1024, 4096, dtype=dtype)
    speeds = []
    for _ in range(8):
        began = time.perf_counter()
        _ = left @ right
        speeds.append(2 * left.shape[0] * left.shape[1] * right.shape[1] / (time.perf_counter() - began))
    return max(speeds)
