"""DICOM results stored in a PACS and retrieved from it: Orthanc on this computer, with STOW-RS, QIDO-RS and WADO-RS.

tests/support/pacs_tests.sh installs the programs and runs these tests.
"""

import io
import shutil
import socket
import subprocess
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
from dicom_studies import ALGORITHM, list_problems, make_radiograph, make_result, print_report
from orthanc_server import AET, CLIENT_AET, HOST, OPEN, start_orthanc
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from sample_images import save_dicom

from fastcxr.export.dicom_attributes import NewInstance, make_uid, read_source
from fastcxr.export.dicom_sc import make_sc
from fastcxr.export.dicom_sr import make_sr

pytestmark = [pytest.mark.slow, pytest.mark.needs("highdicom")]
N_STUDIES = 20
KINDS = {"SR": ComprehensiveSRStorage, "OT": SecondaryCaptureImageStorage}  # by modality  # codespell:ignore


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="module")
def results(server, tmp_path_factory):
    """Files with the SR and the secondary capture of each of 20 radiographs of 20 studies, by SOP instance UID."""
    folder = tmp_path_factory.mktemp("results")
    made = [result for number in range(N_STUDIES) for result in make_results(folder, number)]
    return {str(one.SOPInstanceUID): save_dicom(folder / f"{k}.dcm", one) for k, one in enumerate(made)}


def make_results(folder, number):
    """Return the SR and the secondary capture of a radiograph."""
    source = read_source(str(save_dicom(folder / "source.dcm", make_radiograph(number))), "source.dcm")
    result = make_result(is_multi_label=number % 2 == 1, is_ood=number % 5 == 4)
    picture = np.random.default_rng(number).integers(0, 256, (96, 64, 3), np.uint8)
    instances = [NewInstance(make_uid(source.SOPInstanceUID, kind), number + 1) for kind in KINDS]
    return (
        make_sr(source, result, ALGORITHM, instances[0]),
        make_sc(source, result, picture, ALGORITHM, instances[1], method="Grad-CAM"),
    )


@pytest.fixture(scope="module")
def retrieved(server, results):
    """The content of each file after storing and retrieving, by SOP instance UID."""
    answer = server.store([path.read_bytes() for path in results.values()])
    stored, failed = (answer.get(tag, {}).get("Value", []) for tag in ("00081199", "00081198"))
    assert (len(stored), failed) == (2 * N_STUDIES, [])
    studies = [study["0020000D"]["Value"][0] for study in server.find("studies")]
    contents = [content for study in studies for content in server.retrieve(study)]
    return {str(dcmread(io.BytesIO(content)).SOPInstanceUID): content for content in contents}


def test_all_results_survive_storing_and_retrieving(retrieved, results):
    assert set(retrieved) == set(results) and len(results) == 2 * N_STUDIES
    for uid, path in results.items():
        found = dcmread(io.BytesIO(retrieved[uid]))
        assert found == dcmread(path) and found.SOPClassUID in KINDS.values()
        assert retrieved[uid] == path.read_bytes()


def test_a_query_finds_the_results_by_modality_and_patient(server, retrieved, results):
    for modality, sop_class in KINDS.items():
        found = server.find(f"instances?Modality={modality}&limit=100")
        expected = {uid for uid, path in results.items() if dcmread(path).SOPClassUID == sop_class}
        assert {one["00080018"]["Value"][0] for one in found} == expected and len(expected) == N_STUDIES
    assert len(server.find("studies?PatientID=ZZTESTID")) == N_STUDIES
    assert server.find("studies?PatientID=another") == []


@pytest.mark.needs(program="dciodvfy")
@pytest.mark.needs(program="dsrdump")
def test_the_retrieved_reports_are_valid_and_read_the_same(retrieved, results, tmp_path):
    n_reports = 0
    for uid, path in results.items():
        (tmp_path / "found.dcm").write_bytes(retrieved[uid])
        assert list_problems(tmp_path / "found.dcm") == []
        if dcmread(path).SOPClassUID == ComprehensiveSRStorage:
            n_reports += 1
            assert print_report(tmp_path / "found.dcm") == print_report(path)
    assert n_reports == N_STUDIES


@pytest.mark.needs(program="storescu")
def test_storescu_stores_a_result(server, tmp_path):
    report, _ = make_results(tmp_path, N_STUDIES)
    path = save_dicom(tmp_path / "sr.dcm", report)
    command = [shutil.which("storescu"), "-aec", AET, HOST, str(server.dicom_port), str(path)]
    refused = subprocess.run([*command, "-aet", "OTHER"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0, "an unknown application entity must be refused"
    subprocess.run([*command, "-aet", CLIENT_AET], capture_output=True, text=True, check=True)
    (content,) = server.retrieve(report.StudyInstanceUID)
    assert dcmread(io.BytesIO(content)) == dcmread(path)


def test_the_server_refuses_requests_from_other_addresses(server):
    address = find_own_address()
    with pytest.raises((HTTPError, URLError)):
        OPEN(server.url.replace(HOST, address) + "/system", timeout=20)


def find_own_address():
    """Return an address of this computer in a network; skip the test if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # a UDP socket sends nothing here
        except OSError:
            pytest.skip("this computer has no network address")
        return one.getsockname()[0]
