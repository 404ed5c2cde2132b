"""Weight files are listed without reading them, and read to the same values as their own libraries read."""

from __future__ import annotations

import argparse
import json
import shlex
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchjepa.hub.pickles import conversion, conversion_of_legacy
from torchjepa.hub.reading import open_tensors, refuse_non_finite, refuse_wrong_dtypes

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by dotted path, the obvious way."""
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {
            key: leaf for k, v in items for key, leaf in flat(v, f"{name}.{k}" if name else str(k)).items()
        }
    return {name: tree}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
    )


def agrees(path: Path, expected: dict[str, Any]) -> None:
    opened = open_tensors(path)
    tensors = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
    assert set(opened.names) == set(tensors)
    assert dict(opened.other) == {name: value for name, value in expected.items() if name not in tensors}
    for name, value in tensors.items():
        assert opened.shape(name) == tuple(value.shape)
        assert opened.dtype(name) == value.dtype
        for copy in (False, True):
            assert torch.equal(opened.read(name, copy=copy).double(), value.double())
    assert opened.num_bytes == sum(value.numel() * value.element_size() for value in tensors.values())


@pytest.mark.parametrize("path", sorted(OFFICIAL.glob("*.pt*")), ids=lambda path: path.name)
def test_official_checkpoints_are_read_as_torch_reads_them(path: Path) -> None:
    agrees(path, flat(torch.load(path, weights_only=True)))
    assert open_tensors(path).format == "pickle"


@pytest.mark.parametrize("path", sorted(OFFICIAL.glob("*.safetensors")), ids=lambda path: path.name)
def test_safetensors_are_read_as_their_library_reads_them(path: Path) -> None:
    agrees(path, load_file(path))
    assert open_tensors(path).format == "safetensors"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ijepa.pth.tar", ["encoder", "predictor", "target_encoder"]),
        ("vjepa2_ac.pt", ["encoder", "predictor"]),
        ("vjepa2_probe.pt", ["classifiers.0"]),
        ("ijepa_io.safetensors", [""]),
    ],
)
def test_parts_are_the_top_level_groups(name: str, parts: list[str]) -> None:
    opened = open_tensors(OFFICIAL / name)
    assert sorted(opened.parts()) == parts
    assert sorted(full for names in opened.parts().values() for full in names) == sorted(opened.names)
    assert all(full.startswith(part) for part, names in opened.parts().items() for full in names)


@given(
    dtype=st.sampled_from(
        [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
    ),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    pad=st.integers(0, 7),
)
def test_any_shapes_dtypes_and_alignment(
    tmp_path_factory: Any, dtype: torch.dtype, shapes: Any, pad: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    tensors = {f"t{i}": (torch.rand(shape) * 8 - 4).to(dtype) for i, shape in enumerate(shapes)}
    torch.save({"model": tensors, "step": pad}, folder / "x.pt")
    agrees(folder / "x.pt", {**flat({"model": tensors}), "step": pad})
    save_file(tensors, folder / "x.safetensors")
    content = (folder / "x.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]  # the header made longer: the values move to any address
    padded = struct.pack("<Q", length + pad) + content[8 : 8 + length] + b" " * pad + content[8 + length :]
    (folder / "x.safetensors").write_bytes(padded)
    agrees(folder / "x.safetensors", tensors)


def test_views_and_strides_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tree = {"turned": nn.Parameter(base.t()), "rows": base[1:3], "again": base, "every": base[:, ::2]}
    torch.save(tree, tmp_path / "x.pt")
    agrees(tmp_path / "x.pt", {name: value.detach() for name, value in tree.items()})


def test_float8_comes_as_it_is(tmp_path: Path) -> None:
    values = torch.rand(6).to(torch.float8_e4m3fn)
    torch.save({"w": values}, tmp_path / "x.pt")
    save_file({"w": values}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        assert same_bits(open_tensors(tmp_path / name).read("w").view(torch.uint8), values.view(torch.uint8))


def test_plain_values_are_read_without_their_classes(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=0.5, betas=(0.9, 0.99), name="vit")
    numbers = {"loss": np.float64(2.5), "half": np.float16(0.5), "step": np.int64(7), "flag": np.bool_(True)}
    torch.save({"w": torch.ones(2), "args": args, "size": torch.Size([2, 3]), **numbers}, tmp_path / "x.pt")
    other = open_tensors(tmp_path / "x.pt").other
    assert other["args.lr"] == 0.5
    assert other["args.betas.1"] == 0.99
    assert other["args.name"] == "vit"
    assert other["size"] == (2, 3)
    for name, value in numbers.items():
        assert other[name] == value
        assert type(other[name]) in (float, int, bool)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(5)}, tmp_path / "x.pt")
    save_file({"w": torch.ones(5)}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        before = (tmp_path / name).read_bytes()
        open_tensors(tmp_path / name).read("w").add_(1)
        assert (tmp_path / name).read_bytes() == before


def test_a_file_without_checksums_opens(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    agrees(tmp_path / "x.pt", {"w": torch.arange(5.0)})


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell would do, without starting another Python."""
    python, flag, code, *arguments = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {})


def test_the_command_in_the_refusal_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(2, 3))
    torch.save({"model": module, "epoch": 4, "log": Path("x")}, tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match="wants to import"):
        open_tensors(tmp_path / "x.pth.tar")
    run_command(conversion(tmp_path / "x.pth.tar"), monkeypatch)
    expected = {f"model.{name}": value for name, value in module.state_dict().items()}
    agrees(tmp_path / "x.plain.pt", {**expected, "epoch": 4, "log": None})


def test_the_command_for_old_files_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before 1\.6"):
        open_tensors(tmp_path / "x.pt")
    run_command(conversion_of_legacy(tmp_path / "x.pt"), monkeypatch)
    agrees(tmp_path / "x.plain.pt", {"w": torch.arange(3.0)})


def write_pieces(folder: Path, ending: str) -> dict[str, Tensor]:
    tensors = {f"layer.{i}": torch.full((2,), float(i)) for i in range(4)}
    stem = "model" if ending == "safetensors" else "pytorch_model"
    write = save_file if ending == "safetensors" else torch.save
    places = {name: f"{stem}-0000{1 + i // 2}-of-00002.{ending}" for i, name in enumerate(tensors)}
    for piece in set(places.values()):
        write({name: tensors[name] for name in tensors if places[name] == piece}, folder / piece)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": places}))
    return tensors


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_folder_in_pieces(tmp_path: Path, ending: str) -> None:
    agrees(tmp_path, write_pieces(tmp_path, ending))


def test_an_index_that_disagrees_with_its_pieces_is_refused(tmp_path: Path) -> None:
    write_pieces(tmp_path, "safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("layer.3", "layer.9"))
    with pytest.raises(ValueError, match=r"disagree on 2 tensors, 'layer\.3'"):
        open_tensors(tmp_path)
    index.write_text("[1]")
    with pytest.raises(ValueError, match="not an index"):
        open_tensors(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        open_tensors(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"expected one of model\.safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(ValueError, match=r"has no tensor 'norm'; it has 90: encoder\."):
        open_tensors(OFFICIAL / "ijepa.pth.tar").read("norm")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused_by_name(dtype: torch.dtype, value: float) -> None:
    good = {"a": torch.ones(3, 2).to(dtype), "ids": torch.arange(3), "none": torch.empty(0, dtype=dtype)}
    refuse_non_finite(good, "x.pt")
    bad = {f"bad{i}": torch.tensor([1.0, value, -1.0]).to(dtype) for i in range(5)}
    with pytest.raises(
        ValueError, match=r"^x\.pt holds NaN or infinite values in bad0, bad1, bad2 and 2 more"
    ):
        refuse_non_finite({**good, **bad}, "x.pt")


def test_the_largest_weights_of_a_dtype_are_finite() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        refuse_non_finite({"w": torch.full((4,), torch.finfo(dtype).max, dtype=dtype)}, "x.pt")


@pytest.mark.parametrize(
    ("stored", "wanted", "fits"),
    [
        (torch.bfloat16, torch.float32, True),
        (torch.float64, torch.float32, True),
        (torch.int64, torch.float32, False),
        (torch.uint8, torch.float32, False),
        (torch.bool, torch.float32, False),
        (torch.complex64, torch.float32, False),
        (torch.float8_e4m3fn, torch.float32, False),
        (torch.float32, torch.int64, False),
        (torch.int32, torch.int64, True),
        (torch.bool, torch.int64, False),
    ],
)
def test_dtypes_that_would_change_the_meaning_are_refused(
    stored: torch.dtype, wanted: torch.dtype, fits: bool
) -> None:
    tensors, model = {"w": torch.ones(2).to(stored)}, {"w": torch.ones(2).to(wanted)}
    if fits:
        refuse_wrong_dtypes(tensors, model, "x.pt")
    else:
        with pytest.raises(ValueError, match=r"^x\.pt holds tensors of the wrong dtype: w \(torch\."):
            refuse_wrong_dtypes(tensors, model, "x.pt")
