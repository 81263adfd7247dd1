"""Merging: alike tokens become one that knows how many patches it stands for.

    ToMe      each merged token is the mean of its patches, weighted by sizes       arXiv 2210.09461
    VidTLDR   a token that goes into another counts by its saliency, so background fades    arXiv 2403.13347

One round of bipartite matching: tokens at even positions are sources, at odd positions destinations; every source looks
for its best destination by cosine, and the r sources with the best find are merged into them. The papers allow a round
to remove half of the tokens, which forces every source on some destination, like it or not. Where rounds repeat until K
are left, a third keeps embeddings much closer to those of all tokens for little time (docs/benchmarks/selectors.md).

`ToMe()` and `VidTLDR(...)` stand in an operating point and merge before the first block, so all blocks run on K tokens
and their cost is that of a selection. The papers merge between attention and MLP of every block: `match_halves`,
`Matching` and `linear_schedule` do that in a model of your own (`tests/select/test_merge.py` holds a whole ViT).
Attention must then be proportional: log(size) is added to the logits of a key, as FluxViT does when `sizes` are set.

Cost: N^2 D / 4 multiply-accumulates in the first round, divided by the number of groups.

Letters: B batch, N tokens, D channels, r merged in a round, K left, P protected prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.select.base import (
    Keep,
    Merger,
    checked_counts,
    checked_groups,
    default_groups,
    judged_by,
    num_frames,
    shares,
)
from elastivid.select.masks import checked_scores

ROUND_DIVISOR = 3
"""A round of `ToMe` and `VidTLDR` removes at most one token in three: two thirds of the sources, the best matched."""


@dataclass(frozen=True)
class Matching:
    """Which tokens are merged into which.

    Args:
        kept: positions (B, N - r) of the tokens that remain, in the order of the result.
        sources: positions (B, r) of the tokens that are merged away.
        targets: index (B, r) into `kept` of where each source goes.
    """

    kept: Tensor
    sources: Tensor
    targets: Tensor

    def combine(self, values: Tensor, source_weights: Tensor | None = None, *, reduce: str = "sum") -> Tensor:
        """Values of the remaining tokens, each with its sources: (B, N, C) to (B, N - r, C).

        Args:
            values: one row per token before the matching.
            source_weights: (B, N); a source is multiplied by its own before it goes into its destination.
            reduce: "sum", "mean" or "amax" over a destination and its sources.
        """
        result, moved = _rows(values, self.kept), _rows(values, self.sources)  # (B, N-r, C), (B, r, C)
        if source_weights is not None:
            moved = moved * source_weights.gather(1, self.sources).unsqueeze(-1).to(values.dtype)
        if reduce != "sum":
            return result.scatter_reduce(1, self.targets.unsqueeze(-1).expand_as(moved), moved, reduce)
        result.view(-1, result.shape[2]).index_add_(0, _flat(self.targets, result.shape[1]), moved.flatten(0, 1))
        return result

    def mean(self, values: Tensor, sizes: Tensor, source_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means (B, N - r, C) of values (B, N, C) weighted by sizes (B, N), and the sizes (B, N - r) they now have.

        With `source_weights` (B, N) a source counts size times weight, in the mean and in the new size.
        """
        total = self.combine(sizes.unsqueeze(-1), source_weights)  # (B, N-r, 1)
        means = self.combine(values * sizes.unsqueeze(-1), source_weights) / total  # summed in the precision of sizes
        return means.to(values.dtype), total.squeeze(-1)

    def expand(self, values: Tensor) -> Tensor:
        """Every token before the matching gets the value of where it went: (B, N - r, C) to (B, N, C)."""
        batch, left, channels = values.shape
        full = values.new_zeros(batch, left + self.sources.shape[1], channels)
        full.scatter_(1, self.kept.unsqueeze(-1).expand(-1, -1, channels), values)
        moved = _rows(values, self.targets)  # (B, r, C)
        return full.scatter_(1, self.sources.unsqueeze(-1).expand_as(moved), moved)


@torch.no_grad()
def match_halves(metric: Tensor, r: int, *, protected: int = 0) -> Matching:
    """ToMe's matching. What remains: protected tokens, unmerged sources by position, destinations by position.

    With nothing to remove the order stays. (The released code leaves the unmerged sources in order of similarity when
    nothing is protected.) Ties: the earlier source and the earlier destination win.

    Args:
        metric: features (B, N, D) whose cosines say what is alike; ToMe takes the mean of the keys over heads.
        r: tokens to remove; at most half of the unprotected ones are.
        protected: tokens at the front that stay as they are.
    """
    count = metric.shape[1]
    r = min(r, (count - protected) // 2)
    if r <= 0:
        every = torch.arange(count, device=metric.device).expand(len(metric), -1)
        return Matching(every, every[:, :0], every[:, :0])
    sources, destinations = metric[:, ::2], F.normalize(metric[:, 1::2], dim=-1)
    similarity = sources @ destinations.transpose(1, 2)  # (B, ceil(N/2), floor(N/2)): cosines times source lengths
    if protected:
        similarity[:, : (protected + 1) // 2] = -torch.inf
        similarity[:, :, : protected // 2] = -torch.inf
    best, found = similarity.max(dim=2)  # (B, ceil(N/2))
    best = best / torch.linalg.vector_norm(sources, dim=-1).clamp(min=1e-12)
    order = best.argsort(dim=1, descending=True, stable=True)
    moving, staying = order[:, :r], order[:, r:].sort(dim=1).values
    odd = torch.arange(1, count, 2, device=metric.device).expand(len(metric), -1)  # (B, floor(N/2))
    front = [(protected + 1) // 2, protected // 2]  # protected sources and destinations
    prefix = torch.arange(protected, device=metric.device).expand(len(metric), -1)  # (B, P)
    kept = torch.cat([prefix, 2 * staying[:, front[0] :], odd[:, front[1] :]], dim=1)  # (B, N-r)
    targets = found.gather(1, moving) + staying.shape[1]  # (B, r): what precedes the destinations is as long
    return Matching(kept, 2 * moving, targets)


@torch.no_grad()
def match_every(metric: Tensor, k: int) -> Matching:
    """Every k-th token is a destination and all others go into the most similar one: N to N / k in one round.

    Tokens beyond a multiple of `k` are in no set, so they are dropped.

    Args:
        metric: features (B, N, D) whose cosines say what is alike.
        k: distance of the destinations.

    Raises:
        PointError: `k` is below 2 or above N.
    """
    count = metric.shape[1]
    if not 2 <= k <= count:
        raise PointError(f"k must be 2 to {count} (tokens), got {k}")
    places = torch.arange(count // k * k, device=metric.device)
    destination = places % k == k - 1
    unit = F.normalize(metric, dim=-1)
    sources, destinations = (places[where].expand(len(metric), -1) for where in (~destination, destination))
    found = (unit[:, sources[0]] @ unit[:, destinations[0]].transpose(1, 2)).argmax(dim=2)  # (B, N - N/k)
    return Matching(destinations, sources, found)


def linear_schedule(r: float, depth: int, inflection: float = 0.0) -> list[int]:
    """Tokens to merge in each of `depth` blocks, `r` on average: from r (1 - inflection) to r (1 + inflection)."""
    first, last = r * (1 - inflection), r * (1 + inflection)
    step = (last - first) / max(1, depth - 1)
    return [int(first + step * layer) for layer in range(depth)]


class ToMe(Merger):
    """Merge alike tokens until K are left; each is the mean of its patches in features and place.

    Args:
        groups: contiguous stretches of frames that are merged by themselves and keep equal shares, which covers the
            clip and divides the cost; `None` follows `GroupDynamic`: 4, 2 or 1. The paper has one group, an image.
            With K below the number of groups, and for tokens that are not whole frames, there is one.

    Raises:
        PointError: `groups` is below 1; on use: the tokens do not divide into the groups.
    """

    def __init__(self, groups: int | None = None) -> None:
        self.groups = checked_groups(groups)

    def reduce(self, tokens: Tokens, keep: Keep = None, *, metric: Tensor | None = None) -> Tokens:
        """Exactly `keep` tokens per clip; see `Reducer.reduce`. Their `sizes` add up to what they were."""
        judged = judged_by(tokens, metric)
        return _merged(tokens, judged, keep, self.groups)


class VidTLDR(Merger):
    """Merge alike tokens until K are left; what is not salient fades where it is merged.

    A source is multiplied by its saliency, 0 (background) to 1, before it goes into its destination; the result is
    the mean with these weights, and sizes are the sums of weights. So background that merges vanishes.

    Args:
        scores: gives how salient each placed token is, (B, M), in any scale; `sharpened` brings it to 0 to 1. The paper
            takes `focus` of an early block's attention. `GroupDynamic().scores` calls what moves salient, and is cheap.
        groups: as in `ToMe`.

    Raises:
        PointError: `groups` is below 1; on use: the scores have the wrong shape or are no numbers, or the tokens do not
            divide into the groups.
    """

    def __init__(self, scores: Callable[[Tokens], Tensor], *, groups: int | None = None) -> None:
        self.scores = scores
        self.groups = checked_groups(groups)

    def reduce(self, tokens: Tokens, keep: Keep = None, *, metric: Tensor | None = None) -> Tokens:
        """Exactly `keep` tokens per clip; see `Reducer.reduce`."""
        judged = judged_by(tokens, metric)
        with torch.no_grad():
            saliency = sharpened(checked_scores(self.scores(judged), judged, "scores"), judged.valid)
        return _merged(tokens, judged, keep, self.groups, saliency)


def focus(attention: Tensor) -> Tensor:
    """How focused every query is: sum of p log p over the keys of the mean over heads, (B, A, N, N) to (B, N)."""
    p = attention.mean(dim=1).clamp(1e-17, 1 - 1e-17)  # (B, N, N)
    p = p / p.sum(dim=-1, keepdim=True)
    return (p * p.log()).sum(dim=-1)


def gini_impurity(attention: Tensor) -> Tensor:
    """How spread every query is: 1 - sum of p^2 over the keys of the mean over heads, (B, A, N, N) to (B, N).

    FluxViT's released code offers it in place of `focus`, though it ranks the other way round.
    """
    return 1 - attention.mean(dim=1).square().sum(dim=-1)


def sharpened(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Saliency 0 to 1 of scores (B, M): what is below the mean of its clip is background, 0; the best has 1.

    Scores that are all equal have no background: all 1. `valid` (B, M) leaves padding out of the mean.
    """
    there = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    low = scores.masked_fill(~there, torch.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(~there, -torch.inf).amax(dim=1, keepdim=True)
    share = (scores - low) / (high - low)  # (B, M), 0 to 1
    mean = share.masked_fill(~there, 0).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
    above = (share - mean) / (1 - mean)
    return torch.where(high == low, torch.ones_like(scores), above.masked_fill(share < mean, 0.0))


def _flat(index: Tensor, count: int) -> Tensor:
    """Positions (B, n) among `count` rows of each clip as positions (B*n,) among the rows of all clips."""
    return (index + count * torch.arange(len(index), device=index.device).unsqueeze(1)).flatten()


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, C) of values (B, N, C) at index (B, n). Whole rows are copied, which `gather` does not do."""
    rows = values.flatten(0, 1).index_select(0, _flat(index, values.shape[1]))  # (B*n, C)
    return rows.unflatten(0, index.shape)


def _merged(tokens: Tokens, judged: Tokens, keep: Keep, groups: int | None, saliency: Tensor | None = None) -> Tokens:
    """`keep` tokens per clip, clip by clip where they differ in number."""
    counts = tokens.counts if keep is None else checked_counts(keep, tokens)
    if counts == tokens.counts:
        return tokens
    if tokens.valid is None and len(set(counts)) == 1:
        return _merged_equal(tokens, judged.x, counts[0], groups, saliency)
    clips = []
    for row, count in enumerate(counts):
        own = torch.ones_like(judged.cells[row], dtype=torch.bool) if tokens.valid is None else tokens.valid[row]
        salient = None if saliency is None else saliency[row, own][None]  # (1, M')
        clips.append(_merged_equal(tokens.row(row), judged.x[row, own][None], count, groups, salient))
    return Tokens.stack(clips)


def _merged_equal(tokens: Tokens, metric: Tensor, keep: int, groups: int | None, saliency: Tensor | None) -> Tokens:
    """`keep` tokens of every clip of a batch without padding, in the order of the places they grew from."""
    batch, placed, _ = metric.shape
    if groups is None:  # without whole frames there is nothing to group by
        groups = default_groups(num_frames(tokens.grid, placed)) if tokens.fills_frames else 1
    if placed % groups:
        raise PointError(f"{placed} tokens do not divide into {groups} groups; use groups=1")
    if keep < groups:
        groups = 1
    if tokens.sizes is not None:
        metric = metric * tokens.sizes.unsqueeze(-1)  # sums from here on: cosines do not feel lengths
    owners, weights, group = [], [], 0
    for quota, count in _runs(shares(keep, groups)):  # at most two: all groups of one share at once
        part = slice(group * placed // groups, (group + count) * placed // groups)
        cut = metric[:, part].unflatten(1, (count, -1)).flatten(0, 1)  # (B, count*n, D) -> (B*count, n, D)
        salient = None if saliency is None else saliency[:, part].unflatten(1, (count, -1)).flatten(0, 1)
        owner, weight = _assign(cut, quota, salient)  # (B*count, n)
        starts = sum(shares(keep, groups)[:group]) + quota * torch.arange(count, device=owner.device)  # (count,)
        owners.append((owner.unflatten(0, (batch, count)) + starts[:, None]).flatten(1))  # (B, count*n)
        weights.append(weight.unflatten(0, (batch, count)).flatten(1))
        group += count
    rows, weight = _flat(torch.cat(owners, dim=1), keep), torch.cat(weights, dim=1)  # (B*M,), (B, M)
    weight = (weight if tokens.sizes is None else weight * tokens.sizes).flatten()
    total = weight.new_zeros(batch * keep).index_add(0, rows, weight)  # (B*K,)
    equal = saliency is None and tokens.sizes is None

    def mean(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1).float()  # (B*M, C)
        flat = flat if equal else flat * weight.unsqueeze(-1)
        summed = flat.new_zeros(batch * keep, flat.shape[1]).index_add(0, rows, flat) / total.unsqueeze(-1)
        return summed.to(values.dtype).unflatten(0, (batch, keep))  # (B*K, C) -> (B, K, C)

    x = mean(tokens.x[:, tokens.num_prefix :])
    if tokens.num_prefix:
        x = torch.cat([tokens.x[:, : tokens.num_prefix], x], dim=1)  # (B, P + K, D)
    return replace(tokens, x=x, coords=mean(tokens.coords), sizes=total.unflatten(0, (batch, keep)))


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """Neighbours that are equal, as (value, how many)."""
    return [(value, len(list(run))) for value, run in itertools.groupby(values)]


@torch.no_grad()
def _assign(metric: Tensor, keep: int, saliency: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rounds of matching until `keep` of N tokens are left.

    Args:
        metric: (B, N, D), whose cosines say what is alike; in later rounds the sum of what was merged.
        keep: tokens left.
        saliency: (B, N) weights of sources, or `None` for 1.

    Returns:
        index (B, N) of the remaining token that each goes into, and what it counts there beside its size, (B, N).
    """
    batch, count, _ = metric.shape
    place = owner = torch.arange(count, device=metric.device).expand(batch, -1)  # (B, N)
    weight = torch.ones(batch, count, device=metric.device)
    while count > keep:
        matching = match_halves(metric, min(count - keep, max(1, count // ROUND_DIVISOR)))
        if saliency is not None:
            factor = torch.ones_like(saliency).scatter(1, matching.sources, saliency.gather(1, matching.sources))
            weight = weight * factor.gather(1, owner)
        moved = owner.new_zeros(batch, count)
        count = matching.kept.shape[1]
        moved.scatter_(1, matching.kept, torch.arange(count, device=metric.device).expand(batch, -1))
        owner = moved.scatter_(1, matching.sources, matching.targets).gather(1, owner)
        place = place.gather(1, matching.kept)
        if count > keep:
            metric = matching.combine(metric, saliency)
            saliency = None if saliency is None else saliency.gather(1, matching.kept)
    rank = place.argsort(dim=1).argsort(dim=1)  # (B, K)
    return rank.gather(1, owner), weight
