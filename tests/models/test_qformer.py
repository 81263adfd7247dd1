"""Q-Former: public implementations, masks, and reading a video through a memory."""

from __future__ import annotations

import json

import pytest
import torch

from elastivid.memory.bank import MergingMemory
from elastivid.models.qformer import QFormerConfig, convert_reference

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
