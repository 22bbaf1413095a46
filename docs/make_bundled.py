"""Puts a model among those that come with the package: `python docs/make_bundled.py RUN NAME`.

Writes src/mien/weights/NAME.safetensors (fp16), NAME.json, the discriminator of the run's newest checkpoint for --from
(NAME.critic.safetensors), and docs/model_cards/NAME.md. RUN may also be a file in RUN/ema (mien ema). Score it first, for the card tells
what metrics.jsonl knows:

    mien eval RUN --data DIR --metrics fd,kid,prdc,control,memorization,latent,groups
    mien eval RUN --data DIR --features inception-768 --weights FILE --metrics fd,kid
"""

from __future__ import annotations

import sys
from pathlib import Path

from mien.apps.export.package import bundle
from mien.explore.load import load_generator

DOCS = Path(__file__).parent

if __name__ == "__main__":
    run, name = sys.argv[1:]
    done = bundle(load_generator(run), name, weights=DOCS.parent / "src" / "mien" / "weights", cards=DOCS / "model_cards")
    largest, mean = done.moved_levels or (0, 0.0)
    print(f"{name}: {done.bytes / 1e6:.1f} MB; fp16 moves a pixel by at most {largest} levels of 255, {mean:.3f} on average")
