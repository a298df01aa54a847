"""Mutates training files and sources at random and opens or builds them, as `fuzz_files` does with other files.

Run: python tests/data/fuzz_data.py training|foreign|zip|tar|mat|meta|table|cifar|idx|all [COUNT] [SEED]
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz_archives import Tar, Zip
from fuzz_case import DataFuzz
from fuzz_files import main
from fuzz_published import Cifar, Idx, Mat, Meta, Table
from fuzz_training import Foreign, Training

KINDS: dict[str, Callable[[Path], DataFuzz]] = {
    "training": Training, "foreign": Foreign, "zip": Zip, "tar": Tar, "mat": Mat,
    "meta": Meta, "table": Table, "cifar": Cifar, "idx": Idx,
}  # fmt: skip


if __name__ == "__main__":
    chosen = list(KINDS) if sys.argv[1] == "all" else [sys.argv[1]]
    sys.exit(sum(main(kind, *map(int, sys.argv[2:]), kinds=KINDS) for kind in chosen) > 0)
