import pytest
import torch

from mien.explore.anomaly import Calibration, calibrate, redraw
from mien.explore.encoder import EncoderRecipe, train_encoder
from mien.explore.latents import latents
from mien.explore.sample import attribute_rows, render
from mien.metrics.judge import load_judge


def test_planted_anomalies_rank_above_faces_of_the_model(tiny_generator):
    judge, torch_seed = load_judge(), torch.Generator().manual_seed(0)
    encoder = train_encoder(tiny_generator, recipe=EncoderRecipe(steps=150, width=16))
    faces = render(tiny_generator, latents(range(152), 8), attribute_rows(tiny_generator, {}, 152, 0))
    held_out, normal, strange = faces[:128], faces[128:140], faces[140:].clone()
    strange[:6] = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch_seed)
    strange[6:, :, 8:24, 8:24] = 0
    known = calibrate(redraw(tiny_generator, encoder, judge.net, held_out, steps=5))
    again = redraw(tiny_generator, encoder, judge.net, torch.cat([normal, strange]), steps=5)
    scores = known.scores(again)
    wins = (scores[12:, None] > scores[None, :12]).float().mean()
    assert wins > 0.9
    percentiles = known.percentiles(scores)
    assert percentiles.min() >= 0 and percentiles.max() <= 100 and percentiles[:12].mean() < percentiles[12:].mean()
    alone = redraw(tiny_generator, encoder, judge.net, normal[:1], steps=5)
    assert known.scores(alone)[0].item() == pytest.approx(scores[0].item(), abs=0.02)  # neighbours do not matter
    assert torch.equal(Calibration(**known.tensors()).scores(again), scores)
    with pytest.raises(ValueError, match="64 faces"):
        calibrate(redraw(tiny_generator, encoder, judge.net, held_out[:10], steps=0))
