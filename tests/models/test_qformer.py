"""Q-Former: public implementations, masks, and reading a video through a memory."""

from __future__ import annotations

import json

import pytest
import torch

from elastivid.core.errors import PointError
from elastivid.memory.adacm2 import AdaCM2, CappedAdaCM2
from elastivid.memory.bank import MergingMemory
from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import FirstInFirstOut, KeepAll
from elastivid.models.qformer import MASKS, QFormerConfig, convert_reference, qformer_mask

SMALL = QFormerConfig(50, 24, 48, 4, 4, 80, 32, 6, 2)


def small(**changes):
    torch.manual_seed(0)
    return QFormerConfig(**{**vars(SMALL), **changes}).build().eval()


def of_golden(tensors, config, prefix="param.Qformer.", vision="vit_width"):
    sizes = QFormerConfig(
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["intermediate_size"],
        visual_dim=config[vision],
        num_queries=config["num_query_token"],
        cross_every=config["cross_attention_freq"],
    )
    model = sizes.build().eval()
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and ".cls." not in k}
    state = {k: v for k, v in state.items() if not k.startswith("cls.")}
    model.load_state_dict({**convert_reference(state), "queries": tensors["param.query_tokens"]})
    return model


@pytest.mark.parametrize("case", range(4))
@torch.inference_mode()
def test_the_merging_bank_is_that_of_ma_lmm(golden, case):
    tensors, metadata = golden("malmm_memory")
    config = json.loads(metadata["config"])
    model = of_golden(tensors, config, vision="vision_width")
    settings = json.loads(metadata["cases"])[case]["settings"]
    at = {k.removeprefix(f"case{case}."): v for k, v in tensors.items() if k.startswith(f"case{case}.")}
    norm = torch.nn.LayerNorm(config["vision_width"])
    norm.load_state_dict({n: tensors[f"param.ln_vision.{n}"] for n in ("weight", "bias")})
    num_frames = settings["num_frames"]
    frames = norm(at["frames"])
    text, valid = model.embed_text(at["input_ids"]), at["text_mask"].bool()
    length = settings["memory_bank_length"]
    if length == 0:
        for t in range(num_frames):
            out = model(frames[:, t], text=text, text_valid=valid)
            got = torch.cat([out.queries, out.text], dim=1)
            assert (got - at["hidden"][:, t]).abs().max() < 1e-5
        return
    frames = frames + tensors["param.image_pe.weight"][:num_frames, None]
    memory = MergingMemory(length)
    for t in range(num_frames):
        if t == num_frames - 1:
            for layer in (1, 2, 3):
                bank = memory.queries[layer]
                assert (bank.slots - at[f"query_bank_layer{layer}"]).abs().max() < 1e-5
                told = slice(5 if layer == 1 else None)  # words reach layer 1 equal in all frames: rounding decides
                assert torch.equal(bank.sizes[..., told], at[f"query_bank_sizes_layer{layer}"][..., told])
            if "visual_bank" in at:
                assert (memory.visual.slots - at["visual_bank"]).abs().max() < 1e-5
                assert torch.equal(memory.visual.sizes, at["visual_bank_sizes"])
        seconds = torch.full((*frames.shape[:1], 1, *frames.shape[2:3]), float(t))
        out = model.stream(frames[:, t : t + 1], seconds, memory, text=text, text_valid=valid)
        memory = out.memory
        assert (torch.cat([out.queries, out.text], dim=1) - at["hidden"][:, t]).abs().max() < 1e-5
    projected = torch.nn.functional.linear(
        out.queries, tensors["param.llm_proj.weight"], tensors["param.llm_proj.bias"]
    )
    assert (projected - at["llm_tokens"]).abs().max() < 1e-5


def text_of(model, rows=2, length=5, seed=1):
    return model.embed_text(torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(seed)))


def visual_of(rows=2, count=7, seed=2):
    return torch.randn(rows, count, 32, generator=torch.Generator().manual_seed(seed))


def test_the_three_masks():
    expected = {
        "unimodal": ["11000", "11000", "00111", "00111", "00111"],
        "bidirectional": ["11111"] * 5,
        "multimodal_causal": ["11000", "11000", "11100", "11110", "11111"],
    }
    for kind, rows in expected.items():
        mask = qformer_mask(kind, 2, 3)
        assert mask.shape == (1, 1, 5, 5)
        assert ["".join(str(int(c)) for c in row) for row in mask[0, 0]] == rows
    padded = qformer_mask("bidirectional", 2, 3, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert padded.shape == (2, 1, 5, 5)
    assert padded[0, 0].tolist() == [[True] * 4 + [False]] * 5
    with pytest.raises(ValueError, match=r"mask must be one of unimodal, .*, got 'causal'"):
        qformer_mask("causal", 2, 3)


@torch.inference_mode()
def test_who_sees_whom():
    model = small()
    visual, text = visual_of(), text_of(model)
    alone, words = model(visual).queries, model(text=text).text
    apart = model(visual, text=text, mask="unimodal")
    assert torch.allclose(apart.queries, alone, atol=1e-6)
    assert torch.allclose(apart.text, words, atol=1e-6)
    writes = model(visual, text=text, mask="multimodal_causal")
    assert torch.allclose(writes.queries, alone, atol=1e-6)
    changed = torch.cat([text[:, :3], text_of(model, seed=9)[:, 3:]], dim=1)
    rewritten = model(visual, text=changed, mask="multimodal_causal")
    assert torch.allclose(rewritten.text[:, :3], writes.text[:, :3], atol=1e-6)
    assert (rewritten.text[:, 3:] - writes.text[:, 3:]).abs().max() > 1e-3
    assert (model(visual_of(seed=8), text=text, mask="multimodal_causal").text - writes.text).abs().max() > 1e-5
    both = model(visual, text=text)
    assert (model(visual, text=changed).text[:, 0] - both.text[:, 0]).abs().max() > 1e-4
    assert (both.queries - alone).abs().max() > 1e-4


@torch.inference_mode()
def test_order_and_padding():
    model = small()
    visual, text, order = visual_of(), text_of(model), torch.tensor([3, 0, 5, 1, 4, 2])
    out = model(visual, text=text)
    assert torch.allclose(model(visual.flip(1), text=text).queries, out.queries, atol=1e-6)
    turned = model(visual, text=text, queries=model.queries[:, order])
    assert torch.allclose(turned.queries, out.queries[:, order], atol=1e-6)
    longer = torch.cat([text, text_of(model, length=3, seed=7)], dim=1)
    valid = torch.arange(8).expand(2, -1) < 5
    padded = model(visual, text=longer, text_valid=valid)
    assert torch.allclose(padded.queries, out.queries, atol=1e-6)
    assert (model(visual, text=text.flip(1)).queries - out.queries).abs().max() > 1e-4
    alone = torch.cat([model(visual[i : i + 1], text=text[i : i + 1]).queries for i in range(2)])
    assert torch.allclose(out.queries, alone, atol=1e-6)


def test_cross_attention_is_in_every_second_layer():
    model = small()
    assert [layer.cross is not None for layer in model.blocks] == [True, False, True, False]
    assert model.config.num_cross == 2
    assert len(model(visual_of(), weights=True).attention) == 2
    assert model(visual_of()).attention == ()


@torch.inference_mode()
def test_a_sink_is_always_there_and_never_remembered():
    model = small(num_sinks=1)
    visual = visual_of(rows=1, count=12).unflatten(1, (4, 3))  # (B, T, P, C)
    seconds = torch.arange(4.0)[None, :, None].expand(1, -1, 3)
    out = model.stream(visual, seconds, CacheMemory(KeepAll()))
    assert [a.shape[-1] for a in out.attention] == [13, 13]
    assert out.memory.tokens(0) == (12,)
    whole = model(visual.flatten(1, 2), weights=True)
    assert torch.allclose(out.queries, whole.queries, atol=1e-6)
    assert torch.allclose(out.attention[1], whole.attention[1], atol=1e-6)


@torch.inference_mode()
def test_carried_queries_are_the_callers_choice():
    model = small()
    visual, seconds = visual_of(count=3)[:, None], torch.zeros(2, 1, 3)
    first = model.stream(visual, seconds, CacheMemory(FirstInFirstOut(6)))
    anew = model.stream(visual, seconds, first.memory)
    carried = model.stream(visual, seconds, first.memory, queries=first.queries)
    assert not torch.allclose(anew.queries, carried.queries, atol=1e-3)


@pytest.mark.parametrize("rule", [AdaCM2(0.2, 0.2), CappedAdaCM2(9)])
def test_gradients_flow_through_a_stream(rule):
    model = small()
    visual, seconds = visual_of(count=30).unflatten(1, (10, 3)).requires_grad_(), torch.zeros(2, 10, 3)
    model.stream(visual, seconds, CacheMemory(rule), text=text_of(model)).queries.square().sum().backward()
    assert visual.grad.abs().sum() > 0
    assert model.queries.grad.abs().sum() > 0


def test_what_it_cannot_take_is_refused():
    model = small()
    with pytest.raises(PointError, match="needs visual tokens, a text or both, got neither"):
        model()
    with pytest.raises(PointError, match="the text has 30 tokens, at most 24 fit"):
        model(text=text_of(model, length=30))
    blind = small(takes_text=False, vocab_size=0)
    with pytest.raises(PointError, match="takes no text"):
        blind(visual_of(), text=torch.zeros(2, 3, 48))
    with pytest.raises(PointError, match="has no table of words"):
        blind.embed_text(torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="vocab_size must be 0, got 50"):
        small(takes_text=False)
    with pytest.raises(ValueError, match="num_heads must divide embed_dim 48, got 5"):
        small(num_heads=5)


def test_all_masks_are_named():
    assert MASKS == ("unimodal", "bidirectional", "multimodal_causal")
