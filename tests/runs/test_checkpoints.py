"""Checkpoints are restored bit-identically, and damaged ones are clear errors."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nfsd3d.errors import InputError
from nfsd3d.runs import checkpoint_file, checkpoints, identity
from nfsd3d.runs.checkpoint_file import Damaged, parse_header, read, step_of

RECORD = {"seconds": 1.5, "network_evaluations": 9, "metrics": {"grad_norm": 2.0}}


def parts(width=4):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2), nn.Linear(2, 1))
    network.register_buffer("mask", torch.tensor([True, False]))
    groups = [{"params": network[0].parameters(), "lr": 0.1}, {"params": network[1].parameters(), "lr": 0.2}]
    return network, torch.optim.AdamW(groups, lr=0.1), torch.Generator().manual_seed(3)


def advance(network, optimizer, rng, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(5, 3, generator=rng)).square().sum().backward()
        optimizer.step()


def save(folder, step=3, keep=2, trained=None, **options):
    network, optimizer, rng = trained or parts()
    advance(network, optimizer, rng)
    path = checkpoints.save(folder, step, network, optimizer, rng, record=RECORD, keep=keep, **options)
    return path, (network, optimizer, rng)


def test_a_restored_run_continues_bit_identically(tmp_path):
    path, original = save(tmp_path)
    original[0].mask[0] = False
    path, original = save(tmp_path, trained=original)
    restored = parts()
    checkpoint = read(path)
    checkpoints.load(checkpoint, *restored)
    assert (checkpoint.steps, checkpoint.record) == (3, RECORD)
    assert not restored[0].mask.any()
    advance(*original)
    advance(*restored)
    for one, other in zip(original[0].parameters(), restored[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(original[2].get_state(), restored[2].get_state())


def test_learning_rates_stay_those_of_the_configuration(tmp_path):
    path, _ = save(tmp_path)
    network, optimizer, rng = parts()
    optimizer.param_groups[1]["lr"] = 0.7
    checkpoints.load(read(path), network, optimizer, rng)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.7]
    assert all(float(moments["step"]) == 3 for moments in optimizer.state.values())


def test_the_newest_are_kept_in_order_of_steps(tmp_path):
    for step in (5, 20, 100, 999_999, 1_000_000):
        save(tmp_path, step, keep=3)
    assert [step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [100, 999_999, 1_000_000]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json"] * 3 + [".safetensors"] * 3  # nothing pickled
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.newest(tmp_path)  # a run keeps them in checkpoints/


def test_the_newest_sound_one_is_kept_besides_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in range(1, 7):
        save(folder, step, keep=2, sound=step in (1, 3))
    assert [step_of(path) for path in checkpoints.list_checkpoints(folder)] == [3, 5, 6]
    assert checkpoints.newest(tmp_path).steps == 6
    assert checkpoints.newest(tmp_path, sound=True).steps == 3
    save(folder, 7, keep=2, sound=True)
    assert [step_of(path) for path in checkpoints.list_checkpoints(folder)] == [6, 7]


def test_a_run_without_sound_checkpoint_says_so(tmp_path):
    save(tmp_path / "checkpoints", sound=False)
    with pytest.raises(InputError, match="no sound checkpoint"):
        checkpoints.newest(tmp_path, sound=True)


def test_a_state_is_sound_unless_it_is_said_not_to_be(tmp_path):
    path, _ = save(tmp_path)
    assert read(path).header["sound"] is True
    header = json.loads(path.read_text()) | {"format": checkpoint_file.FORMAT_1}
    del header["sound"], header["checksum"]  # version 0.1 had neither
    path.write_text(json.dumps(header))
    assert read(path).header["sound"] is True
    checkpoint_file.write(tmp_path / "step-000009.json", {"generator.w": torch.ones(1)})
    assert read(tmp_path / "step-000009.json").header["sound"] is True


@pytest.mark.parametrize("kept", [1, 2])
def test_a_damaged_checkpoint_is_not_kept_as_the_newest_sound_one(tmp_path, kept):
    first, _ = save(tmp_path, step=1, keep=9)
    second, _ = save(tmp_path, step=2, keep=9)
    second.write_text("{")
    save(tmp_path, step=3, keep=kept, sound=False)
    there = [step_of(path) for path in checkpoints.list_checkpoints(tmp_path)]
    assert there == ([1, 3] if kept == 1 else [1, 2, 3]) and read(first).steps == 1


@pytest.mark.parametrize(
    "remove", [lambda folder: checkpoints.remove_later(folder, 0), lambda folder: save(folder, 9, 1)]
)
def test_files_that_another_process_removes_meanwhile_are_no_error(tmp_path, monkeypatch, remove):
    for step in (1, 2, 3):
        save(tmp_path, step=step, keep=9)
    unlink = Path.unlink

    def twice(path, missing_ok=False):
        if path.suffix == ".safetensors" and path.stem.startswith("step-") and path.exists():
            unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", twice)
    remove(tmp_path)
    assert [step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] in ([], [9])


def test_the_id_of_a_run_without_its_file_is_that_of_the_newest_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    tensors = {"generator.w": torch.ones(2)}
    checkpoint_file.write(folder / "step-000001.json", tensors, run="a")
    assert checkpoints._run_of(folder) == "a"
    checkpoint_file.write(folder / "step-000002.json", tensors, run="b")
    checkpoint_file.write(folder / "step-000003.json", tensors, run="c")
    assert checkpoints._run_of(folder) == "c"
    checkpoint_file.write(folder / "step-000004.json", tensors)
    assert checkpoints._run_of(folder) is None


def test_a_run_that_goes_back_leaves_no_later_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6, 3):
        save(folder, step, keep=3)
    assert [step_of(path) for path in checkpoints.list_checkpoints(folder)] == [2, 3]
    checkpoints.remove_later(folder, 2)
    assert {path.name for path in folder.iterdir()} == {"step-000002.json", "step-000002.safetensors"}


def test_only_the_generator_may_be_loaded(tmp_path):
    path, (network, _, _) = save(tmp_path)
    other = parts()[0]
    only = read(path).generator_only()
    checkpoints.load_generator(only, other)
    assert only.steps == 3 and all(name.startswith("generator.") for name in only.tensors)
    assert torch.equal(other[0].weight, network[0].weight)


def _truncate(path):
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-50])


def _flip_one_bit(path):
    weights = path.with_suffix(".safetensors")
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)


def _edit(**changes):
    def edit(path):
        header = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in header.items() if value is not None}))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "damaged"),
        (_flip_one_bit, "damaged"),
        (lambda path: path.with_suffix(".safetensors").unlink(), "is missing"),
        (lambda path: path.write_text("{"), "damaged"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "damaged"),
        (lambda path: path.write_text("[1]"), "not a checkpoint"),
        (_edit(format="another program"), "not a checkpoint"),
        (_edit(step=4), "checksum differs"),
        (_edit(record=None), "checksum differs"),
        (_edit(checksum=None), "checksum differs"),
        (_edit(checksum=None, format="nfsd3d checkpoint 1", step="3"), "incomplete"),
        (_edit(checksum=None, format="nfsd3d checkpoint 1", record=None), "incomplete"),
        (_edit(checksum=None, format="nfsd3d checkpoint 1", record={"seconds": 1}), "incomplete"),
        (_edit(checksum=None, format="nfsd3d checkpoint 1", step=4), "content of step 4"),
        (_edit(format="nfsd3d checkpoint 1"), "checksum differs"),
    ],
)
def test_damage_is_an_error_with_a_remedy(tmp_path, damage, words):
    path, _ = save(tmp_path / "checkpoints")
    damage(path)
    with pytest.raises(InputError, match=rf"step-000003.*{words}.*start the run anew"):
        checkpoints.newest(tmp_path)


def flipped(content, byte, bit):
    changed = bytearray(content)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def test_every_flipped_bit_of_the_json_file_is_found_or_changes_nothing(tmp_path):
    path, _ = save(tmp_path)
    content = path.read_bytes()
    header, found = parse_header(path, content), 0
    for byte in range(len(content)):
        for bit in range(8):
            try:
                assert parse_header(path, flipped(content, byte, bit)) == header
            except Damaged:
                found += 1
    assert 0.99 * 8 * len(content) < found <= 8 * len(content)


def test_every_flipped_byte_and_every_truncation_is_found(tmp_path):
    path, _ = save(tmp_path)
    files = [path, path.with_suffix(".safetensors")]
    for file in files:
        content = file.read_bytes()
        damaged = [flipped(content, byte, byte % 8) for byte in range(0, len(content), 29)]
        damaged += [content[:length] for length in range(0, len(content) - 1, 97)]
        for change in damaged:
            file.write_bytes(change)
            with pytest.raises(Damaged):
                read(path)
        file.write_bytes(content)
    assert read(path).steps == 3


@pytest.mark.parametrize(
    ("suffixes", "words"), [([".json", ".safetensors"], "content of step 3"), ([".safetensors"], "checksum differs")]
)
def test_files_of_another_step_are_damaged(tmp_path, suffixes, words):
    path, trained = save(tmp_path, 3)
    other, _ = save(tmp_path, 6, trained=trained)
    for suffix in suffixes:
        shutil.copy(path.with_suffix(suffix), other.with_suffix(suffix))
    with pytest.raises(Damaged, match=words):
        read(other)


@pytest.mark.parametrize("damage", [_truncate, _flip_one_bit, lambda path: path.write_text("{")])
def test_the_newest_intact_one_is_used_and_one_line_says_so(tmp_path, capsys, damage):
    for step in (2, 4, 6):
        path, _ = save(tmp_path / "checkpoints", step, keep=3)
    damage(path)
    assert checkpoints.newest(tmp_path).steps == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-000006" in line and "damaged" in line and line.endswith("step 4 is used instead")
    assert "delete" not in line and path.exists()


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_checkpoint_that_cannot_be_opened_now_is_neither_skipped_nor_removed(tmp_path, monkeypatch, suffix):
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        save(folder, step, sound=step == 2)
    original = checkpoint_file.read_bytes

    def read_bytes(path):
        if path.name == f"step-000002{suffix}":
            raise OSError(errno.EMFILE, "Too many open files")
        return original(path)

    monkeypatch.setattr(checkpoint_file, "read_bytes", read_bytes)
    with pytest.raises(OSError, match="Too many open files"):
        checkpoints.newest(tmp_path, sound=True)
    with contextlib.suppress(OSError):
        save(folder, 6, keep=1, sound=False)
    assert (folder / "step-000002.json").exists() and (folder / "step-000002.safetensors").exists()


def test_names_are_on_the_disk_before_older_files_are_removed(tmp_path, monkeypatch):
    save(tmp_path, 2, keep=1)
    events = []
    sync, unlink = os.fsync, Path.unlink

    def fsync(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def remove(self, **options):
        events.append(self.name)
        unlink(self, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", remove)
    save(tmp_path, 4, keep=1)
    events = [event for event in events if not event.startswith(".nfsd3d-")]
    assert events == ["file", "file", "folder", "step-000002.json", "step-000002.safetensors"]


@pytest.mark.parametrize("name", ["step-000006.json", "step-000006.safetensors"])
def test_a_directory_or_dangling_link_in_place_of_a_file_is_damage(tmp_path, capsys, name):
    folder = tmp_path / "checkpoints"
    for step in (4, 6):
        save(folder, step)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "nothing")
    assert checkpoints.newest(tmp_path).steps == 4
    (folder / name).unlink()
    (folder / name).mkdir()
    assert checkpoints.newest(tmp_path).steps == 4
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damage(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "checkpoints"
    for step in (4, 6):
        path, _ = save(folder, step)
    original = checkpoint_file.read_bytes

    def read_bytes(file):
        if file.name == "step-000006.safetensors":  # the run removes the pair after its JSON file was read
            path.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        return original(file)

    monkeypatch.setattr(checkpoint_file, "read_bytes", read_bytes)
    assert checkpoints.newest(tmp_path).steps == 4
    assert capsys.readouterr().err == ""


def test_a_run_that_saves_and_removes_can_be_read_at_any_time(tmp_path, capsys):
    folder, ended, failures = tmp_path / "checkpoints", threading.Event(), []
    trained = parts()
    save(folder, 1, keep=1, trained=trained)

    def train():
        step = 1
        try:
            while not ended.is_set():
                step += 1
                save(folder, step, keep=1, trained=trained)
                time.sleep(0.002)
        except Exception as error:
            failures.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        steps = []
        while not failures and (len(steps) < 200 or len(set(steps)) <= 10):
            checkpoint = checkpoints.newest(tmp_path)
            checkpoints.load_generator(checkpoint, parts()[0])
            steps.append(checkpoint.steps)
    finally:
        ended.set()
        trainer.join()
    assert not failures and capsys.readouterr().err == ""
    assert steps == sorted(steps)


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def listdir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(checkpoints.os, "listdir", listdir)
    with pytest.raises(InputError, match=r"checkpoints cannot be read \(Permission denied\)"):
        checkpoints.newest(tmp_path)


def test_what_was_read_outlives_its_files_and_its_use(tmp_path):
    path, original = save(tmp_path)
    checkpoint = read(path)
    shutil.rmtree(tmp_path)
    restored = parts()
    for _ in range(2):  # training on changes nothing in the checkpoint
        checkpoints.load(checkpoint, *restored)
        assert torch.equal(restored[0][0].weight, original[0][0].weight)
        assert torch.equal(restored[2].get_state(), original[2].get_state())
        advance(*restored)


def test_numbers_that_json_cannot_hold_are_saved_as_null(tmp_path):
    record = {**RECORD, "metrics": {"psnr": float("inf"), "opacity": 0.5}}
    path = checkpoints.save(tmp_path, 3, *parts(), record=record, keep=1)
    assert read(path).record["metrics"] == {"psnr": None, "opacity": 0.5}
    again = checkpoints.save(tmp_path, 3, *parts(), record=read(path).record, keep=1)
    assert read(again).record["metrics"] == {"psnr": None, "opacity": 0.5}


def test_a_generator_of_another_shape_is_an_error(tmp_path):
    path, _ = save(tmp_path)
    with pytest.raises(InputError, match=r"another generator.*0\.bias"):
        checkpoints.load(read(path), *parts(width=5))


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
    save(tmp_path, 2)
    path, _ = save(tmp_path, 4)
    path.unlink()  # as if the process had died between the two files
    assert [step_of(found) for found in checkpoints.list_checkpoints(tmp_path)] == [2]
    save(tmp_path, 6)
    assert not path.with_suffix(".safetensors").exists()


class Learner:
    """A network beside the generator."""

    def __init__(self, width=4):
        torch.manual_seed(1)
        self.network = nn.Linear(3, width)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)

    def state_dict(self):
        return self.network.state_dict()

    def load_state_dict(self, state_dict):
        self.network.load_state_dict(state_dict)

    def learn(self):
        self.optimizer.zero_grad()
        self.network(torch.ones(2, 3)).square().sum().backward()
        self.optimizer.step()
        return self


def test_a_lora_network_is_restored_with_its_optimiser(tmp_path):
    original, restored = Learner().learn(), Learner()
    path, _ = save(tmp_path, lora=original)
    checkpoints.load(read(path), *parts(), restored)
    original.learn()
    restored.learn()
    assert torch.equal(original.network.weight, restored.network.weight)


def test_a_lora_network_that_is_missing_or_of_another_shape_is_an_error(tmp_path):
    path, _ = save(tmp_path)
    with pytest.raises(InputError, match=r"another second network.*do not override distill"):
        checkpoints.load(read(path), *parts(), Learner())
    path, _ = save(tmp_path, 4, lora=Learner().learn())
    with pytest.raises(InputError, match="another second network"):
        checkpoints.load(read(path), *parts(), Learner(width=5))


def test_before_the_first_step_optimisers_have_no_moments(tmp_path):
    network, optimizer, rng = parts()
    path = checkpoints.save(tmp_path, 0, network, optimizer, rng, record=RECORD, keep=1, lora=Learner())
    restored = parts()
    checkpoints.load(read(path), *restored, Learner())
    advance(network, optimizer, rng)
    advance(*restored)
    assert torch.equal(network[0].weight, restored[0][0].weight)
    late = checkpoints.save(tmp_path, 1, *parts(), record=RECORD, keep=1)
    with pytest.raises(InputError, match="optimiser's state does not fit"):
        checkpoints.load(read(late), *parts())


def test_weights_that_safetensors_cannot_read_are_told_with_its_reason(tmp_path):
    path, _ = save(tmp_path)
    header = json.loads(path.read_text())
    path.with_suffix(".safetensors").write_bytes(content := b"no tensors")
    header |= {"format": checkpoint_file.FORMAT_1, "sha256": hashlib.sha256(content).hexdigest()}
    del header["checksum"]
    path.write_text(json.dumps(header))
    with pytest.raises(Damaged, match=r"step-000003\.safetensors is damaged \(.*header.*\)"):
        read(path)


def test_tensors_of_version_0_1_are_read_under_current_names(tmp_path):
    old, value = tmp_path / "step-000001.json", torch.ones(2)
    checkpoint_file.write(old, {"particle.down.particle.": value, "particle_optimizer.x": value, "generator.w": value})
    assert set(read(old).tensors) == {"lora.down.particle.", "lora_optimizer.x", "generator.w"}


def test_metrics_of_version_0_1_are_read_under_current_names(tmp_path):
    path, _ = save(tmp_path)
    old = {**RECORD, "metrics": {"particle_loss": 0.5}}
    _edit(checksum=None, format="nfsd3d checkpoint 1", record=old)(path)
    assert read(path).record == {**RECORD, "metrics": {"lora_loss": 0.5}}


def test_the_checkpoint_of_a_step_is_that_one_and_a_missing_one_names_the_others(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(InputError, match=r"has no checkpoint after step 3, and no other one$"):
        checkpoints.at_step(tmp_path, 3)
    for step in (3, 5, 7):
        save(folder, step, keep=9)
    assert checkpoints.at_step(tmp_path, 5).steps == 5
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(tmp_path))} has no checkpoint after step 4; there are: 3, 5, 7$"
    ):
        checkpoints.at_step(tmp_path, 4)
    (folder / "step-000005.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"step-000005.*; there are: 3, 7$"):
        checkpoints.at_step(tmp_path, 5)


def test_a_source_is_a_state_before_the_first_step(tmp_path):
    path = tmp_path / "source.json"
    checkpoint_file.write(path, {"generator.w": torch.ones(1)})
    assert read(path).steps == 0
    header = json.loads(path.read_text()) | {"format": checkpoint_file.FORMAT_1, "record": {}}
    del header["checksum"]
    path.write_text(json.dumps(header))  # version 0.1 kept no progress with a source
    assert read(path).record == checkpoint_file.NO_PROGRESS


def test_a_json_file_that_lacks_a_value_is_named(tmp_path):
    path, _ = save(tmp_path)
    for lacking in ({"group_sizes": None}, {"run": 3}, {"record": {}}):
        _edit(**lacking, checksum=None, format=checkpoint_file.FORMAT_1)(path)
        with pytest.raises(Damaged, match=rf"^{re.escape(str(path))} is incomplete$"):
            read(path)
        path, _ = save(tmp_path)
    path.write_text('{"format": ')
    with pytest.raises(Damaged, match=r"is damaged \(Expecting value"):
        read(path)


def test_the_order_of_values_in_the_json_file_means_nothing(tmp_path):
    path, _ = save(tmp_path)
    header = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(header.items()))))
    assert read(path).steps == 3


def test_a_runs_source_is_read_back_and_a_lost_one_says_what_to_do(tmp_path):
    network, *_ = parts()
    (tmp_path / "checkpoints").mkdir()
    checkpoints.save_source(tmp_path, network)
    source = checkpoints.read_source(tmp_path / checkpoints.SOURCE)
    restored = parts()[0]
    with torch.no_grad():
        restored[0].weight.zero_()
    checkpoints.load_generator(source, restored)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), restored.parameters(), strict=True))
    identity.write(tmp_path)
    with pytest.raises(InputError, match=r"source\.json belongs to another run: start the run anew$"):
        checkpoints.read_source(tmp_path / checkpoints.SOURCE)
    checkpoints.save_source(tmp_path, network)
    assert checkpoints.read_source(tmp_path / checkpoints.SOURCE).header["run"] == identity.read(tmp_path)
    (tmp_path / checkpoints.SOURCE).unlink()
    with pytest.raises(InputError, match=r"source\.json.*: start the run anew$"):
        checkpoints.read_source(tmp_path / checkpoints.SOURCE)
