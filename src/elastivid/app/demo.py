"""`elastivid demo`: render a library (or take a folder), index it, search it, write one page."""

from __future__ import annotations

import json
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from elastivid.app.progress import show_progress
from elastivid.app.text import lines_of_add, short_path
from elastivid.core.errors import ElastividError
from elastivid.search.index import Index, SearchResult
from elastivid.search.printing import clock, span
from elastivid.search.report import write_report

MOMENTS_PER_QUERY = 5
OWN_QUERIES = ("a person playing a sport", "someone riding a bike", "a dog running", "people dancing")
NANO_IS_SMALL = (
    "Note: nano is a very small model. It learned from rendered shapes and a few sports actions: on your own videos\n"
    "it shows how the search works, not how good it can be. Larger public models such as SigLIP, as\n"
    "--model hf:..., are not part of this version; they come with a later one."
)


@dataclass(frozen=True)
class Question:
    """A query, and where the answer is known: the right file and the attribute in which its look-alikes differ."""

    text: str
    attribute: str = ""
    target: str = ""


def run_demo(output: Path, *, videos: Path | None, queries: list[str], count: int) -> Path:
    """Do all steps and print what happens.

    Args:
        output: folder for the library, the index and `report.html`.
        videos: folder to search instead of the rendered library.
        queries: words to search for; empty takes those of the library, or a few general ones for own videos.
        count: videos to render.

    Returns:
        The report.

    Raises:
        ElastividError: a folder is missing or nothing in it can be read.
    """
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    if videos is None:
        folder, library = _rendered(output / "library", count), output / "library.ev"
    else:
        folder = videos.expanduser().absolute()  # an index of its own for every folder, so that nothing else is found
        library = output / f"own-{zlib.crc32(os.fsencode(folder)):08x}.ev"
        print(NANO_IS_SMALL)
    questions = _questions(folder, queries, own=videos is not None)
    with Index.open(library) as index:
        print(f"indexing {short_path(str(folder))}")
        with show_progress() as progress:
            report = index.add(folder, progress=progress)
        print("\n".join("  " + line for line in lines_of_add(report, index)))
        if len(index) == 0:
            raise ElastividError(f"nothing in {folder} could be indexed; give a folder that holds videos")
        index.search(questions[0].text)  # the first search loads the text model: kept out of the times shown
        results = [index.search_with_cost(question.text, top=MOMENTS_PER_QUERY) for question in questions]
        print("\n".join(_table(questions, results)))
        answers = {question.text: question.target for question in questions if question.target}
        title = "Found in your videos, in words" if videos else f"{count} videos, searched in words"
        page = write_report(output / "report.html", results, index, title=title, answers=answers)
    print(f"\n{span(time.perf_counter() - started)} in all. Open {page}")
    print(f'Search on: elastivid search "{questions[0].text}" --index {short_path(str(library.absolute()))}')
    return page


def _rendered(folder: Path, count: int) -> Path:
    """The rendered library in `folder`; one that is there with as many videos is used again."""
    from elastivid.data.demo import demo_library

    truth = folder / "ground_truth.json"
    if truth.exists() and len(json.loads(truth.read_text())["videos"]) == count:
        print(f"using the {count} videos in {folder}")
        return folder
    started = time.perf_counter()
    print(f"rendering {count} videos into {folder}")
    truth.unlink(missing_ok=True)  # before the videos: it says that they are all there
    for old in folder.glob("video_*"):
        old.unlink()
    demo_library(folder, count=count, processes=os.cpu_count() or 1)
    print(f"  {span(time.perf_counter() - started)}")
    return folder


def _questions(folder: Path, queries: list[str], own: bool) -> list[Question]:
    if queries:
        return [Question(text) for text in queries]
    if own:
        print("no --query given: searching for a few general things")
        return [Question(text) for text in OWN_QUERIES]
    truth = json.loads((folder / "ground_truth.json").read_text())
    return [
        Question(query["text"], query["attribute"], os.path.abspath(folder / query["target"]))
        for query in truth["queries"]
    ]


def _table(questions: list[Question], results: list[SearchResult]) -> list[str]:
    """One line per query, then the share of first places that are right, by attribute."""
    width = max(len(question.text) for question in questions)
    lines = [""]
    hits: dict[str, list[bool]] = {}
    for question, result in zip(questions, results, strict=True):
        best = result.moments[0]
        verdict = ""
        if question.target:
            hit = best.path == question.target
            hits.setdefault(question.attribute, []).append(hit)
            verdict = "  right" if hit else "  wrong"
        place = f"{os.path.basename(best.path)}  {clock(best.start_seconds)} - {clock(best.end_seconds)}"
        verdict += "" if result.found else "  (nothing found; best guess)"
        lines.append(f"  {question.text:<{width}}  {best.score:6.3f}  {place}{verdict}")
    if hits:
        parts = [f"{attribute} {sum(found)}/{len(found)}" for attribute, found in hits.items()]
        every = [hit for found in hits.values() for hit in found]
        lines += ["", f"  right file at first place: {sum(every)} of {len(every)} ({', '.join(parts)})"]
    return lines
