"""`Planner`: `Budget` -> `Plan`, the best known accuracy within what may be spent.

Where accuracy was measured on the very weights (`fronts` in their metadata), the measured point with the highest
accuracy that fits is taken, interpolated between token counts. Where it was not, a stated prior decides: float32 goes
first, then tokens, down to the fewest the weights were trained at (else a sixteenth of the grid), then width, then
frames and frame size. The prior follows published numbers: FluxViT-S loses 1.4 points at a third of its tokens and 3.3
at a sixth (arXiv 2503.14237), AdaVid falls sharply at a quarter of its width (arXiv 2504.12513).

Times come from a `Profile` of this machine. Limits on time are kept with a margin that the profile states about itself.

x realtime counts reading as well, see `elastivid.planning.reading`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from elastivid.core.budget import Budget
from elastivid.core.cost import Cost, hardware_key
from elastivid.core.errors import BudgetError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.planning.profile import Profile
from elastivid.planning.reading import Reading, Source
from elastivid.planning.subject import ITEM_BYTES, Front, Subject, require_axes

Width = int | tuple[int, ...]

TOKEN_STEP = 8
MEMORY = ("state_megabytes", "total_megabytes")
MEMORY_MARGIN = 0.1  # closed forms of peak memory are right to a tenth (benchmarks/plan.py)
SLOWED = 0.1  # slower than this is worth a word
BUSY = 0.25  # a margin above this comes from a machine that was disturbed while it was measured
FRAME_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
SIZE_SHARES = (1.0, 5 / 6, 2 / 3, 1 / 2)
LEAST_SHARE = 0.25  # of the native patches; smaller grids come after giving up exact decoding
UNITS = {
    "gmacs_per_clip": "GMACs",
    "milliseconds_per_clip": "ms",
    "realtime_factor": "x realtime",
    "state_megabytes": "MB above the weights",
    "total_megabytes": "MB in total",
    "tokens_per_clip": "tokens",
}
PRIOR = (
    "not measured for these weights; prior: keep float32, the whole grid and full width, give up tokens first, then "
    "width, then frames and frame size"
)


@dataclass(frozen=True)
class Estimate:
    """One candidate with what it is predicted to cost.

    Args:
        sampling, point, runtime: the candidate.
        tokens: patch tokens of a clip.
        cost: predicted cost of one clip; activations are those of all clips that run at the same time.
        realtime_factor: predicted x realtime, or `None` where times are not known.
        accuracy: measured or interpolated accuracy, or `None`.
    """

    sampling: Sampling
    point: OperatingPoint
    runtime: Runtime
    tokens: int
    cost: Cost
    realtime_factor: float | None
    accuracy: float | None = None

    def spent(self, name: str) -> float | None:
        """What a limit of a budget is compared with."""
        above = (self.cost.activation_bytes + self.cost.state_bytes) / 1e6
        return {
            "gmacs_per_clip": self.cost.gmacs,
            "milliseconds_per_clip": self.cost.milliseconds,
            "realtime_factor": self.realtime_factor,
            "state_megabytes": above,
            "total_megabytes": self.cost.total_bytes / 1e6,
            "tokens_per_clip": float(self.tokens),
        }[name]

    def broken(self, budget: Budget, margin: float) -> list[str]:
        """Limits that are not kept, times with `margin`: "milliseconds_per_clip: 52 ms, limit 40"."""
        found = []
        for name, limit in budget.limits().items():
            value = self.spent(name)
            if value is None:
                kept = False
            elif name == "realtime_factor":
                kept = value >= limit * (1 + margin)
            elif name == "milliseconds_per_clip":
                kept = value * (1 + margin) <= limit
            elif name in MEMORY:
                kept = value * (1 + MEMORY_MARGIN) <= limit
            else:
                kept = value <= limit
            if not kept:
                found.append(_against(name, value, limit, margin))
        return found


@dataclass(frozen=True)
class Fixed:
    """What a plan may not choose.

    Args:
        sampling: frames, size and decoding stay as given.
        size: the frame size stays; frames and decoding may change.
        point: tokens and width stay at these; `None` leaves them free.
        way: threads, workers and batch stay at these; precision is free.
    """

    sampling: bool = False
    size: bool = False
    point: OperatingPoint | None = None
    way: Runtime | None = None


class Planner:
    """Finds plans for one model on one machine.

    Args:
        subject: the model.
        profile: measured times; `None` plans without times, and refuses budgets that limit them.
        reading: measured costs of reading video, needed for x realtime.
        source: the video that will be read.
        sampling: how windows lie in a video; its frames and size are a proposal, those of the model by default.
        fixed: what is not free.

    Raises:
        PointError: `sampling` is no grid that the model can read: sides are no multiples of its patch, or frames of its
            tubelet.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        profile: Profile | None = None,
        reading: Reading | None = None,
        source: Source | None = None,
        sampling: Sampling | None = None,
        fixed: Fixed | None = None,
    ) -> None:
        self.subject = subject
        self.profile = profile
        self.reading = reading
        self.source = source or Source()
        self.sampling = sampling or Sampling(frames=subject.frames, size=subject.size)
        self.fixed = fixed or Fixed()
        if not subject.reads_any_grid:
            self.fixed = replace(self.fixed, sampling=True)
        else:
            self.subject.require_grid(self.sampling.frames, self.sampling.size)

    def plan(self, budget: Budget) -> Plan:
        """The best plan within `budget`.

        Raises:
            BudgetError: no plan keeps it; the message names the cheapest one there is. Or it limits what cannot be
                known: times without a profile, or tokens of a family that has no such axis.
        """
        require_axes(self.subject, budget.tokens_per_clip)
        limits = budget.limits()
        if self.profile is None and {"milliseconds_per_clip", "realtime_factor"} & set(limits):
            raise BudgetError(f"{budget} limits time, and {self.subject.address} was not profiled on this machine yet")
        if self.reading is None and "realtime_factor" in limits:
            raise BudgetError(f"{budget} limits x realtime, and reading video was not profiled on this machine yet")
        chosen = self._from_front(budget) or self._from_prior(budget)
        if chosen is None:
            cheapest = self.cheapest(budget)
            raise BudgetError(
                f"no plan for {self.subject.address} keeps {budget}; the cheapest there is, "
                f"{describe_estimate(cheapest)}, means {' and '.join(cheapest.broken(budget, self.margin))}"
                + ("" if self.fixed.point else "; allow that much, or take a smaller model")
            )
        return Plan(
            chosen.sampling,
            chosen.point,
            chosen.runtime,
            chosen.cost,
            self._reasons(budget, chosen),
            self.subject.address,
            str(budget),
            chosen.realtime_factor,
        )

    @property
    def margin(self) -> float:
        """Share that plans stay below limits on time."""
        return self.profile.margin if self.profile else 0.0

    def cheapest(self, budget: Budget) -> Estimate:
        """The candidate that spends the least of what `budget` limits."""
        samplings = list(self._samplings(budget))
        width = self._widths[0]

        def excess(estimate: Estimate) -> tuple[float, float]:
            over = 0.0
            for name, limit in budget.limits().items():
                value = estimate.spent(name) or 0.0
                ratio = limit / value if name == "realtime_factor" and value else value / limit
                over = max(over, ratio)
            return over, float(estimate.cost.macs)

        candidates = [
            self.estimate(sampling, self._fewest(sampling), width, runtime)
            for sampling in samplings
            for runtime in self._runtimes(budget)
        ]
        return min(candidates, key=excess)

    def dearest(self, budget: Budget) -> Estimate:
        """Everything the model has, in float32, run the way that spends the least of what `budget` limits first."""
        native, name = self.sampling, next(iter(budget.limits()))
        tokens = self.subject.available_tokens(native.frames, native.size)
        ways = [runtime for runtime in self._runtimes(budget) if runtime.precision == "float32"]
        estimates = [self.estimate(native, tokens, self.subject.full_width, runtime) for runtime in ways]
        return min(estimates, key=lambda e: (e.spent(name) or 0.0) * (-1 if name == "realtime_factor" else 1))

    def estimate(self, sampling: Sampling, tokens: int, width: Width, runtime: Runtime) -> Estimate:
        """Predicted cost of one candidate."""
        subject = self.subject
        point = OperatingPoint(
            tokens=tokens if "tokens" in subject.axes else None,
            width=width if width != subject.full_width else None,
        )
        cost = subject.cost(sampling.frames, sampling.size, point)
        milliseconds = hardware = realtime = None
        if self.profile is not None:
            milliseconds = self.profile.predict(sampling.frames, sampling.size, point, runtime)
            hardware = self._hardware(runtime)
            if self.reading is not None:
                realtime = self.reading.realtime_factor(self.source, sampling, milliseconds)
        cost = replace(
            cost,
            parameter_bytes=cost.parameter_bytes * ITEM_BYTES[runtime.precision] // 4,
            activation_bytes=subject.activation_bytes(sampling.frames, sampling.size, point, runtime),
            milliseconds=milliseconds,
            hardware=hardware,
        )
        return Estimate(sampling, point, runtime, tokens, cost, realtime)

    # the search

    def _from_prior(self, budget: Budget) -> Estimate | None:
        """The first of grids and widths, best first, at which some token count fits; then the most tokens."""
        for sampling in self._samplings(budget):
            for width in reversed(self._widths):
                found = self._most_tokens(budget, sampling, width)
                if found is not None:
                    return found
        return None

    def _most_tokens(self, budget: Budget, sampling: Sampling, width: Width) -> Estimate | None:
        """The candidate with the most tokens that fits; among equals float32, then the fastest."""
        fitting = []
        for runtime in self._runtimes(budget):
            counts = self._counts(sampling)
            low, high = 0, len(counts)  # counts[:low] fit, counts[high:] do not
            while low < high:
                middle = (low + high) // 2
                estimate = self.estimate(sampling, counts[middle], width, runtime)
                if self._fits(budget, estimate):
                    low = middle + 1
                else:
                    high = middle
            if low:
                fitting.append(self.estimate(sampling, counts[low - 1], width, runtime))
        return max(fitting, key=_preference, default=None)

    def _from_front(self, budget: Budget) -> Estimate | None:
        """The candidate with the highest measured accuracy that fits, or `None` where nothing measured does."""
        if not self.subject.fronts or self.fixed.point is not None:
            return None
        fitting = []
        for sampling, width, counts in _measured(self.subject.fronts[0], self.sampling):
            same_grid = (sampling.frames, sampling.size) == (self.sampling.frames, self.sampling.size)
            if (self.fixed.sampling and not same_grid) or width not in self._widths:
                continue
            if self.fixed.size and sampling.size != self.sampling.size:
                continue
            found = self._most_tokens(budget, sampling, width)
            if found is None:
                continue
            for tokens in {min(found.tokens, max(counts)), *(count for count in counts if count <= found.tokens)}:
                if tokens >= min(counts):
                    ways = [self.estimate(sampling, tokens, width, runtime) for runtime in self._runtimes(budget)]
                    best = max((way for way in ways if self._fits(budget, way)), key=_preference, default=None)
                    if best is not None:
                        fitting.append(replace(best, accuracy=_interpolate(counts, tokens)))
        return max(fitting, key=lambda e: (e.accuracy, *_preference(e)[1:]), default=None)

    def _fits(self, budget: Budget, estimate: Estimate) -> bool:
        """Whether a candidate is predicted to keep the budget, and the prediction can be trusted."""
        if estimate.broken(budget, self.margin):
            return False
        return not self._is_extrapolated(estimate) or self._reaches_furthest(budget, estimate.runtime)

    def _is_extrapolated(self, estimate: Estimate) -> bool:
        sampling = estimate.sampling
        return self.profile is not None and self.profile.is_extrapolated(
            sampling.frames, sampling.size, estimate.point, estimate.runtime
        )

    def _reaches_furthest(self, budget: Budget, runtime: Runtime) -> bool:
        """Whether no way of running was measured at dearer points: only such a way is trusted beyond what it was."""
        if self.profile is None:
            return True
        return self.profile.most_macs(runtime) >= max(map(self.profile.most_macs, self._runtimes(budget)))

    def _counts(self, sampling: Sampling) -> list[int]:
        """Token counts that are considered on a grid, ascending."""
        available = self.subject.available_tokens(sampling.frames, sampling.size)
        if "tokens" not in self.subject.axes:
            return [available]
        if self.fixed.point is not None:
            return [min(self.fixed.point.tokens or available, available)]
        fewest = self._fewest(sampling)
        steps = range(math.ceil(fewest / TOKEN_STEP) * TOKEN_STEP, available, TOKEN_STEP)
        return sorted({fewest, *steps, available})

    def _fewest(self, sampling: Sampling) -> int:
        available = self.subject.available_tokens(sampling.frames, sampling.size)
        if self.fixed.point is not None:
            return min(self.fixed.point.tokens or available, available)
        return available if "tokens" not in self.subject.axes else min(self.subject.fewest_tokens, available)

    @property
    def _widths(self) -> tuple[Width, ...]:
        """Widths that may be taken, ascending."""
        if self.fixed.point is None:
            return self.subject.trained_widths
        return (self.fixed.point.width or self.subject.full_width,)

    def _samplings(self, budget: Budget) -> Iterator[Sampling]:
        """What may be read, best first."""
        yield self.sampling
        if self.fixed.sampling:
            return
        grids = self._smaller_grids()
        native = self.sampling.frames * self.sampling.size**2
        near = [grid for grid in grids if grid[0] * grid[1] ** 2 >= LEAST_SHARE * native]
        coarse = budget.realtime_factor is not None and self.sampling.decode == "exact"
        order = [(grid, self.sampling.decode) for grid in near]
        if coarse:
            order += [(grid, "keyframes") for grid in [(self.sampling.frames, self.sampling.size), *near]]
        for grid in grids[len(near) :]:
            order += [(grid, self.sampling.decode)] + ([(grid, "keyframes")] if coarse else [])
        for (frames, size), decode in order:
            yield replace(self.sampling, frames=frames, size=size, decode=decode)

    def _smaller_grids(self) -> list[tuple[int, int]]:
        """Frames and size below the proposed ones, more pixels first, more frames first among equals."""
        patch = int(self.subject.config.patch_size)
        frames = {self.subject.whole_tubelets(self.sampling.frames * share) for share in FRAME_SHARES}
        sizes = {max(patch, round(self.sampling.size * share) // patch * patch) for share in SIZE_SHARES}
        if self.fixed.size:
            sizes = {self.sampling.size}
        grids = {(f, s) for f in frames for s in sizes} - {(self.sampling.frames, self.sampling.size)}
        return sorted(grids, key=lambda grid: (-grid[0] * grid[1] ** 2, -grid[0]))

    def _runtimes(self, budget: Budget) -> list[Runtime]:
        """Ways to run that were measured and that the budget leaves open; without a profile one of unknown speed."""
        if self.profile is None:
            return [self.fixed.way or Runtime(batch=budget.batch or 1)]
        measured = self.profile.runtimes
        if self.fixed.way is not None:
            precisions = dict.fromkeys(way.precision for way in measured)
            return [replace(self.fixed.way, precision=precision) for precision in precisions]
        if budget.milliseconds_per_clip is not None:
            batch = budget.batch or 1
            ways = {replace(way, batch=1) for way in measured if way.workers == 1}
        else:
            batch = budget.batch or 0
            ways = set(measured) if not batch else {w for w in measured if w.batch <= batch}
        chosen = {replace(way, batch=batch or way.batch) for way in ways}
        return sorted(chosen, key=lambda r: (r.precision != "float32", r.workers, r.threads or 0, r.batch))

    def _hardware(self, runtime: Runtime) -> str:
        if runtime not in self._hardware_keys:
            self._hardware_keys[runtime] = hardware_key(runtime)
        return self._hardware_keys[runtime]

    @cached_property
    def _hardware_keys(self) -> dict[Runtime, str]:
        return {}

    # why

    def _reasons(self, budget: Budget, chosen: Estimate) -> dict[str, str]:
        """One sentence per choice; clamps name the limit that made them."""
        subject, sampling = self.subject, chosen.sampling
        reasons = {}
        smaller = (sampling.frames, sampling.size, sampling.decode) != (
            self.sampling.frames,
            self.sampling.size,
            self.sampling.decode,
        )
        if smaller:
            least = self.estimate(self.sampling, self._fewest(self.sampling), self._widths[0], chosen.runtime)
            what = f"{self.sampling.frames} frames of {self.sampling.size} px with {self.sampling.decode} decoding"
            reasons["sampling"] = (
                f"reduced: {what} would mean {_first(least.broken(budget, self.margin))}, even with the fewest tokens"
            )
        else:
            given = self.fixed.sampling and subject.reads_any_grid
            native = (sampling.frames, sampling.size) == (subject.frames, subject.size)
            asked = "the grid the model was made for" if native else "the grid that was proposed"
            reasons["sampling"] = "as it was given" if given else asked
        reasons["tokens"] = self._token_reason(budget, chosen)
        reasons["width"] = self._width_reason(budget, chosen)
        reasons["runtime"] = self._runtime_reason(budget, chosen)
        if chosen.accuracy is not None:
            front = subject.fronts[0]
            reasons["accuracy"] = (
                f"{chosen.accuracy:.3f} {front.metric}, the best of what was measured on {front.data} and fits"
            )
        else:
            reasons["accuracy"] = PRIOR
        if self.profile is not None:
            reasons["margin"] = (
                f"times stay {self.margin:.1%} below limits: of {len(self.profile.errors)} measured points that the "
                "profile predicted from the others, 1 in 20 took longer than that; and the usual spread of calls"
                + ("; the machine was busy then, so profile it again" if self.margin > BUSY else "")
            )
            if self.profile.slowed > 1.0 + SLOWED:
                reasons["now"] = (
                    f"this machine is up to {self.profile.slowed:.1f}x slower at the moment than when it was profiled "
                    f"({self.profile.measured_at[:10]}): times are those of now"
                )
            if self._is_extrapolated(chosen):
                reasons["extrapolated"] = "the point is dearer than any that was measured; trust its time less"
        return reasons

    def _token_reason(self, budget: Budget, chosen: Estimate) -> str:
        counts = self._counts(chosen.sampling)
        if "tokens" not in self.subject.axes:
            return f"all {counts[-1]}: the family has no axis tokens"
        if self.fixed.point is not None:
            given = self.fixed.point.tokens
            if given == chosen.tokens:
                return f"{chosen.tokens}, as they were given"
            return f"all {chosen.tokens} of the grid" + (f", fewer than the {given} that were given" if given else "")
        if chosen.tokens == counts[-1]:
            return f"all {counts[-1]} of the grid fit"
        width = chosen.point.width or self.subject.full_width
        more = min(count for count in counts if count > chosen.tokens)
        broken = self.estimate(chosen.sampling, more, width, chosen.runtime).broken(budget, self.margin)
        if not broken:
            return f"{chosen.tokens} of {counts[-1]}: more were not measured to be better"
        return f"clamped to {chosen.tokens} of {counts[-1]}: {more} would mean {_first(broken)}"

    def _width_reason(self, budget: Budget, chosen: Estimate) -> str:
        full, widths = self.subject.full_width, self._widths
        if self.fixed.point is not None:
            return f"{widths[0]} of {full}, as it was given"
        if chosen.point.width is None:
            untrained = len(widths) == 1 and "width" in self.subject.axes
            return f"all {full} channels" + (
                ": the weights name no other width they were trained at" if untrained else ""
            )
        if chosen.accuracy is not None:
            return f"{chosen.point.width} of {full}: measured to be best within the budget"
        wider = min(width for width in widths if width > chosen.point.width)  # type: ignore[operator]
        least = self.estimate(chosen.sampling, self._fewest(chosen.sampling), wider, chosen.runtime)
        return (
            f"clamped to {chosen.point.width} of {full}: {wider} would mean {_first(least.broken(budget, self.margin))}"
        )

    def _runtime_reason(self, budget: Budget, chosen: Estimate) -> str:
        runtime = chosen.runtime
        if self.profile is None:
            return "not profiled on this machine, so " + ("as it was given" if self.fixed.way else "the default")
        if runtime.precision == "float32":
            return "float32: the budget asks for no less; the fastest measured way"
        width = chosen.point.width or self.subject.full_width
        exact = [r for r in self._runtimes(budget) if r.precision == "float32"]
        times = [self.estimate(chosen.sampling, chosen.tokens, width, r).cost.milliseconds or 0.0 for r in exact]
        gain = min(times) / (chosen.cost.milliseconds or math.inf)
        return f"{runtime.precision}: {gain:.1f}x as fast as float32 here, so more fits; the fastest measured way"


def describe_estimate(estimate: Estimate) -> str:
    """A candidate in a few words."""
    sampling, runtime = estimate.sampling, estimate.runtime
    width = f", width {estimate.point.width}" if estimate.point.width else ""
    frames = f"{sampling.frames} frame" + ("s" if sampling.frames != 1 else "")
    return (
        f"{estimate.tokens} tokens of {frames} of {sampling.size} px{width}, "
        f"{sampling.decode} decoding, {runtime.precision}, batch {runtime.batch}"
    )


def _against(name: str, value: float | None, limit: float, margin: float) -> str:
    """ "43.1 ms with the margin where 40 are allowed", "18x realtime with the margin where 20 are wanted"."""
    if value is None:
        return f"unknown {UNITS[name]} where {limit:g} are the limit"
    if name == "realtime_factor":
        return f"{value / (1 + margin):.3g}x realtime with the margin where {limit:g} are wanted"
    if name == "milliseconds_per_clip":
        return f"{value * (1 + margin):.3g} ms with the margin where {limit:g} are allowed"
    if name in MEMORY:
        return f"{value * (1 + MEMORY_MARGIN):.3g} {UNITS[name]} with the margin where {limit:g} are allowed"
    return f"{value:.3g} {UNITS[name]} where {limit:g} are allowed"


def _preference(estimate: Estimate) -> tuple[float, ...]:
    """More tokens, then float32, then less time, then fewer bytes."""
    exact = estimate.runtime.precision == "float32"
    return estimate.tokens, exact, -(estimate.cost.milliseconds or 0.0), -estimate.cost.total_bytes


def _measured(front: Front, sampling: Sampling) -> Iterator[tuple[Sampling, int, dict[int, float]]]:
    """Per measured grid and width, accuracy by token count."""
    groups: dict[tuple[int, int, int], dict[int, float]] = {}
    for point in front.points:
        key = int(point["frames"]), int(point["size"]), int(point["width"])
        groups.setdefault(key, {})[int(point["tokens"])] = float(point["accuracy"])
    for (frames, size, width), counts in groups.items():
        yield replace(sampling, frames=frames, size=size), width, counts


def _interpolate(counts: dict[int, float], tokens: int) -> float:
    """Accuracy at a token count within the measured ones, linear in the logarithm of tokens."""
    below = max(count for count in counts if count <= tokens)
    above = min((count for count in counts if count >= tokens), default=below)
    share = math.log(tokens / below) / math.log(above / below) if above > below else 0.0
    return counts[below] + share * (counts[above] - counts[below])


def _first(broken: list[str]) -> str:
    return broken[0] if broken else "no more than what was chosen"
