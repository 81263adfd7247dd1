"""AdaVid: equal to EgoVLP at full width, a model of its own at every other one, and independent of batching."""

from __future__ import annotations

import json
import runpy
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.layers.elastic import sample_widths
from elastivid.losses.contrastive import egonce
from elastivid.models.adavid import (
    PRESETS,
    AdaVidDualConfig,
    convert_reference,
    segment_features,
)
from elastivid.models.distilbert import DistilBertConfig, shipped_tokenizer
from elastivid.search.index import Index
from elastivid.weights.load import load, read_metadata, save, texts_need_torch

SCHEDULES = [8, (48, 32, 16), (16, 32, 48)]


def loud(model, seed=0):
    """Every parameter of `model` drawn so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return model.eval()


@pytest.fixture(scope="module")
def clips_encoder():
    return loud(PRESETS["tiny"].build())


@pytest.fixture(scope="module")
def dual():
    return loud(PRESETS["egovlp-tiny"].build())


@pytest.fixture(scope="module")
def aggregator():
    return loud(PRESETS["agg-tiny"].build())


def clip(batch=2, frames=4, size=70, seed=0):
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def features(batch=3, segments=16, seed=1):
    return F.normalize(torch.randn(batch, segments, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)


@torch.inference_mode()
def test_equals_egovlp_on_every_golden_case(golden):
    tensors, metadata = golden("egovlp")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    model = AdaVidDualConfig.from_reference(json.loads(metadata["config"])).build().eval()
    model.load_state_dict(convert_reference(parameters), strict=True)
    wrapped = {
        f"module.{name}": value for name, value in parameters.items()
    }  # as checkpoints of many devices name them
    assert convert_reference(wrapped).keys() == convert_reference(parameters).keys()
    for i, case in enumerate(json.loads(metadata["cases"])):
        if case["kind"] != "model":
            continue
        video, ids, mask = (tensors[f"case{i}.{name}"] for name in ("video", "input_ids", "attention_mask"))
        out = model.video(video.float())
        texts = model.text(ids, mask.sum(1))
        cosines = F.normalize(texts, dim=-1) @ F.normalize(out.embedding, dim=-1).T
        assert (out.embedding - tensors[f"case{i}.video_embedding"]).abs().max() < 1e-5, f"case {i}: video"
        assert (texts - tensors[f"case{i}.text_embedding"]).abs().max() < 1e-5, f"case {i}: text"
        assert (cosines - tensors[f"case{i}.similarity"]).abs().max() < 1e-5, f"case {i}: similarity"
        if case.get("tokens"):
            assert (out.tokens.x - tensors[f"case{i}.video_tokens"]).abs().max() < 1e-5
        assert torch.equal(model.video(video.float(), point=OperatingPoint(width=48)).embedding, out.embedding)


def test_converter_refuses_what_it_does_not_know(golden):
    tensors, metadata = golden("egovlp")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    model = AdaVidDualConfig.from_reference(json.loads(metadata["config"])).build()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surprise"):
        model.load_state_dict(convert_reference({**parameters, "surprise": torch.zeros(1)}))
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        AdaVidDualConfig.from_reference({"video": {"colour": 1}, "text": {}, "projection_dim": 8})
    with pytest.raises(WeightsError, match="activation='relu'"):
        AdaVidDualConfig.from_reference({"video": {}, "text": {"activation": "relu"}, "projection_dim": 8})


@torch.inference_mode()
def test_the_text_tower_equals_distilbert():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    theirs = loud(
        transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=60, dim=24, n_layers=2, n_heads=3, hidden_dim=40)
        )
    )
    state = {f"text_model.{name}": value for name, value in theirs.state_dict().items()}
    state |= {"txt_proj.1.weight": torch.eye(24), "txt_proj.1.bias": torch.zeros(24)}
    config = DistilBertConfig(60, embed_dim=24, depth=2, num_heads=3, hidden_dim=40, output_dim=24)
    tower = config.build().eval()
    tower.load_state_dict({k.removeprefix("text."): v for k, v in convert_reference(state).items()})
    ids, lengths = torch.randint(60, (3, 7)), torch.tensor([7, 2, 5])
    mask = torch.arange(7) < lengths[:, None]
    wanted = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0].relu()
    assert (tower(ids, lengths) - wanted).abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("width", SCHEDULES)
def test_a_schedule_equals_a_model_of_its_own(clips_encoder, width):
    point = OperatingPoint(width=width)
    small = clips_encoder.at(point)
    wanted = clips_encoder(clip(), point=point).embedding
    assert torch.allclose(small(clip()).embedding, wanted, atol=1e-5)
    rebuilt = replace(small.config).build().eval()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(clip()).embedding, small(clip()).embedding)
    counted = measured_macs(lambda: clips_encoder(clip(batch=1), point=point))
    assert clips_encoder.config.cost(frames=4, size=70, width=width).macs == counted
    assert small.config.cost(frames=4, size=70).macs == counted
    full, cut = clips_encoder.config.cost(frames=4, size=70), small.config.cost(frames=4, size=70)
    for cost, model in ((full, clips_encoder), (cut, small)):
        assert cost.parameter_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert cut.parameter_bytes < full.parameter_bytes


@torch.inference_mode()
@pytest.mark.parametrize("width", [None, *SCHEDULES])
def test_the_aggregator_at_every_width(aggregator, width):
    point = OperatingPoint(width=width)
    small = aggregator.at(point)
    wanted = aggregator(features(), point=point).embedding
    assert torch.allclose(small(features()).embedding, wanted, atol=1e-5)
    for segments in (1, 16):
        counted = measured_macs(lambda segments=segments: aggregator(features(1, segments), point=point))
        assert aggregator.config.cost(segments=segments, width=width).macs == counted


@torch.inference_mode()
def test_a_long_video_does_not_depend_on_how_its_segments_were_batched(dual, aggregator):
    segments = torch.randn(2, 16, 2, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    point = OperatingPoint(width=(48, 32, 16))
    wanted = aggregator(segment_features(dual, segments, point=point, at_once=32)).embedding
    for at_once in (1, 5):
        got = aggregator(segment_features(dual, segments, point=point, at_once=at_once)).embedding
        assert torch.allclose(got, wanted, atol=1e-5)
    alone = torch.cat([aggregator(segment_features(dual, one[None], point=point)).embedding for one in segments])
    assert torch.allclose(alone, wanted, atol=1e-5)


@torch.inference_mode()
def test_the_order_of_segments_matters(aggregator):
    assert not torch.allclose(aggregator(features()).embedding, aggregator(features().flip(1)).embedding, atol=1e-3)


def test_segments_are_encoded_without_gradient_and_aggregated_with(dual, aggregator):
    segments = torch.randn(1, 2, 2, 3, 28, 28)
    aggregator(segment_features(dual, segments)).embedding.sum().backward()
    assert all(p.grad is None for p in dual.parameters())
    assert aggregator.embed.weight.grad.abs().sum() > 0


@torch.inference_mode()
def test_everything_is_a_unit_vector_of_one_space(dual):
    for vectors in (
        dual.embed_clips(clip()),
        dual.embed_clips(clip(), point=OperatingPoint(width=(48, 24, 8))),
        dual.embed_images(clip()[:, 0]),
        dual.embed_texts(["C opens the drawer", ""]),
    ):
        assert vectors.shape == (2, dual.dim)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.equal(dual.embed_images(clip()[:, 0]), dual.embed_clips(clip()[:, :1]))
    assert dual.logit_scale == pytest.approx(20)
    assert (dual.transform.size, dual.transform.shortest_edge) == (70, 70)


@torch.inference_mode()
def test_texts_do_not_depend_on_their_neighbours(dual):
    texts = ["C cuts an onion", "C puts the large wooden spoon back into the drawer"]
    alone = torch.cat([dual.embed_texts([text]) for text in texts])
    assert torch.allclose(dual.embed_texts(texts), alone, atol=1e-5)


def test_the_tokenizer_travels_with_the_weights(dual):
    ids, lengths = dual.text.tokenize(["C opens the drawer.", "C"])
    assert lengths.tolist() == [7, 3]
    assert (ids[0, 0], ids[0, -1], ids[1, 2], ids[1, 3]) == (101, 102, 102, 0)  # BERT's [CLS], [SEP] and padding
    again = dual.config.build()
    again.load_state_dict(dual.state_dict())
    assert torch.equal(again.text.tokenize(["C opens the drawer."])[0], ids[:1])
    long, lengths = dual.text.tokenize(["word " * 99])
    assert long.shape == (1, 32)
    assert long[0, -1] == 102
    bare = DistilBertConfig(vocab_size=50, embed_dim=8, num_heads=2, depth=1).build()
    with pytest.raises(WeightsError, match="carries no tokenizer"):
        bare.tokenize(["C"])


def test_tokens_equal_those_of_bert():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    import zlib

    from tokenizers import Tokenizer

    packed = shipped_tokenizer().numpy().tobytes()
    vocabulary = Tokenizer.from_str(zlib.decompress(packed).decode()).get_vocab()
    theirs = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)
    dual = PRESETS["egovlp-tiny"].build()
    for text in ("C opens the drawer.", "Unwraps croissants, naïvely!", "#C C picks up a 5mm screwdriver"):
        assert dual.text.tokenize([text])[0][0].tolist() == theirs(text)["input_ids"]


def test_the_space_changes_with_any_weight(dual):
    before = dual.space_id
    with torch.no_grad():
        dual.video.proj.bias[0] += 1
        changed = dual.space_id
        dual.video.proj.bias[0] -= 1
    assert before != changed


@torch.inference_mode()
def test_saved_and_loaded_is_the_same(tmp_path):
    model = loud(PRESETS["egovlp-tiny"].build(), seed=7)
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    save(model, whole, address="adavid/tiny@test", licence="MIT", card={})
    small = model.at(OperatingPoint(width=(48, 32, 16)))
    save(small, part, address="adavid/tiny-falling@test", licence="MIT", card={})
    loaded, narrow = load(str(whole)), load(str(part))
    assert loaded.space_id == narrow.space_id == model.space_id == read_metadata(whole)["space_id"]
    assert torch.equal(loaded.embed_clips(clip()), model.embed_clips(clip()))
    wanted = model.embed_clips(clip(), point=OperatingPoint(width=(48, 32, 16)))
    assert torch.allclose(narrow.embed_clips(clip()), wanted, atol=1e-5)
    assert torch.equal(narrow.embed_texts(["C opens the door"]), model.embed_texts(["C opens the door"]))
    assert texts_need_torch(str(whole))
    assert not texts_need_torch("nano")


@torch.inference_mode()
def test_bfloat16_stays_close_and_in_the_same_space():
    model = loud(PRESETS["egovlp-tiny"].build())
    wanted, space_id = model.embed_clips(clip()), model.space_id
    rounded = model.cast("bfloat16").embed_clips(clip())
    assert rounded.dtype == torch.float32
    assert (rounded * wanted).sum(-1).min() > 0.99
    assert model.space_id == space_id


@torch.inference_mode()
def test_searching_with_it_from_a_file(tmp_path):
    """An index made with a file of this family is searched in words, although its text tower needs torch."""
    model = loud(PRESETS["egovlp-tiny"].build())
    path = tmp_path / "adavid.safetensors"
    save(model, path, address="adavid/tiny@test", licence="MIT", card={})
    waves = 127 + 100 * np.sin(np.arange(75 * 48 * 64 * 3).reshape(75, 48, 64, 3) / 999)
    film = tmp_path / "one.mp4"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in waves.astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    Index.open(tmp_path / "library.ev", model=str(path)).add(film)
    found = Index.open(tmp_path / "library.ev").search_with_cost("C opens the door zzyzx")
    assert list(found.unknown) == ["zzyzx"]
    assert [moment.path for moment in found.moments] == [str(film)]


def test_published_sizes():
    """ViT-B/16 with a second attention per block and DistilBERT with 66 M parameters, as EgoVLP's checkpoint."""
    with torch.device("meta"):
        video, text = PRESETS["base"].build(), PRESETS["egovlp"].text.build()
    assert sum(p.numel() for p in video.parameters()) == pytest.approx(114.4e6, rel=0.01)
    assert sum(p.numel() for p in text.parameters()) == pytest.approx(66.5e6, rel=0.01)


def test_half_the_width_costs_about_a_quarter():
    config = PRESETS["base"]
    full = config.cost(frames=4, size=224).macs
    assert full / config.cost(frames=4, size=224, width=384).macs == pytest.approx(3.6, rel=0.1)
    falling = (768,) * 4 + (576,) * 4 + (384,) * 4
    assert config.cost(frames=4, size=224, width=falling).macs < 0.65 * full


def test_configs_survive_json():
    for config in PRESETS.values():
        values = json.loads(json.dumps(asdict(config)))
        again = AdaVidDualConfig.from_dict(values) if isinstance(config, AdaVidDualConfig) else type(config)(**values)
        assert again == config


def test_training_draws_a_width_per_block():
    """A step of the paper's training: widths drawn, EgoNCE, no gradient beyond the widest draw."""
    model = loud(PRESETS["tiny"].build(), seed=3)
    texts = F.normalize(torch.randn(4, 32), dim=-1)
    width = sample_widths(torch.Generator().manual_seed(0), 3, (16, 32), decreasing=True)
    clips = F.normalize(model(clip(batch=4), point=OperatingPoint(width=width)).embedding, dim=-1)
    egonce(clips, texts, 20.0, torch.eye(4, dtype=torch.bool)).backward()
    for block, d in zip(model.encoder.blocks, width, strict=True):
        assert block.mlp.fc2.weight.grad[:d].abs().sum() > 0
        assert not block.mlp.fc2.weight.grad[d:].any()


@pytest.fixture
def one_thread():
    """Matrices as small as those of the recipe only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_half_of_a_model_is_good_only_if_it_was_trained_for_it():
    """In miniature: at half the channels a model trained at drawn widths nearly keeps its accuracy (chance 3 %)."""
    recipe = runpy.run_path(str(Path(__file__).resolve().parents[2] / "recipes" / "elastic_toy.py"))
    found = {}
    for name in ("full width", "drawn widths"):
        model, texts = recipe["train"](recipe["TRAINED"][name], seed=0, steps=800)
        found[name] = [recipe["accuracy"](model, texts, (width, width)) for width in (48, 24)]
    assert found["full width"][0] > 0.95
    assert found["full width"][1] < 0.25
    assert found["drawn widths"][0] > 0.85
    assert found["drawn widths"][1] > 0.75
    assert found["drawn widths"][1] > found["drawn widths"][0] - 0.15


def test_refuses_what_it_cannot_do(clips_encoder, dual, aggregator):
    with pytest.raises(ValueError, match=r"video.output_dim=32 and text.output_dim=256"):
        AdaVidDualConfig(PRESETS["tiny"], DistilBertConfig())
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        AdaVidDualConfig(temperature=0)
    with pytest.raises(PointError, match="no axis tokens"):
        clips_encoder(clip(), point=OperatingPoint(tokens=4))
    with pytest.raises(PointError, match="no axis tokens"):
        dual.cost(frames=4, size=70, point=OperatingPoint(tokens=4))
    with pytest.raises(PointError, match=r"images must have shape \(B, 3, H, W\)"):
        dual.embed_images(clip())
    with pytest.raises(ValueError, match=r"S from 1 to 16 segments, got \(3, 17, 32\)"):
        aggregator(features(segments=17))
    with pytest.raises(ValueError, match=r"features must be \(B, S, 32\) .* got \(3, \d+, 16\)"):
        aggregator(features()[..., :16])
    with pytest.raises(PointError, match="width 50 of layer 0 of AdaVidAgg"):
        replace(PRESETS["agg-tiny"], widths=(50, 48, 48))
    with pytest.raises(PointError, match=r"has 3 layers, so width must be one number or 3"):
        aggregator(features(), point=OperatingPoint(width=(8, 8)))
    with pytest.raises(ValueError, match=r"segments must be \(B, S, T, 3, H, W\)"):
        segment_features(dual, clip())
