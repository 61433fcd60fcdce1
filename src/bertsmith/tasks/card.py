"""The model card: README.md of a model folder, in the form the Hugging Face Hub reads."""

import re
from collections.abc import Mapping, Sequence

from bertsmith import __version__
from bertsmith.settings import to_yaml

_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "feature-extraction": "AutoModel",
}
SIMILARITY = "sentence-similarity"
"""The Hub's name of what makes vectors, which sentence-transformers loads."""
_UNANSWERING = ("text-generation", "feature-extraction")
"""What `bertsmith predict` has no answers of."""
_SHOWN_LABELS = 50


def model_card(
    title: str,
    pipeline_tag: str,
    *,
    model_type: str = "bert",
    made_from: str,
    metrics: Mapping[str, Mapping[str, float]],
    labels: Sequence[str] = (),
    data: Mapping[str, str],
    settings: Mapping[str, object],
) -> str:
    """Markdown with the Hub's YAML header: what the model is, its figures, its data, how to use it.

    Args:
        pipeline_tag: the Hub's name of the task, for example "text-classification".
        model_type: the family.
        made_from: a sentence on where the weights come from.
        metrics: split -> metric -> value.
        data: file name -> SHA-256.
        settings: those that were not left at their defaults.
    """
    is_similarity = pipeline_tag == SIMILARITY
    library = "sentence-transformers" if is_similarity else "transformers"
    tags = [*([library] if is_similarity else []), model_type, "bertsmith"]
    header = to_yaml({"library_name": library, "pipeline_tag": pipeline_tag, "tags": tags})
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    lines = [f"---\n{header}---\n", f"# {title}\n", f"{made_from} Made with bertsmith {__version__}.\n"]
    if names:
        lines += ["## Results\n", _row("", *metrics), _row("---", *("---:" for _ in metrics))]
        for name in names:
            cells = (f"{values[name]:.4f}" if name in values else "" for values in metrics.values())
            lines.append(_row(name, *cells))
        lines.append("")
    if labels:
        more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
        lines += ["## Labels\n", f"{', '.join(map(code_span, labels[:_SHOWN_LABELS]))}{more}\n"]
    if data:
        lines += ["## Data\n", _row("file", "SHA-256"), _row("---", "---")]
        lines += [*(_row(name, f"`{digest}`") for name, digest in data.items()), ""]
    if settings:
        lines += ["## Settings\n", "```yaml", to_yaml(settings).rstrip(), "```\n"]
    lines += ["## Use\n", "```python", *_use(pipeline_tag), "```\n"]
    if pipeline_tag not in _UNANSWERING:
        lines.append("or, from the command line, `bertsmith predict path/to/this/folder`.\n")
    return "\n".join(lines)


def _use(pipeline_tag: str) -> list[str]:
    """Lines of Python that load the model; a text's vector also takes its pooling."""
    if pipeline_tag == SIMILARITY:
        return [
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("path/to/this/folder")',
            'vectors = model.encode(["A text.", "Another."])',
        ]
    return [
        f"from transformers import AutoTokenizer, {_AUTO_CLASSES[pipeline_tag]}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        f'model = {_AUTO_CLASSES[pipeline_tag]}.from_pretrained("path/to/this/folder")',
    ]


def code_span(text: str) -> str:
    """A Markdown code span that shows the text on one line, whatever it holds.

    A run of backticks ends a span only if it is as long as the one that began it; a space on either side parts them
    from those of the text, and is not shown (CommonMark 0.31, 6.1).

    >>> code_span("a"), code_span("a`b"), code_span("``")
    ('`a`', '`` a`b ``', '``` `` ```')
    """
    line = " ".join(text.split())
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"


def _row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
