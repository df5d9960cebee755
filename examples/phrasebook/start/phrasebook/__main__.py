"""`python3 -m phrasebook LANGUAGE NAME`."""

import importlib
import pkgutil
import sys

import phrasebook


def languages():
    return sorted(found.name for found in pkgutil.iter_modules(phrasebook.__path__) if not found.name.startswith("_"))


def main(arguments):
    if not arguments:
        print("\n".join(languages()))
        return 0
    if arguments[0] not in languages():
        print("phrasebook: no language " + arguments[0], file=sys.stderr)
        return 2
    print(importlib.import_module("phrasebook." + arguments[0]).greet(" ".join(arguments[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
