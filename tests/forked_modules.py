"""What the server process of forked_ranks.py imports once, so that the processes forked from it need not."""

import torchvision

import mocokit.cli
import mocokit.plan.bench
import mocokit.run.export
import mocokit.run.pretrain
import mocokit.run.verify
import tests.forked_ranks
from mocokit.data.pipelines import warm_up

__all__ = ["mocokit", "tests", "torchvision"]

warm_up()  # loads the compiled loops
