"""Moments in long files: are starts and ends right, and is it said when there is nothing to find?

    python benchmarks/moments.py [--model nano] [--cache FOLDER]    # about 6 minutes on 2 cores

Renders ten files of 5 to 60 minutes with 207 planted events (see `elastivid.data.planted`), indexes them, and asks for
every event in words. Rendered files and indexes are kept in the cache folder, an index for each model, so that a second
run with the same model takes about 2 minutes. Writes docs/benchmarks/moments.md.

What was chosen by looking at results (the responses and margins of `boundaries`, the reach of `refine`, the limit of
`confidence`) was chosen on a library of another seed, 101, with other contents.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tables import machine, table, write_page

from elastivid import Filters, Index
from elastivid.data.planted import PlantedEvent, PlantedFormat, PlantedLibrary, planted_library
from elastivid.evaluate.metrics import format_share
from elastivid.search.confidence import FOUND_AT, confidence_of
from elastivid.search.moments import Moment, find_moments
from elastivid.search.snapshot import Snapshot

SEED = 202
MINUTES = (5.0, 5.0, 5.0, 8.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0)
FORMAT = PlantedFormat(seconds_per_event=48.0)
KINDS = {
    "pair": "colour and shape never together",
    "motion": "the thing is there, never doing this",
    "unrelated": "unrelated sentences",
}
WHO = ("a pilot", "an actress", "two nurses", "a carpenter", "my uncle", "a tall girl", "the mayor", "a diver")
DOING = ("peels potatoes", "reads a letter aloud", "plays the harp", "hangs up a coat", "feeds a goat", "paints a gate")
DOING += ("loses a shoe", "drinks tea", "ties a knot", "climbs over a wall", "sells flowers", "cleans a lamp")
WHERE = ("in a village", "at the airport", "behind the house", "on a ship", "near a river", "in a lift", "on the roof")


@dataclass(frozen=True)
class Query:
    """A caption, the file it is asked of, and where it is true; no event for captions with nothing to find."""

    text: str
    file: str
    event: PlantedEvent | None = None


def prepare(cache: Path, model: str) -> tuple[PlantedLibrary, Index]:
    """The rendered library and its index, from the cache where they are there."""
    from elastivid.weights.load import load

    folder = cache / f"planted-{SEED}"
    started = time.perf_counter()
    library = planted_library(folder, MINUTES, SEED, planted_format=FORMAT)
    print(f"rendered or found in {time.perf_counter() - started:.0f} s", flush=True)
    index = Index.open(cache / f"planted-{SEED}-{load(model).space_id}.ev", model=model)
    report = index.add(folder)
    if report.bad:
        raise SystemExit(f"the benchmark's own file cannot be read: {report.bad[0].reason}")
    print(f"indexed or found in {report.elapsed_seconds:.0f} s", flush=True)
    return library, index


def queries_of(library: PlantedLibrary) -> tuple[list[Query], dict[str, list[Query]]]:
    """Captions of all events, and 100 captions of each kind with nothing to find, each asked of a file drawn for it.

    Longer files are drawn more often, as they are for events."""
    rng = np.random.default_rng(SEED)
    present = [Query(event.caption, video.file, event) for video in library.videos for event in video.events]
    unrelated: dict[str, None] = {}
    while len(unrelated) < 100:
        unrelated[" ".join(str(rng.choice(words)) for words in (WHO, DOING, WHERE))] = None
    absent = {"pair": library.absent, "motion": library.absent_motions, "unrelated": tuple(unrelated)}
    return present, {
        kind: [Query(text, present[int(rng.integers(len(present)))].file) for text in texts]
        for kind, texts in absent.items()
    }


# starts and ends


def merged_windows(snapshot: Snapshot, scores: np.ndarray, searched: np.ndarray) -> tuple[int, float, float]:
    """Row of the best window, start and end of the rule before: neighbours that lose no more than a fifth from peak to
    mean are joined as they are."""
    masked = np.where(searched, scores, -np.inf)
    row = first = last = int(masked.argmax())
    floor = masked[row] - 0.2 * (masked[row] - float(scores[searched].mean()))
    ids = snapshot.windows["file_id"]
    while first > 0 and ids[first - 1] == ids[row] and masked[first - 1] >= floor:
        first -= 1
    while last + 1 < len(ids) and ids[last + 1] == ids[row] and masked[last + 1] >= floor:
        last += 1
    return row, float(snapshot.windows["start_seconds"][first]), float(snapshot.windows["end_seconds"][last])


def iou(start: float, end: float, event: PlantedEvent) -> float:
    """Intersection over union of two intervals."""
    shared = min(end, event.end_seconds) - max(start, event.start_seconds)
    return max(shared, 0.0) / (max(end, event.end_seconds) - min(start, event.start_seconds))


def locate(
    index: Index, present: list[Query], within_file: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """IoU of the best moment by each way to place it, and milliseconds beside; all ways see the same scores."""
    snapshot = index._store.snapshot()
    names = {Path(path).name: file_id for file_id, path in snapshot.paths.items()}
    overlaps: dict[str, list[float]] = {way: [] for way in ("window", "merged", "fitted", "refined")}
    costs: dict[str, list[float]] = {way: [] for way in ("merged", "fitted", "refined")}
    vectors = index._embed_texts([query.text for query in present])
    for query, vector in zip(present, vectors, strict=True):
        assert query.event is not None
        searched = snapshot.searchable
        if within_file:
            searched = searched & (snapshot.windows["file_id"] == names[query.file])
        started = time.perf_counter()
        row, start, end = merged_windows(snapshot, snapshot.vectors @ vector, searched)
        middle = time.perf_counter()
        (moment,) = find_moments(snapshot, vector, 1, searched=searched)
        costs["merged"].append(1000 * (middle - started))
        costs["fitted"].append(1000 * (time.perf_counter() - middle))
        right = Path(moment.path).name == query.file
        started = time.perf_counter()
        exact = _refine(index, moment, vector) if right else moment
        costs["refined"] += [1000 * (time.perf_counter() - started)] if right else []
        window = snapshot.windows[row]
        places = {
            "window": (float(window["start_seconds"]), float(window["end_seconds"])),
            "merged": (start, end),
            "fitted": (moment.start_seconds, moment.end_seconds),
            "refined": (exact.start_seconds, exact.end_seconds),
        }
        for way, place in places.items():
            overlaps[way].append(iou(*place, query.event) if right else 0.0)
    return {way: np.array(values) for way, values in overlaps.items()}, {w: np.array(v) for w, v in costs.items()}


def _refine(index: Index, moment: Moment, vector: np.ndarray) -> Moment:
    from elastivid.search.refine import refine_moment

    settings = index.settings
    return refine_moment(index._encoder_for_queries(), moment, vector, settings.sampling, settings.point)


WAYS = {
    "window": "the best window as it is",
    "merged": "windows merged as they are",
    "fitted": "**start and end fitted to window scores** (default)",
    "refined": "**found among single frames** (`--refine`)",
}


def places_table(overlaps: dict[str, np.ndarray], costs: dict[str, np.ndarray]) -> str:
    """Rows by way, R@1 at three overlaps, cost beside."""
    rows = []
    for way, name in WAYS.items():
        values = overlaps[way]
        cells = [format_share(int((values >= at).sum()), len(values)) for at in (0.3, 0.5, 0.7)]
        hits = values[values > 0]
        cost = costs.get(way)
        extra = "" if cost is None else f"{np.median(cost):.1f} ms"
        if way == "refined":
            extra = f"+ {np.median(cost):.0f} ms a moment" if cost is not None else ""
        rows.append([name, *cells, f"{hits.mean():.2f}" if len(hits) else "", extra])
    head = ["the moment at first place", "R@1, IoU 0.3", "R@1, IoU 0.5", "R@1, IoU 0.7", "mean IoU of hits", "cost"]
    return table(head, rows)


def lengths_table(present: list[Query], overlaps: dict[str, np.ndarray]) -> str:
    """Share of hits at IoU 0.7 by length of the event."""
    lasts = np.array([q.event.end_seconds - q.event.start_seconds for q in present if q.event is not None])
    hit = np.max(np.stack(list(overlaps.values())), axis=0) > 0
    rows = []
    for low, high in ((2, 4), (4, 6), (6, 12), (12, 24.5)):
        chosen = hit & (lasts >= low) & (lasts < high)
        cells = [f"{np.mean(overlaps[way][chosen] >= 0.7):.0%}" for way in WAYS]
        rows.append([f"{low:g} to {high if high < 24 else 24:g} s", str(int(chosen.sum())), *cells])
    return table(["events that last", "hits", "window", "merged", "fitted", "refined"], rows)


# nothing found


def best_scores(index: Index, queries: list[Query], within_file: bool) -> tuple[np.ndarray, np.ndarray]:
    """Highest cosine and confidence of each query."""
    snapshot = index._store.snapshot()
    nulls = index._null_scores()
    names = {Path(path).name: file_id for file_id, path in snapshot.paths.items()}
    ids = snapshot.windows["file_id"]
    scores = snapshot.vectors @ index._embed_texts([query.text for query in queries]).T  # (N, queries)
    best = []
    for column, query in zip(scores.T, queries, strict=True):
        searched = snapshot.searchable & ((ids == names[query.file]) | (not within_file))
        top = float(column[searched].max())
        best.append((top, float(confidence_of(np.array([top]), nulls.best(snapshot.files_of(searched)))[0])))
    return tuple(np.array(best).T)  # type: ignore[return-value]


def alarms(present: np.ndarray, absent: np.ndarray) -> float:
    """Share of absent queries that count as found where 90 % of the present ones do."""
    return float(np.mean(absent >= np.quantile(present, 0.1)))


def nothing_tables(index: Index, present: list[Query], absent: dict[str, list[Query]]) -> tuple[str, str]:
    """False alarms at 90 % recall, and what a limit fixed beforehand does."""
    rows, fixed = [], []
    cosine_limit = np.inf
    for within_file, scope in ((False, "the whole library"), (True, "one file")):
        seen = dict(zip(("cosine", "confidence"), best_scores(index, present, within_file), strict=True))
        none = {
            kind: dict(zip(("cosine", "confidence"), best_scores(index, queries, within_file), strict=True))
            for kind, queries in absent.items()
        }
        for by in ("cosine", "confidence"):
            cells = [f"{alarms(seen[by], none[kind][by]):.0%}" for kind in KINDS]
            rows.append([f"{scope}, {by}", *cells])
        if not within_file:
            cosine_limit = float(np.quantile(seen["cosine"], 0.1))
        limits = {"cosine": cosine_limit, "confidence": FOUND_AT}
        names = {
            "cosine": f"cosine >= {cosine_limit:.2f} (90 % recall in the whole library)",
            "confidence": f"**confidence >= {FOUND_AT:g}** (default)",
        }
        for by, limit in limits.items():
            cells = [f"{np.mean(none[kind][by] >= limit):.0%}" for kind in KINDS]
            fixed.append([f"{scope}: {names[by]}", f"{np.mean(seen[by] >= limit):.0%}", *cells])
    return (
        table(["searched, judged by", *KINDS.values()], rows),
        table(["searched: rule", "events found", *(f"alarms: {name}" for name in KINDS.values())], fixed),
    )


def costs_table(index: Index, present: list[Query]) -> str:
    """What confidence and filters cost a search in this process."""
    snapshot = index._store.snapshot()
    kept = index.path / f"nulls-{snapshot.space_id}.safetensors"
    kept.unlink(missing_ok=True)
    index.close()
    started = time.perf_counter()
    index.search(present[0].text)
    first = 1000 * (time.perf_counter() - started)
    times: dict[str, list[float]] = {"with": [], "filtered": [], "without": []}
    sampling = index.settings.sampling
    for query in present[:60]:
        (vector,) = index._embed_texts([query.text])
        started = time.perf_counter()
        result = index.search_with_cost(query.text)
        times["with"].append(1000 * result.scan_seconds)
        result = index.search_with_cost(query.text, filters=Filters(path=query.file))
        times["filtered"].append(1000 * result.scan_seconds)
        started = time.perf_counter()
        find_moments(snapshot, vector, 10, step_seconds=sampling.window_seconds / sampling.frames)
        times["without"].append(1000 * (time.perf_counter() - started))
    rows = [
        ["vector to 10 moments with starts and ends", f"{np.median(times['without']):.1f} ms"],
        ["the same with names, subtitles and confidence", f"{np.median(times['with']):.1f} ms"],
        ["the same in one file only", f"{np.median(times['filtered']):.1f} ms"],
        ["the first search after indexing, which embeds and scores the null texts once", f"{first:.0f} ms"],
    ]
    return table([f"{len(snapshot.windows):,} windows, in process", "median"], rows)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "elastivid-benchmarks")
    arguments = parser.parse_args()
    library, index = prepare(arguments.cache, arguments.model)
    present, absent = queries_of(library)
    in_file, in_file_costs = locate(index, present, within_file=True)
    anywhere, anywhere_costs = locate(index, present, within_file=False)
    at_90, fixed = nothing_tables(index, present[:: max(1, len(present) // 100)][:100], absent)
    hours = sum(MINUTES) / 60
    write_page(
        "moments",
        "# Moments in long files",
        f"{machine()} Written by `python benchmarks/moments.py`; model `{arguments.model}`, space "
        f"{index.settings.space_id}, seed {SEED}.",
        f"{len(MINUTES)} rendered files of 5 to 60 minutes, {hours:.1f} hours in all, {len(present)} planted events of "
        "2 to 24 s anywhere in time: a coloured shape in motion before a still background. Every event is asked for in "
        "words. All contents are different, so in the whole library a query competes with look-alikes that differ from "
        "its event in one word. Nothing was chosen on this library: constants come from one of another seed.",
        "## Starts and ends, the file known",
        places_table(in_file, in_file_costs),
        "Brackets: 95 % Wilson interval. Costs: median of one query, the product with the windows of the library "
        "included. Hits by length of the event, share at IoU 0.7:",
        lengths_table(present, in_file),
        "## Starts and ends, the whole library searched",
        places_table(anywhere, anywhere_costs),
        "## Nothing found: false alarms where 90 % of present events count as found",
        "100 present events; 100 captions of each kind with nothing to find.",
        at_90,
        "In one and the same choice of windows confidence is a function of the cosine that never falls, so both rank "
        "queries alike there, but for ties at the top. Confidence is for what follows: one limit for all models, "
        "libraries and filters.",
        fixed,
        "The null texts of confidence describe scenes of all sorts, none of them this world of shapes. Captions of "
        "this world that happen to be absent are no unrelated queries: how often they raise an alarm is how often the "
        "model cannot tell them from what is there.",
        "## Cost",
        costs_table(index, present),
    )


if __name__ == "__main__":
    main()
