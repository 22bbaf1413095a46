"""The recipe of a run: typed sections, TOML presets that state only differences, and `--set section.key=value`. No torch.

Layers, later ones win: defaults, the preset's bases, the preset, the command line. `resolve` remembers which layer each value came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mien.errors import UserError, did_you_mean

SUFFIXES = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_count(text: str | int | float) -> int:
    """'300k' -> 300000, '2M' -> 2000000, '1.5M' -> 1500000, 64 -> 64. Raises UserError for anything else."""
    word = str(text).strip().lower().replace("_", "").replace(",", "")
    scale = SUFFIXES.get(word[-1:], 1)
    try:
        value = Decimal(word[:-1] if scale > 1 else word) * scale  # exact: as floats, 4.1 times a million is no whole number
        if value != int(value) or abs(value) >= 2**53:
            raise ValueError
        return int(value)
    except (ValueError, OverflowError, InvalidOperation):
        raise UserError(f"{text!r} is not a count: write 64, 300k or 2M.") from None


def _count(value: Any) -> Any:
    try:
        return parse_count(value)
    except UserError as error:
        raise ValueError(str(error)) from None


Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Period = Annotated[float, Field(ge=0.001)]  # in kimg: one image at least
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Data(Section):
    attributes: list[str] | None = None
    """The condition, by name; None takes every attribute of the store, [] trains without conditions."""
    flip: bool = True
    """Mirror each training image with probability 1/2."""
    balance: Literal["none", "uniform"] = "none"
    """How often each attribute combination is drawn: as in the data, or all equally often."""


class Generator(Section):
    width: Annotated[int, Field(ge=4, le=4096)] = 512
    """Channels of the 4x4 map, halved at each doubling of the size."""
    z_dim: Annotated[int, Field(ge=1, le=4096)] = 100
    stem: Literal["linear", "transpose"] = "transpose"
    norm: Literal["batch", "none"] = "batch"
    head: Literal["transpose", "conv"] = "transpose"
    condition: Literal["none", "concat"] = "concat"
    init: Literal["normal", "xavier", "he", "orthogonal"] = "normal"
    min_width: Annotated[int, Field(ge=1)] = 16
    """Fewest channels of a hidden map."""


class Discriminator(Section):
    width: Annotated[int, Field(ge=4, le=4096)] = 512
    norm: Literal["none", "batch", "spectral", "batch+spectral"] = "batch"
    condition: Literal["none", "channels", "projection"] = "channels"
    head: Literal["sum", "conv"] = "conv"
    dropout: Below1 = 0.0
    spatial_dropout: Below1 = 0.0
    input_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on D's input, in units of the [-1, 1] pixels."""
    minibatch_stddev: Annotated[int, Field(ge=0)] = 0
    """Group size of the minibatch-stddev layer; 0 leaves it out."""
    minibatch_discrimination: Annotated[int, Field(ge=0)] = 0
    """Number of kernels of the minibatch-discrimination layer (Salimans 2016); 0 leaves it out."""
    leak: Share = 0.2
    init: Literal["normal", "xavier", "he", "orthogonal"] = "normal"
    min_width: Annotated[int, Field(ge=1)] = 16


class Model(Section):
    family: Literal["dcgan"] = "dcgan"
    generator: Generator = Generator()
    discriminator: Discriminator = Discriminator()


class Loss(Section):
    name: Literal["bce", "nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic"] = "bce"
    real_label: Share = 1.0
    """BCE: the target for reals; 0.9 is one-sided label smoothing (Salimans 2016)."""
    label_noise: Share = 0.0
    """BCE: targets are blurred by a uniform draw of this width."""
    label_flip: Share = 0.0
    """BCE: this share of D's targets is swapped."""
    feature_matching: NonNegative = 0.0
    """Weight of feature matching (Salimans 2016) in G's loss."""


class Penalty(Section):
    gamma: NonNegative = 0.0
    """Loss += gamma / 2 x squared gradient norm; 0 leaves the penalty out."""
    every: Annotated[int, Field(ge=1)] = 1
    """Apply at every k-th D update with gamma x k (lazy regularisation, Karras 2020)."""


class Regularizer(Section):
    r1: Penalty = Penalty()
    r2: Penalty = Penalty()
    gp: Penalty = Penalty()
    """WGAN-GP: gamma / 2 x (gradient norm at interpolates - 1)^2; the paper's lambda 10 is gamma 20."""
    dragan: Penalty = Penalty()
    """DRAGAN: gamma / 2 x (gradient norm around the reals - 1)^2; the paper's lambda 10 is gamma 20."""


class Augment(Section):
    ops: list[str] = []
    """Which differentiable augmentations D's inputs go through, real and fake alike."""
    p: Share = 0.0
    """How probable each of them is for one image."""


class Optimizer(Section):
    name: Literal["adam", "adamw"] = "adam"
    lr_g: Rate = 2e-4
    lr_d: Rate = 2e-4
    beta1: Below1 = 0.5
    beta2: Below1 = 0.999
    eps: Rate = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Rate | None = None
    """Clip each network's gradient to this norm."""
    clip_value: Rate | None = None
    """Clamp each gradient element to +-this."""


class Schedule(Section):
    lr: Literal["constant", "cosine", "step"] = "constant"
    warmup_kimg: NonNegative = 0.0
    """Both rates rise linearly from 0 over the first this many thousand images."""
    final: Share = 0.0
    """Cosine: the share of the rate left at the last image."""
    step_kimg: Period = 500.0
    """Step: the rates are multiplied by `step_factor` each time this many thousand images have passed."""
    step_factor: Share = 0.5
    gamma_final: NonNegative = 1.0
    """Factor on every penalty's gamma at the last image, reached along a cosine from 1."""


class Balance(Section):
    mode: Literal["off", "watch", "on"] = "off"
    d_steps: Annotated[int, Field(ge=1, le=16)] = 1
    g_steps: Annotated[int, Field(ge=1, le=16)] = 1


class Ema(Section):
    half_life_kimg: NonNegative = 10.0
    """Half-life of the averaged generator; 0 keeps it equal to the trained one."""
    ramp: NonNegative = 0.05
    """The half-life is at most this share of the images seen so far; 0 turns the ramp off."""


class Train(Section):
    batch: Count = 64
    images: Count = 2_000_000
    """Length of the run, in real images shown to D."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    micro_batch: Count | None = None
    """Accumulate each batch's gradient over pieces of this size; None takes the batch whole."""
    separate_batches: bool = False
    """Put reals and fakes through D one after the other, so that batch norm sees them apart; otherwise in one pass."""
    tick_kimg: Period = 2.0
    """How often scalars are logged."""
    checkpoint_kimg: Period = 50.0
    keep: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints stay."""
    keep_every_kimg: Period | None = None
    """Checkpoints and snapshots at multiples of this stay for good."""
    snapshot_kimg: Period = 50.0
    """How often the EMA generator is saved."""
    keep_snapshots: Annotated[int, Field(ge=1)] = 20
    """How many of the newest snapshots stay; the best by its score stays too."""


class Sample(Section):
    every_kimg: NonNegative = 20.0
    """How often the grid of fixed latents is drawn; 0 = never."""
    columns: Annotated[int, Field(ge=1, le=64)] = 8
    """Latents per attribute combination."""


class Eval(Section):
    every_kimg: NonNegative = 0.0
    """How often a snapshot is scored during the run; 0 = never."""
    metrics: list[str] = ["fd", "kid"]
    features: str = "face"
    count: Count = 2_000
    split: Literal["train", "val", "test"] = "val"


class Config(Section):
    """A whole recipe. Every field has a default, so that a preset states only what differs."""

    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    regularizer: Regularizer = Regularizer()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    balance: Balance = Balance()
    ema: Ema = Ema()
    train: Train = Train()
    sample: Sample = Sample()
    eval: Eval = Eval()

    @model_validator(mode="after")
    def cross_check(self) -> Config:
        batch, micro = self.train.batch, self.train.micro_batch
        if micro is not None and batch % micro:
            raise ValueError(f"train.batch ({batch}) must be a multiple of train.micro_batch ({micro})")
        if self.loss.name != "bce" and (self.loss.real_label, self.loss.label_noise, self.loss.label_flip) != (1.0, 0.0, 0.0):
            raise ValueError(f"loss.real_label, label_noise and label_flip belong to loss.name=bce, not {self.loss.name}")
        if self.augment.p > 0 and not self.augment.ops:
            raise ValueError("augment.p is above 0 but augment.ops is empty: name the operations")
        if self.balance.mode != "off":
            raise ValueError(f"balance.mode={self.balance.mode} is not available yet: leave it off")
        self._check_minibatch_layers()
        return self

    def _check_minibatch_layers(self) -> None:
        """What a minibatch layer sees must be alike in D's step and in G's, where there are only fakes."""
        critic, piece = self.model.discriminator, self.train.micro_batch or self.train.batch
        if self.train.separate_batches:
            return
        if critic.minibatch_discrimination:
            raise ValueError("model.discriminator.minibatch_discrimination compares samples of one kind: set train.separate_batches=true")
        if (group := critic.minibatch_stddev) and piece % group:
            raise ValueError(f"{piece} images are no multiple of model.discriminator.minibatch_stddev ({group}): set another train.batch")


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: the config, its preset's name and where each value came from."""

    config: Config
    preset: str | None
    provenance: dict[str, str]


# --- flat keys --------------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


DEFAULTS = flatten(Config().model_dump())


def _known(key: str, where: str) -> str:
    if key in DEFAULTS:
        return key
    tail = key.rsplit(".", 1)[-1]
    same_tail = [known for known in DEFAULTS if known.rsplit(".", 1)[-1] == tail]  # the right key in the wrong section
    hint = f" Did you mean {same_tail[0]}?" if same_tail else did_you_mean(key, DEFAULTS)
    raise UserError(f"{where}: unknown key {key}.{hint}")


def parse_override(text: str) -> tuple[str, Any]:
    """'optimizer.lr_g=1e-4' -> ('optimizer.lr_g', 0.0001). Values are TOML; a word that is no TOML is a string."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals:
        raise UserError(f"--set {text}: write section.key=value.")
    _known(key, "--set")
    if key == "data.attributes" and value.lower() in ("all", "none"):
        return key, None if value.lower() == "all" else []
    if value.lower() == "none" and DEFAULTS[key] is None:  # elsewhere "none" is a choice by that name
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if isinstance(DEFAULTS[key], list) or key == "data.attributes":
        return key, [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    return key, value


# --- presets ----------------------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """The bundled recipes, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in resources.files("mien.presets").iterdir() if path.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's own table: what it states, with `description` and perhaps `base`. `name` is a bundled name or a .toml file."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"No such preset file: {name}.")
        text = path.read_text(encoding="utf-8", errors="replace")  # TOML refuses what the replacement leaves outside of strings
    elif name in preset_names():
        text = (resources.files("mien.presets") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UserError(f"No preset is named {name}.{did_you_mean(name, preset_names())} 'mien presets' lists them.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Preset {name} is not valid TOML: {error}.") from None


def preset_layers(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(preset, its flat values) from the first base to the preset itself."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen: list[str] = []
    step: str | None = name
    while step is not None:
        if step in seen:
            raise UserError(f"Preset {name} names itself as its base ({' -> '.join([*seen, step])}).")
        seen.append(step)
        table = read_preset(step)
        base = table.pop("base", None)
        if not isinstance(base, str | None):
            raise UserError(f"preset {step}: base names one preset, in quotes (got {base!r}).")
        table.pop("description", None)
        flat = flatten(table)
        for key in flat:
            _known(key, f"preset {step}")
        layers.insert(0, (step, flat))
        beside = Path(step).parent / base if base and base.endswith(".toml") and step.endswith(".toml") else None
        step = str(beside) if beside and beside.is_file() else base  # one file names another from where it lies itself
    return layers


def resolve(preset: str | None = None, overrides: Iterable[str | tuple[str, Any]] = ()) -> Recipe:
    """The recipe of a preset and `--set` overrides. Raises UserError for unknown keys, wrong values and wrong combinations."""
    values, provenance = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default")
    for layer, flat in [] if preset is None else preset_layers(preset):
        values |= flat
        provenance |= dict.fromkeys(flat, f"preset {layer}")
    for override in overrides:
        key, value = parse_override(override) if isinstance(override, str) else override
        values[key] = value
        provenance[key] = "command line"
    return Recipe(config=validate(unflatten(values)), preset=preset, provenance=provenance)


def validate(tree: Mapping[str, Any]) -> Config:
    """A Config from a nested table; pydantic's errors become one line."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        got = "" if repr(first["input"]) in message or not key else f" (got {first['input']!r})"
        raise UserError(f"{key}: {message}{got}." if key else f"{message}.") from None


MAY_CHANGE_ON_RESUME = ("train.images", "train.tick_kimg", "train.checkpoint_kimg", "train.keep", "train.snapshot_kimg",
                        "sample.every_kimg", "eval.")  # fmt: skip


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'optimizer.lr_g: 0.0002 -> 0.0001' for each key that differs between two nested tables; a key that one lacks has its default."""
    before, after = DEFAULTS | flatten(old), DEFAULTS | flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
