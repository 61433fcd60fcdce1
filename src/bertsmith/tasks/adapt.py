"""Before a fine-tuning: pre-training goes on for a while on the texts of the task itself, whose labels it does not see.

Gururangan et al. 2020, arXiv 2004.10964, section 4 ("task-adaptive pre-training"). The texts are those of the training
rows alone, so that dev and test stay unseen.

out/adapt/
    texts.jsonl   each different text once
    corpus/       the token store
    run/          the pre-training, its model in run/model
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from bertsmith.errors import TrainingError
from bertsmith.files import atomic_write
from bertsmith.model.config import EncoderConfig
from bertsmith.model.folder import read_config, resolve
from bertsmith.settings import read_config as read_settings
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.objectives import OBJECTIVES
from bertsmith.tasks.pretrain import pretrain_on
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.replaced_tokens import GENERATOR, generator_config, has_generator
from bertsmith.tasks.run_folder import ADAPTED
from bertsmith.text.corpus_building import build_corpus
from bertsmith.training.distributed import Ranks

_HELDOUT_SHARE = 0.05
_MAX_LENGTH = 128


def adapt(
    ranks: Ranks,
    settings: FinetuneSettings,
    weights: str,
    config: EncoderConfig,
    texts: Iterable[str],
    console: Console,
) -> str:
    """The folder of the model that knows the texts; a run that is resumed goes on with it, or finds it as it is.

    Args:
        weights: the folder or Hub id of the model to go on from.

    Raises:
        CorpusError: there is no text to learn from.
        TrainingError: to resume, with other texts or other settings.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    assert settings.adapt is not None
    place = settings.out / ADAPTED
    model = place / "run" / "model"
    corpus, file = place / "corpus", place / "texts.jsonl"
    ranks.first(lambda: _check_budget(settings, place / "run" / "config.yaml"))

    def build() -> None:
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in dict.fromkeys(texts) if text.strip())
        content = "".join(f"{line}\n" for line in lines)
        if not corpus.is_dir():
            atomic_write(file, content)
            tokenizer = settings.tokenizer or weights
            build_corpus([str(file)], tokenizer, corpus, heldout_share=_HELDOUT_SHARE, num_workers=1)
        elif file.read_text(encoding="utf-8") != content:
            raise TrainingError(f"cannot resume {place}: it has learnt other texts. Start a new run in another folder.")

    ranks.first(build)
    pretrain_on(
        ranks,
        PretrainSettings(
            corpus=corpus,
            out=place / "run",
            from_model=weights,
            layers=settings.layers,
            **_objective(settings, weights, config, place / "run" / "config.yaml"),
            budget=settings.adapt,
            max_length=min(_MAX_LENGTH, read_config(weights)[0].max_sequence_length),
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            dropout=settings.dropout,
            precision=settings.precision,
            device=settings.device,
            cuda_graphs=settings.cuda_graphs,
            gradient_checkpointing=settings.gradient_checkpointing,
            shard_weights=settings.shard_weights,
            num_workers=settings.num_workers,
            auto_batch=settings.auto_batch,
            max_skipped_steps=settings.max_skipped_steps,
            skip_spikes=settings.skip_spikes,
            save_every=settings.save_every,
            seed=settings.seed,
            resume=settings.resume,
        ),
        console=console,
    )
    return str(model)


def _objective(settings: FinetuneSettings, weights: str, config: EncoderConfig, configured: Path) -> dict[str, Any]:
    """What is learnt. Masked tokens: texts of a task have no next sentences. A family without them learns as it always
    does, and so does a discriminator whose generator is there, since the head for them is the generator's.

    Args:
        configured: the settings of a run that is gone on with, if it is one.
    """
    if configured.is_file():
        before = read_settings(configured)
        return {name: before[name] for name in ("objective", "generator_share") if name in before}
    possible = OBJECTIVES[config.model_type]
    if "rtd" in possible and settings.layers is None and has_generator(resolve(weights)):
        generator = read_config(resolve(weights).parent / GENERATOR)[0]
        share = generator.hidden_size / config.hidden_size
        made = generator_config(config, share)
        if (made.hidden_size, made.num_attention_heads) == (generator.hidden_size, generator.num_attention_heads):
            return {"objective": "rtd", "generator_share": share}
    return {"objective": "mlm" if "mlm" in possible else None}


def _check_budget(settings: FinetuneSettings, configured: Path) -> None:
    """A pre-training can be made longer; not one that a fine-tuning has begun with."""
    before = read_settings(configured).get("budget") if configured.is_file() else settings.adapt
    if before != settings.adapt:
        raise TrainingError(
            f"cannot resume {settings.out}: adapt was {before} and is now {settings.adapt}. Use the old value, or "
            "start a new run in another folder."
        )
