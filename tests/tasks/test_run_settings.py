"""What a verb that trains can be told reaches the loop."""

from pathlib import Path
from typing import Any

import pytest

from bertsmith.errors import SettingsError
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_settings import RunSettings
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.plan import TrainSettings


def plan(**options: Any) -> TrainSettings:
    settings = RunSettings(out=Path("out"), **options)
    return settings.train_settings(budget="10m", learning_rate=2e-4, evaluate_every="5%")


def test_every_setting_of_the_optimizer_is_passed_on() -> None:
    options: dict[str, Any] = {
        "optimizer": "muon",
        "schedule": "wsd",
        "decay_share": 0.3,
        "warmup_share": 0.05,
        "warmup_steps": 7,
        "weight_decay": 0.2,
        "beta1": 0.8,
        "beta2": 0.98,
        "epsilon": 1e-7,
        "max_grad_norm": 3.0,
    }
    chosen = plan(ema_decay=0.99, **options)
    assert chosen.optimizer == OptimizerSettings(learning_rate=2e-4, **options)
    assert chosen.ema_decay == 0.99


def test_what_is_done_about_faults_is_passed_on() -> None:
    chosen = plan(max_skipped_steps=3, skip_spikes=6.0, auto_batch=True)
    assert (chosen.max_skipped_steps, chosen.skip_spikes, chosen.auto_batch) == (3, 6.0, True)
    by_default, loop = plan(), TrainSettings()
    for name in ("max_skipped_steps", "skip_spikes", "auto_batch"):
        assert getattr(by_default, name) == getattr(loop, name)


def test_the_defaults_are_those_of_the_loop() -> None:
    assert plan().optimizer == OptimizerSettings(learning_rate=2e-4)
    assert plan().ema_decay is TrainSettings().ema_decay


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_share": 1.0}, "decay_share is 1.0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"ema_decay": 0.0}, "ema_decay is 0.0"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**options)


def test_python_is_told_what_a_settings_file_is_told(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": tmp_path / "m", "train": tmp_path / "a.csv", "out": "o", "learning_rate": 1}
    settings = FinetuneSettings(**given)
    assert (settings.model, settings.train) == (str(tmp_path / "m"), str(tmp_path / "a.csv"))
    assert (settings.out, settings.learning_rate) == (Path("o"), 1.0)
    for wrong, message in (
        ({"batch_size": "16"}, "batch_size: text '16' given, a whole number wanted"),
        ({"learning_rate": "1e-4"}, "learning_rate: text '1e-4' given, a number wanted"),
        ({"precision": "bf61"}, 'precision: .* Did you mean "bf16"'),
        ({"resume": 1}, "resume: whole number 1 given, true or false wanted"),
    ):
        with pytest.raises(SettingsError, match=message):
            FinetuneSettings(**given | wrong)
    with pytest.raises(SettingsError, match=r'long: .* Did you mean "windows"'):
        ClassificationSettings(long="window")  # type: ignore[arg-type]
