"""What `advise` and `plan` say: tables for a terminal, plain lines for anything else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bertsmith.files import format_size, free_bytes
from bertsmith.model.config import EncoderConfig
from bertsmith.tasks.advice_rules import family_reason
from bertsmith.tasks.advise import Advice
from bertsmith.tasks.forecast import Forecast
from bertsmith.tasks.plan_run import RunPlan

_SHOWN_LABELS = 6
_SHOWN_SCRIPTS = 3
_SAME = 0.01  # share of the time by which two sizes differ at least
_MEGA, _GIGA, _PETA = 1e6, 1e9, 1e15


@dataclass(frozen=True)
class Sheet:
    """A title, and lines of a name, a figure and perhaps a reason."""

    title: str
    lines: Sequence[tuple[str, str, str]]


def render(sheets: Sequence[Sheet], *, is_terminal: bool) -> RenderableType:
    """Tables, or a line each: "name: figure (reason)"."""
    parts: list[RenderableType] = []
    for sheet in sheets:
        if not is_terminal:
            parts.append(Text(f"{sheet.title}:"))
            parts += [Text(f"  {_plain(*line)}") for line in sheet.lines]
            continue
        table = Table(show_header=False, title=sheet.title, title_justify="left")
        used = [column for column in range(3) if any(line[column] for line in sheet.lines)]
        for line in sheet.lines:
            table.add_row(*(Text(line[column]) for column in used))
        parts.append(table)
    return Group(*parts)


def _plain(name: str, value: str, why: str) -> str:
    return f"{name}: {value} ({why})".removeprefix(": ").removesuffix(" ()")


def advice_sheets(advice: Advice) -> list[Sheet]:
    """What was read, what to do, what it will take, what else there is to say."""
    chosen = [(choice.name, _value(choice.value), choice.why) for choice in advice.choices]
    model = [
        ("family", advice.config.model_type, family_reason(advice.data, advice.config)),
        ("size", _shape(advice.config), _size_reason(advice)),
    ]
    sheets = [
        Sheet("What was read", list(_read(advice))),
        Sheet("What to do" if advice.fits else "What was tried, and does not fit", model + chosen),
        Sheet("What it will take", list(_taken(advice))),
    ]
    if advice.remarks:
        sheets.append(Sheet("Beyond that", [("", remark, "") for remark in advice.remarks]))
    return sheets


def no_advice(advice: Advice) -> str:
    """What to say in the place of a command, where nothing fits."""
    limit, least = advice.time_limit_seconds, advice.least_seconds
    unwritten = "" if advice.settings_file is None else f", and {advice.settings_file} is not written"
    if advice.forecast is None or least is None:
        time = "" if limit is None else f" Whether {_seconds(limit)} would be enough cannot be measured before it does."
        less = ", read less of the longest texts (--long)" if getattr(advice.options, "long", "") == "windows" else ""
        return (
            f"nothing fits the memory of {format_size(advice.memory_limit_bytes)}.{time} Take a smaller model{less}, "
            f"or give more memory. No command is given{unwritten}."
        )
    beside = advice.forecast.start_seconds + advice.forecast.saving_seconds
    return (
        f"nothing fits the time of {_seconds(limit or 0.0)}. The least that may teach anything takes some "
        f"{_seconds(least)}, of which starting and saving are {_seconds(beside)}. Give more time, or take a smaller "
        f"model. No command is given{unwritten}."
    )


def no_plan(plan: RunPlan) -> str:
    """The same of a pre-training, which only memory can forbid."""
    memory = format_size(plan.memory_limit_bytes)
    return f"the run does not fit the memory of {memory}. Take a smaller model, or give more. No command is given."


def plan_sheets(plan: RunPlan) -> list[Sheet]:
    """The model, the run, what it will take."""
    cost, config = plan.measured.calibration, plan.measured.config
    model = [
        ("family", config.model_type, ""),
        ("size", _shape(config), f"{config.vocab_size:,} tokens in the vocabulary"),
        ("parameters", f"{cost.num_parameters:,}", f"{plan.measured.num_embeddings:,} in tables of embeddings"),
        ("objective", plan.measured.objective, ""),
    ]
    return [
        Sheet("The model", model),
        Sheet("The run", list(_run(plan))),
        Sheet("What it will take", list(_total(plan))),
    ]


def _read(advice: Advice) -> Iterator[tuple[str, str, str]]:
    data = advice.data
    yield "rows", ", ".join(f"{number:,} {split}" for split, number in data.rows.items()), ""
    median, high, longest = data.percentiles
    yield "tokens in a row", f"median {median:,}, 95 % at most {high:,}, longest {longest:,}", ""
    if data.labels:
        most = sorted(data.labels.items(), key=lambda item: -item[1])
        total = sum(data.labels.values())
        shown = ", ".join(f"{label} {count / total:.1%}" for label, count in most[:_SHOWN_LABELS])
        rest = f", and {len(most) - _SHOWN_LABELS:,} more" if len(most) > _SHOWN_LABELS else ""
        yield "labels", f"{len(most):,}: {shown}{rest}", ""
    shares = list(data.scripts.items())[:_SHOWN_SCRIPTS]
    yield (
        "scripts",
        ", ".join(f"{script} {share:.1%}" for script, share in shares if share >= 0.001) or "no letters",
        "",
    )
    yield "unknown tokens", f"{data.unknown_share:.2%}", ""


def _taken(advice: Advice) -> Iterator[tuple[str, str, str]]:
    cost, forecast = advice.measured.calibration, advice.forecast
    if forecast is None:
        yield _lacking(cost.peak_bytes, advice.memory_limit_bytes, "take a smaller model")
        if advice.time_limit_seconds is not None:
            limit = f"of {_seconds(advice.time_limit_seconds)} that there are; steps are timed once they fit the memory"
            yield "the whole", "cannot be measured", limit
        return
    (stage,) = cost.stages
    measured = f"{stage.num_measured} steps of {stage.mean_tokens:,.0f} tokens were measured"
    yield "an epoch", _seconds(advice.epoch_seconds()), measured
    yield from _times(forecast)
    limit = ""
    if advice.time_limit_seconds is not None:
        limit = f"of {_seconds(advice.time_limit_seconds)} that there are"
        limit += "" if advice.fits_time else ": too long, and nothing shorter would teach anything"
    yield "the whole", _seconds(forecast.seconds), limit
    yield from _room(forecast, advice.memory_limit_bytes, free_bytes(advice.settings.out))


def _run(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    yield "budget", plan.settings.budget, ""
    for number, stage in enumerate(plan.stages, start=1):
        phase = f"phase {number}, " if len(plan.stages) > 1 else ""
        cost = stage.cost
        cut = f"in micro-batches of {cost.micro_batch_size}" if cost.micro_batch_size < cost.batch_size else ""
        yield f"{phase}batch", f"{cost.batch_size} of at most {stage.max_length} tokens", cut
        speed = cost.mean_tokens / cost.pace.seconds(1, cost.mean_tokens)
        yield f"{phase}speed", f"{speed:,.0f} tokens/s", f"{cost.num_measured} steps were measured"
        yield f"{phase}steps", f"{stage.steps:,}", ""
        yield f"{phase}tokens", f"{stage.tokens:,.0f}", f"{stage.epochs:.3g} epochs of the text"
        yield (
            f"{phase}operations a token",
            f"{stage.operations_per_token / _MEGA:,.1f} MFLOP",
            "forward and backward: 6 for each weight in a matrix, attention, heads at predicted positions only",
        )
        yield f"{phase}operations a second", f"{speed * stage.operations_per_token / _GIGA:,.1f} GFLOP/s", ""


def _total(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    if plan.forecast is None:
        lean = "" if plan.settings.gradient_checkpointing else "use --gradient-checkpointing, or "
        yield _lacking(plan.measured.calibration.peak_bytes, plan.memory_limit_bytes, f"{lean}take a smaller model")
        return
    yield "operations", f"{plan.operations / _PETA:,.4g} PFLOP", ""
    yield from _times(plan.forecast)
    yield "the whole", _seconds(plan.forecast.seconds), ""
    yield from _room(plan.forecast, plan.memory_limit_bytes, free_bytes(plan.settings.out))
    if plan.cost is not None:
        yield "cost", f"{plan.cost:,.2f}", "the whole time at the price of an hour"


def _times(forecast: Forecast) -> Iterator[tuple[str, str, str]]:
    yield "starting", _seconds(forecast.start_seconds), "imports, data, model"
    yield "learning", _seconds(forecast.learning_seconds), ""
    yield "evaluating", _seconds(forecast.evaluation_seconds), ""
    yield "saving", _seconds(forecast.saving_seconds), "checkpoints, model, report"


def _room(forecast: Forecast, limit_bytes: int, free: int) -> Iterator[tuple[str, str, str]]:
    yield "memory", format_size(forecast.peak_bytes), f"of {format_size(limit_bytes)} that there are"
    yield "disk", format_size(forecast.disk_bytes), f"of {format_size(free)} that are free; while it runs, twice that"


def _lacking(needed_bytes: int, limit_bytes: int, what_to_do: str) -> tuple[str, str, str]:
    why = f"one example in a step needs more than the {format_size(limit_bytes)} that there are; {what_to_do}"
    return "memory", f"{format_size(needed_bytes)}: does not fit", why


def _size_reason(advice: Advice) -> str:
    """How many parameters, and what another size would take."""
    parameters = f"{advice.measured.calibration.num_parameters / _MEGA:,.1f} M parameters."
    if advice.forecast is None:
        return parameters
    sizes, own = advice.seconds_of_sizes(), advice.forecast.seconds
    larger = {size: seconds for size, seconds in sizes.items() if seconds > own * (1 + _SAME)}
    smaller = {size: seconds for size, seconds in sizes.items() if seconds < own * (1 - _SAME)}
    limit = advice.time_limit_seconds
    if advice.is_cut_short:
        nearest = [f" {size} would take some {_seconds(seconds)} by operations." for size, seconds in smaller.items()]
        return f"{parameters} It is slow for the time there is.{nearest[-1] if nearest else ''}"
    fitting = [size for size, seconds in larger.items() if limit is not None and seconds <= limit]
    if fitting:
        about = f"{fitting[-1]} would take some {_seconds(larger[fitting[-1]])} by operations"
        return f"{parameters} There is time for a larger model, which is mostly better (Turc et al. 2019): {about}."
    nearest = [f" {size} would take some {_seconds(seconds)} by operations." for size, seconds in larger.items()]
    return f"{parameters}{nearest[0] if nearest else ''}"


def _shape(config: EncoderConfig) -> str:
    return f"{config.num_hidden_layers} layers, {config.hidden_size} wide"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seconds(seconds: float) -> str:
    """For people.

    >>> _seconds(7.94), _seconds(125), _seconds(7500), _seconds(200_000)
    ('7.9 s', '2 min 5 s', '2 h 5 min', '2.3 days')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 2 * 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86400:.1f} days"
