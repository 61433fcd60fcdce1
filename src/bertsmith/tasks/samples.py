"""Pre-training samples as a person can read them: both segments, the label, and what is hidden."""

from collections.abc import Iterator

import numpy as np

from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masker, Masking, MaskUnit
from bertsmith.tasks.pairs import IS_NEXT
from bertsmith.tasks.pretrain_examples import DataMode, PretrainExample, PretrainExamples
from bertsmith.text.corpus import Corpus
from bertsmith.text.tokenizer import Tokenizer


def describe_samples(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    number: int,
    max_length: int,
    mode: DataMode,
    seed: int,
    mask_unit: MaskUnit = "piece",
) -> Iterator[str]:
    """`number` samples of the first epoch, spread evenly over the corpus, cut and masked as in training."""
    masking = Masking(unit=mask_unit, random_specials=mode == "original", mask_unknown=mode == "original")
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=max_length,
        mode=mode,
        hiding=Masker(tokenizer, masking),
        short_sequence_probability=0.1,
        seed=seed,
        num_samples=number,
    )
    for example in examples.take(range(examples.num_examples(0)), 0):
        yield describe(example, tokenizer)


def describe(example: PretrainExample, tokenizer: Tokenizer) -> str:
    """One sample in lines: the label, then a line a segment, each hidden token as {it -> what is shown}."""
    hidden = dict(zip(example.masked.positions.tolist(), example.masked.labels.tolist(), strict=True))
    pieces = tokenizer.tokens(example.masked.token_ids)
    for position, label in hidden.items():
        pieces[position] = f"{{{tokenizer.tokens([label])[0]} -> {pieces[position]}}}"
    if example.pair_label == NO_PAIR:
        verdict = "one text"
    else:
        verdict = "B follows A" if example.pair_label == IS_NEXT else "B is random"
    lines = [f"{verdict}; {len(hidden)} of {len(pieces)} tokens hidden, {{token -> what is shown}}"]
    for name, segment in (("A", 0), ("B", 1)):
        places = np.flatnonzero(example.segment_ids == segment).tolist()
        if places:
            lines.append(f"  {name}  " + " ".join(pieces[place] for place in places))
    return "\n".join(lines)
