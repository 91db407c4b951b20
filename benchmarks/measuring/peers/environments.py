"""One virtual environment a tool, made once and kept in a cache folder."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from acdc.errors import AcdcError

PACKAGE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a tool's environment holds.

    Attributes:
        packages: to install; constraints: versions its requirements leave open and must not.
        script: module of this package that runs in it.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    constraints: tuple[str, ...] = ("torch==2.13.0",)


_WITH_TRANSFORMER_LENS_2 = (
    "torch==2.13.0",
    "transformer-lens==2.18.0",
    "transformers>=4.57,<4.58",
    "numpy>=1.26,<1.27",
    "pyarrow<20",
)
AUTO_CIRCUIT = Environment("auto-circuit", "run_auto_circuit", ("auto-circuit==1.0.1",), _WITH_TRANSFORMER_LENS_2)
TRANSFORMER_LENS = Environment("transformer-lens", "run_transformer_lens", ("transformer-lens==4.3.0",))
# The papers' code is no package of any registry: it is imported from a checkout.
EAP = Environment("eap", "run_eap", ("transformer-lens==2.18.0", "einops", "seaborn"), _WITH_TRANSFORMER_LENS_2)


def default_cache() -> Path:
    """`acdc/peers` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "acdc" / "peers"


def python_of(environment: Environment, cache: Path) -> Path:
    """The environment's interpreter; the environment is made if it is not there.

    Raises:
        AcdcError: an installation failed.
    """
    folder = cache / environment.name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = "\n".join([*environment.packages, "constraints:", *environment.constraints, ""])
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(environment.constraints) + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *environment.packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise AcdcError(f"cannot install {' '.join(environment.packages)} in {folder}: {_last_line(done.stderr)}")
    stamp.write_text(wanted)
    return python


def run(environment: Environment, python: Path, job: Path, *, extra_path: Path | None = None) -> None:
    """Run the environment's script on a job folder.

    Args:
        extra_path: a folder to import from (a checkout).

    Raises:
        AcdcError: the script failed; its log is in the job folder.
    """
    path = [str(PACKAGE.parent)] + ([str(extra_path)] if extra_path is not None else [])
    changes: Mapping[str, str] = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONHASHSEED": "0",  # auto-circuit's ACDC goes through a set
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    command = [str(python), "-W", "ignore", "-m", f"{PACKAGE.name}.{environment.script}", str(job)]
    done = subprocess.run(
        command, cwd=job, env={**os.environ, **changes}, check=False, capture_output=True, text=True
    )
    (job / f"{environment.name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise AcdcError(f"{environment.name} failed: {_last_line(done.stderr)} (all of it in {job})")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
