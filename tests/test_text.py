"""Text tower: numpy equals torch, padding does not matter, order does, one file carries everything."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from elastivid.core.errors import WeightsError
from elastivid.models.text import DISTILLED, TextConfig, TextTower
from elastivid.models.text_tokenizer import TextTokenizer
from elastivid.search.text import TextEncoder

TEXTS = [
    "a red circle moves left, then a blue square falls",
    "juggling",
    "",
    "   \t\n",
    "Ein Mädchen läuft über die Brücke 女の子が走る",
    "🎥🤹 a clown 🤡",
    "word " * 500,
    "\ud800 lone surrogate",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return TextTower.from_file().eval()


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.from_file(DISTILLED)


def embed(tower: TextTower, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(tower(*tower.tokenize(texts)), dim=-1)


def save(tower: TextTower, path: Path, **metadata: str) -> None:
    state = {f"text.{name}": value for name, value in tower.state_dict().items()}
    state["video.big"] = torch.zeros(3, dtype=torch.bfloat16)  # numpy cannot read this one
    save_file(state, path, metadata={"text_config": tower.config.to_json(), "space_id": '"s"', **metadata})


def test_numpy_equals_torch(tower: TextTower, encoder: TextEncoder) -> None:
    ours, reference = encoder.embed(TEXTS), embed(tower, TEXTS).numpy()
    assert ours.shape == (len(TEXTS), 256)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_numpy_equals_torch_with_other_shapes_and_random_weights(tower: TextTower, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(tower.config, depth=3, num_heads=8, mlp_ratio=2.0, context_length=9, output_dim=130)
    other = config.build()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other.table.copy_(tower.table)
    other.table_scale.copy_(tower.table_scale)
    other.tokenizer_json.copy_(tower.tokenizer_json)
    save(other, tmp_path / "other.safetensors")
    ours = TextEncoder.from_file(tmp_path / "other.safetensors").embed(TEXTS)
    np.testing.assert_allclose(ours, embed(other, TEXTS).numpy(), atol=1e-5, rtol=0)


def test_other_texts_in_the_batch_change_nothing(tower: TextTower, encoder: TextEncoder) -> None:
    together = embed(tower, TEXTS)
    alone = torch.cat([embed(tower, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    np.testing.assert_array_equal(encoder.embed(TEXTS)[1], encoder.embed([TEXTS[1]])[0])
    assert encoder.embed([]).shape == (0, 256)


def test_padding_ids_are_not_seen(tower: TextTower) -> None:
    ids, lengths = tower.tokenize(["a dog", "a dog chases a cat"])
    other = ids.clone()
    other[0, int(lengths[0]) :] = 4321
    torch.testing.assert_close(tower(ids, lengths), tower(other, lengths), atol=1e-6, rtol=0)


def test_order_matters_to_the_tower_and_not_to_the_static_table(tower: TextTower) -> None:
    twins = ["a red circle and then a blue square", "a blue square and then a red circle"]
    static = TextTower.from_file()
    static.context_proj.weight.data.zero_()
    first, second = embed(static, twins)
    assert float(first @ second) == pytest.approx(1, abs=1e-5)
    first, second = embed(tower, twins)
    assert float(first @ second) < 0.99


def test_untrained_tower_keeps_the_cosines_of_the_static_table(tower: TextTower) -> None:
    fresh = tower.config.build()
    fresh.set_table(torch.randn(fresh.table.shape, generator=torch.Generator().manual_seed(0)))
    ids, lengths = tower.tokenize(["a red circle", "a running dog"])
    rows = fresh.table.float() * fresh.table_scale.float()
    static = torch.stack([rows[row[:n]].mean(0) for row, n in zip(ids, lengths, strict=True)])
    expected = F.cosine_similarity(static[0], static[1], dim=0)
    out = fresh(ids, lengths)
    torch.testing.assert_close(F.cosine_similarity(out[0], out[1], dim=0), expected, atol=1e-5, rtol=0)


def test_rewording_is_nearer_than_another_topic(encoder: TextEncoder) -> None:
    vectors = encoder.embed(
        ["a man rides a bike", "a guy on a bicycle", "a chef is frying eggs", "a cook makes an omelette"]
    )
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > max(cosines[0, 2], cosines[0, 3]) + 0.2
    assert cosines[2, 3] > max(cosines[0, 2], cosines[0, 3]) + 0.2


def test_set_table_loses_at_most_half_a_step() -> None:
    tower = TextConfig(vocab_size=50, table_dim=8, num_heads=2, depth=1, output_dim=8).build()
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 50)[:, None]
    rows[7] = 0
    tower.set_table(rows)
    error = (tower.table * tower.table_scale.float() - rows).abs()
    assert bool((error <= 0.5 * tower.table_scale.float() + rows.abs() * 2e-3 + 1e-7).all())
    with pytest.raises(ValueError, match=r"rows must be \(50, 8\), got \(3, 8\)"):
        tower.set_table(rows[:3])


def test_table_is_never_trained_and_every_parameter_is(tower: TextTower) -> None:
    fresh = TextTower.from_file()
    out = fresh(*fresh.tokenize(["a red circle", "then a blue square"]))
    out[:, 0].sum().backward()
    names = {name for name, _ in fresh.named_parameters()}
    assert not names & {"table", "table_scale", "tokenizer_json"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in fresh.parameters())


def test_state_dict_round_trip_and_new_output_dim(tower: TextTower, tmp_path: Path) -> None:
    path = tmp_path / "dual.safetensors"
    save(tower, path)
    again = TextTower.from_file(path)
    assert torch.equal(embed(again, TEXTS), embed(tower, TEXTS))
    assert TextConfig.from_json(tower.config.to_json()) == tower.config
    rebuilt = tower.config.build()
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(embed(rebuilt, TEXTS), embed(tower, TEXTS))
    narrow = embed(TextTower.from_file(path, output_dim=128), TEXTS)
    assert narrow.shape == (len(TEXTS), 128)
    np.testing.assert_allclose(
        (narrow @ narrow.T).numpy(), (embed(tower, TEXTS) @ embed(tower, TEXTS).T).numpy(), atol=2e-3
    )


def test_tokenizer(tower: TextTower) -> None:
    tokenizer = tower.tokenizer
    ids, lengths = tokenizer.tokenize(["", "A Red, red", "word " * 500])
    assert lengths.tolist() == [1, 4, 32]
    assert ids.shape == (3, 32)
    assert ids[0, 0] == tokenizer.unknown_id
    assert ids[1, 1] == ids[1, 3]
    assert not ids[1, 4:].any()
    assert tokenizer.vocab_size == tower.config.vocab_size
    assert tokenizer.unknown_words("a clown 🤹 runs") == ["🤹"]
    assert tokenizer.unknown_words("a clown runs") == []
    with pytest.raises(TypeError, match=r"got one string 'a dog'; pass \[text\]"):
        tokenizer.tokenize("a dog")
    with pytest.raises(WeightsError, match="cannot be read"):
        TextTokenizer(b"junk")


def test_errors_say_what_to_do(tower: TextTower, tmp_path: Path) -> None:
    ids = torch.zeros(2, 40, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most 32 tokens, got 40"):
        tower(ids, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"lengths must be between 1 and 4, got \[0, 4\]"):
        tower(ids[:, :4], torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"got \(40,\) and \(2,\)"):
        tower(ids[0], torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="multiple of num_heads 3"):
        TextConfig(num_heads=3)
    with pytest.raises(WeightsError, match="carries no tokenizer"):
        TextConfig(vocab_size=5, table_dim=8, num_heads=2).build().tokenize(["a"])
    for load in (TextTower.from_file, TextEncoder.from_file):
        with pytest.raises(WeightsError, match=r"cannot read .*nowhere"):
            load(tmp_path / "nowhere.safetensors")
        (tmp_path / "junk.safetensors").write_bytes(b"not weights")
        with pytest.raises(WeightsError, match="cannot read"):
            load(tmp_path / "junk.safetensors")
        save_file({"a": torch.zeros(1)}, tmp_path / "video.safetensors")
        with pytest.raises(WeightsError, match="text_config"):
            load(tmp_path / "video.safetensors")
    save(tower, tmp_path / "raw.safetensors", space_id="not json")
    with pytest.raises(WeightsError, match="is not json"):
        TextEncoder.from_file(tmp_path / "raw.safetensors")
    save(tower, tmp_path / "bad.safetensors", text_config=replace(tower.config, depth=3).to_json())
    with pytest.raises(WeightsError, match=r"do not fit its config[\s\S]*blocks.2"):
        TextTower.from_file(tmp_path / "bad.safetensors")


def test_numpy_side_loads_no_torch() -> None:
    code = (
        "import sys, json; from elastivid.search.text import TextEncoder;"
        f"e = TextEncoder.from_file({str(DISTILLED)!r}); v = e.embed(['a red ball']);"
        "print(json.dumps([list(v.shape), e.space_id, sorted({'torch', 'av', 'lancedb'} & set(sys.modules))]))"
    )
    shape, space_id, loaded = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    )
    assert shape == [1, 256]
    assert space_id.startswith("text_minilm128-")
    assert loaded == []


def test_shipped_file_is_small() -> None:
    assert DISTILLED.stat().st_size <= 6e6
