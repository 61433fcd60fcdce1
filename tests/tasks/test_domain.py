"""Going on from a model with a tokenizer that knows more words: what the new tokens start from, what is said of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from bertsmith.errors import ModelError
from bertsmith.tasks.added_tokens import added_tokens
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.domain_words import extend_tokenizer
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

DOMAIN = (
    "The king had a thrombosis, not a cardiomyopathy.\nAfter angiography the thrombosis was seen.\n"
    "The queen saw the angiography.\nIt was not a cardiomyopathy."
)
WORDS = ("cardiomyopathy", "angiography", "thrombosis")
ROWS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


def settings_for(store: Path, out: Path, **changes: object) -> PretrainSettings:
    base = PretrainSettings(
        corpus=store,
        out=out,
        size="mini" if "from_model" in changes else "tiny",
        budget="2 steps",
        max_length=32,
        batch_size=4,
        precision="fp32",
        evaluation_samples=4,
        evaluate_every="2 steps",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def build_store(folder: Path, tokenizer: Path) -> Path:
    """A store of forty small documents of the domain."""
    source = folder / "domain.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    documents = [{"text": f"Day {number}.\n{DOMAIN}"} for number in range(40)]
    source.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    build_corpus([str(source)], tokenizer, folder / "store", heldout_share=0.2, num_workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def general(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with the words in pieces, and a run on it."""
    root = tmp_path_factory.mktemp("general")
    store = build_store(root, tiny_tokenizer)
    pretrain(settings_for(store, root / "run", budget="6 steps", learning_rate=3e-2))
    return store, root / "run"


@pytest.fixture(scope="module")
def domain(general: tuple[Path, Path], tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the words as tokens, the tokenizer extended."""
    root = tmp_path_factory.mktemp("domain")
    source = general[0].parent / "domain.jsonl"
    extend_tokenizer([str(source)], tiny_tokenizer, root / "tokenizer", num_words=3)
    return build_store(root, root / "tokenizer")


def test_from_words_to_a_model_that_transformers_loads(
    general: tuple[Path, Path], domain: Path, tmp_path: Path
) -> None:
    screen = Console(record=True, width=200)
    result = pretrain(settings_for(domain, tmp_path / "on", from_model=str(general[1])), console=screen)
    assert result.training.step == 2
    model = AutoModelForPreTraining.from_pretrained(result.model)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    size = AutoModel.from_pretrained(general[1] / "model").config.vocab_size
    assert model.config.vocab_size == len(tokenizer) == size + 3
    assert len(model.get_input_embeddings().weight) == model.get_output_embeddings().out_features == size + 3
    ids = tokenizer("a thrombosis .", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3 and ids[1] >= size
    with torch.inference_mode():
        logits = AutoModelForMaskedLM.from_pretrained(result.model)(torch.tensor([ids])).logits
    assert logits.shape == (1, 3, size + 3) and logits.isfinite().all()

    theirs = AutoTokenizer.from_pretrained(general[1] / "model")
    mean = sum(len(theirs.tokenize(word)) for word in WORDS) / 3
    assert f"3 tokens are new to the model; each starts as the mean of the pieces that it was cut into, {mean:.1f}" in (
        screen.export_text()
    )
    facts = json.loads((result.model / "bertsmith.json").read_text(encoding="utf-8"))
    assert facts["added_tokens"] == 3 and facts["mean_pieces"] == pytest.approx(mean)
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert f"from `run` with 3 more tokens (of {mean:.1f} pieces on average) on" in card
    assert "tokens added to the model" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_each_new_row_is_the_mean_of_its_pieces(general: tuple[Path, Path], domain: Path, tmp_path: Path) -> None:
    """The pieces as transformers cuts them with the old tokenizer; a learning rate of nearly 0 leaves the start."""
    still = settings_for(domain, tmp_path / "on", from_model=str(general[1]), budget="1 steps", learning_rate=1e-12)
    result = pretrain(still)
    before, after = (load_file(folder / "model.safetensors") for folder in (general[1] / "model", result.model))
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (general[1] / "model", result.model))
    for name in ROWS:
        size = len(before[name])
        torch.testing.assert_close(after[name][:size], before[name], rtol=0, atol=1e-7)
        for word in WORDS:
            pieces = old(word, add_special_tokens=False)["input_ids"]
            assert len(pieces) > 3
            row = after[name][new.convert_tokens_to_ids(word)]
            torch.testing.assert_close(row, before[name][pieces].mean(0), rtol=0, atol=1e-6)
    others = [name for name in before if name not in ROWS and before[name].shape == after[name].shape]
    assert len(others) == len(before) - sum(len(before[ROWS[0]]) in tensor.shape for tensor in before.values())
    for name in others:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)


def test_fewer_layers_and_more_tokens_at_once(general: tuple[Path, Path], domain: Path, tmp_path: Path) -> None:
    result = pretrain(settings_for(domain, tmp_path / "on", from_model=str(general[1]), layers=1))
    config = AutoModel.from_pretrained(result.model).config
    assert config.num_hidden_layers == 1 and config.vocab_size == len(AutoTokenizer.from_pretrained(result.model))


def test_both_models_of_electra_grow(general: tuple[Path, Path], domain: Path, tmp_path: Path) -> None:
    first = pretrain(settings_for(general[0], tmp_path / "first", family="electra", learning_rate=1e-3))
    still = settings_for(domain, tmp_path / "on", from_model=str(first.folder), budget="1 steps", learning_rate=1e-12)
    second = pretrain(still)
    name = "electra.embeddings.word_embeddings.weight"
    old, new = AutoTokenizer.from_pretrained(first.model), AutoTokenizer.from_pretrained(second.model)
    for part in ("model", "generator"):
        before, after = (load_file(run.folder / part / "model.safetensors") for run in (first, second))
        size = len(before[name])
        assert len(after[name]) == size + 3
        torch.testing.assert_close(after[name][:size], before[name], rtol=0, atol=1e-7)
        for word in WORDS:
            pieces = old(word, add_special_tokens=False)["input_ids"]
            row = after[name][new.convert_tokens_to_ids(word)]
            torch.testing.assert_close(row, before[name][pieces].mean(0), rtol=0, atol=1e-6)
        body = "electra.encoder.layer.0.attention.self.query.weight"
        torch.testing.assert_close(after[body], before[body], rtol=0, atol=1e-7)
    before, after = (load_file(run.folder / "generator" / "model.safetensors") for run in (first, second))
    bias = next(key for key in after if key.endswith("lm_head.bias"))
    torch.testing.assert_close(after[bias][: len(before[bias])], before[bias], rtol=0, atol=1e-7)
    assert AutoModelForMaskedLM.from_pretrained(second.folder / "generator").config.vocab_size == len(new)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_in_running_text(tiny_documents: Path, tmp_path: Path, kind: str) -> None:
    """A token of these kinds begins with a space; its pieces are those of the word behind one."""
    train_tokenizer([str(tiny_documents)], tmp_path / "old", kind=kind, vocab_size=400)  # type: ignore[arg-type]
    source = tmp_path / "domain.txt"
    source.write_text(DOMAIN * 12, encoding="utf-8")
    extension = extend_tokenizer([str(source)], tmp_path / "old", tmp_path / "new", num_words=3, min_count=12)
    old = load_tokenizer(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({"model_type": "bert", "vocab_size": old.vocab_size, "hidden_size": 12})
    )
    added = added_tokens(str(tmp_path / "old"), extension.tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "old")
    for number, word in enumerate(extension.words):
        ids = theirs(f"a {word.token.strip('Ġ▁')}", add_special_tokens=False)
        pieces = [token_id for token_id, place in zip(ids["input_ids"], ids.word_ids(), strict=True) if place == 1]
        assert added.pieces[old.vocab_size + number] == pieces and len(pieces) == len(word.pieces)


def test_rows_to_spare(general: tuple[Path, Path], domain: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A model with more rows than its tokenizer has tokens gives those to new ones before it grows."""
    model = AutoModelForMaskedLM.from_pretrained(general[1] / "model")
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 2)
    model.save_pretrained(tmp_path / "padded")
    load_tokenizer(tiny_tokenizer).save(tmp_path / "padded")
    tokenizer = load_tokenizer(domain / "tokenizer")
    assert list(added_tokens(str(tmp_path / "padded"), tokenizer).pieces) == [size, size + 1, size + 2]
    result = pretrain(settings_for(domain, tmp_path / "on", from_model=str(tmp_path / "padded"), objective="mlm"))
    assert AutoModel.from_pretrained(result.model).config.vocab_size == size + 3
    model.resize_token_embeddings(size + 64)
    model.save_pretrained(tmp_path / "padded")
    result = pretrain(settings_for(domain, tmp_path / "wide", from_model=str(tmp_path / "padded"), objective="mlm"))
    assert AutoModel.from_pretrained(result.model).config.vocab_size == size + 64
    assert json.loads((result.model / "bertsmith.json").read_text(encoding="utf-8"))["added_tokens"] == 3


def test_another_tokenizer_is_refused(general: tuple[Path, Path], domain: Path, tmp_path: Path) -> None:
    extended = load_tokenizer(domain / "tokenizer")
    names = extended.tokens(range(extended.vocab_size))
    names[77] = "elephant"
    (tmp_path / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
    other = load_tokenizer(tmp_path / "vocab.txt")
    old = load_tokenizer(general[0] / "tokenizer").tokens([77])[0]
    with pytest.raises(ModelError, match=rf'token 77 is "elephant", the model\'s is "{old}".*tokenizer extend'):
        added_tokens(str(general[1]), other)
    store = build_store(tmp_path, tmp_path / "vocab.txt")
    with pytest.raises(ModelError, match="token 77"):
        pretrain(settings_for(store, tmp_path / "out", from_model=str(general[1])))
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_of_no_more_tokens_is_refused(general: tuple[Path, Path], tmp_path: Path) -> None:
    own = load_tokenizer(general[0] / "tokenizer")
    names = own.tokens(range(own.vocab_size))

    def refused(message: str, lines: list[str], lowercase: bool = True) -> None:
        (tmp_path / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
        with pytest.raises(ModelError, match=message):
            added_tokens(str(general[1]), load_tokenizer(tmp_path))

    refused('does not extend the model\'s: token 77 is "elephant"', [*names[:77], "elephant", *names[78:]])
    refused(f'has no token {len(names) - 1}, the model\'s is "{names[-1]}"', names[:-1])
    refused("the model's makes text lower-case, it does not", names, lowercase=False)


def test_a_model_without_a_tokenizer_cannot_grow(general: tuple[Path, Path], domain: Path, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(general[1] / "model").save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"its own tokenizer is needed.*no tokenizer\.json"):
        added_tokens(str(tmp_path / "bare"), load_tokenizer(domain / "tokenizer"))
    unknown = added_tokens(str(tmp_path / "bare"), load_tokenizer(general[0] / "tokenizer"))
    assert not unknown.pieces and not unknown.facts()
    (note,) = unknown.notes()
    assert note.startswith(f"Nothing says whether the corpus was made with the tokenizer of {tmp_path / 'bare'}")
    assert not added_tokens(str(general[1]), load_tokenizer(general[0] / "tokenizer")).notes()
    assert not added_tokens(None, load_tokenizer(domain / "tokenizer")).facts()
