"""BLIP-2 and InstructBLIP: public implementations, transformers' classes, stages and frozen parts."""

from __future__ import annotations

import json

import pytest
import torch

from elastivid.core.errors import WeightsError
from elastivid.losses.image_text import contrast, negative_weights, query_similarity, shared_targets, writing
from elastivid.memory.adacm2 import AdaCM2
from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import KeepAll
from elastivid.models.blip2 import PRESETS, Blip2Config, Seeing, Stage1Config, TowerConfig, convert_reference
from elastivid.models.instructblip import InstructBlipConfig, Instruction
from elastivid.models.qformer import QFormerConfig

TOLERANCE = 1e-5


def sizes(config):
    tower = TowerConfig(
        tuple(config["img_size"]),
        config["patch_size"],
        config["vit_width"],
        config["vit_depth"],
        config["vit_heads"],
        int(config["vit_width"] * config["vit_mlp_ratio"]),
    )
    reader = QFormerConfig(
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["intermediate_size"],
        visual_dim=config["vit_width"],
        num_queries=config["num_query_token"],
        cross_every=config["cross_attention_freq"],
    )
    return tower, reader


def case_of(tensors, number):
    return {k.removeprefix(f"case{number}."): v for k, v in tensors.items() if k.startswith(f"case{number}.")}


def close(got, wanted):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < TOLERANCE


@pytest.fixture
def stage1(golden):
    tensors, metadata = golden("blip2_stage1")
    config = json.loads(metadata["config"])
    tower, reader = sizes(config)
    model = Stage1Config(tower, reader, config["embed_dim"], config["bos_token_id"]).build().eval()
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    model.load_state_dict(convert_reference(state))
    return model, tensors


@pytest.mark.parametrize("number", [0, 1])
@torch.inference_mode()
def test_losses_are_those_of_the_released_code(stage1, number):
    model, tensors = stage1
    case = case_of(tensors, number)
    ids, valid, image_ids = case["input_ids"], case["text_mask"].bool(), case.get("image_id")
    negatives = case["neg_image_for_text"], case["neg_text_for_image"]
    losses = model.losses(case["image"], ids, valid, image_ids=image_ids, negatives=negatives)
    for name, wanted in (("contrast", "loss_itc"), ("match", "loss_itm"), ("write", "loss_lm")):
        close(losses[name], case[wanted])
    tokens = model.seeing.tokens(case["image"])
    close(model.seeing.qformer(tokens).queries, case["query_hidden"])
    text = model.seeing.qformer(text=model.seeing.qformer.embed_text(ids), text_valid=valid).text
    close(text * valid[..., None], case["text_hidden"] * valid[..., None])
    close(model.word_logits(tokens, ids, valid)[valid], case["lm_logits"][valid])
    similarity = query_similarity(model.images(tokens), model.texts(ids, valid))
    close(negative_weights(similarity, model.temperature, image_ids), case["neg_text_weights"])
    close(negative_weights(similarity.T, model.temperature, image_ids), case["neg_image_weights"])
    pairs = torch.cat([tokens, tokens[negatives[0]], tokens])
    words, there = torch.cat([ids, ids, ids[negatives[1]]]), torch.cat([valid, valid, valid[negatives[1]]])
    close(model.match_logits(pairs, words, there), case["itm_query_logits"])


@torch.inference_mode()
def test_features_are_those_of_the_released_code(stage1):
    model, tensors = stage1
    case = case_of(tensors, 2)
    ids, valid = case["input_ids"], case["text_mask"].bool()
    tokens = model.seeing.tokens(case["image"])
    close(tokens, case["image_tokens"])
    close(model.images(tokens), case["image_proj"])
    close(model.texts(ids, valid), case["text_proj"][:, 0])
    close(query_similarity(model.images(tokens), model.texts(ids, valid)), case["itc_score"])
    close(model.match_logits(tokens, ids, valid)[..., 1].mean(dim=1), case["itm_score"])
    written = case_of(tensors, 3)
    ids, valid = written["input_ids"], written["text_mask"].bool()
    logits = model.word_logits(model.seeing.tokens(written["image"]), ids, valid)
    labels = ids.masked_fill(~valid, -100)
    close(writing(logits, labels), written["loss_lm"])
    close(writing(logits, labels, reduction="none"), written["loss_lm_per_sample"])


@pytest.mark.parametrize("number", range(4))
@torch.inference_mode()
def test_queries_with_an_instruction_are_those_of_the_released_code(golden, number):
    tensors, metadata = golden("instructblip_qformer")
    config = json.loads(metadata["config"])
    seeing = Seeing(*sizes(config)).eval()
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    ours = {k.removeprefix("seeing."): v for k, v in convert_reference(state).items()}
    proj = {k: ours.pop(f"speaking.proj.{k}") for k in ("weight", "bias")}
    seeing.load_state_dict(ours)
    case = case_of(tensors, number)
    text = {"text": seeing.qformer.embed_text(case["input_ids"]), "text_valid": case["text_mask"].bool()}
    text = text if json.loads(metadata["cases"])[number]["settings"]["instruction_to_qformer"] else {}
    images = (
        case["image"] if case["image"].ndim == 4 else case["image"].transpose(1, 2)
    )  # (B, C, T, H, W) or (B, C, H, W)
    tokens = seeing.tokens(images)
    frames = [tokens] if images.ndim == 4 else tokens.unbind(1)
    outs = [seeing.qformer(frame, **text, weights=True) for frame in frames]
    queries = torch.cat([out.queries for out in outs], dim=1)
    close(torch.nn.functional.linear(queries, proj["weight"], proj["bias"]), case["llm_tokens"])
    maps = [torch.stack(out.attention) for out in outs]
    close(maps[0] if len(maps) == 1 else torch.stack(maps, dim=2), case["cross_attention"])


# transformers' classes, tiny and random

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
READER = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 16,
    "max_position_embeddings": 20,
}
IMAGE_WORD, QUERIES = 59, 3


def text_config(transformers, kind):
    if kind == "t5":
        return transformers.T5Config(
            vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    return transformers.OPTConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=32,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    )


def theirs(name, kind, folder):
    """A random model of transformers, saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    prefix = name.removesuffix("ForConditionalGeneration").removesuffix("ForImageTextRetrieval")
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=VISION,
        qformer_config=READER | ({"use_qformer_text_input": True} if "Retrieval" in name else {}),
        text_config=text_config(transformers, kind).to_dict(),
        num_query_tokens=QUERIES,
        **{("video_token_index" if "Video" in name else "image_token_index"): IMAGE_WORD},
        image_text_hidden_size=12,
    )
    model = getattr(transformers, name)(config).eval()
    spread(model)
    model.save_pretrained(folder)
    return model


def spread(model):
    """Matrices large enough that everything matters."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)


def words(seed=0, rows=2, length=5):
    g = torch.Generator().manual_seed(seed)
    ids, valid = torch.randint(3, 50, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.bool)
    valid[1, -2:] = False
    return ids, valid


def placed(ids, valid, count):
    """Their way to say where prompts go: a word that stands for an image."""
    front = torch.full((len(ids), count), IMAGE_WORD)
    return torch.cat([front, ids], dim=1), torch.cat([torch.ones_like(front), valid.long()], dim=1)


@pytest.mark.parametrize("kind", ["opt", "t5"])
@torch.inference_mode()
def test_stage_two_is_that_of_transformers(kind, tmp_path):
    from elastivid.models.blip2 import from_folder

    reference = theirs("Blip2ForConditionalGeneration", kind, tmp_path)
    model = from_folder(tmp_path)
    images, (ids, valid) = torch.randn(2, 3, 28, 28), words()
    their_ids, their_valid = placed(ids, valid, QUERIES)
    more = {"decoder_input_ids": ids} if kind == "t5" else {}
    wanted = reference(pixel_values=images, input_ids=their_ids, attention_mask=their_valid, **more).logits
    queries = model.queries(images)
    given = model.speaking.inputs(queries, ids, valid)
    got = model.speaking.language(**given, **more).logits
    assert (got - wanted)[:, QUERIES:][valid if kind == "opt" else slice(None)].abs().max() < TOLERANCE
    written = model.generate(images, ids[:1].expand(2, -1), torch.ones_like(valid), max_new_tokens=4, do_sample=False)
    theirs_ids, ones = placed(ids[:1].expand(2, -1), torch.ones_like(valid), QUERIES)
    expected = reference.generate(
        pixel_values=images, input_ids=theirs_ids, attention_mask=ones, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(written, expected[:, -written.shape[1] :])


@torch.inference_mode()
def test_retrieval_is_that_of_transformers(tmp_path):
    reference = theirs("Blip2ForImageTextRetrieval", "opt", tmp_path)
    tower = TowerConfig.from_reference(reference.config.vision_config.to_dict())
    reader = QFormerConfig.from_reference(
        reference.config.qformer_config.to_dict(), QUERIES, takes_text=True, words=True
    )
    model = Stage1Config(tower, reader, 12).build().eval()
    left = model.load_state_dict(convert_reference(reference.state_dict()), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) == {
        "write_bias", "temperature", *(f"write_{p}.{n}" for p in ("fc", "norm") for n in ("weight", "bias"))
    }  # fmt: skip
    images, (ids, valid) = torch.randn(2, 3, 28, 28), words()
    tokens = model.seeing.tokens(images)
    their_ids, their_valid = placed(ids, valid, QUERIES)
    matched = reference(images, their_ids, their_valid, use_image_text_matching_head=True).logits_per_image
    close(model.match_logits(tokens, ids, valid).mean(dim=1), matched)
    compared = reference(images, their_ids, their_valid).logits_per_image
    close(query_similarity(model.images(tokens), model.texts(ids, valid)), compared)


@pytest.mark.parametrize("name", ["InstructBlip", "InstructBlipVideo"])
@torch.inference_mode()
def test_instructions_are_those_of_transformers(name, tmp_path):
    from elastivid.models.instructblip import from_folder

    reference = theirs(f"{name}ForConditionalGeneration", "opt", tmp_path)
    model = from_folder(tmp_path)
    (ids, valid), (asked, there) = words(), words(seed=3, length=4)
    images = torch.randn((2, 4, 3, 28, 28) if "Video" in name else (2, 3, 28, 28))
    count = QUERIES * (4 if "Video" in name else 1)
    their_ids, their_valid = placed(ids, valid, count)
    wanted = reference(
        pixel_values=images,
        input_ids=their_ids,
        attention_mask=their_valid,
        qformer_input_ids=asked,
        qformer_attention_mask=there.long(),
    ).logits
    got = model(images, Instruction(asked, there), ids, valid).logits
    assert (got - wanted)[:, count:][valid].abs().max() < TOLERANCE


def small_instructblip(transformers):
    torch.manual_seed(0)
    language = transformers.AutoModelForCausalLM.from_config(text_config(transformers, "opt"))
    config = InstructBlipConfig(
        TowerConfig((28, 28), 14, 16, 1, 2, 32), QFormerConfig(50, 20, 24, 3, 4, 40, 16, QUERIES, 2)
    )
    model = config.build(language)
    spread(model)
    return model


def test_stage_two_trains_the_reader_through_a_frozen_language_model():
    transformers = pytest.importorskip("transformers")
    model = small_instructblip(transformers).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if ".tower." in n or ".language." in n}
    (ids, valid), (asked, there) = words(), words(seed=3)
    labels = ids.masked_fill(~valid, -100)
    labels[:, :2] = -100
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images = torch.randn(2, 3, 28, 28)
    loss = model(images, Instruction(asked, there), ids, valid, labels).loss
    loss.backward()
    assert model.speaking.proj.weight.grad.abs().sum() > 0
    assert model.seeing.qformer.queries.grad.abs().sum() > 0
    optimizer.step()
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())
    assert not model.speaking.language.training
    assert not model.seeing.tower.training
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in trained} == {
        "seeing.qformer", "seeing.norm", "speaking.proj"
    }  # fmt: skip


@torch.inference_mode()
def test_the_instruction_changes_what_is_seen_and_what_is_remembered():
    transformers = pytest.importorskip("transformers")
    model = small_instructblip(transformers).eval()
    frames, seconds = torch.randn(1, 12, 3, 28, 28), torch.arange(12.0)[None]
    ids, there = words(seed=5)
    one, other = Instruction(ids[:1], there[:1]), Instruction(ids[:1].flip(1), there[:1])
    assert (model.queries(frames[:, 0], one) - model.queries(frames[:, 0], other)).abs().max() > 1e-3
    kept = []
    for instruction in (one, other, None):
        out, memory = model.streamed(frames, seconds, CacheMemory(AdaCM2(0.1, 0.3)), instruction)
        assert out.shape == (1, QUERIES, 24)
        kept.append(memory.layers[1].seconds.flatten().tolist())
    assert kept[0] != kept[1]
    streamed, _ = model.streamed(frames, seconds, CacheMemory(KeepAll()), one)
    reader, tokens = model.seeing.qformer, model.seeing.tokens(frames).flatten(1, 2)  # (B, T*N, C)
    whole = reader(tokens, text=reader.embed_text(one.ids), text_valid=one.valid).queries
    assert (streamed - whole).abs().max() < 1e-5


def test_a_stage_two_step_without_text_ignores_the_instruction():
    transformers = pytest.importorskip("transformers")
    language = transformers.AutoModelForCausalLM.from_config(text_config(transformers, "opt"))
    tower = TowerConfig((28, 28), 14, 16, 1, 2, 32)
    reader = QFormerConfig(0, 20, 24, 3, 4, 40, 16, QUERIES, 2, takes_text=False)
    model = Blip2Config(tower, reader).build(language).eval()
    frames = torch.randn(2, 3, 3, 28, 28)
    with torch.inference_mode():
        each = torch.cat([model.queries(frames[:, t]) for t in range(3)], dim=1)
        assert torch.allclose(model.queries(frames), each, atol=1e-6)
        out, memory = model.streamed(frames, torch.arange(3.0).expand(2, -1), CacheMemory(KeepAll()))
    assert out.shape == (2, QUERIES, 24)
    assert memory.frames == (3, 3)


def test_stage_one_learns_from_each_of_its_losses():
    torch.manual_seed(0)
    model = PRESETS["tiny"].build()
    images, (ids, valid) = torch.randn(4, 3, 28, 28), words(rows=4)
    losses = model.losses(images, ids, valid, generator=torch.Generator().manual_seed(0))
    for name, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert model.seeing.qformer.queries.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.seeing.tower.parameters())


def test_contrast_in_closed_form():
    queries = torch.eye(3)[:, None]  # one query each, unit vectors
    similarity = query_similarity(queries, torch.eye(3))
    assert torch.equal(similarity, torch.eye(3))
    expected = -torch.tensor([1 / 0.5, 0.0, 0.0]).log_softmax(dim=0)
    targets = shared_targets(None, 3, smoothing=0.0)
    assert torch.allclose(contrast(similarity, 0.5, targets), expected[0])
    shared = shared_targets(torch.tensor([7, 8, 7]), 3, smoothing=0.0)
    assert shared.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    assert negative_weights(similarity, 1.0)[0].tolist() == [0, 0.5, 0.5]
    with pytest.raises(ValueError, match="hard negatives need another image"):
        negative_weights(similarity, 1.0, torch.tensor([1, 1, 1]))


def test_checkpoints_of_other_kinds_are_refused(tmp_path):
    pytest.importorskip("transformers")
    from elastivid.models.blip2 import from_folder

    theirs("InstructBlipForConditionalGeneration", "opt", tmp_path)
    with pytest.raises(WeightsError, match="holds a instructblip, wanted blip-2"):
        from_folder(tmp_path)
    with pytest.raises(WeightsError, match="no BLIP-2 has a tensor blocks"):
        convert_reference({"blocks.0.weight": torch.zeros(1)})
    theirs("Blip2ForConditionalGeneration", "opt", tmp_path / "other")
    for file in (tmp_path / "other").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(WeightsError, match="holds no safetensors"):
        from_folder(tmp_path / "other")
