"""docs/models.md says which types can be read; a few of them, one a mechanism, and in a slow test all."""

from __future__ import annotations

import pytest
import transformers

from acdc.benchmarks.measuring import decoders
from acdc.benchmarks.measuring.tiny_decoders import causal_types

ONE_A_MECHANISM = (
    "bitnet", "bloom", "cohere2", "deepseek_v3", "falcon", "gemma4_text", "gpt_oss", "gptj", "laguna", "llama4_text",
    "opt", "qwen3_next",
)  # fmt: skip


def test_the_page_is_of_the_installed_version() -> None:
    page = decoders.PAGE.read_text()
    assert f"of transformers {transformers.__version__}," in page
    for kind in causal_types():
        assert f"| `{kind}` |" in page


@pytest.mark.parametrize("kind", ONE_A_MECHANISM)
def test_a_type_is_read_and_right_as_the_page_says(kind: str) -> None:
    verdict = decoders.judge(kind)
    assert verdict.outcome == "read"
    assert f"| `{kind}` | {verdict.says} |" in decoders.PAGE.read_text()


@pytest.mark.parametrize("kind", ["bert", "pegasus", "mamba", "deepseek_v4"])
def test_a_type_is_refused_as_the_page_says(kind: str) -> None:
    verdict = decoders.judge(kind)
    assert verdict.outcome == "refused"
    assert f"| `{kind}` | {verdict.says} |" in decoders.PAGE.read_text()


@pytest.mark.slow
def test_every_type() -> None:
    found = list(decoders.verdicts(causal_types()))
    assert [verdict for verdict in found if verdict.outcome == "wrong"] == []
    assert sum(verdict.outcome == "read" for verdict in found) >= 110
    assert decoders.page(found) == decoders.PAGE.read_text()
