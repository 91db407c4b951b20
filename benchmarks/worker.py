"""A process that computes rows for another one: `python -m acdc.benchmarks.worker FOLDER THREADS`.

Each line that comes in is a trial in JSON, and one line goes out for each: its row. The process ends when its input
does, in the middle of a row too: then nobody waits for it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main(folder: str, threads: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the driver, which ends its processes
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()

    import torch

    from acdc.benchmarks.runner import Runner
    from acdc.errors import WriteError

    torch.set_num_threads(int(threads))
    runner = Runner(Path(folder))

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"ready": True})
    while True:
        try:
            answer({"row": dataclasses.asdict(runner.compute(_trial(asked.get())))})
        except WriteError as error:
            answer({"cannot_write": str(error)})


def _trial(line: str) -> Any:
    from acdc.benchmarks.suites import Case
    from acdc.benchmarks.trials import Trial

    fields = json.loads(line)
    return Trial(**fields | {"case": Case(**fields["case"])})


def _listen(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
