"""`Index`: add folders, search them in words or by example.

    index = Index.open("library.ev")
    index.add("~/Videos")
    for moment in index.search("juggling"):
        print(moment.path, moment.start_seconds, moment.end_seconds, moment.score)

Searching in words loads neither torch nor lancedb; `add` and searching by example load both torch and av.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.confidence import FOUND_AT, NullScores, null_scores
from elastivid.search.filters import Filters
from elastivid.search.library import roots_of
from elastivid.search.moments import Moment
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, LibraryError
from elastivid.search.searching import Request, Searcher, SearchResult
from elastivid.search.snapshot import Snapshot
from elastivid.search.store import Settings, Store
from elastivid.search.words import Words
from elastivid.weights.hub import UNKNOWN_LICENCE, is_hub
from elastivid.weights.licence import ANY, require_licence
from elastivid.weights.usual import usual

if TYPE_CHECKING:
    from elastivid.core.budget import Budget
    from elastivid.core.cost import Cost
    from elastivid.core.plan import Plan
    from elastivid.search.indexing import Engine, Progress, Spent
    from elastivid.search.prints import Duplicates
    from elastivid.search.prune import Prunable
    from elastivid.search.reindex import ReindexReport
    from elastivid.search.status import IndexStatus
    from elastivid.search.text import TextEncoder
    from elastivid.video.source import Limits

DEFAULT_MODEL = "nano"


class Encoder(Protocol):
    """What an index needs of a model; `elastivid.models.base.DualEncoder` has it."""

    name: str
    dim: int
    transform: Any

    @property
    def space_id(self) -> str: ...
    def embed_clips(self, video: Any, *, point: OperatingPoint | None = None) -> Any: ...
    def embed_texts(self, texts: Sequence[str]) -> Any: ...
    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost: ...


@dataclass(frozen=True)
class AddReport:
    """What `Index.add` did.

    Args:
        indexed: files read completely.
        unchanged: files that needed nothing, those known to be bad included.
        recognised: files that were not read because their content was known: moved, renamed, copied, touched, back
            again, or read by another process meanwhile.
        bad: records of this run's partial, failed and crashed files, each with its reason.
        still_bad: records of unchanged files that are partial or failed.
        missing: files found gone from a folder that exists; kept in the index, left out of results.
        unlisted: why folders could not be listed; what they hold was not looked at.
        windows: windows embedded.
        video_seconds: duration of what was read.
        elapsed_seconds: wall time.
        spent: where the time went.
        plan: the plan that was carried out, if a budget was given.
    """

    indexed: int
    unchanged: int
    recognised: int
    bad: list[FileRecord]
    still_bad: list[FileRecord]
    missing: list[FileRecord]
    unlisted: list[str]
    windows: int
    video_seconds: float
    elapsed_seconds: float
    spent: Spent
    plan: Plan | None = None

    @property
    def x_realtime(self) -> float:
        """Seconds of video per second of work."""
        return self.video_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def to_values(self) -> dict[str, Any]:
        """Counts and seconds, as values for JSON."""
        return {
            "files": self.indexed,
            "recognised": self.recognised,
            "bad_files": len(self.bad),
            "windows": self.windows,
            "video_seconds": round(self.video_seconds, 3),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "x_realtime": round(self.x_realtime, 1),
            **{name: round(value, 3) for name, value in asdict(self.spent).items()},
            **({} if self.plan is None else {"budget": self.plan.budget, "plan": self.plan.fingerprint}),
        }


class Index:
    """A searchable library of videos. Make one with `Index.open`."""

    def __init__(self, path: Path, settings: _Wanted) -> None:
        self.path = path
        self._store = Store(path)
        self._words = Words(path)
        self._wanted = settings
        self._nulls: tuple[Snapshot, NullScores] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        sampling: Sampling | None = None,
        point: OperatingPoint | None = None,
        allow_download: bool = False,
        licence: str = ANY,
        full_hash: bool | None = None,
    ) -> Index:
        """An existing index, or a new one that the first `add` writes to disk.

        Args:
            path: folder of the index, by custom `<name>.ev`.
            model: name, file or `hf:` address of the model; None takes what the index was made with, "nano" for a new
                one.
            encoder: a model object instead of a name.
            sampling: None takes what the index was made with, `Sampling()` for a new one (`hf:` models: 4 frames of the
                model's size).
            point: None takes what the index was made with, for a new one 256 tokens (`hf:` models: all).
            allow_download: fetch an `hf:` model that is not in the local cache.
            licence: "permissive" refuses weights that state another one; not for an `encoder` object.
            full_hash: tell files apart by all of their bytes instead of samples of them (see `identity`). None takes
                what the index was made with, False for a new one.

        Raises:
            LibraryError: the path is a file, something asked for differs from what the existing index was made with, or
                a licence is required of an `encoder` object.
        """
        if encoder is not None and licence != ANY:
            raise LibraryError("a licence can be required of a model that is named, not of an encoder object")
        folder = Path(os.path.abspath(os.path.expanduser(path)))
        if folder.exists() and not folder.is_dir():
            raise LibraryError(f"an index is a folder, but {printable(folder)} is a file; choose another path")
        if not Store(folder).exists and not Store(folder).may_begin:
            raise LibraryError(f"{printable(folder)} is a folder that is not an index; choose another path")
        index = cls(folder, _Wanted(model, encoder, sampling, point, allow_download, licence, full_hash))
        if index._store.exists:
            index._wanted.require_fit(index._store.settings(), folder)
        return index

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the snapshot. The index stays usable and loads it again when needed."""
        self._store = Store(self.path)
        self._nulls = None

    def __len__(self) -> int:
        """Number of windows that take part in searches."""
        return int(np.count_nonzero(self._store.snapshot().searchable)) if self._store.exists else 0

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r})"

    @property
    def settings(self) -> Settings:
        """What the index was made with.

        Raises:
            LibraryError: there is no index yet.
        """
        return self._store.settings()

    def files(self) -> list[FileRecord]:
        """Records of all files, by path; bad and missing ones included. Copies of a file share a record."""
        return sorted(self._store.snapshot().records.values(), key=lambda record: record.path)

    def runs(self) -> list[dict[str, Any]]:
        """What each run of `add` that read something did, oldest first: counts, seconds, x realtime."""
        return self._store.runs()

    def duplicates(self, *, progress: Callable[[int, int], None] | None = None) -> Duplicates:
        """Groups of files that show the same: equal bytes, re-encodes, crops, trims, copies with a lead-in.

        Looks at up to 256 frames of every file that it has not looked at before, in worker processes, and keeps what
        it saw beside the index.

        Args:
            progress: called with files done and files to look at.

        Raises:
            LibraryError: there is no index.
            OSError: the index's folder cannot be written.
        """
        from elastivid.search.prints import find_duplicates

        return find_duplicates(self.files(), self.path / "prints", progress=progress)

    # adding

    def plan(
        self,
        sources: str | Path | Iterable[str | Path],
        budget: Budget | str,
        *,
        progress: Callable[[float, float, str], None] | None = None,
    ) -> Plan:
        """What a budget buys for adding `sources`, see `elastivid.search.planned`; `add` carries it out.

        The first budget that limits time measures this machine for about two minutes; `progress` is called meanwhile
        with seconds done, seconds in all, and what is measured.

        Raises:
            BudgetError: the budget cannot be read or kept; the message names the cheapest plan there is.
            LibraryError: a source does not exist.
        """
        from elastivid.core.budget import Budget
        from elastivid.search.planned import plan_for_index

        roots = roots_of([sources] if isinstance(sources, str | Path) else sources)
        return plan_for_index(self, roots, Budget.parse(budget) if isinstance(budget, str) else budget, progress)

    def add(
        self,
        sources: str | Path | Iterable[str | Path],
        *,
        progress: Callable[[Progress], None] | None = None,
        retry_failed: bool = False,
        notify: Callable[[str], None] | None = None,
        limits: Limits | None = None,
        allow_url: bool = False,
        engine: Engine | None = None,
        budget: Budget | str | None = None,
        plan: Plan | None = None,
    ) -> AddReport:
        """Bring the index up to date with folders or files: only new and changed files are read.

        Files are known by their content: one that was moved, renamed or copied is not read again. Files that cannot be
        read are recorded with the reason and left alone until they change. Files that are gone are kept and left out of
        results; `prune` forgets them. When interrupted or killed, finished files are kept and the next call goes on.
        Several processes may add at the same time: they share the work.

        Args:
            sources: folder, file, or several of them; an http or https address where `allow_url` permits.
            progress: called about once per batch.
            retry_failed: read files again that failed before although they did not change.
            notify: is told in words when another process has to be waited for.
            limits: what reading one file may cost; a file beyond them is reported, and the others are read.
            allow_url: also read addresses of single videos. Nothing is fetched otherwise.
            engine: what turns files into vectors; None takes `elastivid.search.indexing.Pipeline`, this machine.
            budget: what may be spent, such as "20x": decides what a new index reads and spends on a window, and how the
                model runs.
            plan: instead of a budget, what `plan` returned for it.

        Raises:
            BudgetError: the budget cannot be kept.
            LibraryError: a source does not exist or is an address that is not allowed, the index was made by another
                model, or the disk is full.
            WorkerError: processes that read files cannot be started.
        """
        from elastivid.search.adding import Adding, Means
        from elastivid.search.indexing import Pipeline
        from elastivid.video.source import Limits

        roots = roots_of([sources] if isinstance(sources, str | Path) else sources)
        plan = self.plan(roots, budget) if budget is not None else plan
        if plan is not None:
            engine = self._engine_of(plan, engine)
        means = Means(limits or Limits(), allow_url, engine or Pipeline, plan)
        return Adding(self, progress, notify, means).run(roots, retry_failed)

    # keeping

    def status(self) -> IndexStatus:
        """State of the index: files by state, spaces, sizes, last runs. Looks at every known file, opens none.

        Raises:
            LibraryError: there is no index.
        """
        from elastivid.search.status import status_of

        return status_of(self._store)

    def prunable(self, folders: Iterable[str | Path] = (), *, unfinished: bool = False) -> Prunable:
        """What `prune` would forget: files that are nowhere any more, vectors of models that nobody searches.

        Args:
            folders: only files in them; all when there is none.
            unfinished: also a `reindex` that has not ended.

        Raises:
            LibraryError: there is no index.
        """
        from elastivid.search.prune import find_prunable

        self._store.settings()
        return find_prunable(self._store, folders, unfinished=unfinished)

    def prune(self, prunable: Prunable, *, force: bool = False, notify: Callable[[str], None] | None = None) -> None:
        """Forget what `prunable` found, and make the index as small as it can be.

        Args:
            prunable: what to forget; what came back since is kept.
            force: also when folders look like disks that are not mounted.
            notify: is told in words when another process has to be waited for.

        Raises:
            LibraryError: folders look like disks that are not mounted.
        """
        from elastivid.search.prune import prune

        prune(self._store, self._store.writer(self.settings, notify), prunable, force=force)

    def reindex(
        self,
        *,
        progress: Callable[[Progress], None] | None = None,
        notify: Callable[[str], None] | None = None,
        drop_old: bool = False,
    ) -> ReindexReport:
        """Move the index to the model that it was opened with: `Index.open(path, model="other").reindex()`.

        Searches use the old vectors until the new ones are complete. When interrupted or killed, the same call goes on.

        Args:
            progress: called about once per batch.
            notify: is told in words when another process has to be waited for.
            drop_old: delete the old vectors at the end; else `prune` does.

        Raises:
            LibraryError: there is no index, or it is made with that model already.
        """
        from elastivid.search.examples import transform_of
        from elastivid.search.reading import Reading
        from elastivid.search.reindex import Reindexing

        self._store.settings()
        after = self._settings_of_model(self._store.settings())
        reading = Reading(after.sampling, transform=transform_of(self._encoder))
        return Reindexing(self._store, self._encoder, after, reading, progress, notify).run(drop_old)

    def _engine_of(self, plan: Plan, engine: Engine | None) -> Engine:
        """What carries out `plan`, whose sampling and point a new index takes over."""
        from elastivid.search.indexing import Pipeline
        from elastivid.search.planned import PlannedPipeline

        if engine not in (None, Pipeline):
            raise LibraryError("a plan says how this machine runs; leave out either the budget or the engine")
        self._wanted = replace(self._wanted, sampling=plan.sampling, point=plan.point)
        if self._store.exists:
            self._wanted.require_fit(self._store.settings(), self.path)
        return PlannedPipeline(plan)

    # searching

    def search(
        self,
        query: str | None = None,
        *,
        like: str | Sequence[str] = (),
        top: int = 10,
        filters: Filters | None = None,
        per_file: int | None = None,
        refine: bool = False,
        min_confidence: float = FOUND_AT,
    ) -> list[Moment]:
        """The best distinct moments for words, for examples, or for both together; none when nothing is found.

        Args:
            query: what to look for, in words.
            like: `"photo.jpg"`, `"clip.mp4@12.5s"` or `"clip.mp4@3s-5s"`, or several: moments that look like these.
            top: how many moments to return at most.
            filters: which files to search.
            per_file: most moments of one file while other files have any left; None means half of `top`.
            refine: find starts and ends among single frames: slower, it decodes them.
            min_confidence: below this confidence of the best moment nothing counts as found; 0 returns the best guesses
                whatever they are worth.

        Raises:
            QueryError: there is nothing to look for, or a value cannot be understood.
            LibraryError: there is no index, or it was made by another model.
            VideoError: an example cannot be read.
        """
        result = self.search_with_cost(
            query,
            like=like,
            top=top,
            filters=filters,
            per_file=per_file,
            refine=refine,
            min_confidence=min_confidence,
        )
        return result.moments if result.found else []

    def search_with_cost(
        self,
        query: str | None = None,
        *,
        like: str | Sequence[str] = (),
        top: int = 10,
        filters: Filters | None = None,
        per_file: int | None = None,
        refine: bool = False,
        min_confidence: float = FOUND_AT,
    ) -> SearchResult:
        """`search` with all that is known: best guesses even when nothing is found, confidence, what it took."""
        likes = (like,) if isinstance(like, str) else tuple(like)
        request = Request(query, likes, top, filters or Filters(), per_file, refine, min_confidence)
        settings = self._store.settings()
        searcher = Searcher(
            self._store.snapshot(),
            settings,
            self._wanted.point or settings.point,
            self._null_scores,
            self._embed_texts,
            self._encoder_for_queries,
            self._words,
            self._model_knows,
        )
        return searcher.answer(request)

    def _model_knows(self, word: str) -> bool:
        """Whether the text tower has an entry for a word; of an encoder object nothing is known."""
        if self._wanted.encoder is not None:
            return True
        if self._texts_need_torch:
            from elastivid.models.base import DualEncoder

            return not isinstance(self._encoder, DualEncoder) or self._encoder.has_word(word)
        return self._text_encoder[0].tokenizer.has_word(word)

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, D) of texts."""
        made_by = self._store.settings()
        if self._wanted.encoder is not None or self._texts_need_torch:
            return np.asarray(self._encoder_for_queries().embed_texts(texts), dtype=np.float32)
        encoder, space_id = self._text_encoder
        _require_space(made_by, space_id, self._model_name, self.path)
        return encoder.embed(texts)

    def _null_scores(self) -> NullScores:
        """Best scores of null texts in the files of the newest snapshot."""
        snapshot = self._store.snapshot()
        if self._nulls is None or self._nulls[0] is not snapshot:
            kept = self.path / f"nulls-{snapshot.space_id}.safetensors"
            self._nulls = snapshot, null_scores(kept, snapshot, self._embed_texts)
        return self._nulls[1]

    def _encoder_for_queries(self) -> Encoder:
        """The whole model, which must be the one that the index was made with."""
        _require_space(self._store.settings(), self._encoder.space_id, self._encoder.name, self.path)
        return self._encoder

    # models

    @property
    def _model_name(self) -> str:
        if self._wanted.model is not None:
            return self._wanted.model
        return self._store.settings().model if self._store.exists else DEFAULT_MODEL

    @cached_property
    def _encoder(self) -> Encoder:
        if self._wanted.encoder is not None:
            return self._wanted.encoder
        from elastivid.weights.load import load

        return load(self._model_name, allow_download=self._wanted.allow_download, licence=self._wanted.licence)

    @cached_property
    def _texts_need_torch(self) -> bool:
        from elastivid.weights.load import texts_need_torch

        return texts_need_torch(self._model_name)

    @cached_property
    def _text_encoder(self) -> tuple[TextEncoder, str]:
        """The text tower without torch, and the space of its model."""
        from elastivid.search.text import TextEncoder
        from elastivid.weights.load import read_metadata, resolve, stated_licence

        path = resolve(self._model_name)
        metadata = read_metadata(path)
        require_licence(self._wanted.licence, stated_licence(metadata), self._model_name)
        return TextEncoder.from_file(path), metadata["space_id"]

    def _settings_for_writing(self) -> Settings:
        """What the index is made with. An existing index says so itself, and no model is loaded for it."""
        return self._store.settings() if self._store.exists else self._settings_of_model()

    def _settings_of_model(self, before: Settings | None = None) -> Settings:
        """What the model makes vectors with; where the index moves from another one, in windows of the same length."""
        from elastivid.models.base import DualEncoder

        model = self._encoder.name if self._wanted.encoder is not None else self._model_name
        plain, full = usual(self._encoder)
        if is_hub(model):
            model = self._encoder.name
        if before is not None:
            length, stride = before.sampling.window_seconds, before.sampling.stride_seconds
            plain = replace(plain, window_seconds=length, stride_seconds=stride, decode=before.sampling.decode)
        sampling, point = self._wanted.sampling or plain, self._wanted.point or full
        return Settings(
            model=os.path.abspath(os.path.expanduser(model)) if model.endswith(".safetensors") else model,
            space_id=self._encoder.space_id,
            dim=self._encoder.dim,
            sampling=sampling,
            point=point,
            gmacs_per_window=self._encoder.cost(frames=sampling.frames, size=sampling.size, point=point).gmacs,
            licence=self._encoder.licence if isinstance(self._encoder, DualEncoder) else UNKNOWN_LICENCE,
            full_hash=before.full_hash if before else bool(self._wanted.full_hash),
        )

    def _encoder_for_writing(self, settings: Settings) -> Encoder:
        """The model, which must be the one that the index was made with."""
        _require_space(settings, self._encoder.space_id, self._encoder.name, self.path)
        return self._encoder

    @property
    def _asks_for_a_model(self) -> bool:
        """Whether the caller named a model or gave one: it is compared even when there is nothing to do."""
        made_by = self._store.settings().model if self._store.exists else None
        wanted = self._wanted
        return wanted.encoder is not None or wanted.model not in (None, made_by) or wanted.licence != ANY


@dataclass(frozen=True)
class _Wanted:
    """What the caller of `Index.open` asked for; None means: what the index was made with."""

    model: str | None
    encoder: Encoder | None
    sampling: Sampling | None
    point: OperatingPoint | None
    allow_download: bool = False
    licence: str = ANY
    full_hash: bool | None = None

    def require_fit(self, made_with: Settings, path: Path) -> None:
        """Raise LibraryError when something differs from what an index was made with. The model is compared later."""
        if self.sampling is not None and self.sampling != made_with.sampling:
            raise LibraryError(
                f"{printable(path)} was made with {made_with.sampling}, asked for {self.sampling}; "
                "scores of different windows do not compare: leave sampling out or use another path"
            )
        if self.point is not None and _numbers(self.point) != _numbers(made_with.point):
            raise LibraryError(
                f"{printable(path)} was made with {made_with.point}, asked for {self.point}; scores of windows that "
                "were given different amounts of work do not compare well: leave point out or use another path"
            )
        if self.full_hash and not made_with.full_hash:
            raise LibraryError(
                f"{printable(path)} tells files apart by samples of their bytes; to use all of them, index into "
                "another path with full_hash (--full-hash)"
            )


def _numbers(point: OperatingPoint) -> tuple[Any, ...]:
    return point.tokens, point.width, point.memory_tokens


def _require_space(made_by: Settings, space_id: str, name: str, path: Path) -> None:
    if made_by.space_id != space_id:
        way_out = "delete this index" if name == made_by.model else f"use --model {made_by.model}"
        raise LibraryError(
            f"{printable(path)} was made with model {made_by.model!r} (space {made_by.space_id}), but {name!r} has "
            f"space {space_id}: their vectors do not compare; {way_out}, index into another path, or move this index "
            f"to the other model with: elastivid reindex --model {name}"
        )
