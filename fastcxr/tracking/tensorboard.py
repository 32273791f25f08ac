"""TensorBoard: event files in RUN/tensorboard, written without TensorFlow and torch.

The file name has no host name. A resumed run writes all its epochs again into a new file, which replaces the old one.
TensorBoard has no files of a run: the report stays in the run folder, and a text names it.
"""

import shlex
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO

from fastcxr.tracking.base import STEP, TENSORBOARD_DIR, Results, RunDescription, Status, Tracker, show_path
from fastcxr.tracking.run_log import find_whole_run, format_metrics

EVENT_FILE = "events.out.tfevents.{:010d}.fastcxr"  # TensorBoard finds the part tfevents
FILE_VERSION = "brain.Event:2"  # first record of an event file
SESSION_STATUS = {"finished": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "killed": "STATUS_FAILURE"}
MESSAGE_MODULES = (
    "tensorboard.compat.proto.event_pb2", "tensorboard.compat.proto.summary_pb2",
    "tensorboard.compat.proto.tensor_pb2", "tensorboard.plugins.hparams.api_pb2",
    "tensorboard.plugins.hparams.plugin_data_pb2",
)  # fmt: skip
HEADLINE_METRICS = ("/accuracy", "/auroc.macro")  # scalars, by which the page HPARAMS compares runs
REPORT_TEXT = "The report with confidence intervals and figures is `report.html` in the run folder."


class TensorBoard(Tracker):
    """Scalars of epochs, the recipe and two final metrics for the page HPARAMS, and a table of all final metrics."""

    name, title, module, has_files = "tensorboard", "TensorBoard", "tensorboard", False
    fix = "Check that the run folder can be written"
    file: BinaryIO | None = None

    def start(self, description: RunDescription) -> None:
        """Write a new event file with the recipe, and remove those of an interrupted run."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        modules = map(import_module, MESSAGE_MODULES)
        self.events, self.summaries, self.tensors, self.hparams, self.hparams_data = modules
        directory = self.folder / TENSORBOARD_DIR
        directory.mkdir(exist_ok=True)
        for path in directory.iterdir():
            path.unlink()
        self.started = time.time()
        self.file = (directory / EVENT_FILE.format(int(self.started))).open("wb")
        self.writer = RecordWriter(self.file)
        self._write(file_version=FILE_VERSION)
        parameters = description.parameters | description.tags
        self._write(summary=hparams_pb(parameters, trial_id=description.name, start_time_secs=self.started))

    def describe(self) -> str:
        """Return the command that shows the run beside others."""
        return f"to see it: `tensorboard --logdir {shlex.quote(show_path(find_whole_run(self.folder).parent))}`"

    def send_values(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Write a scalar for each value, at the time of the epoch."""
        make_value = self.summaries.Summary.Value
        scalars = [make_value(tag=name, simple_value=value) for name, value in values.items() if name != STEP]
        self._write_summary(scalars, step=step, wall_time=self.started + seconds)

    def send_results(self, results: Results) -> None:
        """Write the final metrics as a table, and those of the page HPARAMS as scalars."""
        from tensorboard.plugins.text.metadata import create_summary_metadata

        headline = {name: value for name, value in results.metrics.items() if name.endswith(HEADLINE_METRICS)}
        self.send_values(headline, results.step, results.seconds)
        rows = [f"| {name} | {text} |" for name, text in format_metrics(results.metrics).items()]
        text = "\n".join([REPORT_TEXT, "", "| metric | value (95 % interval) |", "|---|---|", *rows])
        value = self.summaries.Summary.Value(
            tag="final metrics",
            tensor=self.tensors.TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
            metadata=create_summary_metadata(display_name="", description=""),
        )
        self._write_summary([value], step=results.step)

    def end(self, status: Status) -> None:
        """Write how the run ended and close the file."""
        from tensorboard.plugins.hparams import metadata

        code = self.hparams.Status.Value(SESSION_STATUS[status])
        end_info = self.hparams_data.SessionEndInfo(status=code, end_time_secs=time.time())
        content = self.hparams_data.HParamsPluginData(session_end_info=end_info, version=metadata.PLUGIN_DATA_VERSION)
        plugin = self.summaries.SummaryMetadata.PluginData(
            plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString()
        )
        value = self.summaries.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=self.summaries.SummaryMetadata(plugin_data=plugin),
            tensor=metadata.NULL_TENSOR,
        )
        self._write_summary([value])
        self.writer.close()

    def drop(self) -> None:
        """Close the file."""
        self.writer.close()

    def discard(self) -> None:
        """Close the file, which is removed with the run folder."""
        self.drop()

    def _write_summary(self, values: list, **options: Any) -> None:
        self._write(summary=self.summaries.Summary(value=values), **options)

    def _write(self, **content: Any) -> None:
        self.writer.write(self.events.Event(**{"wall_time": time.time()} | content).SerializeToString())
        self.writer.flush()
