"""What a run logs, for TensorBoard as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosa.core.distributed import is_main
from cosa.core.errors import UserError
from cosa.core.text import NAME, shown

_NO_SCALARS = {"iteration", "images", "seconds", "training_seconds"}


class Board:
    """Writes scalars and pictures of a training while it is :meth:`opened`.

    Training and evaluations have files of their own: a run that resumes may repeat the evaluation
    of an iteration whose training it does not repeat.

    Args:
        folder: of its files.
        wanted: whether there are to be any (``train.tensorboard``).

    Raises:
        UserError: they are wanted, and the package is not installed.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        if wanted and find_spec("tensorboard") is None:
            raise UserError("train.tensorboard needs the package tensorboard: pip install "
                            "tensorboard, or set train.tensorboard=false")
        self.folder, self.wanted = folder, wanted
        self._training: Any = None
        self._evaluations: Any = None

    @contextmanager
    def opened(self, iteration: int, evaluation_due: bool) -> Iterator[None]:
        """Write within the context, in the first process alone.

        What an interrupted run wrote of what is to come is taken back.

        Args:
            iteration: how many are done.
            evaluation_due: whether the next thing is an evaluation after this iteration.
        """
        if not self.wanted or not is_main():
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        first = iteration if evaluation_due else iteration + 1
        with (
            SummaryWriter(str(self.folder / "training"), purge_step=iteration + 1) as training,
            SummaryWriter(str(self.folder / "evaluations"), purge_step=first) as evaluations,
        ):
            self._training, self._evaluations = training, evaluations
            try:
                yield
            finally:
                self._training = self._evaluations = None

    def log(self, record: Mapping[str, float | None]) -> None:
        """Add a line of metrics.jsonl."""
        if self._training is not None:
            _add(self._training, "training", record, record["iteration"])

    def log_scores(
        self, iteration: int, split: str, scores: Mapping[str, Any],
        panels: Iterable[tuple[str, Path]],
    ) -> None:
        """Add the scores of an evaluation, those of the classes included, and its pictures.

        Args:
            split: "val" or "test", the images that they are of.
            panels: name and PNG file of each.
        """
        if self._evaluations is None:
            return
        _add(self._evaluations, split, scores, iteration)
        for kind in ("iou", "cam_iou"):
            _add(self._evaluations, f"{split}_{kind}", scores.get(kind, {}), iteration)
        for name, path in panels:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            tag = _tag(f"{split}_panels", name)
            self._evaluations.add_image(tag, pixels, iteration, dataformats="HWC")
        self._evaluations.flush()


def _add(writer: Any, group: str, values: Mapping[str, Any], iteration: int) -> None:
    """Add the numbers among the values."""
    for key, value in values.items():
        if key not in _NO_SCALARS and isinstance(value, int | float):
            writer.add_scalar(_tag(group, key), value, iteration)


def _tag(group: str, name: Any) -> str:
    """The name under which TensorBoard shows something."""
    return f"{group}/{shown(name, NAME)}"
