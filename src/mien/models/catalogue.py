"""The families of networks, by name."""

import inspect
from typing import TypeVar

from torch import nn

from mien.errors import UserError, did_you_mean
from mien.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mien.models.layers import ForeignChoice
from mien.models.r3 import R3Discriminator, R3Generator
from mien.models.resnet import ResNetDiscriminator, ResNetGenerator
from mien.models.style import StyleDiscriminator, StyleGenerator

Generator = DCGANGenerator | ResNetGenerator | R3Generator | StyleGenerator  # of any family: types name what every generator has
Discriminator = DCGANDiscriminator | ResNetDiscriminator | R3Discriminator | StyleDiscriminator

Network = TypeVar("Network", bound=nn.Module)

FAMILIES: dict[str, tuple[type[Generator], type[Discriminator]]] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "resnet": (ResNetGenerator, ResNetDiscriminator),
    "r3": (R3Generator, R3Discriminator),
    "style": (StyleGenerator, StyleDiscriminator),
}

PRESETS = {"dcgan": "stable64", "resnet": "resnet64", "r3": "r3-64", "style": "style64"}  # for who took another family's


def build_generator(family: str, *, size: int, attributes: int, options: dict) -> Generator:
    """The generator of a family at `size` px for `attributes` attributes; `options`: its constructor's keyword arguments.

    Raises UserError for an unknown family, option or value.
    """
    return build(networks(family)[0], family, size=size, attributes=attributes, options=options)


def build_discriminator(family: str, *, size: int, attributes: int, options: dict) -> Discriminator:
    """The discriminator of a family; as build_generator."""
    return build(networks(family)[1], family, size=size, attributes=attributes, options=options)


def option_defaults(network: type[nn.Module]) -> dict[str, object]:
    """Name and default of each option of a network: its constructor's keyword-only arguments."""
    parameters = inspect.signature(network).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def networks(family: str) -> tuple[type[Generator], type[Discriminator]]:
    """(generator class, discriminator class) of a family."""
    if family not in FAMILIES:
        raise UserError(f"no network family {family!r}; there are {', '.join(FAMILIES)}.{did_you_mean(family, FAMILIES)}")
    return FAMILIES[family]


def build(network: type[Network], family: str, *, size: int, attributes: int, options: dict) -> Network:
    known = option_defaults(network)
    for name in options:
        if name not in known:
            raise UserError(f"{family}'s {network.__name__} has no option {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}.")
    try:
        return network(size, attributes, **options)
    except ForeignChoice as error:
        raise UserError(f"{error} A recipe of the {family} family: --preset {PRESETS[family]}.") from None
