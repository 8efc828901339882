"""Limits of containers are read from either version of control groups."""

import os

import pytest

from needle.backends.cpu import linux
from needle.train import environment


def write(root, name, text):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "junk"}, None),
        ({"cpu.max": "100 0"}, None),
        ({}, None),
    ],
)
def test_cpu_quota(tmp_path, files, quota):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert environment.cpu_quota(tmp_path) == quota


def test_memory_limit_is_the_smallest(tmp_path):
    machine = environment.memory_limit(tmp_path)
    write(tmp_path, "memory.max", "1048576\n")
    assert environment.memory_limit(tmp_path) == 1048576
    write(tmp_path, "memory.max", "max\n")
    assert environment.memory_limit(tmp_path) == machine


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (1e9, None), (None, None)])
def test_available_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(linux, "cpu_quota", lambda *places: quota)
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity masks on this system")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert environment.available_cores() == (cores or 3)


def test_description_is_text():
    description = environment.describe()
    assert all(isinstance(value, str) and value for value in description.values())
    assert {"needle", "numpy", "processor", "cores"} <= set(description)
    assert environment.cpu_features() == sorted(environment.cpu_features())
