"""The repository's own pages in the site: README as its first page, CONTRIBUTING and CHANGELOG beside it.

Links between pages lead where the pages are in the repository; in the site, docs/ is the root, so they are moved.
"""

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
        )
        files.append(File.generated(config, target, content=text))
    for report in sorted(
        (ROOT / "docs").rglob("report.html")
    ):  # beside report.md, which becomes a page of this name
        target = str(report.relative_to(ROOT / "docs").with_name("whole-report.html").as_posix())
        files.append(File.generated(config, target, abs_src_path=str(report)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ to the repository's pages."""
    markdown = markdown.replace("](report.html)", "](whole-report.html)")
    up = page.file.src_uri.count("/")
    for source, target in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./){{{up + 1}}}{source}", "](" + "../" * up + target, markdown)
    return markdown
