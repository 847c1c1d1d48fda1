"""The command line of infer.py, as the stages see it."""

import dataclasses
import typing

import pytest

from cosa.core.ranges import DOMAIN
from cosa.inference import command_line
from cosa.inference.command_line import Options, default_workers, parse

REQUIRED = ["in", "--weights", "w", "--output", "o"]


def test_options_that_are_not_given_have_the_defaults_of_their_fields():
    assert parse(REQUIRED) == Options("in", "w", "o")
    for item in dataclasses.fields(Options):
        assert item.metadata["help"], item.name


def test_options_are_typed_and_cannot_be_changed():
    options = parse([
        *REQUIRED, "--save", "cpl,mask", "--overlay", "--scales", "1", "0.5", "--no-flip", "--crf",
        "--crf-gaussian", "1", "2", "--crf-bilateral", "4", "9", "5", "--batch-size", "2",
    ])
    assert options.save == ("mask", "overlay", "cpl")
    assert options.scales == (1.0, 0.5) and options.flip is False
    assert options.crf_gaussian == (1.0, 2.0) and options.crf_bilateral == (4.0, 9.0, 5.0)
    assert options.crf == "release" and options.batch_size == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.size = 3
    kinds = typing.get_type_hints(Options)
    for name, value in vars(options).items():
        plain = typing.get_args(kinds[name]) or (kinds[name],)
        plain = tuple(typing.get_origin(kind) or kind for kind in plain)
        if not isinstance(value, tuple):
            assert isinstance(value, plain), name
    hash(options)  # no list is left


@pytest.mark.parametrize("cores, processes, expected", [
    (1, 1, 1), (3, 1, 3), (40, 1, 8), (12, 4, 3), (2, 4, 1),
])
def test_threads_share_the_cores_that_the_process_may_use(
    monkeypatch, cores, processes, expected
):
    monkeypatch.setattr(command_line, "core_count", lambda: cores)
    monkeypatch.setattr(command_line.distributed, "local_world", lambda: processes)
    assert default_workers() == parse(REQUIRED).workers == expected
    assert parse([*REQUIRED, "--workers", "5"]).workers == 5


def test_every_number_has_a_range():
    kinds = typing.get_type_hints(Options)
    for item in dataclasses.fields(Options):
        words = str(kinds[item.name])
        if "int" in words or "float" in words:
            assert item.metadata[DOMAIN] is not None, item.name
    with pytest.raises(ValueError, match="--max-size is 0: it must lie in 1..1000000"):
        Options("in", "w", "o", max_size=0)
