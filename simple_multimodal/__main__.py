"""Run `python -m simple_multimodal VERB`, the same as the console script `simple-multimodal`."""

import sys

from simple_multimodal.cli import main

sys.exit(main())
