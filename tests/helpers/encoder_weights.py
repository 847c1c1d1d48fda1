"""Where encoder weights are looked up, without anything of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosa.encoders import pretrained


def forget_the_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing is downloaded, and neither the project's weights nor a cache are seen."""
    monkeypatch.setattr(pretrained, "PROJECT_FOLDER", folder / "project")
    monkeypatch.setattr(pretrained, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(pretrained.constants, "HF_HUB_CACHE", str(folder / "cache"))
