"""bertsmith: from raw text to a BERT that classifies, tags and answers.

    import bertsmith

    bertsmith.train_tokenizer(["novels/*.txt"], "tokenizer", vocab_size=8192)
    bertsmith.build_corpus(["novels/*.txt"], "tokenizer", "store")

The functions have the names of the commands, and are imported when they are first used, so that
`import bertsmith` and building a corpus never wait for torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.deploy.predict import load
    from bertsmith.tasks.advise import advise
    from bertsmith.tasks.benchmark import benchmark
    from bertsmith.tasks.data_check import check_data
    from bertsmith.tasks.evaluate import evaluate
    from bertsmith.tasks.finetune import finetune
    from bertsmith.tasks.plan_run import plan
    from bertsmith.tasks.pretrain import pretrain
    from bertsmith.tasks.together import finetune_together
    from bertsmith.text.corpus_building import build_corpus
    from bertsmith.text.domain_words import extend_tokenizer
    from bertsmith.text.tokenizer_training import train_tokenizer

# In bf16 on a CPU oneDNN makes code for each shape of a matrix product and keeps the last 1,024 of them, two megabytes
# each. Batches without padding have other shapes in every step. Read when torch first multiplies, so it is set here.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "advise",
    "benchmark",
    "build_corpus",
    "check_data",
    "evaluate",
    "extend_tokenizer",
    "finetune",
    "finetune_together",
    "load",
    "plan",
    "pretrain",
    "train_tokenizer",
]

_HOMES = {
    "advise": "bertsmith.tasks.advise",
    "benchmark": "bertsmith.tasks.benchmark",
    "build_corpus": "bertsmith.text.corpus_building",
    "check_data": "bertsmith.tasks.data_check",
    "evaluate": "bertsmith.tasks.evaluate",
    "extend_tokenizer": "bertsmith.text.domain_words",
    "finetune": "bertsmith.tasks.finetune",
    "finetune_together": "bertsmith.tasks.together",
    "load": "bertsmith.deploy.predict",
    "plan": "bertsmith.tasks.plan_run",
    "pretrain": "bertsmith.tasks.pretrain",
    "train_tokenizer": "bertsmith.text.tokenizer_training",
}


def __getattr__(name: str) -> Any:
    """Import a public function from its home when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, also those that are not imported yet."""
    return sorted(__all__)
