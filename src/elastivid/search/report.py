"""Search results as one self-contained HTML page: pictures inside, no address outside, videos played from disk.

Pictures of a moment are the frame in the middle of its best window and four frames spread over it, as JPEG data
addresses. Videos are linked by relative path, so the page works as long as it keeps its place beside them.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import numpy as np

from elastivid.core.errors import MissingExtraError
from elastivid.search.moments import Moment
from elastivid.search.printing import clock, pace, printable, span
from elastivid.search.records import FileRecord, LibraryError

if TYPE_CHECKING:
    from elastivid.search.index import Index, SearchResult

BEST_WIDTH_PIXELS = 640
SMALL_WIDTH_PIXELS = 320
STRIP_WIDTH_PIXELS = 144
STRIP_FRAMES = 4
SHOWN_BAD_FILES = 40


@dataclass(frozen=True)
class Pictures:
    """JPEG data addresses of a moment; `problem` says why there are none. `aspect` is width over height."""

    best: str = ""
    strip: tuple[str, ...] = ()
    aspect: float = 16 / 9
    problem: str = ""


def write_report(
    path: str | Path,
    results: Sequence[SearchResult],
    index: Index,
    *,
    title: str = "Moments found",
    answers: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Args:
        path: where to write; folders are made.
        results: one per query, shown in this order.
        index: what was searched.
        title: heading of the page.
        answers: path of the right file per query, where it is known; the page then says hit or miss.

    Raises:
        MissingExtraError: pillow is not installed.
        LibraryError: the path is a folder.
    """
    page = Path(path)
    if page.is_dir():
        raise LibraryError(f"{printable(page)} is a folder; name the page, such as {printable(page / 'moments.html')}")
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.resolve().parent
    sections = [_query_section(result, folder, (answers or {}).get(result.query)) for result in results]
    hits = [r.moments[0].path == answers[r.query] for r in results if answers and r.query in answers and r.moments]
    files = index.files()
    html = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_asset('report.css')}</style></head><body><main>",
            _header(title, results, files, hits),
            *sections,
            _footer(results, index, files),
            f"</main><script>{_asset('report.js')}</script></body></html>",
        ]
    )
    temporary = page.with_name(page.name + ".new")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(page)
    return page


def picture_moment(moment: Moment, best_width: int) -> Pictures:
    """Pictures of a moment: the best frame and a strip. A file that cannot be read yields its reason instead."""
    from elastivid.video.errors import VideoError
    from elastivid.video.reader import VideoReader

    spread = (np.arange(STRIP_FRAMES) + 0.5) / STRIP_FRAMES
    times = moment.start_seconds + spread * (moment.end_seconds - moment.start_seconds)
    wanted = np.append(times, moment.peak_seconds)
    order = np.argsort(wanted, kind="stable")
    try:
        with VideoReader(moment.path) as reader:
            clip = reader.frames_played_at(wanted[order])
    except (VideoError, OSError) as error:
        return Pictures(problem=f"no picture: {printable(str(error))}")
    if len(clip) < len(wanted):
        return Pictures(problem=f"no picture: {clip.problem}")
    frames = [clip.frames[place] for place in np.argsort(order)]
    strip = tuple(_jpeg_address(frame, STRIP_WIDTH_PIXELS) for frame in frames[:-1])
    height, width = frames[-1].shape[:2]
    return Pictures(_jpeg_address(frames[-1], best_width), strip, width / height)


def _jpeg_address(frame: np.ndarray, width: int) -> str:
    """A frame (H, W, 3) as a JPEG data address, scaled down to `width` pixels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "search") from error
    image = Image.fromarray(frame)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _asset(name: str) -> str:
    return resources.files("elastivid.search").joinpath(name).read_text(encoding="utf-8")


def _header(title: str, results: Sequence[SearchResult], files: list[FileRecord], hits: list[bool]) -> str:
    searchable = [file for file in files if file.is_searchable]
    seconds = sum(file.duration_seconds for file in searchable)
    each = np.mean([result.embed_seconds + result.scan_seconds for result in results]) * 1000 if results else 0.0
    facts = {
        "videos": f"{len(searchable):,}",
        "of video": span(seconds),
        "windows searched": f"{results[0].windows:,}" if results else "0",
        "per search": f"{each:.1f} ms",
    }
    if len(results) > 1:
        facts["queries"] = f"{len(results)}"
    if hits:
        facts["right at first place"] = f"{sum(hits)} of {len(hits)}"
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<header><div class="wordmark">elastivid</div><h1>{escape(title)}</h1>'
        '<p class="lead">Each picture is the best frame of a moment. '
        "Click one to play the moment from the file on disk.</p>"
        f'<dl class="facts">{rows}</dl></header>'
    )


def _query_section(result: SearchResult, folder: Path, answer: str | None) -> str:
    badge = ""
    if answer is not None:
        rank = next((n for n, moment in enumerate(result.moments, 1) if moment.path == answer), None)
        kind = "hit" if rank == 1 else "miss"
        text = "right at first place" if rank == 1 else f"right one at place {rank}" if rank else "right one not shown"
        badge = f'<span class="badge {kind}">{text}</span>'
    milliseconds = (result.embed_seconds + result.scan_seconds) * 1000
    under = f"<span>{len(result.moments)} moments</span><span>{milliseconds:.1f} ms</span>"
    pictures = [
        picture_moment(moment, SMALL_WIDTH_PIXELS if place else BEST_WIDTH_PIXELS)
        for place, moment in enumerate(result.moments)
    ]
    aspect = float(np.clip(np.median([p.aspect for p in pictures]), 1.2, 1.8)) if pictures else 1.6
    frame = _Frame(folder, answer, aspect, max((moment.score for moment in result.moments), default=1.0))
    cards = "".join(_card(*both, frame) for both in zip(result.moments, pictures, strict=True))
    body = '<p class="nothing">Nothing found.</p>'
    if cards:
        body = f'<div class="moments" style="--aspect:{aspect:.3f}">{cards}</div>'
    heading = f"<h2><q>{escape(printable(result.query))}</q></h2>"
    return f'<section class="query">{heading}<div class="under">{badge}{under}</div>{body}</section>'


@dataclass(frozen=True)
class _Frame:
    """What the cards of a query share: the page's folder, the right file, width over height, the best score."""

    folder: Path
    answer: str | None
    aspect: float
    best_score: float


def _card(moment: Moment, pictures: Pictures, frame: _Frame) -> str:
    times = f"{clock(moment.start_seconds)} \u2013 {clock(moment.end_seconds)}"
    name = escape(printable(os.path.basename(moment.path)))
    filling = ' class="filling"' if abs(np.log(pictures.aspect / frame.aspect)) < 0.2 else ""  # others get bars
    alt = f"{name} at {clock(moment.peak_seconds)}"
    picture = f'<img{filling} src="{pictures.best}" alt="{alt}">' if pictures.best else ""
    note = f'<span class="note">{escape(pictures.problem)}</span>' if pictures.problem else ""
    video = ""
    if os.path.exists(moment.path):
        relative = quote_from_bytes(os.fsencode(os.path.relpath(moment.path, frame.folder)))
        fragment = f"#t={moment.start_seconds:.2f},{moment.end_seconds:.2f}"
        video = f' data-video="{escape(relative)}{fragment}" data-end="{moment.end_seconds:.2f}" data-name="{name}"'
    strip = "".join(f'<img src="{address}" alt="">' for address in pictures.strip)
    texts = escape(printable("; ".join(moment.text_reasons)))
    why = f'<div class="why" title="{texts}">{texts}</div>' if texts else ""
    share = max(0.0, moment.score / frame.best_score) if frame.best_score > 0 else 0.0
    classes = "moment right" if moment.path == frame.answer else "moment"
    return (
        f'<article class="{classes}"><button class="screen" type="button"{video} title="Play {times}">'
        f'{picture}{note}<span class="play">▶ {times}</span></button><div class="strip">{strip}</div>'
        f'<div class="words"><div class="name"><b title="{escape(printable(moment.path))}">{name}</b>'
        f"<span{_sure(moment)}>{moment.score:.3f}</span></div>{why}"
        f'<div class="score"><i style="width:{share:.0%}"></i></div></div></article>'
    )


def _sure(moment: Moment) -> str:
    return "" if moment.confidence is None else f' title="confidence {moment.confidence:.3f}"'


def _footer(results: Sequence[SearchResult], index: Index, files: list[FileRecord]) -> str:
    settings = index.settings
    sampling, point = settings.sampling, settings.point
    spent = {
        "model": f"{settings.model} (space {settings.space_id}, licence of the weights: {settings.licence})",
        "a window": f"{sampling.window_seconds:g} s every {sampling.stride_seconds:g} s, {sampling.frames} frames of "
        f"{sampling.size} px, {sampling.decode} decoding",
        "spent on a window": f"{point.tokens or 'all'} tokens, {settings.gmacs_per_window:.2f} GMACs",
    }
    runs = index.runs()
    if runs:
        run = runs[-1]
        spent["last indexing"] = (
            f"{run['windows']} windows, {run['video_seconds']:.0f} s of video in {run['elapsed_seconds']:.1f} s: "
            f"{pace(run['x_realtime'])} realtime"
        )
    if results:
        spent["turning words into a vector"] = f"{np.median([r.embed_seconds for r in results]) * 1000:.1f} ms (median)"
        spent["scoring every window"] = f"{np.median([r.scan_seconds for r in results]) * 1000:.2f} ms (median)"
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(printable(v))}</td></tr>" for k, v in spent.items())
    bad = [file for file in files if file.status != "indexed"]
    bad_rows = "".join(
        f"<tr><th>{escape(printable(os.path.basename(file.path)))}</th>"
        f"<td>{escape(file.status)}: {escape(printable(file.reason))}</td></tr>"
        for file in bad[:SHOWN_BAD_FILES]
    )
    more = f"<p>and {len(bad) - SHOWN_BAD_FILES} more</p>" if len(bad) > SHOWN_BAD_FILES else ""
    none = '<p class="nothing">None: every file was read.</p>'
    right = f'<table class="bad">{bad_rows}</table>{more}' if bad else none
    return (
        f'<footer class="columns"><div><h3>What was spent</h3><table>{rows}</table></div>'
        f"<div><h3>Files with trouble</h3>{right}</div></footer>"
    )
