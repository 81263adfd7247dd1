"""Tables, tests and plots of the miniatures: what `reproduction.py page` writes.

A value is the mean over seeds of the hits on every test clip, so intervals and tests resample clips (each shows a scene
of its own) and take the seeds as they are.

Letters: N test clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from miniature import COUNTS, FEW_STEPS, FEW_TOKENS, FIXED, METHODS, TEST_CLIPS, WIDTHS, Spot
from reproduction import BASES, FINE_COUNTS, OPTIMIZED, SCHEDULES, THIRD, config_of, hits_of, planned
from tables import machine, table, write_page

from elastivid.data.fluxbench import TASKS, VERSION
from elastivid.evaluate import statistics
from elastivid.evaluate.statistics import Comparison, Interval

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BENCH_PAGE = Path(__file__).resolve().parents[1] / "docs" / "flux-bench.md"
BEGIN, END = "<!-- axes: written by benchmarks/reproduction.py page -->", "<!-- end of axes -->"
RESAMPLES = 2000  # of a bootstrap; a draw costs as much as there are clips
BUDGETS = (0.03, 0.045, 0.065, 0.095, 0.14)  # GMACs per clip
Row = dict[str, Any]
Runs = dict[str, list[dict[str, Any]]]
NAMES = {
    "fixed": "fixed grid", "flux-single": "Flux-Single", "flux-multi": "Flux-Multi", "joint": "joint (tokens, width)",
    "width-sampled": "width-sampled", "width-decreasing": "width-sampled, never growing",
    "half-width": "trained at half width only",
}  # fmt: skip


bootstrap = partial(statistics.bootstrap, resamples=RESAMPLES)
paired_bootstrap = partial(statistics.paired_bootstrap, resamples=RESAMPLES)


def load_runs(folder: Path) -> Runs:
    """Finished runs by method, in the order of the seeds."""
    runs: Runs = {}
    for method, seed in planned():
        path = folder / f"{method}-{seed}" / "result.json"
        if path.exists():
            runs.setdefault(method, []).append(json.loads(path.read_text()))
    return runs


def common(runs: Runs, methods: Iterable[str]) -> Runs:
    """The runs of those `methods` that have any, cut down to the seeds that all of these have.

    Comparing methods over different seeds would compare the seeds.
    """
    present = [method for method in methods if method in runs]
    seeds = set.intersection(*({run["seed"] for run in runs[method]} for method in present))
    return {method: [run for run in runs[method] if run["seed"] in seeds] for method in present}


def seeds_of(runs: Runs, method: str) -> str:
    """Seeds of a method's runs."""
    return ", ".join(str(run["seed"]) for run in runs[method])


def row_at(run: dict[str, Any], spot: Spot) -> Row:
    """The row of a run at a spot.

    Raises:
        KeyError: the run was not asked there.
    """
    wanted = (spot.frames, spot.size, spot.tokens, spot.width, spot.selector)
    for row in run["rows"]:
        width = tuple(row["width"]) if isinstance(row["width"], list) else row["width"]
        if (row["frames"], row["size"], row["tokens"], width, row["selector"]) == wanted:
            return row
    raise KeyError(f"{run['method']} {run['seed']} has no row at {spot}")


def chosen_row(run: dict[str, Any], tokens: int, width: int | None = None) -> Row:
    """The row at the grid that Token Optimization chose for a token count."""
    return next(r for r in run["rows"] if r["chosen"] and r["tokens"] == tokens and r["width"] == width)


def mean_hits(rows: Sequence[Row]) -> np.ndarray:
    """Mean over rows (one per seed) of the hits on every clip, (N,)."""
    return np.mean([hits_of(row) for row in rows], axis=0)


def at(runs: Runs, method: str, spot: Spot) -> np.ndarray:
    """Values of a method at a spot, (N,)."""
    return mean_hits([row_at(run, spot) for run in runs[method]])


def optimized(runs: Runs, method: str, tokens: int) -> np.ndarray:
    """Values of a method at its optimised grids, (N,)."""
    return mean_hits([chosen_row(run, tokens) for run in runs[method]])


def share(values: np.ndarray) -> str:
    """A mean with its interval, in percent."""
    return str(bootstrap(values))


def verdict(interval: Interval) -> str:
    """What an interval of "claim minus reality" says."""
    if interval.low > 0:
        return "holds"
    return "does not hold" if interval.high < 0 else "not distinguishable"


def points(interval: Interval) -> str:
    """An interval of a difference, in points."""
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


SMALLER = (Spot(*FIXED), Spot(4, 64), Spot(2, 64))  # K, K/2 and K/4 tokens by leaving out frames


def _drop(run: dict[str, Any], how: str) -> np.ndarray:
    """Hits at K minus hits at K/4 of one run, (N,)."""
    if how == "fewer frames":
        return hits_of(row_at(run, SMALLER[0])) - hits_of(row_at(run, SMALLER[2]))
    return hits_of(chosen_row(run, COUNTS[0])) - hits_of(chosen_row(run, COUNTS[2]))


def flux_tables(runs: Runs) -> list[str]:
    """Tables 1 and 5 of FluxViT, and the drops from K to K/4."""
    rows = []
    for method in OPTIMIZED:
        if method in runs:
            name = f"{NAMES[method]}, seeds {seeds_of(runs, method)}"
            rows.append([name, "fewer frames", *(share(at(runs, method, spot)) for spot in SMALLER)])
            rows.append([name, "Token Optimization", *(share(optimized(runs, method, k)) for k in COUNTS)])
    grids = []
    for method in (m for m in OPTIMIZED if m in runs):
        by_count = [[chosen_row(run, k) for run in runs[method]] for k in COUNTS]
        texts = [", ".join(f"{r['frames']} x {r['size']} px" for r in some) for some in by_count]
        grids.append(f"{NAMES[method]}: " + "; ".join(f"K = {k} {t}" for k, t in zip(COUNTS, texts, strict=True)))
    drops = []
    for method in (m for m in OPTIMIZED if m in runs):
        pair = common(runs, ("fixed", method))
        fixed = at(pair, "fixed", SMALLER[0]) - at(pair, "fixed", SMALLER[2])
        for how in ("fewer frames", "Token Optimization"):
            by_seed = [_drop(run, how) for run in pair[method]]
            drop = np.mean(by_seed, axis=0)
            claim = bootstrap(fixed / 3 - drop)
            against = ["", ""] if (method, how) == ("fixed", "fewer frames") else [points(claim), verdict(claim)]
            parts = ", ".join(f"{100 * part.mean():+.1f}" for part in by_seed)
            drops.append([NAMES[method], how, points(bootstrap(drop)), parts, *against])
    return [
        "## Tokens: FluxViT, tables 1 and 5",
        f'K = {COUNTS[0]} tokens. "Fewer frames" keeps all patches of 8, 4, 2 frames of 64 px, as a model without '
        "selection must. Token Optimization keeps K tokens of the grid that was best on validation clips.",
        table(["trained as", "at test", *(f"{k} tokens" for k in COUNTS)], rows),
        "Grids chosen, by seed. " + ". ".join(grids) + ".",
        "Drop from K to K/4 in points. FluxViT's claim in miniature is that Flux-Multi loses at most a third of what "
        'the fixed grid loses by leaving out frames; "third minus drop" is a third of that minus the own drop.',
        table(["trained as", "at test", "drop", "by seed", "third minus drop", "claim"], drops),
        "![accuracy against tokens](../images/reproduction-tokens.png)",
    ]


def selector_tables(runs: Runs) -> list[str]:
    """Table 2 of FluxViT."""
    if not set(THIRD) & set(runs):
        return []
    runs = common(runs, ("fixed", *THIRD, "flux-single"))
    rows = []
    for method, name in (
        ("fixed", "none (fixed grid)"), ("random", "random"), ("tube", "tube"), ("dynamic", "dynamic L2"),
        ("group-2", "group-dynamic, 2 groups"), ("flux-single", "group-dynamic, 4 groups"),
    ):  # fmt: skip
        if method in runs:
            spots = [Spot(16, 64, k, selector=METHODS[method].selector) for k in COUNTS]
            rows.append([name, share(at(runs, method, SMALLER[0])), *(share(at(runs, method, s)) for s in spots)])
    tests = []
    if "flux-single" in runs:
        ours = at(runs, "flux-single", Spot(16, 64, COUNTS[2]))
        for method in ("random", "tube", "dynamic", "group-2"):
            if method in runs:
                other = at(runs, method, Spot(16, 64, COUNTS[2], selector=METHODS[method].selector))
                tests.append(f"- 4 groups minus {method} at K/4: {paired_bootstrap(other, ours)}")
    return [
        "## Selectors: FluxViT, table 2",
        "Each model is trained as Flux-Single with its own selector and tested with it: all 128 tokens of the fixed "
        "grid, then K, K/2 and K/4 of the 256 tokens of 16 frames. The first row was trained without a selector and is "
        f"tested with group-dynamic selection. Seeds {seeds_of(runs, 'fixed')}.",
        table(["selector", "8 frames, all tokens", *(f"16 frames, {k}" for k in COUNTS)], rows),
        "\n".join(tests),
    ]


def width_tables(runs: Runs) -> list[str]:
    """AdaVid's comparisons."""
    methods = ("fixed", "width-sampled", "width-decreasing", "half-width", "joint")
    rows, schedules, tests = [], [], []
    for method in methods:
        if method in runs:
            name = "ordinary (fixed grid)" if method == "fixed" else NAMES[method]
            name += f", seeds {seeds_of(runs, method)}"
            spots = [Spot(*FIXED, width=None if w == 128 else w) for w in WIDTHS[::-1]]
            rows.append([name, *(share(at(runs, method, s)) for s in spots)])
        if method in runs and method not in ("fixed", "half-width"):
            cells = [share(at(runs, method, Spot(*FIXED, width=widths))) for widths in SCHEDULES.values()]
            schedules.append([name, *cells])
    if {"fixed", "width-sampled"} <= set(runs):
        pair, half = common(runs, ("fixed", "width-sampled")), Spot(*FIXED, width=64)
        loss = {m: at(pair, m, SMALLER[0]) - at(pair, m, half) for m in pair}
        tests += [
            f"- Loss from full to half width (seeds {seeds_of(pair, 'fixed')}): ordinary "
            f"{points(bootstrap(loss['fixed']))}, width-sampled {points(bootstrap(loss['width-sampled']))}; the "
            f"ordinary model loses more by {paired_bootstrap(loss['width-sampled'], loss['fixed'])}.",
            f"- At half width, width-sampled minus ordinary, truncated: "
            f"{paired_bootstrap(at(pair, 'fixed', half), at(pair, 'width-sampled', half))}.",
            f"- At full width, width-sampled minus ordinary: "
            f"{paired_bootstrap(at(pair, 'fixed', SMALLER[0]), at(pair, 'width-sampled', SMALLER[0]))}.",
        ]
    if {"half-width", "width-sampled"} <= set(runs):
        pair, half = common(runs, ("half-width", "width-sampled")), Spot(*FIXED, width=64)
        tests.append(f"- At half width, width-sampled minus trained at half width only (seeds "
                     f"{seeds_of(pair, 'half-width')}): "
                     f"{paired_bootstrap(at(pair, 'half-width', half), at(pair, 'width-sampled', half))}.")  # fmt: skip
    for method in ("width-sampled", "width-decreasing"):
        if method in runs:
            values = {name: at(runs, method, Spot(*FIXED, width=widths)) for name, widths in SCHEDULES.items()}
            for other in ("uniform", "rising"):
                tests.append(f"- {NAMES[method]}: falling minus {other}: "
                             f"{paired_bootstrap(values[other], values['falling'])}.")  # fmt: skip
    costs = ", ".join(
        f"{name} {'+'.join(map(str, w))} {Spot(*FIXED, width=w).gmacs:.3f}" for name, w in SCHEDULES.items()
    )
    parts = [
        "## Width: AdaVid",
        "All 128 tokens of 8 frames of 64 px; blocks of the first channels of the same weights.",
        table(["trained as", *(f"width {w}" for w in WIDTHS[::-1])], rows),
        f"Schedules of about equal cost (GMACs: {costs}).",
        table(["trained as", *SCHEDULES], schedules),
        "\n".join(tests),
        "![accuracy against width](../images/reproduction-width.png)",
    ]
    return [*parts, *frames_tables(runs)]


def short_tables(folder: Path) -> list[str]:
    """Runs of the same methods that got as few steps as the others, where there are any in `folder`/short."""
    rows = []
    for path in sorted(folder.glob("short/*/result.json")):
        run = json.loads(path.read_text())
        values = [at({"": [run]}, "", Spot(*FIXED, width=None if w == 128 else w)) for w in WIDTHS[::-1]]
        rows.append([f"{NAMES[run['method']]}, seed {run['seed']}", str(run["steps"]), *(share(v) for v in values)])
    if not rows:
        return []
    return [
        "Models of widths got more steps than the others. That was decided after first runs with as many, which left "
        "narrow blocks barely trained:",
        table(["trained as", "steps", *(f"width {w}" for w in WIDTHS[::-1])], rows),
    ]


def frames_tables(runs: Runs) -> list[str]:
    """Frames against width."""
    rows = []
    for method in ("width-sampled", "joint"):
        if method in runs:
            for spot in [Spot(f, 64, width=w) for w in (None, 64) for f in (4, 8, 16)]:
                rows.append([NAMES[method], str(spot.frames), str(spot.width or 128), f"{spot.gmacs:.3f}",
                             share(at(runs, method, spot))])  # fmt: skip
    tests = [
        f"- {NAMES[method]}, 16 frames at width 64 minus 8 frames at width 128 "
        f"({Spot(16, 64, width=64).gmacs:.3f} against {Spot(8, 64).gmacs:.3f} GMACs): "
        f"{paired_bootstrap(at(runs, method, Spot(8, 64)), at(runs, method, Spot(16, 64, width=64)))}."
        for method in ("width-sampled", "joint") if method in runs
    ]  # fmt: skip
    return [
        "### Frames against width",
        table(["trained as", "frames", "width", "GMACs", "right"], rows),
        "\n".join(tests),
    ]


def eligible(method: str) -> Callable[[Row], bool]:
    """Which rows of a method count in its front: those on its own axis."""
    if method == "flux-multi":
        return lambda row: row["width"] is None
    if method == "width-sampled":
        return lambda row: row["tokens"] is None and (row["frames"], row["size"]) == FIXED
    return lambda row: True


def within(run: dict[str, Any], budget: float) -> Row | None:
    """The row that validation likes best among those of the run's own axes that cost at most `budget` GMACs."""
    rows = [row for row in run["rows"] if row["gmacs"] <= budget and eligible(run["method"])(row)]
    return max(rows, key=lambda row: row["validation"], default=None)


def front_rows(runs: Runs) -> list[tuple[float, dict[str, np.ndarray], list[Comparison]]]:
    """At each budget: values of the models that have a point within it, and joint minus each of the others."""
    runs, rows = common(runs, ("joint", "flux-multi", "width-sampled")), []
    for budget in BUDGETS:
        picked = {method: [within(run, budget) for run in some] for method, some in runs.items()}
        values = {m: mean_hits([row for row in some if row]) for m, some in picked.items() if all(some)}
        others = [m for m in ("flux-multi", "width-sampled") if m in values and "joint" in values]
        rows.append((budget, values, [paired_bootstrap(values[m], values["joint"]) for m in others]))
    return rows


def at_least_as_good(differences: Sequence[Comparison]) -> bool:
    """Whether no difference lies below zero with its whole interval."""
    return all(difference.high >= 0 for difference in differences)


def front_tables(runs: Runs) -> list[str]:
    """The joint model against the two that are elastic in one axis, at equal budgets."""
    rows = []
    for budget, values, differences in front_rows(runs):
        cells = [share(values[m]) if m in values else "none" for m in ("joint", "flux-multi", "width-sampled")]
        text = "; ".join(f"{100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" for d in differences)
        rows.append([f"{budget:g}", *cells, text, "yes" if at_least_as_good(differences) else "no"])
    seeds = seeds_of(common(runs, ("joint", "flux-multi", "width-sampled")), "joint")
    return [
        "## Tokens and width together",
        "At each budget every model takes the point of its own axes that is best on validation clips: the joint model "
        "any, Flux-Multi any grid and count at full width, the width-sampled model any width of the fixed grid. "
        f"Differences: joint minus Flux-Multi; joint minus width-sampled. Seeds {seeds}.",
        table(["GMACs at most", "joint", "Flux-Multi", "width-sampled", "differences", "at least as good"], rows),
        "![fronts](../images/reproduction-front.png)",
    ]


def summary(runs: Runs) -> list[str]:
    """What appeared and what did not, in words."""
    pair = common(runs, ("fixed", "flux-multi"))
    lost = {how: np.mean([_drop(run, how) for run in pair["flux-multi"]], axis=0)
            for how in ("Token Optimization", "fewer frames")}  # fmt: skip
    fixed = np.mean([_drop(run, "fewer frames") for run in pair["fixed"]], axis=0)
    claims = {how: verdict(bootstrap(fixed / 3 - drop)) for how, drop in lost.items()}
    values = (
        at(pair, "fixed", SMALLER[0]),
        at(pair, "flux-multi", SMALLER[0]),
        optimized(pair, "flux-multi", COUNTS[2]),
    )
    still = [100 * v[:: len(TASKS)].mean() for v in values]
    lines = [
        f"- Tokens. From K to K/4 the fixed grid loses {points(bootstrap(fixed))} points by leaving out frames, "
        f"Flux-Multi with Token Optimization {points(bootstrap(lost['Token Optimization']))}. That it loses at most a "
        f"third: {claims['Token Optimization']}; where it leaves out frames instead, without Token Optimization: "
        f"{claims['fewer frames']} (two frames do not show what flux-bench asks for).",
        f"- What that costs. Selection by change hides what stands still: the task static falls from {still[0]:.0f} % "
        f"(fixed grid, K) to {still[1]:.0f} % (Flux-Multi on the same grid and all tokens) and {still[2]:.0f} % "
        "(Flux-Multi, K/4). At K on the fixed grid's own ground the fixed grid is better.",
    ]
    if "width-sampled" in runs:
        pair, half = common(runs, ("fixed", "width-sampled")), Spot(*FIXED, width=64)
        ends = [at(pair, m, spot) for m in ("fixed", "width-sampled") for spot in (SMALLER[0], half)]
        lines.append(f"- Width. Cut to half width the ordinary model falls from {share(ends[0])} to {share(ends[1])}, "
                     f"the width-sampled one from {share(ends[2])} to {share(ends[3])}.")  # fmt: skip
        own = {name: at(runs, "width-sampled", Spot(*FIXED, width=widths)) for name, widths in SCHEDULES.items()}
        lines.append(f"- Schedules. AdaVid's order (falling, then uniform, then rising) at equal cost: falling minus "
                     f"uniform {paired_bootstrap(own['uniform'], own['falling'])}; falling minus rising "
                     f"{paired_bootstrap(own['rising'], own['falling'])}.")  # fmt: skip
    if {"joint", "flux-multi", "width-sampled"} <= set(runs):
        fronts = front_rows(runs)
        won = sum(at_least_as_good(differences) for _, _, differences in fronts)
        lines.append(f"- Both axes. The joint front is at least as good as the single axes at {won} of {len(fronts)} "
                     "budgets.")  # fmt: skip
    return ["## What appeared and what did not", "\n".join(lines)]


def by_task(values: np.ndarray) -> list[str]:
    """Percent of every task."""
    return [f"{100 * values[number :: len(TASKS)].mean():.0f}" for number in range(len(TASKS))]


def task_table(runs: Runs) -> list[str]:
    """Accuracy by task of every method at the fixed grid and, where there is one, at K/4."""
    rows = []
    for method in METHODS:
        if method in runs:
            rows.append([f"{NAMES.get(method, method)}, K", *by_task(at(runs, method, SMALLER[0]))])
            if method in OPTIMIZED:
                rows.append([f"{NAMES[method]}, K/4, fewer frames", *by_task(at(runs, method, SMALLER[2]))])
                rows.append([f"{NAMES[method]}, K/4, optimised", *by_task(optimized(runs, method, COUNTS[2]))])
    chance = ["chance", *(f"{100 * task.chance:.0f}" for task in TASKS)]
    return ["## By task, %", table(["", *(task.name for task in TASKS)], [chance, *rows])]


def cost_table(runs: Runs, folder: Path) -> list[str]:
    """What training cost."""
    rows, total = [], 0.0
    for method, some in runs.items():
        seconds = [run["training_seconds"] for run in some]
        total += sum(seconds)
        steps, gmacs = str(some[0]["steps"]), some[0]["training_gmacs"]
        if method == "base":
            steps = f"{FEW_STEPS} + {steps}"
            gmacs += 3 * Spot(*FIXED, FEW_TOKENS).gmacs * FEW_STEPS * some[0]["batch_size"]
        rows.append([
            method, str(len(some)), steps, f"{gmacs / 1e3:.1f}",
            f"{np.mean(seconds):.0f}", f"{np.mean([run['evaluation_seconds'] for run in some]):.0f}",
        ])  # fmt: skip
    config = config_of(folder, "fixed", 0)
    return [
        "## What it cost",
        f"Batches of {config.batch_size} clips, bfloat16 products, one thread; processor seconds, with other programs "
        f"beside it. {sum(len(some) for some in runs.values())} runs, {total / 60:.0f} minutes of training in all.",
        table(["run", "seeds", "steps", "TMACs", "seconds of training", "seconds of testing"], rows),
    ]


def axes_table(runs: Runs) -> str:
    """A row per point along each axis: the same weights (the joint model), given less."""
    axes = {
        "frames": [Spot(16, 64), Spot(8, 64), Spot(4, 64), Spot(2, 64), Spot(1, 64)],
        "size": [Spot(8, 64), Spot(8, 48), Spot(8, 32)],
        "tokens of 16 frames": [Spot(16, 64), *(Spot(16, 64, k) for k in (*COUNTS, 16))],
        "width": [Spot(8, 64), *(Spot(8, 64, width=w) for w in WIDTHS[-2::-1])],
    }
    rows = []
    for axis, spots in axes.items():
        for spot in spots:
            value = {"frames": spot.frames, "size": f"{spot.size} px", "width": spot.width or 128}.get(
                axis, spot.tokens or 256
            )
            values = at(runs, "joint", spot)
            rows.append([f"{axis} {value}", f"{spot.gmacs:.3f}", share(values), *by_task(values)])
    return table(["given", "GMACs", "right", *(task.name for task in TASKS)], rows)


def plot_tokens(runs: Runs) -> None:
    """Accuracy against tokens, with and without Token Optimization."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    for method, colour in zip(OPTIMIZED, ("#8c8c8c", "#dd8452", "#2a788e", "#c44e52"), strict=True):
        if method in runs:
            plain = [100 * at(runs, method, spot).mean() for spot in SMALLER]
            best = [100 * optimized(runs, method, k).mean() for k in COUNTS]
            axes.plot(COUNTS, plain, "o--", color=colour, linewidth=1.2, label=f"{NAMES[method]}, fewer frames")
            axes.plot(COUNTS, best, "o-", color=colour, linewidth=1.6, label=f"{NAMES[method]}, Token Optimization")
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(k) for k in COUNTS])
    _finish(figure, axes, "tokens", "reproduction-tokens.png")


def plot_width(runs: Runs) -> None:
    """Accuracy against width."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    styles = {"fixed": ("#8c8c8c", "ordinary, truncated"), "width-sampled": ("#2a788e", NAMES["width-sampled"]),
              "width-decreasing": ("#7fb7be", NAMES["width-decreasing"]), "joint": ("#c44e52", NAMES["joint"]),
              "half-width": ("#dd8452", NAMES["half-width"])}  # fmt: skip
    for method, (colour, name) in styles.items():
        if method in runs:
            spots = [Spot(*FIXED, width=None if w == 128 else w) for w in WIDTHS]
            axes.plot(WIDTHS, [100 * at(runs, method, s).mean() for s in spots], "o-", color=colour, label=name)
    axes.set_xticks(WIDTHS)
    _finish(figure, axes, "width of all blocks", "reproduction-width.png")


def plot_front(runs: Runs) -> None:
    """What each model reaches within a budget."""
    if not {"joint", "flux-multi", "width-sampled"} <= set(runs):
        return
    runs = common(runs, ("joint", "flux-multi", "width-sampled"))
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    budgets = np.geomspace(0.012, 0.2, 40)
    for method, colour in (("joint", "#c44e52"), ("flux-multi", "#2a788e"), ("width-sampled", "#dd8452")):
        line = []
        for budget in budgets:
            rows = [within(run, budget) for run in runs[method]]
            line.append(np.nan if None in rows else 100 * np.mean([row["accuracy"] for row in rows if row]))
        axes.step(budgets, line, where="post", color=colour, linewidth=1.6, label=NAMES[method])
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:g}" for budget in BUDGETS])
    axes.minorticks_off()
    _finish(figure, axes, "GMACs per clip at most", "reproduction-front.png")


def _finish(figure: plt.Figure, axes: plt.Axes, label: str, name: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name)
    plt.close(figure)


def write(folder: Path) -> None:
    """Write the page, its plots and the table of axes, of the runs that are finished."""
    runs = load_runs(folder)
    missing = [f"{method} {seed}" for method, seed in planned()
               if not any(run["seed"] == seed for run in runs.get(method, []))]  # fmt: skip
    plot_tokens(runs)
    plot_width(runs)
    plot_front(runs)
    write_page(
        "reproduction",
        "# FluxViT and AdaVid in miniature",
        f"{machine()} Written by `python benchmarks/reproduction.py page` from the runs of `python "
        f"benchmarks/reproduction.py run`. FluxViTs of 4 blocks of 128 channels on [{VERSION}](../flux-bench.md), "
        f"the first {TEST_CLIPS} test clips; grids and points were chosen on validation clips. Brackets: "
        "95 % bootstrap intervals (2,000 resamples) over test clips of the mean over seeds. Differences are paired. "
        "\"Not distinguishable\" is a result. "
        + (f"Not finished: {', '.join(missing)}." if missing else "All planned runs are finished."),
        "Both papers tune a pre-trained model, so there are two bases (fixed grid and full width; first on the 48 "
        "tokens that change most, then on all), and every run continues from one: "
        + ", ".join(f"seed {seed} from base {base}" for seed, base in BASES.items())
        + ". A seed decides what is drawn in tuning; the first two differ in their base as well.",
        *summary(runs),
        *flux_tables(runs),
        *(selector_tables(runs)),
        *width_tables(runs),
        *short_tables(folder),
        *(front_tables(runs) if {"joint", "flux-multi", "width-sampled"} <= set(runs) else []),
        *task_table(runs),
        *cost_table(runs, folder),
    )  # fmt: skip
    page = BENCH_PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    BENCH_PAGE.write_text(before + BEGIN + "\n" + axes_table(runs) + "\n" + END + rest.split(END)[1], encoding="utf-8")


assert set(COUNTS) <= set(FINE_COUNTS)
