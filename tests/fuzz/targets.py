"""What fuzzers feed: readers of bytes from outside, each as a function of one input.

A target says whether the reader took the input, and raises if it does anything but take it or
refuse it as it says it would.
`SEEDS` are sound inputs to begin from. Two drivers use them: `test_fuzz.py` in `make test`, and
`atheris_driver.py` in `make fuzz`.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import bridges, coordination, files, payloads

TARGETS: dict[str, Callable[[bytes], bool]] = {
    "messages": payloads.messages,
    "exchanges": payloads.exchanges,
    "lattice": payloads.lattice,
    "readers": payloads.readers,
    "downloads": payloads.downloads,
    "config": files.config,
    "checkpoints": files.checkpoints,
    "bpdus": bridges.bpdus,
    "views": coordination.views,
    "answers": coordination.answers,
    "requests": coordination.requests,
}

SEEDS: dict[str, list[bytes]] = {
    "messages": list(payloads.message_seeds()),
    "exchanges": list(payloads.exchange_seeds()),
    "lattice": list(payloads.lattice_seeds()),
    "readers": list(payloads.reader_seeds()),
    "downloads": list(payloads.download_seeds()),
    "config": list(files.config_seeds()),
    "checkpoints": list(files.checkpoint_seeds()),
    "bpdus": list(bridges.bpdu_seeds()),
    "views": list(coordination.view_seeds()),
    "answers": list(coordination.answer_seeds()),
    "requests": list(coordination.request_seeds()),
}

WORDS: dict[str, list[str]] = {"config": list(files.config_words())}
