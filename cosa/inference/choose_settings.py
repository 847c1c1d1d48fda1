"""From the options, and from what the weights say where they are silent, to the settings."""

from __future__ import annotations

import math

import numpy as np
import torch

from cosa.checkpoint import TrainedNetwork
from cosa.core.errors import UserError, did_you_mean
from cosa.crf import PRESETS
from cosa.data.reading import Reading
from cosa.inference.command_line import Options
from cosa.inference.labels import ImageLabels
from cosa.inference.segmenter import run_crf
from cosa.inference.settings import BACKENDS, CrfSettings, Settings


def choose_crf(options: Options) -> CrfSettings | None:
    """The preset with the numbers that replace its own.

    Raises:
        UserError: there is no such preset or backend here.
    """
    if options.crf is None:
        return None
    if options.crf not in PRESETS:
        known = f"; choose one of {', '.join(PRESETS)}"
        raise UserError(f"--crf {options.crf or repr('')} is no preset"
                        f"{did_you_mean(options.crf, PRESETS) or known}")
    own = {
        "iterations": options.crf_iterations,
        "gaussian": options.crf_gaussian,
        "bilateral": options.crf_bilateral,
    }
    given = {key: value for key, value in own.items() if value is not None}
    crf = CrfSettings.of_preset(options.crf, options.crf_backend or BACKENDS[0], **given)
    # An image of four pixels tells whether it works before any work is done.
    run_crf(np.zeros((2, 2, 3), np.uint8), torch.full((2, 2, 2), 0.5), crf)
    return crf


def choose_settings(
    options: Options,
    network: TrainedNetwork,
    crf: CrfSettings | None,
    labels: ImageLabels | None,
) -> Settings:
    """The options, with what the weights say for those that are not given.

    Raises:
        UserError: the stride leaves gaps, or there is no threshold for the pseudo-labels.
    """
    evaluation = network.config.evaluate
    window = options.window or network.image_size
    stride = options.stride or math.ceil(2 * window / 3)
    if stride > window:
        raise UserError(f"--stride {stride} leaves gaps between windows of {window}: lower it")
    threshold = None
    if "cpl" in options.save:
        threshold = network.thresholds[0] if options.threshold is None else options.threshold
        if threshold is None:
            raise UserError(f"{options.weights} holds no threshold for pseudo-labels: give one, "
                            "--threshold T")
    return Settings(
        size=options.size or network.image_size,
        scales=tuple(options.scales or evaluation.scales),
        flip=evaluation.flip if options.flip is None else options.flip,
        mode=options.mode,
        window=window,
        stride=stride,
        max_size=options.max_size,
        crf=crf,
        threshold=threshold,
        min_class_score=(evaluation.min_class_score if options.min_class_score is None
                         else options.min_class_score),
        labels=labels and labels.digest,
        reading=choose_reading(options, network),
    )


def choose_reading(options: Options, network: TrainedNetwork) -> Reading:
    """What becomes of the values in image files: by default what became of the training's."""
    trained = Reading.of(network.config.data)
    return Reading(options.value_range or trained.value_range, options.bands or trained.bands)
