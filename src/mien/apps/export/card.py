"""A model's card: what it was made of, how good it is, where it fails. Gathered from a run, kept in a snapshot's .json.

Every number comes from the run's metrics.jsonl with its protocol; what was not measured is named as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mien.combinations import combination_name
from mien.config import flatten
from mien.explore.load import LoadedGenerator
from mien.reports import findings
from mien.runs import Run, is_frechet, read_jsonl

KEPT = {  # of a score's details, what the card tells
    "fd": ("interval", "by_combination"),
    "control": ("accuracy", "ceiling", "combinations"),
    "leakage": ("leaks",),
    "memorization": ("verdict", "median_distance", "median_distance_held_out", "n_training"),
    "diversity": ("verdict",),
    "groups": ("groups",),
}
SHOWN_GROUPS = ("Young", "Pale_Skin", "Gray_Hair", "Bald", "Chubby", "Eyeglasses", "Wearing_Hat", "Blond_Hair", "Big_Nose", "Narrow_Eyes",
                "Heavy_Makeup", "Attractive")  # fmt: skip
CELEBA_TERMS = (
    "CelebA may be used for non-commercial research only, and its pictures may not be redistributed; these weights were learnt from it, so "
    "the same use is asked of them. None of its pictures is part of the model. The people in it did not agree to be in it."
)
DRAWN_TERMS = (
    "The training faces were drawn by mien itself (`mien data synth`): there is no person in them, and the weights are free as mien is "
    "(Apache-2.0)."
)
OTHER_TERMS = (
    "The terms of the data that it was trained on hold for the weights too; this card does not know them. Find out before you use or pass "
    "on the model."
)
CELEBA_LIMITS = (
    "Its faces are like those of celebrities as photographed, mostly young, light-skinned and made up; others are drawn worse or not. "
    "How much worse was not measured beyond the table above (CelebA says nothing of origin, and of skin only Pale_Skin).",
    "Attributes are what annotators saw in a picture, in the data set's own words: `Male` is their impression, not anybody's gender.",
    "The judge of control and leakage was trained on the same data, and shares its blind spots.",
)


# ------------------------------------------------------------------------------------------------------------------------------
# Gathering


def gather(generator: LoadedGenerator) -> dict[str, Any]:
    """What a card tells, as plain data: the snapshot's own `card` when it has one, else read from the run it lies in, else what meta says.

    Keys: `parameters`; `data` {kind: celeba, drawn or other, name, splits}; `recipe` {key: value that is no default}; `hours` and `device`
    of training (None: not known); `scores`: a line of metrics.jsonl each, the newest of each metric at this snapshot, details cut down.
    """
    known = generator.meta.get("card")
    if isinstance(known, dict):
        return known
    parameters = sum(parameter.numel() for parameter in generator.net.parameters())
    run = run_of(generator.path)
    if run is None:
        return {"parameters": parameters, "data": _data(generator, None, []), "recipe": {}, "hours": None, "device": None, "scores": []}
    config = run.config
    scores = _scores(run, generator)
    seconds = findings.time_s(run)
    return {
        "parameters": parameters,
        "data": _data(generator, config, scores),
        "recipe": _recipe(config),
        "hours": None if seconds is None else round(seconds / 3600, 2),
        "device": config.get("machine", {}).get("device"),
        "scores": scores,
    }


def run_of(snapshot: Path) -> Run | None:
    """The run that a snapshot, or an average made after training, lies in."""
    folder = snapshot.resolve().parents[1]
    return Run.open(folder) if snapshot.parent.name in ("snapshots", "ema") and (folder / "config.json").is_file() else None


def _data(generator: LoadedGenerator, config: Mapping[str, Any] | None, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    store = (config or {}).get("store") or generator.meta.get("store") or {}
    names = [str(score["protocol"].get("data")) for score in scores if score["protocol"].get("data")]
    name = Path(names[-1] if names else str(store.get("path") or "")).name
    kind = "drawn" if store.get("crop") == "drawn" else "celeba" if "celeba" in name.lower() else "other"
    return {"kind": kind, "name": name or None, "crop": store.get("crop"), "splits": store.get("splits"), "digest": store.get("digest")}


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """section.key -> value of all that no default gave."""
    given = {key for key, source in (config.get("provenance") or {}).items() if source != "default"}
    return {key: value for key, value in flatten(config.get("config") or {}).items() if key in given}


def _scores(run: Run, generator: LoadedGenerator) -> list[dict[str, Any]]:
    """The newest line of each metric that was taken of the snapshot at its image count, or of the average that `mien ema` made."""
    nimg, stem = generator.meta.get("nimg"), generator.path.stem
    made = generator.path.parent.name == "ema"
    lines = read_jsonl(generator.path.with_name("metrics.jsonl")) if made else run.metrics()
    mine = [line for line in lines if (line.get("snapshot") == stem if made else line.get("nimg") == nimg)]
    newest = {str(line["metric"]): line for line in mine if findings.finite(line.get("value")) is not None}
    return [{**{key: line.get(key) for key in ("metric", "value", "low", "high", "floor")}, "protocol": dict(line.get("protocol") or {}),
             "details": _kept(name, line.get("details") or {})} for name, line in newest.items()]  # fmt: skip


def _kept(metric: str, details: Mapping[str, Any]) -> dict[str, Any]:
    kind = "fd" if is_frechet(metric) else metric
    return {key: details[key] for key in KEPT.get(kind, ()) if key in details}


# ------------------------------------------------------------------------------------------------------------------------------
# Writing


def render(name: str, meta: Mapping[str, Any], card: Mapping[str, Any], *, use: str, front_matter: bool = True) -> str:
    """The card as Markdown, with the front matter that model hubs read. `use`: a Markdown paragraph on using the files beside it."""
    attributes = list(meta["attributes"])
    scores = {score["metric"]: score for score in card["scores"]}
    parts = [
        _front_matter(card["data"]["kind"]) if front_matter else "",
        f"# Model card: `{name}`",
        f"A generator of faces of nobody, {meta['size']} x {meta['size']} px, "
        + (f"steered by {_listed(attributes)}" if attributes else "without attributes")
        + f". Family `{meta['family']}`, {card['parameters']:,} parameters, {meta.get('nimg', 0):,} images seen in training"
        + (f", weights in {meta['precision']}." if meta.get("precision") else "."),
        "## Use",
        use,
        "**Meant for** learning and research about generators. **Not meant for** passing off its faces as people, for judging anybody, "
        "or for making up a person who is said to exist.",
        "## Data and licence",
        *_about_data(meta, card["data"]),
        "## Recipe",
        *_about_recipe(meta, card),
        "## How good it is",
        *_about_scores(list(scores.values())),
        "## Control and leakage",
        *_about_control(attributes, scores.get("control"), scores.get("leakage")),
        "## Memorisation",
        _about_memory(scores.get("memorization")),
        "## Groups",
        *_about_groups(meta, list(scores.values())),
        *_about_shares(scores.get("groups")),
        "## Limits",
        *_limits(meta, card, scores),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _front_matter(kind: str) -> str:
    lines = {
        "celeba": ["license: other", "license_name: celeba-non-commercial-research"],
        "drawn": ["license: apache-2.0"],
        "other": ["license: other"],
    }
    tags = ["tags:", "- mien", "- gan", "- faces"]
    return "\n".join(["---", *lines[kind], "library_name: mien", "pipeline_tag: unconditional-image-generation", *tags, "---"])


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _span(score: Mapping[str, Any]) -> str:
    return "–" if score.get("low") is None or score.get("high") is None else f"{_number(score['low'])} to {_number(score['high'])}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def _about_data(meta: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    store = meta.get("store") or {}
    splits = data.get("splits") or {}
    counts = (
        f" {splits['train']:,} training images" + (f", {splits['val']:,} kept for validation." if splits.get("val") else ".")
        if splits.get("train")
        else ""
    )
    if data["kind"] == "celeba":
        said = f"CelebA (Liu, Luo, Wang & Tang, ICCV 2015), crop `{store.get('crop')}` at {meta['size']} px.{counts}"
        return [said, CELEBA_TERMS]
    if data["kind"] == "drawn":
        return [f"Drawn toy faces at {meta['size']} px, their attributes known exactly.{counts}", DRAWN_TERMS]
    named = f"Data `{data['name']}`" if data.get("name") else "Data that this card has no name of"
    return [f"{named}, crop `{store.get('crop')}` at {meta['size']} px.{counts}", OTHER_TERMS]


def _about_recipe(meta: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    took = f", {card['hours']:g} hours on {card['device'] or 'an unknown device'}" if card.get("hours") else ""
    averaged = "; averaged weights (EMA)" if meta.get("ema") else ""
    said = f"Preset `{meta.get('preset')}` of mien {meta.get('mien')}, {meta.get('nimg', 0):,} images{took}{averaged}."
    if not card["recipe"]:
        return [said]
    return [said + " What differs from mien's defaults:", "\n".join(f"- `{key} = {value}`" for key, value in card["recipe"].items())]


def _about_scores(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [score for score in scores if score["metric"] not in ("control", "leakage", "memorization", "groups")]
    if not shown:
        return ["Not measured: `mien eval` measures it."]
    rows = [[f"`{score['metric']}`", _number(score["value"]), _span(score), _number(score["floor"])] for score in shown]
    protocols = {_protocol(score["protocol"]): None for score in shown}
    note = "Floor: what real images score against others; the best to be asked for. Intervals: 95 %."
    return [_table(["metric", "value", "interval", "floor"], rows), note, "Protocol: " + "; and ".join(protocols) + "."]


def _protocol(protocol: Mapping[str, Any]) -> str:
    """In words, without the hashes and dates, which the .json has."""
    counts = ""
    if protocol.get("n_real") and protocol.get("n_fake"):
        counts = f"{protocol['n_real']:,} real images of the {protocol.get('split')} split against {protocol['n_fake']:,} drawn"
    known = {
        "features": f"features `{protocol.get('features')}`",
        "precision": f"extracted in {protocol.get('precision')}",
        "crop": f"crop `{protocol.get('crop')}`",
        "conditions": f"conditions: {protocol.get('conditions')}",
        "truncation": f"truncation {protocol.get('truncation')}",
        "seed": f"seed {protocol.get('seed')}",
    }
    return ", ".join(filter(None, [counts, *(said for key, said in known.items() if protocol.get(key) is not None)])) or "not stated"


def _about_control(attributes: Sequence[str], control: Mapping[str, Any] | None, leakage: Mapping[str, Any] | None) -> list[str]:
    if not attributes:
        return ["The model has no attributes to ask for."]
    out: list[str] = []
    if control is None:
        out.append("Control was not measured: `mien eval` measures it.")
    else:
        accuracy, ceiling = control["details"].get("accuracy", {}), control["details"].get("ceiling", {})
        rows = [[n, f"{accuracy[n]:.1%}", f"{ceiling[n]:.1%}" if n in ceiling else "–"] for n in attributes if n in accuracy]
        out += [
            f"How often the bundled judge sees what was asked for: {control['value']:.1%} (interval {_span(control)}). Beside it, how "
            "often the judge agrees with the labels of real images, which no generator can be expected to beat:",
            _table(["asked for", "seen", "on real images"], rows),
        ]
    if leakage is None:
        return [*out, "Leakage was not measured."]
    out.append(
        "Leakage (how far other attributes move when one is asked for, beyond what the data explains): "
        f"{_number(leakage['value'])} on average, {_number(leakage['floor'])} for real images."
    )
    if leaks := leakage["details"].get("leaks", []):
        head = ["asked for", "also moves", "by (share of faces)", "interval"]
        rows = [[leak["asked"], leak["judged"], f"{leak['leakage']:+.3f}", f"{leak['low']:+.3f} to {leak['high']:+.3f}"] for leak in leaks]
        out += ["The largest:", _table(head, rows)]
    return out


def _about_memory(memory: Mapping[str, Any] | None) -> str:
    if memory is None:
        return "Whether it copies training images was not measured."
    details = memory["details"]
    return (
        f"Verdict: **{details.get('verdict')}**. Share of drawn faces that lie nearer to a training image than all but 1 % of the "
        f"held-out faces do: {memory['value']:.2%}, where {memory['floor']:.0%} is expected of a model that copies nothing (interval "
        f"{_span(memory)}). Median distance to the nearest of {details.get('n_training', 0):,} training images: "
        f"{_number(details.get('median_distance'))}; of held-out images: {_number(details.get('median_distance_held_out'))}."
    )


def _about_groups(meta: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Shares of the training data, distances and control of each combination of attributes; with many attributes, of each one's values."""
    names, table = list(meta["attributes"]), meta.get("attribute_table") or []
    if not names or not table:
        return ["No attributes, so no groups to tell apart."]
    distance = next((s for s in scores if is_frechet(s["metric"]) and s["details"].get("by_combination")), None)
    parts = distance["details"]["by_combination"] if distance else {}
    labels = combinations = [combination_name(names, row) for row, _ in table]
    if len(names) > 1 and parts and all("," not in name for name in parts):
        labels = list(parts)
    shares = {name: sum(share for each, (_, share) in zip(combinations, table) if set(name.split(",")) <= set(each.split(",")))
              for name in labels}  # fmt: skip
    control = next((s for s in scores if s["metric"] == "control"), None)
    seen = control["details"].get("combinations", {}) if control else {}
    rows = []
    for name, share in sorted(shares.items(), key=lambda item: -item[1])[:16]:
        part, both = parts.get(name) or {}, seen.get(name, {}).get(name)
        said = "–" if both is None else f"{both:.1%}"
        rows.append([name.replace(",", ", "), f"{share:.1%}", _number(part.get("value")), _number(part.get("floor")), said])
    head = ["group", "of the training data", f"`{distance['metric']}`" if distance else "distance", "its floor", "seen as asked"]
    if all(row[-1] == "–" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    notes = ["A smaller group has a higher distance and floor by its size alone: compare each with its own floor."]
    notes.append(f"Rarest in training: {min(shares, key=lambda name: shares[name]).replace(',', ', ')}.")
    above = {name: part["value"] - part["floor"] for name, part in parts.items() if part.get("value") and part.get("floor")}
    if above:
        worst = max(above, key=lambda name: above[name])
        notes.append(f"Farthest above its floor: {worst.replace(',', ', ')} (by {_number(above[worst])}).")
    if told := {name: row[name] for name, row in seen.items() if name in row}:
        worst = min(told, key=lambda name: told[name])
        notes.append(f"Least often seen as asked: {worst.replace(',', ', ')} ({told[worst]:.1%}).")
    return [_table(head, rows), " ".join(notes)]


def _about_shares(groups: Mapping[str, Any] | None) -> list[str]:
    """How often the judge sees groups that the model is not asked for, in its faces and in real ones."""
    if groups is None:
        return ["Whether it draws some people less often than there are was not measured (`mien eval --metrics groups`)."]
    parts = groups["details"]["groups"]
    shown = sorted((name for name in SHOWN_GROUPS if name in parts), key=lambda name: parts[name]["fake"] / max(parts[name]["real"], 1e-9))
    rows = []
    for name in shown:
        part = parts[name]
        times = f"{part['fake'] / part['real']:.2f}" if part["real"] else "–"
        rows.append([name, f"{part['real']:.1%}", f"{part['fake']:.1%}", times, f"{part['low']:+.1%} to {part['high']:+.1%}"])
    said = "What the judge sees in its faces beside real ones under the same conditions; under 1: drawn less often than there is."
    return [said, _table(["group", "of real faces", "of its faces", "times as often", "difference, 95 %"], rows)]


def _limits(meta: Mapping[str, Any], card: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = [f"{meta['size']} px, one crop, frontal faces: it draws nothing else."]
    recall, floor = (scores.get("recall-face") or {}).get("value"), (scores.get("recall-face") or {}).get("floor")
    if recall is not None and floor:
        said.append(f"It draws less variety than there is: recall {_number(recall)}, where real images reach {_number(floor)}.")
    if verdict := (scores.get("diversity") or {}).get("details", {}).get("verdict"):
        said.append(f"Diversity: {verdict}.")
    if card["data"]["kind"] == "celeba":
        said += CELEBA_LIMITS
    if card["data"]["kind"] == "drawn":
        said.append("Toy faces: for trying things out, not a sign of how the method does on photographs.")
    if not scores:
        said.append("Nothing about it was measured.")
    return ["\n".join(f"- {line}" for line in said)]
