"""The repository's own pages in the site: README as its first page, CONTRIBUTING and CHANGELOG beside it, notebooks.

Links between pages lead where the pages are in the repository; in the site, docs/ is the root, so they are moved.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's pages."""
    for source, target in PAGES.items():
        text = (
            (ROOT / source)
            .read_text(encoding="utf-8")
            .replace("](docs/", "](")
            .replace("](README.md", "](index.md")
            .replace(".ipynb)", ".md)")
        )
        files.append(File.generated(config, target, content=text))
    for report in sorted(
        (ROOT / "docs").rglob("report.html")
    ):  # beside report.md, which becomes a page of this name
        target = str(report.relative_to(ROOT / "docs").with_name("whole-report.html").as_posix())
        files.append(File.generated(config, target, abs_src_path=str(report)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text = as_page(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def as_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and below it what it shows."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(text.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/svg+xml" in data:
                picture = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
                parts.append(f'<img alt="Circuit" src="data:image/svg+xml;base64,{picture}">')
            else:
                parts.append("".join(data["text/html"]) if "text/html" in data else _plain(data["text/plain"]))
    return "\n\n".join(parts) + "\n"


def _plain(lines: list[str]) -> str:
    return "```text\n" + "".join(lines).rstrip() + "\n```"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ to the repository's pages."""
    markdown = markdown.replace("](report.html)", "](whole-report.html)")
    up = page.file.src_uri.count("/")
    for source, target in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./){{{up + 1}}}{source}", "](" + "../" * up + target, markdown)
    return markdown
