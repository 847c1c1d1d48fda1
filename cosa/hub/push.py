"""The command that pushes a run: python -m cosa.hub push RUN user/name ..."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token

import cosa
from cosa.core.errors import UserError
from cosa.core.files import writing
from cosa.core.hub import LOGIN, Model, hub_errors, hub_is_reachable, parse_model
from cosa.core.terminal import Parser, note, say
from cosa.hub.card import UNSTATED
from cosa.hub.files import write_files
from cosa.hub.run import Trained, read_run

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")


def licence(text: str) -> str:
    """A licence as the hub writes it: ``mit``, ``apache-2.0``, ``cc-by-nc-4.0``, ``other``."""
    if not _LICENCE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no licence as the hub writes it: mit, apache-2.0, cc-by-nc-4.0, other"
        )
    return text


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, typed."""
    parser = Parser(prog="python -m cosa.hub", description=main.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    push = actions.add_parser("push", help="push a run", description=main.__doc__)
    add = push.add_argument
    add("run", metavar="RUN", help="the folder of a run")
    add("name", metavar="USER/NAME", help="of the model on the hub; it is made if it is new")
    add("--licence", "--license", type=licence, default=UNSTATED, metavar="ID",
        help=f"of the weights, such as mit or cc-by-nc-4.0; default: {UNSTATED}")
    add("--private", action="store_true", help="let nobody else see it")
    add("--best", action="store_true",
        help="best.pth, chosen by its validation score, not the final network")
    add("--no-panels", dest="panels", action="store_false",
        help="leave out the pictures of the last evaluation, which show images of the data set")
    add("--dry-run", metavar="FOLDER",
        help="write the files to a new folder, to be looked at, and push nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Push the network of a run to the Hugging Face hub, with a card of what was measured."""
    given = read_arguments(arguments)
    model = parse_model(given.name, "user/name")
    if model.revision != constants.DEFAULT_REVISION:
        raise UserError(f"{given.name} names a revision, and a push makes a new one: leave it out")
    if not given.dry_run:
        check_hub(model)
    trained = read_run(given.run, given.best, given.panels)
    if given.licence == UNSTATED:
        note(f"no licence is stated, so nobody may know what is allowed: --licence ID; the card "
             f"says {UNSTATED}")
    if given.dry_run:
        dry_run(Path(given.dry_run), model, trained, given.licence)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        names = write_files(Path(folder), model, trained, given.licence)
        if trained.panels:
            note(f"{len(trained.panels)} panels show images of the data set: --no-panels leaves "
                 "them out")
        say(push(model, Path(folder), names, given.private))
    return 0


def dry_run(folder: Path, model: Model, trained: Trained, stated: str) -> None:
    """Write the files to a new folder, and say what they are.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--dry-run {folder} is not empty: name a new folder")
    names = write_files(folder, model, trained, stated)
    say(*(f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB" for name in names),
        f"nothing was pushed; what would go to {model.page} is in {folder}")


def check_hub(model: Model) -> None:
    """Tell, before any work, that nothing can be pushed.

    Raises:
        UserError: the hub cannot be reached, or nobody is logged in.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE forbids to ask the hub: unset it, or look at the files "
                        "with --dry-run FOLDER")
    if not hub_is_reachable():
        raise UserError(f"{constants.ENDPOINT} cannot be reached: check the network and "
                        "HF_ENDPOINT, or look at the files with --dry-run FOLDER")
    if get_token() is None:
        raise UserError(f"{model}: who pushes must be known to the hub: {LOGIN}, to a token that "
                        "may write")


def push(model: Model, folder: Path, names: Sequence[str], private: bool) -> str:
    """Put files of a folder into the model's repository as one commit; pictures there are replaced.

    Returns:
        A sentence for people.

    Raises:
        UserError: the hub refuses, or the repository is public and is not to be.
    """
    api = HfApi(library_name="cosa", library_version=cosa.__version__)
    with hub_errors(model):
        api.create_repo(model.repository, private=True if private else None, exist_ok=True)
        there = api.model_info(model.repository)
        if private and not there.private:
            raise UserError(f"{model.page} is there already and public: make it private in its "
                            "settings, or choose another name; nothing was pushed")
        present = [file.rfilename for file in there.siblings or ()]
        stale = [name for name in present if name.startswith("panels/") and name not in names]
        commit = api.create_commit(
            model.repository,
            [*(CommitOperationAdd(name, folder / name) for name in names),
             *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"Push a network of CoSA {cosa.__version__}",
        )
    return f"{model.page}: {len(names)} files, as commit {commit.oid[:10]}; use it as {model}"
