"""A run: exact resume after any kill, signals, what does not fit, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from labelled_files import with_folders
from PIL import Image

from hamgan import checkpoint
from hamgan.config import dump_toml
from hamgan.segmentation.config import TrainConfig, load_config
from hamgan.segmentation.load import public_state_dict
from hamgan.segmentation.model import Logits, SegmentationConfig, Segmentor
from hamgan.segmentation.open_data import open_data
from hamgan.segmentation.optimizer import OptimizerConfig
from hamgan.segmentation.run import build_run, loss_of, restore
from hamgan.segmentation.testing import EvaluationPlan, evaluate
from hamgan.segmentation.trained import open_trained
from hamgan.segmentation.training import train

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def assert_same(a: object, b: object, where: str = "") -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), where
    else:
        assert a == b, where


def rows(run: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [(row["step"], row[key]) for row in lines if key in row]


def command(preset: Path, root: Path) -> list[str]:
    return [sys.executable, "-m", "hamgan", "segmentation", "train", str(preset), "--root", str(root)]


def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(tiny_run: TrainConfig, tmp_path: Path) -> None:
    whole = train(tiny_run, preset="whole", root=tmp_path)
    again = train(tiny_run, preset="again", root=tmp_path)
    (again / "checkpoint-00000006.pt").unlink()  # as if killed after step 3's checkpoint, with later rows logged
    resumed = train(tiny_run, preset="again", root=tmp_path)
    assert resumed == again == tmp_path / "00001-again"
    expected, got = (checkpoint.load(run / "checkpoint-00000006.pt") for run in (whole, resumed))
    assert expected["step"] == 6
    assert_same(expected, got)
    for key in ("loss", "miou"):
        assert rows(whole, key) == rows(resumed, key)
    assert [step for step, _ in rows(resumed, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in rows(resumed, "miou")] == [3, 6]
    pictures = [(run / "predictions" / "00000006.png").read_bytes() for run in (whole, resumed)]
    assert pictures[0] == pictures[1]


def test_a_run_killed_before_its_first_checkpoint_begins_again_without_double_rows(
    tiny_run: TrainConfig, tmp_path: Path
) -> None:
    run = train(replace(tiny_run, steps=3), preset="p", root=tmp_path)
    expected = rows(run, "loss")
    for file in run.glob("checkpoint-*.pt"):
        file.unlink()
    assert train(replace(tiny_run, steps=3), preset="p", root=tmp_path) == run
    assert rows(run, "loss") == expected and [step for step, _ in rows(run, "miou")] == [3]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_but_time(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny_run, steps=8, log=replace(tiny_run.log, checkpoint_every=1, test_every=0))
    preset = tmp_path / "killed.toml"
    preset.write_text(dump_toml(config))
    process = subprocess.Popen(
        command(preset, tmp_path),
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums are rounded by their number
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "00000-killed"
    deadline = time.monotonic() + 120
    while len(list(run.glob("checkpoint-*.pt"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run / "checkpoint-00000008.pt").is_file()
    assert train(config, preset="killed", root=tmp_path) == run
    whole = train(config, preset="whole", root=tmp_path)
    assert_same(checkpoint.load(whole / "checkpoint-00000008.pt"), checkpoint.load(run / "checkpoint-00000008.pt"))
    assert rows(whole, "loss") == rows(run, "loss")


def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny_run, steps=100_000, log=replace(tiny_run.log, test_every=0, checkpoint_every=100_000))
    config = replace(config, data=replace(config.data, num_workers=1))  # workers leave signals to the one that trains
    preset = tmp_path / "long.toml"
    preset.write_text(dump_toml(config))
    process = subprocess.Popen(
        command(preset, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    run = tmp_path / "00000-long"
    deadline = time.monotonic() + 120
    while not (run / "stats.jsonl").is_file():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in out
    (saved,) = run.glob("checkpoint-*.pt")
    assert checkpoint.load(saved)["step"] == len(rows(run, "loss"))


def test_a_killed_last_test_is_made_up_for(
    tiny_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_run, preset="p", root=tmp_path)
    expected = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(expected.splitlines(keepends=True)[0])
    capsys.readouterr()
    assert train(tiny_run, preset="p", root=tmp_path) == run
    assert (run / "metrics.jsonl").read_text() == expected
    assert "finished at step 6" in capsys.readouterr().out


def test_the_loss_counts_ignored_pixels_in_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    main, auxiliary = torch.randn(2, 2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :2] = 255
    loss, statistics = loss_of(Logits(main, auxiliary), labels, 0.4)

    def sum_by_hand(logits: torch.Tensor) -> torch.Tensor:
        picked = F.log_softmax(logits, 1).gather(1, labels.clamp_max(2)[:, None])[:, 0]
        return -picked[labels != 255].sum()

    assert loss.item() == pytest.approx((sum_by_hand(main) + 0.4 * sum_by_hand(auxiliary)).item() / 40, rel=1e-6)
    right = (main.argmax(1) == labels)[labels != 255].float().mean()
    assert statistics["pixel_accuracy"].item() == pytest.approx(right.item())


def test_sgd_with_an_auxiliary_head_learns_folders(tiny_run: TrainConfig, folders: Path, tmp_path: Path) -> None:
    config = with_folders(tiny_run, folders)
    model = SegmentationConfig(
        num_classes=3, backbone="resnet101", backbone_dims=(16, 16, 32, 32), backbone_depths=(1, 1, 1, 1),
        stem_channels=(4, 4, 8), head="ham_net_plus", squeeze_channels=32, channels=32, rank=4, auxiliary=True,
        auxiliary_channels=32,
    )  # fmt: skip
    recipe = OptimizerConfig(kind="sgd", lr=0.01, weight_decay=5e-4, decay="all", power=0.9, min_lr=1e-4, warmup=0)
    config = replace(config, model=model, optimizer=recipe, steps=3, log=replace(config.log, test_every=0))
    run = train(config, preset="p", root=tmp_path)
    assert all(value > 0.5 for _, value in rows(run, "auxiliary_loss")) and len(rows(run, "auxiliary_loss")) == 3
    assert rows(run, "lr")[0][1] == 0.01
    trained = open_trained(run)
    assert trained.class_names == ("sky", "ground", "thing") and trained.step == 3
    assert Image.open(run / "predictions" / "00000003.png").size[1] > 300


def test_training_starts_from_given_weights(tiny_run: TrainConfig, tmp_path: Path) -> None:
    first = train(replace(tiny_run, steps=1), preset="first", root=tmp_path)
    still = replace(tiny_run.optimizer, lr=1e-12, min_lr=0.0, weight_decay=0.0)
    second = replace(tiny_run, steps=1, optimizer=still, seed=1)
    source = checkpoint.load(first / "checkpoint-00000001.pt")["model"]
    network = Segmentor(tiny_run.model)
    network.load_state_dict(source)
    torch.save({"meta": {}, "state_dict": public_state_dict(network)}, tmp_path / "public.pth")
    names = dict(network.named_parameters())
    for name, weights in {"run": first, "public": tmp_path / "public.pth"}.items():
        run = train(replace(second, weights=str(weights)), preset=name, root=tmp_path)
        copied = checkpoint.load(run / "checkpoint-00000001.pt")["model"]
        assert all(torch.allclose(copied[key], source[key], atol=1e-6) for key in names)
    other = replace(second, weights=str(first), model=replace(second.model, channels=64))
    with pytest.raises(
        ValueError, match=r"is of another network: head\.align\.conv\.weight is \(32, 32, 1, 1\), here \(64"
    ):
        train(other, preset="other", root=tmp_path)


def test_what_does_not_fit_is_named_and_nothing_is_lost(tiny_run: TrainConfig, folders: Path, tmp_path: Path) -> None:
    run = train(replace(tiny_run, steps=1), preset="p", root=tmp_path)
    before = (run / "checkpoint-00000001.pt").read_bytes()

    def refused(config: TrainConfig, message: str, run_dir: Path | None = run) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            train(config, preset="q", root=tmp_path, run_dir=run_dir)

    refused(replace(tiny_run, steps=1, seed=7), "another configuration: seed: 0 -> 7")
    refused(
        replace(tiny_run, model=replace(tiny_run.model, num_classes=4)), "num_classes is 4; the data has 10 classes"
    )
    refused(replace(tiny_run, batch_size=3), "micro_batch is 2; it must divide the 3 images")
    hot = replace(tiny_run.optimizer, kind="sgd", lr=1e30, warmup=0)
    refused(replace(tiny_run, optimizer=hot, steps=9), "training diverged at step", None)
    assert (run / "checkpoint-00000001.pt").read_bytes() == before
    pairs = with_folders(replace(tiny_run, steps=1), folders)
    with_run = train(pairs, preset="folders", root=tmp_path)
    (folders / "masks" / "val" / "2.png").rename(folders / "masks" / "val" / "3.png")
    (folders / "images" / "val" / "2.jpg").rename(folders / "images" / "val" / "3.jpg")
    refused(pairs, "holds other images than this run began with", with_run)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_checkpoint_that_is_not_a_run_s_state_is_refused(kind: str, tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny_run, steps=1, optimizer=replace(tiny_run.optimizer, kind=kind))
    state = checkpoint.load(train(config, preset="p", root=tmp_path) / "checkpoint-00000001.pt")
    run = build_run(config, torch.device("cpu"), open_data(config.data, "train"), fresh=False)
    restore(run, state)
    assert run.step == 1
    assert_same(state["optimizer"]["state"], run.optimizer.state_dict()["state"])
    key = "exp_avg" if kind == "adamw" else "momentum_buffer"
    moments = state["optimizer"]["state"]

    def refused(message: str, **changed: object) -> None:
        with pytest.raises(ValueError, match=message):
            restore(run, state | changed)

    short = moments[0] | {key: moments[0][key].flatten()[:1]}
    refused(rf"optimizer\[0\]\.{key} is torch.float32 \(1,\)", optimizer={"state": moments | {0: short}})
    refused(r"optimizer\[0\] has not the tensors", optimizer={"state": moments | {0: {}}})
    refused("optimizer has entry '9999' of", optimizer={"state": moments | {9999: moments[0]}})
    refused("the checkpoint's state is damaged", optimizer=3)
    refused("step is -1", step=-1)
    weights = dict(state["model"])
    weights["head.classify.bias"] = torch.zeros(3)
    refused(r"model\.head\.classify\.bias is torch.float32 \(3,\)", model=weights)
    del weights["head.classify.bias"]
    refused("has not the tensors of this network: 'head.classify.bias'", model=weights)


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("segmentation_*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_read_and_builds(preset: Path) -> None:
    config = load_config(preset)
    with torch.device("meta"):
        Segmentor(config.model)
    header = preset.read_text()
    assert all(f"# {word}:" in header for word in ("Command", "Hardware", "Expected"))


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_run: TrainConfig, tmp_path: Path) -> None:
    still = replace(tiny_run.model, dropout=0.0, drop_path=0.0)  # what layers drop follows from the micro-batch's place
    # SGD: a bias before a batch norm has no gradient but rounding, which Adam would scale up.
    recipe = OptimizerConfig(kind="sgd", lr=0.05, warmup=0)
    config = replace(tiny_run, micro_batch=0, model=still, optimizer=recipe)
    preset = tmp_path / "pair.toml"
    preset.write_text(dump_toml(config))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    together = [*launcher, *command(preset, tmp_path / "two")[2:]]
    assert subprocess.run(together, env=environment, timeout=300, check=False).returncode == 0
    run = train(config, preset="pair", root=tmp_path / "one")
    one, two = (checkpoint.load(path / "checkpoint-00000006.pt") for path in (run, tmp_path / "two" / "00000-pair"))
    for name, tensor in one["model"].items():
        assert torch.allclose(tensor, two["model"][name], atol=1e-4), name
    for key in ("loss", "pixel_accuracy", "miou"):
        (steps, ours), (others, theirs) = (
            zip(*rows(path, key), strict=True) for path in (run, tmp_path / "two/00000-pair")
        )
        assert steps == others and list(ours) == pytest.approx(list(theirs), abs=2e-3)


@pytest.mark.slow
def test_two_processes_with_norms_of_their_own_test_the_network_that_is_saved(
    tiny_run: TrainConfig, tmp_path: Path
) -> None:
    model = replace(
        tiny_run.model, cross_replica=False, batch_norm_momentum=1.0
    )  # each process knows its last images only
    config = replace(tiny_run, micro_batch=0, model=model, data=replace(tiny_run.data, num_test=6))
    preset = tmp_path / "apart.toml"
    preset.write_text(dump_toml(config))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *command(preset, tmp_path)[2:]], env=environment, timeout=300, check=True)
    run = tmp_path / "00000-apart"
    trained, data = open_trained(run), open_data(config.data, "test")
    plan = EvaluationPlan(split="test", test=config.test, device="cpu", precision="fp32")
    card = evaluate(trained, data, plan, tmp_path / "card")
    (metrics,) = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["step"] == 6]
    assert round(100 * metrics["miou"], 2) == card["miou"]
    assert round(100 * metrics["test_pixel_accuracy"], 2) == card["pixel_accuracy"]
