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

from rich.console import Console

from bertsmith.files import atomic_write
from bertsmith.model.config import EncoderConfig
from bertsmith.model.folder import read_config
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.objectives import OBJECTIVES
from bertsmith.tasks.pretrain import pretrain_on
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.saved import ADAPTED
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
    """The folder of the model that knows the texts; made before, if the run is resumed.

    Args:
        weights: the folder or Hub id of the model to go on from.

    Raises:
        CorpusError: there is no text to learn from.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    assert settings.adapt is not None
    place = settings.out / ADAPTED
    model = place / "run" / "model"
    if ranks.first(lambda: settings.resume and model.is_dir()):
        return str(model)
    corpus = place / "corpus"

    def build() -> None:
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in dict.fromkeys(texts) if text.strip())
        atomic_write(place / "texts.jsonl", "".join(f"{line}\n" for line in lines))
        tokenizer = settings.tokenizer or weights
        build_corpus([str(place / "texts.jsonl")], tokenizer, corpus, heldout_share=_HELDOUT_SHARE, num_workers=1)

    ranks.first(lambda: None if corpus.is_dir() else build())
    pretrain_on(
        ranks,
        PretrainSettings(
            corpus=corpus,
            out=place / "run",
            from_model=weights,
            layers=settings.layers,
            # Texts of a task have no next sentences; a family without masked tokens learns as it always does.
            objective="mlm" if "mlm" in OBJECTIVES[config.model_type] else None,
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
