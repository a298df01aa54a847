"""Reading: our files and foreign ones, in any order, in any process."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny_images import encode, noise

from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler


def test_reads_in_the_order_asked_with_duplicates(training_file: Path) -> None:
    with TrainingFile(training_file) as file:
        everything = file.read(range(150))
        order = [149, 0, 0, 77, 149]
        np.testing.assert_array_equal(file.read(order), everything[order])
        out = np.zeros((2, 16, 16, 3), np.uint8)
        assert file.read([3, 2], out) is out
        np.testing.assert_array_equal(out, everything[[3, 2]])
        assert file.read([]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("index", [-1, 150, 2**40])
def test_an_index_outside_is_an_error(training_file: Path, index: int) -> None:
    with TrainingFile(training_file) as file, pytest.raises(IndexError, match=r"outside 0\.\.149"):
        file.read([0, index])


def test_no_h5py_call_while_reading(training_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TrainingFile(training_file)
    monkeypatch.setattr(h5py, "File", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    assert file.read([5, 1]).shape == (2, 16, 16, 3)


def _checksum(file: TrainingFile, results: multiprocessing.Queue) -> None:
    results.put((os.getpid(), int(file.read(range(150)).sum())))


def test_survives_fork(training_file: Path) -> None:
    file = TrainingFile(training_file)
    expected = int(file.read(range(150)).sum())
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_checksum, args=(file, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert {value for _, value in answers} == {expected} and len({pid for pid, _ in answers} - {os.getpid()}) == len(
        processes
    )


def test_survives_pickling_into_a_fresh_process(training_file: Path) -> None:
    file = TrainingFile(training_file)
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read(range(150)).sum())"
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(file), capture_output=True, check=True)
    assert int(done.stdout) == file.read(range(150)).sum()


class Images(torch.utils.data.Dataset):
    def __init__(self, file: TrainingFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return self.file.num_images

    def __getitem__(self, index: int) -> np.ndarray:
        return self.file.read([index])[0]


def test_works_in_dataloader_workers(training_file: Path) -> None:
    file = TrainingFile(training_file)
    batches = torch.utils.data.DataLoader(Images(file), batch_size=40, num_workers=2)
    np.testing.assert_array_equal(torch.cat(list(batches)).numpy(), file.read(range(150)))


def test_pickle_is_small_and_reopens(training_file: Path) -> None:
    file = TrainingFile(training_file)
    copy = pickle.loads(pickle.dumps(file))
    assert len(pickle.dumps(file)) < 10_000
    np.testing.assert_array_equal(copy.read([9]), file.read([9]))
    copy.close()
    np.testing.assert_array_equal(copy.read([9]), file.read([9]))


def test_fingerprint_names_the_content(class_folders: Path, tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        build(class_folders, tmp_path / name, resolution=16, workers=1)
        return TrainingFile(tmp_path / name).fingerprint

    first = fingerprint("1.h5")
    assert fingerprint("2.h5") == first
    (class_folders / "cat" / "011.png").write_bytes(encode(noise(123, 16, 16)))
    assert fingerprint("3.h5") != first


def test_the_reader_imports_no_torch_and_no_builder() -> None:
    unwanted = ("torch", "PIL", "tqdm", "hamgan.data.build")
    script = f"import sys, hamgan.data.hdf5; print([m for m in {unwanted} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


# Foreign files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (40, 3, 16, 16), "maxshape": (None, 3, 16, 16)},
        {"chunks": (40, 3, 16, 16), "compression": "lzf"},
        {"chunks": (7, 1, 8, 16)},
        {},
    ],
    ids=["BigGAN-PyTorch", "StudioGAN-compressed", "odd-chunks", "contiguous"],
)
def test_files_of_biggan_pytorch_and_studiogan(tmp_path: Path, options: dict) -> None:
    """Keys imgs (N, 3, H, W) and labels, as their make_hdf5.py writes them; grown as it grows them."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (130, 3, 16, 16), np.uint8), rng.integers(0, 5, 130)
    path = tmp_path / "ILSVRC16.hdf5"
    with h5py.File(path, "w") as file:
        if "maxshape" in options:
            file.create_dataset("imgs", data=images[:50], **options)
            file.create_dataset("labels", data=labels[:50], chunks=(40,), maxshape=(None,), dtype="int64")
            for name, data in (("imgs", images), ("labels", labels)):
                file[name].resize(130, axis=0)
                file[name][50:] = data[50:]
        else:
            file.create_dataset("imgs", data=images, **options)
            file.create_dataset("labels", data=labels)
    with TrainingFile(path) as file:
        assert (file.num_images, file.resolution, file.num_classes) == (130, 16, 5)
        assert file.class_names == ("0", "1", "2", "3", "4") and file.labels.tolist() == labels.tolist()
        order = rng.integers(0, 130, 300)
        np.testing.assert_array_equal(file.read(order), images[order].transpose(0, 2, 3, 1))
        copy = pickle.loads(pickle.dumps(file))
        np.testing.assert_array_equal(copy.read([7]), file.read([7]))


# Sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 2, 7, 100])
def test_each_epoch_is_a_permutation_and_no_two_are_alike(num_images: int) -> None:
    sampler = ShuffledSampler(num_images, seed=3)
    epochs = [sampler.indices(e * num_images, num_images) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(num_images))
    if num_images == 100:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_any_stretch_of_the_stream_can_be_asked_for() -> None:
    stream = ShuffledSampler(10, seed=1).indices(0, 95)
    fresh = ShuffledSampler(10, seed=1)
    rng = np.random.default_rng(0)
    for _ in range(50):
        start, end = sorted(rng.integers(0, 96, 2))
        np.testing.assert_array_equal(fresh.indices(int(start), int(end - start)), stream[start:end])


def test_the_order_is_the_same_for_ever() -> None:
    """Golden values: a checkpoint's position must mean the same images in every version."""
    assert ShuffledSampler(10, seed=7).indices(5, 12).tolist() == [6, 2, 4, 5, 9, 9, 0, 8, 6, 7, 1, 3]


def test_seeds_differ() -> None:
    orders = {tuple(ShuffledSampler(20, seed=s).indices(0, 20)) for s in range(20)}
    assert len(orders) == 20


def test_permutations_are_fair() -> None:
    """Over many epochs each image is as often at each place as at any other (chi-square, 81 degrees of freedom)."""
    sampler, counts = ShuffledSampler(10, seed=5), np.zeros((10, 10))
    epochs = 2000
    for epoch in range(epochs):
        counts[np.arange(10), sampler.indices(epoch * 10, 10)] += 1
    expected = epochs / 10
    assert ((counts - expected) ** 2 / expected).sum() < 140  # p about 5e-5


def test_class_balanced_shows_every_class_equally_often_and_all_images() -> None:
    labels = np.asarray([0] * 90 + [1] * 9 + [2] * 1)
    sampler = ShuffledSampler(100, seed=0, labels=labels, class_balanced=True)
    shown = sampler.indices(0, 3000)
    np.testing.assert_allclose(np.bincount(labels[shown]) / 3000, 1 / 3, atol=0.002)
    assert set(shown.tolist()) == set(range(100))
    ones = np.bincount(shown[labels[shown] == 1], minlength=100)[90:99]
    assert ones.min() > 0.8 * ones.mean()
    np.testing.assert_array_equal(ShuffledSampler(100, 0, labels, class_balanced=True).indices(150, 77), shown[150:227])


@pytest.mark.parametrize(
    "arguments",
    [{"num_images": 0, "seed": 0}, {"num_images": 5, "seed": -1}, {"num_images": 5, "seed": 0, "class_balanced": True}],
)
def test_sampler_arguments_are_checked(arguments: dict) -> None:
    with pytest.raises(ValueError):
        ShuffledSampler(**arguments)


# Loader -------------------------------------------------------------------------------------------------------


def take(loader: BatchLoader, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    with loader:
        return [
            (images.numpy().copy(), labels.numpy().copy()) for images, labels in (next(loader) for _ in range(count))
        ]


def test_batches_are_the_stream_in_order_as_channels_last_views(training_file: Path) -> None:
    file, sampler = TrainingFile(training_file), ShuffledSampler(150, seed=2)
    with BatchLoader(file, sampler, batch_size=32, position=20) as loader:
        for k in range(12):
            images, labels = next(loader)
            indices = sampler.indices(20 + 32 * k, 32)
            assert images.dtype == torch.uint8 and labels.dtype == torch.int64
            assert images.shape == (32, 3, 16, 16) and images.is_contiguous(memory_format=torch.channels_last)
            np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), file.read(indices))
            np.testing.assert_array_equal(labels.numpy(), file.labels[indices])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_each_batch_of_any_world_size(training_file: Path, world_size: int) -> None:
    file = TrainingFile(training_file)
    whole = take(BatchLoader(file, ShuffledSampler(150, 0), batch_size=30), 10)
    parts = [
        take(BatchLoader(file, ShuffledSampler(150, 0), batch_size=30, rank=r, world_size=world_size), 10)
        for r in range(world_size)
    ]
    for k in range(10):
        for part in (0, 1):
            np.testing.assert_array_equal(np.concatenate([rank[k][part] for rank in parts]), whole[k][part])
    shown = np.concatenate([labels for _, labels in whole[:5]])
    assert np.bincount(shown).tolist() == [70, 30, 50], "an epoch shows each image once over all ranks"


@pytest.mark.parametrize("num_prefetch", [1, 2, 8])
def test_prefetching_changes_nothing(training_file: Path, num_prefetch: int) -> None:
    file = TrainingFile(training_file)
    expected = take(BatchLoader(file, ShuffledSampler(150, 0), batch_size=64), 5)
    for ours, theirs in zip(
        take(BatchLoader(file, ShuffledSampler(150, 0), batch_size=64, num_prefetch=num_prefetch), 5), expected
    ):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_a_data_set_smaller_than_a_batch_repeats(training_file: Path) -> None:
    file = TrainingFile(training_file)
    [(images, labels)] = take(BatchLoader(file, ShuffledSampler(150, 0), batch_size=400), 1)
    assert images.shape[0] == 400
    assert (np.bincount(labels) >= [140, 60, 100]).all()


def test_a_position_resumes_the_stream(training_file: Path) -> None:
    file = TrainingFile(training_file)
    through = take(BatchLoader(file, ShuffledSampler(150, 4), batch_size=16), 20)
    resumed = take(BatchLoader(file, ShuffledSampler(150, 4), batch_size=16, position=16 * 13), 7)
    for ours, theirs in zip(resumed, through[13:]):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_batches_already_handed_out_are_not_overwritten(training_file: Path) -> None:
    file = TrainingFile(training_file)
    with BatchLoader(file, ShuffledSampler(150, 0), batch_size=8, num_prefetch=1) as loader:
        first, _ = next(loader)
        before = first.clone()
        for _ in range(20):
            next(loader)
        assert torch.equal(first, before)


def test_close_stops_the_thread_and_may_be_repeated(training_file: Path) -> None:
    loader = BatchLoader(TrainingFile(training_file), ShuffledSampler(150, 0), batch_size=8)
    next(loader)
    loader.close()
    loader.close()
    assert not loader._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_an_error_while_reading_reaches_the_caller(training_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TrainingFile(training_file)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(file, "read", fail)
    with BatchLoader(file, ShuffledSampler(150, 0), batch_size=8) as loader, pytest.raises(OSError, match="on fire"):
        next(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "world_size": 4}, "batch_size 10 is not divisible by world_size 4"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 8, "rank": 2, "world_size": 2}, r"rank 2 is outside 0\.\.1"),
        ({"batch_size": 8, "num_prefetch": 0}, "num_prefetch 0"),
        ({"batch_size": 8, "position": -1}, "position -1"),
    ],
)
def test_loader_arguments_are_checked(training_file: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLoader(TrainingFile(training_file), ShuffledSampler(150, 0), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a GPU")
def test_batches_are_pinned(training_file: Path) -> None:
    with BatchLoader(TrainingFile(training_file), ShuffledSampler(150, 0), batch_size=8, pin_memory=True) as loader:
        images, labels = next(loader)
        assert images.is_pinned() and labels.is_pinned()
        moved = images.to("cuda", non_blocking=True)
        assert moved.is_contiguous(memory_format=torch.channels_last)
