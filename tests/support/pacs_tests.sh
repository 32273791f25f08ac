#!/usr/bin/env bash
# Install the programs of the tests of DICOM results (Debian or Ubuntu, as root), and run these tests.
#
#     sudo tests/support/pacs_tests.sh install   # dcmtk, dicom3tools, Orthanc with its DICOMweb plugin
#     tests/support/pacs_tests.sh                # the tests; Orthanc runs while they do, for this computer only
#
# The tests of DICOM results are skipped, with the reason, where a program is missing. Nothing else starts this script.
set -euo pipefail
cd "$(dirname "$0")/../.."

programs="dcmtk dicom3tools orthanc orthanc-dicomweb"
if [ "${1:-}" = install ]; then
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $programs
    # the package starts a server on the ports 4242 and 8042, which the tests do not use
    if [ -d /run/systemd/system ]; then systemctl disable --now orthanc; fi
    exit
fi
for program in storescu dsrdump dciodvfy /usr/sbin/Orthanc; do
    command -v "$program" || { echo "$program is missing: sudo $0 install" >&2; exit 1; }
done
python=${PYTHON:-.venv/bin/python}
exec "$python" -m pytest -q tests/export/test_dicom_*.py tests/export/test_pacs.py "$@"
