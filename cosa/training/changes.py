"""What a training says of its schedule, and of the options that it changes where it goes on."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from cosa.config import Config, from_dict, upgraded
from cosa.config.loading import each_option
from cosa.config.schedule import beyond, settings
from cosa.core.declared import shown
from cosa.core.terminal import note, say
from cosa.training.optimizer import learning_rate_factor


def tell_schedule(given: Config, config: Config, images: int) -> None:
    """One line about the iterations that passes and shares have become, if there were any.

    And one about what such a training never comes to, so short is it.
    """
    made, never = settings(config, given), beyond(config)
    if never:
        note(f"a training of train.iterations={config.train.iterations} does not come to "
             f"{', '.join(never)}: give numbers below 1, shares of the training, or lower ones")
    if made:
        say(f"schedule for {images} images in batches of {config.train.batch_size}: "
            f"{', '.join(made)}")


def told(saved: Any, now: Config, iteration: int) -> str:
    """One sentence about options, and about the learning rate, that differ; "" if none does.

    Args:
        saved: the configuration that the checkpoint was trained with, as nested dictionaries, of
            this version or an earlier one.
        now: that of the training that goes on.
        iteration: the next one.

    Raises:
        UserError: ``saved`` is no configuration.
    """
    before = from_dict(_known(upgraded(saved), now), "the checkpoint's configuration")
    pairs = zip(each_option(before), each_option(now), strict=True)
    changed = [f"{key}={shown(value)} instead of {shown(old)}"
               for (_, old, _), (key, value, _) in pairs if value != old]
    if not changed:
        return ""
    was, becomes = (_rate(config, iteration) for config in (before, now))
    rate = f"; the learning rate is {becomes:.3g}, which was {was:.3g}" if becomes != was else ""
    return f"going on at iteration {iteration} with {', '.join(changed)}{rate}"


def _rate(config: Config, iteration: int) -> float:
    """The learning rate of an iteration; of the last one, once there are no more."""
    total, options = config.train.iterations, config.optimizer
    return options.lr * learning_rate_factor(
        min(iteration, total - 1), total, options.warmup_iterations, options.power
    )


def _known(saved: Any, section: Any) -> Any:
    """What is saved, without options that there are no more."""
    if not isinstance(saved, dict):
        return saved
    return {
        item.name: _known(saved[item.name], value) if is_dataclass(value) else saved[item.name]
        for item in fields(section) if item.name in saved
        for value in (getattr(section, item.name),)
    }
