import sys

from almanac.commands import main

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="utf-8")  # the month's marks are not ASCII
sys.exit(main(sys.argv[1:]))
