"""From passes and shares of a training to iterations, once the images are counted.

``train.passes`` says how long a training is whatever the number of its images, and every option
that is a point in it, or a distance (``cosa.core.ranges.Moment``), may be a share of it. Whoever
trains calls :func:`settled` first: all else sees whole numbers of iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from cosa.config.loading import each_option
from cosa.config.sections import Config
from cosa.core.errors import UserError
from cosa.core.ranges import DOMAIN, Moment


def settled(config: Config, images: int) -> Config:
    """The configuration with iterations in the place of passes and shares.

    Args:
        images: how many are trained on.

    Returns:
        ``train.passes`` is 0 there: it means the same whatever becomes of the data set.

    Raises:
        UserError: so many passes are more iterations than there may be.
    """
    train = config.train
    total = train.iterations
    if train.passes:
        total = max(1, round(train.passes * images / train.batch_size))
    try:
        whole = dataclasses.replace(train, iterations=total, passes=0.0)
    except ValueError as error:
        raise UserError(f"train.passes={train.passes:g} over {images} images in batches of "
                        f"{train.batch_size}: train.{error}") from error
    return _in_iterations(dataclasses.replace(config, train=whole), total)


def is_settled(config: Config) -> bool:
    """Whether the schedule is in iterations already."""
    return not config.train.passes and not any(
        isinstance(value, float) for _, value in moments(config)
    )


def moments(config: Config) -> Iterator[tuple[str, int | float]]:
    """Key and value of each option that is a point in the training, or a distance."""
    for key, value, domain in each_option(config):
        if isinstance(domain, Moment):
            yield key, value


def settings(config: Config, given: Config) -> list[str]:
    """What :func:`settled` made of ``given``, as the overrides that say the same."""
    made, before = dict(moments(config)), dict(moments(given))
    found = [("train.iterations", config.train.iterations)] if given.train.passes else []
    found += [(key, value) for key, value in made.items() if isinstance(before[key], float)]
    return [f"{key}={value}" for key, value in found]


def beyond(config: Config) -> list[str]:
    """What is to begin or to end in a settled training and never does, as ``key=value``."""
    loss, total = config.loss, config.train.iterations
    wanted = {
        "method.cls_iterations": loss.c2s or loss.c2s_aux or loss.s2c or loss.csc,
        "method.s2c_start": loss.s2c,
        "optimizer.warmup_iterations": True,
    }
    for item in dataclasses.fields(config.regularizers):
        weight = getattr(config.regularizers, item.name).weight
        wanted[f"regularizers.{item.name}.start"] = weight
    late = [(key, value) for key, value in moments(config) if value >= total]
    return [f"{key}={value}" for key, value in late if wanted.get(key)]


def _in_iterations(section: Any, total: int) -> Any:
    """A section, and those in it, with shares of ``total`` as whole numbers."""
    changed = {}
    for item in dataclasses.fields(section):
        value, domain = getattr(section, item.name), item.metadata.get(DOMAIN)
        if dataclasses.is_dataclass(value):
            changed[item.name] = _in_iterations(value, total)
        elif isinstance(domain, Moment) and isinstance(value, float):
            changed[item.name] = max(domain.low, round(value * total))
    return dataclasses.replace(section, **changed)
