"""Selection by a text: cosines by hand, projection, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.select.text import TextGuided


def tokens_of(x, grid=(2, 2, 3)):
    return Tokens(x=x, coords=patch_coordinates(grid).expand(len(x), -1, -1), grid=grid)


def random_x(batch=2, dim=6):
    return torch.randn(batch, 12, dim, generator=torch.Generator().manual_seed(0))


class Words:
    """Stands in for a dual encoder: a word's vector is one-hot by its length."""

    def embed_texts(self, texts):
        return F.one_hot(torch.tensor([len(text) for text in texts]), 6).float()


def test_scores_are_cosines():
    x, text = random_x(), torch.arange(1.0, 7.0)
    expected = F.cosine_similarity(x, text.expand_as(x), dim=-1)
    assert torch.allclose(TextGuided(text).scores(tokens_of(x)), expected, atol=1e-6)
    assert torch.allclose(TextGuided(7 * text).scores(tokens_of(3 * x)), expected, atol=1e-6)


def test_a_token_that_says_the_text_is_kept():
    x = random_x(1)
    x[0, 7] = torch.eye(6)[2]
    assert TextGuided(torch.eye(6)[2]).select(tokens_of(x), 1).tolist() == [[7]]


def test_each_clip_may_have_its_own_text():
    x = random_x(1).expand(2, -1, -1)
    texts = torch.stack([torch.eye(6)[0], torch.eye(6)[1]])
    kept = TextGuided(texts).select(tokens_of(x), 3)
    for row in range(2):
        assert torch.equal(kept[row], TextGuided(texts[row]).select(tokens_of(x[:1]), 3)[0])
    assert not torch.equal(kept[0], kept[1])


def test_words_are_embedded_once_for_all_or_per_clip():
    x = random_x()
    asked = TextGuided.asking(Words(), "ab").select(tokens_of(x), 3)
    assert torch.equal(asked, TextGuided(torch.eye(6)[2]).select(tokens_of(x), 3))
    each = TextGuided.asking(Words(), ["ab", "abc"]).select(tokens_of(x), 3)
    assert torch.equal(each, TextGuided(torch.eye(6)[[2, 3]]).select(tokens_of(x), 3))


def test_projection_brings_tokens_to_the_text():
    x, matrix = random_x(dim=4), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    text = torch.arange(1.0, 7.0)
    projected = TextGuided(text, project=lambda y: y @ matrix).select(tokens_of(x), 5)
    assert torch.equal(projected, TextGuided(text).select(tokens_of(x @ matrix), 5))


def test_zero_tokens_score_zero():
    assert TextGuided(torch.ones(6)).scores(tokens_of(torch.zeros(1, 12, 6))).eq(0).all()


def test_zero_tokens_score_zero_in_half_precision():
    x = torch.tensor([[[0.0, 0.0], [0.0, -1.0], [1.0, 0.0]]], dtype=torch.float16)
    tokens = Tokens(x=x, coords=patch_coordinates((1, 1, 3))[None], grid=(1, 1, 3))
    selector = TextGuided(torch.tensor([1.0, 0.0]))
    assert selector.scores(tokens).tolist() == [[0.0, 0.0, 1.0]]
    assert selector.select(tokens, 1).tolist() == [[2]]


def test_a_class_token_is_not_counted_as_a_place():
    x = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])  # class token first
    tokens = Tokens(x=x, coords=patch_coordinates((1, 1, 3))[None], grid=(1, 1, 3), num_prefix=1)
    assert TextGuided(torch.tensor([1.0, 0.0])).select(tokens, 1).tolist() == [[1]]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TextGuided(torch.zeros(6)), "finite and not zero"),
        (lambda: TextGuided(torch.full((6,), torch.nan)), "finite and not zero"),
        (lambda: TextGuided(torch.ones(1, 1, 6)), r"shape \(D,\) or \(B, D\), got \(1, 1, 6\)"),
        (lambda: TextGuided.asking(Words(), " "), "must not be empty"),
        (lambda: TextGuided.asking(Words(), ["ab", ""]), "must not be empty"),
        (lambda: TextGuided.asking(Words(), []), "no text"),
        (
            lambda: TextGuided(torch.ones(5)).select(tokens_of(random_x()), 3),
            "5 channels, the tokens have 6.*project=",
        ),
        (lambda: TextGuided(torch.ones(3, 6)).select(tokens_of(random_x()), 3), r"one per clip \(2\), got 3"),
    ],
)
def test_errors_say_what_to_do(call, match):
    with pytest.raises(PointError, match=match):
        call()
