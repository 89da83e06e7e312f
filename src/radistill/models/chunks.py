"""Chunk length of state-space layers, fitted to the device that runs them."""

from transformers import PreTrainedModel

CPU_CHUNK = 64


def fit_chunks(network: PreTrainedModel) -> None:
    """Let Mamba-2 layers scan in short chunks on a CPU.

    The scan is the same function whatever its chunk length; its cost in transformers' torch path grows with it. On two
    CPU cores a block trains about twice as fast with 64 as with the usual 256. Only the running modules change: the
    config, and with it what is saved, keeps the length that GPU kernels like.
    """
    if network.device.type != "cpu":
        return
    for module in network.modules():
        chunk = getattr(module, "chunk_size", None)
        if hasattr(module, "A_log") and isinstance(chunk, int):
            module.__dict__["chunk_size"] = min(chunk, CPU_CHUNK)
