"""Weights on the disk: the same numbers, in tensors that are the file and no copy of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import acdc
import families
import problems
from acdc.errors import AcdcError

LAYERS = {"llama": ("model.", "layers"), "gpt2": ("transformer.", "h")}


def _saved(family: str, folder: Path) -> torch.nn.Module:
    module = families.module(family)
    module.save_pretrained(folder)
    return module


def _mapped(folder: Path) -> bool:
    return str(folder.resolve()) in Path("/proc/self/maps").read_text()


def _offloaded_by_transformers(family: str, folder: Path) -> Any:
    """Two layers on the disk, one in memory, as `device_map` says."""
    start, layers = LAYERS[family]
    module = families.module(family)
    tops = {name.removeprefix(start).split(".")[0] for name, _ in module.named_modules() if name.startswith(start)}
    places: dict[str, Any] = {start + name: "cpu" for name in tops - {layers, ""}}
    places |= {"lm_head": "cpu"} | {f"{start}{layers}.{i}": "disk" if i < 2 else "cpu" for i in range(3)}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=folder / "offload", dtype=torch.float32
    )


def _offloaded_whole(family: str, folder: Path) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.disk_offload(
        families.module(family), folder / "offload", execution_device=torch.device("cpu")
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is asked of Linux")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("offloaded", [_offloaded_by_transformers, _offloaded_whole])
def test_what_accelerate_offloaded_gives_the_same_scores(
    family: str, offloaded: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    whole, prompts = acdc.load(_saved(family, tmp_path)), problems.make_prompts()
    module = offloaded(family, tmp_path)
    assert any(parameter.is_meta for parameter in module.parameters())
    model = acdc.load(module)
    assert _mapped(tmp_path)
    ours, theirs = (acdc.score(each, prompts, "eap-ig").values for each in (model, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # products are rounded by where numbers lie


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is asked of Linux")
def test_a_folder_is_read_from_the_disk(tmp_path: Path) -> None:
    _saved("llama", tmp_path)
    model = acdc.load(tmp_path, device="disk")
    assert _mapped(tmp_path)
    assert model.device == torch.device("cpu")
    prompts = problems.make_prompts()
    ours, theirs = (acdc.score(each, prompts, "eap").values for each in (model, acdc.load(tmp_path)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_cannot_stay_on_the_disk_is_refused(tmp_path: Path) -> None:
    _saved("llama", tmp_path)
    with pytest.raises(
        AcdcError, match="in float32, and bfloat16 was asked for: give --dtype float32, or --device cpu"
    ):
        acdc.load(tmp_path, device="disk", dtype="bfloat16")
    with pytest.raises(AcdcError, match="unknown device 'disc'"):
        acdc.load(tmp_path, device="disc")
