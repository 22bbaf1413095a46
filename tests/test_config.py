"""Recipes: layers, provenance, and one clear line for each mistake."""

import pytest

from mien import config
from mien.errors import UserError


@pytest.mark.parametrize(
    ("text", "count"),
    [("64", 64), ("300k", 300_000), ("2M", 2_000_000), ("4.1M", 4_100_000), ("1.001k", 1001), ("12_800", 12_800), (" 2m ", 2_000_000),
     (7, 7)],
)
def test_counts(text, count):
    assert config.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "two", "1.5", "0.0001k", "nan", "inf", "1e400", "1e30"])
def test_what_is_no_count(text):
    with pytest.raises(UserError, match="is not a count"):
        config.parse_count(text)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr_g=1", "Did you mean optimizer.lr_g"),
        ("optimizer.lrg=1", "Did you mean optimizer.lr_g"),
        ("discriminator.dropout=0.5", "Did you mean model.discriminator.dropout"),
        ("optimizer.lr_g", "section.key=value"),
        ("optimizer.lr_g=-1", "greater than 0"),
        ("optimizer.lr_g=nan", "optimizer.lr_g"),
        ("optimizer.beta1=1.5", "optimizer.beta1"),
        ("train.batch=0", "train.batch"),
        ("train.batch=x", "train.batch"),
        ("train.micro_batch=7", "multiple of train.micro_batch"),
        ("train.precision=fp16", "train.precision"),
        ("model.family=stylegan", "model.family"),
        ("augment.p=0.3", "name the operations"),
        ("balance.mode=sometimes", "balance.mode"),
        ("optimizer.beta1=1", "optimizer.beta1"),
        ("model.discriminator.dropout=1", "less than 1"),
        ("schedule.step_kimg=0.0001", "schedule.step_kimg"),
        ("model.generator=3", "unknown key model.generator"),
        ("data.balance=even", "say none, uniform, or give a table"),
        ('data.balance={"Male" = 2.0}', "is not a combination"),
        ('data.balance={"Male=2" = 2.0}', "is not a combination"),
        ('data.balance={"Male=1,Male=0" = 2.0}', "names Male twice"),
        ('data.balance={"Male=1" = -1.0}', "write a number of 0 or more"),
        ('data.balance={"Male=1" = "much"}', "write a number of 0 or more"),
        ("data.balance={}", "empty"),
        ("schedule.noise_final=0.1", "set model.discriminator.input_noise"),
        ("regularizer.consistency.real=10", "train.separate_batches=true"),
        ("regularizer.consistency.ops=[]", "regularizer.consistency.ops"),
    ],
)
def test_a_wrong_override_gets_one_line(override, says):
    with pytest.raises(UserError) as caught:
        config.resolve(None, [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_label_settings_belong_to_bce():
    with pytest.raises(UserError, match="belong to loss.name=bce"):
        config.resolve(None, ["loss.name=hinge", "loss.real_label=0.9"])


def test_later_layers_win_and_provenance_tells_which(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "seed1"\n[optimizer]\nlr_g = 1e-3\n')
    recipe = config.resolve(str(tmp_path / "mine.toml"), ["optimizer.lr_d=5e-5"])
    assert recipe.config.optimizer.lr_g == 1e-3 and recipe.config.optimizer.lr_d == 5e-5
    assert recipe.config.balance.g_steps == 2 and recipe.config.loss.real_label == 0.9
    where = recipe.provenance
    assert where["optimizer.lr_d"] == "command line" and where["optimizer.lr_g"].endswith("mine.toml")
    assert (where["balance.g_steps"], where["loss.real_label"], where["optimizer.beta1"]) == ("preset seed1", "preset seed3", "default")


def test_presets_that_go_wrong(tmp_path):
    with pytest.raises(UserError, match="Did you mean seed0"):
        config.resolve("sed0")
    (tmp_path / "loop.toml").write_text(f'base = "{tmp_path}/loop.toml"\n')
    with pytest.raises(UserError, match="names itself"):
        config.resolve(str(tmp_path / "loop.toml"))
    (tmp_path / "typo.toml").write_text("[optimizer]\nlrate = 1\n")
    with pytest.raises(UserError, match="unknown key optimizer.lrate"):
        config.resolve(str(tmp_path / "typo.toml"))
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(UserError, match="not valid TOML"):
        config.resolve(str(tmp_path / "bad.toml"))


def test_none_and_lists():
    resolve = config.resolve
    assert resolve(None, ["data.attributes=Male,Smiling"]).config.data.attributes == ["Male", "Smiling"]
    assert resolve(None, ['data.attributes=["Male"]']).config.data.attributes == ["Male"]
    assert resolve("seed0", ["data.attributes=none"]).config.data.attributes == []
    assert resolve("seed0", ["data.attributes=all"]).config.data.attributes is None
    assert resolve(None, ["train.micro_batch=none"]).config.train.micro_batch is None
    assert resolve(None, ["model.generator.norm=none"]).config.model.generator.norm == "none"


def test_a_config_survives_its_own_json():
    original = config.resolve("seed4").config
    assert config.validate(original.model_dump(mode="json")) == original


def test_differences_are_listed():
    before, after = (config.resolve("seed0", [f"optimizer.lr_g={lr}"]).config.model_dump() for lr in ("1e-4", "2e-4"))
    assert config.differences(before, after) == ["optimizer.lr_g: 0.0001 -> 0.0002"]
    assert config.differences(before, before) == []


def test_a_key_that_a_run_of_before_does_not_know_has_its_default():
    before, after = (config.resolve("seed0").config.model_dump(mode="json") for _ in range(2))
    del before["train"]["keep_snapshots"], before["regularizer"]["dragan"]
    assert config.differences(before, after) == []
    after["train"]["keep_snapshots"] = 3
    assert config.differences(before, after) == ["train.keep_snapshots: 20 -> 3"]


def test_minibatch_layers_see_samples_of_one_kind():
    resolve, layers = config.resolve, "model.discriminator.minibatch_"
    with pytest.raises(UserError, match="train.separate_batches=true"):
        resolve(None, [f"{layers}discrimination=4"])
    with pytest.raises(UserError, match="no multiple of model.discriminator.minibatch_stddev"):
        resolve(None, [f"{layers}stddev=4", "train.batch=60", "train.micro_batch=6"])
    resolve(None, [f"{layers}stddev=4", f"{layers}discrimination=4", "train.batch=6", "train.separate_batches=true"])


def test_a_preset_file_may_name_another_beside_it(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.toml").write_text("[train]\nbatch = 5\n")
    (tmp_path / "sub" / "mine.toml").write_text('base = "base.toml"\n')
    monkeypatch.chdir(tmp_path)
    assert config.resolve("sub/mine.toml").config.train.batch == 5
    (tmp_path / "odd.toml").write_text("base = 3\n")
    with pytest.raises(UserError, match="base names one preset"):
        config.resolve("odd.toml")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe = 1\n")
    with pytest.raises(UserError, match="not valid TOML"):
        config.resolve("odd.toml")


def test_factors_of_balance_from_a_preset_and_from_the_command_line(tmp_path):
    (tmp_path / "mine.toml").write_text('[data.balance]\n"Young = 0" = 3\n"Male=1, Smiling=0" = 2.0\n')
    recipe = config.resolve(str(tmp_path / "mine.toml"))
    assert recipe.config.data.balance == {"Young=0": 3.0, "Male=1,Smiling=0": 2.0}
    assert recipe.provenance["data.balance"].endswith("mine.toml")
    assert config.validate(recipe.config.model_dump(mode="json")) == recipe.config
    said = config.resolve(None, ['data.balance={"Male=1,Smiling=0" = 2.0}']).config
    assert said.data.balance == {"Male=1,Smiling=0": 2.0}
    changed = config.differences(recipe.config.model_dump(), said.model_dump())
    assert len(changed) == 1 and changed[0].startswith("data.balance: {'Young=0': 3.0")
