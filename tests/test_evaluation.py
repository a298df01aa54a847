"""`hamgan eval` and `hamgan stats` from end to end, on real weights and few images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hamgan import snapshot
from hamgan.cli import main
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.subset import hold_out
from hamgan.evaluation import chosen_labels
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.training.config import DataConfig, TrainConfig
from hamgan.training.loop import train


@pytest.fixture
def shot(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "s.safetensors"
    G = Generator(tiny_generator_config).eval()
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=("class0", "class1", "class2")))
    return path


def test_a_snapshot_is_measured_against_its_training_file(
    shot: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shot.parent / "card"
    command = ["eval", str(shot), "--data", str(data_file), "--num-images", "20", "--out", str(out)]
    assert main(command) == 0
    table = capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert "fd20_efficientnet_lite0" in table and "s.safetensors" in json.dumps(card)
    assert Image.open(out / "card.png").size[0] > 500
    assert not (out / "partial").exists()
    # Samples written by `sample` and measured as an archive give the same distance: the same images were seen.
    named = [*command[:-1], str(shot.parent / "named"), "--extractor", "efficientnet_lite0"]
    assert main(named) == 0
    again = json.loads((shot.parent / "named" / "card.json").read_text())
    assert again["numbers"] == card["numbers"]
    npz = shot.parent / "samples.npz"
    assert main(["sample", str(shot), "--seeds", "0-19", "--classes", "0", "--out", str(npz)]) == 0
    with np.load(npz) as file:
        assert file["arr_0"].shape == (20, 32, 32, 3)
    assert main(["eval", "--npz", str(npz), "--data", str(data_file), "--out", str(shot.parent / "npz")]) == 0
    assert json.loads((shot.parent / "npz" / "card.json").read_text()) != card


def numbers_of(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "card.json").read_text())["numbers"]


def test_a_runs_held_out_images_say_what_new_images_are_like(
    data_file: Path,
    tmp_path: Path,
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
) -> None:
    config = TrainConfig(
        duration="1 step",
        batch_size=4,
        device="cpu",
        data=DataConfig(path=str(data_file), hold_out=4),
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
    )
    run = train(config, preset="p", root=tmp_path)
    assert main(["eval", str(run), "--num-images", "12", "--out", str(tmp_path / "card")]) == 0
    card = numbers_of(tmp_path / "card")
    assert "(held-out)" in str(card["near_copies12_efficientnet_lite0"]["note"])
    unseen = hold_out(TrainingFile(data_file), 4, config.seed)[1].indices.tolist()
    pairs = json.loads((tmp_path / "card" / "card.json").read_text())["closest"]
    assert pairs and not {pair[1] for pair in pairs} & set(unseen)


def test_validation_statistics_with_a_training_file_tell_repeated_images(
    shot: Path, data_file: Path, tmp_path: Path
) -> None:
    """The validation images are those that training never showed; without the training file nothing can be told."""
    images = tmp_path / "val"
    images.mkdir()
    rng = np.random.default_rng(1)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{index}.png")
    reference = tmp_path / "val.npz"
    build = [
        "stats",
        "build",
        str(images),
        str(reference),
        "--extractor",
        "efficientnet_lite0",
        "--split",
        "validation",
    ]
    assert main(build) == 0
    command = [
        "eval",
        str(shot),
        "--reference",
        str(reference),
        "--extractor",
        "efficientnet_lite0",
        "--num-images",
        "12",
    ]
    assert main([*command, "--out", str(tmp_path / "without")]) == 0
    assert "near_copies12_efficientnet_lite0" not in numbers_of(tmp_path / "without")
    assert main([*command, "--data", str(data_file), "--out", str(tmp_path / "with")]) == 0
    assert "(held-out)" in str(numbers_of(tmp_path / "with")["near_copies12_efficientnet_lite0"]["note"])


def test_classes_of_generated_images() -> None:
    assert chosen_labels(7, "uniform", 3, None).tolist() == [0, 1, 2, 0, 1, 2, 0]
    data = np.array([0] * 6 + [2] * 3)
    drawn = chosen_labels(18, "data", 3, data)
    assert np.bincount(drawn, minlength=3).tolist() == [12, 0, 6]
    assert np.array_equal(drawn, chosen_labels(18, "data", 3, data))


def test_stored_statistics_are_built_inspected_and_checked(
    data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.npz"
    build = ["stats", "build", str(data_file), str(out), "--extractor", "efficientnet_lite0", "--split", "train"]
    assert main(build) == 0
    assert main(["stats", "inspect", str(out)]) == 0
    assert main(["stats", "check", str(out), "--resolution", "32"]) == 0
    text = capsys.readouterr().out
    assert "efficientnet_lite0" in text and "train" in text


def test_statistics_of_parts_join_to_those_of_the_whole(data_file: Path, tmp_path: Path) -> None:
    source, whole = data_file.parent / "source", tmp_path / "whole.npz"
    options = ["--extractor", "efficientnet_lite0"]
    assert main(["stats", "build", str(data_file), str(whole), *options]) == 0
    parts = []
    for part in (1, 2):
        file, parts_npz = tmp_path / f"{part}.h5", tmp_path / f"{part}.npz"
        assert main(["data", "build", str(source), str(file), "--resolution", "32", "--shard", f"{part}/2"]) == 0
        assert main(["stats", "build", str(file), str(parts_npz), "--dataset", "noise", *options]) == 0
        parts.append(str(parts_npz))
    assert main(["stats", "merge", *parts, "--out", str(tmp_path / "joined.npz")]) == 0
    with np.load(whole) as one, np.load(tmp_path / "joined.npz") as two:
        assert int(one["n"]) == int(two["n"]) == 18
        assert np.allclose(one["mu"], two["mu"], rtol=1e-9) and np.allclose(one["sigma"], two["sigma"], atol=1e-9)


def test_statistics_of_another_data_set_are_refused_unless_named(
    shot: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["stats", "build", str(data_file), str(tmp_path / "x.npz"), "--extractor", "efficientnet_lite0"]
    assert main(build) == 0
    other = tmp_path / "other.h5"
    source = str(data_file.parent / "source")
    assert main(["data", "build", source, str(other), "--resolution", "32", "--shard", "1/2"]) == 0
    command = ["eval", str(shot), "--reference", str(tmp_path / "x.npz"), "--num-images", "20"]
    command += ["--out", str(tmp_path / "card")]
    for more, message in [
        (["--data", str(other)], f"statistics of '{data_file.stem}', but training was on {other}; if they are meant"),
        (["--dataset", "toys"], f"dataset = '{data_file.stem}', expected 'toys'"),
    ]:
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error and str(tmp_path / "x.npz") in error
    assert main([*command, "--data", str(other), "--dataset", data_file.stem]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "exactly one of"),
        (["eval", "{shot}", "--images", "x"], "exactly one of"),
        (["eval", "{shot}"], "nothing to compare with"),
        (["eval", "{shot}", "--data", "{data}", "--protocol", "fidd"], "--protocol is 'fidd'; allowed are"),
        (["eval", "{shot}", "--data", "{data}", "--extractor", "vgg"], "vgg"),
        (["eval", "{shot}", "--data", "{data}", "--extractor", "inception", "--input", "tf9"], "tf9"),
        (["eval", "{shot}", "--data", "{data}", "--extractor", "clip"], "needs a local weight file"),
        (["eval", "{shot}", "--data", "absent.h5"], "absent.h5"),
        (["eval", "{shot}", "--reference", "absent.npz"], "absent.npz"),
        (["eval", "--images", "absent", "--data", "{data}"], "absent"),
        (["eval", "{shot}", "--data", "{data}", "--num-images", "1"], "1"),
        (["stats", "inspect", "absent.npz"], "absent.npz"),
        (
            ["stats", "build", "{data}", "{folder}/x.npz", "--extractor", "efficientnet_lite0", "--resolution", "16"],
            "--resolution is 16",
        ),
        (["stats", "build", "{data}", "{folder}/x.npz", "--extractor", "vgg"], "vgg"),
        (["stats", "build", "{data}", "{folder}/x.npz", "--extractor", "inception", "--weights", "no.pth"], "no.pth"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    shot: Path, data_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([part.format(shot=shot, data=data_file, folder=shot.parent) for part in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hamgan: error: ") and message in error
