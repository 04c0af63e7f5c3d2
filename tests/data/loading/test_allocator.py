import subprocess
import sys

TRIAL = """
import resource

import torch

from mocokit.data.loading.allocator import give_back_freed_memory, keep_freed_memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory(torch.device({device!r}))
for _ in range(12):  # aligned blocks seldom fit where one of the same size was, until some lie side by side
    torch.ones(16_000_000)
if {gives_back}:
    give_back_freed_memory()
before = pages()
for _ in range(3):
    torch.ones(16_000_000)
print(pages() - before)
"""
PAGES = 16_000_000 * 4 // 4096


def _pages_filled_again(device: str, environment: dict[str, str], *, gives_back: bool = False) -> int:
    trial = TRIAL.format(device=device, gives_back=gives_back)
    done = subprocess.run([sys.executable, "-c", trial], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert _pages_filled_again("cpu", {}) < PAGES // 10
    assert _pages_filled_again("cuda", {}) > 2 * PAGES, "the allocator of a GPU is torch's"


def test_settings_in_the_environment_take_precedence() -> None:
    assert _pages_filled_again("cpu", {"MALLOC_ARENA_MAX": "4"}) > 2 * PAGES


def test_kept_memory_can_be_given_back() -> None:
    assert PAGES // 2 < _pages_filled_again("cpu", {}, gives_back=True) < 2 * PAGES, "filled again once, then kept"
