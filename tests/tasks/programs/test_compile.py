"""Compiling a RASP program: only with the compiler, and never a model that disagrees with its program."""

import importlib.util

import pytest

import acdc.tasks.programs.compile as compiling
from acdc.errors import AcdcError
from acdc.model.programs.rasp import rasp_modules
from acdc.model.programs.tracr import TracrModel, builtin_names
from acdc.tasks.programs import tracr
from acdc.tasks.programs.truth import TrueCircuits

HAS_TRACR = importlib.util.find_spec("tracr") is not None


@pytest.mark.skipif(HAS_TRACR, reason="the compiler is installed")
def test_without_the_compiler_the_error_says_what_to_install() -> None:
    with pytest.raises(AcdcError, match=r"pip install 'acdc-circuits\[tracr\]'"):
        compiling.compile(object(), name="mine", vocabulary="ab", max_length=3)


def test_a_compiled_program_registers_its_task(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tracr, "_COMPILED", {})
    model = TracrModel.load("tracr-hist")
    renamed = TracrModel(model.program.model_copy(update={"name": "mine"}))
    renamed.load_state_dict(model.state_dict())
    truth = tracr.truth_of("tracr-hist")
    tracr.register(renamed, truth)
    assert tracr.TracrTask.of("mine").truth() == truth.get("resample", "varied")
    assert tracr.task_names() == [*builtin_names(), "mine"]
    compiling.CompiledProgram(renamed, truth).save(tmp_path)
    assert tracr.TracrTask.of(str(tmp_path)).truth() == truth.get("resample", "varied")
    with pytest.raises(AcdcError, match="is the name of a built-in model"):
        tracr.register(model, truth)


@pytest.mark.tracr
class TestWithTheCompiler:
    """Needs the extra `[tracr]`."""

    @pytest.fixture
    def rasp(self):
        pytest.importorskip("tracr")
        return rasp_modules()[0]

    def test_own_program(self, rasp, monkeypatch) -> None:
        monkeypatch.setattr(tracr, "_COMPILED", {})
        program = rasp.Map(lambda token: token.upper(), rasp.tokens).named("upper")
        compiled = compiling.compile(program, name="upper", vocabulary="ab", max_length=3, description="capitals")
        assert compiled.model.run(["abb"]) == [["A", "B", "B"]]
        assert compiled.model.program.source == "upper_2 = Map(tokens)\nreturn upper_2\n"
        assert isinstance(compiled.truth, TrueCircuits)
        assert tracr.truth_of("upper").get("resample", "varied").edges == ("input.token->m0", "m0->logits")
        assert tracr.describe("upper") == "capitals"

    def test_refused_programs(self, rasp) -> None:
        def compiled(program, **options):
            options = {"name": "mine", "vocabulary": "ab", "max_length": 3, **options}
            return compiling.compile_model(program, **options)

        same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
        earlier = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LT)
        with pytest.raises(AcdcError, match="expected a RASP program"):
            compiled("reverse")
        with pytest.raises(AcdcError, match="mine does not compile"):
            compiled(rasp.numerical(rasp.tokens))
        with pytest.raises(AcdcError, match="mine does not compile: KeyError"):
            compiled(rasp.Map(lambda token: {"a": 1}[token], rasp.tokens))
        with pytest.raises(AcdcError, match=r"expected a vocabulary of strings or numbers .* got \[\] and 3"):
            compiled(rasp.tokens, vocabulary=[])
        for program, reason in (
            (rasp.tokens, "it computes nothing"),
            (rasp.indices + 1, "it does not read rasp.tokens"),
            (rasp.SequenceMap(lambda a, b: a, rasp.tokens, rasp.length), r"use lib.make_length\(\)"),
            (rasp.SequenceMap(lambda a, b: a, rasp.tokens, rasp.Full(1)), "constant sequence"),
            (rasp.Aggregate(same & earlier, rasp.tokens), "pair the keys with a SequenceMap"),
        ):
            with pytest.raises(AcdcError, match=f"mine does not compile: .*{reason}"):
                compiled(program)
        with pytest.raises(AcdcError, match="is not compiled exactly: on"):  # steps too soft for such a width
            compiled(rasp.SelectorWidth(same), vocabulary="a", max_length=20)
