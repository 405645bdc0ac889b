"""What is fuzzed: each parser as a function of bytes, with a small valid file to start from.

A parser may refuse a file by `InputError`; any other exception is a finding.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError


@dataclass(frozen=True)
class Target:
    """A parser of files with that suffix, and one file that it accepts."""

    suffix: str
    parse: Callable[[Path], Any]
    seed: bytes

    def run(self, data: bytes, folder: Path) -> bool:
        """Parse `data` as a file in `folder`; false if it was refused as it should be."""
        path = folder / f"input{self.suffix}"
        path.write_bytes(data)
        try:
            self.parse(path)
        except InputError:
            return False
        return True


def _can(path: Path) -> None:
    from edge_ids.can.readers import read_frames

    read_frames(path)


def _netflow(path: Path) -> None:
    from edge_ids.flow.netflow import read_netflow

    for _ in read_netflow(path):
        pass


def _pcap(path: Path) -> None:
    from edge_ids.flow.meter import read_pcap

    for _ in read_pcap(path):
        pass


def _export(path: Path) -> None:
    from edge_ids.flow.netflow_wire import Decoder, flows_table

    decoder = Decoder()
    if flows := decoder.decode(path.read_bytes(), "192.0.2.1", 1.7e9):
        flows_table(flows, str(decoder.accept))


def _eve(path: Path) -> None:
    from edge_ids.flow.textlog import read_eve

    for _ in read_eve(path):
        pass


def _zeek(path: Path) -> None:
    from edge_ids.flow.textlog import read_zeek

    for _ in read_zeek(path):
        pass


def _aci(path: Path) -> None:
    from tinyeeg.readers.aci import read_aci_mat

    read_aci_mat(path)


def _muse(path: Path) -> None:
    from tinyeeg.readers.muse import read_muse_csv

    read_muse_csv(path)


def _emotiv(path: Path) -> None:
    from tinyeeg.readers.emotiv import read_emotiv_csv

    read_emotiv_csv(path)


def _network(path: Path) -> None:
    from edge_shared.files import read_json
    from edge_shared.memory import inference
    from edge_shared.network import Network

    network = Network.from_json(read_json(path))
    for model in ("A", "C", "D"):
        inference.peak(network, model)  # type: ignore[arg-type]


def _config(path: Path) -> None:
    from edge_shared.architectures import mobile
    from edge_shared.files import read_json
    from pydantic import ValidationError

    try:
        config = mobile.MobileConfig.model_validate(read_json(path))
    except ValidationError:
        return
    mobile.network(config)


def _recipe(path: Path) -> None:
    from edge_shared.artifacts.recipe import from_recipe
    from edge_shared.files import read_json

    from_recipe(read_json(path), _weights())


def _device(path: Path) -> None:
    from edge_shared import devices

    devices.load(path)


def _scheme(path: Path) -> None:
    from edge_shared.files import read_json
    from ondevice_train.selection.scheme import scheme_memory

    scheme_memory("mcunet-5fps", read_json(path), accounting="mcunetv3")


def _plan(path: Path) -> None:
    from edge_shared.files import read_json
    from ondevice_train.compression.plans import Plan

    Plan.from_json(read_json(path))


def _space(path: Path) -> None:
    from moofa.space import load_space

    load_space(str(path)).smallest()


def _latency(path: Path) -> None:
    from moofa.latency import LatencyTable
    from moofa.space import load_space

    LatencyTable.load(path, load_space("digits8"))


def _road(path: Path) -> None:
    from edge_ids.can.road import read_metadata

    read_metadata(path)


def _predictions(path: Path) -> None:
    from fairnet.audit import audit, read_predictions

    audit(read_predictions(path), resamples=0)


def _eeg_model(path: Path) -> None:
    from tinyeeg.deployed import Deployed

    Deployed.load(path)


def _can_model(path: Path) -> None:
    """The arrays, with the checksum that belongs to them: what someone writes who means harm."""
    from edge_ids.can.detector import StreamingDetector
    from edge_ids.can.profile import FORMAT, Profile

    raw = path.read_bytes()
    (path.parent / "profile.npz").write_bytes(raw)
    meta = {"format": FORMAT, "sha256": hashlib.sha256(raw).hexdigest(), "channels": ["can0"], "info": {}}
    (path.parent / "profile.json").write_text(json.dumps(meta))
    StreamingDetector(Profile.load(path.parent))


def _checkpoint(path: Path) -> None:
    from edge_shared.checkpoints import load_checkpoint

    load_checkpoint(path)


def _weights_file(path: Path) -> None:
    from edge_shared.artifacts.model import load_weights

    load_weights(path)


def _idx(path: Path) -> None:
    from edge_shared.data.sources import read_idx

    read_idx(path, 1)


def _weights() -> dict[str, Any]:
    import torch

    return {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4)}


def _recipe_seed() -> bytes:
    import torch
    from edge_shared.artifacts.recipe import to_recipe

    return json.dumps(to_recipe(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()))).encode()


def _network_seed() -> bytes:
    from edge_shared.architectures import mobile

    return json.dumps(mobile.network(mobile.MobileConfig.model_validate_json(CONFIG)).to_json()).encode()


def _netflow_seed() -> bytes:
    from edge_ids.flow.schema import SCHEMAS

    columns = ["IPV4_SRC_ADDR", "L4_SRC_PORT", "IPV4_DST_ADDR", "L4_DST_PORT", *SCHEMAS["nf-v2"].features]
    columns = list(dict.fromkeys(columns))
    row = ["10.0.0.1" if "ADDR" in name else "1" for name in columns]
    return (",".join(columns) + "\n" + ",".join(row) + "\n").encode()


def _export_seed() -> bytes:
    """An IPFIX message: a template with addresses, a name of variable length and bytes, and one record."""
    fields = b"".join(struct.pack(">HH", *field) for field in ((8, 4), (12, 4), (96, 65_535), (1, 8)))
    template = struct.pack(">HHHH", 2, 8 + len(fields), 300, 4) + fields
    record = bytes([10, 0, 0, 1, 10, 0, 0, 2, 3]) + b"ssh" + struct.pack(">Q", 840)
    data = struct.pack(">HH", 300, 4 + len(record)) + record
    return struct.pack(">HHIII", 10, 16 + len(template) + len(data), 1_700_000_000, 1, 9) + template + data


def _pcap_seed() -> bytes:
    ip = bytes.fromhex("45000024000100004011000a0a0000010a000002") + struct.pack(">HHHH", 1000, 53, 16, 0) + b"12345678"
    frame = bytes(12) + b"\x08\x00" + ip
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack("<IIII", second, 0, len(frame), len(frame)) + frame for second in (1, 2, 3))


def _mat_seed() -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"o": {"data": np.ones((256, 25)), "sampFreq": 128.0}})
    return file.getvalue()


def _space_seed() -> bytes:
    from moofa.space import load_space

    return load_space("digits8").model_dump_json().encode()


def _latency_seed() -> bytes:
    from moofa.latency import FORMAT, _shape
    from moofa.space import load_space

    space = load_space("digits8")
    table = {"format": FORMAT, "space": space.fingerprint(), "machine": {}, "fixed": [1.0] * len(space.resolutions)}
    return json.dumps({**table, "blocks": np.ones(_shape(space)).tolist(), "overhead": 0.1}).encode()


def _eeg_model_seed() -> bytes:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from tinyeeg.deployed import Deployed, from_sklearn
    from tinyeeg.presets import compact

    chain = compact(128.0, ("AF3", "AF4"))
    n = chain.n_features
    x = np.random.default_rng(0).normal(size=(40, n))
    model = from_sklearn(LinearDiscriminantAnalysis().fit(x, np.arange(40) % 2), n, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        Deployed(chain, ("calm", "busy"), np.zeros(n), np.ones(n), 5.0, False, model, {}).save(path)
        return path.read_bytes()


def _written(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def _can_model_seed() -> bytes:
    from edge_ids.can.generate import generate
    from edge_ids.can.profile import train

    return _written(lambda path: train(generate(seconds=8, seed=0)[0]).save(path.parent), "profile.npz")


def _checkpoint_seed() -> bytes:
    import torch
    from edge_shared.checkpoints import save_checkpoint

    return _written(lambda path: save_checkpoint(path, {"a": torch.ones(2), "b": [1, "x", None]}), "c.safetensors")


def _torch_seed() -> bytes:
    import torch

    return _written(lambda path: torch.save({"a": torch.ones(2)}, path), "w.pth")


def _safetensors_seed() -> bytes:
    import safetensors.torch
    import torch

    return safetensors.torch.save({"a": torch.ones(2)})


CONFIG = b'{"resolution": 32, "stem": {"out": 8}, "blocks": [{"kernel": 3, "expand": 4, "out": 8}], "classes": 10}'
MUSE = "TimeStamp,RAW_TP9,RAW_AF7,RAW_AF8,RAW_TP10\n" + "".join(f"{0.00390625 * i},{800 + i % 7},801,802,803\n" for i in range(600))
EMOTIV = "Counter,AF3,F7,F3,FC5,T7,P7,O1,O2,P8,T8,FC6,F4,F8,AF4\n" + "".join(
    f"{i % 128}," + ",".join(["4200"] * 14) + "\n" for i in range(300)
)
ROAD = b'{"max_speed": {"injection_id": "0xD0", "injection_data_str": "XXXXXXXXXXXXFF", "injection_interval": [2.5, 7.5]}}'
PLAN = b'{"method": "asi", "layers": [{"name": "0", "kind": "conv", "shape": [8, 3, 8, 8], "choice": "shortcut", "ranks": [2, 2, 2, 2]}]}'
DEVICE = b'name = "x"\nkind = "mcu"\nclock_hz = 1000000\nram_total = 4096\nram_largest_region = 4096\nflash_total = 8192\n'
EVE = (
    b'{"event_type":"flow","timestamp":"2026-01-01T00:00:00.000000+0000","src_ip":"10.0.0.1","src_port":1,"dest_ip":"10.0.0.2","dest_port":2,'
    b'"proto":"TCP","flow":{"pkts_toserver":1,"pkts_toclient":1,"bytes_toserver":60,"bytes_toclient":60,'
    b'"start":"2026-01-01T00:00:00.000000+0000","end":"2026-01-01T00:00:01.000000+0000"}}\n'
)
ZEEK = (
    b"#separator \\x09\n#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_bytes\tresp_bytes\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\n"
    b"1.0\t10.0.0.1\t1\t10.0.0.2\t2\ttcp\t0.5\t1\t1\t1\t41\t1\t41\n"
)


def targets() -> dict[str, Target]:
    """Every parser that reads what others made, by name."""
    return {
        "candump": Target(".log", _can, b"(1.000000) can0 123#0102030405060708\n(1.010000) can0 18FEF100#01\n(1.020000) can0 123##101\n"),
        "car-hacking": Target(".csv", _can, b"1478198376.389427,0316,8,05,21,68,09,21,21,00,6f,R\n1478198376.389636,018f,2,fe,5b,T\n"),
        "netflow": Target(".csv", _netflow, _netflow_seed()),
        "pcap": Target(".pcap", _pcap, _pcap_seed()),
        "netflow-export": Target(".bin", _export, _export_seed()),
        "eve": Target(".json", _eve, EVE),
        "zeek": Target(".log", _zeek, ZEEK),
        "aci": Target(".mat", _aci, _mat_seed()),
        "muse": Target(".csv", _muse, MUSE.encode()),
        "emotiv": Target(".csv", _emotiv, EMOTIV.encode()),
        "network": Target(".json", _network, _network_seed()),
        "config": Target(".json", _config, CONFIG),
        "recipe": Target(".json", _recipe, _recipe_seed()),
        "device": Target(".toml", _device, DEVICE),
        "scheme": Target(".json", _scheme, b'{"n_bias": 22, "convs": [21, 24, 27], "ratios": [1, 0.5, 0.25]}'),
        "plan": Target(".json", _plan, PLAN),
        "space": Target(".json", _space, _space_seed()),
        "latency": Target(".json", _latency, _latency_seed()),
        "road-metadata": Target(".json", _road, ROAD),
        "predictions": Target(".csv", _predictions, b"label,prediction,group\na,a,x\nb,a,x\nb,b,y\na,b,y\n"),
        "eeg-model": Target(".json", _eeg_model, _eeg_model_seed()),
        "can-model": Target(".npz", _can_model, _can_model_seed()),
        "checkpoint": Target(".safetensors", _checkpoint, _checkpoint_seed()),
        "safetensors": Target(".safetensors", _weights_file, _safetensors_seed()),
        "torch-weights": Target(".pth", _weights_file, _torch_seed()),
        "idx": Target(".idx", _idx, b"\0\0\x08\x01\0\0\0\x04\1\2\3\4"),
    }
