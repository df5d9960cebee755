"""The real coding agents: not part of the usual tests, because npm installs 1.4 GB for them. `make test-harnesses`.

LONGSHOT_HARNESSES names the home in which they are, or are to be, installed.
"""

import os

WANTED = "LONGSHOT_HARNESSES"

collect_ignore_glob = [] if os.environ.get(WANTED) else ["test_*.py"]
