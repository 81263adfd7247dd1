"""Search by example: how examples are written, what they show, how parts of a query are joined."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import COLOURS, ColourEncoder, render

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.examples import Example, embed_example, parse_example, parse_seconds, read_image, unit_mean
from elastivid.search.index import Index
from elastivid.search.records import QueryError
from elastivid.video.transforms import Transform

POINT = OperatingPoint()


@pytest.fixture
def index(tmp_path) -> Index:
    folder = tmp_path / "v"
    folder.mkdir()
    render(folder / "a.mp4", ("red", 6), ("blue", 6))
    render(folder / "b.mp4", ("green", 5))
    index = Index.open(tmp_path / "library.ev", encoder=ColourEncoder())
    index.add(folder)
    return index


def picture(path: Path, colour: str, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    Image.new("RGB", size, COLOURS[colour]).convert(mode).save(path)
    return path


def similarity(vector: np.ndarray, colour: str) -> float:
    return float(vector @ ColourEncoder().embed_texts([colour])[0])


def test_examples_are_parsed(tmp_path):
    plain, odd, photo = tmp_path / "a.mp4", tmp_path / "me@home.mp4", tmp_path / "p.JPG"
    for path in (plain, odd, photo):
        path.touch()
    assert parse_example(f"{plain}@12.5s") == Example(str(plain), 12.5)
    assert parse_example(f"{plain}@1:02:03.5") == Example(str(plain), 3723.5)
    assert parse_example(f"{plain}@3s-5s") == Example(str(plain), 3.0, 5.0)
    assert parse_example(f"{plain}@1:00-1:02.5") == Example(str(plain), 60.0, 62.5)
    assert parse_example(str(plain)) == parse_example(f"{plain}@") == Example(str(plain))
    assert parse_example(str(odd)) == Example(str(odd))
    assert parse_example(f"{odd}@7") == Example(str(odd), 7.0)
    assert parse_example(str(photo)).is_image
    for bad in ("soon", "-3", "nan", "1:2:3:4", "1-2-3", "3-", "inf"):
        with pytest.raises(QueryError, match="cannot read the time"):
            parse_example(f"{plain}@{bad}")
    with pytest.raises(QueryError, match="ends before it begins"):
        parse_example(f"{plain}@5s-3s")
    with pytest.raises(QueryError, match="is a picture and has no time"):
        parse_example(f"{photo}@3s")
    with pytest.raises(QueryError, match="no such file"):
        parse_example(str(tmp_path / "nope.mp4@3s"))
    with pytest.raises(QueryError, match="is a folder"):
        parse_example(str(tmp_path))


def test_times_are_read_as_people_write_them():
    assert [parse_seconds(t) for t in ("90", "90s", " 1:30 ", "1:02:03")] == [90, 90, 90, 3723]
    assert [parse_seconds(t) for t in ("", "s", "1:", "-1", "nan", "1:2:3:4", "1h")] == [None] * 7


def test_a_stretch_shows_only_itself(tmp_path):
    path = render(tmp_path / "a.mp4", ("red", 3), ("green", 1), ("blue", 20))
    encoder, sampling = ColourEncoder(), Sampling(size=32)
    for text, colour in (("3.1s-3.9s", "green"), ("0-2.5s", "red"), ("5s-24s", "blue")):
        vector = embed_example(encoder, parse_example(f"{path}@{text}"), sampling, POINT)
        assert similarity(vector, colour) > 0.99, text
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    with pytest.raises(QueryError, match=r"lasts 24\.0 s, but the example is at 30\.0 s"):
        embed_example(encoder, parse_example(f"{path}@20-30"), sampling, POINT)


def test_a_long_stretch_is_the_mean_of_its_windows_and_bounded(tmp_path):
    path = render(tmp_path / "a.mp4", ("red", 100), ("blue", 100))
    encoder = ColourEncoder()
    vector = embed_example(encoder, parse_example(f"{path}@0s-200s"), Sampling(size=16), POINT)
    assert encoder.windows_seen == 32
    assert similarity(vector, "red") == pytest.approx(similarity(vector, "blue"), abs=0.05)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_pictures_find_what_looks_like_them(index, tmp_path, suffix):
    (moment,) = index.search(like=str(picture(tmp_path / f"green{suffix}", "green")), top=1)
    assert Path(moment.path).name == "b.mp4"
    assert moment.score > 0.99


def test_pictures_are_upright_opaque_and_in_colour(tmp_path):
    half = Image.new("RGB", (64, 32), COLOURS["red"])
    half.paste(COLOURS["blue"], (32, 0, 64, 32))  # red left, blue right
    exif = half.getexif()
    exif[0x0112] = 6  # turned: shown with red at the top
    half.save(tmp_path / "turned.png", exif=exif)
    shown = read_image(str(tmp_path / "turned.png"), Transform(size=32))
    assert shown.shape == (32, 32, 3)
    assert shown.dtype == np.uint8
    assert shown[2, 16].tolist() == list(COLOURS["red"])
    assert shown[29, 16].tolist() == list(COLOURS["blue"])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert read_image(str(tmp_path / "glass.png"), Transform(size=8)).min() == 255
    middle = read_image(str(tmp_path / "turned.png"), Transform(size=16, shortest_edge=32, filter="bicubic"))
    assert middle.shape == (16, 16, 3)
    assert middle[0, 8].tolist() == list(COLOURS["red"])
    for mode in ("L", "P", "LA", "1", "CMYK"):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"{mode}{suffix}")
        assert read_image(str(tmp_path / f"{mode}{suffix}"), Transform(size=8)).shape == (8, 8, 3)


def test_broken_pictures_are_explained(index, tmp_path, monkeypatch):
    good = picture(tmp_path / "good.png", "red", (300, 300)).read_bytes()
    for name, content in (("empty.png", b""), ("noise.jpg", bytes(range(256)) * 9), ("cut.png", good[:200])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QueryError, match=f"cannot read the picture .*{name}: .+"):
            index.search(like=str(tmp_path / name))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(QueryError, match=r"cannot read the picture .*good\.png"):
        index.search(like=str(tmp_path / "good.png"))


def test_parts_of_a_query_weigh_the_same(index, tmp_path):
    red, blue = str(picture(tmp_path / "red.png", "red")), str(picture(tmp_path / "blue.png", "blue"))
    encoder = ColourEncoder()
    mixed = render(tmp_path / "purple.mp4", ("red", 2), ("blue", 2))
    index.add(mixed)
    for query, like in ((None, (red, blue)), ("red", blue), ("blue", (red,))):
        best = index.search(query, like=like, top=1)[0]
        assert Path(best.path).name == "purple.mp4", "the one window that shows both"
        wanted = unit_mean(list(encoder.embed_texts(["red", "blue"])))
        shown = embed_example(encoder, Example(str(mixed)), Sampling(), POINT)
        assert best.score == pytest.approx(float(wanted @ shown), abs=0.01)
    assert index.search_with_cost("red", like=blue).query == f"red + {blue}"


def test_examples_that_are_wrong_load_no_model(index, tmp_path):
    with pytest.raises(QueryError, match="no such file"):
        index.search("red", like=str(tmp_path / "nope.jpg"))
    assert index._wanted.encoder.windows_seen == 5 + 2
