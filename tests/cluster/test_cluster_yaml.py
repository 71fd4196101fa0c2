"""cluster.yaml and cluster.local.yaml: accepted by Ray's own validator, and what their comments promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement


@pytest.fixture
def text(root: Path) -> str:
    return (root / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def cluster(text: str) -> dict[str, Any]:
    config = yaml.safe_load(text)
    assert isinstance(config, dict)
    return config


@pytest.fixture
def local(root: Path) -> dict[str, Any]:
    config = yaml.safe_load((root / "cluster.local.yaml").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` completes and validates it, before it asks the cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(cluster)
    validate_config(config)
    return config


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert set(config["available_node_types"]) == {"head", "gpu"}


def test_ray_accepts_the_one_for_own_machines(local: dict[str, Any]) -> None:
    assert prepared(local)["max_workers"] == len(local["provider"]["worker_ips"])


def test_both_run_the_same_commands(cluster: dict[str, Any], local: dict[str, Any]) -> None:
    of_aws = {"available_node_types", "head_node_type", "max_workers", "idle_timeout_minutes", "upscaling_speed"}
    assert set(cluster) - set(local) == of_aws and set(local) <= set(cluster)
    for key in set(local) - {"provider", "auth", "docker"}:
        same = yaml.safe_dump(local[key]).replace("RAY_enable_autoscaler_v2=0 ", "")
        assert yaml.safe_load(same) == cluster[key], key
    assert local["docker"]["image"] == cluster["docker"]["worker_image"]
    for key in ("run_options", "head_run_options"):
        assert local["docker"][key] == cluster["docker"][key]


def test_ray_refuses_a_wrong_key(cluster: dict[str, Any]) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="'max_worker' was unexpected"):
        prepared(cluster | {"max_worker": 3})


def test_every_node_can_make_a_sandbox(cluster: dict[str, Any]) -> None:
    assert any("install" in step and "bubblewrap" in step for step in cluster["setup_commands"])
    assert any(option == "--ulimit nofile=65536:65536" for option in cluster["docker"]["run_options"])
    allowed = {option.split()[-1] for option in cluster["docker"]["run_options"] if "security-opt" in option}
    assert allowed == {"seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"}


def test_all_of_ray_asks_for_the_token(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_many_files_may_be_open(cluster: dict[str, Any]) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = (command for command in commands if "ray start" in command)
        assert start.startswith("ulimit -n 65536; ")


def test_head_is_on_demand_and_gpu_workers_start_at_none(cluster: dict[str, Any]) -> None:
    head, gpu = cluster["available_node_types"]["head"], cluster["available_node_types"]["gpu"]
    assert cluster["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] <= 15


def test_versions_are_pyproject_s(cluster: dict[str, Any], text: str, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ray = next(r for r in map(Requirement, project["optional-dependencies"]["platform"]) if r.name == "ray")
    images = [cluster["docker"][key] for key in ("head_image", "worker_image")]
    pins = [re.fullmatch(r"rayproject/ray:([\d.]+)-py311-[cg]pu", image) for image in images]
    versions = {pin[1] if pin else "unpinned" for pin in pins} | set(re.findall(r"ray\[default\]==([\d.]+)", text))
    assert len(versions) == 1
    assert ray.specifier.contains(versions.pop())


def test_the_project_is_installed_with_extras_that_exist(cluster: dict[str, Any], root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (step,) = (step for step in cluster["setup_commands"] if "pip install" in step)
    assert 'pip install --editable ".[platform,vllm,s3]"' in (root / "README.md").read_text(encoding="utf-8")
    (named,) = re.findall(r'"\.\[([a-z0-9,]+)\]"', step)
    assert set(named.split(",")) <= set(extras)
    assert step.startswith(f"cd {next(iter(cluster['file_mounts']))} && ")


def test_the_dashboard_and_mlflow_listen_on_localhost(cluster: dict[str, Any], root: Path) -> None:
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "mlflow server --host 127.0.0.1" in (root / "scripts" / "start_mlflow.sh").read_text(encoding="utf-8")
    assert "0.0.0.0" not in yaml.safe_dump(cluster)


def test_holds_no_secret(text: str) -> None:
    assert not re.search(r"AKIA|aws_secret|password|PRIVATE KEY|hf_\w{8}", text, re.IGNORECASE)
    assert "_TOKEN" not in text
    # Account and image are left for the user to fill in.
    assert set(re.findall(r"(?:ami-|iam::)([0-9a-f]+)", text)) == {"0" * 17, "0" * 12}


def test_commands_in_the_comments_name_real_options(text: str, root: Path) -> None:
    options = set(re.findall(r"--(?:suite|preset|data-dir|max-concurrent)\b", text))
    sources = [root / "pipelines" / "sweep.py", root / "platform" / "beamplatform" / "cli/options.py"]
    parser = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert options
    assert all(f'"{option}"' in parser for option in options)
