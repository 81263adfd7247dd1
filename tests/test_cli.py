"""The command line: what it prints, how it fails, what it loads."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent / "search"))
from worlds import ColourEncoder, render

from elastivid import __version__
from elastivid.app import cli, info
from elastivid.app.progress import show_progress
from elastivid.search import index as index_module
from elastivid.search.indexing import Progress
from elastivid.search.printing import clock, pace, span

COMMANDS = {
    "index": {
        "--index",
        "--model",
        "--decode",
        "--retry-failed",
        "--no-retry-failed",
        "--full-hash",
        "--allow-download",
        "--licence",
        "--allow-url",
        "--limit-seconds",
        "--limit-memory",
        "--engine",
        "--budget",
    },
    "duplicates": {"--json", "--index"},
    "search": {
        *{"--per-file", "--refine", "--path", "--after", "--before", "--min-duration", "--max-duration"},
        *{"--min-height", "--max-height", "--min-confidence", "--all", "--quiet"},
        "--like",
        "--top",
        "--json",
        "--html",
        "--csv",
        "--srt",
        "--edl",
        "--edl-fps",
        "--cut",
        "--index",
        "--model",
        "--allow-download",
        "--licence",
    },
    "plan": {"--budget", "--video", "--profile", "--json"},
    "status": {"--index", "--json"},
    "prune": {"--index", "--yes", "--force", "--unfinished"},
    "reindex": {"--index", "--model", "--drop-old", "--allow-download", "--licence"},
    "info": set(),
    "doctor": set(),
    "demo": {"--videos", "--query", "--output", "--count"},
}


@pytest.fixture
def colours(monkeypatch, tmp_path):
    """Runs commands in an empty folder, with the colour encoder in place of the shipped model."""
    original = index_module.Index.open.__func__

    def open_with_colours(cls, path, **settings):
        settings |= {"encoder": ColourEncoder(), "licence": "any"}
        return original(cls, path, **settings)

    monkeypatch.setattr(index_module.Index, "open", classmethod(open_with_colours))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELASTIVID_INDEX", raising=False)
    (tmp_path / "videos").mkdir()
    render(tmp_path / "videos" / "a.mp4", ("red", 6), ("blue", 6))
    render(tmp_path / "videos" / "b.mp4", ("green", 5))
    (tmp_path / "videos" / "noise.mp4").write_bytes(b"noise" * 99)
    return tmp_path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    monkeypatch.setattr(sys, "argv", ["elastivid", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_index_then_search(colours, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "index", "videos")
    assert code == 0
    assert "3 files read, 0 unchanged, 1 with trouble" in out
    assert "x realtime" in out
    assert re.search(r"trouble: videos/noise\.mp4: failed: .+", out)
    assert (colours / "library.ev" / "index.json").exists()

    code, out, _ = run(monkeypatch, capsys, "search", "green", "--top", "2")
    assert code == 0
    first = out.splitlines()[0]
    assert re.fullmatch(r"  1   1\.000  9\d\.\d %  videos/b\.mp4  0:00\.0 - 0:05\.\d", first), first
    assert "7 windows of 2 files searched in" in out.splitlines()[-1]

    code, out, _ = run(monkeypatch, capsys, "index", "videos")
    assert "0 files read, 3 unchanged, 0 with trouble" in out
    assert "1 unchanged files could not be read before (--retry-failed tries again)" in out


def test_status_and_prune(colours, monkeypatch, capsys):
    assert run(monkeypatch, capsys, "status")[0] == 1, "there is no index"
    run(monkeypatch, capsys, "index", "videos")
    code, out, _ = run(monkeypatch, capsys, "status")
    assert code == 0
    assert "files      3: 1 failed, 2 indexed" in out
    assert "attention  1 failed: could not be read; elastivid info names them and says why" in out
    assert json.loads(run(monkeypatch, capsys, "status", "--json")[1])["windows"] == 7
    code, out, _ = run(monkeypatch, capsys, "prune")
    assert (code, out) == (0, "nothing to forget: every file of the index is where it was\n")

    (colours / "videos" / "b.mp4").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, _ = run(monkeypatch, capsys, "prune")
    assert code == 1, "nobody is there to be asked"
    assert out == (
        "1 files that are nowhere any more, 2 windows:\n    videos: 1\n"
        "nothing was forgotten; say --yes to forget without being asked\n"
    )
    assert run(monkeypatch, capsys, "prune", "--yes")[:2] == (0, out.replace(out.splitlines()[-1], "forgotten"))
    assert "files      2: 1 failed, 1 indexed" in run(monkeypatch, capsys, "status")[1]
    for path in (colours / "videos").iterdir():
        path.unlink()
    code, _, errors = run(monkeypatch, capsys, "prune", "--yes")
    assert code == 1
    assert "as if a disk were not mounted" in errors
    assert run(monkeypatch, capsys, "prune", "--yes", "--force")[0] == 0


def test_reindex_names_what_to_do(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    code, _, errors = run(monkeypatch, capsys, "reindex", "--model", "same")
    assert code == 1
    assert "made with colour-encoder already" in errors
    monkeypatch.setattr(ColourEncoder.__init__, "__defaults__", ("other colours",))
    code, out, _ = run(monkeypatch, capsys, "reindex", "--model", "other")
    assert code == 0
    assert out.splitlines()[1:] == [
        "searches use colour-encoder now (space other colours)",
        "the vectors of colour-encoder are kept: elastivid prune forgets them",
    ]
    assert "vectors of colour-encoder are old" in run(monkeypatch, capsys, "status")[1]


def test_search_as_json(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    code, out, _ = run(monkeypatch, capsys, "search", "red", "--json", "--top", "1")
    found = json.loads(out)
    assert code == 0
    fields = "query index found confidence min_confidence files windows milliseconds refine_milliseconds notes "
    fields += "unknown_words moments"
    assert list(found) == fields.split()
    assert found["query"] == "red"
    assert found["windows"] == 7
    (moment,) = found["moments"]
    fields = "path start_seconds end_seconds score peak_seconds windows reasons confidence"
    assert list(moment) == fields.split()
    assert moment["path"] == str(colours / "videos" / "a.mp4")
    assert (moment["start_seconds"], moment["end_seconds"]) == (0.0, 6.0)


def test_search_by_example_and_report(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    code, out, _ = run(monkeypatch, capsys, "search", "--like", "videos/a.mp4@10s", "--html", "out/r.html")
    assert code == 0
    assert "videos/a.mp4  0:06.0 - 0:12" in out.splitlines()[0]
    assert "report: out/r.html" in out
    assert "data:image/jpeg" in (colours / "out" / "r.html").read_text()


def test_a_file_that_is_gone_is_marked(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    (colours / "videos" / "b.mp4").unlink()
    _, out, _ = run(monkeypatch, capsys, "search", "green", "--top", "1")
    assert "(file is gone)" in out


def test_the_index_is_chosen_by_option_or_environment(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos", "--index", "one.ev")
    assert (colours / "one.ev").exists()
    assert run(monkeypatch, capsys, "search", "red")[0] == 1
    monkeypatch.setenv("ELASTIVID_INDEX", str(colours / "one.ev"))
    assert run(monkeypatch, capsys, "search", "red")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "red"), 1, r"elastivid: there is no index at .*library\.ev; make one with: elastivid index FOLDER"),
        (("index", "nope"), 1, "elastivid: no such file or folder: .*nope"),
        (("search",), 2, "elastivid: say what to look for: either words, .* or --like"),
        (
            ("search", "red", "--after", "yesterday"),
            2,
            "elastivid: cannot read the date 'yesterday' of 'after'",
        ),
        (("search", "red", "--min-duration", "long"), 2, "elastivid: cannot read --min-duration 'long'; write seconds"),
        (("search", "red", "--min-height", "9", "--max-height", "8"), 2, "min_height 9 is above max_height 8"),
        (("search", "--like", "nope.jpg"), 1, "there is no index at"),
        (("search", "red", "--top", "0"), 2, "Invalid value for '--top'"),
        (("index",), 2, "Missing argument 'FOLDER...'"),
        (("index", "videos", "--decode", "fast"), 2, "elastivid: decode must be one of"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
        (("index", "videos", "--index", "videos/a.mp4/x.ev"), 1, r"elastivid: .*Not a directory.*a\.mp4"),
        (("info", "videos"), 1, "elastivid: videos is a folder but no index"),
        (("info", "videos/noise.mp4"), 1, "elastivid: .*noise.mp4"),
        (("info", "videos/c.mp4"), 1, r"elastivid: no such file: videos/c\.mp4"),
        (("ask", "nope.mp4", "is it red?"), 1, r"elastivid: 'nope\.mp4': no such file; check the spelling or mount"),
        (("info", "nope.ev"), 1, r"elastivid: there is no index at nope\.ev"),
        (("info", "nanno"), 1, "elastivid: unknown weights .*'nanno'.*Did you mean 'nano'"),
    ],
)
def test_errors_are_one_clean_line(colours, monkeypatch, capsys, arguments, code, message):
    got, out, err = run(monkeypatch, capsys, *arguments)
    assert got == code
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not out
    if err.startswith("elastivid: "):
        assert err.count("\n") == 1


def test_a_folder_without_videos_is_said_to_be_one(colours, monkeypatch, capsys):
    (colours / "texts").mkdir()
    (colours / "texts" / "a.txt").write_text("words")
    code, out, _ = run(monkeypatch, capsys, "index", "texts")
    assert code == 0
    assert "no videos found" in out
    assert "no videos found" not in run(monkeypatch, capsys, "index", "videos")[1]


def test_many_bad_files_end_in_a_command_that_lists_them(colours, monkeypatch, capsys):
    monkeypatch.setattr("elastivid.app.text.SHOWN_BAD_FILES", 0)
    _, out, _ = run(monkeypatch, capsys, "index", "videos", "--index", "one.ev")
    assert "trouble: and 1 more, listed by: elastivid info one.ev" in out


def test_a_page_is_not_written_over_a_folder(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    code, _, err = run(monkeypatch, capsys, "search", "red", "--html", "videos")
    assert code == 1
    assert err == "elastivid: videos is a folder; name the page, such as videos/moments.html\n"
    assert not (colours / "videos.new").exists()


def test_paths_that_the_terminal_cannot_show_are_escaped(colours, monkeypatch, capsys):
    render(colours / "videos" / "\u65e5\u672c.mp4", ("blue", 5))
    run(monkeypatch, capsys, "index", "videos")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(monkeypatch, capsys, "search", "blue")[0] == 0
    terminal.flush()
    assert rb"videos/\u65e5\u672c.mp4" in terminal.buffer.getvalue()


def test_an_empty_query_is_wrong_usage(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    assert run(monkeypatch, capsys, "search", " ")[0] == 2


def test_interrupting_keeps_what_is_finished(colours, monkeypatch, capsys):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module.Index, "add", interrupted)
    code, _, err = run(monkeypatch, capsys, "index", "videos")
    assert code == 130
    assert "run the same command to go on" in err


def test_info_about_an_index_and_a_file(colours, monkeypatch, capsys):
    run(monkeypatch, capsys, "index", "videos")
    _, out, _ = run(monkeypatch, capsys, "info", "library.ev")
    assert "3: 1 failed, 2 indexed" in out
    assert "256 tokens" in out
    assert "videos/noise.mp4" in out
    _, out, _ = run(monkeypatch, capsys, "info", "videos/b.mp4")
    assert re.search(r"width +64\n", out)
    assert re.search(r"codec +mpeg4\n", out)


def test_info_about_a_model_prints_each_value_once(monkeypatch, capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    values = {"address": "dual/x", "config": {"text": {"depth": 2}}, "text_config": {"depth": 2}, "golden": [0.5]}
    save_file({"a": np.zeros(1)}, path, metadata={key: json.dumps(value) for key, value in values.items()})
    code, out, _ = run(monkeypatch, capsys, "info", str(path))
    assert code == 0
    assert re.findall(r"depth +2\n", out) == ["depth          2\n"]
    assert "0.5" not in out


def test_info_about_a_model_wraps_what_is_long_and_counts_what_it_leaves_out(monkeypatch, capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    classes = [f"class {number}" for number in range(400)]
    values = {"classes": classes, "card": {"what": "many words " * 30}, "address": "x", "widths": [], "scale": None}
    save_file({"a": np.zeros(1)}, path, metadata={key: json.dumps(value) for key, value in values.items()})
    _, out, _ = run(monkeypatch, capsys, "info", str(path))
    assert "class 11 and 388 more\n" in out
    assert "class 12" not in out
    assert max(map(len, out.splitlines()[1:])) <= 120
    assert re.search(r"\naddress +x\ncard\n  what +many", out)
    assert re.search(r"\nscale +null\nwidths +none\n", out)


def test_doctor_names_what_is_missing(monkeypatch, capsys):
    found = info.importlib.util.find_spec
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None if name == "lancedb" else found(name))
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "missing: lancedb. Run: pip install 'elastivid[search]'" in out
    assert f"elastivid   {__version__}" in out
    assert "h264" in out


def test_flags_are_frozen(monkeypatch, capsys):
    for command, flags in COMMANDS.items():
        _, out, _ = run(monkeypatch, capsys, command, "--help")
        assert set(re.findall(r"--[a-z-]+", out)) - {"--help"} >= flags
        listed = set(re.findall(r"^  (--[a-z-]+)(?: / (--[a-z-]+))?", out, re.M))
        assert {flag for pair in listed for flag in pair if flag} - {"--help"} == flags


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[1] == f"elastivid {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["index", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    script = """
import sys
sys.argv = ["elastivid", *sys.argv[1:]]
from elastivid.app.cli import main
try:
    main()
except SystemExit as left:
    assert not left.code
heavy = {"torch", "av", "lancedb", "pyarrow", "PIL", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr("elastivid.app.progress.LINE_EVERY_SECONDS", 0.0)
    with show_progress() as progress:
        progress(Progress(3, 10, 30.0, 100, 7, 60.0, 2.0, "/x/a.mp4"))
    assert capsys.readouterr().err == "3/10 videos, 1.5 videos/s, 30x realtime, 4.7 s left, at /x/a.mp4\n"


def test_times_are_readable():
    assert [clock(t) for t in (0, 59.96, 61.5, 3600)] == ["0:00.0", "1:00.0", "1:01.5", "1:00:00.0"]
    assert [span(t) for t in (0.0123, 5, 600, 7300)] == ["12 ms", "5.0 s", "10 min", "2.0 h"]
    assert [pace(x) for x in (0.0, 0.162, 3.25, 9.96, 117.4)] == ["0x", "0.16x", "3.2x", "10x", "117x"]


def test_demo_on_own_videos_says_what_nano_is(colours, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "demo", "--videos", "videos", "--query", "green", "--query", "red")
    assert code == 0
    assert "nano is a very small model" in out
    assert "not part of this version" in out
    assert re.search(r"green +1\.000  b\.mp4", out)
    assert "first place" not in out, "nobody knows the right answer here"
    page = (colours / "demo" / "report.html").read_text()
    assert "green" in page
    assert "noise.mp4" in page
    (colours / "others").mkdir()
    render(colours / "others" / "c.mp4", ("blue", 5))
    _, out, _ = run(monkeypatch, capsys, "demo", "--videos", "others", "--query", "green")
    assert "b.mp4" not in out, "only the folder asked for is searched"


def test_demo_on_the_rendered_library_counts_first_places(colours, monkeypatch, capsys):
    def two_videos(folder, *, count, processes):
        folder.mkdir(parents=True, exist_ok=True)
        render(folder / "video_0.mp4", ("red", 5))
        render(folder / "video_1.mp4", ("green", 5))
        queries = [
            {"text": "red", "attribute": "colour", "target": "video_0.mp4"},
            {"text": "blue", "attribute": "colour", "target": "video_9.mp4"},
        ]
        truth = {"queries": queries, "videos": [{}] * count}
        (folder / "ground_truth.json").write_text(json.dumps(truth))

    monkeypatch.setattr("elastivid.data.demo.demo_library", two_videos)
    code, out, _ = run(monkeypatch, capsys, "demo", "--output", "d")
    assert code == 0
    assert "right file at first place: 1 of 2 (colour 1/2)" in out
    assert "right at first place" in (colours / "d" / "report.html").read_text()
    _, out, _ = run(monkeypatch, capsys, "demo", "--output", "d")
    assert "using the 108 videos in d/library" in out
    assert "0 files read, 2 unchanged" in out

    def killed(folder, *, count, processes):
        raise KeyboardInterrupt

    monkeypatch.setattr("elastivid.data.demo.demo_library", killed)
    run(monkeypatch, capsys, "demo", "--output", "d", "--count", "120")
    monkeypatch.setattr("elastivid.data.demo.demo_library", two_videos)
    _, out, _ = run(monkeypatch, capsys, "demo", "--output", "d")
    assert "rendering 108 videos" in out, "what is left of a killed rendering is not used"
