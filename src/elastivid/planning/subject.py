"""`Subject`: what a planner knows of a model before running it: its axes, its closed-form cost, what it was trained at.

Everything comes from a preset or from the metadata of a weights file; no weights are read. A weights file may say

    trained_widths   widths its layers were trained at; without it only the full width is used
    trained_tokens   token counts it was trained at; without it a sixteenth of the grid counts as the fewest
    fronts           measured accuracies (see `Front`), each with the `weights_id` of the weights it was measured on;
                     `elastivid.weights.measured.add_front` writes one
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from elastivid.core.cost import Cost
from elastivid.core.errors import BudgetError, ElastividError, PlanError, PointError, UnknownNameError, WeightsError
from elastivid.core.point import OperatingPoint, Runtime
from elastivid.planning.timing import Work

if TYPE_CHECKING:
    from elastivid.models.base import DualEncoder, VideoEncoder
    from elastivid.models.classifier import ClassifierConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FEWEST_SHARE = 16  # without `trained_tokens`, a plan keeps at least this part of the tokens of the native grid
FRONT_KEYS = {"weights", "data", "metric", "points"}
POINT_KEYS = {"frames", "size", "tokens", "width", "accuracy"}


@dataclass(frozen=True)
class Front:
    """Accuracy measured at several operating points of one set of weights on one version of a data set.

    Args:
        data: name and version of the data set, such as "synthetic@1".
        metric: what was measured; more is better.
        points: per point its frames, size, tokens, width and accuracy.
    """

    data: str
    metric: str
    points: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Subject:
    """A model as the planner sees it. Make one with `describe`.

    Args:
        address: name or file of the model.
        config: the sizes of its video tower; has `cost`, `num_frames`, `image_size`, `patch_size`, `embed_dim`.
        axes: what an operating point may set.
        trained_widths: widths that may be used, ascending; the last one is the full width.
        fewest_tokens: a plan keeps at least this many on the native grid.
        fronts: measured accuracies of these very weights.
        has_weights: whether the address names trained weights rather than a preset.
        reader: config of the classifier in the file where it reads motion words, which cost time and memory of their
            own; a head alone costs next to nothing.
    """

    address: str
    config: Any
    axes: frozenset[str]
    trained_widths: tuple[int, ...]
    fewest_tokens: int
    fronts: tuple[Front, ...] = ()
    has_weights: bool = False
    reader: ClassifierConfig | None = None
    _costs: dict[tuple[Any, ...], Cost] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def frames(self) -> int:
        """Frames of the grid it was made for."""
        return int(self.config.num_frames if self.reader is None else self.reader.frames)

    @property
    def size(self) -> int:
        """Side in pixels of the grid it was made for."""
        return int(self.config.image_size if self.reader is None else self.reader.transform.size)

    @property
    def full_width(self) -> int:
        """All channels that the model holds; the most of a block where blocks differ."""
        return int(max(getattr(self.config, "widths", None) or (self.config.embed_dim,)))

    @property
    def reads_any_grid(self) -> bool:
        """Whether frames and size may differ from the native ones: families that select tokens read any grid."""
        return "tokens" in self.axes

    def available_tokens(self, frames: int, size: int) -> int:
        """Patch tokens of a clip."""
        return int(frames // self.tubelet_size * (size // self.config.patch_size) ** 2)

    @property
    def tubelet_size(self) -> int:
        """Frames that one token spans."""
        return int(getattr(self.config, "tubelet_size", 1))

    def whole_tubelets(self, frames: float) -> int:
        """The number of frames nearest to `frames` that tubelets fill; at least one, or two where motion is read."""
        return max(self.fewest_frames, round(frames / self.tubelet_size) * self.tubelet_size)

    @property
    def fewest_frames(self) -> int:
        """A tubelet; what moves takes two frames to see."""
        return max(self.tubelet_size, 1 if self.reader is None else 2)

    def require_grid(self, frames: int, size: int) -> None:
        """Refuse a grid that patches do not fill.

        Raises:
            PointError: frames or size are no multiples of the tubelet or the patch.
        """
        patch = int(self.config.patch_size)
        if frames % self.tubelet_size or size % patch:
            raise PointError(
                f"{self.address} reads multiples of {self.tubelet_size} frames and of {patch} px, got {frames} frames "
                f"of {size} px; take {self.whole_tubelets(frames)} of {max(1, round(size / patch)) * patch}"
            )

    def cost(self, frames: int, size: int, point: OperatingPoint) -> Cost:
        """Closed-form cost of one clip, float32."""
        key = (frames, size, point.tokens, point.width)
        if key not in self._costs:
            axes: dict[str, Any] = {} if "tokens" not in self.axes else {"tokens": point.tokens}
            if point.width not in (None, self.full_width):
                axes["width"] = point.width
            self._costs[key] = (self.reader or self.config).cost(frames=frames, size=size, **axes)
        return self._costs[key]

    def activation_bytes(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> int:
        """Peak bytes above the weights of all clips under way, their input included."""
        share = ITEM_BYTES[runtime.precision] / 4
        if hasattr(self.config, "activation_bytes"):
            peak = self.config.activation_bytes(
                frames=frames,
                size=size,
                tokens=point.tokens,
                width=point.width,
                batch=runtime.batch,
                precision=runtime.precision,
            )
        else:
            peak = self.cost(frames, size, point).activation_bytes * share * runtime.batch
        if self.reader is not None:
            peak = max(peak, self.reader.reader_bytes(frames, size) * runtime.batch)
        return round((peak + 4 * 3 * frames * size**2 * runtime.batch) * runtime.workers)

    def work(self, frames: int, size: int, point: OperatingPoint) -> Work:
        """What one clip makes the model do, for predicting its time."""
        tokens = point.tokens or self.available_tokens(frames, size)
        width = point.width or self.full_width
        if not isinstance(width, int):
            width = round(sum(width) / len(width))  # MACs are exact; this stands for what else grows with width
        return Work(self.cost(frames, size, point).macs, frames * size**2, tokens, width)

    @cached_property
    def key(self) -> str:
        """Text that is equal for models that take the same time: the family and the sizes of the video tower, and of a
        reader of motion words and the grid it was made for."""
        own = [] if self.reader is None else [self.reader.motion_words, self.frames, self.size]
        return json.dumps([type(self.config).__module__, asdict(self.config), *own], sort_keys=True)

    def build(self) -> VideoEncoder | DualEncoder:
        """The model in evaluation mode: with its weights where the address names some, else untrained. Of a classifier
        the encoder alone, unless it reads motion words."""
        from elastivid.evaluate.classifiers import Logits
        from elastivid.weights.classifier import is_classifier, load_classifier
        from elastivid.weights.load import build, load

        if not self.has_weights:
            model: Any = build(self.address)
        else:
            model = load_classifier(self.address) if is_classifier(self.address) else load(self.address)
            if is_classifier(self.address):
                model = model.encoder if self.reader is None else Logits(model, self.address)
        return cast("VideoEncoder | DualEncoder", model.eval())


def describe(address: str) -> Subject:
    """The subject of a shipped name, a weights file or a preset.

    Raises:
        UnknownNameError: nothing has this name.
        WeightsError: the file is damaged or its metadata cannot be read.
        PlanError: the model has no closed-form cost to plan with.
    """
    from elastivid.weights.load import ALIASES, families, read_metadata, resolve

    if address in ALIASES or address.endswith(".safetensors"):
        return _from_metadata(address, read_metadata(resolve(address)))
    family, separator, preset = address.partition("/")
    if not separator or family not in families():
        names = [*ALIASES, *(f"{name}/PRESET" for name in families())]
        raise UnknownNameError("model (a shipped name, a .safetensors file or family/preset)", address, names)
    presets = importlib.import_module(f"elastivid.models.{family}").PRESETS
    if preset not in presets:
        raise UnknownNameError(f"preset of {family}", preset, presets)
    return _from_config(address, getattr(presets[preset], "video", presets[preset]))


def _from_metadata(address: str, metadata: dict[str, Any]) -> Subject:
    """The subject of the file of a dual encoder or of a classifier."""
    from elastivid.weights.classifier import config_of, describes_classifier
    from elastivid.weights.load import DUALS, family_of

    reader: ClassifierConfig | None = None
    try:
        if describes_classifier(metadata):
            classifier: Any = config_of(metadata)
            config: Any = classifier.encoder
            reader = classifier if getattr(classifier, "motion_words", 0) else None
        else:
            family = family_of(metadata)
            kind = getattr(importlib.import_module(f"elastivid.models.{family}"), DUALS[family])
            config = kind.config_class.from_dict(metadata["config"]).video
        subject = replace(_from_config(address, config), reader=reader)
        widths = tuple(sorted({int(w) for w in metadata.get("trained_widths", ())} | {subject.full_width}))
        tokens = [int(count) for count in metadata.get("trained_tokens", ())]
        own = metadata.get("weights_id") or metadata.get("space_id")
        fronts = tuple(_front(row) for row in metadata.get("fronts", ()) if row["weights"] == own)
    except ElastividError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"metadata of {address} cannot be planned with ({type(error).__name__}: {error}); it needs config, "
            "space_id and, where given, trained_widths, trained_tokens (whole numbers) and fronts "
            f"({', '.join(sorted(FRONT_KEYS))}; points with {', '.join(sorted(POINT_KEYS))})"
        ) from error
    if widths[0] < 1 or widths[-1] > subject.full_width:
        raise WeightsError(f"trained_widths of {address} must lie in 1 to {subject.full_width}, got {list(widths)}")
    return replace(
        subject,
        trained_widths=widths if "width" in subject.axes else (subject.full_width,),
        fewest_tokens=min(tokens, default=subject.fewest_tokens),
        fronts=fronts,
        has_weights=True,
    )


def _from_config(address: str, config: Any) -> Subject:
    missing = [n for n in ("cost", "num_frames", "image_size", "patch_size", "embed_dim") if not hasattr(config, n)]
    if missing:
        raise PlanError(f"{address} cannot be planned: its config has no {', '.join(missing)}")
    axes = _axes(type(config).__module__, type(config).__name__)
    subject = Subject(address, config, axes, (), 1)
    fewest = max(1, subject.available_tokens(subject.frames, subject.size) // FEWEST_SHARE)
    return replace(subject, trained_widths=(subject.full_width,), fewest_tokens=fewest)


@lru_cache
def _axes(module: str, config: str) -> frozenset[str]:
    """`supported_axes` of the encoder that is built from `config`: the return type of its `build` says which."""
    encoder = get_type_hints(getattr(importlib.import_module(module), config).build)["return"]
    return frozenset(encoder.supported_axes)


def _front(row: Mapping[str, Any]) -> Front:
    if set(row) != FRONT_KEYS or not row["points"] or any(set(point) != POINT_KEYS for point in row["points"]):
        raise ValueError("a front has other keys")
    return Front(str(row["data"]), str(row["metric"]), tuple(row["points"]))


def require_axes(subject: Subject, tokens: int | None) -> None:
    """Refuse a limit on tokens for a family that cannot drop any.

    Raises:
        BudgetError: `tokens` is fewer than the family always uses.
    """
    if tokens is None or "tokens" in subject.axes:
        return
    always = subject.available_tokens(subject.frames, subject.size)
    if tokens < always:
        raise BudgetError(
            f"{subject.address} has no axis tokens: it always uses {always}, and {tokens} were allowed; leave tokens "
            f"out of the budget (its axes: {', '.join(sorted(subject.axes)) or 'none'}) or take a model that selects"
        )
