"""Sentence vectors a second, beside sentence-transformers and ONNX Runtime, round after round in one process.

    pip install sentence-transformers onnx onnxscript onnxruntime
    python benchmarks/encoding.py --model FOLDER --texts FILE --out runs/speed [--number 2048] [--rounds 5]

FILE has a sentence a line. Each round encodes the same sentences three times: ours as `bertsmith.load` reads the
folder; sentence-transformers, which sorts them by length; and ONNX Runtime, with the graph that torch exports of the
same `transformers` model and batches sorted by length. Ours and sentence-transformers are in bf16 where the processor
multiplies it, else in float32, as ONNX Runtime always is. Printed are the medians of sentences a second and the ratios.
Nothing else should run on the machine. Writes `encoding.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from sentence_transformers import SentenceTransformer

import bertsmith
from bertsmith.training.device import has_fast_bf16

BATCH_SIZE = 32
MAX_LENGTH = 256


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = arguments.texts.read_text(encoding="utf-8").splitlines()[: arguments.number]
    is_fast = has_fast_bf16(torch.device("cpu"))
    ours = bertsmith.load(arguments.model, precision="bf16" if is_fast else "fp32")
    theirs = SentenceTransformer(
        str(arguments.model), device="cpu", model_kwargs={"dtype": torch.bfloat16} if is_fast else {}
    )
    theirs.max_seq_length = MAX_LENGTH
    with tempfile.TemporaryDirectory() as folder:
        by_onnx = onnx_encoder(arguments.model, Path(folder))
    encoders: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: np.array([answer["embedding"] for answer in ours.predict(texts)]),
        "sentence-transformers": lambda: np.asarray(theirs.encode(texts, batch_size=BATCH_SIZE)),
        "ONNX Runtime": lambda: by_onnx(texts),
    }
    vectors = {name: encode() for name, encode in encoders.items()}  # also warms up
    lowest = min(float((vectors["ours"] * found).sum(-1).min()) for found in vectors.values())
    if lowest < (0.99 if is_fast else 0.99999):
        raise SystemExit(f"the vectors differ: a cosine of {lowest:.6f}")
    speeds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(arguments.rounds):
        for name, encode in encoders.items():
            began = time.perf_counter()
            encode()
            speeds[name].append(len(texts) / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "number": len(texts),
        "precision": "bf16" if is_fast else "fp32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "sentences_per_second": speeds,
        "ratios": {name: medians["ours"] / median for name, median in medians.items() if name != "ours"},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "encoding.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, median in medians.items():
        print(f"{name}: {median:,.0f} sentences/s, ours {medians['ours'] / median:.2f} times that")


def onnx_encoder(model: Path, folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts -> unit vectors [texts, hidden], the mean over tokens, by a session on as many threads as torch has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = transformers.AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    example = dict(tokenizer(["a sentence", "and a longer one"], padding=True, return_tensors="pt"))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        encoder,
        (),
        folder / "model.onnx",
        kwargs={name: example[name] for name in names},
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes={name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} for name in names},
        dynamo=True,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)
        order = sorted(range(len(texts)), key=lambda place: len(rows["input_ids"][place]))
        vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
        for first in range(0, len(order), BATCH_SIZE):
            places = order[first : first + BATCH_SIZE]
            batch = tokenizer.pad(
                {name: [rows[name][place] for place in places] for name in names}, return_tensors="np"
            )
            (hidden,) = session.run(["last_hidden_state"], {name: batch[name].astype(np.int64) for name in names})
            mask = batch["attention_mask"][..., None]
            means = (hidden * mask).sum(1) / mask.sum(1)
            vectors[places] = means / np.linalg.norm(means, axis=-1, keepdims=True)
        return vectors

    return encode


if __name__ == "__main__":
    main()
