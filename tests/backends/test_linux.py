"""Cores, quotas and waiting, on Linux as it presents itself in machines and containers."""

import os
import sys

import pytest

from needle.backends.cpu import linux, target, threads


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


V2 = "0::/system/needle.service/inner\n"
V1 = "9:name=systemd:/x\n4:cpu,cpuacct:/docker/abc\n3:memory:/docker/def\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        # Version 2: on the process' own group, or on any above it.
        (V2, {"system/needle.service/inner/cpu.max": "150000 100000"}, 1.5),
        (V2, {"system/needle.service/inner/cpu.max": "max 100000", "system/cpu.max": "3 1"}, 3.0),
        (V2, {"system/needle.service/cpu.max": "2 1", "system/cpu.max": "5 1",
              "cpu.max": "9 1"}, 2.0),
        (V2, {"system/other.service/cpu.max": "1 1"}, None),
        # In a namespace of its own the process sees its group as the root.
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        (V2, {"cpu.max": "250000 100000"}, 2.5),
        ("0::/../outside\n", {"cpu.max": "4 1"}, 4.0),
        # Version 1, where the controller is mounted under either name.
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "70000",
              "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 0.7),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "70000",
              "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 0.7),
        (V1, {"cpu,cpuacct/docker/cpu.cfs_quota_us": "300000",
              "cpu,cpuacct/docker/cpu.cfs_period_us": "100000"}, 3.0),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1",
              "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
        ("garbage\n::\n1:cpu\n", {"cpu.max": "1 1"}, 1.0),
    ],
)  # fmt: skip
def test_quota_of_groups_above(tmp_path, own, files, quota):
    for name, text in files.items():
        write(tmp_path / "groups", name, text)
    (tmp_path / "own").write_text(own)
    assert linux.cpu_quota(tmp_path / "groups", tmp_path / "own") == quota


def test_no_control_groups(tmp_path):
    assert linux.cpu_quota(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("allowed", "siblings", "quota", "threads"),
    [
        ([0, 1, 2, 3], ["0-1", "0-1", "2-3", "2-3"], None, 2),  # two threads on each core
        ([0, 1, 2, 3], ["0,2", "1,3", "0,2", "1,3"], None, 2),
        ([0, 2, 3], ["0", "1", "2", "3"], None, 3),
        ([1], ["0-1", "0-1"], None, 1),
        ([0, 1, 2, 3], ["0", "1", "2", "3"], "150000 100000", 2),
        ([0, 1, 2, 3], ["0", "1", "2", "3"], "10000 100000", 1),
        ([0, 1, 2, 3], ["0-1", "0-1", "2-3", "2-3"], "300000 100000", 2),
        ([5, 6], [], None, 2),  # a system that does not say
    ],
)
def test_default_threads(tmp_path, monkeypatch, allowed, siblings, quota, threads):
    monkeypatch.setattr(linux, "allowed_cores", lambda: allowed)
    for core, text in enumerate(siblings):
        write(tmp_path, f"cpus/cpu{core}/topology/thread_siblings_list", text + "\n")
    if quota:
        write(tmp_path, "groups/cpu.max", quota)
    places = (tmp_path / "groups", tmp_path / "own", tmp_path / "cpus")
    assert linux.default_threads(*places) == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert linux.allowed_cores() == [min(before)]
        assert linux.available_cores() == linux.default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_amx_is_asked_for_only_where_it_is():
    has = linux.has_amx()
    assert isinstance(has, bool)
    if has:
        assert sys.platform == "linux"
        assert target.host().has("amx-tile")


@pytest.mark.parametrize("architecture", ["x86", "aarch64", ""])
@pytest.mark.parametrize("futex", [False, True])
def test_the_pool_is_made_for_all_systems(architecture, futex):
    """For other processors the code is generated and not run."""
    from needle.backends.cpu import jit
    from needle.backends.cpu.module import Module

    module = Module(target.NEON if architecture == "aarch64" else None)
    module.add_text(threads.pool_ir(architecture, futex))
    assert len(jit.compile_object(module)) > 1000
