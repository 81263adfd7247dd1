"""How the project hangs together: every rule is checked on the project, and every check is shown to be able to fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import file_map
import pytest
import structure

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "av", "lancedb")
KNOWN = frozenset(structure.modules())


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_no_breach_in_the_project():
    breaches = structure.all_breaches()
    assert not breaches, "\n" + "\n".join(breaches)


# every check can fail


@pytest.mark.parametrize(
    "source",
    [
        "from elastivid.search.index import Index",
        "import elastivid.app.cli",
        "def f():\n    from elastivid.models import fluxvit",
        "from elastivid import search",
        "from ..search import index",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from elastivid.search.index import Index",
    ],
)
def test_upward_imports_are_found(source):
    assert structure.direction_breaches("elastivid.video.reader", source, KNOWN)


def test_downward_imports_are_allowed():
    source = "import torch\nfrom elastivid.core.point import Sampling\nfrom elastivid.video import samplers"
    assert not structure.direction_breaches("elastivid.video.reader", source, KNOWN)
    assert structure.direction_breaches("elastivid.somewhere.file", "", KNOWN)


def test_long_files_functions_and_constructors_are_found():
    assert structure.size_breaches("x", "x = 1\n" * 800)
    assert not structure.size_breaches("x", "x = 1\n" * 799)
    body = "    x = 1\n" * 79
    assert not structure.size_breaches("x", 'def f():\n    """Text.\n\n    More text."""\n' + body)
    assert structure.size_breaches("x", "def f():\n    x = 0\n" + body)
    eight = "class A:\n    def __init__(self, a, b, c, d, *, e, f, g, h): ...\n"
    assert not structure.size_breaches("x", eight)
    assert structure.size_breaches("x", eight.replace(", h)", ", h, i)"))


def test_missing_docstrings_are_found():
    documented = (
        '"""M."""\nclass A:\n    """A."""\n    def f(self):\n        """F."""\n    def _g(self):\n        pass\n'
    )
    assert not structure.docstring_breaches("x", documented)
    for text in ('"""M."""', '"""A."""', '"""F."""'):
        assert structure.docstring_breaches("x", documented.replace(text, "1")), text


def test_a_large_closure_is_found():
    layers = {f"elastivid.layers.l{i}" for i in range(13)}
    family = "elastivid.models.family"
    assert structure.closure_breaches({family: layers})
    assert not structure.closure_breaches({family: layers - {"elastivid.layers.l0"}})
    assert not structure.closure_breaches({family: {f"elastivid.core.c{i}" for i in range(20)}})
    chain = {"elastivid.layers.l0": layers - {"elastivid.layers.l0"}}
    assert structure.closure_breaches({family: {"elastivid.layers.l0"}, **chain})


def test_a_model_made_of_models_may_need_more_files():
    pair, tower = "elastivid.models.pair", "elastivid.models.tower"
    layers = {f"elastivid.layers.l{i}" for i in range(20)}
    enough = {pair: {tower} | set(list(layers)[:19])}
    assert not structure.closure_breaches(enough)
    assert structure.closure_breaches({pair: {tower} | layers})
    with_base = {pair: {"elastivid.models.base"} | set(list(layers)[:12])}
    assert structure.closure_breaches(with_base)


def test_types_do_not_count_in_a_closure():
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from elastivid.core.point import Sampling\n"
    assert structure.imports_of(source, KNOWN) == {"elastivid.core.point"}
    assert structure.imports_of(source, KNOWN, types=False) == set()


def test_paths_of_one_machine_are_found():
    for folder in ("home", "tmp", "root", "Users"):
        assert structure.path_breaches("x", f"see /{folder}/me/notes.md")
    assert not structure.path_breaches("x", "see ~/Videos, docs/home/me, ../shared/data, https://a.org/home/b")


# imports


def test_every_module_imports():
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    result = python(code, *(name for name in structure.modules() if not name.endswith("__main__")))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import elastivid",
        "import elastivid; dir(elastivid); elastivid.Budget.parse('5gmacs')",
        "sys.argv = ['elastivid', '--help']\nfrom elastivid.app.cli import main\n"
        "try: main()\nexcept SystemExit as error: assert not error.code",
    ],
)
def test_light_entrances_load_nothing_heavy(code):
    report = f"import sys\n{code}\nheavy = sorted(set({HEAVY}) & set(sys.modules))\nassert not heavy, heavy"
    result = python(report)
    assert result.returncode == 0, result.stderr


def test_every_public_name_resolves():
    code = "import elastivid\nfor name in elastivid.__all__: getattr(elastivid, name)"
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_an_unknown_public_name_is_explained():
    import elastivid

    with pytest.raises(AttributeError, match="has no attribute 'Bugdet'; it has"):
        elastivid.Bugdet  # noqa: B018


# texts


def test_changelog_begins_with_the_version():
    import elastivid

    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert versions[0] == elastivid.__version__
    assert f'version = "{elastivid.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {elastivid.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def readme_blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    from typer.main import get_command

    from elastivid.app.cli import app

    commands = set(get_command(app).commands)
    lines = [line for block in readme_blocks("sh") for line in block.splitlines()]
    assert any(line.startswith("make test") for line in lines)
    for line in lines:
        words = line.split()
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["elastivid"]:
            assert words[1] in commands, line
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_file_map_of_the_readme_is_fresh():
    text = (ROOT / "README.md").read_text()
    mapped = re.findall(r"^\| `([\w./-]+)` \|", text, flags=re.M)
    assert len(mapped) > 40
    missing = [name for name in mapped if not (ROOT / name).is_file()]
    assert not missing, f"the README names files that do not exist: {missing}"
    assert file_map.updated(text) == text, "the README's file map is old; run: python tools/file_map.py"


def test_file_map_takes_first_sentences():
    assert file_map.summary('"""One thing, v1.5 of it. And more.\n\nText."""') == "One thing, v1.5 of it"
    assert file_map.summary('"""Two\nlines."""\nx = 1') == "Two lines"


def test_links_between_our_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_make_bench_runs_every_benchmark():
    shown = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    looped = re.search(r"for name in (.*?); do", shown)
    assert looped
    every = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(looped[1].split()) == every - {"tables", "actions"}, "tables is shared code, actions has its own line"


def test_no_two_files_of_tests_and_benchmarks_share_a_name():
    names = [path.name for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    names = [name for name in names if name != "conftest.py"]
    assert sorted(set(names)) == sorted(names), "pytest collects test files by name, and tests import benchmarks so"
