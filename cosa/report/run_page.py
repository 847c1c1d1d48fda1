"""The report of one run."""

from __future__ import annotations

from typing import Any

from cosa.pages.markup import Markup, element, name, page
from cosa.pages.style import STYLE
from cosa.report.classes import confidences, confusion, per_class
from cosa.report.curves import curves
from cosa.report.dataset import data_section
from cosa.report.pictures import picture_section
from cosa.report.reading import Run
from cosa.report.settings import machine_section, settings_section
from cosa.report.summary import score_section, state

NOTHING = "Not recorded in this run."

NO_MASKS = "There are no masks, and without them it is not known."


def run_page(run: Run) -> str:
    """The whole page.

    Raises:
        UserError: matplotlib is not installed.
    """
    charts, known = curves(run), confidences(run)
    unknown = None
    if run.scores is not None and run.scores.get("miou") is None:
        unknown = element("p", NO_MASKS, class_="pale")
    sections = [
        section("score", "Score", score_section(run)),
        section("curves", "Curves", charts and element("div", charts, class_="grid")),
        section("classes", "Classes", per_class(run) or unknown),
        section("confusion", "Confusions", confusion(run) or unknown),
        section("confidences", "Confidences", known and element("div", known, class_="grid")),
        section("pictures", "Pictures", picture_section(run)),
        section("data", "Data set", data_section(run)),
        section("settings", "Configuration", settings_section(run)),
        section("machine", "Program and machine", machine_section(run)),
    ]
    problems = [element("p", problem, class_="warning") for problem in run.problems]
    head = element(
        "header",
        element("h1", "CoSA: ", name(run.name)),
        element("p", state(run), class_="pale"),
        problems,
        navigation(sections),
    )
    return page(f"CoSA: {run.name}", STYLE, head, [content for _, _, content in sections])


def section(key: str, title: str, content: Any) -> tuple[str, str, Markup]:
    """A part of a page: its name in addresses, its title, and the whole."""
    content = content or element("p", NOTHING, class_="pale")
    return key, title, element("section", element("h2", title), content, id=key)


def navigation(sections: list[tuple[str, str, Markup]]) -> Markup:
    """Links to the parts of a page."""
    return element("nav", (element("a", title, href=Markup(f"#{key}"))
                           for key, title, _ in sections))
