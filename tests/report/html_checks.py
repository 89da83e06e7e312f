"""Reading a page the way a strict reader does."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Page:
    """What a page holds.

    Attributes:
        text: the text that a reader sees, tags removed.
        tags: every start tag with its attributes.
        problems: tags that are not closed in order.
    """

    text: str = ""
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]

    def count(self, tag: str, class_: str = "") -> int:
        wanted = set(class_.split())
        return sum(name == tag and wanted <= set((a.get("class") or "").split()) for name, a in self.tags)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.page.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.page.text += data

    def close(self) -> None:
        super().close()
        self.page.problems += [f"<{tag}> is never closed" for tag in self._open]


def read_page(html: str) -> Page:
    """Parse `html`."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page
