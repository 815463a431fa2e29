"""Files of torch.save are read; pickles that would execute something are not, and nothing of theirs happens."""

from __future__ import annotations

import argparse
import functools
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.torch_files import Writer, stand_in_classes, write_legacy, write_plain, write_zip
from torch import nn

from cips3d.checkpoints import restricted_pickle
from cips3d.checkpoints.restricted_pickle import InertClass, InertObject
from cips3d.checkpoints.torch_file import read_torch_file
from cips3d.errors import UserError

WRITERS = [write_zip, write_legacy, write_plain]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class CallsThroughState(Calls):
    """Pickles as a dictionary whose state is a call."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"_metadata": Calls(*self.call[:1], *self.call[1])}


def raw(*parts: bytes | str) -> bytes:
    """Instructions of protocol 2; text becomes a BINUNICODE."""
    encoded = (
        part if isinstance(part, bytes) else b"X" + struct.pack("<I", len(part.encode())) + part.encode()
        for part in parts
    )
    return b"\x80\x02" + b"".join(encoded) + b"."


def payloads(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make a file when they are executed, and the name that their refusal gives."""
    shell = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"

    def dumped(value: Any, protocol: int = 2) -> bytes:
        return pickle.dumps(value, protocol=protocol)

    system = Calls(os.system, shell)
    os_name = f"{os.system.__module__}.system"
    return {
        "system": (dumped(system), os_name),
        "system, protocol 0": (dumped(system, 0), os_name),
        "system, protocol 4": (dumped(system, 4), os_name),
        "eval": (dumped(Calls(eval, python)), "builtins.eval"),
        "exec": (dumped(Calls(exec, python)), "builtins.exec"),
        "open": (dumped(Calls(open, str(canary), "w")), "open"),
        "subprocess": (dumped(Calls(subprocess.check_call, ["touch", str(canary)])), "check_call"),
        "getattr": (dumped(Calls(getattr, "text", "upper")), "builtins.getattr"),
        "in a list in a dictionary": (dumped({"g": [{"a": (system,)}]}), os_name),
        "in an ordered dictionary": (dumped(OrderedDict(a=torch.Size((1,)), b=system)), os_name),
        "as the state of an ordered dictionary": (dumped(CallsThroughState(os.system, shell)), os_name),
        "as the argument of an allowed call": (dumped(Calls(set, [system])), os_name),
        "partial": (dumped(functools.partial(os.system, shell)), "functools.partial"),
        "attrgetter": (dumped(Calls(operator.attrgetter, "system")), "operator.attrgetter"),
        "torch.hub.load": (dumped(Calls(torch.hub.load, "a/b", "c")), "torch.hub.load"),
        "torch.load": (dumped(Calls(torch.load, str(canary))), "torch.serialization.load"),
        "bytes of a storage": (dumped(Calls(torch.storage._load_from_bytes, b"")), "torch.storage._load_from_bytes"),
        "array of objects": (dumped(np.array([system], dtype=object)), "_reconstruct"),
        "scalar of objects": (raw(b"cnumpy\ndtype\n", "O8", b"\x85R"), "O8"),
        "a module of an allowed module": (raw(b"ctorch.nn.modules.module\nsys\n"), "torch.nn.modules.module.sys"),
        "a function of an allowed module": (
            raw(b"ctorch.nn.modules.module\n_addindent\n", shell, b"\x85R"),
            "torch.nn.modules.module._addindent",
        ),
        "a dotted name": (
            raw("torch.nn.modules.module", "Module.register_forward_hook.__globals__", b"\x93", b")R"),
            "torch.nn.modules.module.Module.register_forward_hook.__globals__",
        ),
        "a name beside an allowed module": (raw(b"csirens\nSiren\n"), "sirens.Siren"),
        "a call of an inert class": (
            raw(b"ctorch.nn.modules.container\nSequential\n", b")R"),
            "torch.nn.modules.container.Sequential",
        ),
        "arguments of an inert class": (
            raw(b"ctorch.nn.modules.linear\nLinear\n", shell, b"\x85\x81"),
            "torch.nn.modules.linear.Linear",
        ),
        "INST": (b"(V" + shell.encode() + b"\nios\nsystem\n.", "UNICODE"),
        "INST with modern text": (b"(" + raw(shell)[2:-1] + b"ios\nsystem\n.", "INST os.system"),
        "OBJ": (raw(b"(cos\nsystem\n", shell, b"o"), "os.system"),
        "OBJ of an inert class": (raw(b"(csiren.siren\nSiren\n", shell, b"o"), "OBJ"),
        "EXT1": (raw(b"\x82\x01"), "EXT1"),
        "NEWOBJ_EX": (raw(b"csiren.siren\nSiren\n)}\x92"), "NEWOBJ_EX"),
        "out-of-band buffer": (raw(b"\x97"), "NEXT_BUFFER"),
        "terminal codes": (raw("os", "\x1b]0;x\x07\n", b"\x93"), "x1b"),
    }


PAYLOADS = list(payloads(Path("canary")))
EXECUTING = ["system", "system, protocol 0", "eval", "exec", "subprocess", "in a list in a dictionary", "INST", "OBJ"]


def refusal(path: Path) -> str:
    """The one sentence that reading a file ends in."""
    with pytest.raises(UserError) as refused:
        read_torch_file(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 400
    return message


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_is_executed(name: str, writer: Writer, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickled, named = payloads(canary)[name]
    writer(tmp_path / "evil.pth", pickled)
    assert named in refusal(tmp_path / "evil.pth")
    assert not canary.exists()


@pytest.mark.parametrize("name", EXECUTING)
def test_the_payloads_are_live(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(payloads(canary)[name][0])
    assert canary.exists()


def test_nothing_is_imported(tmp_path: Path) -> None:
    sys.modules.pop("antigravity", None)
    for pickled in (b"cantigravity\nfly\n.", b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93."):
        write_zip(tmp_path / "evil.pth", pickled)
        assert "antigravity.fly" in refusal(tmp_path / "evil.pth")
    for module in ("generators", "generators.surely_missing"):
        write_zip(tmp_path / "inert.pth", raw(f"c{module}\nGenerator\n".encode(), b")\x81"))
        assert read_torch_file(tmp_path / "inert.pth").kind == InertClass(module, "Generator")
    assert "antigravity" not in sys.modules and "generators" not in sys.modules


def test_what_is_dropped_is_gone(tmp_path: Path) -> None:
    """POP takes an object or, where there is none since a mark, the mark; POP_MARK all since it."""
    for pickled in (raw("kept", "dropped", b"0"), raw("kept", b"(", b"0"), raw("kept", b"(", "dropped", "too", b"1")):
        write_zip(tmp_path / "f.pth", pickled)
        assert read_torch_file(tmp_path / "f.pth") == "kept"


def test_attributes_are_only_noted(tmp_path: Path) -> None:
    state = {"__class__": 1, "__setstate__": 2, "__dict__": 3, "__reduce__": 4, "kind": 5}
    write_zip(tmp_path / "f.pth", raw(b"csiren.siren\nSiren\n)\x81", pickle.dumps(state, 2)[2:-1], b"b"))
    loaded = read_torch_file(tmp_path / "f.pth")
    assert type(loaded) is InertObject and loaded.attributes == state
    assert loaded.kind == InertClass("siren.siren", "Siren")
    write_zip(tmp_path / "f.pth", raw(b"]", pickle.dumps(state, 2)[2:-1], b"b"))
    assert "attributes" in refusal(tmp_path / "f.pth")


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_writes(is_zip: bool, protocol: int, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tagged = nn.Parameter(torch.randn(2))
    tagged.purpose = "test"  # type: ignore[attr-defined]
    saved = {
        "transposed": base.t(),
        "part": base[1:3, 2:],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "tagged": tagged,
        **{
            str(dtype): torch.tensor([0, 1]).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool)
        },
    }
    beside = {
        "args": argparse.Namespace(lr=0.1, size=torch.Size((2, 3)), device=torch.device("cpu")),
        "fid": np.float64(6.5),
        "step": np.int64(7),
        "ints": [1, -1, 300, 1 << 40, True, None, {1, 2}, b"bytes"],
    }
    path = tmp_path / "f.pth"
    torch.save({**saved, **beside}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    loaded = read_torch_file(path)
    for key, value in saved.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value), key
    assert loaded["args"].attributes == {"lr": 0.1, "size": (2, 3), "device": None}
    assert loaded["fid"] == 6.5 and loaded["step"] == 7 and loaded["ints"] == beside["ints"]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # which the older format saves beside modules
@pytest.mark.parametrize("is_zip", [True, False])
def test_modules_become_inert(is_zip: bool, tmp_path: Path) -> None:
    with stand_in_classes(Siren="siren.siren") as classes:
        module = classes["Siren"]()
        module.layer = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU())
        torch.save(module, tmp_path / "f.pth", _use_new_zipfile_serialization=is_zip)
    loaded = read_torch_file(tmp_path / "f.pth")
    assert loaded.kind == InertClass("siren.siren", "Siren")
    linear = loaded.attributes["_modules"]["layer"].attributes["_modules"]["0"]
    assert linear.kind == InertClass("torch.nn.modules.linear", "Linear")
    assert torch.equal(linear.attributes["_parameters"]["weight"], module.layer[0].weight)


@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_files(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    torch.save({"a": torch.randn(100), "b": torch.randn(7)}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "truncated" in refusal(path)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_other_files(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pth")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "text.pth").write_text("hello\n")
    assert "torch.save" in refusal(tmp_path / "text.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    assert "not a file of torch.save" in refusal(tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one of torch.save" in refusal(tmp_path / "other.zip")
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "script.pth"))
    assert "TorchScript" in refusal(tmp_path / "script.pth")


def tensor_pickle(
    numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], view: tuple[str, int, int] | None = None
) -> bytes:
    """A tensor in a storage called 0, or in a part of it (key, offset, size)."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    part = () if view is None else (plain(view),)
    storage = (b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", plain(numel), *part, b"tQ")
    rest = (plain(offset), plain(size), plain(stride), plain(False), b"ccollections\nOrderedDict\n)R")
    return raw(b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", *storage, *rest, b"tR")


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride", "words"),
    [
        (4, 0, (4,), (1,), None),
        (4, 1, (4,), (1,), "not a complete file"),  # ends behind the storage
        (4, 0, (2, 2), (1 << 40, 1), "not a complete file"),
        (4, -1, (2,), (1,), "not a complete file"),
        (4, 0, (1 << 40,), (0,), "in 4 numbers"),  # as large as it likes
        (4, 0, (1,) * 100, (1,) * 100, "not a complete file"),
        (5, 0, (4,), (1,), "should have 20 bytes"),
        (1 << 60, 0, (4,), (1,), "should have"),
        (-4, 0, (4,), (1,), "not a complete file"),
    ],
)
def test_tensors_stay_in_their_storage(
    numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], words: str | None, tmp_path: Path
) -> None:
    values = np.arange(4, dtype=np.float32).tobytes()
    pickled = tensor_pickle(numel, offset, size, stride)
    write_zip(tmp_path / "zip.pth", pickled, {"0": values})
    write_legacy(tmp_path / "legacy.pth", pickled, {"0": (4, values)})
    if words is None:
        assert read_torch_file(tmp_path / "zip.pth").tolist() == [0, 1, 2, 3]
        assert read_torch_file(tmp_path / "legacy.pth").tolist() == [0, 1, 2, 3]
    else:
        assert words in refusal(tmp_path / "zip.pth")
        refusal(tmp_path / "legacy.pth")


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, (2,), [1, 2]), (1, (2,), [2, 3]), (3, (0,), []), (2, (2,), None), (0, (4,), None)],
)
def test_tensors_in_a_part_of_a_storage(
    offset: int, size: tuple[int, ...], expected: list[int] | None, tmp_path: Path
) -> None:
    """Offsets count from where the part begins, and nothing behind its end belongs to a tensor."""
    path = tmp_path / "legacy.pth"
    values = np.arange(6, dtype=np.float32).tobytes()
    write_legacy(path, tensor_pickle(6, offset, size, (1,), ("0", 1, 3)), {"0": (6, values)})
    if expected is None:
        refusal(path)
    else:
        assert read_torch_file(path).tolist() == expected


def test_archives_that_are_not_torch_s(tmp_path: Path) -> None:
    path, pickled = tmp_path / "f.pth", tensor_pickle(1 << 20, 0, (4,), (1,))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb: 4 MB of zeros in a few KB
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(4 << 20))
    assert "compressed" in refusal(path)
    write_zip(path, pickled)
    assert "is missing" in refusal(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../outside", "")
    assert "'../../outside'" in refusal(path)
    write_zip(path, b"]" * (1 << 24) + b".")
    assert "absurd" in refusal(path)


def test_entries_that_overlap(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", raw(b"N"))
        archive.writestr("archive/data/0", bytes(1000))
        first = archive.getinfo("archive/data/0")
        for k in range(1, 9):  # eight more names for the same bytes
            again = zipfile.ZipInfo(f"archive/data/{k}")
            again.file_size, again.compress_size, again.CRC = first.file_size, first.compress_size, first.CRC
            again.header_offset = first.header_offset
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    assert "overlap" in refusal(path)


@pytest.mark.parametrize(
    "pickled",
    [
        raw(b"(" * 100_000),
        raw(b"]" + b"a" * 10),
        raw(b"}", b")", b"N", b"s"),  # a key that is a tuple
        raw(b"}N" + b"\x85" * 50_000 + b"Ns"),  # one whose hash would overflow the stack
        raw(b"cnumpy\ndtype\n", b"N" + b"\x85" * 50_000, b"\x85R"),
        raw(b"X\xff\xff\xff\xff"),
        raw(b"\x8b\xff\xff\xff\x7f"),
        raw(b"h\x05"),
        raw(b"N", b"0", b"0"),
        b"",
        b".",
    ],
    ids=range(11),
)
def test_malformed_pickles(pickled: bytes, tmp_path: Path) -> None:
    write_zip(tmp_path / "f.pth", pickled)
    refusal(tmp_path / "f.pth")


def test_text_that_is_copied_again_and_again(tmp_path: Path) -> None:
    """A call of a few bytes makes another copy of what the memo holds."""
    text = (
        b"X"
        + (100_000).to_bytes(4, "little")
        + b"x" * 100_000
        + b"q\x010c_codecs\nencode\nq\x020X\x06\0\0\0latin1q\x030"
    )
    calls = b"h\x02h\x01h\x03\x86R0"
    write_zip(tmp_path / "few.pth", raw(text, calls * 600, b"N"))
    assert read_torch_file(tmp_path / "few.pth") is None
    write_zip(tmp_path / "many.pth", raw(text, calls * 700, b"N"))
    assert "asks for far more memory than torch.save does" in refusal(tmp_path / "many.pth")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("collections\nOrderedDict\n", b"h\x02h\x01\x85R0"),  # a tuple of pairs, called for a dictionary
        ("torch.nn.modules.linear\nLinear\n", b"h\x02)\x81h\x01b0"),  # a dictionary as the attributes of objects
    ],
)
def test_containers_that_are_copied_again_and_again(
    name: str, step: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restricted_pickle, "MAX_COPIED", 1000)
    if step.endswith(b"b0"):
        held = b"}(" + b"".join(b"X\x02\0\0\0%02dN" % k for k in range(50)) + b"u"
    else:
        held = b"(" + b"".join(b"X\x02\0\0\0%02dN\x86" % k for k in range(50)) + b"t"
    begin = held + b"q\x010c" + name.encode() + b"q\x020"
    write_zip(tmp_path / "few.pth", raw(begin, step * 20, b"N"))
    assert read_torch_file(tmp_path / "few.pth") is None
    write_zip(tmp_path / "many.pth", raw(begin, step * 21, b"N"))
    assert "asks for far more memory than torch.save does" in refusal(tmp_path / "many.pth")


def test_numbers_of_one_hash_are_no_keys(tmp_path: Path) -> None:
    """Thousands of them in a dictionary take seconds, and more take hours."""
    for number, is_read in ((2**60 - 1, True), (2**61 - 1, False), (-(2**61) + 1, False)):
        write_zip(tmp_path / "f.pth", pickle.dumps({number: 1}, 2))
        if is_read:
            assert read_torch_file(tmp_path / "f.pth") == {number: 1}
        else:
            assert "an absurdly large number as a key" in refusal(tmp_path / "f.pth")


def test_deep_and_sparse_pickles_are_harmless(tmp_path: Path) -> None:
    write_zip(tmp_path / "deep.pth", raw(b"]" * 100_000 + b"a" * 99_999))
    assert len(read_torch_file(tmp_path / "deep.pth")) == 1
    write_zip(tmp_path / "memo.pth", raw("x", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f"))  # a memo of 2^31 entries
    assert read_torch_file(tmp_path / "memo.pth") == "x"
