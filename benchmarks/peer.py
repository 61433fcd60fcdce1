"""Our steps, and Hugging Face's Trainer at its best on this machine; the latter needs `pip install accelerate`."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import torch
import transformers

from bertsmith.training.device import ResolvedPrecision, resolve_device
from bertsmith.training.loader import Loader, Step
from bertsmith.training.memory import keep_freed_memory
from bertsmith.training.step import take_step
from bertsmith.training.task import Task
from bertsmith.training.timing import clock_of

UNCOUNTED_STEPS = 2
"""Steps at the beginning of a round that are not timed, neither ours nor theirs."""
Row = dict[str, Any]


class _Clock(transformers.TrainerCallback):
    """When the steps that are timed began and ended."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Note the time, once the device is done."""
        if state.global_step == UNCOUNTED_STEPS:
            self.seconds = -_seconds()
        if state.global_step == state.max_steps:
            self.seconds += _seconds()


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
    """Our steps, each with the seconds that its data and its update took; 0 for the first UNCOUNTED_STEPS.

    On a GPU a step's update runs on while the next is prepared, so that only their sum is what was measured.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()  # as every run of ours does; the peer has it too
    loader = Loader(
        task.examples("train"), task.collate, batch_size=batch_size, seed=seed, pins_memory=device.type == "cuda"
    )
    with closing(loader.steps()) as steps:
        for number in range(num_steps):
            began = _seconds() if number == UNCOUNTED_STEPS else time.perf_counter()
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
            ended = _seconds() if number == num_steps - 1 else time.perf_counter()
            yield step, ended - began if number >= UNCOUNTED_STEPS else 0.0


def trainer_seconds(
    model: Any,
    rows: Sequence[Row],
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    learning_rate: float,
    precision: ResolvedPrecision,
    order: Literal["sequential", "random", "group_by_length"],
    is_compiled: bool = False,
    epochs: float = 1,
    warmup_share: float = 0.0,
    seed: int = 42,
    num_workers: int | None = None,
) -> float:
    """Seconds for the passes over the rows but the first UNCOUNTED_STEPS batches; the model is trained by them.

    With its fused AdamW, bf16 where the device has it, its default attention, no logging and no saving; its learning
    rate falls in a line, and its weights decay as ours do.

    Args:
        rows: the shortest and longest lie anywhere in them; a part of a batch at the end is learnt, too.
        order: of the rows; group_by_length saves padding.
        is_compiled: by torch.compile, in the steps that are not timed; batches should all be of one shape.
        num_workers: processes that make its batches; None: four beside a GPU, else none.
    """
    clock = _Clock()
    if num_workers is None:
        num_workers = 4 if torch.cuda.is_available() else 0
    num_steps = math.ceil(epochs * -(-len(rows) // batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                num_train_epochs=epochs,
                warmup_steps=int(warmup_share * num_steps),
                weight_decay=0.01,
                seed=seed,
                learning_rate=learning_rate,
                optim="adamw_torch_fused",
                bf16=precision == "bf16",
                use_cpu=not torch.cuda.is_available(),
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                dataloader_num_workers=num_workers,
                torch_compile=is_compiled,
                train_sampling_strategy=order,
            ),
            train_dataset=list(rows),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


def _seconds() -> float:
    return clock_of(resolve_device())()


def padded(rows: Sequence[Row], fillers: dict[str, int], length: int | None = None) -> dict[str, torch.Tensor]:
    """A batch as long as its longest sequence, or of `length`: the named lists filled up, all else as it is."""
    longest = length or max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in fillers:
            values = [value + [fillers[name]] * (longest - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch
