"""Every number of the configuration has a range, in which its default lies."""

import dataclasses
import typing
from dataclasses import dataclass

import pytest

from cosa.config import Config, load_config
from cosa.config.limits import Section
from cosa.core.errors import UserError
from cosa.core.ranges import DOMAIN, Range, Several, option

BEYOND = 10**30


def holds_numbers(kind):
    """Whether a type of a field is a number, or may hold some, as a dictionary may."""
    return kind in (int, float, dict) or any(map(holds_numbers, typing.get_args(kind)))


def options(section, prefix=""):
    """(key, kind, domain or None) of each option."""
    kinds = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield from options(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, kind, field.metadata.get(DOMAIN)


def without_a_range(section):
    return [key for key, kind, domain in options(section) if holds_numbers(kind) and domain is None]


def sections(section):
    yield section
    for kind in typing.get_type_hints(section).values():
        if dataclasses.is_dataclass(kind):
            yield from sections(kind)


NUMBERS = [(key, domain) for key, _, domain in options(Config) if isinstance(domain, Range)]
LISTS = [(key, domain) for key, _, domain in options(Config) if isinstance(domain, Several)]


def test_every_number_has_a_range():
    assert without_a_range(Config) == []
    assert all(issubclass(section, Section) for section in sections(Config)), "who checks them"
    assert len(NUMBERS) > 80 and len(LISTS) == 2


@dataclass(frozen=True)
class Forgotten(Section):
    """A section."""

    told: int = option(1, Range(1, 2))
    silent: float = 0.5
    nested: tuple[tuple[float, ...], ...] = ()
    mixed: str | tuple[int, ...] = ""
    free: dict = dataclasses.field(default_factory=dict)
    word: str = "x"


def test_a_number_without_a_range_is_found():
    assert without_a_range(Forgotten) == ["silent", "nested", "mixed", "free"]


def refused(key, value):
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{key}={value}"])
    message = str(caught.value)
    assert message.startswith(key), message
    return message


@pytest.mark.parametrize("key, domain", NUMBERS)
def test_no_number_leaves_its_range(key, domain):
    if key == "model.encoder_options":
        key += ".depth"
    for value in (BEYOND, -BEYOND, domain.high * 1.01 + 1, domain.low - abs(domain.low) / 2 - 1):
        if type(domain.high) is int:
            value = int(value)
        message = refused(key, value)
        assert message.endswith(f": it must lie in {domain} (on the command line)")


@pytest.mark.parametrize("key, domain", LISTS)
def test_lists_have_a_length_and_numbers_a_range(key, domain):
    assert "give at least one" in refused(key, "[]")
    assert "at most 32" in refused(key, [1.0] * 33)
    assert f"each must lie in {domain.each}" in refused(key, "[1.0, 1e9]")


def test_the_sentence_names_key_value_and_range():
    assert refused("train.batch_size", 10**9) == (
        "train.batch_size is 1000000000: it must lie in 1..65536 (on the command line)")
    assert refused("model.encoder_options.embed_dim", BEYOND).startswith(
        f"model.encoder_options.embed_dim is {BEYOND}: ")
    assert refused("model.encoder_options.depths", [2, BEYOND])
    assert len(refused("train.batch_size", 10**400)) < 200


@pytest.mark.parametrize("key", ["output", "name"])
def test_what_names_the_run_folder_is_not_empty(key):
    assert "must not be empty" in refused(key, "''")


@pytest.mark.parametrize("overrides", [
    ["train.iterations=100000000"], ["train.batch_size=4096"], ["augment.crop_size=2048"],
    ["data.workers=128"], ["train.checkpoint_every=1000000000", "train.evaluate_every=1000000000"],
    ["threshold.queue_length=10000"], ["data.scenes_train=50000"], ["model.decoder_width=4096"],
    ["evaluate.scales=[0.25, 4.0]"], ["optimizer.lr=10"], ["model.encoder_options.depth=96"],
    ["optimizer.beta2=0.99999"], ["method.perplexity_beta=100"], ["seed=9223372036854775807"],
])
def test_what_somebody_may_want_is_not_refused(overrides):
    load_config(None, overrides)
