"""The commands that say what others will take, and what this machine does: advise, plan, benchmark."""

import shlex
import sys
from dataclasses import MISSING, fields
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from bertsmith.cli.app import flag_name
from bertsmith.cli.config import ConfigFile
from bertsmith.errors import SettingsError
from bertsmith.screen import output_screen
from bertsmith.tasks.advice_text import Sheet, advice_sheets, no_advice, no_plan, plan_sheets, render
from bertsmith.tasks.advise import AdviceSettings
from bertsmith.tasks.advise import advise as advise_task
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.benchmark import BenchmarkSettings, LeftOut, Timed
from bertsmith.tasks.benchmark import benchmark as run_benchmark
from bertsmith.tasks.benchmark_text import benchmark_sheets, progress_line, write_benchmark
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.plan_run import PlanSettings
from bertsmith.tasks.plan_run import plan as plan_run
from bertsmith.tasks.tag_data import TaggingSettings

_FLAT = Parameter(name="*")


def advise_classification(
    *,
    settings: Annotated[AdviceSettings, _FLAT],
    options: Annotated[ClassificationSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say with what to teach a model labels (or a number), and what it will take."""
    _advise("classification", settings, options)


def advise_tagging(
    *,
    settings: Annotated[AdviceSettings, _FLAT],
    options: Annotated[TaggingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say with what to teach a model entities, or a tag of every word, and what it will take."""
    _advise("tagging", settings, options)


def advise_answering(
    *,
    settings: Annotated[AdviceSettings, _FLAT],
    options: Annotated[AnsweringSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say with what to teach a model to answer questions with a span of a text, and what it will take."""
    _advise("answering", settings, options)


def advise_choice(
    *,
    settings: Annotated[AdviceSettings, _FLAT],
    options: Annotated[ChoiceSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say with what to teach a model to choose the right one of several answers, and what it will take."""
    _advise("choice", settings, options)


def advise_embedding(
    *,
    settings: Annotated[AdviceSettings, _FLAT],
    options: Annotated[EmbeddingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say with what to teach a model vectors of texts, and what it will take."""
    _advise("embedding", settings, options)


def plan(*, settings: Annotated[PlanSettings | None, _FLAT] = None, config: ConfigFile = None) -> None:
    """Say what a pre-training will take: parameters, operations, tokens, time, memory, disk, cost."""
    planned = plan_run(settings or PlanSettings())
    if planned.forecast is None:
        _show_sheets(plan_sheets(planned))
        raise SettingsError(no_plan(planned))
    _show(plan_sheets(planned), command(["pretrain"], planned.settings))


def benchmark(*, settings: Annotated[BenchmarkSettings | None, _FLAT] = None, config: ConfigFile = None) -> None:
    """Say how fast this machine pre-trains, fine-tunes and reads, on random words, in about two minutes."""
    settings = settings or BenchmarkSettings()
    result = run_benchmark(settings, progress=_show_progress)
    _show_sheets(benchmark_sheets(result))
    if settings.out is not None:
        write_benchmark(result, settings.out)
        print(f"Report: {settings.out / 'report.html'}")


def command(verb: list[str], *settings: Any) -> str:
    """The command line that gives a verb these settings; what is their default is left out."""
    words = ["bertsmith", *verb]
    for one in settings:
        for field in fields(one):
            value = getattr(one, field.name)
            if field.default is MISSING or value != field.default:
                flag, text = f"--{flag_name(field.name)}", f"{value:g}" if isinstance(value, float) else str(value)
                if isinstance(value, float) and float(text) != value:
                    text = repr(value)
                # A value that begins with a dash would be taken for a flag.
                if isinstance(value, bool):
                    words.append(flag if value else f"--no-{flag[2:]}")
                else:
                    words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def _advise(task: str, settings: AdviceSettings, options: Any) -> None:
    advice = advise_task(task, settings, options)
    if not advice.fits:
        _show_sheets(advice_sheets(advice))
        raise SettingsError(no_advice(advice))
    _show(advice_sheets(advice), command(["finetune", task], advice.settings, advice.options))


def _show(sheets: list[Sheet], line: str) -> None:
    screen = _show_sheets(sheets)
    screen.print(Text(f"\n{line}"), soft_wrap=True)


def _show_sheets(sheets: list[Sheet]) -> Console:
    screen = output_screen()
    screen.print(render(sheets, is_terminal=screen.is_terminal), soft_wrap=not screen.is_terminal)
    return screen


def _show_progress(outcome: Timed | LeftOut) -> None:
    print(progress_line(outcome), file=sys.stderr)
