"""DCGAN (Radford, Metz & Chintala 2016) at any size, and its conditional, spectrally normalised descendants, by options.

With the default options both networks are DCGAN's. Both are sequences of blocks named by the side of the map they give ("4x4",
"8x8", ...), so that a state dict reads as a diagram and a layer is hooked by name, e.g. `blocks.16x16.act`.
The map of side r has `width * 4 / r` channels: `width` on the 4x4 map, halved at each doubling, never under `min_width`.
"""

import torch
from torch import Tensor, nn

from mien.models.conditioning import check_attributes, concat_latent, concat_planes, signed
from mien.models.layers import (
    INITS,
    Conv2d,
    MinibatchDiscrimination,
    MinibatchStddev,
    PixelNorm,
    Project,
    SpectralConv2d,
    SpectralLinear,
    Stem,
    ToImage,
    channels_at,
    choose,
    initialize,
    resolutions,
    sequence,
)


class DCGANGenerator(nn.Module):
    """Latent and attributes to images, doubling the side from 4 px.

    size        side of the images, px: 32, 64, 128 or 256
    attributes  how many attributes there are; may be 0
    width       channels of the 4x4 map (512 at 64 px: the usual DCGAN, ngf 64; 736: seed 0's)
    z_dim       length of the latent, drawn from N(0, 1)
    stem        how the latent becomes the 4x4 map: "transpose" (4x4 transposed convolution) or "linear" (fully connected)
    norm        "batch" after every layer but the last; "pixel" after its activation (progressive growing); or "none"
    head        last layer: "transpose" doubles the side and gives the 3 colours; "conv" doubles it first, at width * 4 / size
                channels, and a 3x3 convolution gives the colours (less checkerboard, more compute)
    condition   "none", or "concat": signed attributes beside the latent
    init        "normal", "xavier", "he", "orthogonal"
    min_width   fewest channels of a hidden map

    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        z_dim: int = 100,
        stem: str = "transpose",
        norm: str = "batch",
        head: str = "transpose",
        condition: str = "none",
        init: str = "normal",
        min_width: int = 16,
    ):
        super().__init__()
        choose("model.generator.norm", norm, ("batch", "pixel", "none"))
        choose("model.generator.head", head, ("transpose", "conv"))
        choose("model.generator.stem", stem, ("transpose", "linear"))
        choose("model.generator.condition", condition, ("none", "concat"))
        choose("model.generator.init", init, INITS)
        self.size, self.attributes, self.z_dim, self.condition = size, attributes, z_dim, condition
        inputs = z_dim + (attributes if condition == "concat" else 0)
        bias = norm != "batch"  # batch norm subtracts a bias before it and has its own

        def block(conv: nn.Module, channels: int) -> nn.Sequential:
            return sequence({
                "conv": conv,
                "norm": nn.BatchNorm2d(channels) if norm == "batch" else None,
                "act": nn.ReLU(inplace=True),
                "pixel_norm": PixelNorm() if norm == "pixel" else None,
            })  # fmt: skip

        if stem == "transpose":
            project: nn.Module = Stem(inputs, width, bias=bias)
        else:
            project = Project(inputs, width, bias=bias)
        blocks = {"4x4": block(project, width)}
        last, sides = width, resolutions(size)[1:]
        for resolution in sides if head == "conv" else sides[:-1]:
            channels = channels_at(resolution, width=width, min_width=min_width)
            blocks[f"{resolution}x{resolution}"] = block(nn.ConvTranspose2d(last, channels, 4, 2, 1, bias=bias), channels)
            last = channels
        image = nn.Conv2d(last, 3, 3, padding=1) if head == "conv" else ToImage(last, 3)
        blocks["image"] = sequence({"conv": image, "act": nn.Tanh()})
        self.blocks = sequence(dict(blocks))
        initialize(self, init)

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        """z [N, Z] and attributes [N, A] in 0..1 (beyond: exaggerated) -> images [N, 3, R, R] in [-1, 1]."""
        check_attributes(attributes, expected=self.attributes)
        x = concat_latent(z, attributes) if self.condition == "concat" else z
        return self.paint(x[:, :, None, None])

    def paint(self, x: Tensor) -> Tensor:
        """Latents beside conditions [N, Z + A, 1, 1] -> images [N, 3, R, R]."""
        return self.blocks(x)


class DCGANDiscriminator(nn.Module):
    """Images and attributes to logits, halving the side down to 4 px.

    size, attributes, init, min_width: as the generator's
    width       channels of the 4x4 map (512 at 64 px: the usual DCGAN, ndf 64)
    norm        "batch" after every convolution but the first, "spectral" on every weight, "batch+spectral", "none"
    condition   "none"; "channels": signed attributes as constant planes beside the colours; "projection": the logit gains
                f(x) . e(c), e linear (Miyato & Koyama 2018)
    head        what the features f(x) are: "conv": the whole 4x4 map, so the linear layer on it is DCGAN's 4x4 convolution;
                "sum": each channel summed over the 4x4 map (global sum pooling)
    dropout, spatial_dropout   share of values / of whole channels dropped after each hidden activation, in [0, 1)
    input_noise Gaussian noise's standard deviation on images in [-1, 1] while training; an attribute, free to change in a run
    minibatch_stddev           group size; 0: off. Its channel goes into the last convolution, with the 8x8 map
    minibatch_discrimination   number of kernels beside the features; 0: off
    leak        slope of the leaky ReLUs below 0

    The state dict of a network with minibatch_stddev differs from one without by one input channel of `trunk.4x4.conv`.
    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        norm: str = "batch",
        condition: str = "none",
        head: str = "conv",
        dropout: float = 0.0,
        spatial_dropout: float = 0.0,
        input_noise: float = 0.0,
        minibatch_stddev: int = 0,
        minibatch_discrimination: int = 0,
        leak: float = 0.2,
        init: str = "normal",
        min_width: int = 16,
    ):
        super().__init__()
        choose("model.discriminator.norm", norm, ("batch", "spectral", "batch+spectral", "none"))
        choose("model.discriminator.head", head, ("conv", "sum"))
        choose("model.discriminator.condition", condition, ("none", "channels", "projection"))
        choose("model.discriminator.init", init, INITS)
        self.size, self.attributes, self.condition, self.pool = size, attributes, condition, head
        self.input_noise = input_noise
        spectral = norm.endswith("spectral")
        conv, linear = (SpectralConv2d, SpectralLinear) if spectral else (Conv2d, nn.Linear)
        last = 3 + (attributes if condition == "channels" else 0)
        blocks: dict[str, nn.Module | None] = {}
        for resolution in reversed(resolutions(size)[:-1]):
            channels = channels_at(resolution, width=width, min_width=min_width)
            crowd = minibatch_stddev if resolution == 4 else 0
            batch_norm = norm.startswith("batch") and bool(blocks)
            blocks[f"{resolution}x{resolution}"] = sequence({
                "stddev": MinibatchStddev(crowd) if crowd else None,
                "conv": conv(last + bool(crowd), channels, 4, 2, 1, bias=not batch_norm),
                "norm": nn.BatchNorm2d(channels) if batch_norm else None,
                "act": nn.LeakyReLU(leak, inplace=True),
                "dropout": nn.Dropout(dropout) if dropout else None,
                "spatial_dropout": nn.Dropout2d(spatial_dropout) if spatial_dropout else None,
            })  # fmt: skip
            last = channels
        self.trunk = sequence(blocks)
        features = last * 16 if head == "conv" else last
        kernels = minibatch_discrimination
        self.crowd = MinibatchDiscrimination(features, kernels, spectral=spectral) if kernels else None
        features += kernels
        self.logit = linear(features, 1)
        project = condition == "projection" and attributes > 0  # without attributes there is no matrix to normalise
        self.embedding = linear(attributes, features, bias=False) if project else None
        initialize(self, init)

    def features(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] in [-1, 1] and attributes [N, A] -> what the head sees, f(x), [N, F]."""
        check_attributes(attributes, expected=self.attributes)
        if self.training and self.input_noise:
            images = images + self.input_noise * torch.randn(images.shape, dtype=images.dtype, device=images.device)
        x = concat_planes(images, attributes) if self.condition == "channels" else images
        x = self.reduce(x)  # [N, C, 4, 4]
        f = x.sum((2, 3)) if self.pool == "sum" else x.flatten(1)  # [N, F]
        return f if self.crowd is None else self.crowd(f)

    def reduce(self, x: Tensor) -> Tensor:
        """Images, perhaps with planes of attributes, [N, 3 (+ A), R, R] -> the last map, [N, C, 4, 4]."""
        return self.trunk(x)

    def head(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Features [N, F] and attributes [N, A] -> logits [N]: h(f) + f . e(c)."""
        logits = self.logit(features).squeeze(1)  # [N]
        if self.embedding is not None:
            logits = logits + (features * self.embedding(signed(attributes).to(features.dtype))).sum(1)
        return logits

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] in [-1, 1] and attributes [N, A] -> logits [N], high for real."""
        return self.head(self.features(images, attributes), attributes)
