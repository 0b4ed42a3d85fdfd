"""How a run ends before its time: on SIGTERM or Ctrl-C, with an error, when nothing is learned any more, and early
stopping that survives a resume.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerCallback
from transformers.utils import logging

from simple_multimodal.data.batch_reader import die_with
from simple_multimodal.errors import InputError
from simple_multimodal.models.distributed import decide_in_first_process, leave_process_group
from simple_multimodal.output_folder import writing_into
from simple_multimodal.training.arguments import MultimodalTrainingArguments

EXIT_REQUEUE = 75
"""Exit code of a run that SIGTERM or Ctrl-C ended with a checkpoint: `EX_TEMPFAIL` of sysexits.h, "try again". 143,
which a shell reports of a process that SIGTERM killed, would not tell whether anything was saved.
"""

EXIT_INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended at once, as a shell reports it."""

PATIENCE_SECONDS = 2.0
"""From when on a further Ctrl-C ends a run at once. Launchers pass the first one on, so that it arrives twice."""


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """End `train.py` with one line where the user or a file is to blame; with `--log_level debug` it raises."""
    try:
        yield
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from its newest checkpoint, if any.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (InputError, OSError) as error:  # of the user, or of a file system
        if logging.get_verbosity() <= logging.DEBUG:
            raise
        sys.exit(f"train.py: error: {one_line(error)}")


@contextlib.contextmanager
def running(args: MultimodalTrainingArguments) -> Iterator[None]:
    """
    Run `train.py` in the context: as the only run that writes into the output folder, and with errors of the user in
    one line. At the end the process leaves its process group.

    Args:
        args ([`MultimodalTrainingArguments`]): Arguments of the run.
    """
    with ending_in_one_line(), writing_into(args.output_dir, command="train.py", decide=decide_in_first_process):
        yield
        leave_process_group()


def one_line(error: Exception) -> str:
    """The message of an error on one line; of one that a loader process raised, without that process's traceback."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


class HostCopy:
    """Values of a device on their way to the host. Reading them later waits for what the device was given up to here,
    not for what it was given since.

    Args:
        values (`torch.Tensor`): on any device.
    """

    def __init__(self, values: torch.Tensor):
        self.values = values.to("cpu", non_blocking=True)
        self.event = None if values.device.type == "cpu" else torch.Event(values.device)
        if self.event is not None:
            self.event.record()

    def read(self) -> list[float]:
        """The values."""
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


class RunControl(TrainerCallback):
    """
    Ends a run in order: after SIGTERM or Ctrl-C (SIGINT) to any process with a checkpoint, in all processes after the
    same step; after too many steps in a row whose gradient was NaN or infinite with an error. Such steps change no
    weights.

    All of it is decided from numbers that are summed with the step's counts anyway and read one step later, so that
    the device never waits.

    Args:
        max_nan_steps (`int`): steps in a row.
    """

    def __init__(self, max_nan_steps: int):
        self.max_nan_steps = max_nan_steps
        self.signal: str | None = None
        """What told this process to end: `"SIGTERM"` or `"Ctrl-C"`."""
        self.is_stopping = False
        """All processes stop, because one was told to end."""
        self.has_trained = False
        self.saves_at_epoch_end = False
        self.nan_steps = torch.zeros(2)
        """Steps without a finite gradient, in all and in a row."""
        self.status: HostCopy | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """For as long as the context lasts, SIGTERM is noted, however often it comes, and so is Ctrl-C, which ends the
        process at once when it comes again after `PATIENCE_SECONDS`.
        """
        self.signal = None
        self.is_stopping = self.has_trained = self.saves_at_epoch_end = False
        self.nan_steps = torch.zeros(2)
        if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
            yield
            return
        handlers: dict[int, Callable[..., None]] = {signal.SIGTERM: self._on_sigterm}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as shells have it for commands in the background
            handlers[signal.SIGINT] = self._on_sigint
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_sigterm(self, *_) -> None:
        self.signal = "SIGTERM"

    def _on_sigint(self, *_) -> None:
        if self.signal != "Ctrl-C":
            self.signal, self._interrupted_at = "Ctrl-C", time.monotonic()
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, b"\nCtrl-C: the run ends after this step, with a checkpoint; once more ends it at once.\n")
        elif time.monotonic() - self._interrupted_at > PATIENCE_SECONDS:
            raise KeyboardInterrupt

    def watch(self, num_terminated: torch.Tensor) -> None:
        """Take note of how many processes were told to end, a tensor of shape `(1,)`, as the step begins."""
        self.status = HostCopy(torch.cat([num_terminated, self.nan_steps[1:].to(num_terminated.device)]))

    def skip_unless_finite(
        self, grad_norm: torch.Tensor, optimizer: torch.optim.Optimizer, *, is_scaled: bool
    ) -> None:
        """
        Count a step whose gradient is NaN or infinite, and keep the optimizer from taking it.

        Args:
            grad_norm (`torch.Tensor` of shape `()`): of the gradient of all processes.
            optimizer (`torch.optim.Optimizer`): fused ones leave the step out on the device; for others it is read.
            is_scaled (`bool`): whether a gradient scaler leaves such steps out itself.
        """
        is_nan = (~grad_norm.isfinite()).float()
        total, in_a_row = self.nan_steps.to(is_nan.device)
        self.nan_steps = torch.stack([total + is_nan, (in_a_row + 1) * is_nan])
        if is_scaled:
            return
        if optimizer.defaults.get("fused"):
            optimizer.grad_scale, optimizer.found_inf = None, is_nan  # type: ignore[attr-defined]  # as GradScaler does
        elif is_nan:
            optimizer.zero_grad()  # to None, which optimizers leave out

    def on_step_end(self, args, state, control, **kwargs):
        self.has_trained = True
        assert self.status is not None
        num_terminated, in_a_row = self.status.read()
        if in_a_row >= self.max_nan_steps:
            raise InputError(
                f"The gradient was NaN or infinite in {in_a_row:.0f} steps in a row, up to step "
                f"{state.global_step - 1}. None of them changed the weights. Lower --learning_rate, train with --bf16 "
                "instead of --fp16, look for the cause with --debug underflow_overflow, or allow more with "
                "--max_nan_steps."
            )
        if num_terminated:  # of any process
            self.is_stopping = control.should_training_stop = True
        # The end of an epoch logs and evaluates, too: a checkpoint after it knows of that.
        if control.should_training_stop or state.epoch % 1 == 0:
            self.saves_at_epoch_end = control.should_save or self.is_stopping
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.has_trained:  # nothing was left of the run that this one goes on with
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.is_stopping and state.epoch % 1 != 0:
            control.should_log = control.should_evaluate = False
        control.should_save |= self.saves_at_epoch_end
        self.saves_at_epoch_end = False


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that counts on after a resume, and does not go on where it had stopped."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.early_stopping_patience_counter = saved["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class LoaderInit:
    """
    Shields a loader process from Ctrl-C, and from SIGTERM unless its own training process sends it, and ends it with
    that process.

    Schedulers send SIGTERM to every process of a job at once, as terminals send SIGINT, but batches are needed up to
    the end of the step.

    Args:
        then (`Callable`, *optional*): called with the worker's number afterwards.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "linux":  # elsewhere one cannot tell who sent a signal
            die_with(os.getppid())  # a loader waits 5 seconds and more before it looks
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
