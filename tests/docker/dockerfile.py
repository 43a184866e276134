"""The Dockerfile, taken apart as far as its tests ask."""

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass
class Stage:
    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # instruction and what follows it


def read_dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first stage with their defaults, and the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            parent, word, name = rest.split()
            assert word == "AS"
            stages.append(Stage(name, parent))
        elif stages:
            stages[-1].steps.append((instruction, rest.strip()))
        else:
            name, _, default = rest.partition("=")
            arguments[name] = default
    return arguments, {stage.name: stage for stage in stages}


ARGUMENTS, STAGES = read_dockerfile()


def steps(target: str, wanted: str) -> list[str]:
    """Of a stage and all that it grew from, oldest first."""
    stage = STAGES[target]
    older = steps(stage.parent, wanted) if stage.parent in STAGES else []
    return older + [rest for instruction, rest in stage.steps if instruction == wanted]


def environment(target: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in steps(target, "ENV") for pair in rest.split())


def health_check(target: str) -> tuple[dict[str, str], list[str]]:
    """Options and command."""
    options, _, command = steps(target, "HEALTHCHECK")[-1].partition("CMD ")
    return dict(re.findall(r"--([a-z-]+)=(\S+)", options)), json.loads(command)


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])
