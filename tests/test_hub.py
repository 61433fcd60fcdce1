"""The Hub is asked for what was named, and only for a name that can be one."""

from pathlib import Path

import pytest

from bertsmith import hub
from bertsmith.errors import ModelError


def test_the_named_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert hub.fetch("google-bert/bert-base-uncased", ("config.json",), "a model folder") == tmp_path
    assert hub.fetch("google-bert/bert-base-uncased@refs/pr/3", ("config.json",), "a model folder") == tmp_path
    assert asked == [("google-bert/bert-base-uncased", revision, ["config.json"]) for revision in (None, "refs/pr/3")]


@pytest.mark.parametrize("name", ["bert", "/etc/models", "../up/there", "a/b/c", "-x/y", "a/b?", "a/b@", "a/b@x@y"])
def test_other_names_never_reach_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(ModelError, match="a model folder, or the organisation/name"):
        hub.fetch(name, ("config.json",), "a model folder")


def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("401 Client Error\nlong explanation")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"no/where: .*Hugging Face Hub \(401 Client Error\)$"):
        hub.fetch("no/where", ("config.json",), "a model folder")


def test_so_is_what_the_network_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    network = pytest.importorskip("httpx2")

    def refuse(*_: object, **__: object) -> str:
        raise network.ProxyError("407 Proxy Authentication Required")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"\(407 Proxy Authentication Required\)$"):
        hub.fetch("no/where", ("config.json",), "a model folder")
