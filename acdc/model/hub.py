"""Models of the Hugging Face hub, brought into a local folder, where they are read like any other.

The hub is asked once, and not for longer than a few seconds: what it answers (there is no such model, no such
revision, no leave to read it) is told apart from no answer at all. Without one, what was downloaded before is used.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.store.tensors import reason

PATIENCE = 4.0
"""Seconds that the hub has to answer the first question; the environment's HF_HUB_ETAG_TIMEOUT comes first."""

_TELLING = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")
"""Files of which a downloaded model or tokenizer has at least one."""

_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_SMALL = (".json", ".txt", ".model", ".jinja")


def folder_of(
    name: str, *, revision: str | None = None, weights: bool = True, trust_remote_code: bool = False
) -> Path:
    """The local folder of a model of the hub, downloaded if need be.

    Args:
        name: like "gpt2" or "EleutherAI/pythia-70m".
        revision: branch, tag or commit; None: the main one.
        weights: whether they are needed; a tokenizer has none.
        trust_remote_code: bring the model's own code, too.

    Raises:
        AcdcError: there is no such model or revision, it may not be read, or the hub was not reached and the model
            was not downloaded before.
    """
    import huggingface_hub

    if not _NAME.fullmatch(name):
        raise AcdcError(
            f"cannot load model {name!r}: it is neither a local folder nor a name that the Hugging Face hub can have"
        )
    at = "" if revision is None else f" at revision {revision!r}"
    answer = None if huggingface_hub.constants.HF_HUB_OFFLINE else _ask(name, revision)
    if answer is None:
        for file in _TELLING:
            found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return Path(found).parent
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = f"could not be reached within {_patience():g} s" if not offline else "is not asked (HF_HUB_OFFLINE)"
        raise AcdcError(
            f"cannot load model {name!r}{at}: the Hugging Face hub {why}, and the model was not downloaded before; "
            "check the connection (HF_HUB_ETAG_TIMEOUT=30 waits longer), or give a local folder"
        )
    if isinstance(answer, AcdcError):
        raise answer
    files = [file.rfilename for file in answer.siblings or ()]
    try:
        # The revision by its name, so that it is found under that name again without the hub.
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_wanted(files, weights, trust_remote_code)
        )
    except Exception as error:  # a connection that breaks, a full disk, a digest that differs
        raise AcdcError(f"cannot download model {name!r}{at} from the hub: {reason(error)}") from error
    return Path(folder)


def _ask(name: str, revision: str | None) -> Any:
    """What the hub knows of a model, or an error that it answered, or None without an answer."""
    import huggingface_hub
    from huggingface_hub import errors

    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(huggingface_hub.model_info(name, revision=revision, timeout=_patience()))
        except errors.GatedRepoError:
            answers.append(
                AcdcError(
                    f"cannot load model {name!r}: the hub gives it only to those who have asked for it at "
                    f"https://huggingface.co/{name}, and are logged in (hf auth login)"
                )
            )
        except errors.RepositoryNotFoundError:
            answers.append(
                AcdcError(
                    f"cannot load model {name!r}: there is no such folder, and the Hugging Face hub has no such model "
                    "(or a private one: hf auth login)"
                )
            )
        except errors.RevisionNotFoundError:
            answers.append(AcdcError(f"cannot load model {name!r}: the hub's model has no revision {revision!r}"))
        except Exception:  # no connection, no name server, a proxy's page, an error of the hub: no answer
            answers.append(None)

    # A thread, because a name server that does not answer heeds no time limit of ours.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_patience())
    return answers[0] if answers else None


def _patience() -> float:
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return PATIENCE


def _wanted(files: list[str], weights: bool, trust_remote_code: bool) -> list[str]:
    """Of a model's files: settings and tokenizer, and its weights in the first of the ways that are read."""
    from acdc.model.folder import WEIGHTS

    top = [file for file in files if "/" not in file]
    wanted = [file for file in top if file.endswith(_SMALL) or (trust_remote_code and file.endswith(".py"))]
    kind = next((file for file in WEIGHTS if file in top), None) if weights else None
    if kind is not None and kind.endswith(".json"):
        stem, ending = kind.removesuffix(".index.json").rsplit(".", 1)
        wanted += [file for file in top if file.startswith(f"{stem}-") and file.endswith(f".{ending}")]
    elif kind is not None:
        wanted.append(kind)
    if weights:
        wanted += [file for file in top if file == "adapter_model.safetensors"]
    return wanted
