"""Sentence embeddings: losses, vectors and folders by sentence-transformers, figures by scikit-learn, data refused."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sklearn.metrics import average_precision_score, ndcg_score

from bertsmith.deploy.predict import load
from bertsmith.errors import InputError, ModelError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config
from bertsmith.tasks import embed, embed_data
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.embed import Embedding, EmbeddingAnswer, SentenceEncoder, check_batches, ranking_metrics
from bertsmith.tasks.embed_data import EmbeddingRow, EmbeddingSettings, find_labels, read_rows
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.saved import TASKS, read_training_rows, save_task
from bertsmith.tasks.sentence_folder import as_before, folder_notes, read_sentence_files
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)
TEXTS = (
    "the king sat by the river",
    "a dog",
    "who was the old queen of the city? 王",
    "",
    "the new house is red and the old one blue " * 9,
)
MakeFiles = Callable[[dict[str, str | bytes]], Path]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def make_task(
    tokenizer: Tokenizer, rows: Sequence[EmbeddingRow], scored: bool = False, **changes: Any
) -> tuple[Embedding, SentenceEncoder]:
    settings = EmbeddingSettings(
        text_column="text", pair_column="pair", score_column="score" if scored else None, max_length=24
    )
    task = Embedding(tokenizer, (), replace(settings, **changes), {"train": rows})
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 48, "initializer_range": 0.3}
    return task, task.build(Encoder(EncoderConfig(vocab_size=tokenizer.vocab_size, **sizes))).eval()


def batch_of(task: Embedding) -> Batch:
    return task.collate(task.examples("train").items)


def pairs(*texts: tuple[Any, ...]) -> list[EmbeddingRow]:
    """A text, its pair, a negative or several, a score, as far as they are given."""
    rows = []
    for number, (text, pair, *more) in enumerate(texts):
        negatives = more[0] if more and more[0] else ()
        several = (negatives,) if isinstance(negatives, str) else tuple(negatives)
        rows.append(EmbeddingRow(f"row {number}", text, pair, several, more[1] if len(more) > 1 else None))
    return rows


# ------------------------------------------------------------------------ beside sentence-transformers


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("mean", False)])
def test_sentence_transformers_gives_the_same_vectors(
    tokenizer: Tokenizer, tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    """Of length 1, or as long as the folder leaves them, which is the same to a cosine."""
    task, model = make_task(tokenizer, pairs(("a", "b")), pooling=pooling, normalize=normalize)
    save_task(tmp_path / "model", task, model, model.encoder.config, "# card\n", {})
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(list(TEXTS))
    ours = [answer["embedding"] for answer in load(tmp_path / "model").predict(TEXTS)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (np.abs(np.linalg.norm(ours, axis=1) - 1) < 1e-5).all() == normalize
    (answer,) = load(tmp_path / "model").predict([{"text": TEXTS[0], "pair": TEXTS[1]}])
    cosine = theirs[0] @ theirs[1] / np.linalg.norm(theirs[0]) / np.linalg.norm(theirs[1])
    assert answer["similarity"] == pytest.approx(float(cosine), abs=1e-5)
    (tmp_path / "model" / "bertsmith.json").unlink()  # then it is a folder like theirs
    again = [answer["embedding"] for answer in load(tmp_path / "model").predict(TEXTS)]
    assert again == ours


def their_folder(tokenizer: Tokenizer, folder: Path, **changes: Any) -> Path:
    """A folder as others have it; `changes` are to fields of its files, None takes one away."""
    task, model = make_task(tokenizer, pairs(("a", "b")))
    save_task(folder, task, model, model.encoder.config, "# card\n", {})
    (folder / "bertsmith.json").unlink()
    (folder / "config_sentence_transformers.json").write_text("{}", encoding="utf-8")
    for name, fields in changes.items():
        path = folder / f"{name}.json"
        values = {**json.loads(path.read_text(encoding="utf-8")), **fields}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def assert_same_vectors(folder: Path) -> np.ndarray:
    theirs = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    ours = [answer["embedding"] for answer in load(folder, device="cpu").predict(TEXTS)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return theirs


def test_a_folder_that_sentence_transformers_saved_again_gives_the_same_vectors(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """It keeps the length, 24 of 48 positions, with the tokenizer; the last text is longer."""
    before = assert_same_vectors(their_folder(tokenizer, tmp_path / "first"))
    SentenceTransformer(str(tmp_path / "first"), device="cpu").save(str(tmp_path / "again"))
    assert "max_seq_length" not in json.loads((tmp_path / "again" / "sentence_bert_config.json").read_text())
    np.testing.assert_allclose(assert_same_vectors(tmp_path / "again"), before, atol=1e-5)


@pytest.mark.parametrize("length", [30, int(1e30), None])
def test_the_length_is_that_of_the_tokenizer_where_none_is_said(
    tokenizer: Tokenizer, tmp_path: Path, length: int | None
) -> None:
    changes = {"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": length}}
    folder = their_folder(tokenizer, tmp_path / "model", **changes)
    assert_same_vectors(folder)
    assert read_sentence_files(folder, 8192)["max_length"] == (30 if length == 30 else 8192)


def test_what_a_folder_is_for_is_said_by_its_modules(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Some keep in config.json what the encoder was before; the weights have no such head."""
    for name in ("BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"):
        assert_same_vectors(their_folder(tokenizer, tmp_path / name, config={"architectures": [name]}))


def test_the_real_checkpoint_gives_the_same_vectors(minilm: Path) -> None:
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(list(TEXTS))
    ours = [answer["embedding"] for answer in load(minilm).predict(TEXTS)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    (close, far) = load(minilm).predict(
        [{"text": "A man eats.", "pair": "Someone is eating."}, {"text": "A man eats.", "pair": "Stocks fell today."}]
    )
    assert close["similarity"] > far["similarity"] + 0.3


class _Fixed(torch.nn.Module):
    """A model of theirs whose vectors are given: a column of texts is a column of rows."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


@pytest.mark.parametrize("num_negatives", [0, 1, 3])
def test_the_loss_of_pairs_is_multiple_negatives_ranking(tokenizer: Tokenizer, num_negatives: int) -> None:
    rows = pairs(*((f"a{i}", f"b{i}", [f"c{i} {n}" for n in range(num_negatives)]) for i in range(5)))
    task, model = make_task(tokenizer, rows)
    batch = batch_of(task)
    vectors = model(batch.inputs).detach()
    columns = vectors.view(5, -1, vectors.shape[-1]).unbind(1)
    theirs = MultipleNegativesRankingLoss(_Fixed(), scale=20.0)  # type: ignore[arg-type]
    expected = theirs([{"sentence_embedding": column} for column in columns], torch.zeros(5))
    found = task.loss(model, batch)["embedding"] / batch.counts["embedding"]
    torch.testing.assert_close(found, expected)


def test_the_loss_of_scored_pairs_is_cosent(tokenizer: Tokenizer) -> None:
    scores = (0.0, 3.0, 3.0, 5.0, 1.5)
    rows = [EmbeddingRow("r", f"a{i}", f"b{i}", (), score) for i, score in enumerate(scores)]
    task, model = make_task(tokenizer, rows, scored=True)
    batch = batch_of(task)
    columns = model(batch.inputs).detach().view(5, 2, -1).unbind(1)
    expected = CoSENTLoss(_Fixed(), scale=20.0)(  # type: ignore[arg-type]
        [{"sentence_embedding": column} for column in columns], torch.tensor(scores)
    )
    found = task.loss(model, batch)["embedding"] / batch.counts["embedding"]
    torch.testing.assert_close(found, expected)
    doubled = make_task(tokenizer, [replace(row, score=10 * (row.score or 0) - 4) for row in rows], scored=True)
    torch.testing.assert_close(doubled[0].loss(*(doubled[1], batch_of(doubled[0])))["embedding"] / 5, expected)
    late = make_task(tokenizer, [replace(row, score=1.7e9 + (row.score or 0)) for row in rows], scored=True)
    torch.testing.assert_close(late[0].loss(*(late[1], batch_of(late[0])))["embedding"] / 5, expected)


# ------------------------------------------------------------------------------------- what is a negative


def test_what_is_as_right_is_no_negative(tokenizer: Tokenizer) -> None:
    """Rows with the same second text, or with the same first text, are not learnt against each other, and no text
    against itself."""
    rows = pairs(("a", "x"), ("b", "x"), ("a", "y"), ("c", "z", "x"), ("x", "a"), ("z", "z"))
    task, _ = make_task(tokenizer, rows)
    candidates = ["x", "x", "y", "z", "a", "z", "x"]
    excluded = batch_of(task).labels["excluded"]
    for row, (place, marks) in zip(rows, enumerate(excluded.tolist()), strict=True):
        right = {other.pair for other in rows if other.text == row.text} | {row.text}
        assert marks == [text in right and where != place for where, text in enumerate(candidates)]


def test_a_text_in_both_columns_does_not_stand_before_its_partner(tokenizer: Tokenizer) -> None:
    rows = pairs(("a", "b"), ("b", "a"), ("c", "a"))
    task, _ = make_task(tokenizer, rows)
    vectors = {"a": np.array([1.0, 0]), "b": np.array([0.9, 0.1]), "c": np.array([0.8, 0.3])}
    answers = [EmbeddingAnswer((vectors[row.text], vectors[str(row.pair)])) for row in rows]
    assert task.score(answers, task.examples("train").items)["recall_at_1"] == pytest.approx(2 / 3)  # b is nearer to c


def test_logits_are_not_rounded_where_the_encoder_is(tokenizer: Tokenizer) -> None:
    task, model = make_task(tokenizer, pairs(*((f"a{i}", f"b{i}") for i in range(9))))
    batch = batch_of(task)
    with torch.autocast("cpu", torch.bfloat16):
        logits = task.logits(model, batch)
        vectors = torch.nn.functional.normalize(model(batch.inputs), dim=-1).view(9, 2, -1)
    torch.testing.assert_close(logits[0, 1:], (vectors[:1, 0] @ vectors[1:, 1].T)[0] / 0.05)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), min_size=1), st.randoms())
def test_a_pair_and_the_same_in_the_other_order_are_one_group(texts: list[tuple[str, str]], random: Any) -> None:
    """Whatever the order of the rows; and rows that share no text through such pairs stay apart, as they were."""
    shuffled = random.sample(texts, len(texts))
    groups, again = (
        {(row.text, row.pair): row.group for row in embed_data._grouped(pairs(*some))} for some in (texts, shuffled)
    )
    assert groups == again
    swapped = {one for one in texts if one[::-1] in texts}
    for first, second in swapped:
        assert groups[first, second] == groups[second, first]
    for text, pair in texts:
        if not any(text in one for one in swapped):
            assert groups[text, pair] == text
    assert len({group for (text, _), group in groups.items() if text == "a"}) <= 1


def test_a_batch_to_predict_may_mix_texts_and_pairs(tokenizer: Tokenizer) -> None:
    task, model = make_task(tokenizer, pairs(("a dog", None), ("a dog", "the king")))
    batch = batch_of(task)
    assert batch.labels == {} and batch.counts == {"embedding": 0.0}
    with torch.inference_mode():
        first, second = task.decode(task.predict(model, batch), batch)
    assert task.to_json(first).keys() == {"embedding"} and task.to_json(second).keys() == {"similarity"}
    np.testing.assert_allclose(first.vectors[0], second.vectors[0], atol=1e-6)
    assert second.similarity == pytest.approx(float(first.vectors[0] @ second.vectors[1]), abs=1e-6)


def test_pairs_to_predict_need_no_score_where_training_had_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task, model = make_task(tokenizer, pairs(("a dog", "the king", None, 0.5)), score_column="score")
    save_task(tmp_path / "model", task, model, model.encoder.config, "# card\n", {})
    predictor = load(tmp_path / "model")
    answers = predictor.predict([{"text": one, "pair": "the king"} for one in ("a dog", "the king")])
    vectors = [np.array(answer["embedding"]) for answer in predictor.predict(["a dog", "the king"])]
    expected = [vectors[0] @ vectors[1], 1.0]
    assert [answer["similarity"] for answer in answers] == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------ figures


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(-1, 1, width=16)), min_size=1, max_size=20))
def test_scores_of_yes_and_no_are_told_as_scikit_learn_says(pairs_of: list[tuple[float, float]]) -> None:
    scores, cosines = map(list, zip(*pairs_of, strict=True))
    found = embed._correlations(cosines, scores)
    is_defined = len(set(scores)) == 2 and len(set(cosines)) > 1
    expected = average_precision_score(scores, cosines) if is_defined else 0.0
    assert found["average_precision"] == pytest.approx(expected)
    assert "average_precision" not in embed._correlations([0.1, 0.2, 0.3], [0.0, 1.0, 2.0])
    assert embed._correlations([math.nan, 0.2], [0.0, 1.0])["average_precision"] == 0.0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_ranking_metrics_are_those_of_scikit_learn(ranks: list[int]) -> None:
    gold, scores = np.zeros((len(ranks), 30)), np.tile(-np.arange(30.0), (len(ranks), 1))
    gold[np.arange(len(ranks)), np.array(ranks) - 1] = 1
    found = ranking_metrics(np.array(ranks))
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(gold, scores, k=10))
    assert found["mrr_at_10"] == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))
    assert found["recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found["recall_at_10"] == pytest.approx(np.mean([rank <= 10 for rank in ranks]))


def test_ranks_are_counted_among_distinct_texts(tokenizer: Tokenizer) -> None:
    """Ours against a plain reading: sort the distinct second texts by cosine, without the other partners."""
    rows = pairs(("a", "x"), ("b", "x"), ("a", "y"), ("c", "z", ["x", "u"]), ("d", "w", "v"))
    task, _ = make_task(tokenizer, rows)
    random = np.random.default_rng(0)
    by_text = {text: random.normal(size=4) for text in "abcduvwxyz"}
    examples = task.examples("train").items
    answers = [EmbeddingAnswer(tuple(by_text[text] for text in row.texts)) for row in rows]

    def cosine(first: str, second: str) -> float:
        one, other = by_text[first], by_text[second]
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    expected = []
    for row in rows:
        partners = {other.pair for other in rows if other.text == row.text}
        others = [text for text in "uvwxyz" if text not in partners]
        own = cosine(row.text, str(row.pair))
        expected.append(1 + sum(cosine(row.text, text) >= own for text in others))
    assert len(set(expected)) > 1
    assert task.score(answers, examples) == ranking_metrics(np.array(expected))
    (table,) = task.sections(answers, examples)
    assert [cells[0] for cells in table.rows] == sorted((rank for rank in expected if rank > 1), reverse=True)
    broken = [EmbeddingAnswer(tuple(np.full(4, np.nan) for _ in answer.vectors)) for answer in answers]
    assert task.score(broken, examples)["recall_at_1"] == 0


# ------------------------------------------------------------------------------------------------ whole runs


def write_pairs(folder: Path, scored: bool = False) -> Path:
    """What belongs together shares no word, so that random weights do not know it."""
    words, others = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")
    lines = []
    for number in range(64):
        first, second = number % 4, number // 4 % 4
        partner = (first + number // 16) % 4 if scored else first
        row: dict[str, Any] = {
            "query": f"{words[first]} {words[second]} {number if scored else ''}",
            "document": f"{others[partner]} is {others[second]}",
        }
        lines.append(json.dumps({**row, "score": float(partner == first)} if scored else row))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_scores_of_dev_are_not_dropped_where_train_has_none(tmp_path: Path, tiny_tokenizer: Path) -> None:
    (tmp_path / "dev").mkdir()
    train, dev = write_pairs(tmp_path, scored=False), write_pairs(tmp_path / "dev", scored=True)
    settings = FinetuneSettings(
        model="size:tiny", tokenizer=str(tiny_tokenizer), train=str(train), dev=str(dev), out=tmp_path / "run"
    )
    with pytest.raises(InputError, match=r'dev/pairs.jsonl:1: these pairs have scores \("score"\), and those of train'):
        finetune("embedding", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scored", [False, True])
def test_a_run_learns_and_is_read_again(tmp_path: Path, tiny_tokenizer: Path, scored: bool) -> None:
    data = write_pairs(tmp_path, scored)
    settings = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        train=str(data),
        test=str(data),
        out=tmp_path / "run",
        epochs=20,
        batch_size=16,
        learning_rate=2e-3,
        precision="fp32",
        r_drop=0.1,
    )
    result = finetune("embedding", settings, EmbeddingSettings(max_length=16), console=QUIET)
    objective = "spearman" if scored else "ndcg_at_10"
    assert next(iter(result.metrics["test"])) == objective
    untrained = finetune(
        "embedding",
        replace(settings, out=tmp_path / "short", epochs=0.25, learning_rate=1e-9),
        EmbeddingSettings(max_length=16),
        console=QUIET,
    )
    assert result.metrics["test"][objective] > untrained.metrics["test"][objective] + 0.2
    assert evaluate(result.folder, str(data), precision="fp32") == pytest.approx(result.metrics["test"], abs=1e-6)
    config, raw = read_config(result.model)
    assert raw["architectures"] == ["BertModel"]
    assert SentenceTransformer(str(result.model), device="cpu").encode(["a cat"]).shape == (1, config.hidden_size)
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card and "SentenceTransformer(" in card and "AutoModel" not in card
    student = replace(settings, out=tmp_path / "student", teacher=str(result.folder), r_drop=None, epochs=1)
    assert finetune("embedding", student, EmbeddingSettings(max_length=16), console=QUIET).training.step > 0
    further = replace(
        settings, out=tmp_path / "further", model=str(result.folder), tokenizer=None, epochs=1, r_drop=None
    )
    again = finetune(
        "embedding", replace(further, learning_rate=1e-12), EmbeddingSettings(max_length=16), console=QUIET
    )
    assert again.seeds[0].failure is None  # it knew the task: its loss need not fall
    load_weights(result.model, SentenceEncoder(Encoder(config), "mean"), strict=True)


def test_a_model_that_is_gone_on_from_pools_as_it_did(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Also in a folder of others, which has no bertsmith.json; what is said wins, and without either it is the mean."""
    task, model = make_task(tokenizer, pairs(("a", "b")), pooling="cls")
    save_task(tmp_path / "model", task, model, model.encoder.config, "# card\n", {})
    (tmp_path / "model" / "bertsmith.json").unlink()
    settings = FinetuneSettings(
        model=str(tmp_path / "model"),
        train=str(write_pairs(tmp_path)),
        out=tmp_path / "run",
        epochs=0.1,
        learning_rate=1e-9,
        precision="fp32",
        device="cpu",
    )
    run = finetune("embedding", settings, EmbeddingSettings(max_length=16), console=QUIET)
    assert yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))["pooling"] == "cls"
    assert json.loads((run.model / "bertsmith.json").read_text(encoding="utf-8"))["settings"]["pooling"] == "cls"
    before, after = assert_same_vectors(tmp_path / "model"), assert_same_vectors(run.model)
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-4)  # the others are cut
    assert as_before(EmbeddingSettings(), str(run.folder / "model"), tokenizer).pooling == "cls"
    assert as_before(EmbeddingSettings(pooling="mean"), str(run.model), tokenizer).pooling == "mean"
    assert as_before(EmbeddingSettings(), None, tokenizer).pooling == "mean"
    assert as_before(options := ClassificationSettings(), str(run.model), tokenizer) is options
    assert not folder_notes(EmbeddingSettings(max_length=24), str(tmp_path / "model"), 48)
    (note,) = folder_notes(EmbeddingSettings(max_length=16), str(tmp_path / "model"), 48)
    assert "reads 24 tokens of a text, and what is learnt will read max_length 16: give max_length 24" in note
    (run.model / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"read are the mean .* Give pooling"):
        as_before(EmbeddingSettings(), str(run.model), tokenizer)
    (run.model / "modules.json").unlink()
    shutil.rmtree(run.model / "1_Pooling")
    assert as_before(EmbeddingSettings(), str(run.model), tokenizer).pooling == "mean"


def test_what_a_model_does_more_is_not_lost_without_a_word(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """LaBSE has a layer above its pooling, others lower-cased texts; whoever names a pooling goes on."""
    folders = [their_folder(tokenizer, tmp_path / "dense")]
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense")]
    (folders[-1] / "modules.json").write_text(json.dumps(modules))
    changes = {"sentence_bert_config": {"do_lower_case": True}, "tokenizer_config": {"do_lower_case": False}}
    folders.append(their_folder(tokenizer, tmp_path / "cased", **changes))
    for folder, message in zip(folders, ("Pooling, Dense; read", "does not lower-case"), strict=True):
        with pytest.raises(ModelError, match=rf"{message}.*Give pooling to go on from its encoder alone"):
            as_before(EmbeddingSettings(), str(folder), load_tokenizer(folder))
        assert as_before(EmbeddingSettings(pooling="cls"), str(folder), load_tokenizer(folder)).pooling == "cls"


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ('{"a": "x", "b": "y"}', {}, r"cannot tell which two columns.*text_column and pair_column.*Columns: a, b"),
        ('{"a\\tb": "x"}', {}, r"belong together.* If tabs part them, say --delimiter \$'.t' \(eval"),
        ('{"query": "x", "document": null}', {}, "data.jsonl:1, document: nothing here"),
        ('{"query": "x", "document": ["y"]}', {}, "data.jsonl:1, document: text wanted, list found"),
        ('{"query": "x", "document": "y", "score": "high"}', {}, 'data.jsonl:1, score: "high" is not a number'),
        (
            '{"query": "x", "document": "y"}',
            {"negative_column": "worse"},
            'there is no column "worse". negative_column: n',
        ),
        (
            '{"query": "x", "document": "y", "score": 0, "similarity": 1}',
            {},
            'which column is the score, "score" and "similarity" could be: give score_column',
        ),
        (
            '{"query": "x", "document": "y", "negative": "w", "hard_negative": "v"}',
            {},
            'which column is the negative, "negative" and "hard_negative" could be: give negative_column',
        ),
        (
            '{"sentence1": "x", "sentence2": "y", "label": 1}\n{"sentence1": "x", "sentence2": "z", "label": 0}',
            {},
            r'data.jsonl:2: the column "label" says different things of pairs \("1" and "0"\).* Say score_column label',
        ),
        (
            '{"query": "x", "positive": "y", "negative": "z", "score": 1}',
            {},
            'there are both: give score_column "score" or negative_column "negative"',
        ),
        ('{"query": "x", "document": " "}', {}, "data.jsonl:1, document: nothing here; every row needs two texts"),
        (
            '{"query": "x", "document": "y"}\n{"query": "x", "document": "z", "score": 0}',
            {},
            'data.jsonl:2: the rows above have no field "score", which would change what is read',
        ),
        (
            '{"query": "x", "document": "y"}\n{"query": "x", "document": "z", "negative": "w", "id": 1}',
            {},
            'data.jsonl:2: the rows above have no field "negative", "id", which would',
        ),
        ('{"query": "x", "document": "y", "score": 1' + "0" * 400 + "}", {}, "is not a number; a score says"),
        ("", {}, "no rows"),
    ],
)
def test_bad_data_is_refused(make_files: MakeFiles, content: str, settings: dict[str, Any], message: str) -> None:
    folder = make_files({"data.jsonl": content})
    with pytest.raises(InputError, match=message):
        read_training_rows(TASKS["embedding"], str(folder / "data.jsonl"), EmbeddingSettings(**settings))


@pytest.mark.parametrize("name", ["negative", "worse"])
def test_negatives_that_only_some_rows_have_are_read_where_they_are_named(make_files: MakeFiles, name: str) -> None:
    content = '{"query": "x", "document": "y"}\n{"query": "z", "document": "w", "' + name + '": "v"}\n'
    folder = make_files({"train.jsonl": content, "test.jsonl": '{"query": "x", "document": "y"}\n'})
    asked = EmbeddingSettings(negative_column=name)
    settings, rows = read_training_rows(TASKS["embedding"], str(folder / "train.jsonl"), asked)
    assert [row.negatives for row in rows] == [(), ("v",)]
    assert [row.negatives for row in read_rows(str(folder / "test.jsonl"), settings)[1]] == [()]


def test_pairs_of_which_some_do_not_belong_together_are_said_once_and_read(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "sentence1,sentence2,label\n" + "x,y,1\nx,z,0\n" * 3})
    bad: list[InputError] = []
    assert len(read_rows(str(folder / "a.csv"), EmbeddingSettings(), bad)[1]) == 6
    assert len(bad) == 1 and "says different things of pairs" in str(bad[0])
    gaps = '{"query": "x", "document": "y", "label": NaN}\n{"query": "z", "document": "w", "label": NaN}\n'
    assert len(read_rows(str(make_files({"gaps.jsonl": gaps}) / "gaps.jsonl"), EmbeddingSettings())[1]) == 2


def test_a_label_that_all_pairs_have_or_that_is_the_score_is_no_fault(make_files: MakeFiles) -> None:
    folder = make_files(
        {
            "same.csv": "sentence1,sentence2,label\nx,y,entailment\nx,z,entailment\n",
            "judged.csv": "sentence1,sentence2,label\nx,y,1\nx,z,0\n",
        }
    )
    assert len(read_rows(str(folder / "same.csv"), EmbeddingSettings())[1]) == 2
    _, rows = read_rows(str(folder / "judged.csv"), EmbeddingSettings(score_column="label"))
    assert [row.score for row in rows] == [1.0, 0.0]


def test_columns_are_found_by_their_names(make_files: MakeFiles) -> None:
    folder = make_files(
        {
            "train.csv": "Anchor,Positive,Negative\nx,y,z\n",
            "test.csv": "Anchor,Positive\nx,y\n",
            "scored.tsv": "x\ty\t4.5\n",
        }
    )
    settings, rows = read_rows(str(folder / "train.csv"), EmbeddingSettings())
    assert [(row.text, row.pair, row.negatives, row.score) for row in rows] == [("x", "y", ("z",), None)]
    _, rows = read_rows(str(folder / "test.csv"), settings)
    assert [(row.text, row.pair, row.negatives, row.score) for row in rows] == [("x", "y", (), None)]
    _, rows = read_rows(str(folder / "scored.tsv"), EmbeddingSettings(columns="sentence1,sentence2,score"))
    assert [(row.text, row.pair, row.negatives, row.score) for row in rows] == [("x", "y", (), 4.5)]


def test_there_may_be_several_negatives(make_files: MakeFiles) -> None:
    """As mined: a column each, or a list; fewer of them in some rows."""
    folder = make_files(
        {
            "columns.csv": "query,positive,negative_1,Negative_2\nx,y,z,w\nx,y,,w\n",
            "list.jsonl": '{"query": "x", "document": "y", "negatives": ["z", "w", ""]}\n'
            '{"query": "x", "document": "y", "negatives": []}\n',
            "none.jsonl": '{"query": "x", "document": "y"}',
            "bad.jsonl": '{"query": "x", "document": "y", "negatives": [["z"]]}',
        }
    )
    settings, rows = read_training_rows(TASKS["embedding"], str(folder / "columns.csv"), EmbeddingSettings())
    assert settings.negative_column == "negative_1,Negative_2"
    assert [row.texts for row in rows] == [("x", "y", "z", "w"), ("x", "y", "w")]
    assert read_rows(str(folder / "none.jsonl"), settings)[1][0].negatives == ()
    settings, rows = read_rows(str(folder / "list.jsonl"), EmbeddingSettings())
    assert settings.negative_column == "negatives" and [row.negatives for row in rows] == [("z", "w"), ()]
    given = EmbeddingSettings(negative_column="negative_1,Negative_2")
    assert read_training_rows(TASKS["embedding"], str(folder / "columns.csv"), given)[1][0].negatives == ("z", "w")
    with pytest.raises(InputError, match=r"bad\.jsonl:1, negatives: text wanted, list found"):
        read_rows(str(folder / "bad.jsonl"), EmbeddingSettings())
    with pytest.raises(
        InputError, match=r'no column "negative_1,negativ_2"\. negative_column: did you mean "negative_1"'
    ):
        read_training_rows(
            TASKS["embedding"], str(folder / "columns.csv"), replace(given, negative_column="negative_1,negativ_2")
        )
    spaced = make_files(
        {
            "spaced.csv": "query, positive, negative\nx,y,z\n",
            "written.csv": "query,document,negatives\n" + "x,y,\"['z', 'w']\"\n",
        }
    )
    assert read_rows(str(spaced / "spaced.csv"), EmbeddingSettings())[1][0].negatives == ("z",)
    with pytest.raises(InputError, match="negatives: a list that was written as text"):
        read_rows(str(spaced / "written.csv"), EmbeddingSettings())


@pytest.mark.parametrize(
    ("train", "row", "texts"),
    [
        (("sentence1", "sentence2"), {"Premise": "x", "hypothesis": "y"}, ("x", "y")),
        (("anchor", "positive"), {"content": "x", "id": "3"}, ("x",)),
        (("sentence1", "sentence2"), {"text": "x", "content": "y"}, ("x",)),
        (("anchor", "positive"), {"content": "x", "review": "y"}, 'there is no column "text"'),
        (("a", "b"), {"content": "x"}, 'there is no column "a"'),
    ],
)
def test_other_tables_may_use_other_usual_names(
    make_files: MakeFiles, tokenizer: Tokenizer, train: tuple[str, str], row: dict[str, str], texts: Any
) -> None:
    settings = EmbeddingSettings(text_column=train[0], pair_column=train[1])
    task = Embedding(tokenizer, (), settings, {})
    if isinstance(texts, str):
        with pytest.raises(InputError, match=rf"^row 1: {texts}.*evaluate and predict: --set text_column=NAME"):
            task.row(row, "row 1")
        return
    assert task.row(row, "row 1").texts == texts
    if len(texts) == 2:
        path = str(make_files({"a.jsonl": json.dumps(row)}) / "a.jsonl")
        assert [one.texts for one in read_rows(path, settings)[1]] == [texts], "as labelled data"
        with pytest.raises(InputError, match=r'there is no column "sentence1"\. text_column: did you mean "Premise"'):
            read_training_rows(TASKS["embedding"], path, settings)


def test_a_row_need_not_have_a_negative(make_files: MakeFiles, tokenizer: Tokenizer) -> None:
    rows = '{"query": "x", "document": "y", "negative": %s}\n' * 4 % ('"z"', "null", '""', "NaN")
    folder = make_files({"data.jsonl": rows + '{"query": "x", "document": "y", "id": 7}\n'})
    settings, found = read_rows(str(folder / "data.jsonl"), EmbeddingSettings())
    assert [row.negatives for row in found] == [("z",), (), (), (), ()]
    task = Embedding(tokenizer, (), settings, {"train": found})
    assert len(batch_of(task).labels["candidates"]) == 5 + 1


def test_what_leaves_nothing_to_tell_apart_is_refused(
    make_files: MakeFiles, tokenizer: Tokenizer, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="every row has the same second text"):
        find_labels(pairs(("a", "c"), ("b", "c")), EmbeddingSettings())
    task, _ = make_task(tokenizer, pairs(("a", "b"), ("c", "d")))
    check_batches(task, 2)
    with pytest.raises(SettingsError, match="told from the others of its micro-batch"):
        check_batches(task, FinetuneSettings(train="t", model="m", out=tmp_path, batch_size=8).at_once(ranks=8))
    check_batches(make_task(tokenizer, pairs(("a", "b", "c")))[0], 1)
    folder = make_files({"data.csv": "query,document\na,b\nc,d\n"})
    settings = FinetuneSettings(
        model="size:tiny", tokenizer=str(tiny_tokenizer), train=str(folder / "data.csv"), out=tmp_path / "run"
    )
    with pytest.raises(SettingsError, match="micro-batch"):
        finetune("embedding", replace(settings, micro_batch_size=1, dev_share=0.0), EmbeddingSettings(max_length=16))
    assert not (tmp_path / "run").exists()


def test_bad_settings_are_refused(make_files: MakeFiles, tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingsError, match="similarity_temperature must be positive"):
        EmbeddingSettings(similarity_temperature=0)
    with pytest.raises(SettingsError, match="Choose one"):
        EmbeddingSettings(score_column="s", negative_column="n")
    folder = make_files({"data.jsonl": '{"query": "x", "document": "y"}'})
    with pytest.raises(SettingsError, match='"spearman" does not go with pairs without scores'):
        read_rows(str(folder / "data.jsonl"), EmbeddingSettings(metric="spearman"))
    graded = make_files({"graded.csv": "query,document,score\nx,y,0.5\nx,z,1\n"}) / "graded.csv"
    with pytest.raises(SettingsError, match="average_precision is of scores that are 0 or 1, and there are others"):
        read_rows(str(graded), EmbeddingSettings(metric="average_precision"))
    with pytest.raises(SettingsError, match="max_length is 900; this model takes 3 to 48"):
        make_task(tokenizer, [], max_length=900)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "the modules are Transformer; read"),
        ("modules.json", {}, "the modules are none"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "read are the mean of the tokens and the first"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "read are the mean of the tokens and the first",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "read are the mean of the tokens and the first"),
        ("1_Pooling/config.json", [], "a JSON object is wanted"),
    ],
)
def test_other_ways_to_a_vector_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    task, model = make_task(tokenizer, pairs(("a", "b")))
    folder = tmp_path / "model"
    save_task(folder, task, model, model.encoder.config, "# card\n", {})
    (folder / "bertsmith.json").unlink()
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_prompts_stand_before_texts_as_in_sentence_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of a first text and of others, when both are the same before every text; and what goes on keeps them."""
    prompts = {"text_prompt": "the king : ", "pair_prompt": "the dog : "}
    task, model = make_task(tokenizer, pairs(("a", "b")), max_length=48, **prompts)
    save_task(tmp_path / "model", task, model, model.encoder.config, "# card\n", {})
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    (ours,) = load(tmp_path / "model").predict([TEXTS[0]])
    np.testing.assert_allclose(ours["embedding"], theirs.encode_query(TEXTS[0]), atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours["embedding"], theirs.encode(TEXTS[0]), atol=1e-5)
    (other,) = load(tmp_path / "model", overrides={"text_prompt": "the dog : "}).predict([TEXTS[0]])
    np.testing.assert_allclose(other["embedding"], theirs.encode_document(TEXTS[0]), atol=1e-5)
    (both,) = load(tmp_path / "model").predict([{"text": TEXTS[0], "pair": TEXTS[1]}])
    expected = float(theirs.encode_query(TEXTS[0]) @ theirs.encode_document(TEXTS[1]))
    assert both["similarity"] == pytest.approx(expected, abs=1e-5)
    assert task.notes() == [
        "Before first texts the model reads 'the king : '.",
        "Before others the model reads 'the dog : '.",
    ]
    on = as_before(EmbeddingSettings(pair_prompt="a : "), str(tmp_path / "model"), tokenizer)
    assert (on.text_prompt, on.pair_prompt) == ("the king : ", "a : ")
    same = make_task(tokenizer, pairs(("a", "b")), text_prompt="the king : ", pair_prompt="the king : ")
    save_task(tmp_path / "same", *same, same[1].encoder.config, "# card\n", {})
    assert_same_vectors(tmp_path / "same")


def test_what_is_done_to_texts_first_is_done_or_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = {"default_prompt_name": "query", "prompts": {"query": "the king : ", "other": ""}}
    folder = their_folder(tokenizer, tmp_path / "prompt", config_sentence_transformers=prompt)
    assert_same_vectors(folder)
    on = as_before(EmbeddingSettings(), str(folder), tokenizer)
    assert on.text_prompt == on.pair_prompt == "the king : " and on.normalize is None
    named = {"prompts": {"query": "search: ", "document": ""}, "default_prompt_name": None}
    other = their_folder(tokenizer, tmp_path / "named", config_sentence_transformers=named)
    (note,) = folder_notes(as_before(EmbeddingSettings(max_length=24), str(other), tokenizer), str(other), 48)
    assert "knows prompts (query 'search: '): give text_prompt and pair_prompt to learn with them" in note
    modules = json.loads((other / "modules.json").read_text())
    (other / "modules.json").write_text(json.dumps(modules[:2]))
    assert as_before(EmbeddingSettings(), str(other), tokenizer).normalize is False
    assert as_before(EmbeddingSettings(normalize=True), str(other), tokenizer).normalize is True
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": False}))
    with pytest.raises(ModelError, match="include_prompt leaves the prompt out of the mean"):
        load(folder)
    for name in ("other", None):
        prompts = {**prompt, "default_prompt_name": name}
        assert_same_vectors(their_folder(tokenizer, tmp_path / str(name), config_sentence_transformers=prompts))
    lower = {"do_lower_case": True}
    assert_same_vectors(their_folder(tokenizer, tmp_path / "uncased", sentence_bert_config=lower))
    changes = {"sentence_bert_config": lower, "tokenizer_config": {"do_lower_case": False}}
    with pytest.raises(ModelError, match="do_lower_case is true, and the tokenizer does not lower-case"):
        load(their_folder(tokenizer, tmp_path / "cased", **changes))
