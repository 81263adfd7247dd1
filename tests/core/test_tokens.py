"""`Tokens`: places, sizes and validity follow the features."""

from __future__ import annotations

import pytest
import torch

from elastivid.core.tokens import Tokens


def make(batch=2, grid=(2, 2, 3), dim=4, prefix=1, **fields):
    placed = grid[0] * grid[1] * grid[2]
    x = torch.randn(batch, prefix + placed, dim, generator=torch.Generator().manual_seed(0))
    coords = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij"), -1).reshape(-1, 3)
    return Tokens(x, coords.expand(batch, -1, -1), grid, num_prefix=prefix, **fields)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_gather_takes_everything_along(prefix):
    sizes, valid = torch.arange(24.0).reshape(2, 12), torch.rand(2, 12) > 0.5
    tokens = make(prefix=prefix, sizes=sizes, valid=valid, times_seconds=torch.zeros(2, 2))
    indices = torch.tensor([[11, 0, 3], [5, 5, 1]])
    kept = tokens.gather(indices)
    assert kept.x.shape == (2, prefix + 3, 4)
    assert torch.equal(kept.x[:, :prefix], tokens.x[:, :prefix])
    for row in range(2):
        for place, index in enumerate(indices[row].tolist()):
            assert torch.equal(kept.x[row, prefix + place], tokens.x[row, prefix + index])
            assert torch.equal(kept.coords[row, place], tokens.coords[row, index])
            assert kept.sizes[row, place] == sizes[row, index]
            assert kept.valid[row, place] == valid[row, index]
    assert kept.grid == tokens.grid
    assert kept.times_seconds is tokens.times_seconds


def test_gathering_all_in_order_changes_nothing():
    tokens = make()
    kept = tokens.gather(torch.arange(12).expand(2, -1))
    assert torch.equal(kept.x, tokens.x)
    assert torch.equal(kept.coords, tokens.coords)


def test_gather_passes_gradients_only_to_what_it_keeps():
    tokens = make(batch=1)
    x = tokens.x.clone().requires_grad_()
    Tokens(x, tokens.coords, tokens.grid, num_prefix=1).gather(torch.tensor([[2]])).x.sum().backward()
    assert x.grad.sum(-1).squeeze(0).nonzero().flatten().tolist() == [0, 3]


def test_padding_is_marked_invalid_and_keeps_the_rest():
    tokens = make(sizes=torch.ones(2, 12))
    padded = tokens.pad(15)
    assert padded.x.shape == (2, 16, 4)
    assert torch.equal(padded.x[:, :13], tokens.x)
    assert not padded.x[:, 13:].any()
    assert padded.valid.tolist() == [[True] * 12 + [False] * 3] * 2
    assert padded.sizes.sum() == 24
    assert padded.pad(16).valid.sum() == 24
    assert tokens.pad(12) is tokens
    assert tokens.valid is None


def test_empty_selection_is_possible():
    assert make().gather(torch.zeros(2, 0, dtype=torch.int64)).num_placed == 0


def test_repr_shows_shapes_only():
    text = repr(make(valid=torch.ones(2, 12, dtype=torch.bool)))
    assert text == "Tokens(2x13x4 float32, 1 prefix, grid 2x2x3, valid)"


def test_refuses_fields_that_disagree():
    x, coords = torch.zeros(2, 12, 4), torch.zeros(2, 12, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(B, N, D\), got \(12, 4\)"):
        Tokens(x[0], coords, (2, 2, 3))
    with pytest.raises(ValueError, match=r"coords must have shape \(2, 11, 3\) .* got \(2, 12, 3\)"):
        Tokens(x, coords, (2, 2, 3), num_prefix=1)
    with pytest.raises(ValueError, match=r"sizes must have shape \(2, 12\)"):
        Tokens(x, coords, (2, 2, 3), sizes=torch.zeros(2, 11))
    with pytest.raises(ValueError, match=r"times_seconds must have shape \(2, 2\)"):
        Tokens(x, coords, (2, 2, 3), times_seconds=torch.zeros(2, 12))
    with pytest.raises(ValueError, match="num_prefix must be 0 to 12"):
        Tokens(x, coords, (2, 2, 3), num_prefix=13)
    with pytest.raises(ValueError, match="grid must be"):
        Tokens(x, coords, (2, 0, 3))
    with pytest.raises(TypeError, match=r"coords must be floating, got torch.int64"):
        Tokens(x, coords.long(), (2, 2, 3))
    with pytest.raises(TypeError, match=r"valid must be bool, got torch.float32"):
        Tokens(x, coords, (2, 2, 3), valid=torch.zeros(2, 12))


def test_refuses_impossible_gathers_and_pads():
    tokens = make()
    with pytest.raises(ValueError, match=r"shape \(B, K\) with B = 2, got \(3,\)"):
        tokens.gather(torch.arange(3))
    with pytest.raises(IndexError, match=r"0 to 11 .* got 0 to 12"):
        tokens.gather(torch.tensor([[0, 12], [0, 1]]))
    with pytest.raises(IndexError, match="got -2 to 1"):
        tokens.gather(torch.tensor([[0, -2], [0, 1]]))
    with pytest.raises(ValueError, match="cannot pad 12 placed tokens to 11"):
        tokens.pad(11)


def test_minus_one_gathers_padding():
    tokens = make(sizes=torch.arange(24.0).reshape(2, 12))
    kept = tokens.gather(torch.tensor([[3, 11, -1], [0, -1, -1]]))
    assert kept.counts == (2, 1)
    assert kept.valid.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(kept.x[:, 0], tokens.x[:, 0])
    assert not kept.x[0, 3].any()
    assert not kept.x[1, 2:].any()
    assert kept.sizes.tolist() == [[3.0, 11.0, 0.0], [12.0, 0.0, 0.0]]
    assert kept.cells.tolist() == [[3, 11, -1], [0, -1, -1]]


def test_padding_of_what_is_not_a_number_is_zero():
    tokens = make()
    tokens.x[:] = torch.nan
    assert tokens.gather(torch.tensor([[0, -1], [0, -1]])).x[:, 2].eq(0).all()


def test_cells_say_which_patches_are_left():
    tokens = make()
    assert tokens.cells.tolist() == [list(range(12))] * 2
    assert tokens.gather(torch.tensor([[5, 7], [1, 11]])).cells.tolist() == [[5, 7], [1, 11]]


def test_key_sizes_count_prefix_once_and_padding_never():
    assert make().key_sizes is None
    tokens = make(sizes=torch.full((2, 12), 3.0)).pad(13)
    assert tokens.key_sizes.tolist() == [[1.0] + [3.0] * 12 + [0.0]] * 2
    assert make(prefix=0).pad(13).key_sizes.tolist() == [[1.0] * 12 + [0.0]] * 2


def test_rows_come_back_without_padding_and_stack_to_what_they_were():
    tokens = make(sizes=torch.rand(2, 12), times_seconds=torch.rand(2, 2))
    ragged = tokens.gather(torch.tensor([[3, 11, -1], [0, 1, 2]]))
    first, second = ragged.row(0), ragged.row(1)
    assert first.x.shape == (1, 3, 4)
    assert first.valid is None
    again = Tokens.stack([first, second])
    for name in ("x", "coords", "sizes", "times_seconds", "valid"):
        assert torch.equal(getattr(again, name), getattr(ragged, name)), name
    assert Tokens.stack([make(), make()]).valid is None
    with pytest.raises(ValueError, match="all with equal grid and num_prefix"):
        Tokens.stack([make(), make(prefix=0)])
    with pytest.raises(ValueError, match="got 0"):
        Tokens.stack([])


def test_a_row_that_is_not_there_is_refused():
    for index in (-1, 2):
        with pytest.raises(IndexError, match=rf"index must be 0 to 1 \(clips of the batch\), got {index}"):
            make().row(index)


def test_frames_are_filled_until_something_is_selected_or_moved():
    tokens = make(grid=(4, 2, 3))
    assert tokens.fills_frames
    assert tokens.gather(torch.arange(12).expand(2, -1)).fills_frames  # whole leading frames
    assert Tokens.stack([tokens.row(0), tokens.row(1).gather(torch.arange(6)[None])]).fills_frames
    assert not tokens.gather(torch.arange(8).expand(2, -1)).fills_frames
    assert not tokens.gather(torch.arange(12, 24).expand(2, -1)).fills_frames
    assert not tokens.gather(torch.randperm(24, generator=torch.Generator().manual_seed(0)).expand(2, -1)).fills_frames
    places = torch.full((2, 24), -1)
    places[0], places[1, :6] = torch.arange(24), torch.arange(6, 12)
    assert not tokens.gather(places).fills_frames
