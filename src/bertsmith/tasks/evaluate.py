"""A fine-tuned model scored on labelled data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertsmith.errors import SettingsError
from bertsmith.files import atomic_write, refuse_folder, refuse_overwriting
from bertsmith.settings import to_mapping
from bertsmith.tasks.finetune_report import local_files, results
from bertsmith.tasks.run_folder import model_folder, own_files
from bertsmith.tasks.saved import load_task, task_kind
from bertsmith.tasks.teaching import write_predictions
from bertsmith.training.device import Precision, resolve_device, resolve_precision
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.report import data_table, report_page


def evaluate(
    model: str | Path,
    data: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    predictions: Path | None = None,
    report: Path | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> dict[str, float]:
    """Score a fine-tuned model on labelled data.

    Args:
        model: a run's folder, a model folder, or a Hub id.
        data: what the model's task reads.
        overrides: settings of the task to change, by field name, for example `{"text_column": "review"}`.
        predictions: write every answer there, beside what is given, a JSON object a line, in the order of the data.
        report: write a page there with what the report of a run shows of its last split.

    Returns:
        Metrics, the objective first.

    Raises:
        InputError: data that cannot be read; a label the model does not know.
        ModelError: a folder that is not a fine-tuned model.
        SettingsError: an unknown setting in `overrides`; a file to be written is what is read, or lies in the model's
            folder, or is both files.
        StorageError: a file to be written is a folder.
    """
    if predictions is not None and report is not None and predictions.absolute() == report.absolute():
        raise SettingsError(f"{report}: predictions and report are two files.")
    for file in filter(None, (predictions, report)):
        refuse_folder(file)
        refuse_overwriting(file, (model_folder(model), *own_files(model), data))
    work, module = load_task(model, overrides)
    kind = task_kind(work.name)
    found, rows = kind.read_rows(data, work.settings)
    scored = kind.make(work.tokenizer, work.labels, found, {"test": rows})
    place = resolve_device(device)
    evaluation = evaluate_task(
        module.to(place), scored, "test", device=place, precision=resolve_precision(precision, place)
    )
    if predictions is not None:
        write_predictions(predictions, scored, evaluation)
    if report is not None:
        sections, facts = results(scored, {"test": evaluation})
        files = data_table(local_files([data]))
        config = {"model": str(model), "data": data, **to_mapping(scored.settings)}
        atomic_write(report, report_page(f"Evaluation: {work.name}", [*sections, files], config=config, facts=facts))
    return evaluation.metrics
