"""Weights & Biases: offline files beside runs/, unless WANDB_MODE is online.

What wandb collects itself is off: console, code, git, packages, host, user, hardware and its error reports. Offline,
a resumed run writes all its epochs again into a new folder, which replaces the old one.
"""

import os
import shlex
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from fastcxr.errors import TrackingError
from fastcxr.tracking.base import STEP, Results, RunDescription, Status, Tracker, show_path

REPORT_FILE = "report.html"
MAX_SECONDS = 60.0  # to connect, and to send the rest at the end; wandb would wait without a limit
EXIT_CODES = {"finished": 0, "failed": 1, "killed": 130}
LOCAL_LOGS = ("logs", "tmp")  # of the folder of an offline run: messages of wandb with paths, which it does not send
# WANDB_MODE=online is read by this module; the others would send what is off
HIDDEN = {
    "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "host": "", "username": "",
    "email": "", "program": "", "program_relpath": "", "x_disable_meta": True, "x_disable_stats": True,
    "x_disable_machine_info": True, "x_save_requirements": False, "symlink": False,
}  # fmt: skip


class WeightsAndBiases(Tracker):
    """A run with the recipe as configuration, the epochs, the final metrics as summary, and the report as a file."""

    name, title, module = "wandb", "W&B", "wandb"
    fix = "Run `wandb login`, or leave out WANDB_MODE for an offline run"

    @property
    def is_online(self) -> bool:
        """Whether the user asks for data to be sent during the run."""
        return os.environ.get("WANDB_MODE") == "online"

    def check(self) -> None:
        """Verify the key of an online run."""
        wandb = _import_wandb()
        if self.is_online and not wandb.login(prompt=False, verify=True):
            raise TrackingError("W&B has no key, and WANDB_MODE is online", self.fix, code="E731")

    def start(self, description: RunDescription) -> None:
        """Create the run, or continue the saved one: online after its last epoch, offline in a new folder."""
        wandb = _import_wandb()
        self.saved.setdefault("run_id", uuid.uuid4().hex[:12])
        settings = wandb.Settings(
            mode="online" if self.is_online else "offline", silent=True, reinit="create_new", init_timeout=MAX_SECONDS,
            finish_timeout=MAX_SECONDS, finish_timeout_raises=True, **HIDDEN,
        )  # fmt: skip
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or description.project,
            dir=self._get_dir(),
            id=self.saved["run_id"],
            name=description.name,
            group=description.group,
            tags=list(description.tags.values()),
            config=description.parameters,
            resume="allow",
            settings=settings,
        )
        self.run.define_metric("*", step_metric=STEP)  # the horizontal axis of all curves
        self.offline_dir = Path(self.run.settings.sync_dir)
        if self.is_online:
            self.n_epochs = self.run.step
        else:
            self._remove_folders(keep=self.offline_dir)

    def describe(self) -> str:
        """Return the project online, or the folder and the command that sends it."""
        if self.is_online:
            return f"{self.run.url}"
        return f"offline (to send it after the run: `wandb sync {shlex.quote(show_path(self.offline_dir))}`)"

    def send_values(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Store the values of an epoch."""
        self.run.log({STEP: step, **values})

    def send_results(self, results: Results) -> None:
        """Store the final metrics as summary, and the report in the files of the run."""
        self.run.summary.update(results.metrics)
        file = Path(self.run.settings.files_dir) / REPORT_FILE
        file.write_text(results.report, encoding="utf-8")
        self.run.save(file, base_path=file.parent, policy="end")

    def end(self, status: Status) -> None:
        """Close the run and remove the messages of wandb."""
        self.run.finish(EXIT_CODES[status])
        for name in LOCAL_LOGS:
            shutil.rmtree(self.offline_dir / name, ignore_errors=True)

    def drop(self) -> None:
        """Close the run."""
        self.end("failed")

    def discard(self) -> None:
        """Close the run, and remove its folder if it is offline."""
        self.end("failed")
        if not self.is_online:
            self._remove_folders()

    def _get_dir(self) -> Path:
        return Path(os.environ.get("WANDB_DIR") or self.store_dir)

    def _remove_folders(self, keep: Path | None = None) -> None:
        """Remove the offline folders of this run but for one."""
        for path in (self._get_dir() / "wandb").glob(f"offline-run-*-{self.saved['run_id']}"):
            if path != keep:
                shutil.rmtree(path, ignore_errors=True)


def _import_wandb():
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb
