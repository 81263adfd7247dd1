"""CLIP, SigLIP and SigLIP 2 as transformers ships them, as dual encoders for clips.

    clip vector = normalise(mean over kept frames t of normalise(vision tower(frame t)))

CLIP: arXiv 2103.00020. SigLIP: 2303.15343. SigLIP 2: 2502.14786, those of fixed size (config type "siglip") and NaFlex
("siglip2", which keeps the aspect of a picture). Pooling frames by the mean of their vectors is CLIP4Clip's
parameter-free similarity (2104.08860). A frame is seen alone: what only motion tells apart is not told apart.

The towers are transformers' own classes, loaded from safetensors; no code of a repository is run. Each is loaded when
it is first needed: indexing never loads the text tower, most of a SigLIP 2 of base size, nor a search in words the
vision tower. Preprocessing is our `Transform`, set up from the checkpoint's file; the tokenizer is its tokenizer.json.

Cost of a frame with N patches, D channels, L blocks, MLP of M channels, besides the patch embedding 3 N p^2 D:
CLIP L ((N+1)(4 D^2 + 2 D M) + 2 (N+1)^2 D) + D E;  SigLIP the same with N, and 2 N D^2 + 2 D^2 + 2 N D + 2 D M in its
pooling head.

Letters: B batch, T frames, K kept frames, H W pixels, N patches of a frame, D channels of a tower, E of the space.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from elastivid.core.cost import Cost, attention_macs, linear_macs
from elastivid.core.errors import MissingExtraError, PointError, UnknownNameError, WeightsError
from elastivid.core.files import read_json
from elastivid.core.point import OperatingPoint
from elastivid.models.base import DualEncoder
from elastivid.select.frames import FrameSelector, UniformFrames
from elastivid.video.transforms import Transform

FRAMES_AT_ONCE = 16  # more only fill the caches with activations
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class HubFamily:
    """What differs between the families: transformers' classes, the fields of their outputs, and defaults."""

    vision: str
    text: str
    image_field: str
    text_field: str
    processor: dict[str, Any]
    context_length: int | None  # None: texts are padded to all positions, as in training


_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
FAMILIES = {
    "clip": HubFamily(
        "CLIPVisionModelWithProjection",
        "CLIPTextModelWithProjection",
        "image_embeds",
        "text_embeds",
        {
            "size": {"shortest_edge": 224},
            "crop_size": 224,
            "do_center_crop": True,
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        77,
    ),
    "siglip": HubFamily(
        "SiglipVisionModel", "SiglipTextModel", "pooler_output", "pooler_output",
        {"size": {"height": 224, "width": 224}, "resample": 3, **_HALF}, None,
    ),
    "siglip2": HubFamily(
        "Siglip2VisionModel", "Siglip2TextModel", "pooler_output", "pooler_output",
        {"patch_size": 16, "max_num_patches": 256, "resample": 2, **_HALF}, None,
    ),
}  # fmt: skip


class HubDual(DualEncoder):
    """A CLIP, SigLIP or SigLIP 2 checkpoint. `elastivid.load("hf:...")` makes one.

    The axis `tokens` counts patch tokens of all frames: a clip keeps as many whole frames as fit, at least one, chosen
    by `selector`, a `FrameSelector` (default `UniformFrames`).

    Args:
        folder: config.json, tokenizer.json, safetensors, and the file of the image processor.
        weights: the safetensors in it.
        name: address of the checkpoint.
        space_id: hash of its files.
        licence: what its model card states.

    Raises:
        MissingExtraError: transformers is not installed.
        WeightsError: the checkpoint is of another family, or asks for preprocessing that `Transform` does not have.
    """

    supported_axes: ClassVar[frozenset[str]] = frozenset({"tokens", "selector"})

    def __init__(self, folder: Path, weights: Sequence[Path], *, name: str, space_id: str, licence: str) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise MissingExtraError("transformers", "hf") from error
        kind = read_json(folder / "config.json").get("model_type", "")
        if kind not in FAMILIES:
            raise WeightsError(
                f"{name} is a model of type {kind!r}; dual encoders that can be loaded are {', '.join(FAMILIES)}"
            )
        self.folder, self.weights, self.name = folder, tuple(weights), name
        self.licence, self._space_id = licence, space_id
        self.family = FAMILIES[kind]
        with _quiet():
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        vision = self.config.vision_config
        self.dim = int(self.config.projection_dim if kind == "clip" else vision.hidden_size)
        self.prefix_dims = (self.dim,)
        self.naflex = kind == "siglip2"
        self.transform = read_transform(folder, self.family)
        if not self.naflex and self.transform.size != vision.image_size:
            raise WeightsError(
                f"{name} prepares pictures of {self.transform.size} px for a tower of {vision.image_size} px"
            )
        self.tokens_per_frame = self.transform.max_patches or (vision.image_size // vision.patch_size) ** 2
        self.tokenizer = _tokenizer(folder, self.family, self.config.text_config.max_position_embeddings)
        self._loading = threading.Lock()
        self._scale = float(_read_tensor(self.weights, "logit_scale").exp())

    @property
    def space_id(self) -> str:
        """Hash of the checkpoint's files."""
        return self._space_id

    @property
    def logit_scale(self) -> float:
        """Factor that training put on cosines. SigLIP also adds a bias, which changes no order."""
        return self._scale

    def vision_tower(self) -> nn.Module:
        """The vision tower, loaded when first asked for."""
        return self._tower("vision", self.family.vision)

    def text_tower(self) -> nn.Module:
        """The text tower, loaded when first asked for."""
        return self._tower("text", self.family.text)

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, E) of clips (B, T, 3, H, W): the mean of the unit vectors of the kept frames.

        Raises:
            PointError: the point has an axis or a selector that this model does not have.
        """
        kept = self._keep(video, point or OperatingPoint())  # (B, K, 3, H, W)
        b, k = kept.shape[:2]
        frames = kept.flatten(0, 1)  # (B*K, 3, H, W)
        vectors = torch.cat([self._embed_frames(part) for part in frames.split(FRAMES_AT_ONCE)])  # (B*K, E)
        return F.normalize(vectors.reshape(b, k, -1).mean(1), dim=-1)  # (B, E)

    def embed_images(self, images: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, E) of images (B, 3, H, W), each a clip of one frame."""
        if images.ndim != 4:
            raise PointError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        return self.embed_clips(images[:, None], point=point)  # (B, 1, 3, H, W)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, E) of texts."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of strings, got one string {texts[:40]!r}; pass [text]")
        printable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [entry.ids for entry in self.tokenizer.encode_batch(printable)]
        if not ids:
            return torch.zeros(0, self.dim)
        tower = self.text_tower()
        out = tower(input_ids=torch.tensor(ids, device=next(tower.parameters()).device))
        return F.normalize(getattr(out, self.family.text_field), dim=-1)

    def has_word(self, word: str) -> bool:
        """Whether the tokenizer holds `word` as one piece; else it is only spelled from pieces."""
        entry = self.tokenizer.encode(word, add_special_tokens=False)
        return sum(entry.attention_mask) == 1

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Closed-form cost of the vision tower for one clip.

        Args:
            frames: frames of the clip; a token budget keeps fewer.
            size: not used: the transform brings every frame to the size of the checkpoint.
            point: what is spent on the clip.
        """
        vision, n = self.config.vision_config, self.tokens_per_frame
        d, mlp, kept = vision.hidden_size, vision.intermediate_size, self._kept(frames, point or OperatingPoint())
        clip = self.config.model_type == "clip"
        tokens = n + 1 if clip else n
        block = linear_macs(tokens, d, 4 * d) + 2 * linear_macs(tokens, d, mlp) + attention_macs(tokens, tokens, d)
        macs = linear_macs(n, 3 * vision.patch_size**2, d) + vision.num_hidden_layers * block
        if clip:
            macs += linear_macs(1, d, self.dim)
        else:
            macs += linear_macs(n, d, 2 * d) + linear_macs(1, d, 2 * d) + attention_macs(1, n, d)
            macs += 2 * linear_macs(1, d, mlp)
        if self.naflex:
            macs += linear_macs(n, vision.num_patches, d)  # the position table, resized as a matrix product
        with torch.device("meta"):
            parameters = sum(p.numel() for p in _class(self.family.vision)(self._tower_config("vision")).parameters())
        at_once = min(kept, FRAMES_AT_ONCE)
        widest = tokens * (2 * d + max(mlp, 3 * d))
        return Cost(macs=kept * macs, parameter_bytes=4 * parameters, activation_bytes=4 * at_once * widest)

    def _kept(self, frames: int, point: OperatingPoint) -> int:
        point.require_axes(self.supported_axes, self.name)
        return frames if point.tokens is None else min(frames, max(1, point.tokens // self.tokens_per_frame))

    def _keep(self, video: Tensor, point: OperatingPoint) -> Tensor:
        """Clips (B, T, 3, H, W) with the frames that the budget keeps, (B, K, 3, H, W)."""
        keep = self._kept(video.shape[1], point)
        selector = point.selector or UniformFrames()
        if not isinstance(selector, FrameSelector):
            raise PointError(
                f"{self.name} keeps whole frames: its selector must be a FrameSelector such as ChangingFrames(), "
                f"got {type(selector).__name__}"
            )
        if keep == video.shape[1]:
            return video
        places = selector.select(video, keep)  # (B, K)
        return torch.stack([clip[rows] for clip, rows in zip(video, places, strict=True)])

    def _embed_frames(self, frames: Tensor) -> Tensor:
        """Unit vectors (B, E) of frames (B, 3, H, W)."""
        if self.naflex:
            p = self.config.vision_config.patch_size
            rows, columns = frames.shape[2] // p, frames.shape[3] // p
            grid = frames.unflatten(3, (columns, p)).unflatten(2, (rows, p))  # (B, 3, h, p, w, p)
            patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, h*w, p*p*3)
            shapes = torch.tensor([[rows, columns]], device=frames.device).expand(len(frames), -1)
            out = self.vision_tower()(pixel_values=patches, pixel_attention_mask=None, spatial_shapes=shapes)
        else:
            out = self.vision_tower()(pixel_values=frames)
        return F.normalize(getattr(out, self.family.image_field), dim=-1)

    def _tower_config(self, name: str) -> Any:
        """Config of one tower. CLIP's channels of the space are stated once more for the whole, and that counts."""
        config = getattr(self.config, f"{name}_config")
        if self.config.model_type == "clip":
            config.projection_dim = self.dim
        return config

    def _tower(self, name: str, class_name: str) -> nn.Module:
        with self._loading:  # encoder threads may ask at the same time
            if name not in self._modules:
                self.add_module(name, _load_tower(self.folder, class_name, self._tower_config(name), self.name))
        tower = self._modules[name]
        assert tower is not None
        return tower


def read_transform(folder: Path, family: HubFamily) -> Transform:
    """Our transform for the image processor that a checkpoint's files describe.

    Raises:
        WeightsError: the files ask for steps that `Transform` does not have.
    """
    values = dict(family.processor)
    if (folder / "preprocessor_config.json").is_file():
        values |= read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        values |= read_json(folder / "processor_config.json").get("image_processor", {})
    odd = [name for name in ("do_resize", "do_rescale", "do_normalize") if not values.get(name, True)]
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        odd.append("rescale_factor")
    crop = _sides(values.get("crop_size")) if values.get("do_center_crop") else None
    size = values.get("size")
    square = _sides(size)
    if values.get("resample") not in RESAMPLE:
        odd.append("resample")
    plain = Transform(
        size=1,
        mean=tuple(values["image_mean"]),
        std=tuple(values["image_std"]),
        filter=RESAMPLE.get(values.get("resample", 0), "bilinear"),
    )
    if not odd and "max_num_patches" in values:
        p, most = int(values["patch_size"]), int(values["max_num_patches"])
        return replace(plain, size=int(most**0.5) * p, patch_size=p, max_patches=most)
    if not odd and crop and crop[0] == crop[1]:
        edge = size.get("shortest_edge") if isinstance(size, dict) else size
        if isinstance(edge, int) and edge >= crop[0]:
            return replace(plain, size=crop[0], shortest_edge=edge)
    if not odd and crop in (None, square) and square and square[0] == square[1]:
        return replace(plain, size=square[0])
    named = {name: values.get(name) for name in (*odd, "size", "crop_size", "do_center_crop")}
    raise WeightsError(f"the image processor in {folder} asks for what elastivid cannot do: {named}")


def _sides(size: object) -> tuple[int, int] | None:
    """Height and width of a size as processors write it; None where it is no such thing."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def _tokenizer(folder: Path, family: HubFamily, positions: int) -> Tokenizer:
    """The checkpoint's tokenizer, cutting at the tower's positions. SigLIP texts are in lower case and padded to all.

    SigLIP models were trained on lower-case texts; files of SigLIP 2 leave that step to the caller.

    Raises:
        WeightsError: tokenizer.json is damaged, or no padding token is named.
    """
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Steps

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise WeightsError(f"cannot read {path}: {error}; fetch it again") from error
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values |= read_json(folder / name)
    token = values.get("pad_token") or values.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise WeightsError(f"the files beside {path} name no padding token that it knows, got {token!r}")
    pads_all = family.context_length is None
    if pads_all:
        steps = [Lowercase(), tokenizer.normalizer] if tokenizer.normalizer else [Lowercase()]
        tokenizer.normalizer = Steps(steps)
    side = values.get("padding_side", "right") if pads_all else "right"
    tokenizer.enable_truncation(min(positions, family.context_length or positions))
    tokenizer.enable_padding(direction=side, pad_id=number, pad_token=token, length=positions if pads_all else None)
    return tokenizer


def _load_tower(folder: Path, class_name: str, config: Any, name: str) -> nn.Module:
    """One tower in evaluation mode, float32, without gradients.

    Raises:
        WeightsError: weights of the tower are missing or misshapen.
    """
    try:
        with _quiet():
            tower, report = _class(class_name).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"cannot load the {class_name} of {name}: {error}") from error
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise WeightsError(f"{name} does not fit {class_name}: {', '.join(wrong[:8])} missing or misshapen")
    module: nn.Module = tower.eval().requires_grad_(False)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from warning of what is as it should be: the other tower's weights, old configs."""
    from transformers.utils import logging as noise

    verbosity, bar = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity(logging.ERROR)
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(verbosity)
        if bar:
            noise.enable_progress_bar()


def _class(name: str) -> Any:
    import transformers

    if not hasattr(transformers, name):
        raise UnknownNameError(
            "class of transformers", name, [n for f in FAMILIES.values() for n in (f.vision, f.text)]
        )
    return getattr(transformers, name)


def _read_tensor(files: Sequence[Path], name: str) -> Tensor:
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name).float().reshape(())
    raise WeightsError(f"no tensor {name} in {', '.join(str(path) for path in files)}: this is no dual encoder")
