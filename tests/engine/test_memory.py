import subprocess
import sys

TRIAL = """
import resource

import torch

from mocokit.engine.memory import keep_freed_memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{call}
for _ in range(12):  # aligned blocks seldom fit where one of the same size was, until some lie side by side
    torch.ones(16_000_000)
before = pages()
for _ in range(3):
    torch.ones(16_000_000)
print(pages() - before)
"""
PAGES = 16_000_000 * 4 // 4096


def _pages_filled_again(call: str, environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", TRIAL.format(call=call)], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert _pages_filled_again("keep_freed_memory()", {}) < PAGES // 10
    assert _pages_filled_again("", {}) > 2 * PAGES, "else there would be nothing to do"


def test_what_the_environment_says_of_memory_counts() -> None:
    assert _pages_filled_again("keep_freed_memory()", {"MALLOC_ARENA_MAX": "4"}) > 2 * PAGES
