"""Pre-training end to end on a tiny store: what is saved, what is measured, what is refused."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from bertsmith.deploy.predict import load
from bertsmith.errors import CorpusError, InputError, Interrupted, ModelError, SettingsError, TrainingError
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config
from bertsmith.settings import read_config as read_settings
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.mlm import fill_mask
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pairs import CleanPairs, judge_pairs
from bertsmith.tasks.pretrain import prepare, pretrain
from bertsmith.tasks.pretrain_examples import PretrainExamples
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainAnswer, unigram_baseline
from bertsmith.tasks.replaced_tokens import ReplacedTokensAnswer
from bertsmith.tasks.saved import load_task
from bertsmith.text.corpus import Split, open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training import loop
from bertsmith.training.progress import read_metrics


def as_jsonl(documents: Path, path: Path, first: int, last: int) -> Path:
    texts = documents.read_text(encoding="utf-8").split("\n\n")[first:last]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    source = as_jsonl(tiny_documents, folder / "documents.jsonl", 0, 40)
    build_corpus([str(source)], tiny_tokenizer, folder / "store", heldout_share=0.2, num_workers=1)
    return folder / "store"


def settings_for(store: Path, out: Path, **changes: object) -> PretrainSettings:
    base = PretrainSettings(
        corpus=store,
        out=out,
        size="mini" if "from_model" in changes else "tiny",
        budget="12 steps",
        max_length=32,
        batch_size=8,
        precision="fp32",
        evaluation_samples=20,
        evaluate_every="6 steps",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    result = pretrain(settings_for(store, out, budget="60 steps", learning_rate=3e-3))
    assert result.training.step == 60
    assert result.metrics["mlm_loss"] < math.log(130), "better than nothing at all"
    return out


def test_a_runs_folder_is_complete(run: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "report.html", "checkpoints", "model"} <= {p.name for p in run.iterdir()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert len(evaluations) == 10
    for name in ("mlm_loss", "mlm_bits", "mlm_perplexity", "mlm_accuracy", "nsp_accuracy"):
        assert {name, f"{name}_baseline"} <= evaluations[-1]["metrics"].keys()
    last = evaluations[-1]["metrics"]
    assert last["mlm_bits"] == pytest.approx(last["mlm_loss"] / math.log(2))
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report and "NSP" in report


# torch looks at every argument's gradient while it compiles, and warns of what it does itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_learns_the_same_and_tells_its_first_step_apart(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = (
        pretrain(settings_for(store, tmp_path / str(is_compiled), budget="6 steps", compile=is_compiled))
        for is_compiled in (False, True)
    )
    assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-5)
    lines = read_metrics(tmp_path / "True" / "metrics.jsonl")
    (first,) = [line for line in lines if line["kind"] == "compile"]
    assert first["step"] == 1 and first["seconds"] > 0 and "compiled" in first["text"]
    with pytest.raises(TrainingError, match="compile was True and is now False"):
        pretrain(settings_for(store, tmp_path / "True", budget="6 steps", resume=True))


def test_batches_grow_up_to_their_size(store: Path, tmp_path: Path) -> None:
    settings = settings_for(store, tmp_path / "a", initial_batch_size=2, batch_warmup_share=0.5, long_length=48)
    sizes = [(phase.batch_size, phase.max_length, phase.end) for phase in settings.phases]
    assert sizes == [(2, 32, 0.25), (4, 32, 0.5), (8, 32, 0.9), (5, 48, 1.0)]
    settings = replace(settings, long_length=None)
    assert [(phase.batch_size, phase.end) for phase in settings.phases] == [(2, 0.25), (4, 0.5), (8, 1.0)]
    grown, whole = pretrain(settings).training, pretrain(settings_for(store, tmp_path / "b")).training
    assert grown.step == whole.step == 12
    sequences = 3 * 2 + 3 * 4 + 6 * 8
    assert grown.tokens / whole.tokens == pytest.approx(sequences / (12 * 8), rel=0.1)


def test_batches_that_grow_go_on_with_the_text_wherever_they_are_stopped(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch shows each example once, whatever the sizes of its steps."""
    seen: dict[str, list[list[int]]] = {"straight": [], "stopped": []}
    stops: set[int] = set()
    take_step = loop.take_step

    def noting(model: Any, task: Any, step: Any, *arguments: Any, **options: Any) -> Any:
        seen[name].append(step.sample_ids)
        if len(seen[name]) in stops:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(model, task, step, *arguments, **options)

    monkeypatch.setattr(loop, "take_step", noting)
    options = {"budget": "1 epochs", "initial_batch_size": 2, "batch_warmup_share": 0.5}
    name = "straight"
    pretrain(settings_for(store, tmp_path / name, **options))
    sizes = [len(step) for step in seen[name]]
    growths = [number for number in range(1, len(sizes) - 1) if sizes[number] > sizes[number - 1]]
    assert len(growths) == 2
    size = CleanPairs(open_corpus(store), 32, 0.1, 0).num_samples(0)
    assert sorted(chain.from_iterable(seen[name])) == list(range(size))
    name, stops = "stopped", {growths[0], growths[1] + 1}  # at the border of two phases, and just behind one
    for is_resumed in (False, True):
        with pytest.raises(Interrupted):
            pretrain(settings_for(store, tmp_path / name, resume=is_resumed, **options))
    pretrain(settings_for(store, tmp_path / name, resume=True, **options))
    assert seen["stopped"] == seen["straight"]
    ours, theirs = (load_file(tmp_path / each / "model" / "model.safetensors") for each in seen)
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_layers_that_are_computed_again_change_nothing(store: Path, tmp_path: Path) -> None:
    kept = pretrain(settings_for(store, tmp_path / "kept", budget="6 steps"))
    settings = settings_for(store, tmp_path / "lean", budget="6 steps", gradient_checkpointing=True)
    assert pretrain(settings).metrics == kept.metrics
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("lean", "kept"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_transformers_loads_the_model_with_equal_logits(run: Path) -> None:
    theirs = AutoModelForPreTraining.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    config, _ = read_config(run / "model")
    ours = PretrainingModel(Encoder(config), pairs=True)
    assert load_weights(run / "model", ours, strict=True) == []
    ours.eval()
    mine = load_tokenizer(run / "model")
    first, second = "The old king sat by the river.", "A small cat saw the blue bird."
    inputs = tokenizer(first, second, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**inputs)
    probabilities = expected.seq_relationship_logits.softmax(-1)[0]
    found = judge_pairs(ours, mine, [(first, second)], "nsp")[0]
    assert found["next"] == pytest.approx(float(probabilities[0]), abs=1e-5)

    masked = "the [MASK] sat by the river"
    with torch.inference_mode():
        logits = (
            AutoModelForMaskedLM.from_pretrained(run / "model").eval()(**tokenizer(masked, return_tensors="pt")).logits
        )
    best = logits[0, 2].softmax(-1).topk(3)
    ((guesses,),) = fill_mask(ours, mine, [masked], top_k=3)
    assert [guess.score for guess in guesses] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert guesses[0].text.startswith("the ") and "[MASK]" not in guesses[0].text


def test_the_predictor_fills_masks_and_judges_pairs(run: Path) -> None:
    predictor = load(run)
    _, judged = predictor.predict(["the [MASK] sat .", {"text": "the cat sat .", "pair": "the dog runs ."}])
    assert set(judged) == {"next", "random"}
    with pytest.raises(InputError, match="MASK"):
        list(predictor.predict(["there is nothing to fill"]))


def test_stop_and_resume_is_bit_equal(store: Path, tmp_path: Path) -> None:
    straight = pretrain(settings_for(store, tmp_path / "straight", micro_batch_size=4))
    stopped = settings_for(store, tmp_path / "stopped", micro_batch_size=4)

    class Stop(Exception):
        pass

    # Cut the run off in the middle by its own checkpoint: train half, then the rest from there.
    import bertsmith.training.loop as loop

    original, calls = loop.take_step, 0

    def failing(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Stop
        return original(*arguments, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", failing)
        with pytest.raises(Stop):
            pretrain(replace(stopped, save_every="3 steps"))
    resumed = pretrain(replace(stopped, save_every="3 steps", resume=True))
    first, second = (load_file(one.model / "model.safetensors") for one in (straight, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert straight.metrics == resumed.metrics


def test_two_phases_and_continuation(store: Path, run: Path, tmp_path: Path) -> None:
    result = pretrain(settings_for(store, tmp_path / "a", max_length=16, long_length=32, long_share=0.5))
    assert result.training.step == 12
    on = pretrain(settings_for(store, tmp_path / "b", from_model=str(run), budget="1 steps", learning_rate=1e-9))
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (run, on.folder))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("position_init", ["neighbours", "sinusoidal", "normal"])
def test_how_positions_start(store: Path, tmp_path: Path, family: str, position_init: str) -> None:
    """As transformers sees it: neighbouring rows of the table are alike, the first head looks at the place before."""
    settings = settings_for(
        store, tmp_path / "out", family=family, position_init=position_init, budget="1 steps", learning_rate=1e-9
    )
    pretrain(settings)
    model = AutoModel.from_pretrained(tmp_path / "out/model", attn_implementation="eager").eval()
    table = model.embeddings.position_embeddings.weight.detach()
    alike = torch.cosine_similarity(table[:-1], table[1:])
    attention = model(torch.arange(5, 25)[None], output_attentions=True).attentions[0][0]
    if position_init == "normal":
        assert alike.abs().mean() < 0.2
    if position_init == "sinusoidal":
        assert (alike > 0.9).all()
    before = attention[0].diagonal(-1).mean()
    assert before > 0.15 if position_init == "neighbours" else before < 0.1


def test_mlm_alone_saves_a_masked_language_model(store: Path, tmp_path: Path) -> None:
    result = pretrain(settings_for(store, tmp_path / "mlm", objective="mlm", budget="2 steps"))
    assert "nsp_accuracy" not in result.metrics
    AutoModelForMaskedLM.from_pretrained(result.model)
    with pytest.raises(InputError, match="has not learnt to judge pairs"):
        list(load(result.model).predict([{"text": "the cat .", "pair": "the dog ."}]))


@pytest.mark.parametrize("mode", ["clean", "original", "doc-sentences"])
def test_examples_are_what_the_store_says(store: Path, mode: str) -> None:
    corpus, tokenizer = open_corpus(store), load_tokenizer(store / "tokenizer")
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=48,
        mode=mode,
        hiding=Masker(tokenizer, Masking()),
        short_sequence_probability=0.1,
        seed=0,  # type: ignore[arg-type]
    )
    whole = np.concatenate(corpus.shards())
    indices = np.arange(examples.num_examples(0))
    for example, cut in zip(examples.take(indices, 0), examples.pairs.cuts(indices, 0), strict=True):
        ids = example.masked.token_ids.copy()
        ids[example.masked.positions] = example.masked.labels
        assert len(ids) <= 48 and ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
        length = cut.first_end - cut.first_start
        np.testing.assert_array_equal(ids[1 : 1 + length], whole[cut.first_start : cut.first_end])
        assert ids[1 + length] == tokenizer.sep_id and example.segment_ids[1 + length] == 0
        if cut.label != NO_PAIR:
            np.testing.assert_array_equal(ids[2 + length : -1], whole[cut.second_start : cut.second_end])
            assert (example.segment_ids[2 + length :] == 1).all()


def test_unigram_baseline_is_a_cross_entropy(store: Path) -> None:
    train, heldout = open_corpus(store, "train"), open_corpus(store, "heldout")
    counts = np.bincount(np.concatenate(train.shards()), minlength=train.vocab_size) + 1
    tokens = np.concatenate(heldout.shards())
    expected = -np.log(counts / counts.sum())[tokens].mean()
    assert unigram_baseline(train, heldout).nats == pytest.approx(expected)
    often = int(counts.argmax())
    counts[often], tokens = 1, tokens[tokens != often]
    without = unigram_baseline(train, heldout, [often])
    assert without.nats == pytest.approx(-np.log(counts / counts.sum())[tokens].mean())
    assert without.accuracy == pytest.approx((tokens == counts.argmax()).mean())


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_new_model_has_positions_for_its_longest_sequences(store: Path, tmp_path: Path, family: str) -> None:
    """And 512 at least, though it learns fewer."""
    for lengths, positions in (({"max_length": 48}, 512), ({"max_length": 48, "long_length": 640}, 640)):
        prepared = prepare(settings_for(store, tmp_path / "run", family=family, objective=None, **lengths))
        assert prepared.config.max_sequence_length == positions


def test_refusals(store: Path, run: Path, tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--resume"):
        pretrain(settings_for(store, run))
    with pytest.raises(ModelError, match="max_position_embeddings"):
        pretrain(settings_for(store, tmp_path / "long", from_model=str(run), max_length=1000))
    with pytest.raises(ModelError, match="tiny"):
        pretrain(settings_for(store, tmp_path / "size", size="tinny"))
    with pytest.raises(CorpusError, match="no corpus"):
        pretrain(settings_for(tmp_path / "nowhere", tmp_path / "x"))
    with pytest.raises(SettingsError, match="initial_batch_size must be at least 1 and below batch_size 8, not 8"):
        settings_for(store, tmp_path / "y", initial_batch_size=8)
    with pytest.raises(SettingsError, match=r"batch_warmup_share must be above 0 and below 0\.9"):
        settings_for(store, tmp_path / "y", initial_batch_size=2, batch_warmup_share=0.95, long_length=64)
    with pytest.raises(SettingsError, match="long_length"):
        settings_for(store, tmp_path / "y", max_length=64, long_length=32)
    for name in ("distill_weight", "cosine_weight", "temperature"):
        with pytest.raises(SettingsError, match=f"{name} is of what a teacher says"):
            settings_for(store, tmp_path / "y", **{name: 0.5})
    with pytest.raises(SettingsError, match="batch_warmup_share is of batches that grow: give initial_batch_size"):
        settings_for(store, tmp_path / "y", batch_warmup_share=0.3)
    assert not (tmp_path / "long").exists(), "nothing half-written"
    with pytest.raises(SettingsError, match=f"{run} is read, and lies in what --overwrite replaces"):
        pretrain(settings_for(store, run, from_model=str(run), overwrite=True))
    assert (run / "model" / "config.json").is_file()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        *("mlm_weight", "pair_weight", "detection_weight", "distill_weight", "cosine_weight", "temperature"),
        *("initializer_range", "mask_probability", "short_sequence_probability", "generator_share", "long_share"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(store: Path, tmp_path: Path, name: str, value: float) -> None:
    """A negative weight teaches to be wrong, and what is not a number teaches nothing, in a run of hours."""
    with pytest.raises(SettingsError, match=name):
        settings_for(store, tmp_path / "y", teacher="x", long_length=64, **{name: value})


def test_a_run_needs_something_to_learn_and_samples_to_be_judged_by(store: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="evaluation_samples must be at least 1"):
        settings_for(store, tmp_path / "y", evaluation_samples=0)
    nothing = {"mlm_weight": 0.0, "pair_weight": 0.0}
    for family, objective, weights in (
        ("bert", "mlm", {"mlm_weight": 0.0}),
        ("bert", "mlm+nsp", nothing),
        ("electra", "rtd", {"mlm_weight": 0.0, "detection_weight": 0.0}),
        ("bert", "mlm", {"mlm_weight": 0.0, "teacher": "x", "distill_weight": 0.0, "cosine_weight": 0.0}),
    ):
        with pytest.raises(SettingsError, match="every weight of the loss"):
            with_objective(settings_for(store, tmp_path / "y", objective=objective, **weights), family)
    with_objective(settings_for(store, tmp_path / "y", mlm_weight=0.0), "bert")
    with_objective(settings_for(store, tmp_path / "y", objective="mlm", mlm_weight=0.0, teacher="x"), "bert")


def test_one_document_has_no_next_sentence_prediction(
    tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    source = as_jsonl(tiny_documents, tmp_path / "one.jsonl", 0, 1)
    build_corpus([str(source)], tiny_tokenizer, tmp_path / "store", heldout_share=0.0, num_workers=1)
    with pytest.raises(CorpusError, match="--objective mlm"):
        pretrain(settings_for(tmp_path / "store", tmp_path / "out"))
    for mode in ("clean", "original"):
        options = {"objective": "mlm+sop", "data_mode": mode, "budget": "2 steps"}
        ordered = pretrain(settings_for(tmp_path / "store", tmp_path / mode, **options))
        assert ordered.metrics == {}, "nothing was held out"


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop"])
def test_documents_of_one_sentence_ask_nothing_about_pairs(
    tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    """Else the head of pairs stays as random as it began, and `predict --pair` answers from it."""

    def built(name: str, texts: list[str]) -> Path:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        build_corpus([str(source)], tiny_tokenizer, tmp_path / name, heldout_share=0.0, num_workers=1)
        return tmp_path / name

    single = [f"The old king saw {number} birds." for number in range(8)]
    double = [f"The dog has {number} fish. It sleeps." for number in range(8)]
    options: dict[str, Any] = {"objective": objective, "budget": "1 steps"}
    store = built("single", single)
    for mode in ("clean", "original"):
        with pytest.raises(CorpusError, match=rf"single sentence, and {re.escape(objective)} asks.*--objective mlm"):
            pretrain(settings_for(store, tmp_path / "out", data_mode=mode, **options))
    assert not (tmp_path / "out" / "model").exists()
    pretrain(settings_for(store, tmp_path / "alone", objective="mlm", budget="1 steps"))
    capsys.readouterr()
    pretrain(settings_for(built("most", [*single, *double[:2]]), tmp_path / "a", **options))
    assert "80% of the training documents are a single sentence" in " ".join(capsys.readouterr().err.split())
    pretrain(settings_for(built("few", [*single[:2], *double]), tmp_path / "b", **options))
    assert "single sentence" not in capsys.readouterr().err
    long = [" ".join(["the cat saw a dog and"] * 50) + f" {number}. It sleeps." for number in range(3)]
    pretrain(settings_for(built("long", long), tmp_path / "c", **options))
    assert "of the samples are of sentences too long for a pair" in " ".join(capsys.readouterr().err.split())


def test_text_that_the_vocabulary_does_not_know_is_refused(
    tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is masked, nothing learnt, and a loss of 0 over no tokens would be the best there is."""

    def built(name: str, words: str) -> Path:
        source = tmp_path / f"{name}.txt"
        source.write_text("\n\n".join(f"{words} {n % 7}.\n{words}." for n in range(30)), encoding="utf-8")
        build_corpus(
            [str(source)],
            tiny_tokenizer,
            tmp_path / name,
            document_separator="blank-lines",
            heldout_share=0.2,
            num_workers=1,
        )
        return tmp_path / name

    with pytest.raises(CorpusError, match=r"9\d% of the tokens are unknown.*bertsmith tokenizer train"):
        pretrain(settings_for(built("unknown", "猫狗鸟鱼树河王后房城蓝红小大老新跑坐吃睡读写看"), tmp_path / "out"))
    assert not (tmp_path / "out" / "model").exists()
    pretrain(settings_for(built("half", "the cat and the dog 猫狗鸟鱼树"), tmp_path / "half-run", budget="1 steps"))
    assert "% of the tokens are unknown to the vocabulary, and are not learnt" in capsys.readouterr().err


def test_figures_of_no_tokens_are_left_out(store: Path) -> None:
    tokenizer, corpora = (
        load_tokenizer(store / "tokenizer"),
        {name: open_corpus(store, name) for name in get_args(Split)},
    )
    settings = with_objective(settings_for(store, Path("o")), "bert")
    task = make_task(settings, 32, tokenizer, {"train": corpora["train"], "dev": corpora["heldout"]})
    example = task.examples("dev").take([0], 0)[0]
    nothing = PretrainAnswer(0.0, 0, 0, None, None)
    assert task.score([nothing], [example]) == {}
    paired = task.score([replace(nothing, pair_nats=0.5, pair_hit=True)], [example])
    assert paired["loss"] == 0.5 and not [name for name in paired if name.startswith("mlm")]
    something = task.score([nothing, PretrainAnswer(6.0, 3, 1, None, None)], [example, example])
    assert (something["loss"], something["mlm_loss"], something["mlm_accuracy"]) == (2.0, 2.0, 1 / 3)
    settings = with_objective(settings_for(store, Path("o"), family="electra"), "electra")
    task = make_task(settings, 32, tokenizer, {"train": corpora["train"], "dev": corpora["heldout"]})
    detected = ReplacedTokensAnswer(0.0, 0, 0, torch.zeros(4), torch.tensor([True, False, False, False]))
    found = task.score([detected], [example])  # type: ignore[list-item]
    assert found["rtd_loss"] == pytest.approx(math.log(2)) and "mlm_loss" not in found


def test_sentence_order_is_measured_by_its_own_name(store: Path, tmp_path: Path) -> None:
    result = pretrain(settings_for(store, tmp_path / "sop", objective="mlm+sop", budget="2 steps"))
    assert {"sop_accuracy", "sop_accuracy_baseline"} <= result.metrics.keys()
    assert "nsp_accuracy" not in result.metrics
    AutoModelForPreTraining.from_pretrained(result.model)
    (answer,) = load(result.model).predict([{"text": "the cat sat .", "pair": "the dog runs ."}])
    assert set(answer) == {"in_order", "swapped"} and sum(answer.values()) == pytest.approx(1)


def test_options_that_would_do_nothing_are_refused(store: Path) -> None:
    given: dict[str, Any] = {"corpus": store, "out": Path("o")}
    for name, value in {
        "family": "roberta",
        "size": "tiny",
        "initializer_range": 0.06,
        "position_init": "normal",
    }.items():
        with pytest.raises(SettingsError, match=f"{name} is of a new model, and from gives one"):
            PretrainSettings(**given, from_model="m", **{name: value})
    with pytest.raises(SettingsError, match="long_share is of a phase of longer sequences"):
        PretrainSettings(**given, long_share=0.3)
    for objective, family, name, value in (
        ("mlm", "bert", "pair_weight", 3.0),
        ("mlm+nsp", "bert", "generator_share", 0.5),
        ("mlm", "bert", "detection_weight", 3.0),
        ("clm", "gpt2", "mask_unit", "word"),
        ("clm", "gpt2", "mask_probability", 0.5),
        ("mlm", "bert", "short_sequence_probability", 0.9),
        ("rtd", "electra", "short_sequence_probability", 0.0),
    ):
        settings = PretrainSettings(**given, objective=objective, **{name: value})  # type: ignore[arg-type]
        place = "data_mode full-sentences" if name == "short_sequence_probability" else re.escape(objective)
        with pytest.raises(SettingsError, match=f"{name} does nothing in {place}"):
            with_objective(settings, family)
    short = PretrainSettings(**given, objective="mlm", data_mode="clean", short_sequence_probability=0.9)
    assert with_objective(short, "bert").short_sequence_probability == 0.9


def test_a_run_from_a_model_does_not_say_what_a_new_one_would_be(run: Path, store: Path, tmp_path: Path) -> None:
    own = PretrainSettings(
        corpus=store, out=tmp_path / "new" / ".." / "more", from_model=str(run), budget="1 steps", max_length=32,
        batch_size=4, evaluation_samples=8, device="cpu",
    )  # fmt: skip
    result = pretrain(own, console=Console(quiet=True))
    values = read_settings(result.folder / "config.yaml")
    assert values.keys().isdisjoint({"family", "size", "initializer_range", "position_init"})
    assert result.folder == tmp_path / "more" and result.objective == "mlm+nsp"
    assert not (tmp_path / "new").exists()
    with pytest.raises(ModelError, match="is pre-trained and has learnt no task yet"):
        load_task(result.folder)
    assert load_tokenizer(result.folder).fingerprint == load_tokenizer(store / "tokenizer").fingerprint


def test_resuming_with_other_settings_is_refused_and_changes_nothing(store: Path, tmp_path: Path) -> None:
    settings = settings_for(store, tmp_path / "run", budget="2 steps")
    pretrain(settings)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match="mask_probability"):
        pretrain(replace(settings, mask_probability=0.4, resume=True))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
