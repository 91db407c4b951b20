"""The description on an index page: README with links and pictures that lead to the repository.

The repository's address is one line of pyproject.toml, `[tool.acdc] repository`. As long as it is empty, links stay as
they are; everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def repository(pyproject: str) -> str:
    """The address in pyproject.toml; "" if there is none yet."""
    found = re.search(r'^\[tool\.acdc\]\n(?:.*\n)*?repository = "([^"]*)"', pyproject, re.MULTILINE)
    return found[1].rstrip("/") if found else ""


def absolute(text: str, address: str) -> str:
    """README whose relative links lead to files of the repository, and its pictures to their content."""
    if not address:
        return text

    def link(match: re.Match[str]) -> str:
        picture, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        return f"{picture}({address}/{'raw' if picture.startswith('!') else 'blob'}/main/{target})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", link, text)


if __name__ == "__main__":
    from setuptools import setup

    address = repository((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    urls = {"Repository": address, "Changelog": f"{address}/blob/main/CHANGELOG.md", "Issues": f"{address}/issues"}
    setup(
        long_description=absolute((HERE / "README.md").read_text(encoding="utf-8"), address),
        long_description_content_type="text/markdown",
        project_urls=urls if address else {},
    )
