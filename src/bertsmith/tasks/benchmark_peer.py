"""What `benchmark --peer` times beside ours: the same model in Hugging Face's `transformers`, with the same weights.

At its best without a framework around it: scaled dot product attention, fused AdamW, autocast as ours, batches padded
no longer than their longest sequence and made before the clock starts. The only module that imports `transformers`,
and only when it is asked for.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bertsmith.errors import SettingsError
from bertsmith.model.batch import PackedBatch, split
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import save_model
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.training.device import ResolvedPrecision, autocast
from bertsmith.training.task import Batch

_IGNORED = -100  # a label that transformers leaves out of the loss
_COLUMNS = 64  # a vocabulary of a multiple of this is what matrix products on CUDA like


def peer_version() -> str:
    """Of the `transformers` that is installed.

    Raises:
        SettingsError: none is.
    """
    return str(_transformers().__version__)


def pretraining_peer(model: PretrainingModel) -> nn.Module:
    """`BertForPreTraining` with the weights of ours, on the CPU."""
    with tempfile.TemporaryDirectory() as folder, _quiet() as transformers:
        save_model(Path(folder), model, model.encoder.config, "BertForPreTraining")
        peer: nn.Module = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa")
    return peer


def encoder_peer(encoder: Encoder) -> nn.Module:
    """The bare model of the encoder's family with the weights of ours and without a pooler, on the CPU."""
    bare = family(encoder.config.model_type).bare
    with tempfile.TemporaryDirectory() as folder, _quiet() as transformers:
        save_model(Path(folder), nn.ModuleDict({"encoder": encoder}), encoder.config, bare)
        peer: Any = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    if getattr(peer, "pooler", None) is not None:
        peer.pooler = None  # ours has none here
    whole: nn.Module = peer.eval()
    return whole


def padded_inputs(inputs: PackedBatch, pad_id: int = 0) -> dict[str, Tensor]:
    """What a bare model is given of S sequences: int64 [S, L], L being the longest."""
    ids, segments = (split(values, inputs.lengths) for values in (inputs.token_ids, inputs.segment_ids))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "token_type_ids": pad_sequence(segments, batch_first=True),
    }


def pretraining_inputs(batch: Batch) -> dict[str, Tensor]:
    """What `BertForPreTraining` is given of one of our batches: the same samples with the same labels."""
    labels_T = torch.full_like(batch.inputs.token_ids, _IGNORED)
    labels_T[batch.labels["masked_positions"]] = batch.labels["masked_labels"]
    pairs_S = batch.labels["pair_labels"]
    return {
        **padded_inputs(batch.inputs),
        "labels": pad_sequence(split(labels_T, batch.inputs.lengths), batch_first=True, padding_value=_IGNORED),
        "next_sentence_label": pairs_S.masked_fill(pairs_S == NO_PAIR, _IGNORED),
    }


class PeerTraining:
    """Steps of `BertForPreTraining` in a plain loop, on the batches that ours has just learnt from."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        device: torch.device,
        precision: ResolvedPrecision,
        rate: float,
    ) -> None:
        """`batches` is a list whose content is that of the round."""
        if device.type == "cuda":
            model.resize_token_embeddings(pad_to_multiple_of=_COLUMNS)  # type: ignore[operator]
        self._model = model.to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=rate, fused=True)
        self._batches, self._device, self._precision = batches, device, precision
        self._inputs: list[dict[str, Tensor]] = []

    def prepare(self) -> None:
        """Pad the batches."""
        self._inputs = [pretraining_inputs(batch) for batch in self._batches]

    def run(self) -> float:
        """An update on each; how many tokens they have without padding."""
        for inputs in self._inputs:
            self._optimizer.zero_grad(set_to_none=True)
            with autocast(self._device, self._precision):
                loss = self._model(**_on(self._device, inputs)).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
        return sum(sum(batch.inputs.lengths) for batch in self._batches)


class PeerInference:
    """Hidden states of the same batches, padded."""

    def __init__(
        self, encoder: Encoder, batches: Sequence[PackedBatch], device: torch.device, precision: ResolvedPrecision
    ) -> None:
        self._model = encoder_peer(encoder).to(device)
        self._num_sentences = sum(len(batch.lengths) for batch in batches)
        has_segments = encoder.config.type_vocab_size > 1
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_segments else [])]
        padded = [padded_inputs(batch, encoder.config.pad_token_id or 0) for batch in batches]
        self._inputs = [{name: inputs[name] for name in names} for inputs in padded]
        self._device, self._precision = device, precision

    def prepare(self) -> None:
        """Nothing: the batches are there."""

    def run(self) -> float:
        """A pass over all of them; how many sentences they have."""
        with torch.inference_mode(), autocast(self._device, self._precision):
            for inputs in self._inputs:
                self._model(**_on(self._device, inputs))
        return self._num_sentences


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SettingsError(
            "peer compares with Hugging Face's transformers, and this Python does not have it. Install it with: pip "
            'install "transformers>=5.0", or leave peer out.'
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[Any]:
    """The library without its bars and its words about weights that a bare model does not need."""
    transformers: Any = _transformers()
    log = transformers.utils.logging
    level, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(level)
        if has_bars:
            log.enable_progress_bar()
