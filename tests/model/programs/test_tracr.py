"""Every shipped Tracr model computes its program, and its files survive a round trip."""

import numpy as np
import pytest
import torch

from acdc.benchmarks.training.tracr_programs import PROGRAMS
from acdc.errors import AcdcError
from acdc.model.programs.tracr import BUILTIN, TracrModel, builtin_names, read_program
from acdc.tasks.programs.compile import check
from acdc.tasks.programs.inputs import random_inputs


@pytest.fixture(scope="module")
def reverse() -> TracrModel:
    return TracrModel.load("tracr-reverse")


@pytest.mark.parametrize("name", PROGRAMS)
def test_shipped_model_computes_its_program(name: str) -> None:
    program = PROGRAMS[name]
    model = TracrModel.load(program.model_name)
    check(model, program.reference, n=600, seed=7)  # raises with the first input on which they disagree
    assert model.program.tokens == tuple(sorted(program.vocabulary))
    assert model.program.source == program.source


def test_every_program_is_shipped_and_nothing_else() -> None:
    assert builtin_names() == sorted(program.model_name for program in PROGRAMS.values())


def test_check_shows_the_first_disagreement(reverse: TracrModel) -> None:
    with pytest.raises(AcdcError, match=r"not compiled exactly: on \[.*\] the program gives"):
        check(reverse, lambda values: values)


def test_padding_changes_no_output(reverse: TracrModel) -> None:
    inputs = random_inputs(reverse.program, 50, rng=np.random.default_rng(0))
    assert reverse.run(inputs) == [reverse.run([values])[0] for values in inputs]


def test_padding_may_be_on_the_left(reverse: TracrModel) -> None:
    tokens, mask = reverse.encode(["abc"])
    left = torch.cat([torch.ones_like(tokens[:, :2]), tokens], 1)
    left_mask = torch.cat([torch.zeros_like(mask[:, :2]), mask], 1)
    torch.testing.assert_close(reverse(left, attention_mask=left_mask)[:, 2:], reverse(tokens))


def test_padding_components_are_exactly_the_zero_ones() -> None:
    for name in builtin_names():
        model = TracrModel.load(name)
        zero = []
        for index, layer in enumerate(model.layers):
            zero += [f"a{index}.h{h}" for h in range(model.program.n_heads) if not layer.w_o[h].any()]
            zero += [f"m{index}"] * (not layer.mlp[2].weight.any())
        assert set(zero) == set(model.program.padding), name


def test_round_trip(reverse: TracrModel, tmp_path) -> None:
    reverse.save(tmp_path)
    assert read_program(tmp_path) == reverse.program
    again = TracrModel.load(tmp_path)
    assert again.program == reverse.program
    assert again.run(["cab"]) == [["b", "a", "c"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_values_keep_their_type() -> None:
    for name in builtin_names():
        raw = (BUILTIN / name / "config.json").read_bytes()
        program = TracrModel.load(name).program
        assert program == type(program).model_validate_json(program.model_dump_json())
        assert raw.endswith(b"\n")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [(["abcabc"], "takes 1 to 5 tokens, got 6"), ([""], "got 0"), (["abz"], "'z' is not in the vocabulary")],
)
def test_bad_inputs(reverse: TracrModel, inputs: list[str], words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        reverse.encode(inputs)


def test_bad_folders(tmp_path) -> None:
    with pytest.raises(AcdcError, match=r"expected config\.json and model\.safetensors"):
        TracrModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(AcdcError, match="no Tracr model at"):
        TracrModel.load(tmp_path)
    (tmp_path / "config.json").write_bytes((BUILTIN / "tracr-hist" / "config.json").read_bytes())
    with pytest.raises(AcdcError, match="cannot be read"):
        TracrModel.load(tmp_path)
