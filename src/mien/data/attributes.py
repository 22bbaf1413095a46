"""Binary face attributes: the official CelebA names, choosing some by name, counting and correlating."""

from collections.abc import Sequence

import numpy as np

from mien.errors import UserError, did_you_mean

# Liu et al. 2015, in the order of list_attr_celeba.txt.
CELEBA_ATTRIBUTES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose", "Black_Hair",
    "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair",
    "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face",
    "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair",
    "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)

Combination = tuple[int, ...]   # a 0 or 1 per attribute, in the order of the names


def columns(names: Sequence[str], available: Sequence[str], *, where: str = "the data") -> list[int]:
    """The place of each of `names` in `available`, in the order of `names`.

    UserError for a name it has not (the nearest offered, another case included) and for one asked for twice.
    """
    place = {name: column for column, name in enumerate(available)}
    for name in names:
        if name not in place:
            has = f" It has: {', '.join(available)}." if 0 < len(available) <= 12 else "" if available else " It has none."
            raise UserError(f"{where} has no attribute {name!r}.{did_you_mean(name, available)}{has}")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserError(f"attribute {repeated[0]!r} is asked for twice; name it once")
    return [place[name] for name in names]


def combination_table(attributes: np.ndarray) -> list[tuple[Combination, int]]:
    """Which rows of uint8 [N, A] occur and how often: [(combination, count)] in rising order of the combination."""
    if not len(attributes):
        return []
    if not attributes.shape[1]:
        return [((), len(attributes))]
    packed = np.packbits(attributes, axis=1)    # 40 columns become 5 bytes: sorting rows of 200,000 stays fast
    _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    return [(tuple(int(bit) for bit in attributes[row]), int(count)) for row, count in zip(first, counts, strict=True)]


def correlation(attributes: np.ndarray) -> np.ndarray:
    """Pearson correlation of every pair of columns of uint8 [N, A] (phi, for binary values): float64 [A, A].

    NaN in the row and column of an attribute that never changes, for which it is not defined.
    """
    # Not np.corrcoef: it divides 0 by 0 aloud, and rounding can leave a constant column a tiny false variance.
    count = max(len(attributes), 1)
    exact = attributes.astype(np.float64)
    ones = exact.sum(axis=0)
    covariance = (exact.T @ exact) / count - np.outer(ones, ones) / count**2
    changes = (ones > 0) & (ones < len(attributes))
    deviation = np.where(changes, np.sqrt(np.maximum(np.diag(covariance), 0)), np.nan)
    return np.clip(covariance / np.outer(deviation, deviation), -1.0, 1.0)


def strongest_pairs(names: Sequence[str], attributes: np.ndarray) -> list[tuple[str, str, float]]:
    """Every pair of attributes with its correlation, the strongest (of either sign) first; undefined ones left out."""
    table = correlation(attributes)
    pairs = [(names[i], names[j], float(table[i, j])) for i in range(len(names)) for j in range(i) if np.isfinite(table[i, j])]
    return sorted(((b, a, r) for a, b, r in pairs), key=lambda pair: (-abs(pair[2]), pair[0], pair[1]))
