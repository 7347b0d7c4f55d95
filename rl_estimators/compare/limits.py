"""How much is read before a file is taken for a mistake, or for an attack."""

from dataclasses import dataclass

from rl_estimators.errors import InputError

__all__ = [
    "MOST_CELLS",
    "MOST_CHARACTERS",
    "MOST_LINE",
    "MOST_RESPONSES",
    "MOST_TOKENS",
    "Budget",
    "check_size",
]

MOST_LINE = 32 * 2**20  # bytes; a response of 32,768 tokens takes about 150 KB
MOST_RESPONSES = 2_000_000  # of all files together
MOST_CHARACTERS = 4 * 2**30  # of all texts of a file together: a few bytes of Parquet may stand for many
MOST_TOKENS = 2**18  # in one response
MOST_CELLS = 2**26  # responses times tokens of a batch: 256 MiB for each estimator


@dataclass
class Budget:
    """What has been read so far, against the limits.

    Attributes:
        responses: How many.
        characters: Of their texts.
        over: A limit is passed: reading on would not help.
    """

    responses: int = 0
    characters: int = 0
    over: bool = False

    def spend(self, source: str, characters: int) -> None:
        """Count one response.

        Raises:
            InputError: there are too many, or their texts are too long together.
        """
        self.responses += 1
        self.characters += characters
        self.over = self.responses > MOST_RESPONSES or self.characters > MOST_CHARACTERS
        if self.responses > MOST_RESPONSES:
            raise InputError(
                f"{source}: more than {MOST_RESPONSES:,} responses; choose some with --steps, or give fewer files"
            )
        if self.characters > MOST_CHARACTERS:
            raise InputError(
                f"{source}: more than {MOST_CHARACTERS:,} characters of text; give fewer files, or split them"
            )


def check_size(source: str, step: int | None, responses: int, tokens: int) -> None:
    """Refuse a batch that would not fit into memory once for each estimator.

    Raises:
        InputError: it names the size and the limit.
    """
    if responses * tokens > MOST_CELLS:
        where = source if step is None else f"{source}, step {step}"
        raise InputError(
            f"{where}: a batch of {responses:,} responses of up to {tokens:,} tokens is more than the "
            f"{MOST_CELLS:,} numbers that each estimator is given room for; split the file into its training steps"
        )
