"""Documents are executed, and what they show is what their code prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from acdc.benchmarks.measuring.documents import different, pictures, run, with_output

DOCS = Path(__file__).parents[3] / "docs"

DOCUMENT = """Text.

```python
x = 2
print("two", x)
```

```text
two 3
```

```python
y = 3
```

```json
{}
```
"""


def test_output_is_written_below_the_code(tmp_path: Path) -> None:
    blocks = run(DOCUMENT, tmp_path)
    assert [(block.shown, block.printed) for block in blocks] == [("two 3\n", "two 2\n"), ("", "")]
    assert with_output(DOCUMENT, blocks) == DOCUMENT.replace("two 3", "two 2")


def test_output_that_is_new_is_added_and_what_is_gone_removed(tmp_path: Path) -> None:
    new = "```python\nprint(1)\n```\n"
    completed = with_output(new, run(new, tmp_path))
    assert completed == "```python\nprint(1)\n```\n\n```text\n1\n```\n"
    silent = completed.replace("print(1)", "pass")
    assert with_output(silent, run(silent, tmp_path)) == "```python\npass\n```\n"


def test_commands_run_in_the_folder(tmp_path: Path) -> None:
    (block,) = run("```sh\nacdc methods   # all of them\n```\n", tmp_path)
    assert "guided" in block.printed
    with pytest.raises(RuntimeError, match="acdc methodz"):
        run("```sh\nacdc methodz\n```\n", tmp_path)


def test_numbers_may_differ_a_little_and_words_may_not() -> None:
    assert different("a +1.00 (3.2)", "a +1.01 (3.25)") == []
    assert different("a +1.00", "a +1.50") == [("+1.00", "+1.50")]
    assert different("a 1", "b 1") == [("a", "b")]
    assert different("a", "a b") != []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["induction.md", "ioi.md", "ioi-tiny-tasks.md", "tiny-tasks.md"])
def test_documents_show_what_their_code_prints(name: str, tmp_path: Path) -> None:
    document = (DOCS / name).read_text(encoding="utf-8")
    blocks = run(document, tmp_path)
    assert len(blocks) >= 3
    for block in blocks:
        assert different(block.shown, block.printed) == [], block.code
    assert all((DOCS / picture).is_file() and (tmp_path / picture).is_file() for picture in pictures(document))
