"""The page: what it shows, what it must never contain."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from worlds import ColourEncoder, render

from elastivid.search.index import Index
from elastivid.search.report import write_report

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.fixture
def index(tmp_path) -> Index:
    folder = tmp_path / "videos"
    folder.mkdir()
    render(folder / "a <b> & 'c' #1.mp4", ("red", 6), ("blue", 6))
    render(folder / "tall.mp4", ("green", 5), size=(48, 96))
    (folder / "noise.mp4").write_bytes(b"noise" * 99)
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add(folder)
    return index


def test_the_page_shows_moments_and_what_was_spent(tmp_path, index):
    results = [index.search_with_cost(query, top=3) for query in ("red", "green")]
    path = write_report(tmp_path / "out" / "r.html", results, index, title="Mine")
    page = Page(path.read_text())
    text = " ".join(page.words)
    assert "Mine" in text
    for query in ("red", "green"):
        assert query in page.words
    assert "a <b> & 'c' #1.mp4" in text
    assert "0:00.0 \u2013 0:06.0" in text
    assert "256 tokens, 0.00 GMACs" in text
    assert "x realtime" in text
    assert "noise.mp4" in text
    assert re.search(r"failed: .+", text)
    shown = sum(len(result.moments) for result in results)
    pictures = page.values("img", "src")
    assert len(pictures) == shown * 5
    assert all(picture.startswith("data:image/jpeg;base64,/9j/") for picture in pictures)


def test_videos_are_linked_by_relative_path_and_time(tmp_path, index):
    path = write_report(tmp_path / "out" / "r.html", [index.search_with_cost("red", top=1)], index)
    (address,) = Page(path.read_text()).values("button", "data-video")
    assert address == "../videos/a%20%3Cb%3E%20%26%20%27c%27%20%231.mp4#t=0.00,6.00"


def test_nothing_outside_the_page_is_named(tmp_path, index):
    path = write_report(tmp_path / "r.html", [index.search_with_cost("red")], index)
    text = path.read_text()
    assert not re.search(r"https?:|(src|href)=[\"']?//|@import|url\(", text)
    assert str(tmp_path) not in re.sub(r'title="[^"]*"', "", text).replace(str(tmp_path / "videos"), "")


def test_words_cannot_become_markup(tmp_path, index, monkeypatch):
    monkeypatch.setattr(ColourEncoder, "embed_texts", lambda self, texts: [[1.0, 0.0, 0.0]])
    query = "<script>alert(1)</script>\"'&"
    path = write_report(tmp_path / "r.html", [index.search_with_cost(query)], index, title="<b>")
    page = Page(path.read_text())
    assert query in page.words
    assert path.read_text().count("<script>") == 1, "the page's own"


def test_known_answers_are_marked(tmp_path, index):
    results = [index.search_with_cost(query, top=2) for query in ("red", "green", "blue")]
    right, wrong = results[0].moments[0].path, str(tmp_path / "elsewhere.mp4")
    path = write_report(tmp_path / "r.html", results, index, answers={"red": right, "green": right, "blue": wrong})
    text = " ".join(Page(path.read_text()).words)
    assert text.count("right at first place") == 1 + 1, "the badge and the summary"
    assert "right one at place 2" in text
    assert "right one not shown" in text
    assert "1 of 3" in text


def test_a_file_that_vanished_is_said_and_does_not_stop_the_page(tmp_path, index):
    result = index.search_with_cost("green", top=1)
    Path(result.moments[0].path).unlink()
    page = Page(write_report(tmp_path / "r.html", [result], index).read_text())
    assert any("no picture:" in words for words in page.words)
    assert page.values("button", "data-video") == []


def test_no_moments_is_a_page_too(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    (folder / "bad.mp4").write_bytes(b"bad")
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add(folder)
    page = Page(write_report(tmp_path / "r.html", [index.search_with_cost("red")], index).read_text())
    assert any("Nothing found" in words for words in page.words)
