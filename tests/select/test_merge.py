"""Merging against the public implementations, a whole ViT with ToMe, and what merging must conserve."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.layers.attention import key_bias
from elastivid.layers.embed import patch_coordinates
from elastivid.select.merge import (
    ToMe,
    VidTLDR,
    focus,
    gini_impurity,
    linear_schedule,
    match_every,
    match_halves,
    sharpened,
)
from elastivid.select.motion import GroupDynamic


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(x, grid, **fields):
    return Tokens(x=x, coords=patch_coordinates(grid).expand(len(x), -1, -1), grid=grid, **fields)


def cases_of(golden, name):
    tensors, metadata = golden(name)
    for entry in json.loads(metadata["cases"]):
        prefix = f"case{entry['case']}."
        yield {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, entry


def traced(matching, count):
    """0/1 matrix (B, N - r, N) of which tokens each remaining one holds."""
    eye = torch.eye(count).expand(len(matching.kept), -1, -1)
    return matching.combine(eye, reduce="amax")


def reordered(ours, theirs):
    """Row of `ours` (B, K, N) that equals each row of `theirs`: (B, K)."""
    same = (ours.unsqueeze(1) == theirs.unsqueeze(2)).all(dim=-1)  # (B, K theirs, K ours)
    assert torch.equal(same.sum(dim=2), torch.ones_like(same.sum(dim=2)))
    return same.int().argmax(dim=2)


def test_bipartite_matching_equals_the_released_code(golden):
    compared = 0
    for case, entry in cases_of(golden, "token_merging"):
        settings = entry["settings"]
        if settings["kind"] != "tome":
            continue
        tokens, size = case["tokens"], case.get("size", torch.ones(*case["tokens"].shape[:2], 1))
        protected = settings["class_token"] + settings["distill_token"]
        matching = match_halves(case["metric"], settings["r"], protected=protected)
        source = traced(matching, tokens.shape[1])
        if not protected:  # theirs are then in another order: bring ours into it
            order = reordered(source, case["source"])
            source = source.gather(1, order.unsqueeze(-1).expand_as(source))
        else:
            order = torch.arange(source.shape[1]).expand(len(source), -1)
        assert torch.equal(source, case["source"]), entry["name"]
        wide = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        merged, sizes = matching.mean(tokens, size.squeeze(-1))
        pairs = [
            (merged.gather(1, wide), case["merged"]),
            (sizes.gather(1, order), case["merged_size"].squeeze(-1)),
            (matching.combine(tokens, reduce="mean").gather(1, wide), case["merged_mean"]),
            (matching.combine(tokens, reduce="amax").gather(1, wide), case["merged_amax"]),
            (matching.expand(merged), case["unmerged"]),
        ]
        if settings["distill_token"]:  # theirs gives tokens back to other positions than they came from
            pairs.pop()
        for ours, theirs in pairs:
            assert (ours - theirs).abs().max() < 1e-5, entry["name"]
        compared += 1
    assert compared == 4


def test_every_kth_equals_the_released_code(golden):
    (case, entry), *_ = (c for c in cases_of(golden, "token_merging") if c[1]["settings"]["kind"] == "kth")
    matching = match_every(case["metric"], entry["settings"]["k"])
    merged, sizes = matching.mean(case["tokens"], case["size"].squeeze(-1))
    assert (merged - case["merged"]).abs().max() < 1e-5
    assert (sizes - case["merged_size"].squeeze(-1)).abs().max() < 1e-5
    assert (matching.expand(merged) - case["unmerged"]).abs().max() < 1e-5


def test_saliency_merging_equals_the_released_codes(golden):
    compared = 0
    for case, entry in cases_of(golden, "token_merging"):
        settings, tokens = entry["settings"], case["tokens"]
        if not settings["kind"].startswith("tldr"):
            continue
        score = sharpened(gini_impurity(case["attention"]) if settings.get("gini") else focus(case["attention"]))
        assert (score - case["score"].squeeze(-1)).abs().max() < 1e-5, entry["name"]
        if settings["kind"] == "tldr_flux":  # sums, no sizes
            protected = int(settings["with_cls_token"])
            matching = match_halves(tokens, tokens.shape[1] - settings["keep"], protected=protected)
            merged = matching.combine(tokens, score)
        else:
            rate = settings["r"][settings.get("layer", 0)]
            matching = match_halves(tokens, int(tokens.shape[1] * rate) if rate < 1 else rate)
            size = case.get("size", torch.ones(*tokens.shape[:2], 1)).squeeze(-1)
            merged, sizes = matching.mean(tokens, size, score)
            assert (sizes - case["merged_size"].squeeze(-1)).abs().max() < 1e-5, entry["name"]
        assert (merged - case["merged"]).abs().max() < 1e-5, entry["name"]
        compared += 1
    assert compared == 6


def merging_vit(image, parameters, config, schedule, proportional):
    """A plain ViT that merges by the keys between attention and MLP; returns tokens, logits, sizes, source."""

    def layer(x, name):
        return F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], parameters[f"{name}.weight"], parameters[f"{name}.bias"], 1e-6)

    patches = F.conv2d(
        image,
        parameters["patch_embed.proj.weight"],
        parameters["patch_embed.proj.bias"],
        stride=config["patch_size"],
    )
    x = torch.cat([parameters["cls_token"].expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + parameters["pos_embed"]
    source, sizes = torch.eye(x.shape[1]).expand(len(x), -1, -1), torch.ones(x.shape[:2])
    for block, r in enumerate(schedule):
        name = f"blocks.{block}"
        q, k, v = layer(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (config["num_heads"], -1)).transpose(1, 2) for y in (q, k, v))  # (B, A, N, K)
        bias = key_bias(sizes, x.dtype) if proportional else None
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)  # (B, N, D)
        x = x + layer(attended, f"{name}.attn.proj")
        matching = match_halves(k.mean(dim=1), r, protected=1)
        source = matching.combine(source, reduce="amax")
        x, sizes = matching.mean(x, sizes)
        x = x + layer(F.gelu(layer(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    x = norm(x, "norm")
    return x, layer(x[:, 0], "head"), sizes, source


def test_a_whole_vit_with_tome_equals_the_released_code(golden):
    tensors, metadata = golden("tome_vit")
    config = json.loads(metadata["config"])
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    for case, entry in cases_of(golden, "tome_vit"):
        settings, depth = entry["settings"], config["depth"]
        if settings["schedule"]:
            schedule = linear_schedule(settings["r"][0], depth, settings["r"][1])
            assert schedule == case["schedule"].tolist()
        elif isinstance(settings["r"], list):
            schedule = settings["r"]
        else:
            schedule = linear_schedule(settings["r"], depth)
        x, logits, sizes, source = merging_vit(case["image"], parameters, config, schedule, settings["prop_attn"])
        assert (x - case["tokens"]).abs().max() < 1e-5, entry["name"]
        assert (logits - case["logits"]).abs().max() < 1e-5, entry["name"]
        if "size" in case:
            assert torch.equal(sizes, case["size"].squeeze(-1)), entry["name"]
            assert torch.equal(source, case["source"]), entry["name"]


@pytest.mark.parametrize("keep", [1, 3, 20, 35])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_merging_conserves_tokens_and_their_sum(keep, groups):
    tokens = tokens_of(random(2, 36, 8), (4, 3, 3))
    merged = ToMe(groups).reduce(tokens, keep)
    assert merged.num_placed == keep
    assert torch.allclose(merged.sizes.sum(dim=1), torch.full((2,), 36.0))
    assert torch.allclose((merged.x * merged.sizes.unsqueeze(-1)).sum(dim=1), tokens.x.sum(dim=1), atol=1e-4)
    centre = (merged.coords * merged.sizes.unsqueeze(-1)).sum(dim=1) / 36
    assert torch.allclose(centre, tokens.coords.mean(dim=1), atol=1e-5)


def test_merging_in_two_steps_counts_the_sizes_of_the_first():
    tokens = tokens_of(random(1, 36, 8), (4, 3, 3))
    twice = ToMe().reduce(ToMe().reduce(tokens, 22), 5)
    assert twice.sizes.sum() == 36
    assert torch.allclose((twice.x * twice.sizes.unsqueeze(-1)).sum(dim=1), tokens.x.sum(dim=1), atol=1e-4)


def test_clusters_are_not_mixed():
    centres = 10 * torch.eye(4)
    tokens = tokens_of((centres[torch.arange(36) % 9 % 4] + 0.01 * random(36, 4))[None], (4, 3, 3))
    merged = ToMe(1).reduce(tokens, 18)  # every source has destinations of its own cluster
    assert merged.x.amax(dim=2).min() > 9.9
    assert merged.sizes.max() > 1


def test_groups_do_not_exchange_tokens():
    tokens = tokens_of(random(1, 36, 8), (4, 3, 3))
    times = ToMe(4).reduce(tokens, 10).coords[0, :, 0]
    assert torch.allclose(times, times.round(), atol=1e-5)  # no mean over frames
    assert torch.bincount(times.round().long()).tolist() == [3, 3, 2, 2]


def test_merging_equal_tokens_loses_nothing():
    """Attention over merged tokens with their sizes equals attention over all of them."""
    torch.manual_seed(0)
    from elastivid.models.fluxvit import FluxViTConfig

    model = FluxViTConfig(embed_dim=48, depth=3, num_heads=4, pool_heads=4, pool_dim=32, layer_scale=1.0).build().eval()
    distinct = random(2, 6, 48)
    tokens = tokens_of(distinct.repeat_interleave(6, dim=1), (4, 3, 3))
    with torch.no_grad():
        model.positions.zero_()
        whole = model.encode(tokens, model_point())
        merged = model.encode(tokens, model_point(18, ToMe(1)))
    assert merged.tokens.num_placed == 18
    assert torch.allclose(whole.embedding, merged.embedding, atol=1e-5)


def model_point(tokens=None, selector=None):
    from elastivid.core.point import OperatingPoint

    return OperatingPoint(tokens=tokens, selector=selector)


def test_background_fades_where_it_merges():
    x = torch.cat([torch.ones(1, 18, 4), 1 + 0.1 * random(1, 18, 4)], dim=1)
    scores = torch.cat([torch.zeros(1, 18), torch.ones(1, 18)], dim=1)
    merged = VidTLDR(lambda tokens: scores, groups=1).reduce(tokens_of(x, (4, 3, 3)), 12)
    plain = ToMe(1).reduce(tokens_of(x, (4, 3, 3)), 12)
    assert merged.sizes.sum() < plain.sizes.sum() == 36
    assert merged.num_placed == plain.num_placed == 12


def test_equal_saliency_is_plain_merging():
    tokens = tokens_of(random(2, 36, 8), (4, 3, 3))
    flat = VidTLDR(lambda t: torch.full((2, 36), 3.0)).reduce(tokens, 11)
    plain = ToMe().reduce(tokens, 11)
    assert torch.equal(flat.x, plain.x)
    assert torch.equal(flat.sizes, plain.sizes)


def test_static_background_is_merged_by_motion():
    x = torch.zeros(1, 8, 9, 4) + random(9, 4)
    x[:, :, 5] = random(8, 4, seed=1)  # place 5 changes in every frame
    merged = VidTLDR(GroupDynamic().scores).reduce(tokens_of(x.flatten(1, 2), (8, 3, 3)), 24)
    assert merged.num_placed == 24
    assert merged.sizes.sum() <= 24 + 8  # of what was merged only the 8 moving patches can count


def test_merging_passes_gradients_to_all_tokens():
    x = random(1, 36, 8).requires_grad_()
    ToMe().reduce(tokens_of(x, (4, 3, 3)), 9).x.square().sum().backward()
    assert (x.grad.abs().sum(dim=-1) > 0).all()


def test_the_metric_decides_and_the_features_are_merged():
    tokens, metric = tokens_of(random(1, 36, 8), (4, 3, 3)), random(1, 36, 3, seed=1)
    by_metric = ToMe().reduce(tokens, 9, metric=metric)
    alone = ToMe().reduce(tokens_of(metric, (4, 3, 3)), 9)
    assert torch.equal(by_metric.coords, alone.coords)
    assert by_metric.x.shape == (1, 9, 8)


def test_zero_tokens_do_not_give_nan():
    assert ToMe().reduce(tokens_of(torch.zeros(1, 36, 8), (4, 3, 3)), 5).x.isfinite().all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: ToMe(0), "groups must be >= 1"),
        (lambda t: ToMe(5).reduce(t, 9), "36 tokens do not divide into 5 groups"),
        (lambda t: ToMe().reduce(t, 37), "cannot keep 37 tokens of 36"),
        (lambda t: ToMe().reduce(t, 9, metric=torch.zeros(1, 35, 4)), r"metric must have shape .*\(1, 36\)"),
        (lambda t: VidTLDR(lambda s: torch.zeros(1, 35)).reduce(t, 9), r"shape \(1, 36\), got \(1, 35\)"),
        (lambda t: VidTLDR(lambda s: torch.full((1, 36), torch.nan)).reduce(t, 9), "36 scores that are not a number"),
        (lambda t: match_every(t.x, 1), "k must be 2 to 36"),
    ],
)
def test_errors_name_the_numbers(call, match):
    with pytest.raises(PointError, match=match):
        call(tokens_of(random(1, 36, 8), (4, 3, 3)))


@pytest.mark.parametrize("reducer", [ToMe(), VidTLDR(lambda t: GroupDynamic().scores(t).float())])
def test_merging_in_bfloat16_gives_bfloat16(reducer):
    merged = reducer.reduce(tokens_of(random(1, 36, 8).bfloat16(), (4, 3, 3)), 9)
    assert merged.x.dtype == torch.bfloat16
    assert merged.sizes.dtype == merged.coords.dtype == torch.float32
