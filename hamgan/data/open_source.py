"""From what the user names to a `Source`: which kind of folder, archive or published file is it?"""

from pathlib import Path

from hamgan.data import archive, folder
from hamgan.data.labels import read_class_names, read_label_table
from hamgan.data.source import Source

EMOJI = "emoji"
_EMOJI_ZIP = Path(__file__).parent / "emoji" / "fluent-emoji-128.zip"


def open_source(spec: str | Path, *, labels: str | Path | None = None, classes: str | Path | None = None,
                split: str = "train", scratch: Path | None = None) -> Source:  # fmt: skip
    """Open any source of labelled images.

    Args:
        spec: The word `emoji`, or a folder, an archive, a table of labels or a published data set's file.
        labels: A table of (path, label), or ImageNet's validation ground truth.
        classes: A file with one class name per line.
        split: "train" or "test", for published data sets that hold both.
        scratch: Prefix of temporary files (a compressed tar is unpacked there once).

    Raises:
        ValueError: If it is no source, or a damaged one.
        FileNotFoundError: If there is nothing at `spec`.
    """
    if str(spec) == EMOJI:
        path = _EMOJI_ZIP
    else:
        path = Path(spec).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no source at {path}: a folder, an archive, a table of labels, or the word 'emoji'"
        )
    names = read_class_names(Path(classes)) if classes is not None else None
    if path.is_dir():
        if labels is not None:
            return folder.labelled_files(path, read_label_table(Path(labels), names))
        return folder.class_folders(path)
    listing = archive.list_zip(path)
    return archive.arrange(path, listing)
