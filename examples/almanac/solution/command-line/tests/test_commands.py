import contextlib
import io
import unittest

from almanac import commands


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = commands.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


class CommandsTest(unittest.TestCase):
    def test_without_arguments_every_command_is_listed(self):
        code, out, _ = run()
        self.assertEqual(code, 0)
        for name in commands.COMMANDS:
            self.assertIn(name, out)

    def test_a_mistyped_command_gets_a_suggestion(self):
        code, out, err = run("mooon")
        self.assertEqual((code, out), (2, ""))
        self.assertIn("did you mean moon?", err)

    def test_a_date_that_is_none_is_one_line(self):
        code, _, err = run("moon", "2026-02-30")
        self.assertEqual((code, err), (2, "almanac: 2026-02-30 is not a date of the calendar\n"))
