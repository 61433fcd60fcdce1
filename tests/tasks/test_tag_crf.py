"""Tagging whole sentences (crf): what may stand where, windows, what a head alone cannot learn, folders, refusals."""

import itertools
import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForTokenClassification, AutoTokenizer

from bertsmith.deploy.predict import load
from bertsmith.errors import Interrupted, ModelError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.crf import Crf
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import reorder_outputs
from bertsmith.tasks import rows as rows_module
from bertsmith.tasks.distill import distil
from bertsmith.tasks.entities import allowed_neighbours, over_parts, read_spans, write_iob2
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.regularise import Adversarial, RDrop
from bertsmith.tasks.saved import load_task
from bertsmith.tasks.tag import Tagging, TokenClassificationModel
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.task import Batch

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
CRF = TaggingSettings(max_length=12, doc_stride=4, scheme="iob2", crf=True)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def make(
    tokenizer: Tokenizer,
    *sentences: tuple[str, str],
    chosen: TaggingSettings = CRF,
    labels: Sequence[str] = LABELS,
) -> Tagging:
    """Of sentences as words and tags with spaces between them."""
    rows = [TaggingRow("x:1", tuple(words.split()), None, tuple(tags.split())) for words, tags in sentences]
    return Tagging(tokenizer, labels, chosen, {"train": rows})


def model_of(task: Tagging, spread: float = 1.0) -> TokenClassificationModel:
    """Without dropout, and with random scores between labels."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3}
    model = task.build(Encoder(EncoderConfig(vocab_size=task.tokenizer.vocab_size, **sizes)))
    if model.crf is not None:
        for parameter in model.crf.parameters():
            nn.init.normal_(parameter, std=spread)
    return model.eval()


def batch_of(task: Tagging) -> Batch:
    return task.collate(task.examples("train").items)


LONG = ("the old king sat by the river " * 6, "O B-PER I-PER O O O B-LOC " * 6)
SHORT = ("a cat", "O B-PER")


# What may stand behind what


@given(tags=st.lists(st.sampled_from(LABELS), min_size=1, max_size=6))
def test_allowed_is_what_the_reader_of_entities_would_not_mend(tags: list[str]) -> None:
    first, behind = allowed_neighbours(LABELS, has_entities=True)
    ids = [LABELS.index(tag) for tag in tags]
    is_allowed = first[ids[0]] and all(behind[one, other] for one, other in itertools.pairwise(ids))
    assert is_allowed == (write_iob2(read_spans(tags), len(tags)) == tuple(tags))


def test_without_types_and_without_entities() -> None:
    first, behind = allowed_neighbours(("O", "B", "I"), has_entities=True)
    assert first.tolist() == [True, True, False]
    assert behind.tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    for labels in (("NOUN", "VERB"), ("B-X", "I-X")):  # of scheme none, whatever they look like
        first, behind = allowed_neighbours(labels, has_entities=False)
        assert first.all() and behind.all()


@pytest.mark.parametrize("seed", range(4))
def test_answers_never_begin_an_entity_in_its_middle(tokenizer: Tokenizer, seed: int) -> None:
    task = make(tokenizer, LONG, ("", ""), SHORT)
    model, batch = model_of(task, spread=0.1), batch_of(task)
    nn.init.normal_(model.tokens.out.weight, std=1, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        scores, ids = task.predict(model, batch)
        answers = task.decode((scores, ids), batch)
        free = task.logits(model, batch).argmax(-1)
    assert [len(answer.labels) for answer in answers] == [42, 0, 2]
    for answer in answers:
        assert write_iob2(read_spans(answer.labels), len(answer.labels)) == answer.labels
    assert ((scores > 0) & (scores <= 1 + 1e-6)).all()
    by_word = [LABELS[index] for index in free.tolist()]
    assert write_iob2(read_spans(by_word), len(by_word)) != tuple(by_word)  # a head alone does it


@pytest.mark.parametrize(
    ("labels", "scheme"), [(LABELS, "iob2"), (("O", "B", "I"), "iob2"), (("NOUN", "VERB", "X"), "none")]
)
def test_words_of_several_parts_are_answered_by_the_best_labels_of_words(
    tokenizer: Tokenizer, labels: Sequence[str], scheme: str
) -> None:
    """Beside all labels of the words one by one; parts that are labelled each by itself put `I-` behind `O`."""
    chosen = replace(CRF, scheme=scheme)
    task = Tagging(tokenizer, labels, chosen, {})
    rows = [task.row({"words": words.split()}, "x") for words in ("人民 在 北京人", "cat", "中国 人民 the cat")]
    batch = task.collate(task.encode(rows))
    parts = [example.words.tolist() for example in batch.examples]
    assert parts == [[0, 0, 1, 2, 2, 2], [0], [0, 0, 1, 1, 2, 3]]
    has_entities, num_odd = scheme != "none", 0
    for seed in range(12):
        model = model_of(task, spread=0.5)
        nn.init.normal_(model.tokens.out.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
        crf = model.crf
        assert crf is not None
        with torch.inference_mode():
            logits = torch.split(task.logits(model, batch), [len(one) for one in parts])
            answers = task.decode(task.predict(model, batch), batch)
            free = [crf.best(one, [len(one)]).tolist() for one in logits]
        for answer, logits_PC, words, ids in zip(answers, logits, parts, free, strict=True):
            named = {}
            for tags in itertools.product(labels, repeat=words[-1] + 1):
                of_parts = torch.tensor(
                    [labels.index(tag) for tag in over_parts(tags, words, has_entities=has_entities)]
                )
                if not has_entities or write_iob2(read_spans(tags), len(tags)) == tags:
                    named[tags] = -crf_loss(crf, logits_PC, of_parts)
            totals = torch.stack(list(named.values())).softmax(0)
            assert answer.labels == max(named, key=lambda tags: named[tags].item())
            for place, (label, score) in enumerate(zip(answer.labels, answer.scores, strict=True)):
                expected = sum(one for tags, one in zip(named, totals.tolist(), strict=True) if tags[place] == label)
                assert score == pytest.approx(expected, abs=1e-5)
            alone = tuple(labels[ids[words.index(word)]] for word in range(words[-1] + 1))
            num_odd += has_entities and write_iob2(read_spans(alone), len(alone)) != alone
    assert num_odd > 0 or not has_entities


def crf_loss(crf: Crf, logits_PC: torch.Tensor, labels_P: torch.Tensor) -> torch.Tensor:
    """Without the sum over all other labels, which is the same for all."""
    pairs = crf.transitions[labels_P[:-1], labels_P[1:]].sum() + crf.start[labels_P[0]] + crf.end[labels_P[-1]]
    return -(pairs + logits_PC.gather(1, labels_P[:, None]).sum()).detach()


# Loss and prediction


def test_the_loss_is_that_of_the_sentences_whatever_windows_they_are_read_in(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, LONG, ("", ""), SHORT)
    assert len(task.examples("train").items[0].token_ids) > 3
    model, batch = model_of(task), batch_of(task)
    assert isinstance(model.crf, Crf)
    assert batch.counts == {"tagging": 44.0}
    loss = task.loss(model, batch)["tagging"]
    alone = [task.loss(model, task.collate([one]))["tagging"] for one in task.examples("train").items]
    torch.testing.assert_close(loss, torch.stack(alone).sum())
    # Of the short sentence, over all 25 pairs of labels.
    logits_2C = task.logits(model, task.collate(task.examples("train").items[2:]))
    crf = model.crf
    totals_CC = crf.start[:, None] + logits_2C[0][:, None] + crf.transitions + logits_2C[1] + crf.end
    for forbidden in ("O I-LOC", "O I-PER", "B-LOC I-PER", "B-PER I-LOC"):
        one, other = forbidden.split()
        totals_CC[LABELS.index(one), LABELS.index(other)] = -torch.inf
    totals_CC[[2, 4]] = -torch.inf
    torch.testing.assert_close(alone[2], totals_CC.flatten().logsumexp(0) - totals_CC[0, 3])


def test_labels_in_another_order_are_the_same_model(tokenizer: Tokenizer) -> None:
    order = [3, 0, 4, 2, 1]
    task = make(tokenizer, LONG, SHORT)
    other = make(tokenizer, LONG, SHORT, labels=[LABELS[label] for label in order])
    model = model_of(task)
    moved = other.build(Encoder(model.encoder.config)).eval()
    moved.load_state_dict(model.state_dict())
    reorder_outputs(moved, order)
    expected = task.loss(model, batch_of(task))["tagging"]
    torch.testing.assert_close(other.loss(moved, batch_of(other))["tagging"], expected)


def test_a_long_sentence_is_answered_as_one_also_where_its_windows_go_through_in_parts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(tokenizer, LONG, SHORT)
    model, batch = model_of(task), batch_of(task)
    with torch.inference_mode():
        whole = task.predict(model, batch)
        monkeypatch.setattr(rows_module.sub_batches, "__defaults__", (30,))
        torch.testing.assert_close(task.predict(model, batch), whole)


def test_bf16_encoders_leave_the_sums_in_float32(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, LONG, SHORT)
    model, batch = model_of(task), batch_of(task)
    exact = task.loss(model, batch)["tagging"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(model, batch)["tagging"]
        scores, _ = task.predict(model, batch)
    assert loss.dtype == scores.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    loss.backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("crf", [True, False])
def test_it_learns_labels_that_follow_from_the_label_before(tokenizer: Tokenizer, crf: bool) -> None:
    """Equal words without positions: a head alone has to give all of them the same label."""
    labels = ("A", "B", "C")
    sentences = ["cat " * 7, "cat " * 4, "cat " * 6]
    tags = [" ".join("ABC"[place % 3] for place in range(len(one.split()))) for one in sentences]
    chosen = replace(CRF, scheme="none", crf=crf)
    task = make(tokenizer, *zip(sentences, tags, strict=True), chosen=chosen, labels=labels)
    model, batch = model_of(task, spread=0.0), batch_of(task)
    nn.init.zeros_(model.encoder.position_embedding.weight)  # type: ignore[arg-type, union-attr]
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam((one for one in model.parameters() if one.requires_grad), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model, batch)["tagging"].backward()
        optimizer.step()
    with torch.inference_mode():
        answers = task.decode(task.predict(model, batch), batch)
    accuracy = task.score(answers, batch.examples)["accuracy"]
    assert accuracy == 1.0 if crf else accuracy < 0.5


def test_scores_between_labels_learn_at_a_rate_of_their_own(tokenizer: Tokenizer) -> None:
    for layer_decay in (None, 0.5):
        model = model_of(make(tokenizer, SHORT))
        assert model.crf is not None
        settings = OptimizerSettings(learning_rate=1e-4, layer_decay=layer_decay)
        groups = build_optimizer(model, settings).param_groups
        fast = {id(one) for group in groups if group["lr_scale"] == 100 for one in group["params"]}
        assert fast == {id(one) for one in model.crf.parameters()}
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# A run and its folder


def entities() -> str:
    sentences = []
    for number in range(80):
        name, place = ("cat", "dog", "bird")[number % 3], ("river", "city")[number % 2]
        pairs = (("the", "O"), ("old", "B-PER"), (name, "I-PER"), ("saw", "O"), (place, "B-LOC"), (str(number), "O"))
        sentences.append("".join(f"{word}\t{tag}\n" for word, tag in pairs))
    return "\n".join(sentences)


def settings_of(folder: Path, tiny_tokenizer: Path, **changes: Any) -> FinetuneSettings:
    base = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        train=str(folder / "train.conll"),
        out=folder / "run",
        epochs=4,
        batch_size=16,
        learning_rate=1e-3,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)


OPTIONS = TaggingSettings(max_length=24, doc_stride=12, crf=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.conll").write_text(entities())
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tiny_tokenizer: Path) -> FinetuneResult:
    return finetune("tagging", settings_of(folder, tiny_tokenizer), OPTIONS, console=QUIET)


def test_a_run_is_read_back_evaluated_and_predicts(run: FinetuneResult, folder: Path) -> None:
    assert run.metrics["dev"]["f1"] > 0.9
    assert evaluate(run.folder, str(folder / "train.conll"), device="cpu")["f1"] > 0.9
    _, model = load_task(run.model)
    assert isinstance(model.crf, Crf)
    tensors = load_file(run.model / "model.safetensors")
    ours = {f"crf.{name}" for name in ("start", "transitions", "end")}
    assert {name for name in tensors if name.startswith("crf")} == ours
    assert torch.equal(model.crf.transitions, tensors["crf.transitions"]) and model.crf.transitions.any()
    (answer,) = load(run.folder, device="cpu").predict(["the old dog saw river 7"])
    assert [(one["label"], one["text"]) for one in answer["entities"]] == [("PER", "old dog"), ("LOC", "river")]


@pytest.mark.conformance
def test_transformers_loads_the_rest(run: FinetuneResult) -> None:
    """It has the scores of the words, by which a few answers differ, and passes the others over."""
    theirs, told = AutoModelForTokenClassification.from_pretrained(run.model, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    assert set(told["unexpected_keys"]) == {"crf.start", "crf.transitions", "crf.end"}
    words = "the old dog saw river 7".split()
    encoded = AutoTokenizer.from_pretrained(run.model)(words, is_split_into_words=True, return_tensors="pt")
    task, model = load_task(run.model)
    batch = task.collate(task.encode([task.row({"words": words}, "x")]))
    with torch.inference_mode():
        expected = theirs.eval()(**encoded).logits[0]
        found = task.logits(model, batch)
    torch.testing.assert_close(found, expected[batch.labels["word_positions"]], atol=1e-5, rtol=0)


def test_interrupted_and_resumed_it_ends_on_the_same_bits(
    run: FinetuneResult, folder: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, loss = 0, Tagging.loss

    def interrupting(self: Tagging, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    parts = settings_of(folder, tiny_tokenizer, out=tmp_path / "parts")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Tagging, "loss", interrupting)
        finetune("tagging", parts, OPTIONS, console=QUIET)
    resumed = finetune("tagging", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert (resumed.model / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()


def test_going_on_from_a_folder_with_and_without_it(run: FinetuneResult, folder: Path, tmp_path: Path) -> None:
    again = settings_of(folder, tmp_path, model=str(run.model), tokenizer=None, learning_rate=0.0, epochs=1)
    plain = finetune("tagging", replace(again, out=tmp_path / "plain"), replace(OPTIONS, crf=False), console=QUIET)
    assert not [name for name in load_file(plain.model / "model.safetensors") if name.startswith("crf")]
    new = json.loads((plain.model / "bertsmith.json").read_text())["new_tensors"]
    both = finetune("tagging", replace(again, out=tmp_path / "both"), OPTIONS, console=QUIET)
    assert json.loads((both.model / "bertsmith.json").read_text())["new_tensors"] == new == []
    assert both.metrics["dev"] == pytest.approx(run.metrics["dev"])
    added = finetune("tagging", replace(again, model=str(plain.model), out=tmp_path / "added"), OPTIONS, console=QUIET)
    new = json.loads((added.model / "bertsmith.json").read_text())["new_tensors"]
    assert sorted(new) == ["crf.end", "crf.start", "crf.transitions"]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("crf.transitions", None, "no tensor crf.transitions"),
        ("crf.transitions", torch.zeros(5), r"crf.transitions has the shape \[5\]"),
        ("crf.transitions", torch.zeros(5, 4), r"crf.transitions has the shape \[5, 4\]"),
        ("crf.transitions", torch.zeros(5, 5, dtype=torch.int64), 'tensor "crf.transitions" is I64'),
        ("crf.start", torch.zeros(()), "crf.start has the shape"),
        ("crf.end", torch.zeros(0), "crf.end has the shape"),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_name(
    run: FinetuneResult, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    shutil.copytree(run.model, tmp_path / "model")
    tensors = load_file(run.model / "model.safetensors")
    del tensors[name]
    save_file(tensors if tensor is None else {**tensors, name: tensor}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model", device="cpu")


# What it does not go with


def test_regularisers_and_teachers_of_single_words_are_refused(tokenizer: Tokenizer, run: FinetuneResult) -> None:
    task = make(tokenizer, SHORT, chosen=replace(CRF, max_length=24))
    plain = make(tokenizer, SHORT, chosen=replace(CRF, max_length=24, crf=False))
    with pytest.raises(SettingsError, match=r"r_drop compares .* single words"):
        RDrop(task, 1.0)
    for student in (task, plain):  # the teacher of `plain` has it
        with pytest.raises(SettingsError, match=r"teacher compares .* single words"):
            distil(student, str(run.model), weight=0.5, temperature=2.0)
    adversarial = Adversarial(task, 0.1).loss(model_of(task).train(), batch_of(task))["tagging"]
    adversarial.backward()
    assert torch.isfinite(adversarial)


@pytest.mark.parametrize("changes", [{"class_weights": "auto"}, {"label_smoothing": 0.1}])
def test_settings_of_single_words_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="crf learns whole sentences"):
        replace(CRF, **changes)
