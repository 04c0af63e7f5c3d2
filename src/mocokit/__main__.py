"""`python -m mocokit`, for torchrun."""

import sys

from mocokit.cli import main

sys.exit(main())
