"""One file of a model on the Hugging Face hub: a safetensors file, never code and never pickle."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE
from cosa.core.foreign import MEGABYTE
from cosa.core.terminal import note

PREFIX = "hf-hub:"
"""What the name of a model on the hub begins with, where a file could be named as well."""

WEIGHTS = "model.safetensors"
"""The only file that is ever fetched."""

MOST_WEIGHTS = 20_000 * MEGABYTE
"""Bytes of it: five billion numbers of four bytes."""

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>\w[\w./-]{{0,199}}))?", re.ASCII
)

LOGIN = "log in (hf auth login), or set HF_TOKEN"


@dataclass(frozen=True)
class Model:
    """A model on the hub."""

    repository: str
    """``user/name``."""
    revision: str = constants.DEFAULT_REVISION
    """A branch, tag or commit."""

    def __str__(self) -> str:
        default = self.revision == constants.DEFAULT_REVISION
        return PREFIX + self.repository + ("" if default else f"@{self.revision}")

    @property
    def page(self) -> str:
        """Its address for people."""
        return f"{constants.ENDPOINT}/{self.repository}"


def is_model(name: str | Path) -> bool:
    """Whether a name is one on the hub, not that of a file."""
    return str(name).startswith(PREFIX)


def parse_model(name: str, example: str = f"{PREFIX}user/name") -> Model:
    """The model of ``user/name`` or ``user/name@revision``, with or without the prefix.

    Args:
        example: of a right name, for the error.

    Raises:
        UserError: it is no such name.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    # Two dots would lead out of the cache's folder, two hyphens stand for the slash there.
    if not match or ".." in name or "--" in match["repository"]:
        raise UserError(f"'{name}' is no name of a model on the hub: write {example}, or "
                        f"{example}@revision where another revision is meant")
    return Model(match["repository"], match["revision"] or constants.DEFAULT_REVISION)


def fetch(name: str) -> Path:
    """The weights of a model on the hub: a file in the local cache, downloaded if need be.

    The hub is asked whether the cached file is still the newest. Where it cannot be reached, a note
    says which commit is taken from the cache; with HF_HUB_OFFLINE=1 it is not asked at all.

    Args:
        name: ``hf-hub:user/name`` or ``hf-hub:user/name@revision``.

    Raises:
        UserError: there is no such model, revision or file, it must not be read, it is larger than
            ``MOST_WEIGHTS``, or the hub cannot be reached and the file is not in the cache.
    """
    model = parse_model(name)
    if constants.HF_HUB_OFFLINE:
        return _cached(model, "HF_HUB_OFFLINE forbids to ask the hub")
    if not hub_is_reachable():
        path = _cached(model, f"{constants.ENDPOINT} cannot be reached")
        note(f"{constants.ENDPOINT} cannot be reached: {model} is taken from the cache, as of "
             f"commit {path.parent.name[:10]}")
        return path
    with hub_errors(model):
        url = hf_hub_url(model.repository, WEIGHTS, revision=model.revision)
        size = get_hf_file_metadata(url).size
        if size is None or size > MOST_WEIGHTS:
            says = "does not say how large it is" if size is None else (
                f"is {size / MEGABYTE:.0f} MB large")
            raise UserError(f"{model}: its {WEIGHTS} {says}, and at most "
                            f"{MOST_WEIGHTS / MEGABYTE:.0f} MB are fetched")
        return Path(hf_hub_download(model.repository, WEIGHTS, revision=model.revision))


def _cached(model: Model, why: str) -> Path:
    """The file in the local cache.

    Raises:
        UserError: it is not there.
    """
    with hub_errors(model, f"{model} is not in the cache {constants.HF_HUB_CACHE}, and {why}: "
                           "fetch it once where the hub can be reached, or give a file"):
        return Path(hf_hub_download(model.repository, WEIGHTS, revision=model.revision,
                                    local_files_only=True))


@contextmanager
def hub_errors(model: Model, absent: str = "") -> Iterator[None]:
    """What the hub's client raises in the block becomes one sentence.

    Args:
        absent: that sentence where the file is not in the local cache.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    # Besides OSError the errors of whichever HTTP client the hub's package uses, RuntimeError from
    # its compiled part, and what it raises for an answer of another form than it expects.
    except (HTTPError, *DAMAGE) as error:
        if absent and isinstance(error, LocalEntryNotFoundError):
            raise UserError(absent) from error
        raise UserError(f"{model}: {_explained(error, model)}") from error


def _explained(error: Exception, model: Model) -> str:
    """What went wrong and what to do, as clauses."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"who may use it is decided by its owner; ask at {model.page}, then {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision '{model.revision}'; those that it has are at {model.page}"
    if isinstance(error, RepositoryNotFoundError):
        return (f"there is no such model at {constants.ENDPOINT}, or it is private; correct the "
                f"name, or {LOGIN}")
    if isinstance(error, DisabledRepoError):
        return f"the hub has disabled it; see {model.page}"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return (f"it holds no {WEIGHTS}, and no other file is read, as others could run code; its "
                "owner can push it with python -m cosa.hub push")
    if isinstance(error, HfHubHTTPError) and status == 401:
        return f"the hub does not accept the token; {LOGIN} to a valid one"
    if isinstance(error, HfHubHTTPError) and status == 403:
        return f"the token does not allow that; {LOGIN} to one that does"
    reason = one_line(error, 200)
    return f"the hub did not do what was asked ({reason}); try again later, or check HF_ENDPOINT"


def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the hub's host answers; the hub's own client would retry for a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in urllib.request.getproxies():
        return True  # only the proxy can tell
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout).close()
    except OSError:
        return False
    return True
