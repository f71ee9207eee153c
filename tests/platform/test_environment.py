"""What a run says of its surroundings."""

import subprocess

import torch

from megatron_llava.platform.environment import git_commit, run_environment


def git(folder, *arguments):
    flags = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *flags, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_commit_is_that_of_the_files_own_repository(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(file) == commit and len(commit) == 40
    # A copy that was installed into some folder of the repository is none of its files.
    (tmp_path / "site-packages").mkdir()
    installed = tmp_path / "site-packages" / "a.py"
    installed.write_text("1")
    assert git_commit(installed) is None and git_commit(file) == commit
    file.write_text("2")
    assert git_commit(file) == f"{commit} with local changes"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path / "a.py") is None
    assert "git commit" not in run_environment(torch.device("cpu"))


def test_an_environment_names_versions_and_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = run_environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["device"] == "CPU"
    assert found["ranks"] == "4" and found["megatron-core"].startswith("0.16")
    assert all(isinstance(value, str) and value for value in found.values())
