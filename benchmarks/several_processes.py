"""One training in several processes, compared with the same command in a plain process.

    python benchmarks/several_processes.py --data DIR --weights FILE [--backbone NAME] [--processes 1 2] [--options ...]

Each row is a new run of `fastcxr train`: in a plain process, then in the given numbers of processes of torchrun. The
columns are the median seconds of an epoch after the first one, the largest difference of a validation loss from that of
the plain process, and the largest difference of a weight of the saved model. --options are further options of train.

With batch norm, the numbers differ from those of one process, because each process normalizes its part of the batch. A
network without batch norm, as convnext_atto, shows the difference of the sums of gradients alone. `--processes 1` shows
the cost of the exchange on one GPU.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import make_parser
from safetensors.torch import load_file

EPOCHS = 4


def train(folder: Path, given: argparse.Namespace, n_processes: int) -> None:
    """Train in a new process, or in several of torchrun (0: a plain process)."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(n_processes), "-m"] if n_processes else []
    command = [sys.executable, "-m", *launcher, "fastcxr", "train", given.backbone, "--data", given.data]
    command += ["--weights", given.weights, "--out", str(folder), "--figures", "none", *given.options]
    # torchrun gives each process one thread: so has the plain one
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={"OMP_NUM_THREADS": "1"} | os.environ)


def describe(folder: Path, reference: Path) -> list[str]:
    """Return seconds per epoch and the differences from the reference run."""
    history, expected = (pd.read_csv(one / "history.csv") for one in (folder, reference))
    weights, other = (load_file(one / "model.safetensors") for one in (folder, reference))
    loss_difference = (history["valid_loss"] - expected["valid_loss"]).abs().max()
    weight_difference = max((weights[name].float() - other[name].float()).abs().max().item() for name in weights)
    seconds = statistics.median(history["seconds"][1:])
    return [f"{seconds:.2f}", f"{loss_difference:.1e}", f"{weight_difference:.1e}"]


def main() -> None:
    """Print one row per number of processes."""
    parser = make_parser(__doc__, required=("data", "weights"), optional=("backbone",))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    default_options = f"--strategy full --image-size 64 --epochs {EPOCHS} --learning-rate 1e-3"
    parser.add_argument(
        "--options", type=str.split, default=default_options.split(), help="options of train, in one text"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folders = {0: Path(directory) / "plain"} | {n: Path(directory) / f"torchrun-{n}" for n in given.processes}
        print("| processes | seconds per epoch | validation loss differs by | weights differ by |\n|---|---|---|---|")
        for n_processes, folder in folders.items():
            train(folder, given, n_processes)
            name = f"{n_processes} of torchrun" if n_processes else "plain"
            print(f"| {' | '.join([name, *describe(folder, folders[0])])} |", flush=True)


if __name__ == "__main__":
    main()
