"""Profiles and artefacts: what a machine lacks, or a reader has not made yet, is said at once."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from finer1_lite import config
from finer1_lite.config import PROFILES, artefact, get_profile, runs_folder, suggest_profile
from finer1_lite.departures import departures


def test_without_cuda_the_cpu_profile_fits_and_others_say_what_they_need(monkeypatch):
    with pytest.raises(ValueError, match="unknown profile 'rtx'; choose one of: cpu, t4"):
        get_profile("rtx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suggest_profile()[0] == "cpu"
    for name in PROFILES.keys() - {"cpu"}:
        with pytest.raises(RuntimeError, match=f'profile {name!r} needs a CUDA GPU.*PROFILE = "cpu"'):
            get_profile(name)


@pytest.mark.parametrize("gib, half, fits", [
    (15, False, "t4"), (22, True, "l4"), (40, True, "a100"), (80, True, "h100"),
])  # fmt: skip
def test_the_card_decides_which_profile_fits(monkeypatch, gib, half, fits):
    card = SimpleNamespace(name="a card", total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or half)
    assert suggest_profile()[0] == fits and get_profile(fits).name == fits
    if not half:
        with pytest.raises(RuntimeError, match='bfloat16, which this card lacks; set PROFILE = "t4"'):
            get_profile("l4")


def test_runs_lie_beside_the_project_or_where_the_reader_says(tmp_path, monkeypatch):
    monkeypatch.delenv("FINER1_RUNS", raising=False)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert runs_folder() == tmp_path / "a" / "b" / "runs"
    (tmp_path / "pyproject.toml").touch()
    assert runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("FINER1_RUNS", "elsewhere")
    assert runs_folder() == tmp_path / "a" / "b" / "elsewhere"


def test_an_artefact_is_the_own_one_then_the_shipped_one_else_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINER1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(config, "ASSETS", tmp_path / "assets")
    profile = get_profile("cpu")
    with pytest.raises(FileNotFoundError, match="cot_sft is not in .*: run chapter 2 first"):
        artefact(profile, "cot_sft")
    shipped = tmp_path / "assets" / "reference" / "cot_sft"
    shipped.mkdir(parents=True)
    assert artefact(profile, "cot_sft") == shipped and "shipped" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="run chapter 2 first"):  # the 3B must not get a tiny adapter
        artefact(replace(profile, name="l4"), "cot_sft")
    own = profile.run_dir / "cot_sft"
    own.mkdir(parents=True)
    assert artefact(profile, "cot_sft") == own and "runs/cpu/cot_sft" in capsys.readouterr().out


def test_every_shipped_adapter_loads_and_holds_no_path_of_a_machine():
    folders = [p.parent for p in config.ASSETS.rglob("adapter_config.json")]
    assert {f.name for f in folders} >= {"teacher", "sft_answers", "cot_sft", "dapo", "tapo"}
    for folder in folders:
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base == "finer1_lite/birds/assets/base"
        assert (folder / "adapter_model.safetensors").exists() and not list(folder.glob("*.bin"))
    assert sum(p.stat().st_size for p in config.ASSETS.rglob("*") if p.is_file()) < 15e6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator's blocks cannot grow")
@pytest.mark.parametrize("told, kept", [
    ({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "backend:native"}, None),
])  # fmt: skip
def test_the_allocator_s_blocks_grow_unless_the_reader_says_otherwise(told, kept):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    code = "import os, finer1_lite; print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
    asked = subprocess.run([sys.executable, "-c", code], env=clean | told, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == str(kept)


def test_departures_are_those_of_the_profile():
    tables = {name: departures(profile) for name, profile in PROFILES.items()}
    assert all(table.index.is_unique and not table.isna().any(axis=None) for table in tables.values())
    here = {name: table.iloc[:, 1] for name, table in tables.items()}
    assert here["l4"]["weights"] == "LoRA, r 16, on NF4" and here["a100_bf16"]["weights"].endswith("bfloat16")
    assert here["l4"]["pixels, stage 2"] == "200,704 at most" and here["l4"]["learning rates"] == "0.0001 and 2e-05"
    assert departures(replace(PROFILES["l4"], system="Think."))["here (l4)"]["system turn"] == "Think."
