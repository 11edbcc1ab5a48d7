"""What a process asks of its C library has the effect that it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from peer.process import HUGE_PAGES, compute_alone, computing_alone

FAULTS = """
import json, resource
from peer.process import keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        chunks = [bytearray(b"1") * (1 << 20) for _ in range(4)]  # freed before the next
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times

faults(2)
before = faults(20)
keep_freed_memory()
faults(2)
print(json.dumps([before, faults(20)]))
"""


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
def test_a_thread_that_computes_alone_leaves_others_their_helpers() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(torch.get_num_threads).result() == 3
        one.submit(compute_alone).result()
        assert one.submit(torch.get_num_threads).result() == 1
        other.submit(compute_alone).result()  # before its first use of torch
        assert other.submit(torch.get_num_threads).result() == 1
    with ThreadPoolExecutor(1) as third:
        assert third.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
def test_a_thread_computes_alone_for_a_while() -> None:
    with computing_alone():
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == 3


def test_freed_memory_of_chunks_is_used_again() -> None:
    """Each page that the system has to give anew is a fault."""
    command = [sys.executable, "-c", FAULTS]
    before, after = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert before > 512, "glibc would keep it anyway"
    assert after < 16


HUGE = """
import json, resource, sys
from peer.process import keep_freed_memory

if sys.argv[1] == "keeping":
    keep_freed_memory()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_models_are_in_huge_pages_where_the_system_gives_some() -> None:
    """Else to have memory for a model takes thousands of faults, and longer than to fill it."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text(encoding="ascii"):
        pytest.skip("the system gives huge pages to nobody, or to all")
    command = [sys.executable, "-c", HUGE]
    plain = {name: value for name, value in os.environ.items() if name != HUGE_PAGES}
    alone, keeping = (
        int(subprocess.run([*command, word], capture_output=True, check=True, env=plain).stdout)
        for word in ("alone", "keeping")
    )
    assert alone > 7_000
    assert keeping < alone / 4
