"""`python -m kdopt`."""

import sys

from kdopt.cli import main

sys.exit(main())
