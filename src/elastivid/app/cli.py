"""The command `elastivid`: index, search, ask, status, prune, reindex, plan, info, doctor, demo; others beside it.

Everything heavy is imported inside the commands: `elastivid --help` loads neither torch nor av nor lancedb.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 asked to end.
"""

from __future__ import annotations

import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastivid import __version__
from elastivid.app.exports import lines_of_exports, write_wanted
from elastivid.app.model_commands import commands as model_commands
from elastivid.app.options import (
    DEFAULT_INDEX,
    BudgetOption,
    DownloadOption,
    IndexOption,
    JsonOption,
    LicenceOption,
    LimitMemoryOption,
    LimitSecondsOption,
)
from elastivid.app.text import lines_of_add
from elastivid.core.errors import BudgetError, ElastividError, PointError, QuestionError
from elastivid.evaluate.names import ClassesError
from elastivid.search.records import QueryError

if TYPE_CHECKING:
    from elastivid.core.point import Sampling

app = typer.Typer(
    name="elastivid",
    help="Search your videos in words, on your own machine, within the compute you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Profiling(StrEnum):
    """Which measured times a plan uses."""

    kept = "kept"
    again = "again"


def main() -> None:
    """Run the command line; errors of the library become one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show stops nothing
    try:
        app()
    except (QueryError, PointError, BudgetError, QuestionError, ClassesError) as error:
        _fail(error, 2)
    except ElastividError as error:
        _fail(error, 1)
    except OSError as error:  # an unwritable folder, a full disk: the user's to mend, no fault of the program
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print(f"elastivid: {error}", file=sys.stderr)
    sys.exit(code)


def _notify(text: str) -> None:
    print(f"elastivid: {text}", file=sys.stderr, flush=True)


def _version(asked: bool) -> None:
    if asked:
        print(f"elastivid {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def index(
    sources: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Folders or files to index.")],
    path: IndexOption = DEFAULT_INDEX,
    model: Annotated[
        str | None, typer.Option(help="nano, a weights file, or hf:organisation/repository [default: nano].")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="exact, or keyframes: coarse and much faster [default: exact].")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Read files again that failed before.")] = False,
    allow_download: DownloadOption = False,
    licence: LicenceOption = "any",
    full_hash: Annotated[
        bool, typer.Option("--full-hash", help="Tell files of a new index apart by all of their bytes.")
    ] = False,
    allow_url: Annotated[bool, typer.Option("--allow-url", help="Also read http and https addresses.")] = False,
    limit_seconds: LimitSecondsOption = None,
    limit_memory: LimitMemoryOption = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster or on Ray on this machine.")] = "local",
    budget: BudgetOption = None,
) -> None:
    """Index folders of videos. Run it again after changes: only what is new or changed is read."""
    from elastivid.app.engines import engine_named, limits_of
    from elastivid.app.interrupts import interruptible
    from elastivid.app.progress import show_progress
    from elastivid.search.index import Index

    library = Index.open(
        path,
        model=model,
        sampling=_sampling(decode),
        allow_download=allow_download,
        licence=licence,
        full_hash=full_hash or None,
    )
    limits, how = limits_of(limit_seconds, limit_memory), engine_named(engine)
    planned = None
    if budget is not None:
        from elastivid.app.plan import line_of_index_plan
        from elastivid.app.progress import show_measuring

        with interruptible("nothing was indexed yet"), show_measuring() as measuring:
            planned = library.plan(sources, budget, progress=measuring)
        print(line_of_index_plan(planned))
    with interruptible("finished files are kept, run the same command to go on"), show_progress() as progress:
        report = library.add(
            sources,
            progress=progress,
            retry_failed=retry_failed,
            notify=_notify,
            limits=limits,
            allow_url=allow_url,
            engine=how,
            plan=planned,
        )
    print("\n".join(lines_of_add(report, library)))


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help='What to look for: "a person juggling a ball".')] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="photo.jpg, clip.mp4@12.5s or clip.mp4@3s-5s; may be given several times.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many moments.", min=1)] = 10,
    per_file: Annotated[
        int | None,
        typer.Option(help="Most moments of one file while others have any [default: half of --top].", min=1),
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Exact starts and ends; decodes the moments again.")] = False,
    file: Annotated[
        list[str] | None, typer.Option("--path", help="Only files whose path ends like this: 'holiday/*', '*.mkv'.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Only files modified from then on: 2024-06-30.")] = None,
    before: Annotated[str | None, typer.Option(help="Only files modified before: 2024-07.")] = None,
    min_duration: Annotated[str | None, typer.Option(help="Only files that last at least: 90s, 1:30.")] = None,
    max_duration: Annotated[str | None, typer.Option(help="Only files that last at most.")] = None,
    min_height: Annotated[int | None, typer.Option(help="Only pictures at least so many pixels high.")] = None,
    max_height: Annotated[int | None, typer.Option(help="Only pictures at most so many pixels high.")] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="Below this the best moment counts as nothing found [default: 0.95].", min=0, max=1),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show the best guesses when nothing is found.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print moments, nothing else.")] = False,
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(help="Also write a report with pictures to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the moments as a table to this file.")] = None,
    srt: Annotated[Path | None, typer.Option(help="Also write subtitles, one per video, into this folder.")] = None,
    edl: Annotated[Path | None, typer.Option(help="Also write an edit list (CMX 3600) to this file.")] = None,
    edl_fps: Annotated[int, typer.Option(help="Frames per second of the edit list.", min=1, max=120)] = 25,
    cut: Annotated[Path | None, typer.Option(help="Also write each moment as a video into this folder.")] = None,
    path: IndexOption = DEFAULT_INDEX,
    model: Annotated[str | None, typer.Option(help="Model of the query [default: the one of the index].")] = None,
    allow_download: DownloadOption = False,
    licence: LicenceOption = "any",
) -> None:
    """Find moments in indexed videos, in words, by example, or both. Finding nothing is no failure: exit code 0."""
    from elastivid.app.searching import filters_of_options, lines_of_search, shown, values_of_search
    from elastivid.search.confidence import FOUND_AT
    from elastivid.search.index import Index

    if query is None and not like:
        raise QueryError('say what to look for: either words, such as "a dog runs", or --like clip.mp4@12.5s')
    filters = filters_of_options(
        path=file or (),
        after=after,
        before=before,
        min_duration=min_duration,
        max_duration=max_duration,
        min_height=min_height,
        max_height=max_height,
    )
    library = Index.open(path, model=model, allow_download=allow_download, licence=licence)
    result = library.search_with_cost(
        query,
        like=like or (),
        top=top,
        filters=filters,
        per_file=per_file,
        refine=refine,
        min_confidence=FOUND_AT if min_confidence is None else min_confidence,
    )
    result = shown(result, everything)
    if html is not None:
        from elastivid.search.report import write_report

        write_report(html, [result], library)
    written, cuts = write_wanted(result, csv=csv, srt=srt, edl=edl, edl_fps=edl_fps, cut=cut)
    if as_json:
        print(json.dumps(values_of_search(result, library), indent=2))
    else:
        lines = lines_of_search(result, quiet)
        for line in lines + ([f"report: {html}"] if html else []) + lines_of_exports(written, cuts):
            print(line)
    if any(c.problem for c in cuts):
        raise typer.Exit(1)


@app.command()
def ask(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A video file.")],
    question: Annotated[str | None, typer.Argument(help='A question: "when does the red star spin?".')] = None,
    questions: Annotated[Path | None, typer.Option("-q", help="A text file with one question a line.")] = None,
    memory: Annotated[str | None, typer.Option(help="What may be remembered, such as 64MB [default: 8MB].")] = None,
    model: Annotated[str, typer.Option(help="nano-ask, or a weights file.")] = "nano-ask",
    as_json: JsonOption = False,
) -> None:
    """Ask about a video of any length, in constant memory; the questions are known before it is watched."""
    from elastivid.app.ask import questions_of, run_ask
    from elastivid.app.interrupts import interruptible

    wanted = questions_of(question, questions)
    with interruptible("nothing was answered; Watch in Python can be saved and resumed"):
        run_ask(source, wanted, memory, model, as_json)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Shipped name (nano), weights file or family/preset.")],
    budget: Annotated[
        str, typer.Option(help='What may be spent: 20x, 40ms, 5gmacs, 600MB, 512tokens, "40ms, batch 8".')
    ],
    video: Annotated[str | None, typer.Option(help="The video to read [default: 1280x720@30].")] = None,
    profile: Annotated[
        Profiling, typer.Option(help="Measured times: those kept from before, or anew.")
    ] = Profiling.kept,
    as_json: JsonOption = False,
) -> None:
    """Say what a budget buys on this machine. The first plan for a model measures it for two minutes."""
    from elastivid.app.plan import lines_of_plan, plan_as_json
    from elastivid.app.progress import show_measuring
    from elastivid.core.budget import Budget
    from elastivid.planning.prepare import planner_for
    from elastivid.planning.reading import Source
    from elastivid.planning.subject import describe

    wanted, source, subject = Budget.parse(budget), Source.parse(video) if video else None, describe(model)
    with show_measuring() as progress:
        again = profile is Profiling.again
        planner = planner_for(subject, wanted, source=source, again=again, progress=progress)
    made = planner.plan(wanted)
    print(plan_as_json(made, planner) if as_json else "\n".join(lines_of_plan(made, planner, wanted)))


@app.command()
def duplicates(
    as_json: JsonOption = False,
    path: IndexOption = DEFAULT_INDEX,
) -> None:
    """Find indexed videos that show the same: copies, re-encodes, crops and trims. Nothing is deleted."""
    from elastivid.app.duplicates import lines_of_duplicates, values_of_duplicates
    from elastivid.app.progress import count_files
    from elastivid.search.index import Index

    with count_files("looking at files") as progress:
        found = Index.open(path).duplicates(progress=progress)
    print(json.dumps(values_of_duplicates(found), indent=2) if as_json else "\n".join(lines_of_duplicates(found)))


@app.command()
def status(
    path: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
) -> None:
    """Say what state an index is in: files, sizes, last runs, and what needs attention."""
    from elastivid.app.status import lines_of_status
    from elastivid.search.index import Index

    found = Index.open(path).status()
    print(json.dumps(found.to_values(), indent=2) if as_json else "\n".join(lines_of_status(found)))


@app.command()
def prune(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="[FOLDER...]", help="Only files in them.")] = None,
    path: IndexOption = DEFAULT_INDEX,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when a disk seems not to be mounted.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also a reindex that has not ended.")] = False,
) -> None:
    """Forget files that are gone and vectors that nobody searches. Shows them and asks first."""
    from elastivid.app.prune import run_prune
    from elastivid.search.index import Index

    library = Index.open(path)
    code = run_prune(library, folders or [], unfinished=unfinished, force=force, yes=yes, notify=_notify)
    raise typer.Exit(code)


@app.command()
def reindex(
    model: Annotated[str, typer.Option(help="The model to move to: shipped name, weights file or hf:ORG/NAME.")],
    path: IndexOption = DEFAULT_INDEX,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Delete the old vectors at the end.")] = False,
    allow_download: DownloadOption = False,
    licence: LicenceOption = "any",
) -> None:
    """Move an index to another model. Searches use the old one until all is done; run it again to go on."""
    from elastivid.app.interrupts import interruptible
    from elastivid.app.progress import show_progress
    from elastivid.app.reindex import lines_of_reindex
    from elastivid.search.index import Index

    library = Index.open(path, model=model, allow_download=allow_download, licence=licence)
    with interruptible("finished files are kept, run the same command to go on"), show_progress() as progress:
        report = library.reindex(progress=progress, notify=_notify, drop_old=drop_old)
    print("\n".join(lines_of_reindex(report)))


@app.command()
def info(target: Annotated[str, typer.Argument(help="A video file, a model (nano) or an index.")]) -> None:
    """Say what a video file, a model or an index holds."""
    from elastivid.app.info import describe

    print("\n".join(describe(target)))


@app.command()
def doctor() -> None:
    """Check this installation: versions, processor, codecs, what is missing and how to get it."""
    from elastivid.app.info import diagnose

    lines, healthy = diagnose()
    print("\n".join(lines))
    if not healthy:
        raise typer.Exit(1)


@app.command()
def demo(
    videos: Annotated[Path | None, typer.Option(help="Your own folder instead of the rendered library.")] = None,
    query: Annotated[list[str] | None, typer.Option(help="Your own words; may be given several times.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the library, the index and report.html.")] = Path("demo"),
    count: Annotated[int, typer.Option(help="How many videos to render.", min=100)] = 108,
) -> None:
    """Render a sample library, index it, search it, write report.html."""
    from elastivid.app.demo import run_demo
    from elastivid.app.interrupts import interruptible

    with interruptible("what is finished is kept, run the same command to go on"):
        run_demo(output, videos=videos, queries=query or [], count=count)


def _sampling(decode: str | None) -> Sampling | None:
    """The sampling that `--decode` asks for; None leaves it to the index."""
    if decode is None:
        return None
    from elastivid.core.point import Sampling

    return Sampling(decode=decode)


app.add_typer(model_commands)
