"""Thresholds, subgroups, external tests, comparisons and tables of findings use the known labels of each finding."""

import numpy as np
import pandas as pd
import pytest
from finding_predictions import FINDINGS, simulate_findings, to_predictions
from sklearn.metrics import recall_score, roc_auc_score

from fastcxr.errors import DataError
from fastcxr.metrics.comparison import compare_models, holm
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.external import compute_drop, external_drops
from fastcxr.metrics.intervals import flatten
from fastcxr.metrics.predictions import Predictions, make_predictions, mark_ood, select_most_wrong
from fastcxr.metrics.subgroups import compute_subgroup_metrics
from fastcxr.metrics.thresholds import compute_ood_rate, evaluate_thresholds, fit_thresholds

pytestmark = pytest.mark.usefixtures("few_draws")


def test_thresholds_reach_their_target_on_the_known_labels_of_the_validation_split():
    valid = simulate_findings(200, unknown=0.3, split="valid")
    chosen = fit_thresholds(valid, 0.9, None, 0.1)
    assert chosen["uncertain_below"] is None, "abstention is for one class per image"
    found = evaluate_thresholds(valid, chosen, {"Edema": 0.02})["per_class"]
    for k, label in enumerate(FINDINGS):
        known = ~np.isnan(valid.truth[:, k])
        truth, decided = valid.truth[known, k], valid.probability[known, k] >= found[label]["threshold"]
        assert found[label]["sensitivity"][0] == pytest.approx(recall_score(truth, decided))
        assert found[label]["sensitivity"][0] >= 0.9
        assert found[label]["specificity"][0] == pytest.approx(recall_score(truth, decided, pos_label=0))
        assert found[label]["positives"] == truth.sum()
    assert found["Edema"]["prevalence"] == 0.02 and "ppv" not in found["Mass"]
    by_specificity = fit_thresholds(valid, 0.9, 0.8, 0.0)
    assert evaluate_thresholds(valid, by_specificity, {})["per_class"]["Mass"]["specificity"][0] >= 0.8


def test_a_finding_with_one_class_in_validation_has_no_threshold():
    truth = simulate_findings(50).truth
    truth[:, 0], truth[:, 1] = 0, np.nan
    valid = to_predictions(truth, np.full(truth.shape, 0.4), split="valid")
    assert list(fit_thresholds(valid, 0.9, None, 0.0)["thresholds"]) == ["Mass"]


def test_decisions_are_yes_or_no_and_empty_for_unreadable_and_ood_images():
    predictions = to_predictions(np.zeros((4, 3)), np.array([[0.6, 0.3, 0.1], [0.2, 0.1, 0.4], [0.9] * 3, [0.9] * 3]))
    predictions.table.loc[3, ["error", *(f"prob_{label}" for label in FINDINGS)]] = ["not an image", *[np.nan] * 3]
    marked = mark_ood(predictions, np.array([0.5, 0.5, 2.0, np.nan]))
    thresholds = {"thresholds": {"Effusion": {"threshold": 0.3}, "Mass": {"threshold": 0.9}}}
    table = apply_thresholds(marked, thresholds).table
    assert table["decision_Edema"].tolist() == ["yes", "no", "", ""], "0.5 without a threshold"
    assert table["decision_Effusion"].tolist() == ["yes", "no", "", ""]
    assert table["decision_Mass"].tolist() == ["no", "no", "", ""]
    assert table["predicted"].tolist() == ["Edema|Effusion", "", "", ""]
    rate = compute_ood_rate(marked)
    assert (rate["n_images"], rate["n_ood"], rate["proportion"][0]) == (3, 1, pytest.approx(1 / 3))


def test_without_thresholds_the_decisions_of_the_table_are_evaluated():
    predictions = simulate_findings(60, unknown=0.2)
    thresholds = {label: {"threshold": 0.1} for label in FINDINGS}
    decided = apply_thresholds(predictions, {"thresholds": thresholds})
    expected = evaluate_predictions(predictions, {"thresholds": thresholds})["test"]["per_class"]
    assert evaluate_predictions(decided)["test"]["per_class"] == expected
    at_default = evaluate_predictions(predictions)["test"]["per_class"]
    assert at_default != expected
    marked = mark_ood(predictions, np.full(len(predictions.table), 2.0))
    undecided = apply_thresholds(marked, {"thresholds": thresholds})
    assert (
        evaluate_predictions(undecided)["test"]["per_class"] == evaluate_predictions(predictions)["test"]["per_class"]
    )


def test_groups_have_the_metrics_of_scikit_learn_for_each_finding():
    predictions = simulate_findings(200, unknown=0.2)
    view = pd.Series(np.where(np.arange(len(predictions.table)) % 3 == 0, "AP", "PA"))
    predictions = Predictions(predictions.table.assign(ViewPosition=view), FINDINGS)
    found = compute_subgroup_metrics(predictions, {"Edema": {"threshold": 0.2}})["view"]["AP"]
    rows = (view == "AP").to_numpy()
    truth, probability = predictions.truth[rows], predictions.probability[rows]
    known = ~np.isnan(truth)
    aurocs = [roc_auc_score(truth[known[:, k], k], probability[known[:, k], k]) for k in range(3)]
    assert [found["auroc_per_class"][label][0] for label in FINDINGS] == pytest.approx(aurocs)
    assert found["auroc"][0] == pytest.approx(np.mean(aurocs)) and found["auroc"][1] < found["auroc"][0]
    decided = probability[known[:, 0], 0] >= 0.2
    assert found["sensitivity"]["Edema"][0] == pytest.approx(recall_score(truth[known[:, 0], 0], decided))
    assert found["support"]["Mass"] == np.nansum(truth[:, 2]) and found["averaged"] == list(FINDINGS)
    assert "balanced_accuracy" not in found


def test_all_groups_of_a_large_split_use_the_method_of_the_split(monkeypatch):
    for module in ("bootstrap", "intervals"):
        monkeypatch.setattr(f"fastcxr.metrics.{module}.MAX_BOOTSTRAP_PATIENTS", 100)
    calls = []
    monkeypatch.setattr(
        "fastcxr.metrics.intervals.compute_clustered_auroc_intervals", lambda *given: calls.append(given) or {}
    )
    predictions = simulate_findings(150)
    sex = np.where(np.arange(len(predictions.table)) < 100, "F", "M")
    compute_subgroup_metrics(Predictions(predictions.table.assign(sex=sex), FINDINGS))
    assert len(calls) == 2


def join(*parts: Predictions) -> Predictions:
    return Predictions(pd.concat([part.table for part in parts], ignore_index=True), parts[0].labels)


def test_external_drops_compare_each_finding_and_means_over_the_same_findings():
    internal = simulate_findings(150, seed=1, split="internal_test")
    external = simulate_findings(100, seed=2, unknown=0.2)
    metrics = evaluate_predictions(join(internal, external))
    (drop,) = external_drops(join(internal, external), metrics).values()
    assert drop["classes"] == list(FINDINGS) and not drop["only"]
    values = [flatten(metrics[split]) for split in ("internal_test", "test")]
    for name in ("auroc.macro", "average_precision.macro", "auroc.per_class.Mass", "per_class.Edema.specificity"):
        assert drop["figures"][name]["drop"][0] == pytest.approx(values[0][name] - values[1][name])
    truth = external.truth
    truth[:, 2] = 0
    fewer = evaluate_predictions(to_predictions(truth, external.probability))["test"]
    drop = compute_drop(metrics["internal_test"], fewer)
    assert drop["classes"] == ["Edema", "Effusion"] and drop["only"] == {"internal": ["Mass"]}
    assert "auroc.macro" not in drop["figures"], "the means are over different findings"
    assert {"auroc.per_class.Edema", "per_class.Edema.specificity"} <= set(drop["figures"])


def add_noise(predictions: Predictions, noise: float, seed: int) -> Predictions:
    draw = np.random.default_rng(seed).normal(size=predictions.probability.shape)
    probability = 1 / (1 + np.exp(-(4 * predictions.probability - 2 + noise * draw)))
    columns = {f"prob_{label}": probability[:, k] for k, label in enumerate(predictions.labels)}
    return Predictions(predictions.table.assign(**columns), predictions.labels)


def test_models_are_ranked_by_macro_auroc_and_compared_by_finding():
    base = simulate_findings(300, unknown=0.2)
    models = {"poor": add_noise(base, 5, 1), "good": add_noise(base, 0.1, 2), "same": add_noise(base, 0.1, 2)}
    rows = {row["name"]: row for row in compare_models(models).rows}
    assert list(rows) == ["good", "same", "poor"]
    assert rows["poor"]["auroc_p"] < 0.01 and not rows["poor"]["average_precision_tie"] and rows["same"]["auroc_tie"]
    for label in FINDINGS:
        cell, best = rows["poor"]["findings"][label], rows["good"]["findings"][label]
        assert cell["auroc_difference"][0] == pytest.approx(best["auroc"][0] - cell["auroc"][0])
        assert cell["auroc_p"] < 0.01 and not cell["auroc_tie"] and "auroc_p" not in best
        assert rows["same"]["findings"][label]["auroc_difference"] == [0, 0, 0]


def test_p_of_a_finding_is_adjusted_over_findings_and_pairs(monkeypatch):
    sizes = []
    monkeypatch.setattr("fastcxr.metrics.comparison.holm", lambda values: sizes.append(len(values)) or holm(values))
    base = simulate_findings(50)
    truth = base.truth
    truth[:, 2] = 0
    base = to_predictions(truth, base.probability)
    rows = compare_models({name: add_noise(base, 1, seed) for seed, name in enumerate("xyz")}).rows
    assert sizes == [3, 3, 6], "macro AUROC, macro average precision, and two findings of three pairs"
    assert rows[1]["findings"]["Mass"] == {"auroc": None}


def test_models_whose_evaluated_labels_differ_are_refused():
    base = simulate_findings(50, unknown=0.2)
    truth = base.truth
    row = int(np.flatnonzero(~np.isnan(truth[:, 1]))[0])
    for other in (np.nan, 1 - truth[row, 1]):
        changed = truth.copy()
        changed[row, 1] = other
        models = {"x": base, "y": to_predictions(changed, base.probability, patients=range(len(truth)))}
        with pytest.raises(
            DataError, match=rf"x and y have different labels for 1 image, first {row:06}\.png"
        ) as error:
            compare_models(models)
        assert error.value.code == "E312"


def test_a_model_of_findings_and_one_of_classes_are_not_compared():
    base = simulate_findings(20, ("Edema", "Mass"))
    rows = base.table[["source", "path", "patient", "split"]].assign(label="Edema")
    single = make_predictions(rows, np.full((len(rows), 2), 0.5), ("Edema", "Mass"))
    with pytest.raises(DataError, match="x has the findings Edema, Mass, but y has the classes Edema, Mass"):
        compare_models({"x": base, "y": single})


def test_the_table_of_metrics_has_a_row_for_each_metric_of_each_finding():
    predictions = join(simulate_findings(60, seed=1, split="valid"), simulate_findings(80, unknown=0.2))
    table, metrics = predictions.metrics(), evaluate_predictions(predictions)["test"]
    of_test = table[table["split"] == "test"].set_index(["class", "metric"])
    assert of_test.loc[("all findings", "auroc_weighted"), "value"] == metrics["auroc"]["weighted"]
    row = of_test.loc[("Mass", "npv")]
    assert row["value"] == metrics["per_class"]["Mass"]["npv"]
    assert [row["low"], row["high"]] == metrics["intervals"]["of"]["per_class.Mass.npv"]
    assert row["n_images"] == metrics["per_class"]["Mass"]["positives"]
    assert len(of_test) == 6 + 8 * len(FINDINGS)


def test_the_notebook_display_has_the_macro_means_of_findings():
    text = simulate_findings(40)._repr_html_()
    assert "average precision, macro" in text and "highest probability" in text and "accuracy" not in text


def test_most_wrong_are_missed_findings_and_false_alarms_of_each_finding():
    truth = np.array([[1, 0], [1, 0], [0, 1], [0, np.nan], [0, 0]])
    probability = np.array([[0.2, 0.3], [0.7, 0.9], [0.4, 0.1], [0.8, 0.99], [0.4, 0.2]])
    found = select_most_wrong(to_predictions(truth, probability, ("Edema", "Mass")), 3)
    rows = list(zip(found["finding"], found["path"].str[5], strict=True))
    edema = [("Edema", "0"), ("Edema", "1"), ("Edema", "3")]
    assert rows == [*edema, ("Mass", "2"), ("Mass", "1"), ("Mass", "0")]
    assert select_most_wrong(to_predictions(truth, probability, ("Edema", "Mass"), split=""), 3).empty
