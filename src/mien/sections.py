"""What a recipe may say: typed sections with their defaults and bounds, and what must fit together. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mien.fields import Below1, Count, NonNegative, NumberOrAuto, Period, Rate, Section, Share, balance_law


class Data(Section):
    attributes: list[str] | None = None
    """The condition, by name; None takes every attribute of the store, [] trains without conditions."""
    flip: bool = True
    """Mirror each training image with probability 1/2."""
    balance: Annotated[Literal["none", "uniform"] | dict[str, NonNegative], BeforeValidator(balance_law)] = "none"
    """How often images are drawn: as they are in the data; every combination of the condition equally often; or by factors,
    {"Young=0" = 3.0, "Male=1,Smiling=0" = 2.0}: an image is drawn as many times as often as the product of what fits it says.
    Any attribute of the store may be named. The condition drawn for G follows the same law."""


class Only:
    """Marks a key of the networks that only these families have."""

    def __init__(self, *families: str):
        self.families = families


class Network(Section):
    """The keys of every family's network, side by side. One without `Only` belongs to all families."""

    @classmethod
    def families_of(cls, key: str) -> tuple[str, ...]:
        """The families that have this key; () for all."""
        return next((mark.families for mark in cls.model_fields[key].metadata if isinstance(mark, Only)), ())

    def options(self, family: str) -> dict[str, Any]:
        """The values of the keys that `family` has: what its constructor takes."""
        return {key: value for key, value in self if family in (self.families_of(key) or (family,))}

    def strange(self, family: str) -> list[str]:
        """Keys that `family` lacks, yet say something other than their default."""
        own = self.options(family)
        return [key for key, value in self if key not in own and value != type(self).model_fields[key].default]


class Generator(Network):
    width: Annotated[int, Field(ge=4, le=4096)] = 512
    """Channels of the 4x4 map, halved at each doubling of the size (r3, style: beyond `wide_px`)."""
    wide_px: Annotated[int, Field(ge=4), Only("r3", "style")] = 32
    """Maps up to this side have the full width, larger ones half as many channels at each doubling."""
    blocks: Annotated[int, Field(ge=1, le=8), Only("r3")] = 2
    """Residual blocks for each size of map."""
    group: Annotated[int, Field(ge=1), Only("r3")] = 16
    """Channels in a group of the 3x3 convolutions."""
    w_dim: Annotated[int, Field(ge=1, le=4096), Only("style")] = 512
    """Length of a style."""
    mapping: Annotated[int, Field(ge=1, le=16), Only("style")] = 8
    """Layers of the mapping network."""
    mixing: Annotated[Share, Only("style")] = 0.9
    """Share of training samples whose style changes to another latent's at a random layer."""
    z_dim: Annotated[int, Field(ge=1, le=4096)] = 100
    stem: Annotated[Literal["linear", "transpose"], Only("dcgan")] = "transpose"
    norm: Annotated[Literal["batch", "pixel", "none"], Only("dcgan", "resnet")] = "batch"
    """pixel: dcgan's alone, each pixel's channels scaled to a mean square of 1 (Karras 2018)."""
    spectral: Annotated[bool, Only("resnet")] = False
    """Spectral norm on every weight (Zhang 2019, section 3.1)."""
    attention: Annotated[int, Field(ge=0), Only("resnet")] = 0
    """Side of the map on which self-attention works; 0 leaves it out."""
    head: Annotated[Literal["transpose", "conv"], Only("dcgan")] = "transpose"
    condition: Literal["none", "concat", "norm"] = "concat"
    """How attributes come in: beside the latent, or (resnet) as gain and bias of each batch norm."""
    init: Annotated[Literal["normal", "xavier", "he", "orthogonal"], Only("dcgan", "resnet")] = "normal"
    min_width: Annotated[int, Field(ge=1)] = 16
    """Fewest channels of a hidden map."""


class Discriminator(Network):
    width: Annotated[int, Field(ge=4, le=4096)] = 512
    wide_px: Annotated[int, Field(ge=4), Only("r3", "style")] = 32
    blocks: Annotated[int, Field(ge=1, le=8), Only("r3")] = 2
    group: Annotated[int, Field(ge=1), Only("r3")] = 16
    norm: Annotated[Literal["none", "batch", "spectral", "batch+spectral"], Only("dcgan", "resnet")] = "batch"
    attention: Annotated[int, Field(ge=0), Only("resnet")] = 0
    condition: Literal["none", "channels", "projection"] = "channels"
    head: Annotated[Literal["sum", "conv"], Only("dcgan", "resnet")] = "conv"
    dropout: Annotated[Below1, Only("dcgan")] = 0.0
    spatial_dropout: Annotated[Below1, Only("dcgan")] = 0.0
    input_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on D's input, in units of the [-1, 1] pixels."""
    minibatch_stddev: Annotated[int, Field(ge=0), Only("dcgan", "style")] = 0
    """Group size of the minibatch-stddev layer; 0 leaves it out."""
    minibatch_discrimination: Annotated[int, Field(ge=0), Only("dcgan")] = 0
    """Number of kernels of the minibatch-discrimination layer (Salimans 2016); 0 leaves it out."""
    leak: Annotated[Share, Only("dcgan")] = 0.2
    init: Annotated[Literal["normal", "xavier", "he", "orthogonal"], Only("dcgan", "resnet")] = "normal"
    min_width: Annotated[int, Field(ge=1)] = 16


class Model(Section):
    family: Literal["dcgan", "resnet", "r3", "style"] = "dcgan"
    generator: Generator = Generator()
    discriminator: Discriminator = Discriminator()

    def generator_options(self) -> dict[str, Any]:
        return self.generator.options(self.family)

    def discriminator_options(self) -> dict[str, Any]:
        return self.discriminator.options(self.family)

    @property
    def batch_norm_in_d(self) -> bool:
        return "batch" in self.discriminator_options().get("norm", "none")


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
    perceptual: NonNegative = 0.0
    """Weight of the distance of the batch's mean `face` features from the reals'. fd-face is then no fair judge; fd-inception-768 is."""


class Penalty(Section):
    gamma: NonNegative = 0.0
    """Loss += gamma / 2 x squared gradient norm; 0 leaves the penalty out."""
    every: Annotated[int, Field(ge=1)] = 1
    """Apply at every k-th D update with gamma x k (lazy regularisation, Karras 2020)."""


class ZeroCentred(Section):
    gamma: NumberOrAuto = 0.0
    """As Penalty's; auto: by the rule for the family, the resolution and the batch (mien.rules)."""
    every: Annotated[int, Field(ge=1)] = 1
    """Apply at every k-th D update with gamma x k (lazy regularisation, Karras 2020)."""


class PathLength(Section):
    """Path-length regularisation of a style generator (Karras 2020, section 3.2)."""

    gamma: NonNegative = 0.0
    """Loss += gamma x (length of a step in the picture for a step in style - its running mean)^2; the paper's is 2."""
    every: Annotated[int, Field(ge=1)] = 4
    """Apply at every k-th G update with gamma x k, to half of the batch."""


class LeCam(Section):
    gamma: NonNegative = 0.0
    """Loss += gamma x squared distance of D's logits from the moving average of the other side's (the lambda of Tseng 2021; 0.01 to 0.3
    there)."""
    half_life_kimg: Period = 4.0
    """Half-life of the two averages; the paper's 0.99 an update is 4.4 at batch 64."""


class Consistency(Section):
    real: NonNegative = 0.0
    """Loss += weight x (D(x) - D(T(x)))^2 on reals (Zhang 2020: 10)."""
    fake: NonNegative = 0.0
    """The same on fakes; with both at 10 it is bCR (Zhao 2021)."""
    ops: Annotated[list[str], Field(min_length=1)] = ["flip", "translation"]
    """What T does: names as in augment.ops, every one of them each time."""


class Regularizer(Section):
    r1: ZeroCentred = ZeroCentred()
    r2: ZeroCentred = ZeroCentred()
    gp: Penalty = Penalty()
    """WGAN-GP: gamma / 2 x (gradient norm at interpolates - 1)^2; the paper's lambda 10 is gamma 20."""
    dragan: Penalty = Penalty()
    """DRAGAN: gamma / 2 x (gradient norm around the reals - 1)^2; the paper's lambda 10 is gamma 20."""
    path_length: PathLength = PathLength()
    lecam: LeCam = LeCam()
    consistency: Consistency = Consistency()


class Augment(Section):
    ops: list[str] = []
    """Which differentiable augmentations D's inputs go through, real and fake alike."""
    p: Share = 0.0
    """How probable each of them is for one image; where `mode` moves it, what it begins with (adaptive) or ends at (ramp, cosine)."""
    mode: Literal["fixed", "ramp", "cosine", "adaptive"] = "fixed"
    """Cosine: p rises from 0 over the whole run, as the other cosines fall."""
    ramp_kimg: Period = 500.0
    """Ramp: p rises linearly from 0 over this many thousand images."""
    target: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    """Adaptive: p grows while E[sign D(real)] is above this, and shrinks below it (Karras 2020)."""
    speed_kimg: Period = 500.0
    """Adaptive: thousands of images that p takes from 0 to 1."""
    most: Share = 0.8
    """Adaptive: p stays at or below this."""


class Optimizer(Section):
    name: Literal["adam", "adamw"] = "adam"
    lr_g: Rate = 2e-4
    lr_d: Rate = 2e-4
    beta1: Below1 = 0.5
    beta2: Below1 = 0.999
    eps: Rate = 1e-8
    weight_decay: NonNegative = 0.0
    """On kernels only, not on biases and norms. adamw: decoupled (Loshchilov & Hutter 2019); adam: added to the gradient. Under spectral
    norm a kernel's size means nothing, so there decay only lets Adam's steps turn it faster."""
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
    """Factor on the weight of every regulariser at the last image, reached along a cosine from 1."""
    beta2_final: Below1 | None = None
    """Adam's beta2 at the last image, reached along a cosine from optimizer.beta2; None keeps it."""
    ema_start: NonNegative = 1.0
    """Factor on ema.half_life_kimg at the first image, which rises or falls to 1 along a cosine."""
    noise_final: NonNegative = 1.0
    """Factor on model.discriminator.input_noise at the last image, reached along a cosine from 1."""


class Balance(Section):
    mode: Literal["off", "watch", "on"] = "watch"
    """What is done about what ails the run: nothing; name it and advise; turn knobs and roll back."""
    d_steps: Annotated[int, Field(ge=1, le=16)] = 1
    g_steps: Annotated[int, Field(ge=1, le=16)] = 1
    patience_kimg: Period = 10.0
    """A diagnosis is named once its signals were beyond their limits for this long."""
    probe_kimg: NonNegative = 4.0
    """How often fixed faces and held-out reals are looked at; 0 = never."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3


def number(value: float | str) -> float:
    """A setting that may be "auto", once `mien.rules.settle` has put a number in its place."""
    assert isinstance(value, (int, float)), "settle the recipe first"
    return value


class Ema(Section):
    half_life_kimg: NumberOrAuto = 10.0
    """Half-life of the averaged generator; 0 keeps it equal to the trained one; auto: by batch and length of the run (mien.rules)."""
    ramp: NonNegative = 0.05
    """The half-life is at most this share of the images seen so far; 0 turns the ramp off."""
    posthoc: list[Annotated[float, Field(gt=0, lt=0.28)]] = []
    """Also keep averages of these relative widths (Karras 2024: .05, .10), saved with each snapshot, from which `mien ema` makes an average
    of any length afterwards; [] keeps none."""


class Surgery(Section):
    """How a run treats parts that are new beside parts that are trained: after --from, and after each growth."""

    warmup_kimg: NonNegative = 20.0
    """The rate of new and re-shaped weights rises from a twentieth to the whole over this many thousand images."""
    freeze_d: Annotated[int, Field(ge=0)] = 0
    """How many of D's blocks, from the image on, keep the weights that --from brought (FreezeD, Mo et al. 2020)."""
    networks: Literal["recipe", "origin"] = "recipe"
    """Whose networks are trained, in family, widths and all: the recipe's, or those of what --from names."""


class Growth(Section):
    """Begin with smaller images and double their size, up to that of the data (Karras et al. 2018)."""

    at_kimg: Annotated[list[NonNegative], BeforeValidator(lambda given: given if isinstance(given, (list, tuple)) else [given])] = []
    """When each doubling begins; [] trains at the data's size from the start."""
    fade_kimg: NonNegative = 100.0
    """New blocks fade in over this many thousand images."""

    @model_validator(mode="after")
    def _in_order(self) -> Growth:
        for before, after in pairwise(self.at_kimg):
            if after < before + max(self.fade_kimg, 0.001):
                raise ValueError(f"growth.at_kimg: {after:g} comes before the fade that begins at {before:g} is over "
                                 f"(growth.fade_kimg is {self.fade_kimg:g})")  # fmt: skip
        return self


class Train(Section):
    batch: Count = 64
    images: Count = 2_000_000
    """Length of the run, in real images shown to D."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto", "off", "networks", "graphs"] = "auto"
    """Run G and D through torch.compile (networks), or as CUDA graphs besides; auto: networks on an NVIDIA GPU, off elsewhere."""
    deterministic: bool = False
    """On a GPU: the same numbers from every run, at some cost of speed. On a CPU they are that anyway."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    micro_batch: Count | None = None
    """Accumulate each batch's gradient over pieces of this size; None takes the batch whole."""
    memory_gb: Rate | None = None
    """Cut batches (as micro_batch does) into the largest pieces with which a step is predicted to stay within this many GB of 10^9 bytes:
    of the whole process on a CPU; on a GPU of what torch allocates, and the driver takes about half a GB besides."""
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
    surgery: Surgery = Surgery()
    growth: Growth = Growth()
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
        if self.surgery.freeze_d and self.growth.at_kimg:
            raise ValueError("surgery.freeze_d keeps D's blocks nearest the image, and growth.at_kimg replaces them: leave one out")
        if self.ema.posthoc and (self.growth.at_kimg or len(set(self.ema.posthoc)) == 1):
            raise ValueError("ema.posthoc needs two different widths or more to rebuild others from, and networks that do not grow")
        if self.augment.mode == "adaptive" and not self.augment.ops:
            raise ValueError("augment.mode=adaptive needs augment.ops: name the operations")
        if self.schedule.noise_final != 1 and not self.model.discriminator.input_noise:
            raise ValueError("schedule.noise_final has no noise to change: set model.discriminator.input_noise")
        weights = self.regularizer.consistency
        if (weights.real or weights.fake) and self.model.batch_norm_in_d and not self.train.separate_batches:
            raise ValueError("regularizer.consistency wants reals and fakes apart in D's batch norm: set train.separate_batches=true")
        self._check_family()
        self._check_minibatch_layers()
        return self

    def _check_family(self) -> None:
        """Nothing is said that the family would not hear."""
        family = self.model.family
        for role, network in (("generator", self.model.generator), ("discriminator", self.model.discriminator)):
            for key in network.strange(family):
                owners, default = " or ".join(network.families_of(key)), type(network).model_fields[key].default
                raise ValueError(f"model.{role}.{key} belongs to model.family={owners}: say {default!r}, or take a {family} preset")
        if self.regularizer.path_length.gamma and family != "style":
            raise ValueError(f"regularizer.path_length.gamma needs model.family=style, not {family}: leave it out")
        if self.growth.at_kimg and family != "dcgan":
            raise ValueError(f"growth.at_kimg: only dcgan networks can grow, not {family}")

    def _check_minibatch_layers(self) -> None:
        """What a minibatch layer sees must be alike in D's step and in G's, where there are only fakes."""
        critic, piece = self.model.discriminator, self.train.micro_batch or self.train.batch
        if self.train.separate_batches:
            return
        if critic.minibatch_discrimination:
            raise ValueError("model.discriminator.minibatch_discrimination compares samples of one kind: set train.separate_batches=true")
        if (group := critic.minibatch_stddev) and piece % group:
            raise ValueError(f"{piece} images are no multiple of model.discriminator.minibatch_stddev ({group}): set another train.batch")
