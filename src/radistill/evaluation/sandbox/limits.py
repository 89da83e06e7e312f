"""How much a program may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one program may use before it is stopped.

    Attributes:
        cpu_seconds: processor time.
        wall_seconds: time by the clock, which a sleeping program uses too.
        memory_bytes: address space, the interpreter's own 30 MiB included.
        output_bytes: standard output, standard error and the value together, and the size of a file.
        disk_bytes: all files of the working folder together.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 64 * 2**10
    disk_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"sandbox limits: {name} is {value}, but must be above 0")
