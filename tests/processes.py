"""Work in processes of its own, which a test can kill: started quickly, from a warm server."""

import multiprocessing
import os
import socket
import sys

from sobook.training.loop import fit

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["sobook.training", "tests.processes"])


def start(config, *, rank: int = 0, processes: int = 1, port: int = 0, at_step=None):
    """Start `fit(config)` as process `rank` of `processes`; returns it with a queue for its end.

    Args:
        at_step: (rank, step, signal) that this process sends itself there.
    """
    queue = _CONTEXT.SimpleQueue()
    process = _CONTEXT.Process(
        target=_train,
        args=(config, rank, processes, port, at_step, queue),
        daemon=False,
    )
    process.start()
    return process, queue


def start_preparing(name, root, card=None, **options):
    """Start `datasets.prepare`; `card` stands in for the manifest's entry."""
    process = _CONTEXT.Process(target=_prepare, args=(name, root, card, options), daemon=False)
    process.start()
    return process


def killed_at(process, seconds: float) -> bool:
    """SIGKILL the process after that time; False where it had ended well before."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return True
    assert process.exitcode == 0
    return False


def run_alone(config) -> int:
    """`fit` in one process; returns its exit code."""
    process, _ = start(config)
    process.join()
    return process.exitcode


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_together(config, processes: int, timeout: float = 120, **options):
    """`fit` over gloo on this machine; returns (exit code, message) of each process."""
    port = free_port()
    started = [
        start(config, rank=rank, processes=processes, port=port, **options)
        for rank in range(processes)
    ]
    ends = []
    for process, queue in started:
        process.join(timeout)
        hung = process.is_alive()
        if hung:
            process.kill()
        ends.append(("hung" if hung else process.exitcode, None if queue.empty() else queue.get()))
    return ends


def _train(config, rank, processes, port, at_step, queue) -> None:
    import torch

    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "none",  # as torchrun sets it
        }
    if at_step is not None:
        _do_at_step(rank, *at_step)
    try:
        run = fit(config, progress=False)
        assert run.retrieval  # every process can read what the main one has written
    except (RuntimeError, ValueError) as error:
        queue.put(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _prepare(name, root, card, options) -> None:
    from sobook.data import benchmarks, image_sets

    if card is not None:
        benchmarks.cards()[name] = card
    image_sets.prepare(name, root, progress=False, **options)


def _do_at_step(rank: int, at_rank: int, at_step: int, signal: int) -> None:
    """Let one process send itself a signal when it comes to a step."""
    from sobook.training.trainer import Trainer

    original = Trainer.step

    def step(trainer, number, *batch):
        if rank == at_rank and number == at_step:
            os.kill(os.getpid(), signal)
        return original(trainer, number, *batch)

    Trainer.step = step
