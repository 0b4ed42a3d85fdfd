"""Early ends of a run: SIGTERM, Ctrl-C, errors, NaN gradients, and early stopping that survives a resume."""

import contextlib
import logging as stdlib_logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.utils import logging

from simple_multimodal.errors import InputError, with_flags
from simple_multimodal.models.distributed import decide_in_first_process, leave_process_group
from simple_multimodal.output_folder import writing_into
from simple_multimodal.training.arguments import MultimodalTrainingArguments

EXIT_REQUEUE = 75
"""Exit code of a run that SIGTERM or Ctrl-C ended with a checkpoint: `EX_TEMPFAIL` of sysexits.h, "try again". 143,
which a shell reports for a process that SIGTERM killed, would not say whether anything was saved.
"""

PATIENCE_SECONDS = 2.0
"""Time after which a second Ctrl-C ends a run immediately. Launchers forward the first one, so it arrives twice."""


@contextlib.contextmanager
def ending_in_one_line(flags: Collection[str] = ()) -> Iterator[None]:
    """
    End `train.py` with one line for errors of the user or of files; raise them with `--log_level debug`.

    Args:
        flags (`Collection[str]`, *optional*): Names of its flags, see [`with_flags`].
    """
    try:
        yield
    except (InputError, OSError) as error:  # a user error, or one of the file system
        if logging.get_verbosity() <= logging.DEBUG:
            raise
        sys.exit(f"train.py: error: {with_flags(one_line(error), flags)}")


@contextlib.contextmanager
def running(args: MultimodalTrainingArguments, flags: Collection[str]) -> Iterator[None]:
    """
    Run `train.py` inside the context: lock the output folder, report user errors in one line, print warnings above
    the progress bars, and leave the process group at the end.

    Args:
        args ([`MultimodalTrainingArguments`]): Arguments of the run.
        flags (`Collection[str]`): Names of all flags of `train.py`, for messages.
    """
    loggers = [stdlib_logging.getLogger(name) for name in (None, "transformers")]
    lock = writing_into(args.output_dir, command="train.py", decide=decide_in_first_process)
    with ending_in_one_line(flags), lock, logging_redirect_tqdm(loggers):
        yield
        leave_process_group()


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, without the traceback if a loader process raised it."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


class HostCopy:
    """
    Asynchronous copy of values from a device to the host. Reading it waits only for work that was queued before the
    copy.

    Args:
        values (`torch.Tensor`): Tensor on any device.
    """

    def __init__(self, values: torch.Tensor):
        self.values = values.to("cpu", non_blocking=True)
        self.event = None if values.device.type == "cpu" else torch.Event(values.device)
        if self.event is not None:
            self.event.record()

    def read(self) -> list[float]:
        """Wait for the copy and return the values."""
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


class RunControl(TrainerCallback):
    """
    Ends a run early: with a checkpoint after SIGTERM or Ctrl-C (SIGINT) to any process, in all processes after the
    same step; with an error after too many consecutive steps whose gradients are NaN or infinite. Such steps do not
    change weights.

    These decisions use values that are summed together with the step's counts and read one step later, so that the
    device never waits.

    Args:
        max_nan_steps (`int`): Maximum number of consecutive steps with NaN or infinite gradients.
    """

    def __init__(self, max_nan_steps: int):
        self.max_nan_steps = max_nan_steps
        self.signal: str | None = None
        """Signal that told this process to end: `"SIGTERM"` or `"Ctrl-C"`."""
        self.is_stopping = False
        """Whether all processes stop because one was told to end."""
        self.is_complete = False
        """Whether no step is left to train."""
        self.has_trained = False
        self.saves_at_epoch_end = False
        self.nan_steps = torch.zeros(2)
        """Number of steps without finite gradients: in total, and the latest consecutive ones."""
        self.status: HostCopy | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM and Ctrl-C inside the context: record them; a second Ctrl-C after `PATIENCE_SECONDS` ends the
        process immediately.
        """
        self.signal = None
        self.is_stopping = self.has_trained = self.saves_at_epoch_end = False
        self.nan_steps = torch.zeros(2)
        if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
            yield
            return
        handlers: dict[int, Callable[..., None]] = {signal.SIGTERM: self._on_sigterm}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # ignored for background commands of a shell
            handlers[signal.SIGINT] = self._on_sigint
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_sigterm(self, *_) -> None:
        if self.signal is None:
            self._acknowledge("SIGTERM", ".")

    def _on_sigint(self, *_) -> None:
        if self.signal != "Ctrl-C":
            self._interrupted_at = time.monotonic()
            self._acknowledge("Ctrl-C", "; press it again to end now.")
        elif time.monotonic() - self._interrupted_at > PATIENCE_SECONDS:
            raise KeyboardInterrupt

    def _acknowledge(self, name: str, end: str) -> None:
        self.signal = name
        if os.environ.get("LOCAL_RANK", "0") == "0":
            line = f"\n{name}: the run ends after the step that is running, with a checkpoint{end}\n"
            os.write(2, line.encode())  # unlike `print`, safe in a signal handler

    def on_train_begin(self, args, state, control, **kwargs):
        if self.is_complete:
            control.should_training_stop = True

    def watch(self, num_terminated: torch.Tensor) -> None:
        """Record at the start of a step how many processes were told to end, a tensor of shape `(1,)`."""
        self.status = HostCopy(torch.cat([num_terminated, self.nan_steps[1:].to(num_terminated.device)]))

    def skip_unless_finite(
        self, grad_norm: torch.Tensor, optimizer: torch.optim.Optimizer, *, is_scaled: bool
    ) -> None:
        """
        Count a step whose gradient is NaN or infinite, and make the optimizer skip it.

        Args:
            grad_norm (`torch.Tensor` of shape `()`): Norm of the gradient of all processes.
            optimizer (`torch.optim.Optimizer`): Optimizer of the run. Fused ones skip the step on the device; others
                need the value on the host.
            is_scaled (`bool`): Whether a gradient scaler already skips such steps.
        """
        is_nan = (~grad_norm.isfinite()).float()
        total, in_a_row = self.nan_steps.to(is_nan.device)
        self.nan_steps = torch.stack([total + is_nan, (in_a_row + 1) * is_nan])
        if is_scaled:
            return
        if optimizer.defaults.get("fused"):
            optimizer.grad_scale, optimizer.found_inf = None, is_nan  # type: ignore[attr-defined]  # as GradScaler does
        elif is_nan:
            optimizer.zero_grad()  # to None, which optimizers skip

    def on_step_end(self, args, state, control, **kwargs):
        self.has_trained = True
        assert self.status is not None
        num_terminated, in_a_row = self.status.read()
        if in_a_row >= self.max_nan_steps:
            raise InputError(
                f"The gradient was NaN or infinite in {in_a_row:.0f} consecutive steps, up to step "
                f"{state.global_step - 1}. These steps did not change the weights. Lower `learning_rate`, train "
                "with `bf16` instead of `fp16`, find the cause with `debug=underflow_overflow`, or increase "
                "`max_nan_steps`."
            )
        if num_terminated:  # in any process
            self.is_stopping = control.should_training_stop = True
        # The end of an epoch also logs and evaluates; a checkpoint after that includes it.
        if control.should_training_stop or state.epoch % 1 == 0:
            self.saves_at_epoch_end = control.should_save or self.is_stopping
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.has_trained:  # the resumed run was already complete
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.is_stopping and state.epoch % 1 != 0:
            control.should_log = control.should_evaluate = False
        control.should_save |= self.saves_at_epoch_end
        self.saves_at_epoch_end = False


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that keeps its count in a resumed run, and does not train on if it had stopped."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = self._saved_count(state)
        if self.has_stopped(state):
            control.should_training_stop = True

    def has_stopped(self, state: TrainerState) -> bool:
        """Return whether the run had stopped in the state of a checkpoint."""
        return self._saved_count(state) >= self.early_stopping_patience

    def _saved_count(self, state: TrainerState) -> int:
        saved = state.stateful_callbacks.get(type(self).__name__)  # none if the flag is new
        return 0 if saved is None else saved["attributes"]["early_stopping_patience_counter"]
