"""The whole evaluation: the right numbers, the same for any cut of the work, and refused where it must be."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing
from metric_processes import NAMES, SETTINGS, draw, numbers_of, one_of_several, run
from metric_samples import labelled_images, make_tiny_extractor

from hamgan.metrics import (
    PROTOCOLS,
    QUICK,
    ArrayImages,
    Card,
    DrawnImages,
    InceptionScore,
    build_statistics,
    evaluate,
    frechet_distance,
    kernel_distance,
    load_statistics,
    prdc,
    save_statistics,
)
from hamgan.metrics.measure import short_count


@pytest.fixture
def reference(tmp_path, tiny):
    images = ArrayImages(*labelled_images(150, seed=0), class_names=NAMES)
    return build_statistics(images, tiny, tmp_path / "reference.npz", progress=False)


def test_numbers_are_those_of_the_functions(reference, tiny):
    card = run(reference, tiny)
    pixels, labels = draw(np.arange(90))
    answer = tiny(pixels)
    fake, real = answer.pool.numpy(), np.asarray(reference.features().pool)
    assert card["fd90"] == pytest.approx(frechet_distance(fake, real), rel=1e-9)
    assert card["kd90"] == pytest.approx(kernel_distance(fake, real), rel=1e-9)
    score = InceptionScore(90, splits=3)
    score.update(answer.logits)
    assert card["is90_tiny"] == pytest.approx(score.compute().mean, rel=1e-9)
    assert card.numbers["is90_tiny"].uncertainty == pytest.approx(score.compute().std, rel=1e-9)
    chosen = [np.sort(np.random.RandomState(2020).permutation(n)[:60]) for n in (150, 90)]
    expected = prdc(real[chosen[0]], fake[chosen[1]], 5)
    assert card["precision60"] == pytest.approx(expected.precision)
    assert card["coverage60"] == pytest.approx(expected.coverage)
    assert card["class_accuracy90"] > 0.9
    assert card["exact_copies90"] == 0
    assert 0.3 < card["nearer_than_real90"] < 0.7
    assert {row.name for row in card.classes} == set(NAMES)
    assert sum(row.num_images for row in card.classes) == 90
    assert card.depends_on["images"]["class_counts"] == np.bincount(labels).tolist()
    assert card.curve["values"][-1] == pytest.approx(card["fd90"], rel=1e-9)
    assert card.warnings == ["small reference: 150 images; its own sampling error is in every distance"]


def test_source_function_and_iterable_agree(reference, tiny):
    pixels, labels = draw(np.arange(90))
    expected = numbers_of(run(reference, tiny))
    assert numbers_of(run(reference, tiny, ArrayImages(pixels, labels, class_names=NAMES))) == expected
    odd = [(pixels[:37], labels[:37]), (pixels[37:], labels[37:])]
    assert numbers_of(run(reference, tiny, odd)) == expected


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(90, 90), (1, 7), (16, 1000)])
def test_the_cut_of_the_work_does_not_matter(reference, tiny, batch_size, chunk_size):
    other = dataclasses.replace(SETTINGS, batch_size=batch_size, chunk_size=chunk_size)
    expected = numbers_of(run(reference, tiny))
    for name, value in numbers_of(run(reference, tiny, settings=other)).items():
        assert value == pytest.approx(expected[name], rel=1e-9), name


def test_goes_on_after_a_kill(reference, tiny, tmp_path):
    asked = []

    def failing(numbers):
        if numbers[-1] >= 50:
            raise KeyboardInterrupt
        return draw(numbers)

    def counting(numbers):
        asked.extend(numbers.tolist())
        return draw(numbers)

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(reference, tiny, DrawnImages(failing, 90, fingerprint="g"), work_dir=work)
    (work / "chunk-000001.npz").write_bytes(b"damaged meanwhile")
    resumed = run(reference, tiny, DrawnImages(counting, 90, fingerprint="g"), work_dir=work)
    assert asked == [0, *range(16, 32), *range(48, 90)]  # the first looks at the images' size
    assert numbers_of(resumed) == numbers_of(run(reference, tiny))
    with pytest.raises(ValueError, match="partial results with images = 'g', now 'h'"):
        run(reference, tiny, DrawnImages(draw, 90, fingerprint="h"), work_dir=work)
    with pytest.raises(ValueError, match="needs a fingerprint"):
        run(reference, tiny, draw, work_dir=tmp_path / "other")


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_same_card(reference, tiny, tmp_path, world_size):
    port = 29500 + os.getpid() % 400 + world_size
    torch.multiprocessing.spawn(
        one_of_several, (world_size, port, reference.path, tmp_path), nprocs=world_size, join=True
    )
    expected = numbers_of(run(reference, tiny))
    for rank in range(world_size):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, rel=1e-9)
    again = load_statistics(tmp_path / "again.npz")
    np.testing.assert_allclose(again.moments.mu, reference.moments.mu, rtol=1e-12)
    np.testing.assert_allclose(again.moments.sigma, reference.moments.sigma, rtol=1e-9)
    np.testing.assert_array_equal(again.features().pool, reference.features().pool)
    assert again.meta.class_counts == reference.meta.class_counts


def test_card_is_written_and_read_back(reference, tiny, tmp_path):
    card = run(reference, tiny, provenance={"truncation": 0.5, "ema": True, "snapshot": "s.safetensors"})
    json_path, text_path = card.write(tmp_path / "card")
    again = Card.from_json(json.loads(json_path.read_text()))
    assert again == Card.from_json(card.to_json())
    assert again.numbers == card.numbers
    text = text_path.read_text()
    assert text == card.table()
    for fragment in ("fd90_tiny", "provenance.truncation", "reference.fingerprint", "extractor.weights_sha256"):
        assert fragment in text
    with pytest.raises(KeyError, match="the card has"):
        card["fid50k"]


def test_named_protocols_are_enforced(reference, tiny, tmp_path):
    biggan, hamgan = PROTOCOLS["biggan"], PROTOCOLS["hamgan"]
    assert (biggan.settings.num_images, biggan.settings.inception_splits, biggan.reference_split) == (
        50_000,
        10,
        "train",
    )
    assert (hamgan.settings.num_images, hamgan.settings.inception_splits) == (50_176, 1)
    with pytest.raises(ValueError, match="protocol biggan: extractor = 'tiny', expected 'inception'"):
        run(reference, tiny, protocol=biggan)
    inception = make_tiny_extractor(name="inception", protocol="tf1")
    images = ArrayImages(*labelled_images(60, seed=0))
    built = build_statistics(images, inception, tmp_path / "train.npz", progress=False)
    train = dataclasses.replace(built, meta=dataclasses.replace(built.meta, split="train"))
    short = dataclasses.replace(hamgan.settings, num_images=90)
    with pytest.raises(ValueError, match="num_images = 90, expected 50176"):
        run(train, inception, protocol=hamgan, settings=short)
    with pytest.raises(ValueError, match="split of the reference = 'train', expected 'validation'"):
        run(train, inception, protocol=hamgan, settings=hamgan.settings)
    # The protocol itself, with its counts made small.
    small = dataclasses.replace(biggan, settings=dataclasses.replace(SETTINGS, num_images=50))
    card = evaluate(draw, train, inception, protocol=small, progress=False)
    assert {"fid50_inception", "kid50_inception", "is50_inception"} <= card.numbers.keys()
    assert card.depends_on["protocol"]["name"] == "biggan"


def test_quick_settings_leave_out_what_is_slow(reference, tiny):
    card = run(reference, tiny, settings=dataclasses.replace(QUICK, num_images=40))
    names = {name.split("_tiny")[0] for name in card.numbers}
    assert names == {"fd40", "is40", "kd40", "precision40", "recall40", "density40", "coverage40"}
    assert card.curve == {}


def test_warnings(reference, tiny, tmp_path):
    few = run(reference, tiny, settings=dataclasses.replace(SETTINGS, num_images=11))
    assert any("11 images for 12 features" in warning for warning in few.warnings)
    same = torch.full((30, 3, 8, 8), 77, dtype=torch.uint8)
    constant = run(reference, tiny, [(same, np.zeros(30, int))], dataclasses.replace(SETTINGS, num_images=30))
    assert any("29 of 30 images repeat" in warning for warning in constant.warnings)
    assert any("would have to change class" in warning for warning in constant.warnings)
    assert constant["recall30"] == 0
    np.savez(tmp_path / "bare.npz", mu=reference.moments.mu, sigma=reference.moments.sigma)
    bare = run(load_statistics(tmp_path / "bare.npz"), tiny)
    assert any("unverified reference" in warning for warning in bare.warnings)
    assert any("keeps no features" in warning for warning in bare.warnings)
    assert bare["fd90"] == pytest.approx(run(reference, tiny)["fd90"], rel=1e-9)
    indefinite = reference.moments.sigma.copy()
    indefinite[0, 1] = indefinite[1, 0] = 3 * np.sqrt(indefinite[0, 0] * indefinite[1, 1])
    np.savez(tmp_path / "bare.npz", mu=reference.moments.mu, sigma=indefinite)
    with pytest.raises(ValueError, match=r"bare\.npz: sigma is no covariance, its smallest eigenvalue is -"):
        run(load_statistics(tmp_path / "bare.npz"), tiny)


def test_memorisation_sees_copies_of_the_training_images(reference, tiny, tmp_path):
    copies, labels = labelled_images(150, seed=0)
    card = run(reference, tiny, [(copies[20:80], labels[20:80])], dataclasses.replace(SETTINGS, num_images=60))
    assert card["exact_copies60"] == 60
    assert card["near_copies60"] == 1
    assert all(j == i + 20 and distance == 0 for i, j, distance in card.closest)
    validation = dataclasses.replace(reference, meta=dataclasses.replace(reference.meta, split="validation"))
    silent = run(validation, tiny)
    assert not any(name.startswith("near_copies") for name in silent.numbers)
    heldout = reference.features()
    assert run(validation, tiny, train=heldout, heldout=heldout)["exact_copies90"] == 0


def test_bad_input(reference, tiny, tmp_path):
    with pytest.raises(ValueError, match="extractor = 'tiny', but the images are seen with 'other'"):
        run(reference, make_tiny_extractor(name="other"))
    wrong = ArrayImages(*labelled_images(90, seed=0), class_names=("x", "q", "z"))
    with pytest.raises(ValueError, match="class 1 is 'y', but the images call it 'q'"):
        run(reference, tiny, wrong)
    fewer = ArrayImages(*labelled_images(90, seed=0, num_classes=2), class_names=NAMES[:2])
    with pytest.raises(ValueError, match="3 classes, but the images have 2"):
        run(reference, tiny, fewer)
    one = dataclasses.replace(SETTINGS, num_images=2)
    with pytest.raises(ValueError, match=r"splits = 3: expected 1\.\.2"):
        run(reference, tiny, settings=one)
    with pytest.raises(ValueError, match="num_images = 1: expected at least 2"):
        dataclasses.replace(SETTINGS, num_images=1)
    with pytest.raises(ValueError, match="frechet_points = 1"):
        dataclasses.replace(SETTINGS, frechet_points=1)

    class NotANumber(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.full((len(x), 12), torch.nan), torch.zeros(len(x), 5)

    tiny.network = NotANumber()
    with pytest.raises(ValueError, match="tiny: the features contain NaN"):
        run(reference, tiny)


def test_statistics_saved_by_hand_serve_as_reference(reference, tiny, tmp_path):
    save_statistics(tmp_path / "copy.npz", reference.moments, reference.meta)
    assert run(load_statistics(tmp_path / "copy.npz"), tiny)["fd90"] == run(reference, tiny)["fd90"]


@pytest.mark.parametrize(("count", "text"), [(50_000, "50k"), (50_176, "50176"), (999, "999"), (1_000, "1k")])
def test_names_state_the_count(count, text):
    assert short_count(count) == text
