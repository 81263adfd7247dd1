"""Free text: subtitles and names are found, each hit says why, and nothing is found that is not in the index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from worlds import COLOURS, FPS, ColourEncoder, render

from elastivid.app.searching import lines_of_search
from elastivid.models.text_tokenizer import TextTokenizer
from elastivid.search import words as words_module
from elastivid.search.fusion import RANK_CONSTANT, fuse
from elastivid.search.index import Index
from elastivid.search.records import LibraryError
from elastivid.search.report import write_report
from elastivid.search.words import TextHit, Words, query_words, words_in_name
from elastivid.video.subtitles import Line, embedded_lines, parse_lines, plain, read_sidecar, sidecars

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>He plays</i> the guitar

2
00:00:05,000 --> 00:00:06,000
{\\an8}second &amp; last
of two rows
"""
VTT = """WEBVTT - a talk

NOTE nothing to see

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start
<v Ann>He <00:01.500>plays</v> the guitar

1:00:05.000 --> 1:00:06.000
an hour later
00:07.000 --> 00:06.000
ends before it starts
"""


def test_both_formats_are_read():
    assert parse_lines(SRT) == [Line(1, 2.5, "He plays the guitar"), Line(5, 6, "second & last of two rows")]
    assert parse_lines(VTT) == [Line(1, 2.5, "He plays the guitar"), Line(3605, 3606, "an hour later")]
    assert parse_lines(SRT.replace("\n", "\r\n")) == parse_lines(SRT)
    assert parse_lines("") == parse_lines("just words\n\nmore") == []


def test_no_text_is_too_long(monkeypatch):
    assert len(plain("x" * 5000)) == 1000
    monkeypatch.setattr("elastivid.video.subtitles.MAX_LINES", 1)
    assert parse_lines(SRT) == [Line(1, 2.5, "He plays the guitar")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_of_files(tmp_path, encoding):
    (tmp_path / "a.srt").write_bytes("1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode(encoding))
    assert read_sidecar(str(tmp_path / "a.srt")) == [Line(1, 2, "café")]


def test_files_beside_a_video():
    names = ["Talk.srt", "talk.en.VTT", "talk.txt", "talks.srt", "other.srt", "talk.mp4"]
    assert sidecars("/videos/talk.mp4", names) == ["Talk.srt", "talk.en.VTT"]


STYLE = (
    b"[Script Info]\n\n[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n[Events]\nFormat: Layer, Text\n"
)


def render_with_subtitles(path: Path, codec: str, lines: list[tuple[int, int, str]], colour: str = "grey") -> Path:
    """A video of five seconds with a subtitle stream."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream(codec)
        stream.codec_context.subtitle_header = STYLE
        stream.time_base = Fraction(1, 1000)
        container.start_encoding()
        picture = np.empty((48, 64, 3), np.uint8)
        picture[:] = COLOURS[colour]
        for _ in range(5 * FPS):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for start, end, text in lines:
            data = text.encode()
            if codec == "mov_text":
                data = len(data).to_bytes(2, "big") + data
            elif codec == "ass":
                data = b"0,0,Default,,0,0,0,," + data
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = end - start
            container.mux(packet)
        container.mux(video.encode(None))
    return path


EMBEDDED = [(1000, 2000, "He plays the guitar"), (3000, 4500, "A goose")]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mov_text"), ("mkv", "subrip"), ("mkv", "ass")])
def test_streams_inside_a_video(tmp_path, suffix, codec):
    path = render_with_subtitles(tmp_path / f"a.{suffix}", codec, EMBEDDED)
    with av.open(str(path)) as container:
        lines = embedded_lines(container)
    assert [line.text for line in lines] == ["He plays the guitar", "A goose"]
    assert [line.start_seconds for line in lines] == pytest.approx([1, 3], abs=0.01)
    assert [line.end_seconds for line in lines] == pytest.approx([2, 4.5], abs=0.01)
    with av.open(str(render(tmp_path / "none.mp4", ("red", 1)))) as container:
        assert embedded_lines(container) == []


def test_names_become_words():
    assert words_in_name("IMG_2041-redCar (été)") == "IMG 2041 red Car été"
    assert query_words("The red car, a RED one_two!") == ["red", "car", "one", "two"]


# in an index


@pytest.fixture
def library(tmp_path):
    """Two videos whose text is known and one without; all look the same."""
    folder = tmp_path / "Rome 2024"
    folder.mkdir()
    render(folder / "GuitarLesson.mp4", ("grey", 8))
    render(folder / "plain.mp4", ("grey", 6))
    render(folder / "talk.mp4", ("grey", 12))
    (folder / "talk.en.srt").write_text("1\n00:00:05,000 --> 00:00:07,000\nNow the zither solo\n")
    index = Index.open(tmp_path / "library.ev", encoder=Speechless())
    index.add(folder)
    return index


class Speechless(ColourEncoder):
    """Every text looks grey: pictures tell nothing apart."""

    def embed_texts(self, texts):
        return np.full((len(texts), 3), 3**-0.5, dtype=np.float32)


def names(moments):
    return [Path(moment.path).name for moment in moments]


def test_subtitles_bring_their_own_times(library):
    best = library.search("the ZITHER solos", top=3)[0]
    assert Path(best.path).name == "talk.mp4"
    assert (best.start_seconds, best.end_seconds) == (5.0, 7.0)
    assert best.reasons[0] == "subtitle: 'Now the zither solo' has 'solos', 'zither'"
    assert best.reasons[-1] == f"picture {best.score:.2f}"


def test_names_lift_a_file(library):
    best = library.search("guitars", top=3)[0]
    assert Path(best.path).name == "GuitarLesson.mp4"
    assert best.reasons == ("file name has 'guitars'", f"picture {best.score:.2f}")
    together = library.search("guitar rome", top=3)
    assert names(together)[0] == "GuitarLesson.mp4"
    assert together[0].reasons[:2] == ("file name has 'guitar'", "folder name has 'rome'")
    assert {reason for moment in together for reason in moment.reasons} >= {"folder name has 'rome'"}


def test_without_words_the_pictures_alone_decide(library):
    moments = library.search("anything else", top=3, min_confidence=0)
    assert all(moment.reasons == (f"picture {moment.score:.2f}",) for moment in moments)


def test_what_is_printed(library):
    result = library.search_with_cost("zither")
    text = "\n".join(lines_of_search(result, quiet=False))
    assert "             subtitle: 'Now the zither solo' has 'zither'" in text
    assert "unknown:" not in text
    shown = lines_of_search(replace(result, unknown=("qwzrtk",)), quiet=False)
    assert shown[-2].startswith("unknown: 'qwzrtk': no name or subtitle holds it")


def test_subtitles_inside_a_video_are_found_and_follow_it(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    many = [(10 * n, 10 * n + 5, f"line {n} " + "ü" * 400) for n in range(1, 60)]  # more than fits one message
    render_with_subtitles(folder / "a.mkv", "subrip", [*many, (3000, 4000, "a heron")])
    render_with_subtitles(folder / "b.mp4", "mov_text", [(1500, 2500, "a goose")], colour="red")
    index = Index.open(tmp_path / "library.ev", encoder=Speechless())
    assert index.add(folder).indexed == 2
    for word, name, times in (("heron", "a.mkv", (3.0, 4.0)), ("goose", "b.mp4", (1.5, 2.5))):
        best = index.search(word)[0]
        assert (Path(best.path).name, best.start_seconds, best.end_seconds) == (name, *times)
    assert len(Words(index.path).find("line", index.files()).hits) == 59
    (tmp_path / "moved").mkdir()
    (folder / "a.mkv").rename(tmp_path / "moved" / "c.mkv")
    index.add([folder, tmp_path / "moved"])
    assert Path(index.search("heron")[0].path).name == "c.mkv"
    assert index._encoder.windows_seen == 4


def test_the_page_says_why(library, tmp_path):
    page = write_report(tmp_path / "found.html", [library.search_with_cost("zither <b>")], library).read_text()
    assert "&#x27;zither&#x27;" in page
    assert '<div class="why"' in page


def test_a_changed_subtitle_is_read_without_the_video(library, tmp_path):
    folder = tmp_path / "Rome 2024"
    seen = library._encoder.windows_seen
    (folder / "talk.en.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nNow the bagpipe\n")
    (folder / "plain.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\na harp\n")
    report = library.add(folder)
    assert (report.indexed, report.unchanged) == (0, 3)
    assert library._encoder.windows_seen == seen
    assert library.search("bagpipe")[0].start_seconds == 1.0
    assert names(library.search("harp"))[0] == "plain.mp4"
    assert not any("zither" in reason for moment in library.search("zither") for reason in moment.reasons)
    (folder / "talk.en.srt").unlink()
    library.add(folder)
    assert Words(library.path).find("bagpipe", library.files()).hits == []


def test_texts_follow_moved_and_copied_files(library, tmp_path):
    folder = tmp_path / "Rome 2024"
    seen = library._encoder.windows_seen
    (folder / "GuitarLesson.mp4").rename(folder / "Ukulele.mp4")
    library.add(folder)
    assert library._encoder.windows_seen == seen
    assert Words(library.path).find("guitar", library.files()).hits == []
    assert names(library.search("ukulele"))[0] == "Ukulele.mp4"
    shutil.copy(folder / "Ukulele.mp4", folder / "Mandolin.mp4")
    library.add(folder)
    assert library._encoder.windows_seen == seen
    for name in ("Ukulele.mp4", "Mandolin.mp4"):  # one video, found under the name that was asked for
        assert names(library.search(Path(name).stem, top=9)).count(name) == 1
        assert names(library.search(Path(name).stem, top=9))[0] == name


def test_forgotten_files_leave_no_text(library, tmp_path):
    folder = tmp_path / "Rome 2024"
    (folder / "talk.mp4").unlink()
    library.add(folder)
    assert Words(library.path).find("zither", library.files()).hits == []  # kept, but not shown
    assert b"zither" in (library.path / "words.db").read_bytes()
    writer = library._store.writer(library.settings)
    gone = [record.id for record in library.files() if record.missing]
    with writer.turn():
        writer.remove(gone)
    with Words(library.path)._connect() as base:
        assert base.execute("SELECT count(*) FROM texts WHERE texts MATCH 'zither'").fetchone() == (0,)
        assert base.execute("SELECT count(*) FROM owners WHERE name LIKE '%talk.mp4'").fetchone() == (0,)


def test_texts_are_there_before_the_file_is(library, tmp_path, monkeypatch):
    """A writer that dies between both leaves texts that no search shows, and the next run completes the file."""
    folder = tmp_path / "Rome 2024"
    render(folder / "Oboe.mp4", ("grey", 4))
    monkeypatch.setattr("elastivid.search.writer.Writer._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        library.add(folder)
    monkeypatch.undo()
    assert Words(library.path).find("oboe", library.files()).hits == []
    again = Index.open(library.path, encoder=Speechless())
    assert again.add(folder).indexed == 1
    assert names(again.search("oboe"))[0] == "Oboe.mp4"


def test_unreadable_subtitles_are_reported(library, tmp_path):
    (tmp_path / "Rome 2024" / "plain.srt").write_text("no times here")
    library.add(tmp_path / "Rome 2024")
    (trouble,) = Words(library.path).troubles()
    assert trouble.endswith("plain.srt: subtitles left out: no line with times in it; SubRip and WebVTT are read")


def test_names_that_are_not_unicode(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    path = os.fsdecode(bytes(folder) + b"/caf\xe9 Zither.mp4")
    os.replace(render(folder / "a.mp4", ("red", 4)), path)
    index = Index.open(tmp_path / "library.ev", encoder=Speechless())
    index.add(folder)
    assert index.search("zither")[0].path == path


def test_a_damaged_or_newer_file_is_named(library, monkeypatch):
    monkeypatch.setattr(words_module, "FORMAT", 9)
    with pytest.raises(LibraryError, match="has format 1, this elastivid reads 9"):
        library.search("zither")
    monkeypatch.undo()
    (library.path / "words.db").write_bytes(b"noise" * 1000)
    with pytest.raises(LibraryError, match=r"cannot read .*words\.db: .*delete that file and index again"):
        library.search("zither")
    (library.path / "words.db").unlink()
    assert len(library.search("zither", top=3, min_confidence=0)) == 3
    library.add(library.path.parent / "Rome 2024")
    assert library.search("zither")[0].start_seconds == 5.0


def test_a_read_only_index_is_searched(library):
    for path in (library.path / "words.db", library.path):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    try:
        assert Words(library.path).find("zither", library.files()).hits[0].coverage == 1.0
    finally:
        os.chmod(library.path, 0o755)


# fusion


def why(hit):
    return ("why",)


def test_ranks_are_fused_as_published(library):
    """With full coverage the score is 1/(60 + picture) + 1/(60 + text); texts that tie share the better rank."""
    snapshot, query = library._store.snapshot(), np.full(3, 3**-0.5, dtype=np.float32)
    pictures = fuse(snapshot, query, [], 3, explain=why)
    last = pictures[-1]
    hit = TextHit(last.path, last.path, 1.0, frozenset({"x"}), ())
    assert 1 / (RANK_CONSTANT + 3) + 1 / (RANK_CONSTANT + 1) > 1 / (RANK_CONSTANT + 1)
    fused = fuse(snapshot, query, [hit], 3, explain=why)
    assert [m.path for m in fused] == [last.path, *(m.path for m in pictures if m.path != last.path)]
    tied = [TextHit(m.path, m.path, 1.0, frozenset({"x"}), ()) for m in reversed(pictures)]
    assert [m.path for m in fuse(snapshot, query, tied, 3, explain=why)] == [m.path for m in pictures]
    weak = TextHit(last.path, last.path, 0.01, frozenset({"x"}), ())
    assert fuse(snapshot, query, [weak], 3, explain=why)[0].path == pictures[0].path


def test_a_weak_line_lends_its_reason_only(library):
    snapshot, query = library._store.snapshot(), np.full(3, 3**-0.5, dtype=np.float32)
    path = next(p for p in snapshot.paths.values() if p.endswith("talk.mp4"))
    for coverage, times in ((0.4, None), (0.6, (5.0, 5.5))):
        moment = fuse(snapshot, query, [TextHit(path, path, coverage, frozenset("x"), (), 5.0, 5.5)], 1, explain=why)[0]
        assert moment.reasons[0] == "why"
        assert times is None or (moment.start_seconds, moment.end_seconds) == times
        assert times is not None or moment.end_seconds - moment.start_seconds > 0.5


def test_windows_that_take_no_part_are_not_found_by_text(library):
    snapshot, query = library._store.snapshot(), np.full(3, 3**-0.5, dtype=np.float32)
    path = next(p for p in snapshot.paths.values() if p.endswith("talk.mp4"))
    number = next(n for n, p in snapshot.paths.items() if p == path)
    searched = snapshot.searchable & (snapshot.windows["file_id"] != number)
    hits = [
        TextHit(path, path, 1.0, frozenset("x"), ()),
        TextHit(path, path, 1.0, frozenset("x"), (), 5.0, 6.0),
    ]
    assert path not in [m.path for m in fuse(snapshot, query, hits, 9, explain=why, searched=searched)]


# words that nobody knows


def test_words_of_the_vocabulary():
    from safetensors import safe_open

    from elastivid.weights.load import resolve

    with safe_open(resolve("nano"), framework="numpy") as file:
        tokenizer = TextTokenizer(file.get_tensor("text.tokenizer_json").tobytes())
    known = {word: tokenizer.has_word(word) for word in ("guitar", "dogs", "Rome", "qwzrtk", "zugspitze", "", "\ud800")}
    assert known == {
        **dict.fromkeys(("guitar", "dogs", "Rome"), True),
        **dict.fromkeys(("qwzrtk", "zugspitze", ""), False),
        "\ud800": known["\ud800"],
    }


@pytest.mark.slow
def test_unknown_words_and_reasons_on_the_command_line(tmp_path):
    (tmp_path / "videos").mkdir()
    render(tmp_path / "videos" / "Zugspitze.mp4", ("red", 4))
    command = [sys.executable, "-m", "elastivid"]
    place = ["--index", str(tmp_path / "library.ev")]
    subprocess.run([*command, "index", str(tmp_path / "videos"), *place], check=True, capture_output=True)
    done = subprocess.run(
        [*command, "search", "qwzrtk zugspitze guitar", "--json", "--all", *place], check=True, capture_output=True
    )
    found = json.loads(done.stdout)
    assert found["unknown_words"] == ["qwzrtk"]
    assert found["moments"][0]["reasons"][0] == "file name has 'zugspitze'"


def test_searching_words_loads_nothing_heavy(library):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from worlds_text import WordsOnly; from elastivid.search.index import Index\n"
        "moments = Index.open(sys.argv[2], encoder=WordsOnly()).search('zither')\n"
        "print(moments[0].reasons[0], [m for m in ('torch', 'av', 'lancedb', 'pyarrow') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(library.path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "subtitle: 'Now the zither solo' has 'zither' []"
