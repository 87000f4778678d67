"""Errors that a user can fix: one class per family, each with a documented exit code.

An error says in one line what is wrong, where, and how to fix it.
"""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_COMMANDS = ("pip ", "sdpo ")  # a fix that is a command keeps its case


class SdpoError(Exception):
    """An error that the user can fix: what is wrong, where, and the fix."""

    exit_code = EXIT_BUG

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(self.line())

    def line(self) -> str:
        """Return the one line that a user reads: `<what> (<where>). <Fix>.`"""
        head = f"{self.what} ({self.where})" if self.where else self.what
        if not self.fix:
            return _ended(head)
        fix = self.fix if self.fix.startswith(_COMMANDS) else self.fix[:1].upper() + self.fix[1:]
        return f"{_ended(head)} {_ended(fix)}"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence.rstrip('.')}."


class ConfigError(SdpoError, ValueError):
    """The configuration, a flag or a model name is wrong."""

    exit_code = 2


class DataError(SdpoError, ValueError):
    """A row or a file of the task's data is wrong."""

    exit_code = 3


class SandboxError(SdpoError, RuntimeError):
    """No sandbox is available, so nothing that a model wrote is executed."""

    exit_code = 4


class StorageError(SdpoError, OSError):
    """A file could not be written, or a file on disk is damaged."""

    exit_code = 5


class DivergedError(SdpoError, ArithmeticError):
    """Training produced non-finite numbers too many times in a row; the last good state is saved."""

    exit_code = 6


class RankLostError(SdpoError, ConnectionError):
    """Another rank of a distributed run exited; the last complete step is saved."""

    exit_code = 7

    def __init__(self, who: str, how: str, *, ended: bool = False) -> None:
        self.ended = ended  # without an error, as at the end of a run
        fix = "start the same command again, with as many ranks as there are: it goes on from the saved state"
        super().__init__(f"{who} was lost: {how}", fix=fix)


class EngineLostError(SdpoError, ConnectionError):
    """The process that samples rollouts ended; the last complete step is saved."""

    exit_code = 7

    def __init__(self, who: str, how: str) -> None:
        super().__init__(f"{who} was lost: {how}", fix="start the same command again: it goes on from the saved state")


class CrashedError(SdpoError, RuntimeError):
    """The process of this run ended twice at the same place without an error; its last checkpoint is good."""

    exit_code = 8


class SelfTestError(SdpoError, RuntimeError):
    """A check of `sdpo doctor --self-test` failed: this machine computes something wrong, or a part does not run."""

    exit_code = 9
