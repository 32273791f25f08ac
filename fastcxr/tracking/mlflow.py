"""MLflow: a run in the store of MLFLOW_TRACKING_URI, by default a database beside runs/.

Runs are created by MlflowClient, which adds no user name, host, command or git commit. The number of epochs that a
tracked run has is read from MLflow, so that a killed run continues without gaps and repetitions.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastcxr.errors import TrackingError
from fastcxr.tracking.base import STEP, Results, RunDescription, Saved, Status, Tracker, show_path, split_into_batches
from fastcxr.tracking.mlflow_uri import EXAMPLES, find_uri_fault, hide_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_FILE, ARTIFACTS_DIR = "mlflow.db", "mlartifacts"
REPORT_FILE = "report.html"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # its page shows trainings, not language models
RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
MAX_PARAMETERS, MAX_METRICS, MAX_PARAMETER_LENGTH = 100, 1000, 6000  # limits of MLflow, for one request
LOCK_SECONDS = 60.0  # other folds create the database in this time
# of requests to a server: by default MLflow would stop the training for minutes
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for the result
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
QUIET_LOGGERS = ("mlflow.store.db.utils", "alembic")  # they print each table of a new database


class MLflow(Tracker):
    """A run with the recipe as parameters, the epochs and final metrics, and the report as an artifact."""

    name, title, module = "mlflow", "MLflow", "mlflow"

    def __init__(self, folder: Path, store_dir: Path, saved: Saved):
        super().__init__(folder, store_dir, saved)
        uri = self._get_given_uri()
        self.fix = (f"MLFLOW_TRACKING_URI is {hide_credentials(uri)}. " if uri else "") + (
            f"Set MLFLOW_TRACKING_URI, such as {EXAMPLES}, or leave out `track='mlflow'`"
        )

    def check(self) -> None:
        """Connect to the server or database; a database that does not exist yet is not created."""
        if (uri := self._get_given_uri()) and (fault := find_uri_fault(uri)):
            raise TrackingError(f"MLflow cannot be used ({fault})", self.fix, code="E731")
        if not self._get_given_uri() and not self._get_database().exists():
            if not os.access(self.store_dir, os.W_OK):
                fix = "Choose another `folder`, or set MLFLOW_TRACKING_URI"
                problem = f"MLflow cannot create {DATABASE_FILE} in this folder"
                raise TrackingError(problem, fix, path=self.store_dir, code="E731")
            return
        self._connect().search_experiments(max_results=1)

    def start(self, description: RunDescription) -> None:
        """Create the run in the experiment of the dataset, or continue the saved one."""
        self.client = self._connect()
        if run_id := self.saved.get("run_id"):
            self.client.update_run(run_id, status="RUNNING")
        else:
            from mlflow.entities import Param

            tags = description.tags | ({"fastcxr.group": description.group} if description.group else {})
            experiment_id = self._find_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or description.project)
            run_id = self.client.create_run(experiment_id, run_name=description.name, tags=tags).info.run_id
            self.saved["run_id"] = run_id
            items = description.parameters.items()
            parameters = [Param(name, str(value)[:MAX_PARAMETER_LENGTH]) for name, value in items]
            for batch in split_into_batches(parameters, MAX_PARAMETERS):
                self.client.log_batch(run_id, params=batch)
        run = self.client.get_run(run_id)
        self.started_ms, self.n_epochs = run.info.start_time, int(run.data.metrics.get(STEP, 0))

    def describe(self) -> str:
        """Return the database and the command that shows it, or that the server is the one given."""
        if self._get_given_uri():
            return "server or store of MLFLOW_TRACKING_URI"
        database = show_path(self._get_database())
        return f"{database} (to see it: `mlflow ui --backend-store-uri sqlite:///{quote(database)}`)"

    def send_values(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Store the values in one request, with times that are the same in each call."""
        from mlflow.entities import Metric

        timestamp = self.started_ms + round(1000 * seconds)
        metrics = [Metric(name, value, timestamp, step) for name, value in values.items()]
        for batch in split_into_batches(metrics, MAX_METRICS):
            self.client.log_batch(self.saved["run_id"], metrics=batch)

    def send_results(self, results: Results) -> None:
        """Store the final metrics, and the report as the artifact report.html."""
        self.send_values(results.metrics, results.step, results.seconds)
        self.client.log_text(self.saved["run_id"], results.report, REPORT_FILE)

    def add_parts(self, parts: Iterable[Saved]) -> None:
        """Make the tracked folds children of this run."""
        for part in parts:
            if "run_id" in part:
                self.client.set_tag(part["run_id"], "mlflow.parentRunId", self.saved["run_id"])

    def end(self, status: Status) -> None:
        """Set the status and the time of the end."""
        self.client.set_terminated(self.saved["run_id"], RUN_STATUS[status], int(1000 * time.time()))

    def discard(self) -> None:
        """Delete the run."""
        self.client.delete_run(self.saved["run_id"])

    def _get_given_uri(self) -> str | None:
        return os.environ.get("MLFLOW_TRACKING_URI")

    def _get_database(self) -> Path:
        return self.store_dir / DATABASE_FILE

    def _connect(self) -> "MlflowClient":
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        if uri := self._get_given_uri():
            return MlflowClient(uri)
        from filelock import FileLock

        database = self._get_database()
        # MLflow creates the tables in steps, which fail if several folds do so at the same time
        with FileLock(database.with_name(f".{DATABASE_FILE}.lock"), timeout=LOCK_SECONDS):
            return MlflowClient(f"sqlite:///{quote(str(database))}")  # MLflow unquotes it

    def _find_experiment(self, name: str) -> str:
        """Return the experiment of this name, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        options: dict[str, Any] = {"tags": EXPERIMENT_TAGS}
        if not self._get_given_uri():
            options["artifact_location"] = (self.store_dir / ARTIFACTS_DIR).as_uri()
        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name, **options)
        except MlflowException:  # another process has created it since
            if found := self.client.get_experiment_by_name(name):
                return found.experiment_id
            raise
