"""`python toy_stack.py HOME`: a real supervisor over toy_definitions, until SIGTERM."""

import os
import sys
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack.supervisor import Supervisor

if __name__ == "__main__":
    Supervisor(
        Home(Path(sys.argv[1])),
        port=0,
        endpoints=(),
        environ={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "LLM_API_KEY": "sk-not-for-children"},
        dotenv="{}",
        say=lambda line: print(line, flush=True),
        definitions="toy_definitions",
    ).run()
