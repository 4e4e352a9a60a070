import json

import pytest
import torch

from tokenflow import TokenFlowTokenizer
from tokenflow.cli import main
from tokenflow.doctor import Finding, examine, kernels, models, render, software
from tokenflow.doctor.kernels import sdpa_backends
from tokenflow.doctor.software import apex_kind
from tokenflow.tokenizer.presets import preset


@pytest.fixture(scope="module")
def findings():
    return examine()


def named(findings, name) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_everything_is_judged_and_what_is_not_well_has_a_remedy(findings):
    names = {finding.name for finding in findings}
    assert {
        "python", "cpu", "disk", "C++ compiler", "ninja", "numactl", "required", "torch", "torchvision", "bf16",
        "collectives", "nearest code", "attention", "flash-attn", "apex", "triton", "LPIPS", "rFID", "mlflow",
    } <= names  # fmt: skip
    for finding in findings:
        assert finding.status in ("ok", "missing", "broken", "note")
        assert finding.remedy or finding.status in ("ok", "note"), finding


def test_kernels_are_really_tried(findings, monkeypatch):
    assert named(findings, "nearest code").status == "ok"
    assert "math" in sdpa_backends(torch.device("cpu"))
    monkeypatch.setattr(kernels, "nearest_code", lambda features, *_, backend="auto", **__: torch.tensor(len(backend)))
    broken = named(list(kernels.kernels()), "nearest code")
    assert broken.status == "broken" and "differs" in broken.detail


def test_apex_of_the_registry_is_not_taken_for_nvidias(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('must not be imported')")
    assert apex_kind() == "other"
    assert "source only" in named(list(software.accelerators()), "apex").remedy
    (tmp_path / "apex" / "optimizers").mkdir()
    assert apex_kind() == "nvidia"


def test_a_package_too_old_or_absent_is_broken_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(software, "requires", lambda _: ["torch>=999", "no-such-package>=1", 'x; extra == "gpu"'])
    found = {finding.name: finding for finding in software.packages()}
    assert found["torch"].status == found["no-such-package"].status == "broken"
    assert found["torch"].remedy == 'pip install "torch>=999"'
    assert "x" not in found


def test_measures_are_found_once_their_weights_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    absent = named(list(software.measures()), "LPIPS")
    assert absent.status == "missing" and "https://" in absent.remedy
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / software.VGG16_FILE).write_bytes(b"")
    assert named(list(software.measures()), "LPIPS").status == "ok"


def test_a_tokenizer_is_loaded_and_tried(tmp_path):
    TokenFlowTokenizer(preset("tokenflow-nano")).save_pretrained(tmp_path / "good")
    found = list(models.tokenizer(tmp_path / "good"))
    assert [finding.status for finding in found] == ["ok", "ok"]
    assert "M parameters" in found[0].detail
    (tmp_path / "empty").mkdir()
    assert [finding.status for finding in models.tokenizer(tmp_path / "empty")] == ["broken"]


def test_the_command_prints_text_or_json_and_its_code_says_whether_all_is_well(findings, monkeypatch, capsys):
    broken = Finding(group="g", name="gear", status="broken", detail="stuck", remedy="oil it")
    for extra, code in (([], 0), ([broken], 1)):
        listed = [*(finding for finding in findings if finding.status != "broken"), *extra]
        monkeypatch.setattr("tokenflow.commands.doctor.examine", lambda model, overfit_on, listed=listed: listed)
        assert main(["doctor"]) == code
        text = capsys.readouterr().out
        assert ("needs mending: gear" in text) == bool(extra) and ("oil it" in text) == bool(extra)
        assert main(["doctor", "--json"]) == code
        assert len(json.loads(capsys.readouterr().out)) == len(listed)


def test_text_has_no_line_wider_than_a_wide_terminal(findings):
    assert all(len(line) <= 110 or " " not in line.strip() for line in render(findings).splitlines())
