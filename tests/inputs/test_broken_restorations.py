"""A restoration that is damaged, or of another checkpoint, is refused by one line."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import fingerprint
from models.restoration import check_belongs, load_restoration, save_restoration
from tests.builders import save_tiny_llama, trained
from tests.inputs import broken
from tests.inputs.broken import DEEP, DIGITS, Spoil
from utils.common.errors import UserError
from utils.common.manifest import MANIFEST


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path]:
    """A pruned checkpoint and a restoration of it."""
    root = tmp_path_factory.mktemp("saved")
    save_tiny_llama(root / "pruned", zeros=0.5)
    save_restoration(root / "restoration", trained(), {"pruned_sha256": fingerprint(root / "pruned")})
    return root / "pruned", root / "restoration"


def test_a_bit_that_turned_in_any_file_is_told(saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "restoration")
    for name in (JSON, TENSORS):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert said(folder, saved[0]) == f"-restoration: {folder} is damaged ({name}); copy it again"
        (folder / name).write_bytes(content)
    load_restoration(folder)


def said(folder: Path, pruned: Path) -> str:
    with pytest.raises(UserError) as found:
        check_belongs(*load_restoration(folder), pruned, "-pruned_model_path")
    assert "\n" not in str(found.value)
    return str(found.value)


JSON, TENSORS = "restoration.json", "restoration.safetensors"


def heads(*pairs: tuple[int, int]) -> Spoil:
    """Other heads, in the tensors and in the json."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / TENSORS)
        save_file({**loaded, "heads": torch.tensor(pairs)}, folder / TENSORS)
        broken.values(JSON, heads=[list(pair) for pair in pairs])(folder)

    return spoil


def state(**changes: torch.Tensor | None) -> Spoil:
    """Other tensors; None takes one out."""

    def spoil(folder: Path) -> None:
        loaded = {**load_file(folder / TENSORS), **changes}
        save_file({name: tensor for name, tensor in loaded.items() if tensor is not None}, folder / TENSORS)

    return spoil


RESTORATIONS: dict[str, tuple[Spoil, str]] = {
    "no json": (broken.without(JSON), "is no restoration folder"),
    "json null": (broken.file(JSON, "null"), "names no format"),
    "json as a list": (broken.file(JSON, "[]"), "names no format"),
    "json nested": (broken.file(JSON, DEEP), "nested too deeply"),
    "json with digits": (broken.file(JSON, f'{{"format": {DIGITS}}}'), "thousands of digits"),
    "json with half a surrogate": (broken.values(JSON, method="\ud800"), "surrogate"),
    "no format": (broken.file(JSON, "{}"), "names no format"),
    "another format": (broken.values(JSON, format=[2]), "has format [2]"),
    "no tensors": (broken.without(TENSORS), "is no restoration folder"),
    "tensors empty": (broken.file(TENSORS, b""), "is no restoration folder"),
    "tensors cut": (
        lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9]),
        "is no restoration folder",
    ),
    "unknown method": (broken.values(JSON, method="magic"), "unknown method magic"),
    "method a list": (broken.values(JSON, method=[]), "is damaged"),
    "options a list": (broken.values(JSON, options=[1]), "is damaged"),
    "unknown option": (broken.values(JSON, options={"apply": 1}), "is damaged"),
    "option of another type": (broken.values(JSON, options={"train_norms": "no"}), "option train_norms is 'no'"),
    "option that no flag takes": (broken.values(JSON, options={"apply_to": "nowhere"}), "is damaged"),
    "json of other heads": (broken.values(JSON, heads=[[0, 0]]), "its heads are not those of"),
    "json without heads": (broken.values(JSON, heads=None), "its heads are not those of"),
    "a head beyond": (heads((0, 1), (2, 0), (2, 6)), "not ascending pairs"),
    "a layer beyond": (heads((0, 1), (2, 0), (3, 5)), "not ascending pairs"),
    "a head below": (heads((0, -1), (2, 0), (2, 5)), "not ascending pairs"),
    "a head twice": (heads((0, 1), (2, 0), (2, 0)), "not ascending pairs"),
    "heads out of order": (heads((2, 0), (0, 1), (2, 5)), "not ascending pairs"),
    "fewer heads": (heads((0, 1), (2, 0)), "has the shape"),
    "NaN": (state(component=torch.full((3, 8), float("nan"))), "component holds something else than finite"),
    "half precision": (state(component=torch.ones(3, 8).half()), "component holds something else than finite"),
    "another shape": (state(magnitudes=torch.ones(3, 9)), "magnitudes has the shape (3, 9), not (3, 8)"),
    "a tensor missing": (state(basis=None), "it holds"),
    "a tensor too much": (state(more=torch.ones(1)), "it holds"),
}


@pytest.mark.parametrize("case", RESTORATIONS)
def test_a_broken_restoration_is_told(saved, tmp_path, case):
    spoil, says = RESTORATIONS[case]
    folder = shutil.copytree(saved[1], tmp_path / "restoration")
    (folder / MANIFEST).unlink()  # as in an earlier version's, so that it is the content that tells
    spoil(folder)
    told = said(folder, saved[0])
    assert told.startswith("-restoration: ") and says in told


def test_a_checkpoint_that_a_restoration_does_not_know_is_told(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "pruned")
    broken.raw(lambda data: data[:-1] + bytes([data[-1] ^ 1]))(folder)
    assert said(saved[1], folder).startswith("-pruned_model_path: ")
