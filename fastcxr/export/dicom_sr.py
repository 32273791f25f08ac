"""A DICOM Comprehensive SR (TID 1500, Measurement Report) with the result of one image.

A first measurement group has the facts on the image, and one further group each class or finding: its code, the
probability, the threshold and the decision. Each group refers to the source image and identifies the algorithm; the
parameters of the algorithm, such as the checksum of the model, are in the first one.

A probability is a NUM from 0 to 1 in the UCUM unit 1. FloatingPointValue has its full precision, which the 16
characters of NumericValue do not hold.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from fastcxr.data.imaging.dicom_classes import OWN_MANUFACTURER
from fastcxr.export import dicom_codes as own
from fastcxr.export.dicom_attributes import NewInstance, import_highdicom, make_uid
from fastcxr.export.image_results import RESEARCH_TEXT, Algorithm, ImageResult, LabelResult

if TYPE_CHECKING:  # it takes a second to import, and is optional
    from highdicom import sr

    Group = sr.MeasurementsAndQualitativeEvaluations

SR_SERIES_NUMBER = 9901  # above those of devices; the standard does not require that it is unique
IMAGE_GROUP = "Image"  # tracking identifier of the group of facts on the image


def make_sr(source: Dataset, result: ImageResult, algorithm: Algorithm, instance: NewInstance) -> "sr.ComprehensiveSR":
    """Return the SR of one image.

    Args:
        source: attributes of the source image; see dicom_attributes.read_source.
        result: of the image.
        algorithm: the model.
        instance: UID and number of the new SR.

    Raises PackageError if highdicom is not installed.
    """
    return _Report(source, result, algorithm, instance).make()


class _Report:
    """What the parts of one report have in common."""

    def __init__(self, source: Dataset, result: ImageResult, algorithm: Algorithm, instance: NewInstance):
        self.source, self.result, self.algorithm, self.instance = source, result, algorithm, instance
        self.highdicom = import_highdicom()
        self.sr = self.highdicom.sr

    def make(self) -> "sr.ComprehensiveSR":
        algorithm, sr = self.algorithm, self.sr
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=make_uid("device", algorithm.checksum),
            name=OWN_MANUFACTURER,
            manufacturer_name=OWN_MANUFACTURER,
            model_name=own.clean_value(algorithm.name),
            serial_number=algorithm.checksum[: own.MAX_MEANING_LENGTH],
        )
        observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=self.to_concept(own.CHEST_RADIOGRAPH),
            imaging_measurements=[self.make_image_group(), *map(self.make_label_group, self.result.labels)],
            title=codes.DCM.ImagingMeasurementReport,
        )
        scheme = self.highdicom.coding_schemes.CodingSchemeIdentificationItem(own.SCHEME, name=own.SCHEME_NAME)
        return sr.ComprehensiveSR(
            evidence=[self.source],
            content=report[0],
            series_instance_uid=make_uid(self.source.StudyInstanceUID, algorithm.checksum, "SR"),
            series_number=SR_SERIES_NUMBER,
            sop_instance_uid=self.instance.uid,
            instance_number=self.instance.number,
            manufacturer=OWN_MANUFACTURER,
            manufacturer_model_name=own.shorten_meaning(algorithm.name),
            device_serial_number=algorithm.checksum[: own.MAX_MEANING_LENGTH],
            software_versions=algorithm.version,
            series_description=f"fastcxr result. {RESEARCH_TEXT}",
            is_complete=True,
            coding_schemes=[scheme],
            specific_character_set="ISO_IR 192",
        )

    def make_image_group(self) -> "Group":
        result = self.result
        measurements = [] if result.ood_score is None else [self.make_number(own.OOD_SCORE, result.ood_score)]
        group = self.make_group(IMAGE_GROUP, None, measurements, list(_list_image_facts(result)))
        comments = [RESEARCH_TEXT]
        comments += [f"Critical notice on the model: {own.clean_value(text)}" for text in self.algorithm.notices]
        comments += [own.NO_DECISION.meaning] if result.is_ood else []
        comments += [f"Warnings: {own.clean_value(result.warnings)}"] if result.warnings else []
        name, relationship = self.to_concept(own.COMMENT), self.sr.RelationshipTypeValues.CONTAINS
        for text in comments:
            item = self.sr.TextContentItem(name=name, value=text, relationship_type=relationship)
            group[0].ContentSequence.append(item)
        return group

    def make_label_group(self, one: LabelResult) -> "Group":
        measurements = [self.make_number(own.PROBABILITY, one.probability)]
        measurements += [] if one.threshold is None else [self.make_number(own.THRESHOLD, one.threshold)]
        return self.make_group(
            one.label, own.find_code(one.label), measurements, list(_list_decisions(self.result, one))
        )

    def make_group(
        self, name: str, finding: Code | None, measurements: list["sr.Measurement"], facts: Sequence[tuple[Code, Code]]
    ) -> "Group":
        """Return a group with the source image and the algorithm. `name`: becomes the tracking identifier."""
        algorithm, sr = self.algorithm, self.sr
        evaluations = [sr.QualitativeEvaluation(*map(self.to_concept, fact)) for fact in facts]
        kind = "label" if finding else "image"
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=make_uid(self.instance.uid, kind, name), identifier=own.clean_value(name)
            ),
            finding_type=finding and self.to_concept(finding),
            algorithm_id=sr.AlgorithmIdentification(
                name=own.clean_value(algorithm.name),
                version=algorithm.version,
                manufacturer=OWN_MANUFACTURER,
                parameters=None if finding else [own.clean_value(text) for text in algorithm.parameters],
            ),
            measurements=measurements or None,
            qualitative_evaluations=evaluations or None,
            source_images=[sr.SourceImageForMeasurementGroup(self.source.SOPClassUID, self.source.SOPInstanceUID)],
        )

    def make_number(self, name: Code, value: float) -> "sr.Measurement":
        return self.sr.Measurement(name=self.to_concept(name), value=value, unit=self.to_concept(own.NO_UNITS))

    def to_concept(self, code: Code) -> "sr.CodedConcept":
        return self.sr.CodedConcept(code.value, code.scheme_designator, code.meaning)


def _list_image_facts(result: ImageResult) -> Iterator[tuple[Code, Code]]:
    """Yield names and values of the facts on the image."""
    if not result.is_multi_label:
        yield own.PREDICTED, own.NO_DECISION if result.is_ood else own.find_code(result.predicted)
    if result.ood_score is not None:
        yield own.IN_DISTRIBUTION, own.NO if result.is_ood else own.YES
    if result.is_uncertain is not None:
        yield own.UNCERTAIN, own.YES if result.is_uncertain else own.NO


def _list_decisions(result: ImageResult, one: LabelResult) -> Iterator[tuple[Code, Code]]:
    """Yield the decision, and of a finding the same with the standard codes for presence."""
    if result.is_ood:
        yield own.DECISION, own.NO_DECISION
    elif one.is_reached is not None:
        yield own.DECISION, own.REACHED if one.is_reached else own.NOT_REACHED
        if result.is_multi_label:
            yield own.PRESENCE, own.PRESENT if one.is_reached else own.ABSENT
