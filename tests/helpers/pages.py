"""The pages that people read, and what is on them: code, prose, tables, links and anchors."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.helpers.tiny import ROOT

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """A Markdown file of the project."""

    name: str
    """Its path from the project's folder."""

    @cached_property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """All but the blocks of code."""
        return _BLOCK.sub("", self.text)

    @cached_property
    def inline(self) -> list[str]:
        """What stands between backticks in the prose, on one line or across two."""
        return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def links(self) -> list[str]:
        """Where links and pictures lead to within the project."""
        return [link for link in _LINK.findall(self.prose) if "://" not in link]

    @property
    def anchors(self) -> set[str]:
        return anchors(re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE))

    def blocks(self, language: str) -> list[str]:
        return [textwrap.dedent(text) for _, name, text in _BLOCK.findall(self.text)
                if name == language]

    @property
    def lines(self) -> list[str]:
        """The commands in blocks, continued lines joined."""
        text = "".join(self.blocks("bash")).replace("\\\n", " ")
        return [" ".join(line.split()) for line in text.splitlines() if line]

    def commands(self, start: str) -> list[list[str]]:
        """The words after ``start`` in each command that starts so, in blocks and in the prose."""
        return [
            words(line)[len(start.split()) :]
            for line in [*self.lines, *self.inline] if words(line)[: len(start.split())]
            == start.split()
        ]

    def column(self, header: str, number: int = 0) -> list[str]:
        """The cells of a column of the table whose first line starts with ``| header ``."""
        pattern = rf"^\| {re.escape(header)} .*?(?=\n\n|\Z)"
        (table,) = re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)
        return [row.split(" | ")[number].strip("| ") for row in table.splitlines()[2:]]


def words(line: str) -> list[str]:
    """The words of a command, without variables of the environment in front or a comment behind."""
    try:
        found = shlex.split(line, comments=True)
    except ValueError:  # no command: a lone quote in the prose
        return []
    while found and re.fullmatch(r"[A-Z_]+=\S*", found[0]):
        found.pop(0)
    return found


def anchors(titles: list[str]) -> set[str]:
    """What GitHub calls titles in links: lower case, blanks as hyphens, repeated ones counted."""
    seen: Counter[str] = Counter()
    found = set()
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


README = Page("README.md")
DOCS = [Page(f"docs/{path.name}") for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES = [README, *DOCS, Page("weights/README.md")]


def page(name: str) -> Page:
    (found,) = (one for one in PAGES if one.name == name)
    return found


def cases(start: str) -> list[tuple[str, list[str]]]:
    """(page, words) of each command that starts so, each once, for ``parametrize``."""
    found = {(one.name, *given): given for one in PAGES for given in one.commands(start)}
    assert found, f"no page says `{start}`"
    return [(key[0], given) for key, given in found.items()]
