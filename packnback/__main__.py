"""``python -m packnback`` is the same program as ``packnback``."""

import sys

from packnback.cli.main import main

sys.exit(main())
