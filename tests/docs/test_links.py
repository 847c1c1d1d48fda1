"""Links lead somewhere, and all pages are found from the README."""

import posixpath

import pytest

from tests.helpers.pages import DOCS, PAGES, README, Page, anchors
from tests.helpers.tiny import ROOT

MOST_LINES = 200
MOST_BYTES = 150_000


def target(page, link):
    """(path from the project's folder, anchor) of a link on a page."""
    path, _, anchor = link.partition("#")
    if not path:
        return page.name, anchor
    return posixpath.normpath(posixpath.join(posixpath.dirname(page.name), path)), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page):
    for link in page.links:
        path, anchor = target(page, link)
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in Page(path).anchors, link


def test_anchors_are_those_of_github():
    assert anchors(["On several GPUs", "Training, `demo`", "J and F", "Stop, resume: how?"]) == {
        "on-several-gpus", "training-demo", "j-and-f", "stop-resume-how"}
    assert anchors(["Scores", "Scores", "Run folder"]) == {"scores", "scores-1", "run-folder"}


def test_readme_is_a_front_door():
    assert len(README.text.splitlines()) <= MOST_LINES
    listed = {target(README, link)[0] for link in README.links}
    assert {page.name for page in DOCS} <= listed


def test_figures_of_photographs_are_said_to_compare_with_nothing():
    rows = [line for line in README.prose.splitlines() if line.startswith("| photographs")]
    assert len(rows) == 1 and "not comparable with published ones" in rows[0]


def test_pictures_are_small_and_shown():
    shown = {target(page, link)[0] for page in PAGES for link in page.links}
    for path in (ROOT / "docs/pictures").iterdir():
        assert f"docs/pictures/{path.name}" in shown, path
        assert path.stat().st_size < MOST_BYTES, path
