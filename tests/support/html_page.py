"""Parser of HTML pages for tests."""

import re
from html.parser import HTMLParser

NEVER_CLOSED = {"meta", "img", "br", "wbr", "link"}


class Page(HTMLParser):
    """Ids, references and text of a page; parsing fails if an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.sources, self.tags, self.open, self.words = [], [], [], set(), [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in NEVER_CLOSED:
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self._note(attributes)

    def _note(self, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                (self.references if value.startswith("#") else self.sources).append(value)
            self.references += re.findall(r"url\((#[^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
